"""STORE against byte arrays, on an AXI4 memory with random latency and a memory that refuses."""

import dataclasses
import random
from collections import deque

import pytest

from hw.transfer_bench import (
    CONFIGS,
    DRAM_BYTES,
    TINY,
    Driver,
    WriteMemory,
    memory_sizes,
    random_transfer,
    runs,
    simulate,
    stored,
)
from weft_hw.gateware.interfaces import READ_LATENCY
from weft_hw.gateware.store import StoreEngine
from weft_hw.instructions import Element, Memory, Store
from weft_hw.registers import FaultCause


def expected_after(
    instruction: Store, config, dram: bytearray, memories: dict[Memory, bytes]
) -> None:
    length = instruction.run_bytes
    source = memories[instruction.memory]
    for target, local, exists in runs(instruction):
        if exists and instruction.memory is Memory.ACCUMULATOR:
            dram[target : target + length] = stored(instruction, config, source, local)
        elif exists:
            dram[target : target + length] = source[local : local + length]


def accumulators(rng: random.Random, count: int) -> bytes:
    """Values of every size: some saturate, some are at the ends of a width."""
    edges = [sign * (1 << bits) - less for bits in (7, 15) for sign in (1, -1) for less in (0, 1)]
    values = [
        rng.choice(
            [rng.choice(edges), rng.randint(-(1 << 31), (1 << 31) - 1) >> rng.randint(0, 31)]
        )
        for _ in range(count)
    ]
    return b"".join(value.to_bytes(4, "little", signed=True) for value in values)


class Bench:
    """The engine, its DRAM, a behavioural activation memory and everything that it reports."""

    def __init__(self, config, instructions, seed, *, refuse=0.3, **timing) -> None:
        self.rng = random.Random(str(seed))
        self.config = config
        sizes = memory_sizes(config)
        self.memories = {
            Memory.ACTIVATION: self.rng.randbytes(sizes[Memory.ACTIVATION]),
            Memory.ACCUMULATOR: accumulators(self.rng, sizes[Memory.ACCUMULATOR] // 4),
        }
        self.dram = bytearray(DRAM_BYTES)
        self.engine = StoreEngine(config)
        self.port = self.engine.engine
        self.axi = WriteMemory(config, self.engine.axi, self.dram, self.rng, **timing)
        self.driver = Driver(self.port, instructions, self.rng, pause=0.3 if refuse else 0.0)
        self.refuse = refuse
        self.ports = {
            Memory.ACTIVATION: self.engine.activation,
            Memory.ACCUMULATOR: self.engine.accumulator,
        }
        self.offers = dict.fromkeys(self.ports)
        self.data: dict[Memory, deque[bytes | None]] = {
            memory: deque([None] * READ_LATENCY) for memory in self.ports
        }
        self.cycle = 0
        self.retired = 0
        self.beats = 0
        self.busy = self.bus_busy = False
        self.faults: list[tuple[int, int, int]] = []

    def drive(self, ctx) -> None:
        self.driver.drive(ctx)
        self.axi.drive(ctx)
        for memory, read in self.ports.items():
            ctx.set(read.ready, self.rng.random() >= self.refuse)
            due = self.data[memory].popleft()
            ctx.set(read.data_valid, due is not None)
            garbage = self.rng.randbytes(len(read.data) // 8)  # data hold for one cycle only
            ctx.set(read.data, int.from_bytes(due if due is not None else garbage, "little"))

    def sample(self, ctx) -> None:
        self.beats += ctx.get(self.engine.beat)
        self.driver.sample(ctx)
        self.axi.sample(ctx)
        for memory, read in self.ports.items():
            offer = ctx.get(read.address) if ctx.get(read.valid) else None
            assert self.offers[memory] in (None, offer), "a read was changed or withdrawn"
            taken = offer is not None and ctx.get(read.ready)
            self.offers[memory] = None if taken else offer
            content, width = self.memories[memory], len(read.data) // 8
            scale = width if memory is Memory.ACCUMULATOR else 1  # its addresses are rows
            self.data[memory].append(
                bytes(content[(offer * scale + i) % len(content)] for i in range(width))
                if taken
                else None
            )
        self.retired += ctx.get(self.port.retire)
        self.busy = bool(ctx.get(self.port.busy))
        self.bus_busy = bool(ctx.get(self.port.bus_busy))
        assert self.bus_busy or not self.axi.outstanding
        if ctx.get(self.port.fault.valid):
            fault = self.port.fault
            self.faults.append(
                (ctx.get(fault.cause), ctx.get(fault.instruction), ctx.get(fault.address))
            )
        self.cycle += 1

    async def step(self, ctx) -> None:
        self.drive(ctx)
        self.sample(ctx)
        await ctx.tick()


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("name", CONFIGS)
def test_random_stores_equal_byte_arrays(name: str, case: int, seed: int) -> None:
    config = CONFIGS[name]
    rng = random.Random(f"{seed} {name} {case}")
    program = [random_transfer(rng, config, Store) for _ in range(12)]
    bench = Bench(config, program, rng.random())
    model = bytearray(DRAM_BYTES)
    strobed = sum(i.run_bytes for i in program for *_, exists in runs(i) if exists)

    async def process(ctx):
        while bench.retired < len(program):
            before = bench.retired
            await bench.step(ctx)
            if bench.retired != before:
                assert bench.retired == before + 1
                check_retired(before)
            assert bench.cycle < 20000
        assert bench.dram == model
        for _ in range(20):
            await bench.step(ctx)
        assert (bench.retired, bench.faults) == (len(program), [])
        assert not bench.busy and not bench.bus_busy
        assert bench.axi.strobed_bytes == strobed
        assert bench.beats == bench.axi.beats_taken == sum(n for _, n in bench.axi.bursts)

    def check_retired(number: int) -> None:
        """Its bytes are in DRAM, but where a later instruction may already have written."""
        expected_after(program[number], config, model, bench.memories)
        later = set()
        for instruction in program[number + 1 :]:
            for target, _, exists in runs(instruction):
                if exists:
                    later |= set(range(target, target + instruction.run_bytes))
        for target, _, exists in runs(program[number]):
            if exists:
                for byte in set(range(target, target + program[number].run_bytes)) - later:
                    assert bench.dram[byte] == model[byte]

    simulate(bench.engine, process)


@pytest.mark.parametrize(
    ("store", "latency", "beats"),
    [
        (Store(run_bytes=2048, extent=1), 4, 512),
        # Runs of one beat: an address a cycle, responses 20 cycles later.
        (Store(counts=(4, 4, 4), dram_strides=(64, 256, 1024), run_bytes=4, extent=1), 20, 64),
        # Accumulators whose rows begin with a beat.
        (Store(memory=Memory.ACCUMULATOR, run_bytes=256, extent=1), 4, 64),
        (Store(memory=Memory.ACCUMULATOR, element=Element.INT16, run_bytes=512, extent=1), 4, 128),
        (Store(memory=Memory.ACCUMULATOR, element=Element.INT32, run_bytes=1024, extent=1), 4, 256),
    ],
)
def test_one_beat_a_cycle(store: Store, latency: int, beats: int) -> None:
    config = dataclasses.replace(TINY, max_outstanding=32)
    bench = Bench(config, [store, store], 1, refuse=0, latency=(latency, latency), pause=0)

    async def process(ctx):
        while bench.retired < 2:
            await bench.step(ctx)
            assert bench.cycle < 2 * beats + latency + 18
        assert bench.beats == 2 * beats

    simulate(bench.engine, process)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_bursts_are_in_flight_as_allowed(name: str) -> None:
    config = CONFIGS[name]
    rows = Store(counts=(1, 3, 4), dram_strides=(0, 1024, 256), run_bytes=1, extent=1)
    bench = Bench(config, [rows], 1, refuse=0, latency=(40, 40), pause=0)

    async def process(ctx):
        while not bench.retired:
            await bench.step(ctx)
            assert bench.cycle < 1000
        assert bench.axi.most_outstanding == config.max_outstanding

    simulate(bench.engine, process)


def sign_extended(value: int) -> int:
    return value & (1 << 40) - 1


FAULTS = {
    "count": (Store(counts=(1, 1, 0), extent=1), FaultCause.ZERO_COUNT, 0),
    "length": (Store(run_bytes=0, extent=1), FaultCause.ZERO_COUNT, 0),
    "weights": (Store(memory=Memory.WEIGHT, extent=1), FaultCause.UNSUPPORTED_FIELD, 0),
    "parameters": (Store(memory=Memory.PARAMETER, extent=1), FaultCause.UNSUPPORTED_FIELD, 0),
    "element of activations": (
        Store(element=Element.INT32, extent=1),
        FaultCause.UNSUPPORTED_FIELD,
        0,
    ),
    "below": (
        Store(address=-1, run_bytes=4, extent=1),
        FaultCause.LOCAL_ADDRESS,
        sign_extended(-1),
    ),
    "beyond": (Store(address=2045, run_bytes=4, extent=1), FaultCause.LOCAL_ADDRESS, 2045),
    "element": (
        Store(memory=Memory.ACCUMULATOR, element=3, extent=1),
        FaultCause.UNSUPPORTED_FIELD,
        0,
    ),
    "row beyond": (
        Store(memory=Memory.ACCUMULATOR, address=60, element=Element.INT32, run_bytes=68, extent=1),
        FaultCause.LOCAL_ADDRESS,
        60,
    ),
    "half element": (
        Store(memory=Memory.ACCUMULATOR, element=Element.INT32, run_bytes=6, extent=1),
        FaultCause.ALIGNMENT,
        0,
    ),
    "far": (  # only the last run exists; 20 bits of address would wrap to zero
        Store(counts=(1, 5, 1), strides=(0, 1 << 18, 0), origin=-4, steps=(0, 1, 0), extent=1),
        FaultCause.LOCAL_ADDRESS,
        1 << 20,
    ),
    "dram": (
        Store(dram_address=0, counts=(2, 1, 1), dram_strides=(-1, 0, 0), extent=1),
        FaultCause.LOCAL_ADDRESS,
        sign_extended(-1),
    ),
    "far dram": (  # likewise with 40 bits, which is what a fault's address shows
        Store(
            dram_address=(1 << 40) - 1,
            counts=(1, 1, 2),
            dram_strides=(0, 0, 1),
            origin=-1,
            steps=(0, 0, 1),
            extent=1,
        ),
        FaultCause.LOCAL_ADDRESS,
        0,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_check_faults_after_its_predecessors_retired(name: str, seed: int) -> None:
    faulty, cause, address = FAULTS[name]
    rng = random.Random(f"{seed} {name}")
    before = [random_transfer(rng, TINY, Store) for _ in range(3)]
    bench = Bench(TINY, [*before, faulty, before[0]], rng.random())
    model = bytearray(DRAM_BYTES)

    async def process(ctx):
        while not bench.faults:
            await bench.step(ctx)
            assert bench.cycle < 9000
        assert bench.faults == [(cause, 1000 + len(before), address)]
        assert bench.retired == len(before)
        for instruction in before:
            expected_after(instruction, TINY, model, bench.memories)
        if name == "dram":  # its first run is written
            model[0] = bench.memories[Memory.ACTIVATION][0]
        assert bench.dram == model
        bursts = len(bench.axi.bursts)
        for _ in range(40):
            await bench.step(ctx)
        assert len(bench.axi.bursts) == bursts
        assert (bench.retired, len(bench.faults)) == (len(before), 1)
        assert not bench.bus_busy
        assert bench.dram == model

    simulate(bench.engine, process)


def test_absent_runs_are_neither_checked_nor_written(seed: int) -> None:
    outside = Store(address=-4, dram_address=DRAM_BYTES, counts=(2, 2, 2), origin=-1, extent=1)
    bench = Bench(TINY, [outside, outside], seed)

    async def process(ctx):
        while bench.retired < 2:
            await bench.step(ctx)
            assert bench.cycle < 200
        assert not bench.axi.bursts and not bench.faults and not bench.bus_busy

    simulate(bench.engine, process)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_error_response_faults_with_the_bursts_address(name: str, seed: int) -> None:
    config = CONFIGS[name]
    beat = config.bus_bytes
    good = Store(dram_address=4096, run_bytes=4 * beat, extent=1)
    bad = Store(dram_address=8192 + beat, run_bytes=40 * beat, extent=1)
    bench = Bench(config, [good, bad, good], seed)
    block = config.burst_beats * beat
    error = (8192 + 17 * beat) // block * block
    bench.axi.errors.add(error)

    async def process(ctx):
        while not bench.faults:
            await bench.step(ctx)
            assert bench.cycle < 3000
        while bench.bus_busy:
            await bench.step(ctx)
            assert bench.cycle < 3000
        assert bench.faults == [(FaultCause.WRITE_ERROR, 1001, error)]
        assert bench.retired == 1

    simulate(bench.engine, process)


@pytest.mark.parametrize("after", range(3))
def test_stop_among_absent_runs_takes_the_responses_behind_them(after: int, seed: int) -> None:
    """An instruction's bursts are issued before those without any have retired; so stop finds one
    of these at the head of what is awaited.
    """
    run = {"run_bytes": 8, "extent": 2}
    absent = [Store(**run, origin=-1)] * 2
    program = [Store(**run), *absent, Store(**run, dram_address=64)]
    config = dataclasses.replace(TINY, max_outstanding=8)
    bench = Bench(config, program, seed, refuse=0.0, latency=(60, 60), pause=0.0)

    async def process(ctx):
        while bench.retired < 1:
            await bench.step(ctx)
            assert bench.cycle < 400
        for _ in range(after):
            await bench.step(ctx)
        assert bench.axi.outstanding
        ctx.set(bench.port.stop, 1)
        for _ in range(100):
            await bench.step(ctx)
        assert not bench.bus_busy and not bench.axi.outstanding and not bench.axi.pending

    simulate(bench.engine, process)


@pytest.mark.parametrize("when", range(1, 66, 5))
@pytest.mark.parametrize("name", CONFIGS)
def test_stop_completes_issued_bursts_without_strobes(name: str, when: int, seed: int) -> None:
    rng = random.Random(f"{seed} {name} {when}")
    config = dataclasses.replace(CONFIGS[name], max_outstanding=8)
    program = [random_transfer(rng, config, Store) for _ in range(6)]
    bench = Bench(config, program, rng.random())

    async def process(ctx):
        while bench.cycle < when:
            await bench.step(ctx)
        retired, bursts, strobed = bench.retired, len(bench.axi.bursts), bench.axi.strobed_bytes
        ctx.set(bench.port.stop, 1)
        offered = bool(ctx.get(bench.engine.axi.awvalid))
        on_offer = bool(ctx.get(bench.engine.axi.wvalid))
        for _ in range(400):
            await bench.step(ctx)
        assert bench.retired == retired
        assert len(bench.axi.bursts) == bursts + offered
        assert not bench.bus_busy and not bench.axi.outstanding and not bench.faults
        assert not bench.axi.pending and not bench.axi.early
        assert bench.beats == bench.axi.beats_taken == sum(n for _, n in bench.axi.bursts)
        # Only the beat that was already on offer keeps its strobes.
        assert bench.axi.strobed_bytes <= strobed + config.bus_bytes * on_offer

    simulate(bench.engine, process)
