"""The accumulator memory against a dictionary of rows, under random traffic on every port."""

import dataclasses
import gc

import numpy as np
import pytest
from amaranth.sim import Simulator

from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware.accumulator_memory import PATIENCE, AccumulatorMemory
from weft_hw.gateware.interfaces import READ_LATENCY

TINY = PRESETS["tiny"]
CONFIGS = {
    "2 banks": dataclasses.replace(TINY, accumulator_rows=8),
    "4 banks of 2 columns": dataclasses.replace(
        TINY, columns=2, vector_lanes=2, accumulator_rows=4, accumulator_banks=4
    ),
}


def simulate(memory: AccumulatorMemory, bench) -> None:
    simulator = Simulator(memory)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def pack(lanes: np.ndarray) -> int:
    return sum((int(lane) % (1 << 32)) << (32 * i) for i, lane in enumerate(lanes))


def unpack(value: int, columns: int) -> np.ndarray:
    return np.array([value >> (32 * i) & 0xFFFFFFFF for i in range(columns)], dtype=np.int64)


def random_lanes(rng: np.random.Generator, columns: int) -> np.ndarray:
    return rng.integers(0, 1 << 32, columns)


class Traffic:
    """Random requests on all ports, and the memory's content by the rules of visibility.

    A row is left alone by reads and writes while an update of it is not yet visible, as semaphores
    see to it in the machine; updates follow one another without any such care.
    """

    def __init__(
        self, memory: AccumulatorMemory, config: AcceleratorConfig, rng: np.random.Generator
    ) -> None:
        self.memory, self.config, self.rng = memory, config, rng
        self.rows = config.accumulator_total_rows
        self.content = {}
        self.visible = dict.fromkeys(range(self.rows), -1)  # cycle from which the row may be read
        self.due = [{} for _ in memory.reads]  # expected data by cycle
        self.asked = [None] * len(memory.reads)
        self.written = [None] * len(memory.writes)
        self.checked = 0

    def check(self, ctx, cycle: int) -> None:
        for port, due in zip(self.memory.reads, self.due):
            assert ctx.get(port.data_valid) == (cycle in due)
            if cycle in due:
                row = unpack(ctx.get(port.data), self.config.columns)
                np.testing.assert_array_equal(row, due.pop(cycle))
                self.checked += 1

    def drive(self, ctx, cycle: int, update_rate: float, hot: int) -> None:
        columns, rng = self.config.columns, self.rng
        update = rng.random() < update_rate
        update_row = int(rng.integers(0, hot))
        reserved = {write[0] for write in self.written if write} | set(self.asked)
        ctx.set(self.memory.update.valid, update and update_row not in reserved)
        ctx.set(self.memory.update.address, update_row)
        lanes = random_lanes(rng, columns)
        add = update_row in self.content and rng.random() < 0.8
        ctx.set(self.memory.update.data, pack(lanes))
        ctx.set(self.memory.update.add, add)
        if update and update_row not in reserved:
            old = self.content.get(update_row, np.zeros(columns, dtype=np.int64))
            self.content[update_row] = (lanes + old if add else lanes) % (1 << 32)
            self.visible[update_row] = cycle + self.memory.update_latency

        for k, port in enumerate(self.memory.reads):
            if self.asked[k] is None and rng.random() < 0.7:
                row = int(rng.integers(0, self.rows))
                if row in self.content and cycle >= self.visible[row]:
                    self.asked[k] = row
            ctx.set(port.valid, self.asked[k] is not None)
            ctx.set(port.address, self.asked[k] or 0)
        for k, port in enumerate(self.memory.writes):
            if self.written[k] is None and rng.random() < 0.5:
                row = int(rng.integers(0, self.rows))
                taken = any(w is not None and w[0] == row for w in self.written)
                if cycle >= self.visible[row] and not taken and row not in self.asked:
                    self.written[k] = (row, random_lanes(rng, columns))
                    strobe = int(rng.integers(0, 1 << columns))
                    ctx.set(port.strobe, strobe if row in self.content else (1 << columns) - 1)
            row, lanes = self.written[k] or (0, np.zeros(columns))
            ctx.set(port.valid, self.written[k] is not None)
            ctx.set(port.address, row)
            ctx.set(port.data, pack(lanes))

    def account(self, ctx, cycle: int) -> None:
        """Reads see what was accepted in earlier cycles; writes of this cycle come after."""
        for k, port in enumerate(self.memory.reads):
            if ctx.get(port.valid) and ctx.get(port.ready):
                self.due[k][cycle + READ_LATENCY] = self.content[self.asked[k]].copy()
                self.asked[k] = None
        for k, port in enumerate(self.memory.writes):
            if ctx.get(port.valid) and ctx.get(port.ready):
                row, lanes = self.written[k]
                keep = np.array([not ctx.get(port.strobe) >> i & 1 for i in range(len(lanes))])
                self.content[row] = np.where(keep, self.content.get(row, 0), lanes)
                self.visible[row] = cycle + 1
                self.written[k] = None


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("update_rate, hot_share", [(0.0, 1.0), (0.5, 1.0), (1.0, 0.3)])
def test_random_traffic(
    name: str, update_rate: float, hot_share: float, rng: np.random.Generator
) -> None:
    config = CONFIGS[name]
    memory = AccumulatorMemory(config, readers=3, writers=2)
    traffic = Traffic(memory, config, rng)
    hot = max(2, int(config.accumulator_total_rows * hot_share))

    async def bench(ctx):
        for cycle in range(800):
            traffic.check(ctx, cycle)
            traffic.drive(ctx, cycle, update_rate, hot)
            traffic.account(ctx, cycle)
            await ctx.tick()

    simulate(memory, bench)
    assert traffic.checked > 150


@pytest.mark.parametrize("gap", [1, 2, 3, 4, 5])
def test_updates_of_one_row_in_quick_succession_are_exact(
    gap: int, rng: np.random.Generator
) -> None:
    config = CONFIGS["2 banks"]
    memory = AccumulatorMemory(config)
    update, read = memory.update, memory.reads[0]
    rows = random_lanes(rng, 4 * 20).reshape(20, 4)

    async def bench(ctx):
        for number, lanes in enumerate(rows):
            ctx.set(update.valid, 1)
            ctx.set(update.address, 9)
            ctx.set(update.add, number > 0)
            ctx.set(update.data, pack(lanes))
            await ctx.tick()
            ctx.set(update.valid, 0)
            if number < len(rows) - 1:
                for _ in range(gap - 1):
                    await ctx.tick()
        await ctx.tick().repeat(memory.update_latency - 1)
        ctx.set(read.valid, 1)
        ctx.set(read.address, 9)
        assert ctx.get(read.ready)
        await ctx.tick().repeat(READ_LATENCY)
        expected = rows.sum(axis=0) % (1 << 32)
        np.testing.assert_array_equal(unpack(ctx.get(read.data), 4), expected)

    simulate(memory, bench)


def test_different_banks_never_stall_each_other() -> None:
    config = CONFIGS["2 banks"]
    memory = AccumulatorMemory(config, readers=1, writers=1)

    async def bench(ctx):
        for port, address in ((memory.update, 1), (memory.reads[0], 9), (memory.writes[0], 10)):
            ctx.set(port.address, address)
            ctx.set(port.valid, 1)
        ctx.set(memory.update.add, 1)
        for _ in range(2 * PATIENCE):
            assert ctx.get(memory.reads[0].ready)
            assert ctx.get(memory.writes[0].ready)
            assert not ctx.get(memory.update.pause)
            await ctx.tick()

    simulate(memory, bench)


def test_readers_of_one_bank_take_turns() -> None:
    memory = AccumulatorMemory(TINY, readers=3)
    served = []

    async def bench(ctx):
        for port in memory.reads:
            ctx.set(port.valid, 1)
        for _ in range(9):
            served.append([ctx.get(port.ready) for port in memory.reads].index(1))
            assert sum(ctx.get(port.ready) for port in memory.reads) == 1
            await ctx.tick()

    simulate(memory, bench)
    assert served == [0, 1, 2] * 3


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_starved_request_raises_pause_and_one_gap_serves_it(kind: str) -> None:
    memory = AccumulatorMemory(TINY, readers=1, writers=1)
    port = memory.reads[0] if kind == "read" else memory.writes[0]

    async def bench(ctx):
        ctx.set(memory.update.valid, 1)
        ctx.set(memory.update.add, 1)
        await ctx.tick().repeat(3)
        ctx.set(port.valid, 1)
        for waited in range(PATIENCE + 4):
            assert not ctx.get(port.ready)
            assert ctx.get(memory.update.pause) == (waited >= PATIENCE)
            await ctx.tick()
        ctx.set(memory.update.valid, 0)
        served = 0
        for _ in range(4):
            if ctx.get(port.valid) and ctx.get(port.ready):
                served += 1
                await ctx.tick()
                ctx.set(port.valid, 0)
                assert not ctx.get(memory.update.pause)
            else:
                await ctx.tick()
            ctx.set(memory.update.valid, 1)
        assert served == 1

    simulate(memory, bench)


def test_an_overwriting_update_leaves_the_read_port_free() -> None:
    memory = AccumulatorMemory(TINY, readers=1)

    async def bench(ctx):
        ctx.set(memory.update.valid, 1)
        ctx.set(memory.reads[0].valid, 1)
        assert ctx.get(memory.reads[0].ready)
        ctx.set(memory.update.add, 1)
        assert not ctx.get(memory.reads[0].ready)

    simulate(memory, bench)


def test_inhibit_suppresses_every_write() -> None:
    memory = AccumulatorMemory(TINY, readers=1, writers=1)
    read, write, update = memory.reads[0], memory.writes[0], memory.update

    async def bench(ctx):
        async def content(row: int) -> int:
            await ctx.tick().repeat(memory.update_latency)
            ctx.set(read.valid, 1)
            ctx.set(read.address, row)
            await ctx.tick()
            ctx.set(read.valid, 0)
            await ctx.tick().repeat(READ_LATENCY - 1)
            return ctx.get(read.data)

        for inhibit, value in ((0, 5), (1, 7), (0, 8)):
            ctx.set(memory.inhibit, inhibit)
            ctx.set(update.valid, 1)
            ctx.set(update.address, 3)
            ctx.set(update.data, value)
            ctx.set(write.valid, 1)
            ctx.set(write.address, 4)
            ctx.set(write.data, value)
            ctx.set(write.strobe, 1)
            await ctx.tick()
            ctx.set(update.valid, 0)
            ctx.set(write.valid, 0)
            assert await content(3) & 0xFFFFFFFF == (5 if inhibit else value)
            assert await content(4) & 0xFFFFFFFF == (5 if inhibit else value)

    simulate(memory, bench)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("name", ["readers", "writers"])
def test_port_counts_are_validated(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer, not 0"):
        AccumulatorMemory(TINY, **{name: 0})
    gc.collect()  # Amaranth warns when the half-made component goes: here, where it is expected
