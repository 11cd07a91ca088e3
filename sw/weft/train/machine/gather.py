"""Sums that gather: every result adds the products of what its taps meet, tile by tile."""

import dataclasses
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from weft.compiler.stream import Space, reads, writes
from weft.compiler.vectors import trim
from weft.train.machine.axes import Axis, Part, Range, ranges
from weft.train.machine.builder import Box, Builder, ImageTile, Slab
from weft.train.machine.gather_plan import GatherPlan, Problem, choose_plan
from weft.train.machine.homes import ImageHome, WeightHome
from weft_hw.errors import EncodingError
from weft_hw.instructions import Accumulate, Bounds, Load, LoadSide, Matrix, Memory

__all__ = ["Gather"]


@dataclass(frozen=True)
class _Weights:
    """Weight tiles on chip, [kernel row][column][input tile][output tile], of these ranges."""

    address: int
    kernel: tuple[Range, Range]
    inputs: Range
    outputs: Range
    tile_bytes: int

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Bytes between kernel rows, columns, input tiles, output tiles."""
        output = self.tile_bytes
        inputs = (self.outputs[1] - self.outputs[0]) * output
        column = (self.inputs[1] - self.inputs[0]) * inputs
        return (self.kernel[1][1] - self.kernel[1][0]) * column, column, inputs, output

    @property
    def span(self) -> Range:
        """First byte, and the one behind the last."""
        rows = self.kernel[0][1] - self.kernel[0][0]
        return self.address, self.address + rows * self.strides[0]

    def at(self, y: int, x: int) -> int:
        """Address of the first tile of a tap."""
        row, column, _, _ = self.strides
        return self.address + (y - self.kernel[0][0]) * row + (x - self.kernel[1][0]) * column


@dataclass
class Gather:
    """The sums of a convolution, or of its data gradient.

    Parameters
    ----------
    builder : Builder
    source : ImageHome
    weights : WeightHome
    axes : (Axis, Axis)
        Rows, columns.
    transposed : bool
        Weight tiles take their output channels from the source: a data gradient.
    name : str
        Of the result, for the labels of loads.
    """

    builder: Builder
    source: ImageHome
    weights: WeightHome
    axes: tuple[Axis, Axis]
    transposed: bool
    name: str

    def __post_init__(self) -> None:
        inputs, outputs = self.weights.inputs, self.weights.outputs
        depth, tiles = (outputs, inputs) if self.transposed else (inputs, outputs)
        self.problem = Problem(self.source.batch, *self.axes, tiles, depth)
        self.plan: GatherPlan = choose_plan(self.problem, self.builder)
        self.token = object()  # in the rings' keys: memory changes between operations

    def run(self) -> Iterator[ImageTile]:
        """Emit loads and products of a tile, and yield where its sums lie."""
        for box in self._boxes():
            address = self.builder.accumulators(box.vectors)
            self._sum(ImageTile(address, box))
            yield ImageTile(address, box)

    def _boxes(self) -> Iterator[Box]:
        plan, problem = self.plan, self.problem
        pixels = itertools.product(
            ranges((0, problem.batch), plan.images),
            ranges((0, problem.y.result), plan.rows),
            ranges((0, problem.x.result), plan.columns),
        )
        tiles = ranges((0, problem.tiles), plan.tiles)
        if plan.tiles_first:
            yield from (Box(*part, channels) for part in pixels for channels in tiles)
        else:
            known = list(pixels)
            yield from (Box(*part, channels) for channels in tiles for part in known)

    # One tile ----------------------------------------------------------------------------------

    def _sum(self, tile: ImageTile) -> None:
        """One MATRIX a part of the reduction and pair of phases."""
        plan, (axis_y, axis_x), box = self.plan, self.axes, tile.box
        begun: set[tuple[int, int]] = set()  # phases, by their first results
        met = axis_y.kernel_met(box.rows), axis_x.kernel_met(box.columns)
        cuts = itertools.product(
            ranges((0, axis_y.kernel), plan.kernel[0], met[0]),
            ranges((0, axis_x.kernel), plan.kernel[1], met[1]),
            ranges((0, self.problem.depth), plan.depth),
        )
        for kernel_y, kernel_x, depth in cuts:
            pairs = [
                (y, x)
                for y in axis_y.parts(box.rows, kernel_y)
                for x in axis_x.parts(box.columns, kernel_x)
                if y.counts[1] and x.counts[1]
            ]
            if not pairs:
                continue
            weights = self._load_weights((kernel_y, kernel_x), depth, box.tiles)
            slab = self._load_slab(box.images, pairs, depth)
            for y, x in pairs:
                first = (y.result, x.result) not in begun
                begun.add((y.result, x.result))
                self._multiply(tile, slab, weights, y, x, first=first)
        everywhere = axis_y.parts(box.rows, (0, 0)), axis_x.parts(box.columns, (0, 0))
        for y, x in itertools.product(*everywhere):
            if (y.result, x.result) not in begun:
                self._clear(tile, y, x)

    def _load_slab(self, images: Range, pairs: list[tuple[Part, Part]], depth: Range) -> Slab:
        spans = [(y.spans(self.problem.y.source), x.spans(self.problem.x.source)) for y, x in pairs]
        rows, columns = (
            (min(span[axis][0] for span in spans), max(span[axis][1] for span in spans))
            for axis in (0, 1)
        )
        builder, box = self.builder, Box(images, rows, columns, depth)
        purpose = f"load operands of {self.name}"
        key = (self.token, box)
        return builder.load_box(self.source, box, Memory.ACTIVATION, builder.operands, purpose, key)

    def _load_weights(self, kernel: tuple[Range, Range], depth: Range, tiles: Range) -> _Weights:
        """The weight tiles on chip, after loading those that are not there."""
        builder, home = self.builder, self.weights
        inputs, outputs = (tiles, depth) if self.transposed else (depth, tiles)
        key: Hashable = (self.token, kernel, inputs, outputs)
        size = home.tile_bytes
        found = builder.weights.find(key)
        place = _Weights(found or 0, kernel, inputs, outputs, size)
        if found is not None:
            return place
        bytes_ = place.span[1] - place.span[0]
        place = dataclasses.replace(place, address=builder.weights.place(key, bytes_))
        columns = self.axes[1].kernel
        counts = [end - first for first, end in (*kernel, inputs)]
        dram = [
            columns * home.inputs * home.outputs * size,
            home.inputs * home.outputs * size,
            home.outputs * size,
        ]
        chip = list(place.strides[:3])
        run = chip[2]
        for loop in (2, 1, 0):  # runs that lie behind one another become one
            if run != dram[loop]:
                break
            run, counts[loop] = run * counts[loop], 1
        first = home.codes + size * home.tile(
            kernel[0][0] * columns + kernel[1][0], inputs[0], outputs[0]
        )
        last = home.codes + size * (
            1
            + home.tile(
                (kernel[0][1] - 1) * columns + kernel[1][1] - 1, inputs[1] - 1, outputs[1] - 1
            )
        )
        builder.stream.emit(
            Load(
                dram_address=first,
                address=place.address,
                counts=tuple(counts),
                dram_strides=trim(dram, counts),
                strides=trim(chip, counts),
                run_bytes=run,
                memory=Memory.WEIGHT,
                extent=1,
            ),
            f"load weights of {self.name}",
            reads(Space.DRAM, (first, last)),
            writes(Space.WEIGHT, place.span),
        )
        return place

    # MATRIX ------------------------------------------------------------------------------------

    def _rows(self, tile: ImageTile, y: Part, x: Part) -> tuple[int, tuple[int, int, int]]:
        """First accumulator row of a part's results, and strides of images, rows, columns."""
        _, _, rows, columns = tile.box.counts
        first = (y.result - tile.box.rows[0]) * columns + x.result - tile.box.columns[0]
        strides = rows * columns, y.phase.step * columns, x.phase.step
        return tile.address + first, strides

    def _multiply(
        self, tile: ImageTile, slab: Slab, weights: _Weights, y: Part, x: Part, *, first: bool
    ) -> None:
        if not (y.counts[1] and x.counts[1]):  # of a part of a part
            if first:
                self._clear(tile, y, x)
            return
        instruction = self._instruction(tile, slab, weights, y, x, first=first)
        try:
            instruction.encode()
        except EncodingError:
            self._divide(tile, slab, weights, y, x, first=first)
            return
        self.builder.stream.emit(
            instruction,
            "multiply",
            reads(Space.ACTIVATION, slab.span),
            reads(Space.WEIGHT, weights.span),
            writes(Space.ACCUMULATOR, tile.access),
        )

    def _divide(
        self, tile: ImageTile, slab: Slab, weights: _Weights, y: Part, x: Part, *, first: bool
    ) -> None:
        """The same by several instructions: distances did not fit the fields of one."""
        size_y, size_x = self.problem.y.source, self.problem.x.source
        splits_y = max(y.counts) > 1 and (
            max(x.counts) == 1 or (y.counts[0] > 1) >= (x.counts[0] > 1)
        )
        part = y if splits_y else x
        by_taps = part.counts[0] == 1
        for number, half in enumerate(part.halves(size_y if splits_y else size_x)):
            pair = (half, x) if splits_y else (y, half)
            begins = first and not (by_taps and number)
            self._multiply(tile, slab, weights, *pair, first=begins)

    def _instruction(
        self, tile: ImageTile, slab: Slab, weights: _Weights, y: Part, x: Part, *, first: bool
    ) -> Matrix:
        side, box = self.builder.side, tile.box
        channels, images, rows, columns = box.counts
        depth = slab.box.counts[0]
        counts = (channels, y.counts[1], x.counts[1], depth, images, y.counts[0], x.counts[0])
        address, (image, row, column) = self._rows(tile, y, x)
        tap_row, tap_column, inputs, outputs = weights.strides
        result, reduction = (inputs, outputs) if self.transposed else (outputs, inputs)
        top = (
            *(result, y.phase.tap_step * tap_row, x.phase.tap_step * tap_column, reduction),
            *(0, 0, 0),
        )
        left = (
            *(0, y.phase.tap_stride * slab.row_pitch, x.phase.tap_stride * slab.pitch, side),
            *(slab.image_pitch, y.phase.stride * slab.row_pitch, x.phase.stride * slab.pitch),
        )
        return Matrix(
            load_side=LoadSide.LEFT if self.transposed else LoadSide.TOP,
            accumulate=Accumulate.OVERWRITE_FIRST if first else Accumulate.ALWAYS_ADD,
            bounds=Bounds.LEFT,
            counts=counts,
            left_address=slab.at(box.images[0], y.source, x.source, slab.box.tiles[0]),
            left_strides=trim(left, counts),
            top_address=weights.at(y.tap, x.tap),
            top_strides=trim(top, counts),
            tile_stride=side,
            accumulator_address=address,
            accumulator_strides=trim(
                (images * rows * columns, 0, 0, 0, image, row, column), counts
            ),
            # Coordinates count from the slab's first pixel: what it lacks does not exist.
            y_origin=y.source - slab.box.rows[0],
            y_extent=slab.box.counts[2],
            y_steps=trim((0, y.phase.tap_stride, 0, 0, 0, y.phase.stride, 0), counts),
            x_origin=x.source - slab.box.columns[0],
            x_extent=slab.box.counts[3],
            x_steps=trim((0, 0, x.phase.tap_stride, 0, 0, 0, x.phase.stride), counts),
        )

    def _clear(self, tile: ImageTile, y: Part, x: Part) -> None:
        """Zeros where no tap meets the source: products of left rows that do not exist."""
        channels, images, rows, columns = tile.box.counts
        address, (image, row, column) = self._rows(tile, y, x)
        counts = (channels, 1, 1, 1, images, y.counts[0], x.counts[0])
        self.builder.stream.emit(
            Matrix(
                bounds=Bounds.LEFT,
                counts=counts,
                tile_stride=self.builder.side,
                accumulator_address=address,
                accumulator_strides=trim(
                    (images * rows * columns, 0, 0, 0, image, row, column), counts
                ),
                y_extent=0,
            ),
            "clear",
            reads(Space.WEIGHT, (0, self.weights.tile_bytes)),
            writes(Space.ACCUMULATOR, tile.access),
        )
