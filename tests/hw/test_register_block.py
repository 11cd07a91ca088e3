"""The register block on AXI4-Lite, register by register from the declarations."""

import enum
import random

import pytest
from amaranth.sim import Simulator

from weft_hw.config import PRESETS
from weft_hw.gateware.register_block import RegisterBlock
from weft_hw.registers import MACHINE_ID, REGISTERS, Access, register

CONFIG = PRESETS["tiny"]
OKAY, SLVERR = 0, 2
CONSTANTS = ("MACHINE_ID", "CONFIG_HASH_LOW", "CONFIG_HASH_HIGH")


def simulate(dut: RegisterBlock, *processes) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for process in processes:
        simulator.add_testbench(process)
    simulator.run()


def flags_of(entry) -> int:
    if entry.bits is None or not issubclass(entry.bits, enum.Flag):
        return 0xFFFFFFFF
    return sum(int(flag) for flag in entry.bits)


async def write(ctx, bus, offset: int, value: int, strobe: int = 15, order: str = "both") -> int:
    """One write with address first, data first or both at once; the response."""
    ctx.set(bus.awaddr, offset)
    ctx.set(bus.wdata, value)
    ctx.set(bus.wstrb, strobe)
    parts = {
        "both": [(bus.awvalid, bus.wvalid)],
        "address first": [(bus.awvalid,), (bus.wvalid,)],
        "data first": [(bus.wvalid,), (bus.awvalid,)],
    }[order]
    for part in parts:
        for valid in part:
            ctx.set(valid, 1)
        await ctx.tick()  # both channels are ready when nothing is held
        for valid in part:
            ctx.set(valid, 0)
        if len(parts) == 2:
            await ctx.tick().repeat(3)
    ctx.set(bus.bready, 1)
    while not ctx.get(bus.bvalid):
        await ctx.tick()
    response = ctx.get(bus.bresp)
    await ctx.tick()
    ctx.set(bus.bready, 0)
    assert not ctx.get(bus.bvalid)
    return response


async def read(ctx, bus, offset: int, patience: int = 0) -> tuple[int, int]:
    """Value and response; the response waits for ``patience`` cycles."""
    ctx.set(bus.araddr, offset)
    ctx.set(bus.arvalid, 1)
    await ctx.tick()
    ctx.set(bus.arvalid, 0)
    while not ctx.get(bus.rvalid):
        await ctx.tick()
    answer = ctx.get(bus.rdata), ctx.get(bus.rresp)
    for _ in range(patience):
        await ctx.tick()
        assert ctx.get(bus.rvalid)
        assert (ctx.get(bus.rdata), ctx.get(bus.rresp)) == answer
    ctx.set(bus.rready, 1)
    await ctx.tick()
    ctx.set(bus.rready, 0)
    assert not ctx.get(bus.rvalid)
    return answer


def test_every_register_reads_what_it_is(seed: int) -> None:
    rng = random.Random(seed)
    dut = RegisterBlock(CONFIG)
    values = {
        e.name: rng.getrandbits(32)
        for e in REGISTERS
        if e.access is Access.READ_ONLY and e.name not in CONSTANTS
    }

    async def process(ctx):
        for name, value in values.items():
            ctx.set(getattr(dut, name.lower()), value)
        for entry in rng.sample(REGISTERS, len(REGISTERS)):
            expected = values.get(entry.name, entry.reset)
            if entry.name == "MACHINE_ID":
                expected = MACHINE_ID
            elif entry.name.startswith("CONFIG_HASH"):
                high = entry.name.endswith("HIGH")
                expected = CONFIG.content_hash >> (32 * high) & 0xFFFFFFFF
            answer = await read(ctx, dut.bus, entry.offset, rng.randrange(4))
            assert answer == (expected, OKAY), entry.name

    simulate(dut, process)


@pytest.mark.parametrize("order", ["both", "address first", "data first"])
def test_written_values_by_byte_strobes(order: str, seed: int) -> None:
    rng = random.Random(f"{seed} {order}")
    dut = RegisterBlock(CONFIG)

    async def process(ctx):
        model = {e.name: e.reset for e in REGISTERS if e.access is Access.READ_WRITE}
        for _ in range(60):
            name = rng.choice(list(model))
            value, strobe = rng.getrandbits(32), rng.randrange(16)
            entry = register(name)
            assert await write(ctx, dut.bus, entry.offset, value, strobe, order) == OKAY
            for byte in range(4):
                if strobe >> byte & 1:
                    mask = 0xFF << (8 * byte)
                    model[name] = (model[name] & ~mask) | (value & mask)
            model[name] &= flags_of(entry)
            for other, expected in model.items():
                assert ctx.get(getattr(dut, other.lower())) == expected
            assert await read(ctx, dut.bus, entry.offset) == (model[name], OKAY)

    simulate(dut, process)


def test_pulses_last_one_cycle() -> None:
    dut = RegisterBlock(CONFIG)
    seen = []

    async def host(ctx):
        for value, strobe in ((1, 15), (2, 15), (3, 1), (1, 0b1110), (0xFFFFFFFC, 15)):
            assert await write(ctx, dut.bus, register("CONTROL").offset, value, strobe) == OKAY
        assert await read(ctx, dut.bus, register("CONTROL").offset) == (0, OKAY)

    async def watch(ctx):
        async for _, _, control in ctx.tick().sample(dut.control):
            if control:
                seen.append(control)
            if len(seen) > 10:
                break

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(host)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert seen == [1, 2, 3]


def test_events_are_set_and_cleared_bit_by_bit() -> None:
    dut = RegisterBlock(CONFIG)
    offset = register("INTERRUPT_STATUS").offset

    async def raise_events(ctx, mask: int) -> None:
        ctx.set(dut.interrupt_status_set, mask)
        await ctx.tick()
        ctx.set(dut.interrupt_status_set, 0)

    async def process(ctx):
        await raise_events(ctx, 1)
        await raise_events(ctx, 2)
        assert await read(ctx, dut.bus, offset) == (3, OKAY)
        await write(ctx, dut.bus, offset, 1)
        assert await read(ctx, dut.bus, offset) == (2, OKAY)
        await write(ctx, dut.bus, offset, 0)
        assert await read(ctx, dut.bus, offset) == (2, OKAY)
        await write(ctx, dut.bus, offset, 2, strobe=0b1110)
        assert await read(ctx, dut.bus, offset) == (2, OKAY)
        # An event in the cycle in which its bit is cleared is not lost.
        ctx.set(dut.interrupt_status_set, 2)
        await write(ctx, dut.bus, offset, 2)
        ctx.set(dut.interrupt_status_set, 0)
        assert await read(ctx, dut.bus, offset) == (2, OKAY)
        ctx.set(dut.clear_events, 1)
        await ctx.tick()
        ctx.set(dut.clear_events, 0)
        assert await read(ctx, dut.bus, offset) == (0, OKAY)

    simulate(dut, process)


def test_unknown_offsets_answer_slverr_and_change_nothing() -> None:
    dut = RegisterBlock(CONFIG)
    last = REGISTERS[-1].offset

    async def process(ctx):
        await write(ctx, dut.bus, register("WATCHDOG_LIMIT").offset, 77)
        for offset in (last + 4, 0x800, 0xFFC):
            assert await write(ctx, dut.bus, offset, 0xFFFFFFFF) == SLVERR
            assert await read(ctx, dut.bus, offset) == (0, SLVERR)
        assert await read(ctx, dut.bus, last) == (0, OKAY)
        assert await write(ctx, dut.bus, register("MACHINE_ID").offset, 5) == OKAY
        assert await read(ctx, dut.bus, register("MACHINE_ID").offset) == (MACHINE_ID, OKAY)
        assert ctx.get(dut.watchdog_limit) == 77

    simulate(dut, process)


def test_back_to_back_transfers_under_back_pressure(seed: int) -> None:
    rng = random.Random(seed)
    dut = RegisterBlock(CONFIG)
    bus = dut.bus
    offset = register("PROGRAM_ADDRESS").offset
    values = [rng.getrandbits(32) for _ in range(40)]
    responses, latched = [], []

    def pause() -> int:
        return rng.choice([0, 0, 0, 1, 4])

    async def send(ctx, valid, ready, payload, items):
        for item in items:
            await ctx.tick().repeat(pause() + 1)
            ctx.set(payload, item)
            ctx.set(valid, 1)
            await ctx.tick().until(ready)
            ctx.set(valid, 0)

    async def addresses(ctx):
        await send(ctx, bus.awvalid, bus.awready, bus.awaddr, [offset] * len(values))

    async def data(ctx):
        ctx.set(bus.wstrb, 15)
        await send(ctx, bus.wvalid, bus.wready, bus.wdata, values)

    async def answers(ctx):
        while len(responses) < len(values):
            await ctx.tick().repeat(pause() + 1)
            ctx.set(bus.bready, 1)
            (response,) = await ctx.tick().sample(bus.bresp).until(bus.bvalid)
            ctx.set(bus.bready, 0)
            responses.append(response)
        await ctx.tick().repeat(10)
        assert not ctx.get(bus.bvalid)

    async def watch(ctx):
        async for _, _, value in ctx.tick().sample(dut.program_address):
            if not latched or latched[-1] != value:
                latched.append(value)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for process in (addresses, data, answers):
        simulator.add_testbench(process)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert responses == [OKAY] * len(values)
    assert latched == [0, *values]
