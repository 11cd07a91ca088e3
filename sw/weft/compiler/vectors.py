"""Shared pieces of VECTOR instructions: strides, result fields."""

from collections.abc import Sequence
from typing import Any

from weft.compiler.layout import PixelLayout, Region
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import LOOPS_VECTOR_OUTER, Memory

__all__ = ["accumulator_strides", "pixel_strides", "result_fields", "trim"]


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
) -> tuple[int, ...]:
    """Byte strides of an image on chip: channel tiles, nothing, rows, columns, window."""
    y, x = stride
    row, pixel = layout.row_pitch, layout.pitch
    return trim((config.columns, 0, y * row, x * pixel, row, pixel), counts)


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
