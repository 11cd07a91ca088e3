"""The loop nest against nested Python loops."""

import itertools
import random

import pytest
from amaranth.sim import Simulator

from weft_hw.gateware.loops import LoopNest


@pytest.mark.parametrize("case", range(12))
def test_values_and_flags_equal_nested_loops(case: int) -> None:
    rng = random.Random(case)
    loops = rng.randint(1, 5)
    counts = [rng.choice([1, 1, 2, 3, 4]) for _ in range(loops)]
    streams = {"a": 20, "b": 13}
    bases = {name: rng.randint(-1000, 1000) for name in streams}
    strides = {name: [rng.randint(-200, 200) for _ in range(loops)] for name in streams}
    handover = bool(case % 2)
    prepared = case % 4 == 3
    nest = LoopNest(loops=loops, streams=streams, handover=handover, prepared=prepared)

    async def bench(ctx):
        for i, count in enumerate(counts):
            ctx.set(nest.first_counts[i] if handover else nest.counts[i], count)
            if handover:
                ctx.set(nest.counts[i], rng.randint(1, 4))
            for name in streams:
                ctx.set(getattr(nest, f"{name}_strides")[i], strides[name][i])
        for name in streams:
            ctx.set(getattr(nest, f"{name}_base"), bases[name])
        if prepared:
            await ctx.tick()
        ctx.set(nest.load, 1)
        await ctx.tick()
        ctx.set(nest.load, 0)
        for i, count in enumerate(counts):
            if handover:
                ctx.set(nest.first_counts[i], rng.randint(1, 4))
            ctx.set(nest.counts[i], count)
        assert not ctx.get(nest.ready)
        await ctx.tick()
        assert ctx.get(nest.ready)
        trips = list(itertools.product(*[range(count) for count in counts]))
        for number, index in enumerate(trips):
            for name in streams:
                expected = bases[name] + sum(i * s for i, s in zip(index, strides[name]))
                assert ctx.get(getattr(nest, name)) == expected
            for i in range(loops):
                assert ctx.get(nest.first) >> i & 1 == (index[i] == 0)
                assert ctx.get(nest.last) >> i & 1 == (index[i] == counts[i] - 1)
            assert ctx.get(nest.finished) == (number == len(trips) - 1)
            if number == len(trips) - 1:
                break
            while rng.random() < 0.3:
                ctx.set(nest.advance, 0)
                await ctx.tick()
            ctx.set(nest.advance, 1)
            await ctx.tick()
            ctx.set(nest.advance, 0)

    simulator = Simulator(nest)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("case", range(12))
def test_trips_left_out_where_windows_overlap(case: int) -> None:
    """The innermost loop's later trips only, from the second trip of the overlapping loop on."""
    rng = random.Random(case)
    loops = rng.randint(2, 5)
    overlap = rng.randrange(loops - 1)
    counts = [*(rng.choice([1, 2, 3]) for _ in range(loops - 1)), rng.choice([2, 3, 4])]
    short = rng.randint(1, counts[-1])
    strides = [rng.randint(-200, 200) for _ in range(loops)]
    skipped = counts[-1] - short
    nest = LoopNest(loops=loops, streams={"a": 20, "b": 20}, overlap=overlap, leaping=["a"])
    trips = [
        index
        for index in itertools.product(*[range(count) for count in counts])
        if index[overlap] == 0 or index[-1] >= skipped
    ]

    async def bench(ctx):
        for i, count in enumerate(counts):
            ctx.set(nest.counts[i], count)
            ctx.set(nest.a_strides[i], strides[i])
            ctx.set(nest.b_strides[i], strides[i] if i <= overlap else 0)
        ctx.set(nest.overlaps, 1)
        ctx.set(nest.short_count, short)
        ctx.set(nest.a_leap, strides[overlap] + skipped * strides[-1])
        ctx.set(nest.load, 1)
        await ctx.tick()
        ctx.set(nest.load, 0)
        await ctx.tick()
        for number, index in enumerate(trips):
            assert ctx.get(nest.a) == sum(i * s for i, s in zip(index, strides))
            assert ctx.get(nest.b) == sum(i * s for i, s in zip(index[: overlap + 1], strides))
            for i in range(loops - 1):
                assert ctx.get(nest.first) >> i & 1 == (index[i] == 0)
            for i in range(loops):
                assert ctx.get(nest.last) >> i & 1 == (index[i] == counts[i] - 1)
            assert ctx.get(nest.finished) == (number == len(trips) - 1)
            ctx.set(nest.advance, number < len(trips) - 1)
            await ctx.tick()

    simulator = Simulator(nest)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
