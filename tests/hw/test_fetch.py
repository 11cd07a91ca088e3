"""Instruction fetch and the arbitration of reads, against a memory with random stalls."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator

from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware.bus import ReadArbiter
from weft_hw.gateware.fetch import Fetch

TINY = PRESETS["tiny"]
CONFIGS = {
    "tiny": TINY,
    "edge8": PRESETS["edge8"],
    "base16": PRESETS["base16"],
    "wide": dataclasses.replace(PRESETS["base16"], bus_width=512),
    "single beats": dataclasses.replace(TINY, burst_beats=1),
    "long bursts": dataclasses.replace(TINY, burst_beats=256),
}


class ReadMemory:
    """Serves AR and R of one port in order; checks AXI's rules on what it sees."""

    def __init__(self, axi, config: AcceleratorConfig, content: bytes, rng, stall, latency) -> None:
        self.axi, self.config, self.content = axi, config, content
        self.rng, self.stall, self.latency = rng, stall, latency
        self.errors: set[int] = set()
        self.bursts: list[tuple[int, int]] = []
        self.beats = 0

    async def serve(self, ctx) -> None:
        axi, size = self.axi, self.config.bus_bytes
        due: list[tuple[int, int, bool]] = []
        held, cycle, refused = None, 0, None
        while True:
            ready = self.rng.random() >= self.stall
            ctx.set(axi.arready, ready)
            if held is None and due and due[0][0] <= cycle and self.rng.random() >= self.stall:
                held = due.pop(0)
            ctx.set(axi.rvalid, held is not None)
            if held is not None:
                address = held[1] % len(self.content)
                word = self.content[address : address + size]
                ctx.set(axi.rdata, int.from_bytes(word, "little"))
                ctx.set(axi.rlast, held[2])
                ctx.set(axi.rresp, 2 if held[1] in self.errors else 0)
            _, _, valid, address, length, taken = await ctx.tick().sample(
                axi.arvalid, axi.araddr, axi.arlen, axi.rready & axi.rvalid
            )
            cycle += 1
            if refused is not None:
                assert (valid, address, length) == refused, "a refused request changed"
            refused = (valid, address, length) if valid and not ready else None
            if valid and ready:
                count = length + 1
                assert address % size == 0
                assert count <= self.config.burst_beats
                assert address // 4096 == (address + count * size - 1) // 4096
                self.bursts.append((address, count))
                due += [
                    (cycle + self.latency, address + i * size, i == length) for i in range(count)
                ]
            if taken:
                held = None
                self.beats += 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("case", range(3))
def test_words_come_in_order(name: str, case: int, seed: int) -> None:
    config = CONFIGS[name]
    rng = random.Random(f"{seed} {name} {case}")
    size = config.bus_bytes
    dut = Fetch(config)
    content = rng.randbytes(1 << 15)
    memory = ReadMemory(
        dut.axi, config, content, rng, stall=[0, 0.3, 0.7][case], latency=[0, 4, 11][case]
    )
    words = 60

    async def process(ctx):
        for start in (4096 - 3 * size, rng.randrange(0, 8192, size)):
            memory.bursts.clear()
            memory.errors.clear()
            broken = rng.randrange(words // 2, words)
            memory.errors.add((start + 16 * broken) // size * size)
            wrong = (start + 16 * broken) // size * size - start  # first byte of the broken beat
            ctx.set(dut.address, start)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for number in range(words):
                if case == 2:
                    await ctx.tick().repeat(rng.choice([0, 0, 1, 7]) + 1)
                ctx.set(dut.words.ready, 1)
                (word,) = await ctx.tick().sample(dut.words.payload).until(dut.words.valid)
                ctx.set(dut.words.ready, 0)
                at = start + 16 * number
                assert word.data == int.from_bytes(content[at : at + 16], "little")
                hit = 16 * number < wrong + size and wrong < 16 * number + 16
                assert bool(word.error) == hit
            ctx.set(dut.ended, 1)
            await ctx.tick()
            while ctx.get(dut.bus_busy):
                await ctx.tick()
            ctx.set(dut.ended, 0)
            read = sum(count for _, count in memory.bursts)
            assert read * size <= 16 * words + size + dut.buffer_beats * size + 16
            assert [a for a, _ in memory.bursts] == sorted(a for a, _ in memory.bursts)
            await ctx.tick().repeat(3)
            assert not ctx.get(dut.axi.arvalid)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.add_testbench(memory.serve, background=True)
    simulator.run()


@pytest.mark.parametrize("name", ["tiny", "edge8", "base16"])
def test_one_beat_a_cycle(name: str) -> None:
    # Two of the longest bursts that tiny has do not cover the round trip.
    config = dataclasses.replace(CONFIGS[name], burst_beats=16)
    dut = Fetch(config)
    memory = ReadMemory(dut.axi, config, bytes(1 << 15), random.Random(0), stall=0, latency=0)

    async def process(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        ctx.set(dut.words.ready, 1)
        await ctx.tick().repeat(40)
        before = memory.beats
        await ctx.tick().repeat(400)
        assert memory.beats - before >= 0.95 * 400

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.add_testbench(memory.serve, background=True)
    simulator.run()


@pytest.mark.parametrize("case", range(4))
def test_arbiter_routes_data_to_who_asked(case: int, seed: int) -> None:
    config = TINY
    rng = random.Random(f"{seed} {case}")
    dut = ReadArbiter(config)
    content = rng.randbytes(1 << 14)
    memory = ReadMemory(dut.axi, config, content, rng, stall=[0, 0.2, 0.5, 0.8][case], latency=case)
    size = config.bus_bytes
    bursts = 40
    finished = []

    def requester(port, base: int, name: str):
        requests = [(base + 16 * rng.randrange(0, 100), rng.randrange(1, 5)) for _ in range(bursts)]

        async def ask(ctx):
            for address, count in requests:
                ctx.set(port.arvalid, 1)
                ctx.set(port.araddr, address)
                ctx.set(port.arlen, count - 1)
                await ctx.tick().until(port.arready)
                ctx.set(port.arvalid, 0)
                if rng.random() < 0.6:
                    await ctx.tick().repeat(rng.randrange(1, 9))

        async def take(ctx):
            for address, count in requests:
                for beat in range(count):
                    if rng.random() < 0.3:
                        ctx.set(port.rready, 0)
                        await ctx.tick().repeat(rng.randrange(1, 4))
                    ctx.set(port.rready, 1)
                    word, last = await ctx.tick().sample(port.rdata, port.rlast).until(port.rvalid)
                    at = address + beat * size
                    assert word == int.from_bytes(content[at : at + size], "little")
                    assert last == (beat == count - 1)
            ctx.set(port.rready, 0)
            finished.append(name)

        return ask, take

    async def bounded(ctx):
        outstanding = 0
        while True:
            axi = dut.axi
            _, _, asked, ended = await ctx.tick().sample(
                axi.arvalid & axi.arready, axi.rvalid & axi.rready & axi.rlast
            )
            outstanding += asked - ended
            assert 0 <= outstanding <= config.max_outstanding

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for port, base, name in ((dut.fetch, 0, "fetch"), (dut.load, 8192, "load")):
        for process in requester(port, base, name):
            simulator.add_testbench(process)
    simulator.add_testbench(memory.serve, background=True)
    simulator.add_testbench(bounded, background=True)
    simulator.run()
    assert sorted(finished) == ["fetch", "load"]
