"""The memory model and its rule checker, against a bus master that the tests know in full."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from weft_sim.rtl import (
    BusModel,
    ErrorRange,
    Simulation,
    SimulationError,
    Variant,
    build_simulator,
)

pytestmark = pytest.mark.rtl

CONTROL, SOURCE, DESTINATION, BURSTS, BEATS, MISBEHAVE, WORST, BAD_LAST = range(0, 0x20, 4)
LOAD, STORE = 0, 3  # the queues whose events the master uses for its two phases
BEAT = 8
MEMORY_BYTES = 0x10000
FROM, TO = 0x1000, 0x8000

READ_START, WRITE_START = 1, 1  # cycles from the phase's cause to its first address handshake


@pytest.fixture(scope="module")
def library() -> Path:
    verilog = (Path(__file__).parent / "bus_exerciser.v").read_text()
    return build_simulator(verilog, variant=Variant(waveform="vcd", assertions=True)).library


class Master:
    """The copying master with its memory."""

    def __init__(self, library: Path, rng: np.random.Generator, bus: BusModel) -> None:
        self.memory = rng.integers(0, 256, MEMORY_BYTES).astype(np.uint8)
        self.before = self.memory.copy()
        self.simulation = Simulation(library, self.memory, bus)
        self.simulation.reset()

    def copy(
        self, *, bursts: int, beats: int, source: int = FROM, misbehave: int = 0, limit: int = 10**6
    ) -> int:
        """Run the copy; its cycles."""
        for offset, value in (
            (SOURCE, source),
            (DESTINATION, TO),
            (BURSTS, bursts),
            (BEATS, beats),
            (MISBEHAVE, misbehave),
        ):
            self.simulation.write_register(offset, value)
        return self.simulation.run(CONTROL, 1, idle_limit=limit)

    def check_copied(self, size: int, source: int = FROM) -> None:
        expected = self.before.copy()
        expected[TO + 1 : TO + size] = self.before[source + 1 : source + size]
        assert np.array_equal(self.memory, expected)  # the strobe leaves out the very first byte
        assert self.simulation.read_register(WORST) == 0
        assert self.simulation.read_register(BAD_LAST) == 0

    def phase_cycles(self) -> tuple[int, int]:
        """Cycles of the reading and of the writing phase, by the master's events."""
        events = [
            self.simulation.events(queue, retirements=retirements)
            for queue in (LOAD, STORE)
            for retirements in (False, True)
        ]
        assert [len(entry) for entry in events] == [1, 1, 1, 1]
        read_start, read_end, write_start, write_end = (int(entry[0]) for entry in events)
        assert read_start == 1
        return read_end - read_start, write_end - write_start


@pytest.fixture
def make(library: Path, rng: np.random.Generator) -> Iterator:
    masters: list[Master] = []

    def create(**bus: object) -> Master:
        masters.append(Master(library, rng, BusModel(**bus)))
        return masters[-1]

    yield create
    for master in masters:
        master.simulation.close()


@pytest.mark.parametrize("latency", [1, 20, 100])
@pytest.mark.parametrize("interval", [1, 3])
def test_time_is_latency_plus_beats(make, latency: int, interval: int) -> None:
    master = make(latency=latency, beat_interval=interval)
    bursts, beats = 5, 7
    cycles = master.copy(bursts=bursts, beats=beats)
    reading, writing = master.phase_cycles()
    # The first address is taken in the phase's first cycle; bursts overlap, so that the latency
    # shows once; the master's event follows the last transfer by one cycle.
    steady = (bursts * beats - 1) * interval
    assert reading == latency + steady + 1
    assert writing == steady + latency + 1
    assert cycles == 1 + reading + writing
    master.check_copied(bursts * beats * BEAT)
    statistics = master.simulation.statistics
    assert (statistics.read_bursts, statistics.read_beats) == (bursts, bursts * beats)
    assert (statistics.write_bursts, statistics.write_beats) == (bursts, bursts * beats)
    assert statistics.largest_reads_outstanding == bursts


def test_separate_write_latency(make) -> None:
    master = make(latency=5, write_latency=50)
    master.copy(bursts=2, beats=4)
    assert master.phase_cycles() == (5 + 7 + 1, 50 + 7 + 1)


def test_one_outstanding_burst_pays_the_latency_each_time(make) -> None:
    master = make(latency=30, outstanding=1)
    master.copy(bursts=4, beats=2)
    reading, _ = master.phase_cycles()
    assert 4 * 30 < reading <= 4 * (30 + 2 + 2)
    assert master.simulation.statistics.largest_reads_outstanding == 1
    assert master.simulation.statistics.largest_writes_outstanding == 1
    master.check_copied(4 * 2 * BEAT)


@pytest.mark.parametrize("case", range(4))
def test_stalls_by_seed(make, case: int, seed: int) -> None:
    def cycles(stall_seed: int, probability: float) -> int:
        master = make(stall_probability=probability, seed=stall_seed)
        total = master.copy(bursts=9, beats=16)
        master.check_copied(9 * 16 * BEAT)
        return total

    stall_seed = 1000 * seed + case
    smooth = cycles(stall_seed, 0.0)
    bumpy = cycles(stall_seed, 0.4)
    assert bumpy > 1.3 * smooth
    assert cycles(stall_seed, 0.4) == bumpy
    assert len({cycles(stall_seed + i, 0.4) for i in range(5)}) > 1


@pytest.mark.parametrize(
    ("misbehave", "text"),
    [
        (1, "AR: valid was withdrawn"),
        (2, "W: the payload changed"),
        (3, "W: last is set before the burst's last beat"),
        (4, "AR: size is 4 bytes on a bus of 8"),
        (5, "AR: burst type is 0"),
        (6, "W: last is missing"),
        (8, "AR: the payload changed"),
    ],
)
def test_a_broken_rule_is_reported(make, misbehave: int, text: str) -> None:
    master = make(stall_probability=0.5, seed=3)
    with pytest.raises(SimulationError, match="broke a rule of AXI4: cycle [0-9]+, " + text):
        master.copy(bursts=6, beats=4, misbehave=misbehave)
    master.simulation.reset()
    assert master.copy(bursts=1, beats=1) > 0  # good again after a reset


def test_a_burst_across_four_kib_is_reported(make) -> None:
    master = make()
    with pytest.raises(SimulationError, match="burst at 0xff8 of 2 beats crosses 4 KiB"):
        master.copy(bursts=1, beats=2, source=0xFF8)


def test_an_unaligned_burst_is_reported(make) -> None:
    with pytest.raises(SimulationError, match="0x1004 is not aligned to a beat"):
        make().copy(bursts=1, beats=2, source=0x1004)


def test_a_failed_assertion_is_reported(make) -> None:
    with pytest.raises(SimulationError, match="assertion"):
        make().copy(bursts=1, beats=1, misbehave=7)


def test_error_ranges(make) -> None:
    master = make()
    inside = FROM + 3 * BEAT
    master.simulation.set_error_ranges([ErrorRange(inside, inside + 1, writes=False)])
    master.copy(bursts=1, beats=8)
    assert master.simulation.read_register(WORST) == 2  # SLVERR

    master.simulation.set_error_ranges([ErrorRange(inside, inside + 1, reads=False)])
    master.copy(bursts=1, beats=8)
    assert master.simulation.read_register(WORST) == 0

    written = TO + 5 * BEAT
    master.memory[:] = master.before
    master.simulation.set_error_ranges([ErrorRange(written, written + BEAT, reads=False)])
    master.copy(bursts=1, beats=8)
    assert master.simulation.read_register(WORST) == 2
    expected = master.before.copy()
    expected[TO + 1 : TO + 8 * BEAT] = master.before[FROM + 1 : FROM + 8 * BEAT]
    expected[written : written + BEAT] = master.before[written : written + BEAT]
    assert np.array_equal(master.memory, expected)  # the refused beat alone is not written


def test_addresses_beyond_the_memory_answer_a_decoding_error(make) -> None:
    master = make()
    master.copy(bursts=2, beats=2, source=MEMORY_BYTES - 2 * BEAT)
    assert master.simulation.read_register(WORST) == 3  # DECERR
    assert not master.memory[TO + 2 * BEAT : TO + 4 * BEAT].any()


@pytest.mark.parametrize("direction", ["reads", "writes"])
def test_a_hanging_bus_does_not_hang_the_simulator(make, direction: str) -> None:
    master = make()
    address = FROM if direction == "reads" else TO
    master.simulation.set_error_ranges([ErrorRange(address, address + 1, hangs=True)])
    with pytest.raises(SimulationError, match="nothing was heard of the machine"):
        master.copy(bursts=2, beats=2, limit=1000)
    master.simulation.set_error_ranges([])
    master.memory[:] = master.before
    master.simulation.reset()
    master.copy(bursts=2, beats=2)
    master.check_copied(4 * BEAT)


def test_a_register_error_is_reported(make) -> None:
    with pytest.raises(SimulationError, match="write of the register at offset 256"):
        make().simulation.write_register(0x100, 1)


def test_waveform_of_a_window(make, tmp_path: Path) -> None:
    path = tmp_path / "wave.vcd"
    master = make()
    master.simulation.open_waveform(path, (10, 12))
    master.simulation.reset()
    master.simulation.idle(50)  # more than the window, before any start
    master.copy(bursts=1, beats=4)
    master.simulation.close()
    text = path.read_text()
    assert "arvalid" in text and "interrupt" in text
    times = [int(line[1:]) for line in text.splitlines() if line.startswith("#")]
    assert len(times) == 6  # two a cycle, three cycles
    assert min(times) >= 2 * 60


def test_models_out_of_range() -> None:
    with pytest.raises(ValueError, match="`latency` must be a positive integer, not 0"):
        BusModel(latency=0)
    with pytest.raises(ValueError, match="`stall_probability` must be at least 0 and below 1"):
        BusModel(stall_probability=1.0)
