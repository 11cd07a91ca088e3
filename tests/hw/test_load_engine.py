"""LOAD against byte arrays, on an AXI4 memory with random latency and memories that refuse."""

import dataclasses
import random

import pytest

from hw.transfer_bench import (
    CONFIGS,
    DRAM_BYTES,
    TINY,
    Driver,
    ReadMemory,
    loaded,
    memory_sizes,
    random_transfer,
    runs,
    simulate,
)
from weft_hw.gateware.load import LoadEngine
from weft_hw.instructions import Element, Load, Memory
from weft_hw.registers import FaultCause


def expected_after(
    instruction: Load, config, memories: dict[Memory, bytearray], dram: bytes
) -> None:
    target = memories[instruction.memory]
    length = instruction.run_bytes
    for source, local, exists in runs(instruction):
        if instruction.memory is Memory.ACCUMULATOR:
            data = dram[source : source + length] if exists else b""
            loaded(instruction, config, target, local, data)
            continue
        fill = bytes([instruction.fill & 0xFF]) * length
        target[local : local + length] = dram[source : source + length] if exists else fill


class Bench:
    """The engine, its DRAM, behavioural on-chip memories and everything that it reports."""

    def __init__(self, config, instructions, seed, *, refuse=0.3, **timing) -> None:
        self.rng = random.Random(str(seed))
        self.config = config
        self.dram = self.rng.randbytes(DRAM_BYTES)
        self.engine = LoadEngine(config)
        self.port = self.engine.engine
        self.axi = ReadMemory(config, self.engine.axi, self.dram, self.rng, **timing)
        self.driver = Driver(self.port, instructions, self.rng, pause=0.3 if refuse else 0.0)
        self.refuse = refuse
        self.ports = {
            Memory.ACTIVATION: self.engine.activation,
            Memory.WEIGHT: self.engine.weight,
            Memory.PARAMETER: self.engine.parameter,
            Memory.LOOKUP: self.engine.lookup,
            Memory.ACCUMULATOR: self.engine.accumulator,
        }
        self.memories = {m: bytearray(n) for m, n in memory_sizes(config).items()}
        self.offers = dict.fromkeys(self.ports)
        self.cycle = 0
        self.retired = 0
        self.beats = 0
        self.busy = self.bus_busy = False
        self.faults: list[tuple[int, int, int]] = []

    def drive(self, ctx) -> None:
        self.driver.drive(ctx)
        self.axi.drive(ctx)
        for memory, port in self.ports.items():
            always = memory is Memory.PARAMETER
            ctx.set(port.ready, always or self.rng.random() >= self.refuse)

    def sample(self, ctx) -> None:
        self.beats += ctx.get(self.engine.beat)
        self.driver.sample(ctx)
        self.axi.sample(ctx)
        for memory, port in self.ports.items():
            offer = None
            if ctx.get(port.valid):
                offer = (ctx.get(port.address), ctx.get(port.data), ctx.get(port.strobe))
            if self.offers[memory] is not None:
                assert offer == self.offers[memory], "a write was changed or withdrawn"
            self.offers[memory] = offer
            if offer is not None and ctx.get(port.ready):
                self.offers[memory] = None
                content = self.memories[memory]
                address, data, strobe = offer
                # The strobe counts bytes; of the accumulators' rows, int32 lanes.
                width = 4 if memory is Memory.ACCUMULATOR else 1
                row = address * self.config.columns if width == 4 else address
                for lane in range(len(port.strobe)):
                    if strobe >> lane & 1:
                        for byte in range(width * lane, width * lane + width):
                            place = (row * width + byte) % len(content)
                            content[place] = data >> 8 * byte & 0xFF
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
def test_random_loads_equal_byte_arrays(name: str, case: int, seed: int) -> None:
    config = CONFIGS[name]
    rng = random.Random(f"{seed} {name} {case}")
    program = [random_transfer(rng, config, Load) for _ in range(12)]
    bench = Bench(config, program, rng.random())
    model = {memory: bytearray(len(c)) for memory, c in bench.memories.items()}

    async def process(ctx):
        while bench.retired < len(program):
            before = bench.retired
            earlier = {memory: bytes(content) for memory, content in bench.memories.items()}
            await bench.step(ctx)
            if bench.retired != before:
                # In the cycle before, every earlier instruction's bytes, and no later one's, were
                # in the memories.
                assert bench.retired == before + 1
                expected_after(program[before], config, model, bench.dram)
                assert earlier == model
            assert bench.cycle < 20000
        for _ in range(20):
            await bench.step(ctx)
        assert (bench.retired, bench.faults) == (len(program), [])
        assert not bench.busy and not bench.bus_busy
        assert bench.beats == bench.axi.beats_sent == sum(n for _, n in bench.axi.bursts)

    simulate(bench.engine, process)


@pytest.mark.parametrize("memory", [Memory.ACTIVATION, Memory.WEIGHT, Memory.ACCUMULATOR])
def test_a_fault_waits_for_the_writes_before_it(memory: Memory) -> None:
    """The memory refuses for a long time while the next instruction's fault is known already."""
    program = [Load(memory=memory, run_bytes=8, fill=7), Load(run_bytes=0)]
    bench = Bench(TINY, program, 1, refuse=0.0)

    async def process(ctx):
        bench.refuse = 1.0
        for _ in range(100):
            await bench.step(ctx)
        assert (bench.faults, bench.retired) == ([], 0)
        bench.refuse = 0.0
        for _ in range(20):
            await bench.step(ctx)
        assert bench.faults == [(FaultCause.ZERO_COUNT, 1001, 0)]
        assert bench.retired == 1
        assert any(bench.memories[memory])

    simulate(bench.engine, process)


@pytest.mark.parametrize(
    ("load", "latency", "beats"),
    [
        # One aligned run of 512 beats: bursts follow each other without a gap.
        (Load(run_bytes=2048, extent=1), 4, 512),
        # 64 runs of one beat at latency 20: one address a cycle keeps the bus full.
        (Load(counts=(4, 4, 4), dram_strides=(64, 256, 1024), run_bytes=4, extent=1), 20, 64),
        # Accumulators whose rows begin with a beat.
        (Load(memory=Memory.ACCUMULATOR, run_bytes=256, extent=1), 4, 64),
        (Load(memory=Memory.ACCUMULATOR, element=Element.INT16, run_bytes=512, extent=1), 4, 128),
        (Load(memory=Memory.ACCUMULATOR, element=Element.INT32, run_bytes=1024, extent=1), 4, 256),
    ],
)
def test_one_beat_a_cycle(load: Load, latency: int, beats: int) -> None:
    config = dataclasses.replace(TINY, max_outstanding=32)
    bench = Bench(config, [load, load], 1, refuse=0, latency=(latency, latency), pause=0)

    async def process(ctx):
        load_cycles = 2 * beats + latency
        while bench.retired < 2:
            await bench.step(ctx)
            assert bench.cycle < load_cycles + 10
        assert bench.beats == 2 * beats

    simulate(bench.engine, process)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_bursts_are_in_flight_as_allowed(name: str) -> None:
    config = CONFIGS[name]
    rows = Load(counts=(1, 3, 4), dram_strides=(0, 1024, 256), run_bytes=1, extent=1)
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
    "count": (Load(counts=(1, 0, 1)), FaultCause.ZERO_COUNT, 0),
    "length": (Load(run_bytes=0), FaultCause.ZERO_COUNT, 0),
    "element of activations": (Load(element=Element.INT16), FaultCause.UNSUPPORTED_FIELD, 0),
    "below": (Load(address=-1, run_bytes=4), FaultCause.LOCAL_ADDRESS, sign_extended(-1)),
    "beyond": (Load(address=2045, run_bytes=4, extent=1), FaultCause.LOCAL_ADDRESS, 2045),
    "beyond weights": (
        Load(memory=Memory.WEIGHT, counts=(1, 3, 1), strides=(0, 512, 0), run_bytes=2),
        FaultCause.LOCAL_ADDRESS,
        1024,
    ),
    "absent run": (
        Load(address=2047, run_bytes=2, origin=-1, extent=1),  # LOAD would fill it
        FaultCause.LOCAL_ADDRESS,
        2047,
    ),
    "dram below": (
        Load(dram_address=8, counts=(1, 1, 2), dram_strides=(0, 0, -16), extent=2, run_bytes=2),
        FaultCause.LOCAL_ADDRESS,
        sign_extended(-8),
    ),
    "dram beyond": (
        Load(dram_address=(1 << 32) - 2, run_bytes=3, extent=1),
        FaultCause.LOCAL_ADDRESS,
        (1 << 32) - 2,
    ),
    "row below": (
        Load(memory=Memory.ACCUMULATOR, address=-1, run_bytes=4),
        FaultCause.LOCAL_ADDRESS,
        sign_extended(-1),
    ),
    "row beyond": (
        Load(memory=Memory.ACCUMULATOR, address=63, element=Element.INT16, run_bytes=10),
        FaultCause.LOCAL_ADDRESS,
        63,
    ),
    "last row, then beyond": (
        Load(
            memory=Memory.ACCUMULATOR,
            counts=(1, 1, 2),
            address=62,
            strides=(0, 0, 1),
            element=Element.INT32,
            run_bytes=32,
        ),
        FaultCause.LOCAL_ADDRESS,
        63,
    ),
    "half element": (
        Load(memory=Memory.ACCUMULATOR, element=Element.INT16, run_bytes=3),
        FaultCause.ALIGNMENT,
        0,
    ),
    "element unaligned": (
        Load(memory=Memory.ACCUMULATOR, element=Element.INT32, dram_address=2, run_bytes=4),
        FaultCause.ALIGNMENT,
        0,
    ),
    "element stride unaligned": (
        Load(
            memory=Memory.ACCUMULATOR,
            element=Element.INT32,
            dram_strides=(0, 0, -6),
            run_bytes=4,
        ),
        FaultCause.ALIGNMENT,
        0,
    ),
    "run unaligned": (
        Load(memory=Memory.PARAMETER, run_bytes=6),
        FaultCause.ALIGNMENT,
        0,
    ),
    "stride unaligned": (
        Load(memory=Memory.PARAMETER, run_bytes=4, dram_strides=(0, 2, 0)),
        FaultCause.ALIGNMENT,
        0,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_check_faults_after_its_predecessors_retired(name: str, seed: int) -> None:
    faulty, cause, address = FAULTS[name]
    rng = random.Random(f"{seed} {name}")
    if faulty.extent == 0 and "absent" not in name:
        faulty = dataclasses.replace(faulty, extent=4095)
    before = [random_transfer(rng, TINY, Load) for _ in range(3)]
    bench = Bench(TINY, [*before, faulty, before[0]], rng.random())
    model = {memory: bytearray(len(c)) for memory, c in bench.memories.items()}

    async def process(ctx):
        while not bench.faults:
            await bench.step(ctx)
            assert bench.cycle < 5000
        assert bench.faults == [(cause, 1000 + len(before), address)]
        assert bench.retired == len(before)
        for instruction in before:
            expected_after(instruction, TINY, model, bench.dram)
        if cause is not FaultCause.LOCAL_ADDRESS:  # its earlier runs are written
            assert bench.memories == model
        bursts = len(bench.axi.bursts)
        for _ in range(40):
            await bench.step(ctx)
        assert len(bench.axi.bursts) == bursts
        assert (bench.retired, len(bench.faults)) == (len(before), 1)
        assert not bench.bus_busy

    simulate(bench.engine, process)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_error_response_faults_with_the_bursts_address(name: str, seed: int) -> None:
    config = CONFIGS[name]
    beat = config.bus_bytes
    good = Load(dram_address=4096, run_bytes=4 * beat, extent=1)
    bad = Load(dram_address=8192 + beat, address=64, run_bytes=8 * beat, extent=1)
    bench = Bench(config, [good, bad, good], seed)
    error = 8192 + 6 * beat
    bench.axi.errors.add(error)

    async def process(ctx):
        while not bench.faults:
            await bench.step(ctx)
            assert bench.cycle < 3000
        while bench.bus_busy:
            await bench.step(ctx)
            assert bench.cycle < 3000
        (burst,) = [a for a, n in bench.axi.bursts if a <= error < a + n * beat]
        assert bench.faults == [(FaultCause.READ_ERROR, 1001, burst)]
        assert bench.retired == 1
        # Everything before the beat with the error is written, nothing from it on.
        content = bench.memories[Memory.ACTIVATION]
        assert content[64 : 64 + 5 * beat] == bench.dram[8192 + beat : 8192 + 6 * beat]
        assert not any(content[64 + 5 * beat :])

    simulate(bench.engine, process)


@pytest.mark.parametrize("when", range(1, 100, 3))
def test_stop_issues_nothing_and_drains(when: int, seed: int) -> None:
    rng = random.Random(f"{seed} {when}")
    config = dataclasses.replace(TINY, max_outstanding=8)
    program = [random_transfer(rng, config, Load) for _ in range(6)]
    bench = Bench(config, program, rng.random())

    async def process(ctx):
        while bench.cycle < when:
            await bench.step(ctx)
        # One address may be on offer (or about to be): it has to stay, and is then the last one.
        retired, bursts = bench.retired, len(bench.axi.bursts)
        ctx.set(bench.port.stop, 1)
        offered = bench.axi.channel.offered is not None or ctx.get(bench.engine.axi.arvalid)
        for _ in range(200):
            await bench.step(ctx)
        assert bench.retired == retired
        assert len(bench.axi.bursts) == bursts + bool(offered)
        assert not bench.bus_busy and not bench.axi.outstanding and not bench.faults

    simulate(bench.engine, process)
