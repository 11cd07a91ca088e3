"""The happens-before check: complete programs pass, and each missing wait is found."""

import dataclasses
import itertools

import numpy as np
import pytest

from sim.machine_reference import ReferenceMachine
from sim.programs import encode, serialized
from sim.random_instructions import RandomInstructions
from weft_hw import PRESETS
from weft_hw.instructions import (
    Instruction,
    Load,
    Matrix,
    Memory,
    Store,
    Vector,
)
from weft_sim.functional import FunctionalDevice
from weft_sim.race_check import OrderError

TINY = PRESETS["tiny"]
PROGRAM = 8192


def run(instructions: list[Instruction], *, check_races: bool = True) -> None:
    device = FunctionalDevice(TINY, memory_bytes=1 << 16, check_races=check_races)
    device.write_memory(PROGRAM, encode(instructions))
    device.run(PROGRAM)


def double_buffered(tiles: int) -> list[Instruction]:
    """Load, multiply, scale and store tiles through two buffers at every stage.

    Semaphores: 0 loaded, 1 input free, 2 summed, 3 sums free, 4 scaled, 5 output free.
    """

    def bit(semaphore: int, used: bool = True) -> int:
        return int(used) << semaphore

    stream: list[Instruction] = [
        Load(run_bytes=64, memory=Memory.WEIGHT, extent=1, dram_address=4096)
    ]
    for tile in range(tiles):
        half = tile % 2
        again, repeats = tile >= 2, tile + 2 < tiles
        stream += [
            Load(
                dram_address=32 * tile,
                address=32 * half,
                run_bytes=32,
                extent=1,
                wait=bit(1, again),
                signal=bit(0),
            ),
            Matrix(
                counts=(1, 1, 1, 1, 1, 1, 8),
                left_address=32 * half,
                left_strides=(0, 0, 0, 0, 0, 0, 4),
                tile_stride=4,
                accumulator_address=8 * half,
                accumulator_strides=(0, 0, 0, 0, 0, 0, 1),
                wait=bit(0) | bit(3, again),
                signal=bit(1, repeats) | bit(2),
            ),
            Vector(
                counts=(1, 1, 1, 8, 1, 1),
                a_address=8 * half,
                a_strides=(0, 0, 0, 1, 0, 0),
                address=1024 + 32 * half,
                strides=(0, 0, 0, 4),
                wait=bit(2) | bit(5, again),
                signal=bit(3, repeats) | bit(4),
            ),
            Store(
                dram_address=16384 + 32 * tile,
                address=1024 + 32 * half,
                run_bytes=32,
                extent=1,
                wait=bit(4),
                signal=bit(5, repeats),
            ),
        ]
    return stream


def test_double_buffering_passes():
    run(double_buffered(6))


@pytest.mark.parametrize("semaphore", range(6))
def test_every_missing_wait_is_found(semaphore: int):
    """Without the last use of a semaphore, two instructions of the two queues race."""
    stream = double_buffered(6)
    mask = 1 << semaphore
    for field in ("wait", "signal"):
        last = max(i for i, instruction in enumerate(stream) if getattr(instruction, field) & mask)
        value = getattr(stream[last], field) & ~mask
        stream[last] = dataclasses.replace(stream[last], **{field: value})
    with pytest.raises(OrderError, match="no chain of semaphores orders two instructions"):
        run(stream)
    run(stream, check_races=False)  # the serial answer does not show it


def test_message_names_both_instructions_and_the_range():
    load = Load(address=30, run_bytes=10, extent=1)
    store = Store(dram_address=4096, address=36, run_bytes=10, extent=1)
    with pytest.raises(OrderError) as caught:
        run([load, store])
    assert str(caught.value) == (
        "no chain of semaphores orders two instructions that meet in activation scratchpad byte "
        "0x24 to 0x27, which the first writes:\n"
        f"  0x0: {load}\n  0x30: {store}"
    )


def test_strided_accesses_that_interleave_do_not_meet():
    """LOAD writes even blocks of four bytes, STORE reads the odd ones."""
    load = Load(counts=(8, 1, 1), strides=(8, 0, 0), run_bytes=4, extent=1)
    store = Store(
        dram_address=4096, counts=(8, 1, 1), dram_strides=(4, 0, 0), strides=(8, 0, 0), run_bytes=4
    )
    run([load, dataclasses.replace(store, address=4, extent=1)])
    with pytest.raises(OrderError, match=r"byte 0x8 to 0x8,|byte 0x8,"):
        run([load, dataclasses.replace(store, address=5, extent=1)])


CONFLICTS = {
    "activation byte, write after read": (
        Store(dram_address=4096, run_bytes=8, extent=1),
        Load(address=7, extent=1),
    ),
    "activation byte, write after write": (
        Vector(address=12),
        Load(address=12, extent=1),
    ),
    "activation byte, read by MATRIX": (
        Load(address=3, extent=1),
        Matrix(tile_stride=4),
    ),
    "activation byte, fill": (
        Load(address=3, extent=0),
        Matrix(tile_stride=4),
    ),
    "weight byte": (
        Matrix(tile_stride=4),
        Load(address=15, memory=Memory.WEIGHT, extent=1),
    ),
    "accumulator row": (
        Matrix(tile_stride=4, accumulator_address=5),
        Vector(a_address=5),
    ),
    "accumulator row, operand B": (
        Vector(a_address=9, tail=1, b_source=2, b_address=6, address=99),
        Matrix(tile_stride=4, accumulator_address=6),
    ),
    "parameter row": (
        Vector(use_bias=1, parameter_address=1),
        Load(memory=Memory.PARAMETER, address=64, run_bytes=4, extent=1),
    ),
    "DRAM byte, read after write": (
        Store(dram_address=5000, address=512, run_bytes=2, extent=1),
        Load(dram_address=5001, extent=1),
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts(name: str):
    """Two queues meet in one place: found without a semaphore, in order with one."""
    pair = list(CONFLICTS[name])
    with pytest.raises(OrderError, match="no chain of semaphores"):
        run(pair)
    run(serialized(pair))


def test_order_through_a_third_queue():
    """LOAD, then MATRIX, then STORE: STORE need not wait for LOAD itself."""
    load = Load(run_bytes=8, extent=1, signal=1)
    matrix = Matrix(tile_stride=4, left_address=64, wait=1, signal=2)
    store = Store(dram_address=4096, run_bytes=8, extent=1, wait=2)
    run([load, matrix, store])
    with pytest.raises(OrderError):
        run([load, dataclasses.replace(matrix, wait=0), store])


def test_program_must_not_be_overwritten():
    with pytest.raises(OrderError, match="writes to the program itself, which lies in DRAM bytes"):
        run([Store(dram_address=PROGRAM - 2, run_bytes=3, extent=1)])
    run([Store(dram_address=PROGRAM - 3, run_bytes=3, extent=1)])


def test_semaphores_have_one_queue_at_each_end():
    load = Load(extent=0, signal=1)
    with pytest.raises(OrderError, match="two queues signal semaphore 0"):
        run([load, Matrix(tile_stride=4, left_address=64, signal=1)])
    waits = Matrix(tile_stride=4, left_address=64, wait=1)
    with pytest.raises(OrderError, match="two queues wait for semaphore 0"):
        run([load, load, waits, Store(dram_address=4096, address=32, extent=1, wait=1)])


def test_program_that_blocks_only_in_stream_order():
    """The queues would run to the end, but the document demands that serial execution does."""
    waits = Matrix(tile_stride=4, left_address=64, wait=1)
    with pytest.raises(OrderError, match=r"only later ones signal:\n  0x0: MATRIX wait=\{0\}"):
        run([waits, Load(extent=0, signal=1)])


@pytest.mark.parametrize("number", range(10))
def test_random_programs_against_all_pairs(number: int, rng: np.random.Generator):
    """The check against the definition: every pair of accesses, byte by byte, every path."""
    random = RandomInstructions(TINY, rng, (0, 64))
    stream = serialized([random.draw() for _ in range(7)])
    position = int(rng.integers(1, len(stream)))
    stream[position] = dataclasses.replace(stream[position], wait=0)
    expected = _has_race(stream)
    try:
        run(stream)
        found = False
    except OrderError as error:
        assert "no chain of semaphores" in str(error)
        found = True
    assert found == expected


def _has_race(stream: list[Instruction]) -> bool:
    """Reachability over queue order and paired semaphores; touched places as sets."""
    count = len(stream)
    before = [[False] * count for _ in range(count)]
    for i in range(count):
        for j in range(i + 1, count):
            before[i][j] = stream[i].queue == stream[j].queue
    for semaphore in range(16):
        signals = [i for i in range(count) if stream[i].signal >> semaphore & 1]
        waits = [i for i in range(count) if stream[i].wait >> semaphore & 1]
        for i, j in zip(signals, waits):
            before[i][j] = True
    for k in range(count):
        for i in range(count):
            for j in range(count):
                before[i][j] |= before[i][k] and before[k][j]
    touched = [_places(instruction) for instruction in stream]
    for i in range(count):
        for j in range(i + 1, count):
            if stream[i].queue == stream[j].queue or before[i][j]:
                continue
            (reads_i, writes_i), (reads_j, writes_j) = touched[i], touched[j]
            if writes_i & (reads_j | writes_j) or reads_i & writes_j:
                return True
    return False


Places = set[tuple[str, int]]


class _Noted(list[int]):
    """A memory that notes which of its places are read and written."""

    def __init__(self, name: str, content: list[int], reads: Places, writes: Places) -> None:
        super().__init__(content)
        self._name, self._reads, self._writes = name, reads, writes

    def _note(self, places: Places, key: int | slice) -> None:
        indexes = range(len(self))[key] if isinstance(key, slice) else [key]
        places.update((self._name, index) for index in indexes)

    def __getitem__(self, key):
        self._note(self._reads, key)
        return super().__getitem__(key)

    def __setitem__(self, key, value) -> None:
        self._note(self._writes, key)
        super().__setitem__(key, value)


def _places(instruction: Instruction) -> tuple[Places, Places]:
    """What an instruction reads and writes, noted while the reference machine executes it."""
    machine = ReferenceMachine(TINY, bytes(1 << 16))
    reads: Places = set()
    writes: Places = set()
    for name in ("dram", "activation", "weight", "parameter", "lookup", "accumulator"):
        setattr(machine, name, _Noted(name, getattr(machine, name), reads, writes))
    machine.execute(instruction)
    if isinstance(instruction, Vector) and instruction.lookup:
        # Which entries depends on data: all of the table count.
        reads |= {("lookup", 256 * (instruction.lookup - 1) + n) for n in range(256)}
    rows_written = isinstance(instruction, Vector) and instruction.destination
    if isinstance(instruction, Matrix) or rows_written:
        # Rows are changed in place, after they have been looked up: nothing reads others.
        rows = {place for place in reads if place[0] == "accumulator"}
        writes |= _written_rows(instruction, rows)
    return reads, writes


def _written_rows(instruction: Instruction, rows: Places) -> Places:
    if isinstance(instruction, Matrix):
        return rows
    assert isinstance(instruction, Vector)
    written: Places = set()
    for index in itertools.product(*[range(count) for count in instruction.counts[:4]]):
        offsets = zip(index, instruction.strides)
        written.add(("accumulator", instruction.address + sum(i * s for i, s in offsets)))
    return written
