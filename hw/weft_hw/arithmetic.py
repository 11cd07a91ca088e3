"""The arithmetic contract as plain NumPy: what every engine computes, bit for bit.

Integers only. Sums wrap in 32 bits; a sum is brought back to 8 bits by a 31-bit multiplier and a
power of two, in one of the roundings of :class:`weft_hw.instructions.Rounding`.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft_hw.instructions import Operation, Rounding

__all__ = [
    "INT32_MAX",
    "INT32_MIN",
    "RANDOM_ROUNDS",
    "quantize_multiplier",
    "random_bits",
    "requantize",
    "rounding_shift",
    "saturate_int32",
    "scalar_operation",
    "wrap_int32",
]

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1

RANDOM_ROUNDS = range(5, 12)
"""Of the cipher's 22, the ones that make random bits: enough that no pattern is left to be seen.

The first round keys are left out, because not all of seed and step has entered them."""

Int64Array = NDArray[np.int64]


def wrap_int32(value: ArrayLike) -> Int64Array:
    """Reduce modulo 2^32 into the int32 range (result dtype int64)."""
    return np.asarray(value, dtype=np.int64).astype(np.int32).astype(np.int64)


def saturate_int32(value: ArrayLike) -> Int64Array:
    """Clamp into the int32 range (result dtype int64)."""
    return np.clip(np.asarray(value, dtype=np.int64), INT32_MIN, INT32_MAX)


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """A positive real scale as ``multiplier * 2**(exponent - 31)``.

    The multiplier has 31 significant bits, rounded half away from zero, as in TFLite's
    ``QuantizeMultiplier``; scales below 2^-32 give (0, 0).

    Returns
    -------
    multiplier : int
        In [2^30, 2^31), or 0.
    exponent : int
        In [-31, 30].

    Raises
    ------
    ValueError
        If the scale is negative, not finite or 2^30 and more.
    """
    if not math.isfinite(scale) or scale < 0:
        raise ValueError(f"`scale` must be finite and not negative, not {scale!r}")
    if scale == 0:
        return 0, 0
    mantissa, exponent = math.frexp(scale)
    multiplier = math.floor(mantissa * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, exponent = 1 << 30, exponent + 1
    if exponent < -31:
        return 0, 0
    if exponent > 30:
        raise ValueError(f"`scale` must be below 2^30, not {scale!r}")
    return multiplier, exponent


def rounding_shift(value: ArrayLike, shift: ArrayLike, tie: str) -> Int64Array:
    """``value / 2**shift`` rounded to the nearest integer.

    Parameters
    ----------
    value : int64 array
    shift : int array
        From 0 to 62, broadcast against ``value``.
    tie : {"up", "even", "away"}
        Where a half goes: to plus infinity, to the even neighbour, away from zero.
    """
    value = np.asarray(value, dtype=np.int64)
    shift = np.asarray(shift, dtype=np.int64)
    floor = value >> shift
    discarded = value - (floor << shift)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), np.int64(1))
    round_tie = {"up": np.bool_(True), "even": (floor & 1) == 1, "away": value >= 0}[tie]
    result: Int64Array = floor + ((discarded > half) | ((discarded == half) & round_tie))
    return result


def scalar_operation(operation: Operation, first: int, second: int) -> int:
    """What a SCALAR instruction computes of two int32 numbers; sums wrap in 32 bits.

    ``SHIFT`` goes left by a positive ``second``, right with the sign by a negative one;
    ``LEADING_ZEROS`` counts those of ``first`` as 32 bits without sign; ``MULTIPLY_HIGH`` is the
    upper half of the product; ``DIVIDE`` truncates towards zero, and by zero gives the int32 with
    the sign of ``first`` that is farthest from zero, or zero.
    """
    match operation:
        case Operation.MOVE:
            result = second
        case Operation.ADD:
            result = first + second
        case Operation.SUBTRACT:
            result = first - second
        case Operation.MINIMUM:
            result = min(first, second)
        case Operation.MAXIMUM:
            result = max(first, second)
        case Operation.SHIFT:
            result = first << min(second, 32) if second >= 0 else first >> min(-second, 32)
        case Operation.LEADING_ZEROS:
            result = 32 - (first & 0xFFFFFFFF).bit_length()
        case Operation.MULTIPLY_HIGH:
            result = first * second >> 32
        case Operation.DIVIDE if second == 0:
            result = 0 if first == 0 else INT32_MAX if first > 0 else INT32_MIN
        case Operation.DIVIDE:
            quotient = abs(first) // abs(second)
            result = quotient if (first < 0) == (second < 0) else -quotient
    return (result - INT32_MIN) % (1 << 32) + INT32_MIN


def random_bits(seed: int, step: int, tensor: int, index: ArrayLike) -> Int64Array:
    """16 random bits of an element: a function of its place alone, so no tiling changes them.

    The first half of what the rounds ``RANDOM_ROUNDS`` of the block cipher Speck32/64 (rotations by
    7 and 2) make of a block. The block is ``index ^ (tensor << 20)``, upper half first; the key
    words are, from the first that enters, step (lower half), seed (lower), step (upper), seed
    (upper).

    Parameters
    ----------
    seed, step : int
        32 bits: of a run, and of a pass over the network in it.
    tensor : int
        12 bits.
    index : int array
        Number of the element in its tensor, modulo 2^32.

    Returns
    -------
    int64 array
        From 0 to 65,535.
    """
    word = 0xFFFF
    block = (np.asarray(index, dtype=np.int64) & 0xFFFFFFFF) ^ ((tensor << 20) & 0xFFFFFFFF)
    x, y = block >> 16, block & word
    key, others = step & word, [seed & word, step >> 16 & word, seed >> 16 & word]
    for number in range(RANDOM_ROUNDS.stop):
        if number in RANDOM_ROUNDS:
            x = (((x >> 7 | x << 9) & word) + y & word) ^ key
            y = ((y << 2 | y >> 14) & word) ^ x
        others.append((key + (others[number] >> 7 | others[number] << 9) & word) ^ number)
        key = ((key << 2 | key >> 14) & word) ^ others[-1]
    return x


def _stochastic_shift(value: Int64Array, shift: Int64Array, random: ArrayLike) -> Int64Array:
    """``value / 2**shift``, rounded up where its fraction's first 16 bits and ``random`` carry."""
    floor = value >> shift
    discarded = value - (floor << shift)
    fraction = (discarded >> np.maximum(shift - 16, 0)) << np.maximum(16 - shift, 0)
    result: Int64Array = floor + (fraction + np.asarray(random, dtype=np.int64) >= 1 << 16)
    return result


def requantize(
    value: ArrayLike,
    multiplier: ArrayLike,
    exponent: ArrayLike,
    rounding: Rounding,
    random: ArrayLike | None = None,
) -> Int64Array:
    """``value * multiplier * 2**(exponent - 31)``, rounded and saturated to int32.

    Roundings:

    * ``TWO_STEP``: the value is shifted left by a positive exponent (wrapping in 32 bits), then
      ``high = floor((value * multiplier + 2^30) / 2^31)``, then ``high / 2^-exponent`` with halves
      away from zero (TFLite's ``MultiplyByQuantizedMultiplier``: a saturating rounding doubling
      high multiply and a rounding right shift).
    * ``HALF_UP``, ``HALF_EVEN``: ``value * multiplier / 2^(31 - exponent)`` in one step, halves
      towards plus infinity (TFLite's dense layers) or to even (ONNX Runtime, PyTorch).
    * ``STOCHASTIC``: the same product in one step, rounded down, and up by one where the first 16
      bits that this discards (followed by zeros if they are fewer) plus ``random`` reach 2^16.

    Parameters
    ----------
    value : int array
        int32 range.
    multiplier : int array
        From 0 to 2^31 - 1, broadcast against ``value``.
    exponent : int array
        From -31 to 31, broadcast against ``value``.
    rounding : Rounding
    random : int array, optional
        From 0 to 65,535, broadcast against ``value``; for stochastic rounding.

    Returns
    -------
    int64 array
        In the int32 range.

    Raises
    ------
    ValueError
        If the rounding is stochastic and there are no random bits.
    """
    value = np.asarray(value, dtype=np.int64)
    multiplier = np.asarray(multiplier, dtype=np.int64)
    exponent = np.asarray(exponent, dtype=np.int64)
    if rounding == Rounding.TWO_STEP:
        shifted = wrap_int32(value << np.maximum(exponent, 0))
        high = (shifted * multiplier + (1 << 30)) >> 31
        return saturate_int32(rounding_shift(high, np.maximum(-exponent, 0), "away"))
    if rounding == Rounding.STOCHASTIC:
        if random is None:
            raise ValueError("stochastic rounding needs random bits")
        return saturate_int32(_stochastic_shift(value * multiplier, 31 - exponent, random))
    tie = "up" if rounding == Rounding.HALF_UP else "even"
    return saturate_int32(rounding_shift(value * multiplier, 31 - exponent, tie))
