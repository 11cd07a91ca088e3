"""Pooling, addition and rescaling: operations that VECTOR computes alone."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from weft.compiler.constants import multiplier_of
from weft.compiler.context import LayerTask, TileBox
from weft.compiler.kernels import Chunk, Kernel
from weft.compiler.layout import PixelLayout, Region
from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.vectors import accumulator_strides, pixel_strides, result_fields, trim
from weft.ir import Add, AveragePool2d, MaxPool2d, Rescale
from weft_hw.instructions import (
    Head,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Tail,
    Vector,
)

__all__ = ["lower_add", "lower_pool", "lower_rescale"]


def _source_region(task: LayerTask, tile: TileBox, chunk: Chunk) -> Region:
    """What a tile reads of an input: only the channels that it computes."""
    region = task.kernel.source_region(tile.y, tile.rows, tile.x, tile.columns, chunk)
    first, end = task.output_bytes(tile)
    return dataclasses.replace(region, c0=first, c1=end)


def _read(task: LayerTask, tile: TileBox, layout: PixelLayout, region: Region) -> Access:
    """The access of a VECTOR operand; whole vectors are read, also of narrower pixels."""
    beyond = tile.channels * task.config.columns - (region.c1 - region.c0)
    return reads(Space.ACTIVATION, layout.span(region, slack=beyond))


def _rows(bank: int, tile: TileBox) -> tuple[int, int]:
    return bank, bank + tile.channels * tile.rows * tile.columns


# Rescale -----------------------------------------------------------------------------------------


def lower_rescale(task: LayerTask) -> None:
    """Emit a change of scale: one VECTOR a tile."""
    operation = task.kernel.operation
    assert isinstance(operation, Rescale)
    graph = task.context.graph
    source, result = graph.tensor(operation.inputs[0]), graph.tensor(operation.output)
    multiplier, exponent = multiplier_of(source.scale / result.scale, operation.name)
    for tile in task.tiles():
        region = _source_region(task, tile, task.kernel.whole)
        layout = task.operand(0, region)
        target = task.destination(tile)
        counts = (tile.channels, 1, tile.rows, tile.columns, 1, 1)
        output = task.output_region(tile)
        task.stream.emit(
            Vector(
                counts=counts,
                a_source=OperandSource.ACTIVATION,
                a_address=layout.at(tile.y, tile.x, region.c0),
                a_strides=pixel_strides(layout, counts, task.config),
                a_zero_point=source.zero_point,
                scale_source=ScaleSource.INSTRUCTION,
                multiplier=multiplier,
                exponent=exponent,
                rounding=operation.rounding,
                zero_point=result.zero_point,
                clamp_low=operation.clamp[0],
                clamp_high=operation.clamp[1],
                **result_fields(target, output, counts, task.config),
            ),
            "rescale",
            _read(task, tile, layout, region),
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
        self.result = graph.tensor(operation.output)
        self.zero_point = self.source.zero_point if self.average else 0
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
        region = _source_region(self.task, tile, chunk)
        layout = self.task.operand(0, region)
        for part, elements in self._parts(tile):
            window, read = self._window(part, chunk, layout)
            self._emit_result(part, elements, target, window, read)

    def _in_parts(self, tile: TileBox, target: PixelLayout) -> None:
        bank = self.task.context.next_bank()
        visible = []
        for chunk in self.task.tiling.chunks:
            region = _source_region(self.task, tile, chunk)
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
                reads(Space.ACCUMULATOR, _rows(bank, tile)),
                writes(Space.ACCUMULATOR, _rows(bank, tile)),
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
            read = reads(Space.ACCUMULATOR, _rows(bank, tile))
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
            ratio = self.source.scale / (self.result.scale * elements)
            multiplier, exponent = multiplier_of(ratio, self.operation.name)
            scaling = {
                "scale_source": ScaleSource.INSTRUCTION,
                "multiplier": multiplier,
                "exponent": exponent,
                "rounding": self.average.rounding,
                "zero_point": self.result.zero_point,
            }
        output = self.task.output_region(part)
        self.task.stream.emit(
            Vector(
                **fields,
                **scaling,
                head=self.head,
                clamp_low=self.operation.clamp[0],
                clamp_high=self.operation.clamp[1],
                **result_fields(target, output, fields["counts"], self.task.config),
            ),
            "pool",
            read,
            writes(Space.ACTIVATION, target.span(output)),
        )

    def _window(
        self, part: TileBox, chunk: Chunk, layout: PixelLayout
    ) -> tuple[dict[str, Any], Access]:
        """Fields that read the window of every output pixel of a part, and the access."""
        kernel, config = self.kernel, self.task.config
        y, x = kernel.origin(part.y, part.x, chunk)
        taps = chunk.y1 - chunk.y0, chunk.x1 - chunk.x0
        counts = (part.channels, 1, part.rows, part.columns, *taps)
        region = _source_region(self.task, part, chunk)
        height, width, _ = kernel.source
        fields = {
            "counts": counts,
            "a_source": OperandSource.ACTIVATION,
            "a_address": layout.at(y, x, region.c0),
            "a_strides": pixel_strides(layout, counts, config, kernel.stride),
            "a_zero_point": self.zero_point,
            "bounded": 1,
            "y_origin": y,
            "y_extent": height,
            "y_steps": trim((0, 0, kernel.stride[0], 0, 1, 0), counts),
            "x_origin": x,
            "x_extent": width,
            "x_steps": trim((0, 0, 0, kernel.stride[1], 0, 1), counts),
        }
        return fields, _read(self.task, part, layout, region)

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


# Add ---------------------------------------------------------------------------------------------

FINE_SHIFT = 22
"""Bits below the larger input's step: the sum of two 9-bit differences still fits 32 bits."""

TFLITE_SHIFT = 20


def lower_add(task: LayerTask) -> None:
    """Emit an addition.

    * Equal scales and zero points: the sum over a "window" that is the two inputs, one VECTOR. The
      result is the rounded exact value.
    * Else three passes through the accumulators. The input of the smaller scale becomes
      ``t = round(((q - z) << 22) * s_small / s_large)``, then ``u = t + ((q - z) << 22)`` of the
      other, which is exact, then ``round(u * s_large / (2^22 s_out))``. Before the last rounding
      the value differs from the exact one by less than ``0.63 * 2^-22 * s_large / s_out + 2^-23``
      output steps (half a unit in t, 0.13 for its 31-bit multiplier; the last multiplier): only
      sums so close to a tie can round differently.
    * With rounding TWO_STEP the three passes are TFLite's own, bit for bit: both inputs ``<< 20``
      and scaled by ``s_i / (2 max(s_1, s_2))``, the sum by ``2 max(s_1, s_2) / (2^20 s_out)``.
    """
    operation = task.kernel.operation
    assert isinstance(operation, Add)
    for tile in task.tiles():
        region = _source_region(task, tile, task.kernel.whole)
        layouts = [task.operand(position, region) for position in range(2)]
        target = task.destination(tile)
        accesses = [_read(task, tile, layout, region) for layout in layouts]
        _AddTile(task, operation, tile, region, layouts, accesses, target).emit()
        task.finish(tile, target)


@dataclasses.dataclass
class _AddTile:
    task: LayerTask
    operation: Add
    tile: TileBox
    region: Region
    layouts: list[PixelLayout]
    accesses: list[Access]
    target: PixelLayout

    def __post_init__(self) -> None:
        graph = self.task.context.graph
        self.inputs = [graph.tensor(name) for name in self.operation.inputs]
        self.result = graph.tensor(self.operation.output)
        self.counts = (self.tile.channels, 1, self.tile.rows, self.tile.columns, 1, 1)

    def emit(self) -> None:
        first, second = self.inputs
        same = (first.scale, first.zero_point) == (second.scale, second.zero_point)
        alike = self.layouts[0].row_pitch == self.layouts[1].row_pitch
        if self.operation.rounding == Rounding.TWO_STEP:
            self._three_passes((0, 1), TFLITE_SHIFT, 2 * max(first.scale, second.scale))
        elif same and alike:
            self._one_pass()
        else:
            order = (0, 1) if first.scale <= second.scale else (1, 0)
            self._three_passes(order, FINE_SHIFT, max(first.scale, second.scale))

    def _one_pass(self) -> None:
        counts = (*self.counts[:5], 2)
        distance = self._address(1) - self._address(0)
        strides = pixel_strides(self.layouts[0], self.counts, self.task.config)
        fields = {
            "counts": counts,
            "a_source": OperandSource.ACTIVATION,
            "a_address": self._address(0),
            "a_strides": (*strides[:5], distance),
            "a_zero_point": self.inputs[0].zero_point,
        }
        self._emit_result(fields, self.inputs[0].scale / self.result.scale, self.accesses)

    def _three_passes(self, order: tuple[int, int], shift: int, unit: float) -> None:
        bank = self.task.context.next_bank()
        rows = _rows(bank, self.tile)
        strides = accumulator_strides(self.counts)
        for number, position in enumerate(order):
            tensor = self.inputs[position]
            scaling: dict[str, Any] = {"scale_source": ScaleSource.NONE}
            if tensor.scale != unit:
                multiplier, exponent = multiplier_of(tensor.scale / unit, self.operation.name)
                scaling = {
                    "scale_source": ScaleSource.INSTRUCTION,
                    "multiplier": multiplier,
                    "exponent": exponent,
                    "rounding": self.operation.rounding,
                }
            combine: dict[str, Any] = {}
            if number:
                combine = {
                    "tail": Tail.ADD,
                    "b_source": OperandSource.ACCUMULATOR,
                    "b_address": bank,
                    "b_strides": strides,
                }
            self.task.stream.emit(
                Vector(
                    counts=self.counts,
                    a_source=OperandSource.ACTIVATION,
                    a_address=self._address(position),
                    a_strides=pixel_strides(self.layouts[position], self.counts, self.task.config),
                    a_zero_point=tensor.zero_point,
                    pre_shift=shift,
                    **scaling,
                    **combine,
                    destination=Memory.ACCUMULATOR,
                    address=bank,
                    strides=strides[:4],
                ),
                "add: scale an input",
                self.accesses[position],
                reads(Space.ACCUMULATOR, rows),
                writes(Space.ACCUMULATOR, rows),
            )
        fields = {
            "counts": self.counts,
            "a_source": OperandSource.ACCUMULATOR,
            "a_address": bank,
            "a_strides": strides,
        }
        ratio = unit / (2.0**shift * self.result.scale)
        self._emit_result(fields, ratio, [reads(Space.ACCUMULATOR, rows)])

    def _emit_result(self, fields: dict[str, Any], ratio: float, accesses: list[Access]) -> None:
        multiplier, exponent = multiplier_of(ratio, self.operation.name)
        output = self.task.output_region(self.tile)
        self.task.stream.emit(
            Vector(
                **fields,
                scale_source=ScaleSource.INSTRUCTION,
                multiplier=multiplier,
                exponent=exponent,
                rounding=self.operation.rounding,
                zero_point=self.result.zero_point,
                clamp_low=self.operation.clamp[0],
                clamp_high=self.operation.clamp[1],
                **result_fields(self.target, output, self.counts, self.task.config),
            ),
            "add",
            *accesses,
            writes(Space.ACTIVATION, self.target.span(output)),
        )

    def _address(self, position: int) -> int:
        return self.layouts[position].at(self.tile.y, self.tile.x, self.region.c0)
