"""Addition and subtraction: three VECTOR passes, or one where both inputs have the same scale."""

import dataclasses
from typing import Any

from weft.compiler.constants import multiplier_of
from weft.compiler.context import LayerTask, TileBox
from weft.compiler.layout import PixelLayout, Region
from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.transfers import fill_weights
from weft.compiler.vectors import (
    accumulator_strides,
    pixel_strides,
    result_fields,
    tile_rows,
    tile_source,
    vector_read,
)
from weft.ir import Add, Subtract
from weft_hw.instructions import Memory, OperandSource, Rounding, ScaleSource, Tail, Vector

__all__ = ["lower_add"]

FINE_SHIFT = 22
"""Bits below the larger input's step: the sum of two 9-bit differences still fits 32 bits."""

TFLITE_SHIFT = 20
MINUS_ONE = "vector of -1"


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
      and scaled by ``s_i / (2 max(s_1, s_2))``, the sum by ``2 max(s_1, s_2) / (2^20 s_out)``. A
      difference begins with the second input, which is multiplied by -1 once it is scaled.
    """
    operation = task.kernel.operation
    assert isinstance(operation, Add | Subtract)
    for tile in task.tiles():
        region = tile_source(task, tile, task.kernel.whole)
        layouts = [task.operand(position, region) for position in range(2)]
        target = task.destination(tile)
        accesses = [vector_read(task, tile, layout, region) for layout in layouts]
        _AddTile(task, operation, tile, region, layouts, accesses, target).emit()
        task.finish(tile, target)


@dataclasses.dataclass
class _AddTile:
    task: LayerTask
    operation: Add | Subtract
    tile: TileBox
    region: Region
    layouts: list[PixelLayout]
    accesses: list[Access]
    target: PixelLayout

    def __post_init__(self) -> None:
        graph = self.task.context.graph
        self.inputs = [graph.tensor(name) for name in self.operation.inputs]
        self.result = graph.scaled(self.operation)
        self.counts = (self.tile.channels, 1, self.tile.rows, self.tile.columns, 1, 1)

    def emit(self) -> None:
        first, second = self.inputs
        same = (first.scale, first.zero_point) == (second.scale, second.zero_point)
        alike = self.layouts[0].row_pitch == self.layouts[1].row_pitch
        if self.operation.rounding == Rounding.TWO_STEP:
            order = (1, 0) if isinstance(self.operation, Subtract) else (0, 1)
            self._three_passes(order, TFLITE_SHIFT, 2 * max(first.scale, second.scale))
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
        bank = self.task.context.accumulators(self.tile.vectors)
        rows = tile_rows(bank, self.tile)
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
            extra: list[Access] = []
            if isinstance(self.operation, Subtract) and position == 1:
                minus_one = self._minus_one()
                combine = {
                    "tail": Tail.PRODUCT,
                    "b_source": OperandSource.WEIGHT,
                    "b_address": minus_one,
                }
                lanes = minus_one, minus_one + self.task.config.columns
                extra = [reads(Space.WEIGHT, lanes)]
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
                *extra,
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
        lookup, table = self.task.lookup()
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
                **lookup,
                **result_fields(self.target, output, self.counts, self.task.config),
            ),
            "add",
            *accesses,
            *table,
            writes(Space.ACTIVATION, self.target.span(output)),
        )

    def _minus_one(self) -> int:
        """Weight scratchpad address of a vector of -1."""
        ring, lanes = self.task.context.weights, self.task.config.columns
        found = ring.find(MINUS_ONE)
        if found is None:
            found = ring.place(MINUS_ONE, lanes)
            fill_weights(self.task.stream, found, lanes, -1)
        return found

    def _address(self, position: int) -> int:
        return self.layouts[position].at(self.tile.y, self.tile.x, self.region.c0)
