"""Weights narrower than eight bits: their range, and several of them in a byte."""

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError
from weft_hw import AcceleratorConfig

__all__ = ["check_weight_bits", "pack_weights", "weight_range"]


def weight_range(bits: int) -> tuple[int, int]:
    """Smallest and largest weight of that width."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def check_weight_bits(config: AcceleratorConfig, bits: int) -> None:
    """Refuse a width that the configuration's array does not have.

    Raises
    ------
    InputError
        If it is not one of the configuration's ``weight_modes``.
    """
    if bits not in config.weight_modes:
        modes = ", ".join(map(str, config.weight_modes))
        raise InputError(
            f"weights of {bits} bits are not a mode of {config.name}, which has {modes}; choose a "
            "configuration whose `weight_modes` holds it, such as flex16"
        )


def pack_weights(weights: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Neighbours along the first axis, ``8 / bits`` of them, into a byte, the first one lowest.

    Raises
    ------
    ValueError
        If a weight does not fit its bits, or the axis is not a multiple of ``8 / bits``.
    """
    if bits == 8:
        return weights
    low, high = weight_range(bits)
    if weights.size and not low <= weights.min() <= weights.max() <= high:
        raise ValueError(f"weights of {bits} bits must lie in [{low}, {high}]")
    count = 8 // bits
    groups = weights.reshape(-1, count, *weights.shape[1:]).view(np.uint8)
    packed = np.zeros(groups[:, 0].shape, np.uint8)
    for number in range(count):
        packed |= (groups[:, number] & ((1 << bits) - 1)) << np.uint8(bits * number)
    return packed.view(np.int8)
