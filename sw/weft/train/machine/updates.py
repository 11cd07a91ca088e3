"""Gradients of parameters and what they do to them: chunks of sums become steps of the state."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.vectors import trim
from weft.train.machine.builder import Box, Builder, WeightTile
from weft.train.machine.elementwise import boxes
from weft.train.machine.fields import EVEN, power_of_two, scalar_scale
from weft.train.machine.homes import WeightHome
from weft.train.machine.quantization import Spill
from weft.train.machine.scalars import Register, Scalars
from weft.train.step import (
    BiasGradient,
    CompensationGradient,
    Exponent,
    MomentumUpdate,
    Parameter,
    Update,
)
from weft_hw.arithmetic import quantize_multiplier
from weft_hw.instructions import (
    Capture,
    Element,
    Load,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Store,
    Tail,
    Vector,
)
from weft_hw.training import CODE_LIMIT, EXPONENT_BIAS, LIMIT_OF_SUM, velocity_limit

__all__ = [
    "Chunk",
    "Updater",
    "bias_chunks",
    "bias_sums",
    "compensation_chunks",
    "copied_rows",
    "weight_chunks",
]

ELEMENTS = {1: Element.INT8, 2: Element.INT16, 4: Element.INT32}
Strides = tuple[int, int, int, int]


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
    strides : (int, int, int, int)
        Accumulator rows a loop.
    index, index_strides : int, (int, int, int, int)
        Logical element of the first lane, and its strides.
    """

    address: int
    row: int
    counts: Strides
    strides: Strides
    index: int
    index_strides: Strides

    @property
    def rows(self) -> int:
        """How many."""
        a, b, c, d = self.counts
        return a * b * c * d


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
                    strides=_four(trim((0, w * side, side, 1), counts)),
                    index=(place[0] * channels + place[1] * side) * filters + place[2] * side,
                    index_strides=_four(trim((0, side * filters, side, filters), counts)),
                )


def _four(values: tuple[int, ...]) -> Strides:
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
            _four(trim((0, 0, 0, 1), counts)),
            index + first * stride,
            _four(trim((0, 0, 0, stride), counts)),
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
                _sum_into(builder, fields, total, strides, _four(counts[:4]), slab.span, first > 0)
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
    strides: Strides,
    counts: Strides,
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


class Updater:
    """Applies gradients to parameters."""

    def __init__(self, builder: Builder, scalars: Scalars, update: Update, spill: Spill) -> None:
        self.builder, self.scalars, self.update, self.spill = builder, scalars, update, spill
        self.stream, self.side = builder.stream, builder.side

    def apply(
        self, parameter: Parameter, exponents: list[Exponent], chunks: Iterable[Chunk]
    ) -> None:
        """Update a parameter by its gradient's sums, whose exponent is the sum of those given."""
        home = self.builder.weights_at[parameter.name]
        if isinstance(self.update, MomentumUpdate):
            self._rates(parameter, exponents, self.update)
            for chunk in chunks:
                self._move(home, chunk, self.update)
        else:
            self._apply_bits(home, chunks, delayed=self.update.delayed)

    # Momentum --------------------------------------------------------------------------------

    def _rates(
        self, parameter: Parameter, exponents: list[Exponent], update: MomentumUpdate
    ) -> None:
        """MULTIPLIER and EXPONENT: from the sums' unit to the velocity's. FIRST, SECOND: decay."""
        scalars, group = self.scalars, parameter.group
        unit = parameter.exponent - update.fraction - update.finer
        scalars.exponent(Register.EXPONENT, exponents[0], -unit)
        for exponent in exponents[1:]:
            scalars.exponent(Register.OTHER, exponent)
            scalars.add(Register.EXPONENT, Register.EXPONENT, Register.OTHER)
        scalars.read(f"rate.{group}.exponent", Register.OTHER)
        scalars.add(Register.EXPONENT, Register.EXPONENT, Register.OTHER)
        scalars.add(Register.EXPONENT, Register.EXPONENT, -EXPONENT_BIAS)
        scalars.limit(Register.EXPONENT, -31, 31)
        scalars.read(f"rate.{group}.multiplier", Register.MULTIPLIER)
        if update.decays:
            scalars.read(f"keep.{group}.multiplier", Register.FIRST)
            scalars.read(f"keep.{group}.exponent", Register.SECOND)
            scalars.add(Register.SECOND, Register.SECOND, -EXPONENT_BIAS)

    def _move(self, home: WeightHome, chunk: Chunk, update: MomentumUpdate) -> None:
        velocity, master = self.builder.scratch(0), self.builder.scratch(1)
        limit = velocity_limit(update.state_bits)
        moved, _, decayed = (self._random(home, chunk, stream) for stream in range(3))
        stepped = self._random(home, chunk, 1)
        has_velocity = update.momentum > 0
        if has_velocity:
            self._state(Load, home.velocity, home, chunk, velocity)
        self._state(Load, home.master, home, chunk, master)
        low = -(LIMIT_OF_SUM if has_velocity else limit)
        self._rows(
            chunk,
            chunk.address,
            "scale gradients",
            scalar_scale(Register.MULTIPLIER, Register.EXPONENT, Rounding.STOCHASTIC)
            | moved
            | {"clamp_low": low, "clamp_high": -low},
            source_strides=chunk.strides,
            target=None if has_velocity else velocity,
        )
        if has_velocity:
            multiplier, exponent = quantize_multiplier(update.momentum)
            self._rows(
                chunk,
                velocity,
                "move velocities",
                {
                    "scale_source": ScaleSource.INSTRUCTION,
                    "multiplier": multiplier,
                    "exponent": exponent,
                    "rounding": EVEN,
                    "clamp_low": -limit,
                    "clamp_high": limit,
                },
                added=(chunk.address, chunk.strides),
            )
            self._state(Store, home.velocity, home, chunk, velocity)
        if update.decays:
            self._rows(
                chunk,
                master,
                "decay",
                scalar_scale(Register.FIRST, Register.SECOND, Rounding.STOCHASTIC) | decayed,
            )
        bound = CODE_LIMIT << update.fraction
        self._rows(
            chunk,
            velocity,
            "move weights",
            power_of_two(-update.finer, Rounding.STOCHASTIC)
            | stepped
            | {"clamp_low": -bound, "clamp_high": bound},
            added=(master, self._dense(chunk)),
            target=master,
        )
        self._state(Store, home.master, home, chunk, master)
        self._codes(home, chunk, master, power_of_two(-update.fraction), None)

    # Bits ------------------------------------------------------------------------------------

    def _apply_bits(self, home: WeightHome, chunks: Iterable[Chunk], *, delayed: bool) -> None:
        scalars, name = self.scalars, home.parameter.name
        waiting: list[tuple[Chunk, int]] = []
        if delayed:
            scalars.read(f"{name}.largest", Register.LARGEST)
        else:
            scalars.move(Register.LARGEST, 0)
            for chunk in chunks:
                self._measure(chunk)
                offset = chunk.row * self.side * 4
                self._transfer(Store, self.spill.address + offset, 4, chunk, chunk.address)
                waiting.append((chunk, offset))
            scalars.write(f"{name}.largest", Register.LARGEST)
        scalars.read("bits", Register.FIRST)
        scalars.shift(Register.SHIFT, Register.LARGEST, Register.FIRST)
        scalars.scale_exponent(Register.EXPONENT, Register.SHIFT, -1)
        scalars.move(Register.HIGH, 1)
        scalars.shift_by(Register.HIGH, Register.FIRST)
        scalars.add(Register.HIGH, Register.HIGH, -1)
        scalars.subtract(Register.LOW, 0, Register.HIGH)
        scalars.move(Register.LARGEST, 0)
        scalars.move(Register.CLAMPED, 0)
        if delayed:
            for chunk in chunks:
                self._step(home, chunk, Capture.BOTH)
            scalars.write(f"{name}.largest", Register.LARGEST)
        for chunk, offset in waiting:
            rows = self.builder.scratch(0)
            again = Chunk(
                rows,
                chunk.row,
                chunk.counts,
                self._dense(chunk),
                chunk.index,
                chunk.index_strides,
            )
            self._transfer(Load, self.spill.address + offset, 4, again, rows)
            self._step(home, again, Capture.CLAMPED)
        scalars.write(f"{name}.saturated", Register.CLAMPED)

    def _measure(self, chunk: Chunk) -> None:
        self._rows(
            chunk,
            chunk.address,
            "find the largest sum",
            {"capture": Capture.LARGEST, "capture_register": Register.LARGEST},
            source_strides=chunk.strides,
        )

    def _step(self, home: WeightHome, chunk: Chunk, capture: Capture) -> None:
        """Move codes by some bits."""
        codes = self._place(chunk)
        span = (codes, codes + chunk.rows * self.side)
        address = home.codes + chunk.row * self.side
        size = chunk.rows * self.side
        self.stream.emit(
            Load(dram_address=address, address=codes, run_bytes=size, extent=1),
            f"load {home.parameter.name}",
            reads(Space.DRAM, (address, address + size)),
            writes(Space.ACTIVATION, span),
        )
        self._rows(
            chunk,
            chunk.address,
            "scale gradients",
            scalar_scale(Register.ONE, Register.EXPONENT, Rounding.STOCHASTIC)
            | self._random(home, chunk, 0)
            | {
                "clamp_from_scalar": 1,
                "capture": capture,
                "capture_register": Register.LARGEST,
            },
            source_strides=chunk.strides,
        )
        self._codes(home, chunk, chunk.address, {}, codes)

    # Pieces ----------------------------------------------------------------------------------

    def _random(self, home: WeightHome, chunk: Chunk, stream: int) -> dict[str, Any]:
        return {
            "index_address": chunk.index,
            "index_strides": chunk.index_strides,
            "tensor": home.parameter.numbers[stream],
        }

    def _dense(self, chunk: Chunk) -> Strides:
        """Strides of the chunk's rows where they lie behind one another."""
        _, b, c, d = chunk.counts
        return _four(trim((b * c * d, c * d, d, 1), chunk.counts))

    def _place(self, chunk: Chunk) -> int:
        return self.builder.staging.place(None, chunk.rows * self.side)

    def _rows(
        self,
        chunk: Chunk,
        source: int,
        purpose: str,
        fields: dict[str, Any],
        *,
        source_strides: Strides | None = None,
        target: int | None = None,
        added: tuple[int, Strides] | None = None,
    ) -> None:
        """A pass over a chunk's rows, in place unless there is a target (behind one another)."""
        dense = self._dense(chunk)
        strides = source_strides or dense
        address = source if target is None else target
        accesses = [reads(Space.ACCUMULATOR, (source, source + chunk.rows))]
        if added is not None:
            fields = fields | {
                "tail": Tail.ADD,
                "b_source": OperandSource.ACCUMULATOR,
                "b_address": added[0],
                "b_strides": (*added[1], 0, 0),
            }
            accesses.append(reads(Space.ACCUMULATOR, (added[0], added[0] + chunk.rows)))
        self.stream.emit(
            Vector(
                counts=(*chunk.counts, 1, 1),
                a_address=source,
                a_strides=(*strides, 0, 0),
                destination=Memory.ACCUMULATOR,
                address=address,
                strides=strides if target is None else dense,
                **fields,
            ),
            purpose,
            *accesses,
            writes(Space.ACCUMULATOR, (address, address + chunk.rows)),
        )

    def _codes(
        self,
        home: WeightHome,
        chunk: Chunk,
        source: int,
        fields: dict[str, Any],
        old: int | None,
    ) -> None:
        """Codes from rows of masters, or from steps and the old codes on chip, to DRAM."""
        codes, size, dense = self._place(chunk), chunk.rows * self.side, self._dense(chunk)
        lines = _four(tuple(stride * self.side for stride in dense))
        accesses = [reads(Space.ACCUMULATOR, (source, source + chunk.rows))]
        strides = dense
        if old is not None:
            strides = chunk.strides
            fields = fields | {
                "tail": Tail.ADD,
                "b_source": OperandSource.ACTIVATION,
                "b_address": old,
                "b_strides": (*lines, 0, 0),
            }
            accesses.append(reads(Space.ACTIVATION, (old, old + size)))
        self.stream.emit(
            Vector(
                counts=(*chunk.counts, 1, 1),
                a_address=source,
                a_strides=(*strides, 0, 0),
                destination=Memory.ACTIVATION,
                address=codes,
                strides=lines,
                clamp_low=-CODE_LIMIT,
                clamp_high=CODE_LIMIT,
                **fields,
            ),
            "make codes",
            *accesses,
            writes(Space.ACTIVATION, (codes, codes + size)),
        )
        address = home.codes + chunk.row * self.side
        self.stream.emit(
            Store(dram_address=address, address=codes, run_bytes=size, extent=1),
            f"store {home.parameter.name}",
            reads(Space.ACTIVATION, (codes, codes + size)),
            writes(Space.DRAM, (address, address + size)),
        )

    def _state(
        self, kind: type[Load] | type[Store], base: int, home: WeightHome, chunk: Chunk, rows: int
    ) -> None:
        """Master or velocity between DRAM and accumulator rows."""
        width = home.state_bytes
        self._transfer(kind, base + chunk.row * self.side * width, width, chunk, rows)

    def _transfer(
        self, kind: type[Load] | type[Store], address: int, width: int, chunk: Chunk, rows: int
    ) -> None:
        size = chunk.rows * self.side * width
        dram, chip = (address, address + size), (rows, rows + chunk.rows)
        moved = kind(
            dram_address=address,
            address=rows,
            run_bytes=size,
            memory=Memory.ACCUMULATOR,
            element=ELEMENTS[width],
            extent=1,
        )
        if kind is Load:
            accesses = reads(Space.DRAM, dram), writes(Space.ACCUMULATOR, chip)
        else:
            accesses = reads(Space.ACCUMULATOR, chip), writes(Space.DRAM, dram)
        self.stream.emit(moved, f"{kind.__name__.lower()} state", *accesses)
