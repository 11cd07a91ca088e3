"""Requantization in few passes over int64 arrays: what ``weft_hw.arithmetic.requantize`` defines.

With ``s`` the right shift and ``p`` what is shifted, half of ``2^s`` is added before a plain shift;
halves that must not go up lose one first::

    half up        (p + 2^(s-1)) >> s
    half to even   (p + 2^(s-1) - 1 + (p >> s & 1)) >> s
    half away      (p + 2^(s-1) - (p < 0)) >> s
    stochastic     (p + (random * 2^s >> 16)) >> s

each of which leaves ``p`` alone where ``s`` is zero.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import Rounding

__all__ = ["Scaling"]

Int64Array = NDArray[np.int64]
INT32 = np.iinfo(np.int32)

# Arrays without axes: NumPy converts Python numbers anew each time.
ONE, HIGH_HALF, HIGH_SHIFT, SIGN_SHIFT = (np.array(n, np.int64) for n in (1, 1 << 30, 31, 63))


class Scaling:
    """Multiplication by ``multiplier * 2^(exponent - 31)``, rounded and saturated to int32.

    Parameters
    ----------
    multiplier, exponent : integer arrays
        Broadcast against the values.
    rounding : Rounding
    """

    def __init__(
        self, multiplier: NDArray[Any], exponent: NDArray[Any], rounding: Rounding
    ) -> None:
        # Arrays throughout, also without axes; the result for other exponents is not defined.
        exponent = np.asarray(np.clip(exponent.astype(np.int64), -31, 31))
        self._two_step = rounding is Rounding.TWO_STEP
        self._to_even = rounding is Rounding.HALF_EVEN
        self._stochastic = rounding is Rounding.STOCHASTIC
        self._multiplier: Int64Array = multiplier.astype(np.int64)
        self._left: NDArray[np.uint32] | None = None
        grows = bool((exponent > 0).any())
        if self._two_step:
            if grows:
                self._left = np.maximum(exponent, 0).astype(np.uint32)
            self._shift: Int64Array = np.asarray(np.maximum(-exponent, 0))
        else:
            self._shift = np.asarray(31 - exponent)
        if self._stochastic:
            self._random_left = np.asarray(np.maximum(self._shift - 16, 0))
            self._random_right = np.asarray(np.maximum(16 - self._shift, 0))
        self._saturates = grows and not self._two_step
        shifts = np.asarray(self._shift > 0)
        self._half: Int64Array = np.asarray((np.int64(1) << self._shift) >> 1)
        self._always_shifts = bool(shifts.all())
        self._ones: Int64Array = shifts.astype(np.int64)
        if self._to_even:
            self._half = np.asarray(self._half - self._ones)

    def apply(
        self,
        values: NDArray[np.int32],
        work: Int64Array,
        other: Int64Array,
        random: Int64Array | None = None,
    ) -> Int64Array:
        """The scaled values, in ``work``.

        Parameters
        ----------
        values : int32 array
        work, other : int64 arrays of its shape
            Overwritten.
        random : int64 array of its shape
            16 bits each, for stochastic rounding.
        """
        if self._left is not None:
            values = (values.view(np.uint32) << self._left).view(np.int32)
        np.multiply(values, self._multiplier, out=work)
        if self._two_step:
            work += HIGH_HALF
            work >>= HIGH_SHIFT
            np.right_shift(work, SIGN_SHIFT, out=other)  # -1 for negative ones
            if not self._always_shifts:
                other &= -self._ones
            work += other
        elif self._to_even:
            np.right_shift(work, self._shift, out=other)
            other &= ONE if self._always_shifts else self._ones
            work += other
        if self._stochastic:
            assert random is not None
            np.left_shift(random, self._random_left, out=other)
            other >>= self._random_right
            work += other
        else:
            work += self._half
        work >>= self._shift
        if self._saturates:
            np.clip(work, INT32.min, INT32.max, out=work)
        return work
