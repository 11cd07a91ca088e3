"""Random bits of stochastic rounding: the function, its statistics, and the gateware for it."""

import gc
import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.speck import encrypt, random_word
from weft_hw.arithmetic import random_bits
from weft_hw.gateware.random_bits import RandomBits

WORDS = (0, 1, 0xFFFF, 0x10000, 0x80000000, 0xFFFFFFFF)


def test_published_vector() -> None:
    assert encrypt(0x6574, 0x694C, (0x1918, 0x1110, 0x0908, 0x0100)) == (0xA868, 0x42F2)


def test_random_bits(seed: int) -> None:
    rng = random.Random(seed)

    def word() -> int:
        return rng.choice([rng.choice(WORDS), rng.getrandbits(32)])

    for _ in range(50):
        run, step, tensor = word(), word(), rng.choice([0, 1, 4095, rng.getrandbits(12)])
        indices = [word() for _ in range(20)] + [(1 << 32) + 5, -1]
        found = random_bits(run, step, tensor, np.array(indices))
        assert found.tolist() == [random_word(run, step, tensor, i) for i in indices]


# Each limit below is five standard deviations of what independent fair bits would give.

COUNT = 1 << 18


def _tensors() -> list[np.ndarray]:
    index = np.arange(COUNT)
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2, 0), (1, 0, 0), (2, 0, 0), (1 << 31, 0, 0)]
    return [random_bits(*place, index) for place in places]


def test_bits_are_uniform() -> None:
    for tensor in _tensors():
        for bit in range(16):
            ones = int((tensor >> bit & 1).sum())
            assert abs(ones - COUNT / 2) < 5 * np.sqrt(COUNT) / 2
        counts = np.bincount(tensor >> 8, minlength=256)
        chi_squared = float(((counts - COUNT / 256) ** 2).sum() / (COUNT / 256))
        assert abs(chi_squared - 255) < 5 * np.sqrt(2 * 255)


def test_neighbours_and_other_places_are_independent() -> None:
    """Correlation of elements 1, 2, 16, 64 and 4,096 apart, and of each two tensors."""
    tensors = [tensor - 32767.5 for tensor in _tensors()]
    pairs = [(t[:-lag], t[lag:]) for t in tensors for lag in (1, 2, 16, 64, 4096)]
    pairs += [(a, b) for i, a in enumerate(tensors) for b in tensors[:i]]
    for first, second in pairs:
        correlation = float((first * second).mean()) / (65536**2 / 12)
        assert abs(correlation) < 5 / np.sqrt(len(first))


@pytest.mark.parametrize("lanes", [1, 4])
def test_gateware(lanes: int) -> None:
    rng = random.Random(lanes)
    dut = RandomBits(lanes)
    entered: list[tuple[int, int, int]] = []  # cycle, index, tensor
    seen: list[list[int]] = []
    seed, step = 0x89ABCDEF, 0x76543210

    async def bench(ctx):
        ctx.set(dut.seed, seed)
        ctx.set(dut.step, step)
        await ctx.tick().repeat(11)
        for cycle in range(200):
            valid = rng.random() < 0.6
            ctx.set(dut.i_valid, valid)
            if valid:
                index = rng.choice([rng.getrandbits(32), 0xFFFFFFFF, 0xFFFE])
                entered.append((cycle, index, rng.getrandbits(12)))
            ctx.set(dut.index, entered[-1][1] if entered else 0)
            ctx.set(dut.tensor, entered[-1][2] if entered else 0)
            seen.append([ctx.get(port) for port in dut.bits])
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    compared = 0
    for cycle, index, tensor in entered:
        if cycle + dut.latency < len(seen):
            expected = [random_word(seed, step, tensor, index + lane) for lane in range(lanes)]
            assert seen[cycle + dut.latency] == expected
            compared += 1
    assert compared > 80


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("lanes", [0, -1, 2.0])
def test_lanes_are_validated(lanes: int) -> None:
    with pytest.raises(ValueError, match="`lanes` must be a positive integer, not"):
        RandomBits(lanes)
    gc.collect()  # Amaranth warns when the half-made component goes: here, where it is expected
