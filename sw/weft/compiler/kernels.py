"""What each operation asks of the machine, in numbers: taps, reductions, windows, input regions."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from weft.compiler.layout import Region, is_narrow, pixel_pitch
from weft.ir import (
    Add,
    AveragePool2d,
    Concatenate,
    Conv2d,
    Graph,
    Interleave,
    Lookup,
    MaxPool2d,
    Multiply,
    Operation,
    Pad,
    Rescale,
    Slice,
    Subtract,
    Transpose,
)
from weft_hw.config import AcceleratorConfig

__all__ = ["Chunk", "Kernel", "ceil_div"]


def ceil_div(value: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-value // divisor)


@dataclass(frozen=True)
class Chunk:
    """Part of a reduction: kernel rows [y0, y1), columns [x0, x1), reduction tiles [r0, r1)."""

    y0: int
    y1: int
    x0: int
    x1: int
    r0: int
    r1: int

    @property
    def tiles(self) -> int:
        """Array passes."""
        return (self.y1 - self.y0) * (self.x1 - self.x0) * (self.r1 - self.r0)


@dataclass(frozen=True)
class Kernel:
    """One operation's geometry on one configuration.

    Parameters
    ----------
    operation : Operation
    config : AcceleratorConfig
    source : (height, width, channels)
        Of the first input; the widest one's channels, where inputs differ in them.
    result : (height, width, channels)
    window : (y, x)
    stride : (y, x)
    padding : (top, left)
        Negative where the first window begins inside the image.
    dilation : (y, x)

    A convolution on a narrow image takes the ``window[1] * pitch`` neighbouring bytes of a kernel
    row as its reduction, ``rows`` at a time: the kernel columns vanish (``taps[1]`` is 1) into the
    reduction tiles. On a wide image each tap's channels are the reduction.
    A kernel whose columns are dilated gets zeros between them to be packed.

    A depthwise convolution has no reduction but its window: VECTOR computes it.
    """

    operation: Operation
    config: AcceleratorConfig
    source: tuple[int, int, int]
    result: tuple[int, int, int]
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, operation: Operation, graph: Graph, config: AcceleratorConfig) -> "Kernel":
        """The geometry of an operation of a graph whose tensors are all images."""
        height, width, channels = graph.tensor(operation.inputs[0]).shape
        rows, columns, depth = graph.tensor(operation.output).shape
        source, result = (height, width, channels), (rows, columns, depth)
        stride = dilation = (1, 1)
        match operation:
            case Conv2d():
                if operation.groups == 1 and is_narrow(pixel_pitch(channels, config), config):
                    operation = _without_column_dilation(operation)
                _, y, x, _ = operation.weights.shape
                window, stride, dilation = (y, x), operation.stride, operation.dilation
            case MaxPool2d() | AveragePool2d():
                window, stride = operation.kernel, operation.stride
            case Pad():
                window = (1, 1)
            case Concatenate():
                widest = max(graph.tensor(name).shape[2] for name in operation.inputs)
                return cls(operation, config, (height, width, widest), result)
            case Slice():
                (y, x, _), (step_y, step_x, _) = operation.start, operation.step
                return cls(operation, config, source, result, (1, 1), (step_y, step_x), (-y, -x))
            case Transpose():  # the input as if it lay as the output does
                return cls(operation, config, (width, height, channels), result)
            case Add() | Subtract() | Multiply() | Rescale() | Lookup() | Interleave():
                return cls(operation, config, source, result)
            case _:
                raise TypeError(f"{operation.kind} was to be rewritten by a pass")
        (top, _), (left, _) = operation.padding
        return cls(operation, config, source, result, window, stride, (top, left), dilation)

    @property
    def is_convolution(self) -> bool:
        """Whether MATRIX computes it."""
        return isinstance(self.operation, Conv2d) and self.operation.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution of each channel by itself, which VECTOR computes."""
        return isinstance(self.operation, Conv2d) and self.operation.groups > 1

    @property
    def adds(self) -> bool:
        """Whether it is a sum in several passes through the accumulators."""
        return isinstance(self.operation, Add | Subtract)

    @property
    def source_pitch(self) -> int:
        """Bytes a pixel of the input."""
        return pixel_pitch(self.source[2], self.config)

    @property
    def result_pitch(self) -> int:
        """Bytes a pixel of the output."""
        return pixel_pitch(self.result[2], self.config)

    @property
    def packs_taps(self) -> bool:
        """Whether a row-read of the array covers several taps."""
        return self.is_convolution and is_narrow(self.source_pitch, self.config)

    @property
    def result_tiles(self) -> int:
        """Tiles of ``columns`` bytes that cover an output pixel."""
        return ceil_div(self.result_pitch, self.config.columns)

    @property
    def taps(self) -> tuple[int, int]:
        """Kernel rows and columns that are steps of their own."""
        return (self.window[0], 1) if self.packs_taps else self.window

    @property
    def weight_bits(self) -> int:
        """Width of weights in the array: the narrowest that holds them and fills its left rows.

        A left row of a narrow mode covers several times ``rows`` channels of one pixel.
        """
        if not self.is_convolution or self.packs_taps:
            return 8
        assert isinstance(self.operation, Conv2d)
        return min(
            mode
            for mode in self.config.weight_modes
            if mode >= self.operation.weight_bits
            and self.source_pitch % (self.config.rows * 8 // mode) == 0
        )

    @property
    def step_bytes(self) -> int:
        """Bytes of the input that an array pass reduces."""
        return self.config.rows * 8 // self.weight_bits

    @property
    def reduction_tiles(self) -> int:
        """Steps of ``step_bytes`` within a tap (a kernel row, if taps are packed)."""
        bytes_a_tap = self.source_pitch * (self.window[1] if self.packs_taps else 1)
        return ceil_div(bytes_a_tap, self.step_bytes)

    @property
    def whole(self) -> Chunk:
        """The complete reduction."""
        return Chunk(0, self.taps[0], 0, self.taps[1], 0, self.reduction_tiles)

    def origin(self, y: int, x: int, chunk: Chunk) -> tuple[int, int]:
        """Input coordinate of the chunk's first tap for an output pixel."""
        return (
            y * self.stride[0] - self.padding[0] + chunk.y0 * self.dilation[0],
            x * self.stride[1] - self.padding[1] + chunk.x0 * self.dilation[1],
        )

    def rows_needed(self, count: int, chunk: Chunk) -> int:
        """Input rows, existing or not, for ``count`` output rows."""
        return (count - 1) * self.stride[0] + (chunk.y1 - chunk.y0 - 1) * self.dilation[0] + 1

    def columns_needed(self, x: int, count: int, chunk: Chunk) -> tuple[int, int]:
        """Input columns, existing or not, for ``count`` output columns from x."""
        taps = self.window[1] if self.packs_taps else chunk.x1 - chunk.x0
        first = self.origin(0, x, chunk)[1]
        return first, first + (count - 1) * self.stride[1] + (taps - 1) * self.dilation[1] + 1

    def source_region(self, y: int, rows: int, x: int, columns: int, chunk: Chunk) -> Region:
        """The existing input pixels that a block of output pixels reads; bytes as for a chunk."""
        height, width, _ = self.source
        top = self.origin(y, 0, chunk)[0]
        bottom = top + self.rows_needed(rows, chunk)
        left, right = self.columns_needed(x, columns, chunk)
        bytes_ = (0, self.source_pitch)
        if self.is_convolution and not self.packs_taps:
            bytes_ = (chunk.r0 * self.step_bytes, chunk.r1 * self.step_bytes)
        return Region(*_clip(top, bottom, height), *_clip(left, right, width), bytes_[0], bytes_[1])

    def gap(self, x: int, columns: int, chunk: Chunk) -> int:
        """Pixels of padding that must lie beside the input rows (packed taps only)."""
        if not self.packs_taps:
            return 0
        left, right = self.columns_needed(x, columns, chunk)
        return max(0, -left, right - self.source[1])


def _without_column_dilation(operation: Conv2d) -> Conv2d:
    """The same convolution by a kernel with zeros between its columns."""
    step = operation.dilation[1]
    if step == 1:
        return operation
    filters, height, width, depth = operation.weights.shape
    weights = np.zeros((filters, height, (width - 1) * step + 1, depth), np.int8)
    weights[:, :, ::step] = operation.weights
    return dataclasses.replace(operation, weights=weights, dilation=(operation.dilation[0], 1))


def _clip(first: int, end: int, size: int) -> tuple[int, int]:
    return min(max(first, 0), size), min(max(end, 0), size)
