"""What the benches of LOAD and STORE share: programs, their meaning, and AXI4 memory models.

The meaning of an instruction is written here from docs/machine.md, by plain loops over bytes.
"""

import dataclasses
import itertools
import random
from collections import deque
from collections.abc import Iterator

from amaranth.hdl import Value
from amaranth.sim import Simulator

from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES
from weft_hw.instructions import Element, Load, Memory, Store

TINY = PRESETS["tiny"]
CONFIGS = {
    "tiny": TINY,
    "bus wider than rows": dataclasses.replace(
        TINY, bus_width=64, max_outstanding=4, burst_beats=1
    ),
    "line wider than bus": dataclasses.replace(
        TINY, columns=8, vector_lanes=8, burst_beats=16, max_outstanding=1
    ),
    "beat of several rows": dataclasses.replace(
        TINY, columns=2, vector_lanes=2, bus_width=64, burst_beats=2
    ),
}
DRAM_BYTES = 1 << 15


def memory_sizes(config: AcceleratorConfig) -> dict[Memory, int]:
    """Bytes of each memory; accumulators are little-endian int32, row after row."""
    return {
        Memory.ACCUMULATOR: 4 * config.columns * config.accumulator_total_rows,
        Memory.ACTIVATION: config.activation_bytes,
        Memory.WEIGHT: config.weight_bytes,
        Memory.PARAMETER: config.parameter_bytes,
        Memory.LOOKUP: LOOKUP_TABLES * LOOKUP_ENTRIES,
    }


def runs(instruction: Load | Store) -> Iterator[tuple[int, int, bool]]:
    """(DRAM address, on-chip address, exists) of each run in order."""
    for index in itertools.product(*map(range, instruction.counts)):
        dram = instruction.dram_address
        local = instruction.address
        coordinate = instruction.origin
        for i, position in enumerate(index):
            dram += position * instruction.dram_strides[i]
            local += position * instruction.strides[i]
            coordinate += position * instruction.steps[i]
        yield dram, local, 0 <= coordinate < instruction.extent


def in_range(config: AcceleratorConfig, instruction: Load | Store, local: int) -> bool:
    """Whether a run at that on-chip address lies inside its memory."""
    length, size = instruction.run_bytes, memory_sizes(config)[instruction.memory]
    if instruction.memory is Memory.ACCUMULATOR:
        elements = length // (1, 2, 4)[instruction.element]
        length, size = -(-elements // config.columns), config.accumulator_total_rows
    return 0 <= local and local + length <= size


def elements_of(instruction: Load | Store, config: AcceleratorConfig, local: int) -> list[int]:
    """Where in the accumulators' bytes each element of a run lies."""
    count = instruction.run_bytes // (1, 2, 4)[instruction.element]
    return [4 * (local * config.columns + number) for number in range(count)]


def loaded(
    instruction: Load, config: AcceleratorConfig, memory: bytearray, local: int, source: bytes
) -> None:
    """What a run does to accumulators; ``source`` is empty if the run does not exist."""
    width = (1, 2, 4)[instruction.element]
    for number, place in enumerate(elements_of(instruction, config, local)):
        data = source[number * width : (number + 1) * width]
        value = int.from_bytes(data, "little", signed=True) if source else instruction.fill
        memory[place : place + 4] = value.to_bytes(4, "little", signed=True)


def stored(instruction: Store, config: AcceleratorConfig, memory: bytes, local: int) -> bytes:
    """The bytes of a run of accumulators."""
    width = (1, 2, 4)[instruction.element]
    limit = 1 << (8 * width - 1)
    result = b""
    for place in elements_of(instruction, config, local):
        value = int.from_bytes(memory[place : place + 4], "little", signed=True)
        value = limit - 1 if value >= limit else max(value, -limit)
        result += value.to_bytes(width, "little", signed=True)
    return result


def random_transfer(
    rng: random.Random, config: AcceleratorConfig, kind: type[Load] | type[Store]
) -> Load | Store:
    """A legal instruction, often with absent runs, unaligned ends and overlapping runs."""
    sizes = memory_sizes(config)
    while True:
        memory = rng.choice([Memory.ACTIVATION, Memory.ACCUMULATOR] if kind is Store else [*sizes])
        rows = memory is Memory.ACCUMULATOR
        element = rng.choice(list(Element)) if rows else Element.INT8
        by_beats = memory in (Memory.PARAMETER, Memory.LOOKUP)
        grain = config.bus_bytes if by_beats else (1, 2, 4)[element]
        reach = rng.choice([8, 64, 300])
        local_reach = rng.choice([1, 4, 12]) if rows else reach
        local_grain = 1 if rows else grain
        length = rng.choice([1, 2, 3, rng.randint(1, 24), rng.randint(1, 150)])

        def rounded(value: int, grain: int = grain) -> int:
            return value // grain * grain

        page = 4096 * rng.randint(1, DRAM_BYTES // 4096 - 2)
        last_address = config.accumulator_total_rows if rows else sizes[memory]
        instruction = kind(
            memory=memory,
            element=element,
            dram_address=rounded(
                rng.choice([page - rng.randint(0, 40), rng.randrange(DRAM_BYTES)])
            ),
            counts=tuple(rng.choice([1, 1, 2, 3]) for _ in range(3)),
            dram_strides=tuple(rounded(rng.randint(-reach, reach)) for _ in range(3)),
            run_bytes=max(grain, rounded(length)),
            address=rounded(rng.randrange(last_address), local_grain),
            strides=tuple(
                rounded(rng.randint(-local_reach, local_reach), local_grain) for _ in range(3)
            ),
            origin=rng.randint(-2, 2),
            extent=rng.choice([0, 1, 2, 4, 4095]),
            steps=tuple(rng.choice([-1, 0, 0, 1, 2]) for _ in range(3)),
            fill=rng.randint(-128, 127),
        )
        last = instruction.run_bytes - 1
        if all(
            (not exists or 0 <= dram and dram + last < DRAM_BYTES)
            and ((kind is Store and not exists) or in_range(config, instruction, local))
            for dram, local, exists in runs(instruction)
        ):
            return instruction


class Driver:
    """Offers instructions to an engine, one after the other with random pauses."""

    def __init__(self, engine, instructions, rng: random.Random, pause: float = 0.3) -> None:
        self.engine = engine
        self.left = deque(enumerate(instructions))
        self.rng = rng
        self.pause = pause
        self.offered = False
        self.accepted = 0

    def drive(self, ctx) -> None:
        if not self.offered and self.left and self.rng.random() >= self.pause:
            number, instruction = self.left[0]
            payload = self.engine.instruction.payload
            ctx.set(Value.cast(payload.fields), int.from_bytes(instruction.encode(), "little"))
            ctx.set(payload.offset, 1000 + number)
            self.offered = True
        ctx.set(self.engine.instruction.valid, self.offered)

    def sample(self, ctx) -> None:
        if self.offered and ctx.get(self.engine.instruction.ready):
            self.left.popleft()
            self.accepted += 1
            self.offered = False


class Channel:
    """Watches a manager's valid, ready and payload: what is offered stays until it is taken."""

    def __init__(self, valid, ready, *payload) -> None:
        self.valid, self.ready, self.payload = valid, ready, payload
        self.offered = None

    def sample(self, ctx) -> tuple[int, ...] | None:
        """The payload, if it is transferred in this cycle."""
        offered = tuple(map(ctx.get, self.payload)) if ctx.get(self.valid) else None
        if self.offered is not None:
            assert offered == self.offered, "an offer was changed or withdrawn"
        taken = offered is not None and ctx.get(self.ready)
        self.offered = None if taken else offered
        return offered if taken else None


def check_burst(config: AcceleratorConfig, address: int, length: int) -> None:
    assert address % config.bus_bytes == 0
    assert 1 <= length <= config.burst_beats
    last = address + length * config.bus_bytes - 1
    assert address // 4096 == last // 4096, "a burst crosses 4 KiB"
    assert last < 1 << config.address_width


class ReadMemory:
    """AXI4 read subordinate: bursts in order, each after some latency, with random pauses."""

    def __init__(
        self, config, axi, content: bytes, rng: random.Random, *, latency=(1, 9), pause=0.3
    ) -> None:
        self.config, self.axi, self.content, self.rng = config, axi, content, rng
        self.latency, self.pause = latency, pause
        self.errors: set[int] = set()  # beat addresses answered with SLVERR
        self.bursts: list[tuple[int, int]] = []
        self.channel = Channel(axi.arvalid, axi.arready, axi.araddr, axi.arlen)
        self.beats: deque[tuple[int, int, bool]] = deque()  # (not before cycle, address, last)
        self.cycle = 0
        self.valid = False
        self.outstanding = 0
        self.most_outstanding = 0
        self.beats_sent = 0
        self.silent = False

    def drive(self, ctx) -> None:
        ctx.set(self.axi.arready, self.rng.random() >= self.pause)
        if not self.valid and self.beats and self.beats[0][0] <= self.cycle and not self.silent:
            self.valid = self.rng.random() >= self.pause
        ctx.set(self.axi.rvalid, self.valid)
        if self.valid:
            _, address, last = self.beats[0]
            data = self.content[address : address + self.config.bus_bytes]
            ctx.set(self.axi.rdata, int.from_bytes(data, "little"))
            ctx.set(self.axi.rresp, 2 if address in self.errors else 0)
            ctx.set(self.axi.rlast, last)

    def sample(self, ctx) -> None:
        if self.valid and ctx.get(self.axi.rready):
            self.outstanding -= self.beats.popleft()[2]
            self.valid = False
            self.beats_sent += 1
        burst = self.channel.sample(ctx)
        if burst is not None:
            address, length = burst[0], burst[1] + 1
            check_burst(self.config, address, length)
            self.bursts.append((address, length))
            self.outstanding += 1
            self.most_outstanding = max(self.most_outstanding, self.outstanding)
            start = self.cycle + self.rng.randint(*self.latency)
            for beat in range(length):
                self.beats.append(
                    (start, address + beat * self.config.bus_bytes, beat == length - 1)
                )
        assert self.outstanding <= self.config.max_outstanding
        self.cycle += 1


class WriteMemory:
    """AXI4 write subordinate; data may be taken before their address, as AXI4 allows."""

    def __init__(
        self, config, axi, content: bytearray, rng: random.Random, *, latency=(1, 9), pause=0.3
    ) -> None:
        self.config, self.axi, self.content, self.rng = config, axi, content, rng
        self.latency, self.pause = latency, pause
        self.errors: set[int] = set()  # burst addresses answered with SLVERR
        self.address = Channel(axi.awvalid, axi.awready, axi.awaddr, axi.awlen)
        self.data = Channel(axi.wvalid, axi.wready, axi.wdata, axi.wstrb, axi.wlast)
        self.bursts: list[tuple[int, int]] = []
        self.pending: deque[tuple[int, int]] = deque()  # addresses whose data are incomplete
        self.early: deque[tuple[int, int, int]] = deque()  # beats whose address is to come
        self.written = 0  # beats of the first pending burst
        self.responses: deque[tuple[int, int]] = deque()  # (not before cycle, address)
        self.valid = False
        self.cycle = 0
        self.outstanding = 0
        self.most_outstanding = 0
        self.silent = False
        self.strobed_bytes = 0
        self.beats_taken = 0

    def drive(self, ctx) -> None:
        ctx.set(self.axi.awready, self.rng.random() >= self.pause)
        ctx.set(self.axi.wready, self.rng.random() >= self.pause and not self.silent)
        if not self.valid and self.responses and self.responses[0][0] <= self.cycle:
            self.valid = self.rng.random() >= self.pause
        ctx.set(self.axi.bvalid, self.valid)
        if self.valid:
            ctx.set(self.axi.bresp, 2 if self.responses[0][1] in self.errors else 0)

    def sample(self, ctx) -> None:
        if self.valid and ctx.get(self.axi.bready):
            self.responses.popleft()
            self.outstanding -= 1
            self.valid = False
        burst = self.address.sample(ctx)
        if burst is not None:
            address, length = burst[0], burst[1] + 1
            check_burst(self.config, address, length)
            self.bursts.append((address, length))
            self.pending.append((address, length))
            self.outstanding += 1
            self.most_outstanding = max(self.most_outstanding, self.outstanding)
        if ctx.get(self.axi.wvalid):
            beat = self.data.sample(ctx)
            offered = len(self.pending) + bool(self.address.offered)
            assert offered, "data are offered before their address"
            if beat is not None:
                self.early.append(beat)
                self.beats_taken += 1
                self.strobed_bytes += beat[1].bit_count()
        else:
            self.data.sample(ctx)
        while self.early and self.pending:
            self._write(*self.early.popleft())
        assert self.outstanding <= self.config.max_outstanding
        self.cycle += 1

    def _write(self, data: int, strobe: int, last: int) -> None:
        address, length = self.pending[0]
        start = address + self.written * self.config.bus_bytes
        for lane in range(self.config.bus_bytes):
            if strobe >> lane & 1:
                self.content[start + lane] = data >> 8 * lane & 0xFF
        self.written += 1
        assert last == (self.written == length), "the last beat is marked wrongly"
        if last:
            self.pending.popleft()
            self.written = 0
            self.responses.append((self.cycle + self.rng.randint(*self.latency), address))


def simulate(component, process) -> None:
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
