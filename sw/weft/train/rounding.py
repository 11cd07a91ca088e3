"""Requantization in PyTorch: ``weft_hw.arithmetic.requantize`` on whole tensors.

Where the multiplier is a power of two, floating point is exact: int32 sums and their multiples
by powers of two, plus 16 random bits behind the point, fit float64's significand.
"""

from typing import Any

import numpy as np
import torch

from weft.errors import WeftError
from weft_hw.arithmetic import requantize
from weft_hw.instructions import Rounding
from weft_hw.training import ONE

__all__ = ["check_rounding", "requantized", "requantized_each", "scaled"]

INT32_MAX = (1 << 31) - 1
FLOAT32_SHIFT = 17
"""Of sums below 2^24: the quotient below 128 and a random fraction still fit 24 bits."""


def scaled(sums: Any, power: int, random: Any = None) -> Any:
    """``sums * 2**power``, rounded, saturated to int32.

    Parameters
    ----------
    sums : float32 tensor of whole numbers below 2^24, or float64 tensor of int32
    power : int
        Clamped to [-32, 30].
    random : float32 tensor of multiples of 2^-16 below 1, optional
        Rounds stochastically; else half to even.

    Returns
    -------
    tensor of the same dtype
    """
    power = min(max(power, -32), 30)
    if power < 0:
        if sums.dtype == torch.float32 and power < -FLOAT32_SHIFT and random is not None:
            sums = sums.double()
        sums = sums * 2.0**power
        sums = torch.round(sums) if random is None else torch.floor(sums + random)
        return sums
    if power > 0:
        return (sums.double() * 2.0**power).clamp_(-INT32_MAX - 1, INT32_MAX)
    return sums


def requantized(values: Any, multiplier: int, exponent: int, random: Any = None) -> Any:
    """``values * multiplier * 2**(exponent - 31)``, rounded, saturated to int32.

    Parameters
    ----------
    values : tensor of whole numbers in the int32 range
    multiplier, exponent : int
        The exponent is clamped to [-31, 31].
    random : int64 tensor of 0 to 65,535, optional
        Rounds stochastically; else half to even.

    Returns
    -------
    int64 tensor
    """
    product = values.to(torch.int64) * multiplier
    shift = 31 - min(max(exponent, -31), 31)
    if random is not None:
        product += random << (shift - 16) if shift > 16 else random >> (16 - shift)
    elif shift:
        product += ((product >> shift) & 1) + ((1 << (shift - 1)) - 1)
    return (product >> shift).clamp_(-INT32_MAX - 1, INT32_MAX)


def requantized_each(values: Any, multiplier: Any, exponent: Any, random: Any) -> Any:
    """:func:`requantized` with a multiplier and an exponent for each element, stochastically.

    All are int64 tensors; exponents within [-31, 31].
    """
    shift = 31 - exponent
    product = values * multiplier
    product += (random << (shift - 16).clamp_(min=0)) >> (16 - shift).clamp_(min=0)
    return (product >> shift).clamp_(-INT32_MAX - 1, INT32_MAX)


def check_rounding(device: Any) -> None:
    """Compare all roundings with the formulas on random and extreme values.

    Raises
    ------
    WeftError
        If one differs: this machine's library cannot train exactly.
    """
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 16, 256)
    bits[:4] = 0, 0xFFFF, 1, 0x8000
    fraction = torch.from_numpy((bits / (1 << 16)).astype(np.float32)).to(device)
    whole = torch.from_numpy(bits).to(device)
    cases: list[tuple[str, Any, Any]] = []
    for width in (8, 24, 31):
        limit = (1 << width) - 1
        values = generator.integers(-limit, limit + 1, 256)
        values[:8] = limit, -limit, 0, 1, -1, limit >> 1, -(limit >> 1), limit // 3
        tensor = torch.from_numpy(values).to(device)
        for power in (-32, -25, -18, -17, -9, -1, 0, 5, 30):
            for kind in (torch.float32, torch.float64) if width < 31 else (torch.float64,):
                for random, rounding in ((None, Rounding.HALF_EVEN), (bits, Rounding.STOCHASTIC)):
                    expected = requantize(values, ONE, min(power + 1, 31), rounding, random)
                    found = scaled(tensor.to(kind), power, None if random is None else fraction)
                    if kind == torch.float32:  # only codes are exact there, and what saturates
                        expected, found = np.clip(expected, -128, 128), found.clamp(-128, 128)
                    cases.append((f"scaling by 2^{power}", expected, found))
        for multiplier, exponent in ((ONE, 1), (1518500249, -31), (2147483647, 7), (0, 31)):
            arguments = (values, multiplier, exponent)
            cases += [
                (
                    "requantization",
                    requantize(*arguments, Rounding.HALF_EVEN),
                    requantized(tensor, multiplier, exponent),
                ),
                (
                    "requantization",
                    requantize(*arguments, Rounding.STOCHASTIC, bits),
                    requantized(tensor, multiplier, exponent, whole),
                ),
                (
                    "requantization",
                    requantize(*arguments, Rounding.STOCHASTIC, bits),
                    requantized_each(
                        tensor,
                        torch.full_like(tensor, multiplier),
                        torch.full_like(tensor, exponent),
                        whole,
                    ),
                ),
            ]
    for name, expected, found in cases:
        if not np.array_equal(expected, found.to(torch.int64).cpu().numpy()):
            raise WeftError(
                f"PyTorch's {name} on {device} is not exact on this machine, so the fast engine "
                "would not train what the machine does: use another device or the functional "
                "engine"
            )
