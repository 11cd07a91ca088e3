"""Pooling, rescaling, tables and products: operations that VECTOR computes alone, in one pass."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.compiler.constants import multiplier_of
from weft.compiler.context import LayerTask, TileBox
from weft.compiler.kernels import Chunk, Kernel
from weft.compiler.layout import PixelLayout
from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.vectors import (
    accumulator_strides,
    pixel_strides,
    result_fields,
    tile_rows,
    tile_source,
    trim,
    vector_read,
    window_fields,
)
from weft.ir import INT8_RANGE, AveragePool2d, Lookup, MaxPool2d, Multiply, Rescale, Tensor
from weft_hw.instructions import (
    Head,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Tail,
    Vector,
)

__all__ = ["lower_lookup", "lower_multiply", "lower_pool", "lower_rescale"]

MULTIPLIER_BITS = 31

# Rescale -----------------------------------------------------------------------------------------


def lower_rescale(task: LayerTask) -> None:
    """Emit a change of scale: one VECTOR a tile."""
    operation = task.kernel.operation
    assert isinstance(operation, Rescale)
    graph = task.context.graph
    source, result = graph.tensor(operation.inputs[0]), graph.scaled(operation)
    multiplier, exponent = multiplier_of(source.scale / result.scale, operation.name)
    fields = {
        "a_zero_point": source.zero_point,
        "scale_source": ScaleSource.INSTRUCTION,
        "multiplier": multiplier,
        "exponent": exponent,
        "rounding": operation.rounding,
        "zero_point": result.zero_point,
        "clamp_low": operation.clamp[0],
        "clamp_high": operation.clamp[1],
    }
    _element_by_element(task, "rescale", fields)


def lower_lookup(task: LayerTask) -> None:
    """Emit a function of one code: one VECTOR a tile, which looks every code up."""
    operation = task.kernel.operation
    assert isinstance(operation, Lookup)
    fields = {
        "scale_source": ScaleSource.NONE,
        "clamp_low": INT8_RANGE[0],
        "clamp_high": INT8_RANGE[1],
    }
    _element_by_element(task, "look up", fields, operation.codes)


def _element_by_element(
    task: LayerTask, purpose: str, fields: dict[str, Any], codes: NDArray[np.int8] | None = None
) -> None:
    """One VECTOR a tile with the given fields, through a table if there is one."""
    for tile in task.tiles():
        region = tile_source(task, tile, task.kernel.whole)
        layout = task.operand(0, region)
        lookup, table = task.lookup(codes)
        target = task.destination(tile)
        counts = (tile.channels, 1, tile.rows, tile.columns, 1, 1)
        output = task.output_region(tile)
        task.stream.emit(
            Vector(
                counts=counts,
                a_source=OperandSource.ACTIVATION,
                a_address=layout.at(tile.y, tile.x, region.c0),
                a_strides=pixel_strides(layout, counts, task.config),
                **fields,
                **lookup,
                **result_fields(target, output, counts, task.config),
            ),
            purpose,
            vector_read(task, tile, layout, region),
            *table,
            writes(Space.ACTIVATION, target.span(output)),
        )
        task.finish(tile, target)


def lower_multiply(task: LayerTask) -> None:
    """Emit a product: a dot product over a window of one element, one VECTOR a tile."""
    operation = task.kernel.operation
    assert isinstance(operation, Multiply)
    graph = task.context.graph
    first, second = (graph.tensor(name) for name in operation.inputs)
    result = graph.scaled(operation)
    ratio = first.scale * second.scale / result.scale
    multiplier, exponent = multiplier_of(ratio, operation.name)
    for tile in task.tiles():
        region = tile_source(task, tile, task.kernel.whole)
        layouts = [task.operand(position, region) for position in range(2)]
        lookup, table = task.lookup()
        target = task.destination(tile)
        counts = (tile.channels, 1, tile.rows, tile.columns, 1, 1)
        output = task.output_region(tile)
        task.stream.emit(
            Vector(
                counts=counts,
                head=Head.DOT,
                a_source=OperandSource.ACTIVATION,
                a_address=layouts[0].at(tile.y, tile.x, region.c0),
                a_strides=pixel_strides(layouts[0], counts, task.config),
                a_zero_point=first.zero_point,
                b_source=OperandSource.ACTIVATION,
                b_address=layouts[1].at(tile.y, tile.x, region.c0),
                b_strides=pixel_strides(layouts[1], counts, task.config),
                b_zero_point=second.zero_point,
                scale_source=ScaleSource.INSTRUCTION,
                multiplier=multiplier,
                exponent=exponent,
                rounding=operation.rounding,
                zero_point=result.zero_point,
                clamp_low=operation.clamp[0],
                clamp_high=operation.clamp[1],
                **lookup,
                **result_fields(target, output, counts, task.config),
            ),
            "multiply elements",
            *table,
            *(vector_read(task, tile, layout, region) for layout in layouts),
            writes(Space.ACTIVATION, target.span(output)),
        )
        task.finish(tile, target)


# Pools -------------------------------------------------------------------------------------------


def lower_pool(task: LayerTask) -> None:
    """Emit a pool: a reduction over the window in VECTOR's head.

    Where the window does not fit on chip, its parts are combined in the accumulators. Average pools
    that do not count padding divide each border by its own number of elements.
    """
    _Pool(task).run()


def _division(
    operation: AveragePool2d, elements: int, source: Tensor, result: Tensor
) -> dict[str, Any]:
    """Fields that turn the sum over a window's elements into the average's code.

    * ``codes``: with ``m = floor(2^e / n) + 1``, ``sum * m / 2^e`` exceeds ``sum / n`` in size by
      at most ``|sum| / 2^e``. That is less than the ``1 / (2n)`` by which every other quotient
      misses a tie, if ``256 n^2 < 2^e``; and ties are pushed away from zero. So one half-up
      rounding divides exactly.
    * ``mean``: TFLite's ``QuantizedMeanOrSum``: the multiplier itself is divided by n, shifted left
      as far as 31 bits allow.
    """
    if operation.division == "codes":
        bits = (elements - 1).bit_length() + MULTIPLIER_BITS - 1
        return {
            "multiplier": (1 << bits) // elements + 1,
            "exponent": MULTIPLIER_BITS - bits,
            "rounding": Rounding.HALF_UP,
            "zero_point": 0,
        }
    if operation.division == "mean":
        multiplier, exponent = multiplier_of(source.scale / result.scale, operation.name)
        shift = min(elements.bit_length() - 1, 32, MULTIPLIER_BITS + exponent)
        multiplier, exponent = (multiplier << shift) // elements, exponent - shift
    else:
        ratio = source.scale / (result.scale * elements)
        multiplier, exponent = multiplier_of(ratio, operation.name)
    return {
        "multiplier": multiplier,
        "exponent": exponent,
        "rounding": operation.rounding,
        "zero_point": result.zero_point,
    }


class _Pool:
    def __init__(self, task: LayerTask) -> None:
        operation = task.kernel.operation
        assert isinstance(operation, MaxPool2d | AveragePool2d)
        self.operation = operation
        self.average = operation if isinstance(operation, AveragePool2d) else None
        self.task = task
        self.kernel: Kernel = task.kernel
        graph = task.context.graph
        self.source = graph.tensor(operation.inputs[0])
        self.result = graph.scaled(operation)
        centred = self.average is not None and self.average.division != "codes"
        self.zero_point = self.source.zero_point if centred else 0
        self.head = Head.SUM if self.average else Head.MAXIMUM

    def run(self) -> None:
        for tile in self.task.tiles():
            target = self.task.destination(tile)
            if len(self.task.tiling.chunks) == 1:
                self._at_once(tile, target)
            else:
                self._in_parts(tile, target)
            self.task.finish(tile, target)

    def _at_once(self, tile: TileBox, target: PixelLayout) -> None:
        chunk = self.kernel.whole
        region = tile_source(self.task, tile, chunk)
        layout = self.task.operand(0, region)
        for part, elements in self._parts(tile):
            window, read = self._window(part, chunk, layout)
            self._emit_result(part, elements, target, window, read)

    def _in_parts(self, tile: TileBox, target: PixelLayout) -> None:
        bank = self.task.context.accumulators(tile.vectors)
        visible = []
        for chunk in self.task.tiling.chunks:
            region = tile_source(self.task, tile, chunk)
            if not region.empty:
                visible.append((chunk, region))
        for number, (chunk, region) in enumerate(visible):
            layout = self.task.operand(0, region)
            window, read = self._window(tile, chunk, layout)
            counts = window["counts"]
            strides = accumulator_strides(counts)
            combine: dict[str, Any] = {}
            if number:
                combine = {
                    "tail": Tail.ADD if self.average else Tail.MAXIMUM,
                    "b_source": OperandSource.ACCUMULATOR,
                    "b_address": bank,
                    "b_strides": strides,
                }
            self.task.stream.emit(
                Vector(
                    **window,
                    **combine,
                    head=self.head,
                    scale_source=ScaleSource.NONE,
                    destination=Memory.ACCUMULATOR,
                    address=bank,
                    strides=strides[:4],
                ),
                "pool part of the window",
                read,
                reads(Space.ACCUMULATOR, tile_rows(bank, tile)),
                writes(Space.ACCUMULATOR, tile_rows(bank, tile)),
            )
        for part, elements in self._parts(tile):
            counts = (part.channels, 1, part.rows, part.columns, 1, 1)
            first = bank + (part.y - tile.y) * tile.columns + part.x - tile.x
            strides = trim((tile.rows * tile.columns, 0, tile.columns, 1, 0, 0), counts)
            fields = {
                "counts": counts,
                "a_source": OperandSource.ACCUMULATOR,
                "a_address": first,
                "a_strides": strides,
            }
            read = reads(Space.ACCUMULATOR, tile_rows(bank, tile))
            self._emit_result(part, elements, target, fields, read)

    def _emit_result(
        self,
        part: TileBox,
        elements: int,
        target: PixelLayout,
        fields: dict[str, Any],
        read: Access,
    ) -> None:
        """The VECTOR that scales, clamps and writes int8 results."""
        scaling: dict[str, Any] = {"scale_source": ScaleSource.NONE}
        if self.average:
            scaling = {
                "scale_source": ScaleSource.INSTRUCTION,
                **_division(self.average, elements, self.source, self.result),
            }
        output = self.task.output_region(part)
        lookup, table = self.task.lookup()
        self.task.stream.emit(
            Vector(
                **fields,
                **scaling,
                **lookup,
                head=self.head,
                clamp_low=self.operation.clamp[0],
                clamp_high=self.operation.clamp[1],
                **result_fields(target, output, fields["counts"], self.task.config),
            ),
            "pool",
            read,
            *table,
            writes(Space.ACTIVATION, target.span(output)),
        )

    def _window(
        self, part: TileBox, chunk: Chunk, layout: PixelLayout
    ) -> tuple[dict[str, Any], Access]:
        """Fields that read the window of every output pixel of a part, and the access."""
        region = tile_source(self.task, part, chunk)
        fields = window_fields(self.task, part, chunk, layout, region)
        fields["a_zero_point"] = self.zero_point
        return fields, vector_read(self.task, part, layout, region)

    def _parts(self, tile: TileBox) -> Iterator[tuple[TileBox, int]]:
        """The tile, cut where the divisor changes, with each part's divisor."""
        window_y, window_x = self.kernel.window
        if self.average is None or self.average.count_include_pad:
            yield tile, window_y * window_x
            return
        for y, rows, existing_y in self._runs(0, tile.y, tile.rows):
            for x, columns, existing_x in self._runs(1, tile.x, tile.columns):
                part = dataclasses.replace(tile, y=y, rows=rows, x=x, columns=columns)
                yield part, existing_y * existing_x

    def _runs(self, axis: int, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(first, count, existing window elements) of neighbours that have the same number."""

        def existing(position: int) -> int:
            start = position * self.kernel.stride[axis] - self.kernel.padding[axis]
            end = min(start + self.kernel.window[axis], self.kernel.source[axis])
            return end - max(start, 0)

        begin = first
        for position in range(first + 1, first + count + 1):
            if position == first + count or existing(position) != existing(begin):
                yield begin, position - begin, existing(begin)
                begin = position
