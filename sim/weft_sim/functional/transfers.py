"""LOAD and STORE, prepared: checked addresses and the views between which elements move."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import Element, Load, Memory, Store
from weft_hw.registers import FaultCause
from weft_sim.functional.memories import FILL_BYTES, Memories
from weft_sim.functional.nests import (
    access,
    affine,
    disjoint,
    first_trip,
    strided,
    trips,
)
from weft_sim.functional.step import Faulted
from weft_sim.race_check import Access, Space

__all__ = ["LoadStep", "StoreStep"]

SPACES = {
    Memory.ACTIVATION: Space.ACTIVATION,
    Memory.WEIGHT: Space.WEIGHT,
    Memory.PARAMETER: Space.PARAMETER,
    Memory.LOOKUP: Space.LOOKUP,
    Memory.ACCUMULATOR: Space.ACCUMULATOR,
}

ELEMENTS: dict[Element, type[np.signedinteger[Any]]] = {
    Element.INT8: np.int8,
    Element.INT16: np.int16,
    Element.INT32: np.int32,
}

Bytes = NDArray[np.uint8]


class _Runs:
    """The runs of a transfer: where each begins in DRAM and on chip, and whether it exists.

    Attributes
    ----------
    on_chip : array
        The flat on-chip memory: bytes, or the accumulators' int32.
    dram_memory : uint8 array
        DRAM, of which ``length * element_bytes`` bytes belong to a run.
    kind : dtype of an element in DRAM
    length : int
        Elements of a run.
    local : int64 array
        Where each run begins, in elements of ``on_chip``.
    """

    def __init__(self, instruction: Load | Store, memories: Memories) -> None:
        self.instruction = instruction
        counts = instruction.counts
        self.total = trips(counts, type(instruction).__name__.upper())
        self.dram = affine(instruction.dram_address, instruction.dram_strides, counts)
        self.local = affine(instruction.address, instruction.strides, counts)
        coordinate = affine(instruction.origin, instruction.steps, counts)
        exists = (coordinate >= 0) & (coordinate < instruction.extent)
        self.exists = np.broadcast_to(exists, counts)
        self.rows = instruction.memory is Memory.ACCUMULATOR
        self.kind = np.dtype(ELEMENTS[instruction.element] if self.rows else np.uint8)
        self.length = instruction.run_bytes // self.kind.itemsize
        # What one step of an on-chip address moves, and how many of that a run touches.
        self.pitch = memories.config.columns if self.rows else 1
        self.extent = -(-self.length // self.pitch)
        chips: dict[Memory, NDArray[Any]] = {
            Memory.ACTIVATION: memories.activation[: len(memories.activation) - FILL_BYTES],
            Memory.WEIGHT: memories.weight,
            Memory.PARAMETER: memories.parameter,
            Memory.LOOKUP: memories.lookup.reshape(-1),
            Memory.ACCUMULATOR: memories.accumulator[:-1].reshape(-1),
        }
        chip = chips[instruction.memory]
        self.on_chip = chip if self.rows else chip.view(np.uint8)
        self._check(memories)

    def _check(self, memories: Memories) -> None:
        config, instruction = memories.config, self.instruction
        if instruction.memory in (Memory.PARAMETER, Memory.LOOKUP):
            placed = (instruction.dram_address, instruction.address, instruction.run_bytes)
            strides = instruction.dram_strides + instruction.strides
            if any(value % config.bus_bytes for value in placed + strides):
                raise Faulted(FaultCause.ALIGNMENT)
        in_dram = (instruction.dram_address, instruction.run_bytes, *instruction.dram_strides)
        if any(value % self.kind.itemsize for value in in_dram):
            raise Faulted(FaultCause.ALIGNMENT)
        length = instruction.run_bytes
        places = len(self.on_chip) // self.pitch
        touches_chip = self.exists | isinstance(instruction, Load)
        local_bad = ((self.local < 0) | (self.local + self.extent > places)) & touches_chip
        limit = 1 << config.address_width
        dram_bad = ((self.dram < 0) | (self.dram + length > limit)) & self.exists
        beat = config.bus_bytes
        end = -(-(self.dram + length) // beat) * beat  # bursts are of whole beats
        bus_bad = (end > len(memories.dram)) & self.exists
        bad = local_bad | dram_bad | bus_bad
        if not bad.any():
            return
        counts = instruction.counts
        trip = first_trip(bad, counts)

        def at(values: NDArray[Any]) -> Any:
            return np.broadcast_to(values, counts).flat[trip]

        if at(local_bad):
            raise Faulted(FaultCause.LOCAL_ADDRESS, int(at(self.local)))
        if at(dram_bad):
            raise Faulted(FaultCause.LOCAL_ADDRESS, int(at(self.dram)))
        cause = FaultCause.READ_ERROR if isinstance(instruction, Load) else FaultCause.WRITE_ERROR
        raise Faulted(cause, _failing_burst(int(at(self.dram)), len(memories.dram), config))

    def chip_views(self) -> NDArray[Any]:
        """All runs in one view of the on-chip memory, one axis a loop and one of elements."""
        instruction = self.instruction
        strides = [stride * self.pitch for stride in instruction.strides]
        base = instruction.address * self.pitch
        return strided(self.on_chip, base, strides, instruction.counts, self.length)

    def dram_views(self, dram: Bytes) -> NDArray[Any]:
        """All runs in one view of DRAM, likewise."""
        instruction, size = self.instruction, self.kind.itemsize
        # The address is a multiple of the size as well, but the memory's length need not be.
        elements = dram[: len(dram) // size * size].view(self.kind)
        base = instruction.dram_address // size
        strides = [stride // size for stride in instruction.dram_strides]
        return strided(elements, base, strides, instruction.counts, self.length)

    def each(self, dram: Bytes) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
        """The views of every run in loop order: on chip, and in DRAM if it exists."""
        counts = self.instruction.counts
        size = self.length * self.kind.itemsize
        places = (np.broadcast_to(values, counts).ravel() for values in (self.dram, self.local))
        for start, local, exists in zip(
            *(values.tolist() for values in places), self.exists.ravel().tolist(), strict=True
        ):
            chip = slice(local * self.pitch, local * self.pitch + self.length)
            data = dram[start : start + size].view(self.kind) if exists else None
            # A run that STORE drops may lie anywhere: its view is not used.
            yield self.on_chip[chip], data

    def accesses(self, *, load: bool) -> list[Access]:
        """Reads and writes of the transfer; LOAD writes absent runs too."""
        counts = self.instruction.counts
        dram = np.broadcast_to(self.dram, counts)[self.exists]
        local = np.broadcast_to(self.local, counts)
        if not load:
            local = local[self.exists]
        space = SPACES[self.instruction.memory]
        return [
            access(Space.DRAM, dram, self.instruction.run_bytes, write=not load),
            access(space, local, self.extent, write=load),
        ]


def _failing_burst(address: int, memory_bytes: int, config: AcceleratorConfig) -> int:
    """Address of the first burst of a run that the memory does not hold whole."""
    block = config.burst_beats * config.bus_bytes
    start = address - address % config.bus_bytes
    first_bad_beat = max(start, memory_bytes // config.bus_bytes * config.bus_bytes)
    return max(start, first_bad_beat // block * block)


class LoadStep:
    """LOAD: copies runs from DRAM, fills those that do not exist."""

    def __init__(self, instruction: Load, memories: Memories) -> None:
        self._runs = runs = _Runs(instruction, memories)
        self._fill = instruction.fill if runs.rows else instruction.fill & 0xFF
        apart = runs.total == 1 or disjoint(
            np.broadcast_to(runs.local, runs.exists.shape), runs.extent
        )
        self._copies: list[tuple[NDArray[Any], NDArray[Any] | None]]
        if apart and (runs.exists.all() or not runs.exists.any()):
            source = runs.dram_views(memories.dram) if runs.exists.all() else None
            self._copies = [(runs.chip_views(), source)]
        else:
            self._copies = list(runs.each(memories.dram))

    def execute(self) -> None:
        """Move or fill, in loop order where runs overlap."""
        for target, source in self._copies:
            if source is None:
                target.fill(self._fill)
            else:
                np.copyto(target, source)  # sign-extends

    def accesses(self) -> Sequence[Access]:
        """Reads of DRAM, writes on chip."""
        return self._runs.accesses(load=True)


class StoreStep:
    """STORE: copies runs to DRAM, drops those that do not exist."""

    def __init__(self, instruction: Store, memories: Memories) -> None:
        self._runs = runs = _Runs(instruction, memories)
        apart = runs.total == 1 or disjoint(
            np.broadcast_to(runs.dram, runs.exists.shape), instruction.run_bytes
        )
        self._copies: list[tuple[NDArray[Any], NDArray[Any]]]
        if apart and runs.exists.all():
            self._copies = [(runs.dram_views(memories.dram), runs.chip_views())]
        else:
            each = runs.each(memories.dram)
            self._copies = [(target, source) for source, target in each if target is not None]

    def execute(self) -> None:
        """Move, in loop order where runs overlap; wide elements saturate to narrow ones."""
        for target, source in self._copies:
            if target.itemsize < source.itemsize:
                limits = np.iinfo(target.dtype)
                np.copyto(target, source.clip(limits.min, limits.max), casting="unsafe")
            else:
                np.copyto(target, source)

    def accesses(self) -> Sequence[Access]:
        """Reads on chip, writes of DRAM."""
        return self._runs.accesses(load=False)
