"""LOAD and STORE, prepared: checked addresses and the views between which bytes move."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import Load, Memory, Store
from weft_hw.registers import FaultCause
from weft_sim.functional.memories import FILL_BYTES, Memories
from weft_sim.functional.nests import (
    Addresses,
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
}

Bytes = NDArray[np.uint8]


class _Runs:
    """The runs of a transfer: where each begins in DRAM and on chip, and whether it exists."""

    def __init__(self, instruction: Load | Store, memories: Memories) -> None:
        self.instruction = instruction
        counts = instruction.counts
        self.total = trips(counts, type(instruction).__name__.upper())
        self.dram = affine(instruction.dram_address, instruction.dram_strides, counts)
        self.local = affine(instruction.address, instruction.strides, counts)
        coordinate = affine(instruction.origin, instruction.steps, counts)
        exists = (coordinate >= 0) & (coordinate < instruction.extent)
        self.exists = np.broadcast_to(exists, counts)
        self.on_chip: Bytes = {
            Memory.ACTIVATION: memories.activation[: len(memories.activation) - FILL_BYTES],
            Memory.WEIGHT: memories.weight,
            Memory.PARAMETER: memories.parameter,
        }[instruction.memory].view(np.uint8)
        self._check(memories)

    def _check(self, memories: Memories) -> None:
        config, instruction = memories.config, self.instruction
        if instruction.memory is Memory.PARAMETER:
            placed = (instruction.dram_address, instruction.address, instruction.run_bytes)
            strides = instruction.dram_strides + instruction.strides
            if any(value % config.bus_bytes for value in placed + strides):
                raise Faulted(FaultCause.ALIGNMENT)
        length = instruction.run_bytes
        touches_chip = self.exists | isinstance(instruction, Load)
        local_bad = ((self.local < 0) | (self.local + length > len(self.on_chip))) & touches_chip
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

    def views(self, memory: Bytes, base: int, strides: Sequence[int]) -> Bytes:
        """All runs in one view of a memory, one axis a loop and one of bytes."""
        return strided(memory, base, strides, self.instruction.counts, self.instruction.run_bytes)

    def each(self, addresses: Addresses) -> list[int]:
        """The address of every run, in loop order."""
        flat: list[int] = np.broadcast_to(addresses, self.instruction.counts).ravel().tolist()
        return flat

    def accesses(self, *, load: bool) -> list[Access]:
        """Reads and writes of the transfer; LOAD writes absent runs too."""
        length = self.instruction.run_bytes
        counts = self.instruction.counts
        dram = np.broadcast_to(self.dram, counts)[self.exists]
        local = np.broadcast_to(self.local, counts)
        if not load:
            local = local[self.exists]
        space = SPACES[self.instruction.memory]
        return [
            access(Space.DRAM, dram, length, write=not load),
            access(space, local, length, write=load),
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
        length = instruction.run_bytes
        self._fill = instruction.fill & 0xFF
        self._copies: list[tuple[Bytes, Bytes | None]] = []
        apart = runs.total == 1 or disjoint(np.broadcast_to(runs.local, runs.exists.shape), length)
        uniform = runs.exists.all() or not runs.exists.any()
        if apart and uniform:
            target = runs.views(runs.on_chip, instruction.address, instruction.strides)
            source = None
            if runs.exists.all():
                source = runs.views(
                    memories.dram, instruction.dram_address, instruction.dram_strides
                )
            self._copies.append((target, source))
            return
        for dram, local, exists in zip(
            runs.each(runs.dram), runs.each(runs.local), runs.exists.ravel().tolist()
        ):
            source = memories.dram[dram : dram + length] if exists else None
            self._copies.append((runs.on_chip[local : local + length], source))

    def execute(self) -> None:
        """Move or fill, in loop order where runs overlap."""
        for target, source in self._copies:
            if source is None:
                target.fill(self._fill)
            else:
                np.copyto(target, source)

    def accesses(self) -> Sequence[Access]:
        """Reads of DRAM, writes on chip."""
        return self._runs.accesses(load=True)


class StoreStep:
    """STORE: copies runs to DRAM, drops those that do not exist."""

    def __init__(self, instruction: Store, memories: Memories) -> None:
        if instruction.memory is not Memory.ACTIVATION:
            raise Faulted(FaultCause.UNSUPPORTED_FIELD)
        self._runs = runs = _Runs(instruction, memories)
        length = instruction.run_bytes
        self._copies: list[tuple[Bytes, Bytes]] = []
        apart = runs.total == 1 or disjoint(np.broadcast_to(runs.dram, runs.exists.shape), length)
        if apart and runs.exists.all():
            target = runs.views(memories.dram, instruction.dram_address, instruction.dram_strides)
            source = runs.views(runs.on_chip, instruction.address, instruction.strides)
            self._copies.append((target, source))
            return
        for dram, local, exists in zip(
            runs.each(runs.dram), runs.each(runs.local), runs.exists.ravel().tolist()
        ):
            if exists:
                source = runs.on_chip[local : local + length]
                self._copies.append((memories.dram[dram : dram + length], source))

    def execute(self) -> None:
        """Move, in loop order where runs overlap."""
        for target, source in self._copies:
            np.copyto(target, source)

    def accesses(self) -> Sequence[Access]:
        """Reads on chip, writes of DRAM."""
        return self._runs.accesses(load=False)
