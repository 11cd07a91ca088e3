"""The NumPy contract against exact fractions and TFLite's published formulas in Python integers."""

import math
import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from weft_hw.arithmetic import (
    quantize_multiplier,
    requantize,
    rounding_shift,
    saturate_int32,
    wrap_int32,
)
from weft_hw.instructions import Rounding

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
MULTIPLIERS = (0, 1, 2, 3, (1 << 30) - 1, 1 << 30, (1 << 30) + 1, 3 << 29, (1 << 31) - 1)
EXPONENTS = tuple(range(-31, 32))
VALUES = (0, 1, -1, 2, -2, 3, -3, 255, -255, 256, -256, 1 << 15, -(1 << 15), 1 << 30, -(1 << 30))
VALUES += (INT32_MAX - 1, INT32_MAX, INT32_MIN, INT32_MIN + 1)


# The references -----------------------------------------------------------------------------------


def as_int32(value: int) -> int:
    """C's conversion to int32_t on every machine that matters."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def truncating_division(numerator: int, denominator: int) -> int:
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def saturating_rounding_doubling_high_mul(a: int, b: int) -> int:
    """gemmlowp's function of that name, line by line."""
    overflow = a == b and a == INT32_MIN
    ab_64 = a * b
    nudge = 1 << 30 if ab_64 >= 0 else 1 - (1 << 30)
    ab_x2_high32 = truncating_division(ab_64 + nudge, 1 << 31)
    return INT32_MAX if overflow else ab_x2_high32


def rounding_divide_by_pot(x: int, exponent: int) -> int:
    """gemmlowp's function of that name, line by line."""
    mask = (1 << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if remainder > threshold else 0)


def multiply_by_quantized_multiplier(x: int, multiplier: int, shift: int) -> int:
    """TFLite's double-rounding form; the left shift wraps as its int32 product does."""
    left_shift, right_shift = max(shift, 0), max(-shift, 0)
    high = saturating_rounding_doubling_high_mul(as_int32(x * (1 << left_shift)), multiplier)
    return rounding_divide_by_pot(high, right_shift)


def nearest(exact: Fraction, tie: str) -> int:
    """The nearest integer; of two equally near ones the greater, the even or the farther from 0."""
    floor = math.floor(exact)
    rest = exact - floor
    if rest != Fraction(1, 2):
        return floor + (rest > Fraction(1, 2))
    candidates = (floor, floor + 1)
    chosen = {"up": max, "even": lambda pair: min(pair, key=lambda n: n % 2), "away": _farther}
    return chosen[tie](candidates)


def _farther(pair: tuple[int, int]) -> int:
    return max(pair, key=abs)


def one_step(tie: str) -> Callable[[int, int, int], int]:
    def scaled(value: int, multiplier: int, exponent: int) -> int:
        exact = Fraction(value * multiplier) / Fraction(2) ** (31 - exponent)
        return min(max(nearest(exact, tie), INT32_MIN), INT32_MAX)

    return scaled


REFERENCES = {
    Rounding.TWO_STEP: multiply_by_quantized_multiplier,
    Rounding.HALF_UP: one_step("up"),
    Rounding.HALF_EVEN: one_step("even"),
}


def compare(rounding: Rounding, triples: list[tuple[int, int, int]]) -> None:
    values, multipliers, exponents = np.array(triples, dtype=np.int64).T
    results = requantize(values, multipliers, exponents, rounding)
    assert results.dtype == np.int64
    for triple, result in zip(triples, results.tolist()):
        assert result == REFERENCES[rounding](*triple), (rounding.name, *triple)


# Tests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", REFERENCES)
def test_requantize_at_the_edges(rounding: Rounding) -> None:
    compare(rounding, [(v, f, e) for v in VALUES for f in MULTIPLIERS for e in EXPONENTS])


@pytest.mark.parametrize("rounding", REFERENCES)
def test_requantize_at_ties(rounding: Rounding) -> None:
    """Power-of-two multipliers; values exactly between two results, and their neighbours."""
    triples = []
    for bits in (0, 1, 5, 29, 30):
        for exponent in range(-31, 31):
            shift = 31 - exponent - bits  # by which the value itself is shifted right
            if not 1 <= shift <= 31:
                continue
            half = 1 << (shift - 1)
            for odd in (1, -1, 3, -3, 5, -5, 1001, -1001):
                for value in (odd * half - 1, odd * half, odd * half + 1):
                    if INT32_MIN <= value <= INT32_MAX:
                        triples.append((value, 1 << bits, exponent))
    assert len(triples) > 2000
    compare(rounding, triples)


@pytest.mark.parametrize("rounding", REFERENCES)
def test_requantize_at_random(rounding: Rounding, seed: int) -> None:
    rng = random.Random(seed)
    triples = []
    for _ in range(4000):
        bits = rng.randint(1, 32)
        value = rng.getrandbits(bits) - (1 << (bits - 1))
        multiplier = rng.getrandbits(rng.randint(1, 31))
        triples.append((value, multiplier, rng.randint(-31, 31)))
    compare(rounding, triples)


def test_the_roundings_differ_where_they_should() -> None:
    """Halves of either sign, by one step and by TFLite's two."""
    halves, multiplier = np.array([-3, -1, 1, 3]), 1 << 30

    def result(rounding: Rounding) -> list[int]:
        return requantize(halves, multiplier, 0, rounding).tolist()

    assert result(Rounding.HALF_UP) == [-1, 0, 1, 2]
    assert result(Rounding.HALF_EVEN) == [-2, 0, 0, 2]
    assert result(Rounding.TWO_STEP) == [-1, 0, 1, 2]
    # 0.4999... becomes 1/2 in the first rounding and 1 in the second; one rounding gives 0.
    almost = (1, (1 << 31) - 1, -1)
    assert requantize(*almost, Rounding.TWO_STEP) == 1
    assert requantize(*almost, Rounding.HALF_UP) == 0
    # Only the second of the two steps rounds halves away from zero.
    assert requantize(np.array([-4, 4]), multiplier, -2, Rounding.TWO_STEP).tolist() == [-1, 1]
    assert requantize(np.array([-4, 4]), multiplier, -2, Rounding.HALF_UP).tolist() == [0, 1]


def test_requantize_broadcasts_channels() -> None:
    values = np.arange(-6, 6).reshape(3, 4) * 1000
    multipliers, exponents = np.array([1 << 30, 3 << 29, 1, 0]), np.array([0, -3, 31, 5])
    results = requantize(values, multipliers, exponents, Rounding.TWO_STEP)
    for row, value in zip(results.tolist(), values.tolist()):
        for channel in range(4):
            expected = multiply_by_quantized_multiplier(
                value[channel], int(multipliers[channel]), int(exponents[channel])
            )
            assert row[channel] == expected


def test_stochastic_rounding(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(4000):
        bits, exponent = rng.randint(1, 32), rng.choice([rng.randint(-31, 31), 31, 15, 16])
        value = rng.choice([rng.getrandbits(bits) - (1 << (bits - 1)), INT32_MIN, INT32_MAX])
        multiplier = rng.choice([rng.getrandbits(31), 1 << rng.randint(0, 30), 0])
        exact = Fraction(value * multiplier) * Fraction(2) ** (exponent - 31)
        fraction = math.floor((exact - math.floor(exact)) * 65536)
        # The bits at which it begins to be rounded up, and others.
        for word in {65535 - fraction, 65536 - fraction, 0, 65535, rng.getrandbits(16)} - {65536}:
            expected = math.floor(exact) + (fraction + word >= 65536)
            found = int(requantize(value, multiplier, exponent, Rounding.STOCHASTIC, word))
            assert found == min(max(expected, INT32_MIN), INT32_MAX)


def test_stochastic_rounding_is_unbiased_and_exact_where_nothing_is_discarded() -> None:
    words = np.arange(65536)
    results = requantize(-5, 3 << 20, 0, Rounding.STOCHASTIC, words)  # -5 * 3 / 2^11
    assert int(results.sum()) == -5 * 3 * 65536 // 2048
    assert set(requantize(-5, 1 << 30, 1, Rounding.STOCHASTIC, words).tolist()) == {-5}


def test_stochastic_rounding_needs_random_bits() -> None:
    with pytest.raises(ValueError, match="stochastic rounding needs random bits"):
        requantize(1, 1, 0, Rounding.STOCHASTIC)


@pytest.mark.parametrize("tie", ["up", "even", "away"])
def test_rounding_shift(tie: str) -> None:
    rng = random.Random(3)
    pairs = [(value, shift) for value in range(-40, 41) for shift in range(5)]
    for shift in range(63):
        half = (1 << shift) >> 1
        pairs += [(s * half + d, shift) for s in (-3, -1, 1) for d in (-1, 0, 1)]
        pairs += [(rng.getrandbits(62) - (1 << 61), shift) for _ in range(10)]
    pairs = [(value, shift) for value, shift in pairs if -(1 << 62) <= value < 1 << 62]
    values, shifts = np.array(pairs, dtype=np.int64).T
    results = rounding_shift(values, shifts, tie)
    for (value, shift), result in zip(pairs, results.tolist()):
        assert result == nearest(Fraction(value, 1 << shift), tie), (value, shift)


def test_wrap_and_saturate() -> None:
    values = [0, INT32_MAX, INT32_MAX + 1, INT32_MIN, INT32_MIN - 1, (1 << 32) + 5, -(1 << 62)]
    assert wrap_int32(values).tolist() == [as_int32(value) for value in values]
    saturated = [min(max(value, INT32_MIN), INT32_MAX) for value in values]
    assert saturate_int32(values).tolist() == saturated


def test_quantize_multiplier_is_the_nearest_with_31_bits() -> None:
    rng = random.Random(4)
    scales = [rng.uniform(0.5, 1.0) * 2.0 ** rng.randint(-31, 29) for _ in range(2000)]
    scales += [2.0**k for k in range(-32, 30)] + [1.0 - 2.0**-40, 0.5 + 2.0**-32]
    for scale in scales:
        multiplier, exponent = quantize_multiplier(scale)
        assert 1 << 30 <= multiplier < 1 << 31 and -31 <= exponent <= 30
        # In units of the multiplier's last bit the error is at most a half.
        error = abs(Fraction(scale) * Fraction(2) ** (31 - exponent) - multiplier)
        assert error <= Fraction(1, 2), scale


def test_quantize_multiplier_rounds_halves_away_and_carries() -> None:
    assert quantize_multiplier(0.5 + 2.0**-32) == ((1 << 30) + 1, 0)
    assert quantize_multiplier(1.0 - 2.0**-33) == (1 << 30, 1)
    assert quantize_multiplier(1.0) == (1 << 30, 1)


@pytest.mark.parametrize("scale", [0.0, 2.0**-33, 2.0**-60, 5e-324])
def test_quantize_multiplier_of_almost_nothing(scale: float) -> None:
    assert quantize_multiplier(scale) == (0, 0)


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_quantize_multiplier_rejects_what_is_no_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="`scale` must be finite and not negative, not"):
        quantize_multiplier(scale)


@pytest.mark.parametrize("scale", [2.0**30, 1.0e30, 2.0**30 - 2.0**-2])
def test_quantize_multiplier_rejects_too_large_a_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="`scale` must be below 2\\^30, not"):
        quantize_multiplier(scale)
