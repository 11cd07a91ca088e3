"""Constants as they lie in DRAM: weight tiles in the order of use, parameter rows, images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weft.compiler.kernels import Chunk, Kernel
from weft.compiler.weights import pack_weights
from weft.errors import UnsupportedModel
from weft.ir import Conv2d, Tensor
from weft_hw.arithmetic import quantize_multiplier

__all__ = [
    "ConstantImage",
    "chunk_bytes",
    "image_bytes",
    "multiplier_of",
    "parameter_rows",
    "tap_weights",
    "weight_tiles",
]

ALIGNMENT = 64


@dataclass
class ConstantImage:
    """A growing run of DRAM bytes from ``base`` upward."""

    base: int
    data: bytearray = field(default_factory=bytearray)

    def append(self, data: bytes) -> int:
        """Add bytes; their address."""
        address = self.base + len(self.data)
        self.data += data
        self.data += bytes(-len(self.data) % ALIGNMENT)
        return address


def image_bytes(values: NDArray[np.int8], pitch: int) -> bytes:
    """An image (height, width, channels) with its pixels padded to a pitch."""
    height, width, channels = values.shape
    padded = np.zeros((height, width, pitch), np.int8)
    padded[:, :, :channels] = values
    return padded.tobytes()


def multiplier_of(scale: float, where: str) -> tuple[int, int]:
    """:func:`quantize_multiplier`, with an error that names the layer."""
    try:
        return quantize_multiplier(scale)
    except ValueError as error:
        raise UnsupportedModel(f"{where}: the ratio of scales is out of range: {error}") from None


def weight_tiles(kernel: Kernel) -> NDArray[np.int8]:
    """All weight tiles: [output tile, kernel row, kernel column, reduction tile, row, column].

    On packed taps a kernel row's taps, each ``pitch`` bytes, lie behind one another in the
    reduction; else each tap's channels do. What the model does not have is zero. Narrow weights
    that are neighbours in the reduction share a byte.
    """
    operation, config = kernel.operation, kernel.config
    assert isinstance(operation, Conv2d)
    filters, height, width, channels = operation.weights.shape
    taps_y, taps_x = kernel.taps
    depth = kernel.reduction_tiles * kernel.step_bytes
    by_pixel = np.zeros((filters, height, width, kernel.source_pitch), np.int8)
    by_pixel[..., :channels] = operation.weights
    by_tap = by_pixel.reshape(filters, taps_y, taps_x, -1)
    padded = np.zeros((kernel.result_tiles * config.columns, taps_y, taps_x, depth), np.int8)
    padded[:filters, :, :, : by_tap.shape[3]] = by_tap
    packed = pack_weights(padded.transpose(3, 0, 1, 2), kernel.weight_bits).transpose(1, 2, 3, 0)
    split = packed.reshape(
        kernel.result_tiles,
        config.columns,
        taps_y,
        taps_x,
        kernel.reduction_tiles,
        config.rows,
    )
    return np.ascontiguousarray(split.transpose(0, 2, 3, 4, 5, 1))


def tap_weights(kernel: Kernel) -> NDArray[np.int8]:
    """Weights of a depthwise convolution: [output tile, kernel row, kernel column, lane]."""
    operation, config = kernel.operation, kernel.config
    assert isinstance(operation, Conv2d)
    filters, height, width, _ = operation.weights.shape
    padded = np.zeros((kernel.result_tiles * config.columns, height, width), np.int8)
    padded[:filters] = operation.weights[..., 0]
    split = padded.reshape(kernel.result_tiles, config.columns, height, width)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1))


def chunk_bytes(tiles: NDArray[np.int8], first: int, count: int, chunk: Chunk) -> bytes:
    """The weight tiles of some output tiles and a part of the reduction, in MATRIX's loop order."""
    part = tiles[
        first : first + count, chunk.y0 : chunk.y1, chunk.x0 : chunk.x1, chunk.r0 : chunk.r1
    ]
    return part.tobytes()


def parameter_rows(kernel: Kernel, source: Tensor, result: Tensor) -> bytes:
    """Bias, multiplier and exponent of every output channel, one row an output tile."""
    operation, config = kernel.operation, kernel.config
    assert isinstance(operation, Conv2d)
    filters = result.shape[2]
    lanes = kernel.result_tiles * config.columns
    bias = np.zeros(lanes, np.int32)
    if operation.bias is not None:
        bias[:filters] = operation.bias
    multiplier = np.zeros(lanes, np.int32)
    exponent = np.zeros(lanes, np.int8)
    scales: Sequence[float] = operation.weight_scales.tolist()
    for channel, scale in enumerate(scales):
        ratio = source.scale * scale / result.scale
        multiplier[channel], exponent[channel] = multiplier_of(ratio, operation.name)
    rows = []
    for start in range(0, lanes, config.columns):
        part = slice(start, start + config.columns)
        row = bias[part].tobytes() + multiplier[part].tobytes() + exponent[part].tobytes()
        rows.append(row.ljust(config.parameter_row_bytes, b"\0"))
    return b"".join(rows)
