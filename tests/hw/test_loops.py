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
    nest = LoopNest(loops=loops, streams=streams)

    async def bench(ctx):
        for i, count in enumerate(counts):
            ctx.set(nest.counts[i], count)
            for name in streams:
                ctx.set(getattr(nest, f"{name}_strides")[i], strides[name][i])
        for name in streams:
            ctx.set(getattr(nest, f"{name}_base"), bases[name])
        ctx.set(nest.load, 1)
        await ctx.tick()
        ctx.set(nest.load, 0)
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
