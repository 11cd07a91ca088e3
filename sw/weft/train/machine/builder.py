"""What the lowering of a training step shares: the stream, and rings of on-chip memory."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from weft.compiler.context import Ring
from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Space, Stream, reads, writes
from weft.compiler.vectors import trim
from weft.errors import InputError, UnsupportedModel
from weft.train.machine.homes import ImageHome, WeightHome, require_square
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import COUNT_BITS, Element, Load, Memory, Store

__all__ = ["STAGING_ROWS", "Box", "Builder", "ImageTile", "Slab", "WeightTile"]

STAGING_ROWS = 16
"""Accumulator rows at the end of the last bank, through which scalars travel."""

SCRATCH_ROWS = 32

MOST_TRIPS = (1 << COUNT_BITS) - 1
ELEMENTS = {1: Element.INT8, 2: Element.INT16, 4: Element.INT32}
"""Of accumulator rows in DRAM, by bytes."""

SPACES = {
    Memory.ACTIVATION: Space.ACTIVATION,
    Memory.WEIGHT: Space.WEIGHT,
    Memory.LOOKUP: Space.LOOKUP,
}


@dataclass(frozen=True)
class Box:
    """Part of a batch of images: ranges (first, behind the last) of each coordinate."""

    images: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    tiles: tuple[int, int]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Channel tiles, images, rows, columns."""
        tiles, images, rows, columns = (
            end - first for first, end in (self.tiles, self.images, self.rows, self.columns)
        )
        return tiles, images, rows, columns

    @property
    def vectors(self) -> int:
        """Vectors of one channel tile each."""
        tiles, images, rows, columns = self.counts
        return tiles * images * rows * columns


@dataclass(frozen=True)
class ImageTile:
    """int32 sums of a box in accumulator rows: [channel tile][image][row][column]."""

    address: int
    box: Box

    @property
    def access(self) -> tuple[int, int]:
        """The rows."""
        return self.address, self.address + self.box.vectors


@dataclass(frozen=True)
class WeightTile:
    """int32 sums of weights in accumulator rows: [tap][input tile][output tile][R], of ranges."""

    address: int
    taps: tuple[int, int]
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    side: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Taps, input tiles, output tiles."""
        taps, inputs, outputs = (
            end - first for first, end in (self.taps, self.inputs, self.outputs)
        )
        return taps, inputs, outputs

    @property
    def rows(self) -> int:
        """Of accumulators."""
        taps, inputs, outputs = self.counts
        return taps * inputs * outputs * self.side

    @property
    def access(self) -> tuple[int, int]:
        """The rows."""
        return self.address, self.address + self.rows


@dataclass(frozen=True)
class Slab:
    """A box of images on chip: [image][row][column][bytes of its channel tiles], contiguous."""

    address: int
    box: Box
    side: int

    @property
    def pitch(self) -> int:
        """Bytes of a pixel."""
        return self.box.counts[0] * self.side

    @property
    def row_pitch(self) -> int:
        """Bytes of a row."""
        return self.box.counts[3] * self.pitch

    @property
    def image_pitch(self) -> int:
        """Bytes of an image."""
        return self.box.counts[2] * self.row_pitch

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.box.counts[1] * self.image_pitch

    @property
    def span(self) -> tuple[int, int]:
        """First byte, and the one behind the last."""
        return self.address, self.address + self.size

    def at(self, image: int, y: int, x: int, tile: int) -> int:
        """Address of a channel tile of a pixel, also outside the box; absolute coordinates."""
        box = self.box
        return (
            self.address
            + (image - box.images[0]) * self.image_pitch
            + (y - box.rows[0]) * self.row_pitch
            + (x - box.columns[0]) * self.pitch
            + (tile - box.tiles[0]) * self.side
        )


@dataclass
class Builder:
    """The stream of one program and its rings.

    The first half of the activation scratchpad holds MATRIX's operands, the second one what VECTOR
    and STORE use, so that they do not meet in a bank. Entries of a ring live until they are
    overwritten; semaphores order that (:func:`weft.compiler.synchronize.synchronize`).

    Parameters
    ----------
    config : AcceleratorConfig
    tile_rows : int, optional
        Accumulator rows that a tile of sums may take at most (a bank's, unless fewer).
    """

    config: AcceleratorConfig
    tile_rows: int | None = None
    stream: Stream = field(default_factory=Stream)
    images: dict[str, ImageHome] = field(default_factory=dict)
    weights_at: dict[str, WeightHome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.side = require_square(config)
        half = config.activation_bytes // 2
        # A semaphore counts entries that are free again and not yet taken, of several rings.
        entries = max(1, ((1 << config.semaphore_bits) - 1) // 4)
        self.operands = Ring(half, smallest=ceil_div(half, entries))
        self.staging = Ring(half, base=half, smallest=ceil_div(half, entries))
        self.weights = Ring(config.weight_bytes, smallest=ceil_div(config.weight_bytes, entries))
        self.parameters = Ring(config.parameter_rows)
        self.scratch_rows = max(self.side, min(SCRATCH_ROWS, config.accumulator_rows // 16))
        besides = STAGING_ROWS + 2 * self.scratch_rows
        usable = config.accumulator_rows - besides
        if usable < self.side:
            raise InputError(
                f"training needs accumulator banks of {besides + self.side} rows or more; "
                f"{config.name} has {config.accumulator_rows}"
            )
        self.limit_rows = min(usable, self.tile_rows or usable)
        smallest = min(usable, ceil_div(usable * config.accumulator_banks, entries))
        self._banks = [Ring(usable, smallest=smallest) for _ in range(config.accumulator_banks)]
        self._bank = 0

    def accumulators(self, rows: int) -> int:
        """First of some accumulator rows, in the bank whose turn it is.

        Raises
        ------
        UnsupportedModel
            If a bank does not have as many.
        """
        self._require("accumulator rows of a bank", rows, self._banks[0].capacity)
        self._bank = (self._bank + 1) % self.config.accumulator_banks
        start = self._banks[self._bank].place(None, rows)
        return self._bank * self.config.accumulator_rows + start

    @property
    def staging_rows(self) -> int:
        """First accumulator row of those through which scalars travel."""
        return self.config.accumulator_total_rows - STAGING_ROWS

    def scratch(self, half: int) -> int:
        """First of ``scratch_rows`` accumulator rows; there are two such halves, 0 and 1.

        They are for the length of one chunk of work, besides tiles of sums.
        """
        return self.staging_rows - (2 - half) * self.scratch_rows

    def place(self, ring: Ring, box: Box, key: Hashable = None) -> Slab:
        """Room for a box of codes.

        Raises
        ------
        UnsupportedModel
            If the ring does not have as much.
        """
        size = Slab(0, box, self.side).size
        self._require("bytes of a scratchpad's part", size, ring.capacity)
        return Slab(ring.place(key, size), box, self.side)

    def _require(self, what: str, needed: int, limit: int) -> None:
        if needed > limit:
            raise UnsupportedModel(
                f"operation {self.stream.layer} of the step: its smallest tile needs {needed:,} "
                f"{what}; {self.config.name} has {limit:,}: choose a larger configuration"
            )

    def store_slab(self, home: ImageHome, slab: Slab, purpose: str) -> None:
        """Copy a slab to DRAM."""
        self._copy_box(Store, home, slab, Memory.ACTIVATION, purpose)

    def copy_bytes(
        self, kind: type[Load | Store], dram: int, address: int, size: int, memory: Memory, why: str
    ) -> None:
        """Copy neighbouring bytes between DRAM and a scratchpad."""
        self._copy(
            kind(dram_address=dram, address=address, run_bytes=size, memory=memory, extent=1),
            (dram, dram + size),
            SPACES[memory],
            (address, address + size),
            why,
        )

    def copy_rows(
        self, kind: type[Load | Store], dram: int, row: int, rows: int, width: int, why: str
    ) -> None:
        """Copy neighbouring accumulator rows from or to elements of ``width`` bytes in DRAM."""
        size = rows * self.side * width
        moved = kind(
            dram_address=dram,
            address=row,
            run_bytes=size,
            memory=Memory.ACCUMULATOR,
            element=ELEMENTS[width],
            extent=1,
        )
        self._copy(moved, (dram, dram + size), Space.ACCUMULATOR, (row, row + rows), why)

    def _copy(
        self,
        moved: Load | Store,
        dram: tuple[int, int],
        space: Space,
        chip: tuple[int, int],
        why: str,
    ) -> None:
        """Append a transfer, with what it reads and writes."""
        if isinstance(moved, Load):
            accesses = reads(Space.DRAM, dram), writes(space, chip)
        else:
            accesses = reads(space, chip), writes(Space.DRAM, dram)
        self.stream.emit(moved, why, *accesses)

    def load_box(
        self,
        home: ImageHome,
        box: Box,
        memory: Memory,
        ring: Ring,
        purpose: str,
        key: Hashable = None,
    ) -> Slab:
        """A box of images on chip; one that is there already (by key) is not loaded again."""
        found = ring.find(key) if key is not None else None
        if found is not None:
            return Slab(found, box, self.side)
        slab = self.place(ring, box, key)
        if home.narrow:
            self.stream.emit(
                Load(address=slab.address, run_bytes=slab.size, memory=memory, extent=0),
                "fill with zeros",
                writes(SPACES[memory], slab.span),
            )
        self._copy_box(Load, home, slab, memory, purpose)
        return slab

    def _copy_box(
        self, kind: type[Load | Store], home: ImageHome, slab: Slab, memory: Memory, why: str
    ) -> None:
        """Copy a box between DRAM and chip, in as few and long runs as both layouts allow."""
        box, side = slab.box, slab.side
        tiles, images, rows, columns = box.counts
        run = home.pitch if home.narrow else tiles * side
        counts = [images, rows, columns]
        dram = [home.image_pitch, home.row_pitch, home.pitch]
        chip = [slab.image_pitch, slab.row_pitch, slab.pitch]
        for loop in (2, 1, 0):  # runs that lie behind one another on both sides become one
            if run != dram[loop] or run != chip[loop]:
                break
            run, counts[loop] = run * counts[loop], 1
        first = home.at(box.images[0], box.rows[0], box.columns[0], box.tiles[0] * side)
        last = run + home.at(
            box.images[1] - 1, box.rows[1] - 1, box.columns[1] - 1, box.tiles[0] * side
        )
        for start in range(0, counts[0], MOST_TRIPS):
            trips = (min(MOST_TRIPS, counts[0] - start), counts[1], counts[2])
            moved = kind(
                dram_address=first + start * dram[0],
                address=slab.address + start * chip[0],
                counts=trips,
                dram_strides=trim(dram, trips),
                strides=trim(chip, trips),
                run_bytes=run,
                memory=memory,
                extent=1,
            )
            self._copy(moved, (first, last), SPACES[memory], slab.span, why)
