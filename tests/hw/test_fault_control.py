"""Fault control: which fault wins, what stays, and when the machine has come to rest."""

import random

import pytest
from amaranth.sim import Simulator

from weft_hw.gateware.fault_control import SETTLE_CYCLES, FaultControl
from weft_hw.registers import FaultCause

DISPATCH = 4


def simulate(process) -> None:
    dut = FaultControl()
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        ctx.set(dut.running, 1)
        await process(ctx, dut)

    simulator.add_testbench(bench)
    simulator.run()


def report(ctx, port, cause: int, instruction: int = 0, address: int = 0) -> None:
    ctx.set(port.valid, 1)
    ctx.set(port.cause, cause)
    ctx.set(port.instruction, instruction)
    ctx.set(port.address, address)


async def cycles_until(ctx, signal, limit: int = 200) -> int:
    for cycle in range(limit):
        if ctx.get(signal):
            return cycle
        await ctx.tick()
    raise AssertionError("it never came")


@pytest.mark.parametrize("case", range(10))
def test_first_fault_wins_and_all_are_sticky(case: int, seed: int) -> None:
    rng = random.Random(f"{seed} {case}")

    async def process(ctx, dut):
        causes = [cause for cause in FaultCause if cause]
        sources = rng.sample(range(6), rng.randint(1, 6))  # 5: overflow
        sticky, expected = 0, None
        for source in sorted(sources):
            port = dut.overflow if source == 5 else dut.reports[source]
            cause, instruction, address = rng.choice(causes), rng.getrandbits(32), 1 << 39 | source
            report(ctx, port, cause, instruction, address)
            ctx.set(dut.overflow_queue, 3)
            sticky |= 1 << cause
            if expected is None:
                queue = 3 if source == 5 else source
                expected = (cause, queue, instruction, address)
        assert not ctx.get(dut.stop)
        await ctx.tick()
        assert ctx.get(dut.stop)
        for port in [*dut.reports, dut.overflow]:
            ctx.set(port.valid, 0)
        report(ctx, dut.reports[rng.randrange(5)], FaultCause.WRITE_ERROR, 5, 5)
        await ctx.tick()
        sticky |= 1 << FaultCause.WRITE_ERROR
        state = (dut.cause, dut.queue, dut.instruction, dut.address)
        assert tuple(map(ctx.get, state)) == expected
        assert ctx.get(dut.sticky) == sticky

    simulate(process)


@pytest.mark.parametrize("source", range(5))
def test_halts_once_the_bus_is_quiet(source: int) -> None:
    async def process(ctx, dut):
        ctx.set(dut.bus_busy, 1 << source)
        report(ctx, dut.reports[0], FaultCause.LOCAL_ADDRESS)
        await ctx.tick()
        ctx.set(dut.reports[0].valid, 0)
        await ctx.tick().repeat(50)
        assert not ctx.get(dut.halted)
        ctx.set(dut.bus_busy, 0)
        await ctx.tick()
        ctx.set(dut.bus_busy, 1 << source)  # a request that was on its way
        await ctx.tick().repeat(20)
        assert not ctx.get(dut.halted)
        ctx.set(dut.bus_busy, 0)
        assert await cycles_until(ctx, dut.halted) == SETTLE_CYCLES
        assert ctx.get(dut.faulted)

    simulate(process)


def test_abort_is_no_fault() -> None:
    async def process(ctx, dut):
        ctx.set(dut.abort, 1)
        await ctx.tick()
        assert ctx.get(dut.stop)
        await cycles_until(ctx, dut.halted)
        assert not ctx.get(dut.faulted)
        assert ctx.get(dut.cause) == 0

    simulate(process)


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_watchdog_counts_cycles_without_progress(limit: int) -> None:
    async def process(ctx, dut):
        ctx.set(dut.limit, limit)
        for signal in (dut.progress, dut.bus_progress):
            for _ in range(5):
                ctx.set(signal, 1)
                await ctx.tick()
                ctx.set(signal, 0)
                await ctx.tick().repeat(limit)  # exactly as many are allowed
            ctx.set(signal, 1)
            await ctx.tick()
            ctx.set(signal, 0)
        assert not ctx.get(dut.stop)
        ctx.set(dut.waiting, 0b1010)
        ctx.set(dut.busy, 0b0001)
        ctx.set(dut.head_offset[1], 96)
        ctx.set(dut.head_offset[3], 48)
        assert await cycles_until(ctx, dut.stop) == limit + 2
        state = (dut.cause, dut.queue, dut.instruction)
        assert tuple(map(ctx.get, state)) == (FaultCause.WATCHDOG, 1, 96)
        await cycles_until(ctx, dut.halted)
        assert ctx.get(dut.sticky) == 1 << FaultCause.WATCHDOG

    simulate(process)


@pytest.mark.parametrize(("limit", "running"), [(0, 1), (5, 0)])
def test_watchdog_is_off(limit: int, running: int) -> None:
    async def process(ctx, dut):
        ctx.set(dut.limit, limit)
        ctx.set(dut.running, running)
        await ctx.tick().repeat(200)
        assert not ctx.get(dut.stop)

    simulate(process)


@pytest.mark.parametrize("owner", [0, 3, DISPATCH])
def test_outstanding_bursts_make_it_a_hung_bus(owner: int) -> None:
    async def process(ctx, dut):
        ctx.set(dut.limit, 20)
        ctx.set(dut.bus_busy, 1 << owner)
        ctx.set(dut.waiting, 0b0010)
        ctx.set(dut.busy, 0b0001)
        for queue in range(4):
            ctx.set(dut.oldest_offset[queue], 1000 + queue)
        await cycles_until(ctx, dut.stop)
        assert ctx.get(dut.cause) == FaultCause.BUS_HUNG
        assert ctx.get(dut.queue) == owner
        assert ctx.get(dut.instruction) == (0 if owner == DISPATCH else 1000 + owner)
        # The limit has passed: nothing else is waited for.
        assert await cycles_until(ctx, dut.halted) <= 2

    simulate(process)


def test_a_bus_that_hangs_while_it_drains() -> None:
    async def process(ctx, dut):
        ctx.set(dut.limit, 30)
        ctx.set(dut.bus_busy, 1)
        report(ctx, dut.reports[2], FaultCause.LOCAL_ADDRESS, 7)
        await ctx.tick()
        ctx.set(dut.reports[2].valid, 0)
        for _ in range(3):  # transfers put it off, progress of engines does not
            await ctx.tick().repeat(20)
            ctx.set(dut.bus_progress, 1)
            await ctx.tick()
            ctx.set(dut.bus_progress, 0)
        ctx.set(dut.progress, 1)
        assert not ctx.get(dut.halted)
        assert await cycles_until(ctx, dut.halted) == 32
        assert ctx.get(dut.cause) == FaultCause.LOCAL_ADDRESS
        assert ctx.get(dut.sticky) == 1 << FaultCause.LOCAL_ADDRESS | 1 << FaultCause.BUS_HUNG

    simulate(process)
