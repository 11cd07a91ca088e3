"""The semaphores against a model with plain integers."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator

from weft_hw.config import PRESETS
from weft_hw.gateware.semaphores import Semaphores

QUEUES = 4
CONFIGS = {
    "16 counters of 8 bits": PRESETS["tiny"],
    "9 counters of 2 bits": dataclasses.replace(PRESETS["tiny"], semaphores=9, semaphore_bits=2),
}


def simulate(dut: Semaphores, process) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()


class Model:
    """Counts as a dictionary; requests in order of queues."""

    def __init__(self, existing: int, largest: int) -> None:
        self.existing, self.largest = existing, largest
        self.counts = dict.fromkeys(range(existing), 0)
        self.taken: set[int] = set()  # granted in the cycle before

    def grants(self, requests: list[set[int] | None]) -> list[bool]:
        granted, spoken_for = [], set()
        for wanted in requests:
            granted.append(
                wanted is not None
                and all(self.counts.get(number, 0) > 0 for number in wanted)
                and not wanted & (spoken_for | self.taken)
            )
            spoken_for |= wanted or set()
        return granted

    def overflow(self, signals: list[set[int]]) -> int | None:
        """The queue to blame; what is granted in this cycle leaves no room yet."""
        for queue, mask in enumerate(signals):
            for number in mask:
                if number >= self.existing:
                    return queue
                total = self.counts[number] + sum(number in s for s in signals)
                if total > self.largest:
                    return queue
        return None

    def step(self, granted: list[set[int]], signals: list[set[int]]) -> None:
        for number in self.counts:
            total = self.counts[number] + sum(number in s for s in signals)
            self.counts[number] = min(total, self.largest) - any(number in g for g in granted)
        self.taken = set().union(*granted)


def bits_of(numbers: set[int]) -> int:
    return sum(1 << number for number in numbers)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("case", range(3))
def test_random_traffic_equals_model(name: str, case: int, seed: int) -> None:
    config = CONFIGS[name]
    rng = random.Random(f"{seed} {name} {case}")
    model = Model(config.semaphores, (1 << config.semaphore_bits) - 1)
    dut = Semaphores(config)
    seen = {"granted": 0, "refused": 0, "overflow": 0, "both": 0, "contested": 0}

    def some(largest: int) -> set[int]:
        return set(rng.sample(range(16), rng.choice([0, 1, 1, 2, largest])))

    async def process(ctx):
        blamed_before = None  # an overflow is reported in the next cycle
        for cycle in range(800):
            # Few signals at first, many towards the end.
            requests = [some(3) if rng.random() < 0.7 else None for _ in range(QUEUES)]
            signals = [some(4) if rng.random() < cycle / 1000 else set() for _ in range(QUEUES)]
            clear = rng.random() < 0.005
            for queue, wanted in enumerate(requests):
                ctx.set(dut.request[queue], wanted is not None)
                # Without a request, the mask must not matter.
                ctx.set(dut.mask[queue], rng.getrandbits(16) if wanted is None else bits_of(wanted))
                ctx.set(dut.signal[queue], bits_of(signals[queue]))
            ctx.set(dut.clear, clear)
            expected = model.grants(requests)
            assert [bool(ctx.get(grant)) for grant in dut.grant] == expected
            granted = [wanted for wanted, yes in zip(requests, expected) if yes]
            blamed = model.overflow(signals)
            assert ctx.get(dut.overflow) == (blamed_before is not None)
            if blamed_before is not None:
                assert ctx.get(dut.overflow_queue) == blamed_before
                seen["overflow"] += 1
            blamed_before = blamed
            seen["granted"] += sum(bool(wanted) for wanted in granted)
            seen["refused"] += sum(r is not None for r in requests) - len(granted)
            signalled = set().union(*signals)
            seen["both"] += bool(set().union(*granted) & signalled)
            seen["contested"] += len(set().union(*(r or set() for r in requests))) < sum(
                len(r or set()) for r in requests
            )
            model.step(granted, signals)
            if clear:
                model.counts = dict.fromkeys(model.counts, 0)
                model.taken = set()
            await ctx.tick()

    simulate(dut, process)
    if config.semaphore_bits > 2:
        seen["overflow"] += 1  # too many cycles away; the other configuration has it
    assert all(seen.values()), f"the stimulus left something out: {seen}"


def test_one_count_is_granted_to_one_of_two_queues() -> None:
    dut = Semaphores(PRESETS["tiny"])

    async def process(ctx):
        ctx.set(dut.signal[3], 0b100)
        await ctx.tick()
        ctx.set(dut.signal[3], 0)
        for queue in (1, 2):
            ctx.set(dut.request[queue], 1)
            ctx.set(dut.mask[queue], 0b100)
        assert [ctx.get(grant) for grant in dut.grant] == [0, 1, 0, 0]
        await ctx.tick()
        assert [ctx.get(grant) for grant in dut.grant] == [0, 0, 0, 0]

    simulate(dut, process)


def test_increment_and_decrement_in_one_cycle_leave_the_count() -> None:
    config = dataclasses.replace(PRESETS["tiny"], semaphore_bits=2)
    dut = Semaphores(config)

    async def process(ctx):
        ctx.set(dut.signal[0], 1)
        await ctx.tick().repeat(2)  # one less than the largest count
        ctx.set(dut.request[1], 1)
        ctx.set(dut.mask[1], 1)
        for _ in range(5):
            assert ctx.get(dut.grant[1])
            assert not ctx.get(dut.overflow)
            await ctx.tick()
            ctx.set(dut.signal[0], 0)
            assert not ctx.get(dut.grant[1])  # in the cycle in which it is taken
            await ctx.tick()
            ctx.set(dut.signal[0], 1)
        ctx.set(dut.request[1], 0)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.overflow)

    simulate(dut, process)
