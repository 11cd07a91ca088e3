"""What the lowering of all layers shares: stream, constants, rings of memory, operands' places."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.compiler.constants import ConstantImage
from weft.compiler.kernels import Kernel
from weft.compiler.layout import PixelLayout, Region
from weft.compiler.memory_plan import MemoryPlan, Placement
from weft.compiler.stream import Access, Space, Stream, reads
from weft.compiler.tiling import Tiling
from weft.compiler.transfers import fill_gap, load_box, load_table, store_box
from weft.ir import INT8_RANGE, Graph, Table
from weft_hw.config import AcceleratorConfig
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES

__all__ = ["Context", "LayerTask", "Ring", "TileBox"]

INPUT_PIECES = (
    4  # a tensor that stays on chip is loaded in pieces, so that work starts on the first
)
SMALLEST_PIECE = 512


@dataclass
class Ring:
    """A memory, or its bytes from ``base`` on, filled round and round; entries live until they are
    overwritten. Each takes ``smallest`` at least, which limits how many there are."""

    capacity: int
    base: int = 0
    smallest: int = 0
    next: int = 0
    entries: list[tuple[int, int, Hashable]] = field(default_factory=list)

    def find(self, key: Hashable) -> int | None:
        """Start of an entry that is still there."""
        starts = (self.base + start for start, _, known in self.entries if known == key)
        return next(starts, None)

    def place(self, key: Hashable, size: int) -> int:
        """Start of a new entry; whatever lies there is forgotten."""
        size = max(size, self.smallest)
        start = self.next if self.next + size <= self.capacity else 0
        end = start + size
        self.entries = [entry for entry in self.entries if entry[1] <= start or entry[0] >= end]
        self.entries.append((start, end, key))
        self.next = end
        return self.base + start


@dataclass(frozen=True)
class TileBox:
    """A tile of a layer's output: channel tiles, rows and columns, each first and count."""

    index: int
    channel: int
    channels: int
    y: int
    rows: int
    x: int
    columns: int

    @property
    def vectors(self) -> int:
        """Vectors of ``columns`` lanes."""
        return self.channels * self.rows * self.columns


@dataclass
class Context:
    """State of the lowering of one program.

    ``tap_bytes`` at the end of the weight scratchpad are for the taps of depthwise convolutions; if
    they are none, taps lie among the other weights.
    """

    graph: Graph
    config: AcceleratorConfig
    plan: MemoryPlan
    constants: ConstantImage
    stream: Stream = field(default_factory=Stream)
    loaded: set[str] = field(default_factory=set)
    bank: int = 0
    tap_bytes: int = 0

    def __post_init__(self) -> None:
        convolutions = self.config.weight_bytes - self.tap_bytes
        self.weights = Ring(convolutions)
        self.taps = Ring(self.tap_bytes, base=convolutions) if self.tap_bytes else self.weights
        self.parameters = Ring(self.config.parameter_rows)
        self.tables = Ring(LOOKUP_TABLES * LOOKUP_ENTRIES)
        self.tables_at: dict[bytes, int] = {}
        self.accumulator_rings = [
            Ring(self.config.accumulator_rows) for _ in range(self.config.accumulator_banks)
        ]

    def table(self, codes: NDArray[np.int8]) -> int:
        """Address of a lookup table (results for -128 to 127) on chip, after loading it if need be.

        There is room for four; the one that has been there longest makes way.
        """
        entries = np.roll(codes, -INT8_RANGE[0]).tobytes()  # the machine's order: 0..127, -128..-1
        found = self.tables.find(entries)
        if found is None:
            if entries not in self.tables_at:
                self.tables_at[entries] = self.constants.append(entries)
            found = self.tables.place(entries, LOOKUP_ENTRIES)
            load_table(self.stream, self.tables_at[entries], found)
        return found

    def accumulators(self, rows: int) -> int:
        """First of some accumulator rows, in the bank whose turn it is.

        Neighbouring tiles lie in different banks, so that MATRIX fills one while VECTOR reads
        another; and small tiles lie behind one another, so that MATRIX can run ahead by several.
        """
        self.bank = (self.bank + 1) % self.config.accumulator_banks
        start = self.accumulator_rings[self.bank].place(None, rows)
        return self.bank * self.config.accumulator_rows + start


@dataclass
class LayerTask:
    """The lowering of one layer: its operands' places and the slots of its work area."""

    context: Context
    layer: int
    kernel: Kernel
    tiling: Tiling

    def __post_init__(self) -> None:
        operation = self.kernel.operation
        placements = self.context.plan.placements
        self.stream = self.context.stream
        self.config = self.context.config
        self.sources: list[Placement] = [placements[name] for name in operation.inputs]
        self.result: Placement = placements[operation.output]
        self.work = self.context.plan.work[self.layer][0]
        self._keys: dict[int, Hashable] = {}
        self._turn = [0] * len(operation.inputs)
        self._output_turn = 0
        self.stream.layer, self.stream.tile = self.layer, 0

    # Tiles -------------------------------------------------------------------------------------

    def tiles(self) -> Iterator[TileBox]:
        """All output tiles, channel blocks outermost, so that their weights stay."""
        rows, columns, _ = self.kernel.result
        step = self.tiling
        index = 0
        for channel in range(0, self.kernel.result_tiles, step.channel_tiles):
            channels = min(step.channel_tiles, self.kernel.result_tiles - channel)
            for y in range(0, rows, step.rows):
                for x in range(0, columns, step.columns):
                    self.stream.tile = index
                    yield TileBox(
                        index,
                        channel,
                        channels,
                        y,
                        min(step.rows, rows - y),
                        x,
                        min(step.columns, columns - x),
                    )
                    index += 1

    def output_bytes(self, tile: TileBox) -> tuple[int, int]:
        """Bytes [first, end) of each output pixel that a tile holds."""
        columns = self.config.columns
        end = (tile.channel + tile.channels) * columns
        return tile.channel * columns, min(end, self.kernel.result_pitch)

    def output_region(self, tile: TileBox) -> Region:
        """The box of the output that a tile holds."""
        return Region(
            tile.y,
            tile.y + tile.rows,
            tile.x,
            tile.x + tile.columns,
            *self.output_bytes(tile),
        )

    # Operands ----------------------------------------------------------------------------------

    def operand(self, position: int, region: Region, gap: int = 0) -> PixelLayout:
        """Where a box of an input is readable on chip, after loading what is not there yet."""
        name = self.kernel.operation.inputs[position]
        place = self.sources[position]
        if place.chip is not None:
            self._bring(name, place)
            return place.chip
        assert place.dram is not None
        slots = range(self.tiling.slots)
        key = name, region, gap
        for slot in slots:
            if self._keys.get(self._slot_address(slot, position)) == key:
                return PixelLayout(self._slot_address(slot, position), region, gap)
        address = self._slot_address(self._turn[position], position)
        self._turn[position] = (self._turn[position] + 1) % self.tiling.slots
        self._keys[address] = key
        layout = PixelLayout(address, region, gap)
        if not region.empty or gap:
            fill_gap(
                self.stream, layout, self.context.graph.tensor(name).zero_point, "fill padding"
            )
        if not region.empty:
            load_box(self.stream, place.dram, layout, region, f"load {name}")
        return layout

    def _slot_address(self, slot: int, position: int) -> int:
        """Slots lie one behind the other: the spilled inputs' slabs, then the staging area."""
        spilled = [place.chip is None for place in self.sources]
        size = sum(spilled) * self.tiling.input_bytes + self.tiling.output_bytes
        before = sum(spilled[:position]) * self.tiling.input_bytes
        return self.work + slot * size + before

    def _bring(self, name: str, place: Placement) -> None:
        """Load a network input or constant that stays on chip, once."""
        known = self.context.loaded
        if name in known or place.dram is None or place.chip is None:
            return
        known.add(name)
        fill_gap(
            self.stream, place.chip, self.context.graph.tensor(name).zero_point, "fill padding"
        )
        region = place.chip.region
        rows = region.y1 - region.y0
        size = rows * (region.x1 - region.x0) * place.chip.pitch
        pieces = max(1, min(INPUT_PIECES, rows, size // SMALLEST_PIECE))
        bounds = [rows * piece // pieces for piece in range(pieces + 1)]
        for y0, y1 in zip(bounds, bounds[1:], strict=False):
            part = Region(y0, y1, region.x0, region.x1, region.c0, region.c1)
            load_box(self.stream, place.dram, place.chip, part, f"load {name}")

    def lookup(self, codes: NDArray[np.int8] | None = None) -> tuple[dict[str, Any], list[Access]]:
        """Fields of the VECTOR that writes results, and its access of the table.

        ``codes`` is the layer's table unless given; nothing for a layer without one.
        """
        if codes is None:
            table: Table | None = getattr(self.kernel.operation, "table", None)
            if table is None:
                return {}, []
            codes = table.codes
        address = self.context.table(codes)
        access = reads(Space.LOOKUP, (address, address + LOOKUP_ENTRIES))
        return {"lookup": address // LOOKUP_ENTRIES + 1}, [access]

    # Results -----------------------------------------------------------------------------------

    def destination(self, tile: TileBox) -> PixelLayout:
        """Where a tile's results go on chip: the tensor's home or a staging area."""
        name = self.kernel.operation.output
        if self.result.chip is not None:
            if name not in self.context.loaded:
                self.context.loaded.add(name)
                zero = self.context.graph.tensor(name).zero_point
                fill_gap(self.stream, self.result.chip, zero, "fill padding")
            return self.result.chip
        address = self._slot_address(self._output_turn, len(self.sources))
        self._output_turn = (self._output_turn + 1) % self.tiling.slots
        return PixelLayout(address, self.output_region(tile))

    def finish(self, tile: TileBox, layout: PixelLayout) -> None:
        """Store a tile's results, if the tensor has a home in DRAM."""
        if self.result.dram is not None:
            name = self.kernel.operation.output
            region = self.output_region(tile)
            store_box(self.stream, self.result.dram, layout, region, f"store {name}")
