"""The read arbiter: a request that the bus has seen stays, data go to whom asked."""

from amaranth.sim import Simulator

from weft_hw.config import PRESETS
from weft_hw.gateware.bus import ReadArbiter


def run(dut: ReadArbiter, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_a_request_of_load_that_the_bus_has_seen_is_not_replaced_by_fetch() -> None:
    dut = ReadArbiter(PRESETS["tiny"])

    async def bench(ctx):
        ctx.set(dut.load.arvalid, 1)
        ctx.set(dut.load.araddr, 0x100)
        await ctx.tick()
        ctx.set(dut.fetch.arvalid, 1)
        ctx.set(dut.fetch.araddr, 0x200)
        for _ in range(3):
            assert ctx.get(dut.axi.arvalid) and ctx.get(dut.axi.araddr) == 0x100
            await ctx.tick()
        ctx.set(dut.axi.arready, 1)
        assert ctx.get(dut.load.arready) and not ctx.get(dut.fetch.arready)
        await ctx.tick()
        ctx.set(dut.load.arvalid, 0)
        assert ctx.get(dut.axi.araddr) == 0x200 and ctx.get(dut.fetch.arready)
        await ctx.tick()
        ctx.set(dut.fetch.arvalid, 0)
        # The data: LOAD's burst first, of two beats, then fetch's.
        ctx.set(dut.axi.rvalid, 1)
        ctx.set(dut.load.rready, 1)
        ctx.set(dut.fetch.rready, 1)
        for last, to_load in ((0, 1), (1, 1), (1, 0)):
            ctx.set(dut.axi.rlast, last)
            assert ctx.get(dut.load.rvalid) == to_load
            assert ctx.get(dut.fetch.rvalid) == 1 - to_load
            await ctx.tick()

    run(dut, bench)


def test_no_more_than_max_outstanding_bursts_are_requested() -> None:
    config = PRESETS["tiny"]
    dut = ReadArbiter(config)

    async def bench(ctx):
        ctx.set(dut.load.arvalid, 1)
        ctx.set(dut.axi.arready, 1)
        for _ in range(config.max_outstanding):
            assert ctx.get(dut.axi.arvalid)
            await ctx.tick()
        assert not ctx.get(dut.axi.arvalid) and not ctx.get(dut.load.arready)

    run(dut, bench)
