"""The gradients of a convolution on the machine, scheduled by hand for the benchmark.

X, dY and W lie in DRAM as forward passes want them: images with channels padded to whole array
tiles, W in array tiles of R input by C output channels, by output tile, tap and input tile. All
operands of one gradient fit on chip.
"""

from dataclasses import dataclass

from weft.benchmarks.blocks import Block, load_block
from weft.benchmarks.product_memories import ProductMemories
from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Space, reads, writes
from weft.compiler.synchronize import synchronize
from weft.compiler.vectors import trim
from weft.errors import InputError
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import Bounds, Dataflow, End, LoadSide, Matrix, Memory

__all__ = ["GradientSizes", "data_gradient_program", "weight_gradient_program"]


@dataclass(frozen=True)
class GradientSizes:
    """Sizes of a convolution with a square kernel, padded by half of it.

    Parameters
    ----------
    config : AcceleratorConfig
    shape : (H, W, C, K)
        Height, width and channels of X, channels of Y.
    kernel, stride : int
    """

    config: AcceleratorConfig
    shape: tuple[int, int, int, int]
    kernel: int
    stride: int

    @property
    def padding(self) -> int:
        """Pixels on each side."""
        return self.kernel // 2

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of Y."""
        height, width = (
            (size + 2 * self.padding - self.kernel) // self.stride + 1 for size in self.shape[:2]
        )
        return height, width

    @property
    def inputs(self) -> int:
        """Channel tiles of X."""
        return ceil_div(self.shape[2], self.config.rows)

    @property
    def outputs(self) -> int:
        """Channel tiles of Y."""
        return ceil_div(self.shape[3], self.config.columns)

    @property
    def source_pitch(self) -> int:
        """Bytes of a pixel of X, and of dX."""
        return self.inputs * self.config.rows

    @property
    def result_pitch(self) -> int:
        """Bytes of a pixel of dY."""
        return self.outputs * self.config.columns

    @property
    def source_bytes(self) -> int:
        """Bytes of X, and of dX."""
        return self.shape[0] * self.shape[1] * self.source_pitch

    @property
    def result_bytes(self) -> int:
        """Bytes of dY."""
        height, width = self.result
        return height * width * self.result_pitch

    @property
    def weight_bytes(self) -> int:
        """Bytes of W; dW, a matrix of C by K for each tap, takes as many."""
        return self.kernel**2 * self.inputs * self.outputs * self.config.tile_bytes


def _check(what: str, needed: int, limit: int, of: str) -> None:
    if needed > limit:
        raise InputError(f"{what} takes {needed} {of}, of which there are {limit}")


def _whole(schedule: ProductMemories, dram: int, size: int, memory: Memory, name: str) -> None:
    """Load an operand to address 0 of a memory."""
    load_block(
        schedule.stream, Block(dram, 1, size, size), Block(0, 1, size, size), memory, f"load {name}"
    )


def _encoded(schedule: ProductMemories) -> bytes:
    instructions = synchronize(schedule.stream.steps, schedule.config)
    return b"".join(entry.encode() for entry in [*instructions, End()])


def data_gradient_program(
    sizes: GradientSizes, gradient: int, weights: int, result: int, shift: int
) -> bytes:
    """Machine code of dX at stride 1: a gather over dY with the taps reversed and transposed.

    X's pixel (y, x) takes tap (i, j) of dY's pixel (y + padding - i, x + padding - j). The tiles of
    W enter from the left. Parts of the result, of one channel tile and some image rows, take turns
    in the accumulators' banks.

    Parameters
    ----------
    sizes : GradientSizes
    gradient, weights, result : int
        DRAM addresses of dY, W and dX.
    shift : int
        dX is scaled by ``2**-shift``.

    Raises
    ------
    InputError
        If the stride is not 1, the array is not square, or the operands do not fit on chip.
    """
    config, kernel = sizes.config, sizes.kernel
    if sizes.stride != 1:
        raise InputError(f"dX is measured at stride 1, not {sizes.stride}")
    if config.rows != config.columns:
        raise InputError(f"dX needs a square array; {config.name} has another")
    schedule = ProductMemories(config, "dX", shift)
    height, width = sizes.shape[:2]
    rows, columns = sizes.result
    band = min(height, config.accumulator_rows // width)
    _check("an image row", width, config.accumulator_rows, "accumulator rows of a bank")
    _check("dY", sizes.result_bytes, schedule.left.capacity, "bytes of activations")
    _check("W", sizes.weight_bytes, config.weight_bytes, "bytes of weights")
    tile, pitch, padding = config.tile_bytes, sizes.result_pitch, sizes.padding
    taps = kernel * kernel
    size = sizes.outputs * taps * tile  # of the tiles of an input tile
    held: tuple[int, Block] | None = None
    for channel in range(sizes.inputs):
        load_block(
            schedule.stream,
            Block(weights + channel * tile, sizes.outputs * taps, tile, sizes.inputs * tile),
            Block(channel * size, sizes.outputs * taps, tile, tile),
            Memory.WEIGHT,
            "load weights",
        )
        if channel == 0:
            _whole(schedule, gradient, sizes.result_bytes, Memory.ACTIVATION, "dY")
        for first in range(0, height, band):
            count = min(band, height - first)
            pixels = count * width
            sums = schedule.sums(pixels)
            counts = (1, kernel, kernel, sizes.outputs, 1, count, width)
            schedule.stream.emit(
                Matrix(
                    load_side=LoadSide.LEFT,
                    bounds=Bounds.LEFT,
                    counts=counts,
                    left_address=((first + padding) * columns + padding) * pitch,
                    left_strides=trim(
                        (0, -columns * pitch, -pitch, config.rows, 0, columns * pitch, pitch),
                        counts,
                    ),
                    top_address=channel * size,
                    top_strides=trim((0, kernel * tile, tile, taps * tile, 0, 0, 0), counts),
                    tile_stride=config.columns,
                    accumulator_address=sums,
                    accumulator_strides=trim((0, 0, 0, 0, 0, width, 1), counts),
                    y_origin=first + padding,
                    y_extent=rows,
                    y_steps=(0, -1, 0, 0, 0, 1, 0),
                    x_origin=padding,
                    x_extent=columns,
                    x_steps=(0, 0, -1, 0, 0, 0, 1),
                ),
                "multiply",
                reads(Space.ACTIVATION, (0, sizes.result_bytes)),
                reads(Space.WEIGHT, (channel * size, (channel + 1) * size)),
                writes(Space.ACCUMULATOR, (sums, sums + pixels)),
            )
            # A part behind, so that the next part's operands come before this one's results.
            if held is not None:
                schedule.finish(*held)
            start = result + first * width * sizes.source_pitch + channel * config.columns
            held = sums, Block(start, pixels, config.columns, sizes.source_pitch)
    if held is not None:
        schedule.finish(*held)
    return _encoded(schedule)


def weight_gradient_program(
    sizes: GradientSizes, image: int, gradient: int, result: int, shift: int, zero_point: int
) -> bytes:
    """Machine code of dW, output-stationary: a matrix of C by K for each tap.

    Tap (i, j) takes X's pixel (y * stride + i - padding, likewise x) times dY's pixel (y, x).

    Parameters
    ----------
    sizes : GradientSizes
    image, gradient, result : int
        DRAM addresses of X, dY and dW.
    shift : int
        dW is scaled by ``2**-shift``.
    zero_point : int
        Of X.

    Raises
    ------
    InputError
        If the operands do not fit on chip.
    """
    config, kernel, stride = sizes.config, sizes.kernel, sizes.stride
    schedule = ProductMemories(config, "dW", shift)
    _check("X", sizes.source_bytes, schedule.left.capacity, "bytes of activations")
    _check("dY", sizes.result_bytes, config.weight_bytes, "bytes of weights")
    _check("a tap's row of tiles", sizes.outputs * config.rows, config.accumulator_rows, "rows")
    _whole(schedule, image, sizes.source_bytes, Memory.ACTIVATION, "X")
    _whole(schedule, gradient, sizes.result_bytes, Memory.WEIGHT, "dY")
    _, width = sizes.shape[:2]
    rows, columns = sizes.result
    left, top, padding = sizes.source_pitch, sizes.result_pitch, sizes.padding
    part = min(sizes.inputs, config.accumulator_rows // (sizes.outputs * config.rows))
    for tap in range(kernel * kernel):
        i, j = divmod(tap, kernel)
        for first in range(0, sizes.inputs, part):
            count = min(part, sizes.inputs - first)
            height = count * config.rows  # of this part of the tap's matrix
            sums = schedule.sums(height * sizes.outputs)
            counts = (count, sizes.outputs, 1, 1, 1, rows, columns)
            y, x = i - padding, j - padding
            schedule.stream.emit(
                Matrix(
                    dataflow=Dataflow.OUTPUT_STATIONARY,
                    bounds=Bounds.LEFT,
                    counts=counts,
                    left_zero_point=zero_point,
                    left_address=(y * width + x) * left + first * config.rows,
                    left_strides=trim(
                        (config.rows, 0, 0, 0, 0, stride * width * left, stride * left), counts
                    ),
                    top_strides=trim((0, config.columns, 0, 0, 0, columns * top, top), counts),
                    tile_stride=1,
                    accumulator_address=sums,
                    accumulator_strides=trim((config.rows, height, 0, 0, 0, 0, 0), counts),
                    y_origin=y,
                    y_extent=sizes.shape[0],
                    y_steps=(0, 0, 0, 0, 0, stride, 0),
                    x_origin=x,
                    x_extent=width,
                    x_steps=(0, 0, 0, 0, 0, 0, stride),
                ),
                "multiply",
                reads(Space.ACTIVATION, (0, sizes.source_bytes)),
                reads(Space.WEIGHT, (0, sizes.result_bytes)),
                writes(Space.ACCUMULATOR, (sums, sums + height * sizes.outputs)),
            )
            start = result + (tap * sizes.inputs + first) * config.rows * top
            schedule.finish(sums, Block(start, height, top, top))
    return _encoded(schedule)
