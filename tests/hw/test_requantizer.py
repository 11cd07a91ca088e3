"""The requantizer against the arithmetic contract: each rounding, at its edges and at random."""

import gc
import random

import pytest
from amaranth.sim import Simulator

from weft_hw.arithmetic import requantize, wrap_int32
from weft_hw.gateware.requantizer import Requantizer
from weft_hw.instructions import Rounding

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
ROUNDINGS = tuple(Rounding)
VALUES = (0, 1, -1, 2, -2, 3, -3, 5, -5, 127, -128, 1 << 30, -(1 << 30), INT32_MAX, INT32_MIN)
VALUES += (INT32_MAX - 1, INT32_MIN + 1, 0x12345678, -0x12345678)
MULTIPLIERS = (0, 1, 2, 3, 0xFFFF, 0x10000, 1 << 30, (1 << 30) + 1, 3 << 29, (1 << 31) - 1)
EXPONENTS = (-31, -30, -17, -9, -8, -7, -2, -1, 0, 1, 2, 7, 8, 16, 30, 31)


def random_value(rng: random.Random) -> int:
    """Any magnitude is as likely as any other, so that ties and saturation both happen."""
    magnitude = rng.getrandbits(rng.randint(0, 32))
    return (
        rng.choice(VALUES)
        if rng.random() < 0.2
        else ((magnitude + (1 << 31)) % (1 << 32)) - (1 << 31)
    )


def random_multiplier(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(MULTIPLIERS)
    if kind < 0.5:
        return 1 << rng.randint(0, 30)  # a power of two makes ties
    return rng.getrandbits(31)


def expected(case: dict) -> list[int]:
    sums = [
        int(wrap_int32(int(wrap_int32(value + bias)) << case["pre_shift"]))
        for value, bias in zip(case["value"], case["bias"])
    ]
    if case["bypass"]:
        return sums
    return [
        int(requantize(total, multiplier, exponent, case["rounding"], word))
        for total, multiplier, exponent, word in zip(
            sums, case["multiplier"], case["exponent"], case["random"]
        )
    ]


def run(lanes: int, cases: list[dict], rng: random.Random, gaps: float) -> None:
    """Feed the cases, with random gaps between them, and compare results and their cycles."""
    dut = Requantizer(lanes)
    entered: list[int] = []
    left: list[tuple[int, list[int]]] = []
    cycle = 0

    async def bench(ctx):
        nonlocal cycle
        waiting = list(cases)
        while len(left) < len(cases):
            valid = bool(waiting) and rng.random() >= gaps
            ctx.set(dut.i_valid, valid)
            if valid:
                case = waiting.pop(0)
                for name in ("pre_shift", "rounding", "bypass"):
                    ctx.set(getattr(dut, name), int(case[name]))
                for name in ("value", "bias", "multiplier", "exponent"):
                    for port, number in zip(getattr(dut, name), case[name]):
                        ctx.set(port, number)
                entered.append(cycle)
            words = [rng.getrandbits(16) for _ in range(lanes)]
            if cycle - dut.random_delay in entered:
                words = cases[entered.index(cycle - dut.random_delay)]["random"]
            for port, word in zip(dut.random, words):
                ctx.set(port, word)
            if ctx.get(dut.o_valid):
                left.append((cycle, [ctx.get(port) for port in dut.result]))
            assert cycle < 10 * len(cases) + 100
            await ctx.tick()
            cycle += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    for case, at, (when, result) in zip(cases, entered, left, strict=True):
        assert when == at + dut.latency
        assert result == expected(case), case


def edge_cases(lanes: int, rounding: Rounding) -> list[dict]:
    """Every pair of edge multiplier and exponent over every edge value, lanes at a time."""
    triples = [(v, f, e) for f in MULTIPLIERS for e in EXPONENTS for v in VALUES]
    cases = []
    for start in range(0, len(triples), lanes):
        chunk = triples[start : start + lanes]
        chunk += [(0, 0, 0)] * (lanes - len(chunk))
        values, multipliers, exponents = zip(*chunk)
        cases.append(
            {
                "value": values,
                "bias": [0] * lanes,
                "multiplier": multipliers,
                "exponent": exponents,
                "random": [(77 * start + lane * 9001) % 65536 for lane in range(lanes)],
                "pre_shift": 0,
                "rounding": rounding,
                "bypass": False,
            }
        )
    return cases


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_edges(rounding: Rounding) -> None:
    run(16, edge_cases(16, rounding), random.Random(0), gaps=0.0)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("case", range(2))
def test_random_vectors_with_gaps(lanes: int, case: int) -> None:
    rng = random.Random(f"{case} {lanes}")
    cases = [
        {
            "value": [random_value(rng) for _ in range(lanes)],
            "bias": [rng.choice([0, random_value(rng)]) for _ in range(lanes)],
            "multiplier": [random_multiplier(rng) for _ in range(lanes)],
            "exponent": [rng.randint(-31, 31) for _ in range(lanes)],
            "random": [rng.choice([0, 65535, rng.getrandbits(16)]) for _ in range(lanes)],
            "pre_shift": rng.choice([0, 0, 20, rng.randint(0, 31)]),
            "rounding": rng.choice(ROUNDINGS),
            "bypass": rng.random() < 0.2,
        }
        for _ in range(400)
    ]
    run(lanes, cases, rng, gaps=0.3)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("lanes", [0, -1, 2.0])
def test_lanes_are_validated(lanes: int) -> None:
    with pytest.raises(ValueError, match="`lanes` must be a positive integer, not"):
        Requantizer(lanes)
    gc.collect()  # Amaranth warns when the half-made component goes: here, where it is expected
