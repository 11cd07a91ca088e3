"""What one instruction asks of the machine: steps of its engine, banks, and bursts.

Everything here follows from the instruction and the configuration alone (docs/machine.md).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.instruction_values import (
    Accumulate,
    Bounds,
    Dataflow,
    Head,
    Memory,
    OperandSource,
    Tail,
)
from weft_hw.instructions import (
    LOOPS_VECTOR_OUTER,
    TILE_LOOPS_MATRIX,
    Load,
    Matrix,
    Store,
    Vector,
)

__all__ = ["Bank", "Entry", "Work", "entries_of", "matrix_work", "store_work", "vector_work"]

Bank = tuple[Memory, str, int]
"""A memory, its "read" or "write" port, and the bank's number."""

MOST_SLIDING_ROWS = 8
"""Rows of the largest window that VECTOR slides along (docs/machine.md)."""


@dataclass(frozen=True)
class Work:
    """Steps of an engine, one a cycle while nobody else wants its banks.

    Parameters
    ----------
    steps : int
    accesses : dict of Bank to float
        Accesses to a bank's port in a step, on average.
    recharge : int
        Cycles after the last step in which MATRIX cannot begin another weight tile.
    updates : tuple of (int, dict of Bank to float)
        Of MATRIX, one after the other: steps, and accesses to accumulators in each of them.
    """

    steps: int
    accesses: dict[Bank, float]
    recharge: int = 0
    updates: tuple[tuple[int, dict[Bank, float]], ...] = ()


@dataclass(frozen=True)
class Entry:
    """A burst, or (``beats`` 0) a run that LOAD fills.

    Parameters
    ----------
    beats : int
        Of the bus.
    writes : int
        Cycles that the on-chip memory takes.
    """

    beats: int
    writes: int


@lru_cache(maxsize=4096)  # a compiler that tries schedules asks again and again
def matrix_work(config: AcceleratorConfig, instruction: Matrix) -> Work:
    """Cycles from the first left row's request to the last one's, and the banks they touch."""
    counts = instruction.counts
    outer = math.prod(counts[:TILE_LOOPS_MATRIX])
    inner = math.prod(counts[TILE_LOOPS_MATRIX:])
    stationary = instruction.dataflow is Dataflow.OUTPUT_STATIONARY
    if stationary:
        steps = outer * (inner + config.rows + 1)
    else:
        steps = (outer - 1) * max(config.rows, inner) + inner
    exists = _inside(instruction, counts)
    left = _affine(instruction.left_address, instruction.left_strides, counts)
    reads = _banks(
        Memory.ACTIVATION,
        "read",
        left,
        config.activation_bank_bytes,
        counts,
        exists if instruction.bounds is Bounds.LEFT else None,
    )
    tiles = counts if stationary else counts[:TILE_LOOPS_MATRIX]
    top = _banks(
        Memory.WEIGHT,
        "read",
        _affine(instruction.top_address, instruction.top_strides, tiles),
        config.weight_bank_bytes,
        tiles,
        exists if instruction.bounds is Bounds.TOP else None,
    )
    # The last tile comes before the last step; there is never more than one read in a step.
    each = 1 if stationary else min(config.rows, steps / sum(top.values()))
    accesses = reads | {bank: number * each for bank, number in top.items()}
    recharge = 0 if stationary else max(0, config.rows - inner)
    return Work(
        steps,
        {bank: number / steps for bank, number in accesses.items()},
        recharge,
        tuple(_updates(config, instruction, exists)),
    )


def _updates(
    config: AcceleratorConfig, instruction: Matrix, exists: NDArray[np.bool_] | None
) -> Iterator[tuple[int, dict[Bank, float]]]:
    """Steps of MATRIX with the same use of the accumulator memory.

    Where an output tile's rows are overwritten, and not added to, they are not read.
    """
    counts, strides = instruction.counts, instruction.accumulator_strides
    reduction = math.prod(counts[1:TILE_LOOPS_MATRIX])
    inner = math.prod(counts[TILE_LOOPS_MATRIX:])
    stationary = instruction.dataflow is Dataflow.OUTPUT_STATIONARY
    overwrites = instruction.accumulate is Accumulate.OVERWRITE_FIRST
    pace = max(config.rows, inner)
    for tile in range(counts[0]):
        base = instruction.accumulator_address + tile * strides[0]
        if stationary:
            rows = _affine(base, strides[1:], counts[1:TILE_LOOPS_MATRIX])
            steps = reduction * (inner + config.rows + 1)
            share = reduction * config.rows / steps
        else:
            rows = _affine(base, strides[1:], counts[1:])
            steps, share = reduction * pace, inner / pace
        if instruction.bounds is Bounds.ACCUMULATOR and exists is not None:
            share *= float(exists.mean())
        numbers, times = np.unique(rows // config.accumulator_rows, return_counts=True)
        parts = dict(zip(numbers.tolist(), (share * times / times.sum()).tolist(), strict=True))
        writes: dict[Bank, float] = {
            (Memory.ACCUMULATOR, "write", bank): part for bank, part in parts.items()
        }
        reads: dict[Bank, float] = {
            (Memory.ACCUMULATOR, "read", bank): part for bank, part in parts.items()
        }
        if not overwrites:
            yield steps, writes | reads
        elif stationary:
            yield steps, writes
        else:
            yield pace, writes
            if reduction > 1:
                yield steps - pace, writes | reads


@lru_cache(maxsize=4096)
def vector_work(config: AcceleratorConfig, instruction: Vector) -> Work:
    """Requests from the first to the last, and the banks they touch."""
    counts = instruction.counts
    outer = counts[:LOOPS_VECTOR_OUTER]
    vectors = math.prod(outer)
    window = math.prod(counts[LOOPS_VECTOR_OUTER:])
    taken = window  # steps of a vector
    reads = vectors * window
    moves = _slides(config, instruction)
    rows = vectors // counts[LOOPS_VECTOR_OUTER - 1] if moves else 0  # their first window is whole
    if moves:
        taken = counts[LOOPS_VECTOR_OUTER] * moves
        reads = counts[LOOPS_VECTOR_OUTER] * (3 * rows + moves * (vectors - rows))
    # A vector's groups of lanes may take longer than its steps; behind the last one none waits.
    groups = config.vector_groups
    steps = rows * max(window, groups) + (vectors - rows) * max(taken, groups)
    steps -= max(0, groups - (taken if vectors > rows else window))
    accesses: dict[Bank, float] = {}

    def count(
        source: OperandSource | Memory,
        port: str,
        address: int,
        strides: Sequence[int],
        trips: Sequence[int],
        total: float,
    ) -> None:
        """Spread ``total`` accesses over the banks that the addresses fall into."""
        memory = Memory[source.name]
        size = _bank_sizes(config)[memory]
        found = _banks(memory, port, _affine(address, strides, trips), size, trips, None)
        whole = sum(found.values())
        for bank, number in found.items():
            accesses[bank] = accesses.get(bank, 0.0) + total * number / whole

    count(instruction.a_source, "read", instruction.a_address, instruction.a_strides, counts, reads)
    if instruction.tail is not Tail.NONE:
        strides = instruction.b_strides[:LOOPS_VECTOR_OUTER]
        count(instruction.b_source, "read", instruction.b_address, strides, outer, vectors)
    elif instruction.head is Head.DOT:
        total = reads if not moves else 3 * counts[LOOPS_VECTOR_OUTER] * rows
        strides = instruction.b_strides
        count(instruction.b_source, "read", instruction.b_address, strides, counts, total)
    count(
        instruction.destination, "write", instruction.address, instruction.strides, outer, vectors
    )
    return Work(steps, {bank: number / steps for bank, number in accesses.items()})


def _bank_sizes(config: AcceleratorConfig) -> dict[Memory, int]:
    return {
        Memory.ACTIVATION: config.activation_bank_bytes,
        Memory.WEIGHT: config.weight_bank_bytes,
        Memory.ACCUMULATOR: config.accumulator_rows,
    }


def _slides(config: AcceleratorConfig, instruction: Vector) -> int:
    """Taps by which a depthwise window moves along loop 3 on registers; 0: it is read anew."""
    if config.depthwise_taps == 1 or instruction.head is not Head.DOT:
        return 0
    if instruction.counts[5] != 3 or instruction.counts[4] > MOST_SLIDING_ROWS:
        return 0
    if instruction.b_strides[3] != 0:
        return 0
    streams = [instruction.a_strides]
    if instruction.bounded:
        streams += [instruction.y_steps, instruction.x_steps]
    for taps in (1, 2):
        if all(strides[3] == taps * strides[5] for strides in streams):
            return taps
    return 0


def entries_of(config: AcceleratorConfig, instruction: Load | Store) -> list[Entry]:
    """The bursts of a LOAD or STORE, in order, and LOAD's filled runs."""
    starts = _affine(instruction.dram_address, instruction.dram_strides, instruction.counts)
    coordinates = _affine(instruction.origin, instruction.steps, instruction.counts)
    exists = (coordinates >= 0) & (coordinates < instruction.extent)
    shape = tuple(instruction.counts)
    starts = np.broadcast_to(starts, shape).ravel()
    present = np.broadcast_to(exists, shape).ravel()
    size, beat = instruction.run_bytes, config.bus_bytes
    block = beat * config.burst_beats
    row = config.columns << instruction.element
    rows = instruction.memory is Memory.ACCUMULATOR
    width = {  # bytes that the memory takes in a cycle
        Memory.ACCUMULATOR: row,
        Memory.PARAMETER: beat,
        Memory.LOOKUP: 1,
    }.get(instruction.memory, config.line_bytes)
    bytes_on_chip = size * (4 >> instruction.element) if rows else size
    filled = Entry(0, math.ceil(bytes_on_chip / width)) if isinstance(instruction, Load) else None
    known: dict[int, list[Entry]] = {}
    entries: list[Entry] = []
    for start, here in zip(starts.tolist(), present.tolist(), strict=True):
        if not here:
            if filled is not None:
                entries.append(filled)
            continue
        place = start % block
        if place not in known:
            known[place] = _bursts(place, size, beat, block, width)
        entries += known[place]
    return entries


def _bursts(place: int, size: int, beat: int, block: int, width: int) -> list[Entry]:
    """The bursts of a run that begins at this place in a block of bursts."""
    bursts = []
    left = size
    while left > 0:
        taken = min(left, block - place % block)
        beats = (place % beat + taken + beat - 1) // beat
        bursts.append(Entry(beats, beats * max(1, beat // width)))
        place, left = place + taken, left - taken
    return bursts


def store_work(config: AcceleratorConfig, instruction: Store, entries: Sequence[Entry]) -> Work:
    """Reads of a STORE, and the banks they touch."""
    steps = sum(entry.writes for entry in entries)
    rows = instruction.memory is Memory.ACCUMULATOR
    size = config.accumulator_rows if rows else config.activation_bank_bytes
    places = _affine(instruction.address, instruction.strides, instruction.counts)
    found = _banks(instruction.memory, "read", places, size, instruction.counts, None)
    whole = sum(found.values())
    return Work(steps, {bank: number / whole for bank, number in found.items()})


def _affine(base: int, strides: Sequence[int], counts: Sequence[int]) -> NDArray[np.int64]:
    """Addresses with an axis a loop; one along which nothing changes has length 1."""
    result = np.full((1,) * len(counts), base, np.int64)
    for axis, (stride, count) in enumerate(zip(strides, counts, strict=False)):
        if stride and count > 1:
            shape = [1] * len(counts)
            shape[axis] = count
            result = result + (np.arange(count) * stride).reshape(shape)
    return result


def _inside(instruction: Matrix, counts: Sequence[int]) -> NDArray[np.bool_] | None:
    """Which trips have both coordinates; None: all."""
    y = _affine(instruction.y_origin, instruction.y_steps, counts)
    x = _affine(instruction.x_origin, instruction.x_steps, counts)
    inside: NDArray[np.bool_] = (y >= 0) & (y < instruction.y_extent)
    inside = inside & (x >= 0) & (x < instruction.x_extent)
    return None if inside.all() else inside


def _banks(
    memory: Memory,
    port: str,
    addresses: NDArray[np.int64],
    size: int,
    counts: Sequence[int],
    exists: NDArray[np.bool_] | None,
) -> dict[Bank, float]:
    """Accesses by bank, of all trips of the loops."""
    banks = addresses // size
    if exists is not None:
        banks, exists = np.broadcast_arrays(banks, exists)
        repeats = math.prod(counts) / banks.size
        banks = banks[exists]
    else:
        repeats = math.prod(counts) / banks.size
    numbers, times = np.unique(banks, return_counts=True)
    return {
        (memory, port, bank): time * repeats
        for bank, time in zip(numbers.tolist(), times.tolist(), strict=True)
    }
