"""The vector engine under test, with memories that do what the ports' contract says, no better."""

import dataclasses
import functools
import random
from collections.abc import Sequence

from amaranth.sim import Simulator

from hw.vector_reference import State
from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import READ_LATENCY
from weft_hw.gateware.vector import VectorEngine
from weft_hw.instructions import Vector

__all__ = ["Outcome", "run_engine"]


@dataclasses.dataclass
class Outcome:
    """What was seen from outside; lists are of cycles."""

    retired: list[int] = dataclasses.field(default_factory=list)
    fault: tuple[int, int, int] | None = None  # cause, instruction, address
    writes: list[int] = dataclasses.field(default_factory=list)
    reads: list[int] = dataclasses.field(default_factory=list)
    accepted: list[int] = dataclasses.field(default_factory=list)
    stalls: int = 0


def _pack(values: Sequence[int], bits: int) -> int:
    return sum((value & ((1 << bits) - 1)) << (bits * i) for i, value in enumerate(values))


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


@functools.cache
def _simulator(config: AcceleratorConfig) -> tuple[VectorEngine, Simulator, list]:
    """Engine and simulator of a configuration, made once; the list holds the bench to run."""
    dut, running = VectorEngine(config), [None]
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        await running[0].bench(ctx)

    simulator.add_testbench(bench)
    return dut, simulator, running


class _Bench:
    def __init__(
        self,
        config: AcceleratorConfig,
        encoded: Sequence[bytes],
        state: State,
        rng: random.Random,
        refusal: float,
        write_refusal: float,
        stop_at: int | None,
        cycles: int,
    ) -> None:
        self.config, self.encoded, self.state, self.rng = config, encoded, state, rng
        self.refusal, self.write_refusal = refusal, write_refusal
        self.stop_at, self.cycles = stop_at, cycles
        self.outcome = Outcome()
        self.pending: dict[str, list[tuple[int, int]]] = {}
        self.held: dict[str, tuple[int, ...]] = {}
        self.rows: list[int] = []
        self.entries: list[int] | None = None  # of the lookup in the cycle before
        self.cycle = 0
        self.dut, self.simulator, running = _simulator(config)
        if running[0] is not None:
            self.simulator.reset()
        running[0] = self

    def stream_offset(self, number: int) -> int:
        return sum(len(data) for data in self.encoded[:number])

    # Ports ----------------------------------------------------------------------------------------

    def check_stable(self, name: str, valid: int, ready: bool, payload: tuple[int, ...]) -> None:
        """Once valid, a request stays unchanged until it is accepted."""
        if name in self.held:
            assert valid and payload == self.held[name], f"{name} changed its request"
        self.held.pop(name, None)
        if valid and not ready:
            self.held[name] = payload

    def stored(self, name: str, address: int) -> int:
        columns, line = self.config.columns, self.config.line_bytes
        if name.startswith("accumulator"):
            return _pack(self.state.accumulator[address], 32)
        scratchpad = self.state.weight if name == "weight_b" else self.state.activation
        assert address + columns <= len(scratchpad)
        return _pack([scratchpad[(address + i) % len(scratchpad)] for i in range(line)], 8)

    def drive_read(self, ctx, name: str) -> None:
        port = getattr(self.dut, name)
        ctx.set(port.ready, self.rng.random() >= self.refusal)
        due = self.pending.setdefault(name, [])
        data = None
        if due and due[0][0] == self.cycle:
            data = due.pop(0)[1]
        ctx.set(port.data_valid, data is not None)
        if data is None and self.refusal:  # what lies on an idle port must not matter
            data = self.rng.getrandbits(len(port.data))
        if data is not None:
            ctx.set(port.data, data)

    def sample_read(self, ctx, name: str) -> None:
        port = getattr(self.dut, name)
        valid, ready = ctx.get(port.valid), ctx.get(port.ready)
        address = ctx.get(port.address) if valid else 0
        self.check_stable(name, valid, bool(ready), (address,))
        if valid and ready:
            data = self.stored(name, address)
            self.pending[name].append((self.cycle + READ_LATENCY, data))
            self.outcome.reads.append(self.cycle)

    def sample_write(self, ctx, name: str) -> None:
        port = getattr(self.dut, name)
        valid, ready = ctx.get(port.valid), ctx.get(port.ready)
        payload = (0, 0, 0)
        if valid:
            payload = (ctx.get(port.address), ctx.get(port.data), ctx.get(port.strobe))
        self.check_stable(name, valid, bool(ready), payload[:2])
        if not (valid and ready):
            return
        address, data, strobe = payload
        self.outcome.writes.append(self.cycle)
        for lane in range(len(port.strobe)):
            if not strobe >> lane & 1:
                continue
            if name == "accumulator_result":
                word = _signed(data >> (32 * lane) & 0xFFFFFFFF, 32)
                self.state.accumulator[address][lane] = word
            else:
                byte = _signed(data >> (8 * lane) & 0xFF, 8)
                self.state.activation[address + lane] = byte

    def drive_parameters(self, ctx) -> None:
        if len(self.rows) == READ_LATENCY:
            address, group = self.rows.pop(0)
            row = self.state.parameters[address % self.config.parameter_rows]
            lanes = self.config.vector_lanes
            data = self.dut.parameters.data
            for lane, (bias, multiplier, exponent) in enumerate(row[lanes * group :][:lanes]):
                ctx.set(data.bias[lane], bias)
                ctx.set(data.multiplier[lane], multiplier)
                ctx.set(data.exponent[lane], exponent)

    def drive_lookup(self, ctx) -> None:
        """Entries of the addresses that were there in the cycle before."""
        entries = self.entries
        if entries is None and self.refusal:
            entries = [self.rng.getrandbits(8) for _ in range(self.config.vector_lanes)]
        for lane, entry in enumerate(entries or ()):
            ctx.set(self.dut.tables.data[lane], entry)

    def sample_lookup(self, ctx) -> None:
        self.entries = None
        if ctx.get(self.dut.tables.valid):
            addresses = [ctx.get(address) for address in self.dut.tables.address]
            self.entries = [self.state.lookup[n // 256][n % 256] for n in addresses]

    async def read_scalars(self, ctx) -> None:
        await ctx.tick().repeat(4)  # captures enter the registers after retirement
        for number in range(len(self.state.scalars)):
            ctx.set(self.dut.scalar_index, number)
            await ctx.tick().repeat(2)
            self.state.scalars[number] = _signed(ctx.get(self.dut.scalar_value), 32)

    # One run --------------------------------------------------------------------------------------

    async def bench(self, ctx) -> None:
        dut, outcome = self.dut, self.outcome
        reads = ("a", "b", "weight_b", "accumulator_a", "accumulator_b")
        writes = ("result", "accumulator_result")
        number, offered = 0, False
        ctx.set(dut.random_seed, self.state.random[0])
        ctx.set(dut.random_step, self.state.random[1])
        while True:
            assert self.cycle < self.cycles, f"not finished after {self.cycles} cycles"
            stopped = self.stop_at is not None and self.cycle >= self.stop_at
            ctx.set(dut.engine.stop, stopped)
            for name in reads:
                self.drive_read(ctx, name)
            for name in writes:
                ctx.set(getattr(dut, name).ready, self.rng.random() >= self.write_refusal)
            self.drive_parameters(ctx)
            self.drive_lookup(ctx)
            offered = number < len(self.encoded) and (offered or self.rng.random() >= self.refusal)
            ctx.set(dut.engine.instruction.valid, offered)
            if offered:
                payload = dut.engine.instruction.payload
                ctx.set(payload.fields.as_value(), int.from_bytes(self.encoded[number], "little"))
                ctx.set(payload.offset, self.stream_offset(number))

            for name in reads:
                self.sample_read(ctx, name)
            for name in writes:
                self.sample_write(ctx, name)
            self.rows.append((ctx.get(dut.parameters.address), ctx.get(dut.parameters.group)))
            self.sample_lookup(ctx)
            assert not ctx.get(dut.engine.bus_busy)
            outcome.stalls += ctx.get(dut.engine.stall)
            if ctx.get(dut.engine.retire):
                assert not stopped and outcome.fault is None
                outcome.retired.append(self.cycle)
            if ctx.get(dut.engine.fault.valid):
                assert outcome.fault is None
                fault = dut.engine.fault
                outcome.fault = (
                    ctx.get(fault.cause),
                    ctx.get(fault.instruction),
                    ctx.get(fault.address),
                )
                self.end = self.cycle + 40  # nothing may follow
            busy = ctx.get(dut.engine.busy)
            done = number == len(self.encoded) and not busy
            if len(outcome.retired) < number and outcome.fault is None and not stopped:
                assert busy
            if offered and ctx.get(dut.engine.instruction.ready):
                outcome.accepted.append(self.cycle)
                number, offered = number + 1, False
            if done:
                await self.read_scalars(ctx)
                return
            if outcome.fault and self.cycle == self.end:
                return
            if self.stop_at is not None and self.cycle == self.stop_at + 80:
                return
            await ctx.tick()
            self.cycle += 1


def run_engine(
    config: AcceleratorConfig,
    program: Sequence[Vector | bytes],
    state: State,
    rng: random.Random,
    *,
    refusal: float = 0.0,
    write_refusal: float | None = None,
    stop_at: int | None = None,
    cycles: int = 20000,
) -> Outcome:
    """Run a program on the engine, changing ``state``.

    Each port refuses with the probability ``refusal``; writes with another, if it is given.
    """
    write_refusal = refusal if write_refusal is None else write_refusal
    encoded = [item if isinstance(item, bytes) else item.encode() for item in program]
    bench = _Bench(config, encoded, state, rng, refusal, write_refusal, stop_at, cycles)
    bench.simulator.run()
    return bench.outcome
