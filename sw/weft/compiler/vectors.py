"""Shared pieces of VECTOR instructions: what a tile reads, strides, result fields."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from weft.compiler.context import LayerTask, TileBox
from weft.compiler.kernels import Chunk
from weft.compiler.layout import PixelLayout, Region
from weft.compiler.stream import Access, Space, reads
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import LOOPS_VECTOR_OUTER, Memory, OperandSource

__all__ = [
    "accumulator_strides",
    "pixel_strides",
    "result_fields",
    "tile_rows",
    "tile_source",
    "trim",
    "vector_read",
    "window_fields",
]


def trim(strides: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """Strides, with 0 for loops of one trip (where any value would do, but might not fit)."""
    return tuple(stride if count > 1 else 0 for stride, count in zip(strides, counts, strict=False))


def accumulator_strides(counts: Sequence[int]) -> tuple[int, ...]:
    """Row strides of a tile in the accumulators: channel tiles of rows of columns."""
    _, _, rows, columns, *_ = counts
    return trim((rows * columns, 0, columns, 1, 0, 0), counts)


def pixel_strides(
    layout: PixelLayout,
    counts: Sequence[int],
    config: AcceleratorConfig,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, ...]:
    """Byte strides of an image on chip: channel tiles, nothing, rows, columns, window."""
    y, x = stride
    row, pixel = layout.row_pitch, layout.pitch
    return trim(
        (config.columns, 0, y * row, x * pixel, dilation[0] * row, dilation[1] * pixel), counts
    )


def window_fields(
    task: LayerTask, tile: TileBox, chunk: Chunk, layout: PixelLayout, region: Region
) -> dict[str, Any]:
    """Fields that read, as operand A, the existing part of every output pixel's window.

    ``layout`` is where ``region``, the existing pixels that the tile reads, lies on chip.
    """
    kernel, config = task.kernel, task.config
    y, x = kernel.origin(tile.y, tile.x, chunk)
    counts = (
        *(tile.channels, 1, tile.rows, tile.columns),
        *(chunk.y1 - chunk.y0, chunk.x1 - chunk.x0),
    )
    (stride_y, stride_x), (tap_y, tap_x) = kernel.stride, kernel.dilation
    height, width, _ = kernel.source
    return {
        "counts": counts,
        "a_source": OperandSource.ACTIVATION,
        "a_address": 0 if region.empty else layout.at(y, x, region.c0),
        "a_strides": pixel_strides(layout, counts, config, kernel.stride, kernel.dilation),
        "bounded": 1,
        "y_origin": y,
        "y_extent": height,
        "y_steps": trim((0, 0, stride_y, 0, tap_y, 0), counts),
        "x_origin": x,
        "x_extent": width,
        "x_steps": trim((0, 0, 0, stride_x, 0, tap_x), counts),
    }


def result_fields(
    layout: PixelLayout, region: Region, counts: Sequence[int], config: AcceleratorConfig
) -> dict[str, Any]:
    """Fields that write a box of int8 results; every byte of each pixel is written."""
    lanes = region.c1 - region.c0 - (counts[0] - 1) * config.columns
    return {
        "destination": Memory.ACTIVATION,
        "address": layout.at(region.y0, region.x0, region.c0),
        "strides": pixel_strides(layout, counts, config)[:LOOPS_VECTOR_OUTER],
        "last_lanes": lanes % config.columns,
    }


def tile_source(task: LayerTask, tile: TileBox, chunk: Chunk) -> Region:
    """What a tile reads of an input: only the channels that it computes."""
    region = task.kernel.source_region(tile.y, tile.rows, tile.x, tile.columns, chunk)
    first, end = task.output_bytes(tile)
    return dataclasses.replace(region, c0=first, c1=end)


def vector_read(task: LayerTask, tile: TileBox, layout: PixelLayout, region: Region) -> Access:
    """The access of a VECTOR operand; whole vectors are read, also of narrower pixels."""
    beyond = tile.channels * task.config.columns - (region.c1 - region.c0)
    return reads(Space.ACTIVATION, layout.span(region, slack=beyond))


def tile_rows(bank: int, tile: TileBox) -> tuple[int, int]:
    """The accumulator rows of a tile in a bank."""
    return bank, bank + tile.vectors
