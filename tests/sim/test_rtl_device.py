"""Programs written by hand on the real hardware, with a memory that stalls, errs and hangs."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from matmul_program import (
    LEFT,
    LOADED,
    MEMORY_BYTES,
    OUTPUT,
    PROGRAM,
    WEIGHTS,
    MatmulCase,
)
from sim.programs import encode, fill_state, serialized
from weft_hw import PRESETS, WeftError
from weft_hw.instructions import End, Load, Matrix, Memory, Queue
from weft_hw.registers import DISPATCH_QUEUE, FaultCause
from weft_sim.device import DeviceFault, RunResult, open_device
from weft_sim.rtl import ErrorRange, RtlDevice
from weft_sim.rtl import device as device_module
from weft_sim.rtl.build import Simulator, build_simulator

pytestmark = pytest.mark.rtl

TINY = PRESETS["tiny"]
Open = Callable[..., RtlDevice]


@pytest.fixture
def opened() -> Iterator[Open]:
    devices: list[RtlDevice] = []

    def create(**options: object) -> RtlDevice:
        devices.append(RtlDevice(TINY, memory_bytes=MEMORY_BYTES, **options))
        return devices[-1]

    yield create
    for device in devices:
        device.close()


def load(device: RtlDevice, image: dict[int, bytes]) -> None:
    for address, data in image.items():
        device.write_memory(address, data)


def run_matmul(device: RtlDevice, case: MatmulCase) -> RunResult:
    """Run the case, and compare all of DRAM with what must be there."""
    load(device, case.image())
    expected = device.memory.copy()
    expected[OUTPUT : OUTPUT + case.output_size] = case.expected().view(np.uint8).reshape(-1)
    result = device.run(PROGRAM, watchdog=2000)
    assert np.array_equal(
        device.read_memory(OUTPUT, case.output_size), expected[OUTPUT:][: case.output_size]
    )
    assert np.array_equal(device.memory, expected)
    return result


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("stall_probability", [0.0, 0.3])
def test_matrix_product(
    opened: Open, rng: np.random.Generator, rows: int, stall_probability: float, seed: int
) -> None:
    device = opened(stall_probability=stall_probability, seed=seed, latency=1 + 7 * rows)
    run_matmul(device, MatmulCase.random(TINY, rows, rng))


@pytest.mark.parametrize("weight_modes", [(8,), (8, 4, 2)], ids=str)
def test_on_chip_memories_by_address(weight_modes: tuple[int, ...], rng: np.random.Generator):
    config = dataclasses.replace(TINY, name="flexible", weight_modes=weight_modes)
    loads, filled = fill_state(config, 0)
    program = -(-filled // 64) * 64
    with RtlDevice(config, memory_bytes=program + 4096) as device:
        dram = rng.integers(0, 256, filled).astype(np.uint8)
        device.write_memory(0, dram)
        device.write_memory(program, encode(serialized(loads)))
        device.run(program, watchdog=2000)
        read = [device.on_chip.activation, device.on_chip.weight]
        found = np.concatenate(read).view(np.uint8)
        assert np.array_equal(found, dram[: len(found)])


def test_several_programs_on_one_device(opened: Open, rng: np.random.Generator) -> None:
    device = opened()
    case = MatmulCase.random(TINY, 4, rng)
    first = run_matmul(device, case)
    for rows in (2, 9):
        run_matmul(device, MatmulCase.random(TINY, rows, rng))
    again = run_matmul(device, case)
    assert again.cycles == first.cycles
    assert again.counters == first.counters


def test_counters_and_events(opened: Open, rng: np.random.Generator) -> None:
    device = opened()
    case = MatmulCase.random(TINY, 6, rng)
    result = run_matmul(device, case)
    counts = {Queue.LOAD: 3, Queue.MATRIX: 1, Queue.VECTOR: 1, Queue.STORE: 1}
    assert result.cycles is not None and result.events is not None
    for queue, count in counts.items():
        starts, retires = result.events[queue].starts, result.events[queue].retires
        assert len(starts) == len(retires) == count == result.counters[f"{queue.name}_RETIRED"]
        assert (starts < retires).all() and (np.diff(retires) > 0).all()
        assert 0 < starts[0] and retires[-1] <= result.cycles
    # Each waits for the one before.
    ends = [int(result.events[queue].retires[-1]) for queue in (Queue.MATRIX, Queue.VECTOR)]
    assert result.events[Queue.VECTOR].starts[0] >= ends[0]
    assert result.events[Queue.STORE].starts[0] >= ends[1]
    # The machine's counts against those of the memory.
    statistics = device.bus_statistics
    counters = result.counters
    assert counters["READ_BEATS"] + counters["FETCH_BEATS"] == statistics.read_beats
    assert counters["WRITE_BEATS"] == statistics.write_beats
    assert statistics.write_beats == case.output_size // TINY.bus_bytes
    assert statistics.largest_reads_outstanding <= 2 * TINY.max_outstanding


def test_cycles_are_counted_from_start_to_interrupt(opened: Open, rng: np.random.Generator) -> None:
    device = opened()
    result = run_matmul(device, MatmulCase.random(TINY, 3, rng))
    outside = device.cycles_outside
    # The machine starts counting when the write has passed its register bus.
    assert abs(result.cycles - outside) <= 3


def test_latency_and_bandwidth_show(opened: Open, rng: np.random.Generator) -> None:
    case = MatmulCase.random(TINY, 8, rng)
    fast, slow, narrow = (
        run_matmul(opened(**options), case).cycles
        for options in ({"latency": 1}, {"latency": 100}, {"latency": 1, "beat_interval": 4})
    )
    assert slow > fast + 3 * 99  # fetch, load and store are in series
    assert narrow > fast + case.output_size // TINY.bus_bytes


@pytest.mark.parametrize(
    ("ranges", "cause", "queue", "address"),
    [
        (ErrorRange(LEFT, LEFT + 1), FaultCause.READ_ERROR, Queue.LOAD, LEFT),
        (ErrorRange(WEIGHTS, WEIGHTS + 8), FaultCause.READ_ERROR, Queue.LOAD, WEIGHTS),
        (ErrorRange(OUTPUT, OUTPUT + 4), FaultCause.WRITE_ERROR, Queue.STORE, OUTPUT),
        (ErrorRange(PROGRAM, PROGRAM + 4), FaultCause.FETCH_ERROR, DISPATCH_QUEUE, PROGRAM),
    ],
    ids=["load", "second load", "store", "fetch"],
)
@pytest.mark.parametrize("stall_probability", [0.0, 0.4])
def test_bus_errors_fault_and_a_reset_recovers(
    opened: Open,
    rng: np.random.Generator,
    ranges: ErrorRange,
    cause: FaultCause,
    queue: int,
    address: int,
    stall_probability: float,
) -> None:
    case = MatmulCase.random(TINY, 5, rng)
    device = opened(error_ranges=[ranges], stall_probability=stall_probability)
    load(device, case.image())
    with pytest.raises(DeviceFault) as caught:
        device.run(PROGRAM, watchdog=2000)
    assert (caught.value.cause, caught.value.queue) == (cause, queue)
    assert caught.value.address == address
    with pytest.raises(WeftError, match=r"reset\(\) must come before a run"):
        device.run(PROGRAM)
    device.set_error_ranges([])
    device.memory[OUTPUT:] = 0
    device.reset()
    run_matmul(device, case)


def test_the_faulting_instruction_is_named(opened: Open, rng: np.random.Generator) -> None:
    case = MatmulCase.random(TINY, 5, rng)
    device = opened(error_ranges=[ErrorRange(WEIGHTS, WEIGHTS + 1)])
    load(device, case.image())
    with pytest.raises(DeviceFault, match="READ_ERROR: .*LOAD queue, instruction at byte 0x30"):
        device.run(PROGRAM)


@pytest.mark.parametrize("address", [LEFT, OUTPUT, PROGRAM], ids=["load", "store", "fetch"])
def test_a_hung_bus_faults_and_a_reset_recovers(
    opened: Open, rng: np.random.Generator, address: int
) -> None:
    case = MatmulCase.random(TINY, 5, rng)
    device = opened(error_ranges=[ErrorRange(address, address + 4, hangs=True)])
    load(device, case.image())
    with pytest.raises(DeviceFault) as caught:
        device.run(PROGRAM, watchdog=500)
    assert caught.value.cause == FaultCause.BUS_HUNG
    device.set_error_ranges([])
    device.memory[OUTPUT:] = 0
    device.reset()
    run_matmul(device, case)


def test_a_wait_that_nobody_signals_faults(opened: Open, rng: np.random.Generator) -> None:
    device = opened()
    program = Matrix(wait=LOADED).encode() + End().encode()
    load(device, {PROGRAM: program})
    with pytest.raises(DeviceFault) as caught:
        device.run(PROGRAM, watchdog=300)
    assert caught.value.cause == FaultCause.WATCHDOG
    assert caught.value.queue == Queue.MATRIX
    assert caught.value.instruction_offset == 0
    device.reset()
    run_matmul(device, MatmulCase.random(TINY, 2, rng))


def test_dram_beyond_the_memory_faults(opened: Open) -> None:
    device = opened()
    beyond = Load(dram_address=MEMORY_BYTES, run_bytes=4, memory=Memory.ACTIVATION, extent=1)
    load(device, {PROGRAM: beyond.encode() + End().encode()})
    with pytest.raises(DeviceFault) as caught:
        device.run(PROGRAM)
    assert (caught.value.cause, caught.value.address) == (FaultCause.READ_ERROR, MEMORY_BYTES)


def test_an_unknown_opcode_faults(opened: Open) -> None:
    device = opened()
    load(device, {PROGRAM: b"\xff" * 16})
    with pytest.raises(DeviceFault) as caught:
        device.run(PROGRAM)
    assert (caught.value.cause, caught.value.queue) == (FaultCause.BAD_OPCODE, DISPATCH_QUEUE)


def test_two_devices_do_not_share_anything(opened: Open, rng: np.random.Generator) -> None:
    one, other = opened(latency=3), opened(latency=50)
    cases = [MatmulCase.random(TINY, rows, rng) for rows in (3, 7)]
    for case in cases:
        run_matmul(one, case)
        run_matmul(other, cases[0])


def test_other_hardware_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    verilog = device_module.machine_verilog(TINY)
    other = dataclasses.replace(TINY, name="other", queue_depth=4)
    monkeypatch.setattr(device_module, "machine_verilog", lambda config, progress: verilog)
    with pytest.raises(WeftError, match="generated from another configuration .* other"):
        RtlDevice(other, memory_bytes=MEMORY_BYTES)


def test_a_damaged_library_is_built_anew(
    opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged = tmp_path / "simulator.so"
    damaged.write_bytes(b"\x7fELF cut short")
    answers = [Simulator(damaged, "damaged")]
    discarded: list[str] = []
    monkeypatch.setattr(Simulator, "discard", lambda self: discarded.append(self.key))

    def build(verilog: str, **options: object) -> Simulator:
        return answers.pop() if answers else build_simulator(verilog, **options)

    monkeypatch.setattr(device_module, "build_simulator", build)
    assert opened().read_register("STATUS") == 0
    assert discarded == ["damaged"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory_bytes": 0}, "`memory_bytes` must be a positive multiple of 4"),
        ({"memory_bytes": 6}, "`memory_bytes` must be a positive multiple of 4"),
        ({"latency": 0}, "`latency` must be a positive integer, not 0"),
        ({"trace": "wave.txt"}, "must end in .vcd or .fst, not 'wave.txt'"),
        ({"trace": "/no/such/folder/wave.vcd"}, "there is no folder /no/such/folder"),
    ],
)
def test_wrong_options(options: dict[str, object], text: str) -> None:
    with pytest.raises(WeftError, match=text):
        open_device("rtl", TINY, **{"memory_bytes": MEMORY_BYTES, **options})


def test_wrong_addresses(opened: Open) -> None:
    device = opened()
    with pytest.raises(WeftError, match="8 bytes at address 0xfffc are not inside"):
        device.write_memory(MEMORY_BYTES - 4, bytes(8))
    with pytest.raises(WeftError, match="are not inside the device's memory of 65,536 bytes"):
        device.read_memory(-4, 4)
    with pytest.raises(WeftError, match="must be a multiple of 4"):
        device.run(2)


PROBE = """
import sys
from weft_hw import PRESETS
from weft_sim.device import open_device
open_device("rtl", PRESETS["tiny"], memory_bytes=4096).close()
print(*sys.modules)
"""


def test_a_second_start_needs_no_amaranth(opened: Open) -> None:
    opened()  # now it is in the cache
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"amaranth", "cocotb", "torch"} & set(done.stdout.split())
