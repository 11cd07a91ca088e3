"""The arithmetic of integer training as plain NumPy: ``docs/training-arithmetic.md`` in code.

A tensor is int8 codes in [-127, 127] and one exponent: its values are ``code * 2**exponent``.
Everything below is made of :func:`weft_hw.arithmetic.requantize` and clamps, as the vector engine
executes them.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft_hw.arithmetic import quantize_multiplier, requantize, wrap_int32
from weft_hw.instructions import Rounding

__all__ = [
    "CLIP_NUMERATOR",
    "CLIP_SHIFT",
    "CODE_BITS",
    "CODE_LIMIT",
    "DIGIT_BITS",
    "EXPONENT_BIAS",
    "LARGEST_RESIDUAL_SHIFT",
    "LIMIT_OF_BIAS",
    "LIMIT_OF_SUM",
    "LOSS_EXPONENT",
    "ONE",
    "TABLE_LIMIT",
    "TABLE_STEPS",
    "aligned_bias",
    "aligned_codes",
    "clamp_bound",
    "clip_range",
    "exponential_tables",
    "logarithm_table",
    "loss_gradient",
    "quantize",
    "residual_base",
    "scale_by_power",
    "shift_of",
    "sum_scale",
    "update_bits",
    "update_master",
    "update_velocity",
    "velocity_limit",
]

Int64Array = NDArray[np.int64]

CODE_LIMIT = 127
"""Codes are symmetric: -127 to 127."""

ONE = 1 << 30
"""The multiplier of a scale that is a power of two: ``value * ONE * 2**(1 + n - 31)`` is ``2**n``
times the value."""

EXPONENT_BIAS = 256
"""Exponents are kept in memory with this added, so that they are not negative."""

CODE_BITS = 7
LIMIT_OF_SUM = 1 << 30
LIMIT_OF_BIAS = 1 << 29
CLIP_NUMERATOR, CLIP_SHIFT = 243, 8

LARGEST_RESIDUAL_SHIFT = 16

TABLE_STEPS = 16
"""Steps of the softmax tables a factor of two: codes are sixteenths of a binary logarithm."""

TABLE_LIMIT = 255
"""Exponentials are tabulated from ``-TABLE_LIMIT`` steps to 0."""

DIGIT_BITS = 8
"""Of each of the two digits of a tabulated exponential."""

LOSS_EXPONENT = -15
"""Of the loss gradient before its quantization, and of the tabulated exponentials."""


def scale_by_power(
    value: ArrayLike, power: int, rounding: Rounding, random: ArrayLike | None = None
) -> Int64Array:
    """``value * 2**power``, rounded, saturated to int32; powers are clamped to [-32, 30]."""
    exponent = min(max(power + 1, -31), 31)
    return requantize(value, ONE, exponent, rounding, random)


def shift_of(largest: int, bits: int = CODE_BITS) -> int:
    """Right shift after which an absolute value needs at most ``bits`` bits (NITI, section 3).

    ``max(0, 32 - bits - leading_zeros(largest))``
    """
    return max(0, int(largest).bit_length() - bits)


def clip_range(largest: int) -> int:
    """Range to which gradients are clipped: ``(243 * largest) >> 8``, 0.95 of it (Octo, 4.3).

    ``largest`` is below 2^30.
    """
    return (CLIP_NUMERATOR * int(largest)) >> CLIP_SHIFT


def clamp_bound(clipped: int, shift: int) -> int:
    """The clamp, in codes, of a tensor clipped to a range: ``clipped >> shift``."""
    return int(clipped) >> shift


def quantize(
    sums: ArrayLike,
    shift: int,
    rounding: Rounding,
    random: ArrayLike | None = None,
    *,
    bound: int = CODE_LIMIT,
    multiplier: int = ONE,
    added: ArrayLike = 0,
) -> tuple[Int64Array, int]:
    """int32 sums as codes: ``multiplier / 2^30 * 2**-shift`` times them, rounded and clamped.

    ``added`` codes enter between the rounding and the clamp.

    Returns
    -------
    codes : int64 array
        In [-bound, bound].
    saturated : int
        How many the clamp changed.
    """
    exponent = min(max(1 - shift, -31), 31)
    scaled = requantize(sums, multiplier, exponent, rounding, random)
    scaled = wrap_int32(scaled + np.asarray(added, np.int64))
    codes = np.clip(scaled, -bound, bound)
    return codes, int(np.count_nonzero(codes != scaled))


def _clamp(values: Int64Array, limit: int) -> Int64Array:
    clamped: Int64Array = np.clip(values, -limit, limit)
    return clamped


def aligned_bias(master: ArrayLike, power: int) -> Int64Array:
    """A bias in the unit of the sums that it is added to: ``master * 2**power``, within 2^29."""
    value = scale_by_power(master, power, Rounding.HALF_EVEN)
    return _clamp(value, LIMIT_OF_BIAS)


def aligned_codes(master: ArrayLike, power: int) -> Int64Array:
    """An added tensor in the unit of the codes that it is added to: ``master * 2**power``."""
    value = scale_by_power(master, power, Rounding.HALF_EVEN)
    return _clamp(value, CODE_LIMIT)


def residual_base(first: int, second: int) -> int:
    """Exponent in which two tensors are added: the smaller, at most 16 below the larger."""
    return max(min(first, second), max(first, second) - LARGEST_RESIDUAL_SHIFT)


# Loss ---------------------------------------------------------------------------------------------


def exponential_tables() -> tuple[Int64Array, Int64Array]:
    """``-rint(2**15 * 2**(u / 16))`` for u = -255 to 0, and 0 at -255, in two digits.

    Returns
    -------
    upper, lower : int64 arrays (256,)
        The number is ``256 * upper + lower``, each digit an int8. Entry ``u + 255`` belongs to u.
    """
    exponents = np.arange(-TABLE_LIMIT, 1) / TABLE_STEPS
    values = -np.rint(np.ldexp(np.exp2(exponents), -LOSS_EXPONENT)).astype(np.int64)
    values[0] = 0
    upper: Int64Array = (values + (1 << DIGIT_BITS - 1)) >> DIGIT_BITS
    return upper, values - (upper << DIGIT_BITS)


def sum_scale(classes: int) -> tuple[int, int]:
    """Multiplier and exponent that bring a sum of exponentials (to 2^15 * classes) to 0..255."""
    return quantize_multiplier(TABLE_LIMIT / (classes << -LOSS_EXPONENT))


def logarithm_table(classes: int) -> Int64Array:
    """``-rint(16 * log2(sum / 2^15))``, at least -128, by the sum's code (256 entries).

    Entry v belongs to the code v of :func:`sum_scale`, which stands for the sum
    ``v * 2^15 * classes / 255``.
    """
    scaled = np.arange(TABLE_LIMIT + 1) * classes / TABLE_LIMIT
    with np.errstate(divide="ignore"):
        values = -np.rint(TABLE_STEPS * np.log2(scaled))
    values[0] = -128  # of no sum: the largest logit alone gives 2^15
    table: Int64Array = np.clip(values, -128, 0).astype(np.int64)
    return table


def loss_gradient(logits: ArrayLike, exponent: int, target: ArrayLike) -> Int64Array:
    """Descent direction of cross-entropy by an integer softmax: label minus probability.

    With u the logits minus their largest in sixteenths of a binary logarithm, clamped to
    [-255, 0], and L the ``log2`` of the sum of ``exp2(u / 16)``, in the same unit, the softmax is
    ``exp2((u - L) / 16)``: table lookups of 256 entries, no division. The gradient at the label is
    the sum of the other classes' probabilities, so that it is as fine where the network is sure.

    Parameters
    ----------
    logits : int8 array (samples, classes)
    exponent : int
        Of the logits.
    target : int8 array (samples, classes)
        127 at the label, else 0.

    Returns
    -------
    int64 array (samples, classes)
        Exponent ``LOSS_EXPONENT``: 2^15 stands for 1. To be quantized like other sums.
    """
    values = np.asarray(logits, np.int64)
    classes = values.shape[1]
    difference = values - values.max(axis=1, keepdims=True)
    multiplier, own = quantize_multiplier(TABLE_STEPS / np.log(2))
    scaled = requantize(
        difference, multiplier, min(max(own + exponent, -31), 31), Rounding.HALF_EVEN
    )
    steps = np.clip(scaled, -TABLE_LIMIT, 0)
    upper, lower = exponential_tables()
    negated = (upper << DIGIT_BITS) + lower
    total = -negated[steps + TABLE_LIMIT].sum(axis=1, keepdims=True)
    index = requantize(total, *sum_scale(classes), Rounding.HALF_EVEN)
    logarithm = logarithm_table(classes)[np.clip(index, 0, TABLE_LIMIT)]
    shifted = np.clip(steps + logarithm, -TABLE_LIMIT, 0)
    at_label = np.asarray(target) > 0
    others = np.where(at_label, 0, negated[shifted + TABLE_LIMIT])
    gradient: Int64Array = np.where(at_label, -others.sum(axis=1, keepdims=True), others)
    return gradient


# Updates ------------------------------------------------------------------------------------------


def update_velocity(
    sums: ArrayLike,
    velocity: ArrayLike,
    rate: tuple[int, int],
    momentum: tuple[int, int],
    bits: int,
    random: ArrayLike,
) -> Int64Array:
    """``momentum * velocity + rate * sums``, clamped to the state's width.

    Parameters
    ----------
    sums : int32 array
        The descent direction: products of activations and gradients.
    velocity : int array
    rate : (multiplier, exponent)
        From the sums' unit to the velocity's; the exponent is clamped to [-31, 31]. Stochastic.
    momentum : (multiplier, exponent)
        Rounded half to even.
    bits : int
        Width of the state: 16 or 32.
    random : int array
        16 bits an element.
    """
    multiplier, exponent = rate
    moved = requantize(sums, multiplier, min(max(exponent, -31), 31), Rounding.STOCHASTIC, random)
    moved = np.clip(moved, -LIMIT_OF_SUM, LIMIT_OF_SUM)
    kept = requantize(velocity, *momentum, Rounding.HALF_EVEN)
    return _clamp(wrap_int32(kept + moved), velocity_limit(bits))


def velocity_limit(bits: int) -> int:
    """Of a velocity: half of int32's range, so that sums do not wrap, or int16's."""
    return LIMIT_OF_SUM - 1 if bits == 32 else (1 << 15) - 1


def update_master(
    master: ArrayLike,
    velocity: ArrayLike,
    fraction: int,
    finer: int,
    keep: tuple[int, int] | None,
    random: ArrayLike,
    decay_random: ArrayLike | None = None,
) -> tuple[Int64Array, Int64Array]:
    """The weights after a step: ``keep * master + 2**-finer * velocity``, and their codes.

    Parameters
    ----------
    master : int array
        Weights with ``fraction`` bits below their codes.
    velocity : int array
        With ``finer`` bits below the master's lowest. Stochastic.
    fraction, finer : int
    keep : (multiplier, exponent), optional
        What weight decay leaves, ``1 - rate * decay``. Stochastic.
    random, decay_random : int array
        16 bits an element, for either rounding.

    Returns
    -------
    master, codes : int64 array
    """
    kept = np.asarray(master, np.int64)
    if keep is not None:
        kept = requantize(kept, *keep, Rounding.STOCHASTIC, decay_random)
    moved = scale_by_power(velocity, -finer, Rounding.STOCHASTIC, random)
    limit = CODE_LIMIT << fraction
    result = np.clip(wrap_int32(moved + kept), -limit, limit)
    codes = np.clip(scale_by_power(result, -fraction, Rounding.HALF_EVEN), -CODE_LIMIT, CODE_LIMIT)
    return result, codes


def update_bits(
    codes: ArrayLike, sums: ArrayLike, shift: int, bits: int, random: ArrayLike
) -> tuple[Int64Array, int]:
    """Weights moved by updates of ``bits`` bits (NITI, section 3.4), and how many were clamped.

    The updates are ``sums * 2**-shift``, rounded stochastically, clamped to ``2**bits - 1``.
    """
    moved, saturated = quantize(sums, shift, Rounding.STOCHASTIC, random, bound=(1 << bits) - 1)
    return np.clip(np.asarray(codes, np.int64) + moved, -CODE_LIMIT, CODE_LIMIT), saturated
