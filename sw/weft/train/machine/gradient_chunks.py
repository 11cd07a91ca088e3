"""Sums of parameters' gradients, in chunks of rows that an update takes at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.vectors import trim
from weft.train.machine.builder import Box, Builder, WeightTile
from weft.train.machine.elementwise import boxes
from weft.train.machine.homes import WeightHome
from weft.train.step import BiasGradient, CompensationGradient
from weft_hw.instructions import Memory, OperandSource, Tail, Vector

__all__ = [
    "Chunk",
    "Loops",
    "bias_chunks",
    "bias_sums",
    "compensation_chunks",
    "copied_rows",
    "four",
    "weight_chunks",
]

Loops = tuple[int, int, int, int]
"""Counts or strides of VECTOR's outer loops."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of a parameter's gradient, that lie behind one another on chip and in DRAM.

    Parameters
    ----------
    address : int
        First accumulator row of the sums.
    row : int
        Number of the first row in the parameter's home.
    counts : (int, int, int, int)
        Of VECTOR's outer loops, whose last ones step over neighbouring rows.
    index, index_strides : int, (int, int, int, int)
        Logical element of the first lane, and its strides.
    """

    address: int
    row: int
    counts: Loops
    index: int
    index_strides: Loops

    @property
    def rows(self) -> int:
        """How many."""
        a, b, c, d = self.counts
        return a * b * c * d

    @property
    def strides(self) -> Loops:
        """Rows a loop."""
        _, b, c, d = self.counts
        return four(trim((b * c * d, c * d, d, 1), self.counts))


def weight_chunks(builder: Builder, home: WeightHome, tile: WeightTile) -> Iterator[Chunk]:
    """A tile of weight sums in chunks of at most ``builder.scratch_rows`` rows."""
    side, scratch = builder.side, builder.scratch_rows
    _, _, channels, filters = home.parameter.shape
    taps, inputs, outputs = tile.counts
    wide = min(outputs, max(1, scratch // side))
    deep = 1
    if outputs == home.outputs and outputs == wide:  # whole rows of tiles lie behind one another
        deep = min(inputs, max(1, scratch // (side * outputs)))
    for tap in range(taps):
        for i in range(0, inputs, deep):
            for o in range(0, outputs, wide):
                d, w = min(deep, inputs - i), min(wide, outputs - o)
                place = tile.taps[0] + tap, tile.inputs[0] + i, tile.outputs[0] + o
                counts = (1, d, w, side)
                yield Chunk(
                    address=tile.address + ((tap * inputs + i) * outputs + o) * side,
                    row=home.tile(*place) * side,
                    counts=counts,
                    index=(place[0] * channels + place[1] * side) * filters + place[2] * side,
                    index_strides=four(trim((0, side * filters, side, filters), counts)),
                )


def four(values: tuple[int, ...]) -> Loops:
    """The values, which are four."""
    a, b, c, d = values
    return a, b, c, d


def _rows_chunks(
    builder: Builder, address: int, row: int, count: int, index: int, stride: int
) -> Iterator[Chunk]:
    """Neighbouring rows whose logical elements step evenly."""
    for first in range(0, count, builder.scratch_rows):
        rows = min(builder.scratch_rows, count - first)
        counts = (1, 1, 1, rows)
        yield Chunk(
            address + first,
            row + first,
            counts,
            index + first * stride,
            four(trim((0, 0, 0, stride), counts)),
        )


def bias_sums(builder: Builder, operation: BiasGradient) -> int:
    """Sums of a gradient over the batch and all pixels: the first of their rows, one a tile."""
    gradient = builder.images[operation.gradient.name]
    total = builder.accumulators(gradient.tiles)
    for number, box in enumerate(_all_tiles(builder, operation.gradient.name)):
        tiles, images, rows, columns = box.counts
        slab = builder.load_box(
            gradient, box, Memory.ACTIVATION, builder.staging, f"load {operation.gradient.name}"
        )
        counts = (tiles, 1, 1, 1, images * rows, columns)
        fields: dict[str, Any] = {
            "counts": counts,
            "a_source": OperandSource.ACTIVATION,
            "a_address": slab.address,
            "a_strides": trim((builder.side, 0, 0, 0, slab.row_pitch, slab.pitch), counts),
        }
        first = total + box.tiles[0]
        _sum_into(builder, fields, first, (1, 0, 0, 0), (tiles, 1, 1, 1), slab.span, number > 0)
    return total


def copied_rows(builder: Builder, source: int, rows: int) -> int:
    """A copy of some accumulator rows."""
    target, step = builder.accumulators(rows), 1 if rows > 1 else 0
    builder.stream.emit(
        Vector(
            counts=(1, 1, 1, rows, 1, 1),
            a_address=source,
            a_strides=(0, 0, 0, step, 0, 0),
            destination=Memory.ACCUMULATOR,
            address=target,
            strides=(0, 0, 0, step),
        ),
        "copy sums",
        reads(Space.ACCUMULATOR, (source, source + rows)),
        writes(Space.ACCUMULATOR, (target, target + rows)),
    )
    return target


def bias_chunks(builder: Builder, operation: BiasGradient, sums: int) -> Iterator[Chunk]:
    """The sums of a bias's gradient, by channel tile."""
    tiles = builder.images[operation.gradient.name].tiles
    yield from _rows_chunks(builder, sums, 0, tiles, 0, builder.side)


def _all_tiles(builder: Builder, name: str) -> Iterator[Box]:
    """Boxes with all channel tiles of their pixels, so that each adds to the same sums.

    Half of the staging memory takes two of them.
    """
    home = builder.images[name]
    yield from boxes(home, max(builder.staging.capacity // (4 * builder.side), home.tiles))


def compensation_chunks(builder: Builder, operation: CompensationGradient) -> Iterator[Chunk]:
    """Sums of a gradient over the batch, by pixel and channel."""
    home = builder.images[operation.gradient.name]
    height, width, channels = operation.gradient.shape
    side, limit = builder.side, min(builder.scratch_rows, builder.limit_rows)
    step = max(1, limit // home.tiles)
    for y in range(height):
        for x in range(0, width, step):
            columns = min(step, width - x)
            total = builder.accumulators(columns * home.tiles)
            images = max(1, builder.limit_rows // (columns * home.tiles))
            for first in range(0, home.batch, images):
                last = min(first + images, home.batch)
                box = Box((first, last), (y, y + 1), (x, x + columns), (0, home.tiles))
                slab = builder.load_box(
                    home,
                    box,
                    Memory.ACTIVATION,
                    builder.staging,
                    f"load {operation.gradient.name}",
                )
                counts = (home.tiles, 1, 1, columns, 1, last - first)
                fields: dict[str, Any] = {
                    "counts": counts,
                    "a_source": OperandSource.ACTIVATION,
                    "a_address": slab.address,
                    "a_strides": trim((side, 0, 0, slab.pitch, 0, slab.image_pitch), counts),
                }
                strides = (1, 0, 0, home.tiles)
                _sum_into(builder, fields, total, strides, four(counts[:4]), slab.span, first > 0)
            row = (y * width + x) * home.tiles
            if home.tiles * side == channels:  # elements step evenly over all rows
                yield from _rows_chunks(builder, total, row, columns * home.tiles, row * side, side)
            else:
                for column in range(columns):
                    at = column * home.tiles
                    yield from _rows_chunks(
                        builder,
                        total + at,
                        row + at,
                        home.tiles,
                        (y * width + x + column) * channels,
                        side,
                    )


def _sum_into(
    builder: Builder,
    fields: dict[str, Any],
    rows: int,
    strides: Loops,
    counts: Loops,
    source: tuple[int, int],
    more: bool,
) -> None:
    """A sum over windows into accumulator rows, or added to what they hold."""
    steps = trim(strides, counts)
    last = rows + 1 + sum(s * (n - 1) for s, n in zip(steps, counts, strict=True))
    accesses: list[Access] = [reads(Space.ACTIVATION, source)]
    if more:
        fields = fields | {
            "tail": Tail.ADD,
            "b_source": OperandSource.ACCUMULATOR,
            "b_address": rows,
            "b_strides": (*steps, 0, 0),
        }
        accesses.append(reads(Space.ACCUMULATOR, (rows, last)))
    builder.stream.emit(
        Vector(**fields, destination=Memory.ACCUMULATOR, address=rows, strides=steps),
        "sum a gradient",
        *accesses,
        writes(Space.ACCUMULATOR, (rows, last)),
    )
