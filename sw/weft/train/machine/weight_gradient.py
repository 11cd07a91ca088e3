"""The sums of the gradient of a convolution's weights, block by block, output-stationary.

A tap's array tile of input by output channels is the sum, over the pixels of dY that the tap met,
of X's pixel times dY's. Each MATRIX runs over just these pixels, of the part of the reduction that
is on chip; neighbouring taps that met the same pixels share one.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from weft.compiler.stream import Space, reads, writes
from weft.compiler.vectors import trim
from weft.errors import InputError
from weft.train.machine.axes import Axis, Range, axes_of, forward_axis, ranges
from weft.train.machine.builder import Box, Builder, Slab, WeightTile
from weft.train.machine.weight_gradient_plan import (
    WeightGradientProblem,
    choose_weight_gradient_plan,
)
from weft.train.step import WeightGradient
from weft_hw.instructions import Accumulate, Bounds, Dataflow, Matrix, Memory

__all__ = ["weight_gradient_sums"]


@dataclass(frozen=True)
class _Taps:
    """Neighbouring taps of an axis that met the same range of dY, and the first one's first X."""

    first: int
    count: int
    met: Range
    source: int


def weight_gradient_sums(builder: Builder, operation: WeightGradient) -> Iterator[WeightTile]:
    """Emit loads and products, and yield where int32 sums lie.

    The blocks cover the weights once; each is complete, over the whole batch and all pixels, when
    it is yielded, and its rows stay until two more have been asked for.

    Raises
    ------
    InputError
        If no array tile fits into the rows that a tile of sums may take.
    """
    yield from _Products(builder, operation).run()


class _Products:
    def __init__(self, builder: Builder, operation: WeightGradient) -> None:
        self.builder = builder
        self.source = builder.images[operation.source.name]
        self.gradient = builder.images[operation.gradient.name]
        self.geometry = operation.geometry
        self.name = operation.weights.name
        self.axes = axes_of(forward_axis, operation.source.shape[:2], self.geometry)
        self.token = object()  # in the rings' keys: memory changes between operations
        if builder.limit_rows < builder.side:
            raise InputError(
                f"a tile of sums may take {builder.limit_rows} accumulator rows; the gradient of "
                f"weights needs {builder.side}, the rows of the array"
            )
        tiles = self.source.tiles, self.gradient.tiles
        problem = WeightGradientProblem(self.gradient.batch, self.axes, self.geometry, *tiles)
        self.plan = choose_weight_gradient_plan(problem, builder)

    # Blocks ------------------------------------------------------------------------------------

    def run(self) -> Iterator[WeightTile]:
        plan, builder = self.plan, self.builder
        inputs = ranges((0, self.source.tiles), plan.inputs)
        outputs = ranges((0, self.gradient.tiles), plan.outputs)
        pairs = [(first, second) for first in inputs for second in outputs]
        if not plan.inputs_first:
            pairs.sort(key=lambda pair: (pair[1], pair[0]))
        rows, columns = self.geometry.kernel
        for inputs_of, outputs_of in pairs:
            for y, x in itertools.product(
                ranges((0, rows), plan.taps[0]), ranges((0, columns), plan.taps[1])
            ):
                first, count = y[0] * columns + x[0], (y[1] - y[0]) * (x[1] - x[0])
                of = (first, first + count), inputs_of, outputs_of
                tile = WeightTile(0, *of, builder.side)
                tile = WeightTile(builder.accumulators(tile.rows), *of, builder.side)
                self._sum(tile, (y, x))
                yield tile

    def _sum(self, tile: WeightTile, taps: tuple[Range, Range]) -> None:
        plan, builder = self.plan, self.builder
        axis_y, axis_x = self.axes
        chunks = itertools.product(
            ranges((0, self.gradient.batch), plan.images),
            ranges((0, axis_y.result), plan.rows),
            ranges((0, axis_x.result), plan.columns),
        )
        for number, (images, rows, columns) in enumerate(chunks):
            slabs = None
            for y, x in itertools.product(
                _taps_met(axis_y, rows, taps[0]), _taps_met(axis_x, columns, taps[1])
            ):
                if y.met[0] == y.met[1] or x.met[0] == x.met[1]:
                    if number == 0:  # nothing to add to otherwise
                        self._multiply(tile, taps, (y, x), None, overwrite=True)
                    continue
                if slabs is None:
                    slabs = self._load(tile, taps, images, rows, columns)
                self._multiply(tile, taps, (y, x), slabs, overwrite=number == 0)
        builder.stream.tile += 1

    def _load(
        self,
        tile: WeightTile,
        taps: tuple[Range, Range],
        images: Range,
        rows: Range,
        columns: Range,
    ) -> tuple[Slab, Slab]:
        """X and dY of a chunk on chip."""
        builder = self.builder
        whole = tuple((0, kernel) for kernel in self.geometry.kernel)
        spans = []
        for axis, results, kernel in zip(
            self.axes, (rows, columns), whole if self.plan.whole else taps, strict=True
        ):
            parts = axis.parts(results, kernel)
            spans.append(parts[0].spans(axis.source))
        left = Box(images, spans[0], spans[1], tile.inputs)
        top = Box(images, rows, columns, tile.outputs)
        return (
            builder.load_box(
                self.source,
                left,
                Memory.ACTIVATION,
                builder.operands,
                f"load source for {self.name}",
                (self.token, left),
            ),
            builder.load_box(
                self.gradient,
                top,
                Memory.WEIGHT,
                builder.weights,
                f"load gradient for {self.name}",
                (self.token, top),
            ),
        )

    def _multiply(
        self,
        tile: WeightTile,
        block: tuple[Range, Range],
        taps: tuple[_Taps, _Taps],
        slabs: tuple[Slab, Slab] | None,
        *,
        overwrite: bool,
    ) -> None:
        """The products of a chunk by some taps; zeros, if there is none."""
        side, (_, inputs, outputs) = self.builder.side, tile.counts
        y, x = taps
        tap = inputs * outputs * side  # accumulator rows
        columns = block[1][1] - block[1][0]
        first = (y.first - block[0][0]) * columns + x.first - block[1][0]
        counts = (y.count, x.count, inputs, outputs, 1, 1, 1)
        accesses = [writes(Space.ACCUMULATOR, tile.access)]
        fields: dict[str, Any] = {"bounds": Bounds.LEFT, "y_extent": 0}
        if slabs is None:
            accesses.append(reads(Space.WEIGHT, (0, side)))
        else:
            left, top = slabs
            counts = (
                *counts[:4],
                left.box.counts[1],
                y.met[1] - y.met[0],
                x.met[1] - x.met[0],
            )
            (stride_y, stride_x), (tap_y, tap_x) = self.geometry.stride, self.geometry.dilation
            image = left.box.images[0]
            fields = {
                "left_address": left.at(image, y.source, x.source, tile.inputs[0]),
                "left_strides": trim(
                    (
                        *(tap_y * left.row_pitch, tap_x * left.pitch, side, 0),
                        *(left.image_pitch, stride_y * left.row_pitch, stride_x * left.pitch),
                    ),
                    counts,
                ),
                "top_address": top.at(image, y.met[0], x.met[0], tile.outputs[0]),
                "top_strides": trim(
                    (0, 0, 0, side, top.image_pitch, top.row_pitch, top.pitch), counts
                ),
            }
            accesses += [reads(Space.ACTIVATION, left.span), reads(Space.WEIGHT, top.span)]
        self.builder.stream.emit(
            Matrix(
                dataflow=Dataflow.OUTPUT_STATIONARY,
                accumulate=Accumulate.OVERWRITE_FIRST if overwrite else Accumulate.ALWAYS_ADD,
                counts=counts,
                tile_stride=1,
                accumulator_address=tile.address + first * tap,
                accumulator_strides=trim(
                    (columns * tap, tap, outputs * side, side, 0, 0, 0), counts
                ),
                **fields,
            ),
            "multiply" if slabs else "clear",
            *accesses,
        )


def _taps_met(axis: Axis, results: Range, kernel: Range) -> list[_Taps]:
    """A range of taps, in groups that met the same of a range of results."""
    phase = axis.phases[0]
    groups: list[_Taps] = []
    for tap in range(*kernel):
        at = phase.origin + tap * phase.tap_stride
        first = max(results[0], -(at // phase.stride))
        end = min(results[1], -((at - axis.source) // phase.stride))
        met = (first, end) if first < end else (0, 0)
        if groups and groups[-1].met == met:
            last = groups[-1]
            groups[-1] = _Taps(last.first, last.count + 1, met, last.source)
        else:
            groups.append(_Taps(tap, 1, met, at + first * phase.stride))
    return groups
