"""Dispatch with engines that take and retire at random, against the stream that they are fed."""

import dataclasses
import random
from collections import deque

import pytest
from amaranth.sim import Simulator

from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware.dispatch import Dispatch
from weft_hw.gateware.instruction_queue import IN_FLIGHT
from weft_hw.instructions import End, Instruction, Load, Matrix, Queue, Scalar, Store, Vector
from weft_hw.registers import FaultCause

TINY = PRESETS["tiny"]
KINDS = [Load, Matrix, Vector, Scalar, Store]
PORT_BYTES = {Queue.LOAD: 48, Queue.MATRIX: 96, Queue.VECTOR: 128, Queue.STORE: 48}


def random_instruction(rng: random.Random, kind: type[Instruction], **fields) -> Instruction:
    values = {}
    for field in kind.bit_fields():
        low, high = field.limits
        if field.name in ("wait", "signal"):
            continue
        if field.length:
            values[field.name] = tuple(rng.randint(low, high) for _ in range(field.length))
        else:
            values[field.name] = rng.randint(low, high)
    return kind(**values, **fields)


def random_program(rng: random.Random, length: int) -> list[Instruction]:
    """A program that never blocks when executed serially; each semaphore has its two queues."""
    semaphores = {}
    for number in range(16):
        semaphores[number] = tuple(rng.sample(list(Queue), 2))  # signalled by, waited for by
    counts = dict.fromkeys(semaphores, 0)
    program: list[Instruction] = []
    for _ in range(length):
        kind = rng.choice(KINDS)
        wait = signal = 0
        for number, (signaller, waiter) in semaphores.items():
            if waiter is kind.queue and counts[number] and rng.random() < 0.5:
                wait |= 1 << number
                counts[number] -= 1
            if signaller is kind.queue and rng.random() < 0.3:
                signal |= 1 << number
                counts[number] += 1
        program.append(random_instruction(rng, kind, wait=wait, signal=signal))
    return [*program, End()]


class Bench:
    """Feeds words, plays the engines, records what each engine is given."""

    def __init__(self, config: AcceleratorConfig, data: bytes, rng: random.Random, pace: float):
        self.dut = Dispatch(config)
        self.words = [data[i : i + 16] for i in range(0, len(data), 16)]
        self.rng, self.pace = rng, pace
        self.taken: dict[Queue, list[tuple[bytes, int]]] = {queue: [] for queue in Queue}
        self.order: list[tuple[str, Queue, int]] = []  # what started and retired, in time
        self.word_cycles: list[int] = []
        self.errors: set[int] = set()
        self.retire_chance = 0.2 + pace / 2
        self.most_inside = 0
        self.simulator = Simulator(self.dut)
        self.simulator.add_clock(1e-6)
        self.simulator.add_testbench(self._feed, background=True)
        for queue in Queue:
            self.simulator.add_testbench(self._engine(queue), background=True)

    def run(self, process) -> None:
        self.simulator.add_testbench(process)
        self.simulator.run()

    async def _feed(self, ctx) -> None:
        words, cycle = self.dut.words, 0
        for number, word in enumerate(self.words):
            while self.rng.random() > self.pace:
                await ctx.tick()
                cycle += 1
            ctx.set(words.payload.data, int.from_bytes(word, "little"))
            ctx.set(words.payload.error, number in self.errors)
            ctx.set(words.valid, 1)
            while True:
                _, _, ready = await ctx.tick().sample(words.ready)
                cycle += 1
                if ready:
                    break
            self.word_cycles.append(cycle)
            ctx.set(words.valid, 0)

    def _engine(self, queue: Queue):
        async def process(ctx):
            port = getattr(self.dut, queue.name.lower())
            inside: deque[int] = deque()
            refused = None
            while True:
                ready = self.rng.random() < self.pace  # dispatch bounds what is inside
                retire = bool(inside) and self.rng.random() < self.retire_chance
                ctx.set(port.instruction.ready, ready)
                ctx.set(port.retire, retire)
                ctx.set(port.busy, bool(inside))
                _, _, valid, fields, offset = await ctx.tick().sample(
                    port.instruction.valid,
                    port.instruction.payload.fields.as_value(),
                    port.instruction.payload.offset,
                )
                if refused is not None:
                    assert (valid, fields, offset) == refused, "a refused instruction changed"
                refused = (valid, fields, offset) if valid and not ready else None
                if retire:
                    self.order.append(("retire", queue, inside.popleft()))
                if valid and ready:
                    inside.append(offset)
                    self.most_inside = max(self.most_inside, len(inside))
                    self.taken[queue].append((fields.to_bytes(PORT_BYTES[queue], "little"), offset))
                    self.order.append(("start", queue, offset))

        return process


def check_order(program: list[Instruction], order: list[tuple[str, Queue, int]]) -> None:
    """No instruction starts before enough signals for its waits were sent."""
    by_offset, offset = {}, 0
    for instruction in program:
        by_offset[offset] = instruction
        offset += instruction.size
    counts = [0] * 16
    for what, _, where in order:
        instruction = by_offset[where]
        for number in range(16):
            if what == "start":
                counts[number] -= instruction.wait >> number & 1
                assert counts[number] >= 0, f"{instruction} started too early"
            else:
                counts[number] += instruction.signal >> number & 1


CONFIGS = {
    "tiny": TINY,
    "deep": dataclasses.replace(TINY, queue_depth=8),
    "shallow": dataclasses.replace(TINY, queue_depth=1),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pace", [1.0, 0.5, 0.15])
def test_programs_reach_their_engines(name: str, pace: float, seed: int) -> None:
    rng = random.Random(f"{seed} {name} {pace}")
    program = random_program(rng, 60)
    data = b"".join(i.encode() for i in program)
    bench = Bench(CONFIGS[name], data + rng.randbytes(64), rng, pace)
    dut = bench.dut

    async def process(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for _ in range(6000):
            done, fault, overflow = (
                ctx.get(dut.done),
                ctx.get(dut.fault.valid),
                ctx.get(dut.overflow.valid),
            )
            assert not fault
            assert not overflow
            if done:
                break
            await ctx.tick()
        else:
            raise AssertionError("the program did not end")
        retired = sum(what == "retire" for what, _, _ in bench.order)
        # The last retirement and the end may not fall into one cycle: engines empty first.
        assert retired == len(program) - 1
        await ctx.tick()
        assert not ctx.get(dut.done)

    bench.run(process)
    expected: dict[Queue, list] = {queue: [] for queue in Queue}
    offset = 0
    for instruction in program[:-1]:
        padded = instruction.encode().ljust(PORT_BYTES[instruction.queue], b"\0")
        expected[instruction.queue].append((padded, offset))
        offset += instruction.size
    assert bench.taken == expected
    check_order(program, bench.order)


def test_a_word_a_cycle_while_there_is_room(seed: int) -> None:
    rng = random.Random(seed)
    program = [random_instruction(rng, kind) for kind in [Load, Matrix, Vector, Store] * 4]
    data = b"".join(i.encode() for i in [*program, End()])
    bench = Bench(PRESETS["base16"], data, rng, pace=1.0)
    dut = bench.dut

    async def process(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        await ctx.tick().until(dut.done)

    bench.run(process)
    steps = [b - a for a, b in zip(bench.word_cycles, bench.word_cycles[1:])]
    assert set(steps) == {1}


def test_an_engine_that_takes_everything_is_given_a_bounded_number(seed: int) -> None:
    program = [Load(signal=1 << (i % 4)) for i in range(40)]
    data = b"".join(i.encode() for i in [*program, End()])
    bench = Bench(PRESETS["base16"], data, random.Random(seed), pace=1.0)
    bench.retire_chance = 0.05
    dut = bench.dut

    async def process(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        await ctx.tick().until(dut.done)

    bench.run(process)
    assert bench.most_inside == IN_FLIGHT
    assert [offset for _, offset in bench.taken[Queue.LOAD]] == list(range(0, 40 * 48, 48))
    assert sum(what == "retire" for what, _, _ in bench.order) == 40


def faulted(bench: Bench, cycles: int = 200) -> list[tuple[int, int, int]]:
    """Faults of dispatch within some cycles: cause, instruction, address."""
    dut, seen = bench.dut, []

    async def process(ctx):
        ctx.set(dut.program_address, 0x4000)
        ctx.set(dut.start, 1)
        for _ in range(cycles):
            if ctx.get(dut.fault.valid):
                fault = dut.fault
                seen.append(tuple(map(ctx.get, (fault.cause, fault.instruction, fault.address))))
            await ctx.tick()
            ctx.set(dut.start, 0)
            assert not ctx.get(dut.done)

    bench.run(process)
    return seen


@pytest.mark.parametrize("opcode", [0x00, 0x02, 0x11, 0x7F, 0xFF])
def test_unknown_opcode(opcode: int, seed: int) -> None:
    rng = random.Random(f"{seed} {opcode}")
    data = Load().encode() + Vector().encode() + bytes([opcode]) * 32 + End().encode()
    bench = Bench(TINY, data, rng, pace=0.8)
    assert faulted(bench) == [(FaultCause.BAD_OPCODE, 48 + 128, 0x4000 + 48 + 128)]
    assert len(bench.taken[Queue.VECTOR]) == 1


@pytest.mark.parametrize("word", [0, 2, 3])
def test_bus_error_in_a_word_that_is_needed(word: int, seed: int) -> None:
    bench = Bench(TINY, Load().encode() + End().encode(), random.Random(seed), pace=0.8)
    bench.errors = {word}
    instruction = 0 if word < 3 else 48
    assert faulted(bench) == [(FaultCause.FETCH_ERROR, instruction, 0x4000 + 16 * word)]


@pytest.mark.parametrize(
    ("address", "cause"),
    [(0x4002, FaultCause.ALIGNMENT), (1 << 32, FaultCause.FETCH_ERROR)],
)
def test_program_address_that_cannot_be_fetched(address: int, cause: FaultCause) -> None:
    bench = Bench(TINY, b"", random.Random(0), pace=1.0)
    dut = bench.dut

    async def process(ctx):
        ctx.set(dut.program_address, address)
        ctx.set(dut.start, 1)
        assert ctx.get(dut.fault.valid)
        assert ctx.get(dut.fault.cause) == cause
        assert ctx.get(dut.fault.address) == address
        assert not ctx.get(dut.fetch_start)
        await ctx.tick()
        ctx.set(dut.start, 0)
        assert not ctx.get(dut.fault.valid)

    bench.run(process)


def test_head_waits_until_signalled_and_stop_starts_nothing() -> None:
    program = [Load(signal=2), Store(wait=2), Store(wait=2), End()]
    data = b"".join(i.encode() for i in program)
    bench = Bench(TINY, data, random.Random(0), pace=1.0)
    dut = bench.dut

    async def process(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        await ctx.tick().repeat(100)
        assert len(bench.taken[Queue.STORE]) == 1
        assert ctx.get(dut.waiting) == 1 << Queue.STORE
        assert ctx.get(dut.head_offset[Queue.STORE]) == 96
        assert ctx.get(dut.oldest_offset[Queue.STORE]) == 96
        ctx.set(dut.stop, 1)
        await ctx.tick().repeat(20)
        assert ctx.get(dut.waiting) == 0
        assert len(bench.taken[Queue.STORE]) == 1

    bench.run(process)


def test_overflow_names_the_queue_and_the_instruction() -> None:
    config = dataclasses.replace(TINY, semaphore_bits=2)
    program = [Load(), *[Store(signal=1) for _ in range(5)], End()]
    bench = Bench(config, b"".join(i.encode() for i in program), random.Random(0), pace=1.0)
    dut, seen = bench.dut, []

    async def process(ctx):
        ctx.set(dut.start, 1)
        for _ in range(150):
            if ctx.get(dut.overflow.valid):
                overflow = dut.overflow
                values = (overflow.cause, overflow.instruction, dut.overflow_queue)
                seen.append(tuple(map(ctx.get, values)))
            await ctx.tick()
            ctx.set(dut.start, 0)

    bench.run(process)
    # The counter holds three; the fourth signal is one too many, and so is the fifth.
    cause = FaultCause.SEMAPHORE_OVERFLOW
    assert seen == [(cause, 48 * 4, Queue.STORE), (cause, 48 * 5, Queue.STORE)]
