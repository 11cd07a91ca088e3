"""A convolution's gradients as single MATRIX instructions, for any stride, padding and dilation.

X and dY are images of whole array tiles of channels, innermost; W lies as forward passes want it, a
tile of R input by C output channels for each tap. R = C = the array's side throughout.

    Y[y, x] = sum over taps (i, j) of W[i, j] X[y * stride + i * dilation - padding, likewise x]
"""

from dataclasses import dataclass

import numpy as np

from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import (
    Accumulate,
    Bounds,
    Dataflow,
    Element,
    Instruction,
    Load,
    LoadSide,
    Matrix,
    Memory,
    Store,
)

__all__ = ["Case", "data_gradient_gather", "data_gradient_scatter", "weight_gradient"]

X, WEIGHTS, GRADIENT, RESULT, PROGRAM = 0x0, 0x4000, 0x8000, 0x10000, 0x30000
MEMORY_BYTES = 0x34000


@dataclass(frozen=True)
class Case:
    """Sizes of a convolution; channels in array tiles, ``kernel`` and all else as (y, x)."""

    config: AcceleratorConfig
    size: tuple[int, int]
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of Y."""
        spans = ((n - 1) * d + 1 for n, d in zip(self.kernel, self.dilation))
        rest = (
            (size + 2 * padding - span) // stride + 1
            for size, padding, span, stride in zip(self.size, self.padding, spans, self.stride)
        )
        height, width = rest
        return height, width

    @property
    def side(self) -> int:
        return self.config.rows

    @classmethod
    def random(cls, config: AcceleratorConfig, rng: np.random.Generator) -> "Case":
        """One that the on-chip memories hold, Y not empty; every extreme now and then."""
        while True:
            case = cls(
                config,
                size=tuple(int(n) for n in rng.integers(1, 8, 2)),
                inputs=int(rng.integers(1, 3)),
                outputs=int(rng.integers(1, 3)),
                kernel=tuple(int(n) for n in rng.integers(1, 5, 2)),
                stride=tuple(int(n) for n in rng.integers(1, 4, 2)),
                dilation=tuple(int(n) for n in rng.integers(1, 4, 2)),
                padding=tuple(int(n) for n in rng.integers(0, 4, 2)),
            )
            if min(case.result) >= 1 and case.fits:
                return case

    @property
    def fits(self) -> bool:
        config, side = self.config, self.side
        pixels, taps = int(np.prod(self.size)), int(np.prod(self.kernel))
        results = int(np.prod(self.result))
        tiles = taps * self.inputs * self.outputs
        return (
            max(pixels * self.inputs, results * self.outputs) * side <= config.activation_bytes
            and max(tiles * side, results * self.outputs) * side <= config.weight_bytes
            and max(pixels * self.inputs, tiles * side) <= config.accumulator_total_rows
        )

    def operands(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """int8: ``x`` (H, W, C), ``w`` (taps y, taps x, C, K), ``dy`` (H', W', K)."""
        channels, filters = self.inputs * self.side, self.outputs * self.side
        shapes = {
            "x": (*self.size, channels),
            "w": (*self.kernel, channels, filters),
            "dy": (*self.result, filters),
        }
        extreme = rng.integers(4) == 0  # products of the largest size
        low, high = (-128, -126) if extreme else (-128, 128)
        return {
            name: rng.integers(low, high, shape).astype(np.int8) for name, shape in shapes.items()
        }


def _loads(case: Case, image: int, size: int, top: int, top_size: int) -> list[Instruction]:
    return [
        Load(dram_address=image, run_bytes=size, extent=1),
        Load(dram_address=top, run_bytes=top_size, memory=Memory.WEIGHT, extent=1),
    ]


def _store(case: Case, rows: int) -> Instruction:
    return Store(
        dram_address=RESULT,
        run_bytes=4 * case.config.columns * rows,
        memory=Memory.ACCUMULATOR,
        element=Element.INT32,
        extent=1,
    )


def weights_image(case: Case, w: np.ndarray) -> np.ndarray:
    """Tiles by tap, input tile, output tile."""
    side = case.side
    tiles = w.reshape(*case.kernel, case.inputs, side, case.outputs, side)
    return np.ascontiguousarray(tiles.transpose(0, 1, 2, 4, 3, 5))


def data_gradient_scatter(case: Case) -> list[Instruction]:
    """dX: each pixel of dY times the transposed tap, added to the pixel of X that it came from.

    Loops: input tile, taps y and x, output tile, rows and columns of dY.
    """
    (ky, kx), (height, width), side = case.kernel, case.size, case.side
    (rows, columns), (sy, sx), (dy, dx) = case.result, case.stride, case.dilation
    tile, pixels = side * side, height * width
    tap = case.inputs * case.outputs * tile
    pitch = case.outputs * side
    return [
        *_loads(case, GRADIENT, rows * columns * pitch, WEIGHTS, ky * kx * tap),
        # Cleared: the first tap does not reach every pixel.
        Load(
            memory=Memory.ACCUMULATOR,
            run_bytes=case.inputs * pixels * side,
            origin=-1,
            fill=0,
        ),
        Matrix(
            load_side=LoadSide.LEFT,
            accumulate=Accumulate.ALWAYS_ADD,
            bounds=Bounds.ACCUMULATOR,
            counts=(case.inputs, ky, kx, case.outputs, 1, rows, columns),
            left_strides=(0, 0, 0, side, 0, columns * pitch, pitch),
            top_strides=(case.outputs * tile, kx * tap, tap, tile, 0, 0, 0),
            tile_stride=side,
            accumulator_address=-case.padding[0] * width - case.padding[1],
            accumulator_strides=(pixels, dy * width, dx, 0, 0, sy * width, sx),
            y_origin=-case.padding[0],
            y_extent=height,
            y_steps=(0, dy, 0, 0, 0, sy, 0),
            x_origin=-case.padding[1],
            x_extent=width,
            x_steps=(0, 0, dx, 0, 0, 0, sx),
        ),
        _store(case, case.inputs * pixels),
    ]


def data_gradient_gather(case: Case) -> list[Instruction]:
    """dX of stride 1: a convolution of dY with the taps in reverse order, each transposed.

    X's pixel (y, x) takes tap (i, j) of dY's pixel (y + padding - i * dilation, likewise x).
    """
    assert case.stride == (1, 1)
    (ky, kx), (height, width), side = case.kernel, case.size, case.side
    (rows, columns), (dy, dx) = case.result, case.dilation
    tile, pixels = side * side, height * width
    tap = case.inputs * case.outputs * tile
    pitch = case.outputs * side
    first = case.padding[0] * columns + case.padding[1]
    return [
        *_loads(case, GRADIENT, rows * columns * pitch, WEIGHTS, ky * kx * tap),
        Matrix(
            load_side=LoadSide.LEFT,
            bounds=Bounds.LEFT,
            counts=(case.inputs, ky, kx, case.outputs, 1, height, width),
            left_address=first * pitch,
            left_strides=(0, -dy * columns * pitch, -dx * pitch, side, 0, columns * pitch, pitch),
            top_strides=(case.outputs * tile, kx * tap, tap, tile, 0, 0, 0),
            tile_stride=side,
            accumulator_strides=(pixels, 0, 0, 0, 0, width, 1),
            y_origin=case.padding[0],
            y_extent=rows,
            y_steps=(0, -dy, 0, 0, 0, 1, 0),
            x_origin=case.padding[1],
            x_extent=columns,
            x_steps=(0, 0, -dx, 0, 0, 0, 1),
        ),
        _store(case, case.inputs * pixels),
    ]


def weight_gradient(case: Case) -> list[Instruction]:
    """dW: for each tap and pair of channel tiles, X's pixels times dY's; rows by tap, tiles.

    Loops: taps y and x, input tile, output tile; rows and columns of dY are the reduction.
    """
    (ky, kx), (_, width), side = case.kernel, case.size, case.side
    (rows, columns), (sy, sx), (dy, dx) = case.result, case.stride, case.dilation
    left_pitch, top_pitch = case.inputs * side, case.outputs * side
    tap = case.inputs * case.outputs * side  # accumulator rows
    first = -case.padding[0] * width - case.padding[1]
    image = case.size[0] * width * left_pitch
    return [
        *_loads(case, X, image, GRADIENT, rows * columns * top_pitch),
        Matrix(
            dataflow=Dataflow.OUTPUT_STATIONARY,
            bounds=Bounds.LEFT,
            counts=(ky, kx, case.inputs, case.outputs, 1, rows, columns),
            left_address=first * left_pitch,
            left_strides=(
                *(dy * width * left_pitch, dx * left_pitch, side, 0),
                *(0, sy * width * left_pitch, sx * left_pitch),
            ),
            top_strides=(0, 0, 0, side, 0, columns * top_pitch, top_pitch),
            tile_stride=1,
            accumulator_strides=(kx * tap, tap, case.outputs * side, side, 0, 0, 0),
            y_origin=-case.padding[0],
            y_extent=case.size[0],
            y_steps=(dy, 0, 0, 0, 0, sy, 0),
            x_origin=-case.padding[1],
            x_extent=width,
            x_steps=(0, dx, 0, 0, 0, 0, sx),
        ),
        _store(case, ky * kx * tap),
    ]
