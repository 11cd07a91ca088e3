"""All random bits of a step at once: ``weft_hw.arithmetic.random_bits``, vectorized."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft_hw.arithmetic import RANDOM_ROUNDS

__all__ = ["RandomBits"]

CHUNK = 1 << 17
"""Elements whose words stay in a core's cache over all rounds."""

WORD = 0xFFFF


class RandomBits:
    """The bits of chosen tensors, as one array that is filled anew every step.

    Parameters
    ----------
    sizes : dict of int to int
        Elements of each tensor, by its number.
    device : torch.device
    """

    def __init__(self, sizes: dict[int, int], device: Any) -> None:
        self.places: dict[int, slice] = {}
        start = 0
        for number, size in sizes.items():
            self.places[number] = slice(start, start + size)
            start += size
        block = np.empty(start, np.uint32)
        for number, place in self.places.items():
            index = np.arange(place.stop - place.start, dtype=np.uint32)
            block[place] = index ^ np.uint32(number << 20 & 0xFFFFFFFF)
        self.upper = (block >> 16).astype(np.uint16)
        self.lower = block.astype(np.uint16)
        self.device = device

    def fill(self, seed: int, step: int) -> dict[int, Any]:
        """The step's bits: by tensor number, flat float32 tensors of 0 to 65,535 over 2^16."""
        keys = _round_keys(seed, step)
        result = np.empty(len(self.upper), np.float32)
        scratch = np.empty(CHUNK, np.uint16)
        for start in range(0, len(result), CHUNK):
            x = self.upper[start : start + CHUNK].copy()
            y = self.lower[start : start + CHUNK].copy()
            _encrypt(x, y, keys, scratch[: len(x)])
            np.multiply(x, np.float32(2.0**-16), out=result[start : start + CHUNK])
        bits = torch.from_numpy(result).to(self.device)
        return {number: bits[place] for number, place in self.places.items()}


def _round_keys(seed: int, step: int) -> list[int]:
    """The cipher's key schedule, for the rounds that are used."""
    key, others = step & WORD, [seed & WORD, step >> 16 & WORD, seed >> 16 & WORD]
    keys = []
    for number in range(RANDOM_ROUNDS.stop):
        if number in RANDOM_ROUNDS:
            keys.append(key)
        others.append((key + (others[number] >> 7 | others[number] << 9) & WORD) ^ number)
        key = ((key << 2 | key >> 14) & WORD) ^ others[-1]
    return keys


def _encrypt(
    x: NDArray[np.uint16], y: NDArray[np.uint16], keys: list[int], scratch: NDArray[np.uint16]
) -> None:
    """The rounds, in place; 16-bit words wrap by themselves."""
    for key in keys:
        np.right_shift(x, 7, out=scratch)
        np.left_shift(x, 9, out=x)
        np.bitwise_or(x, scratch, out=x)
        np.add(x, y, out=x)
        np.bitwise_xor(x, np.uint16(key), out=x)
        np.right_shift(y, 14, out=scratch)
        np.left_shift(y, 2, out=y)
        np.bitwise_or(y, scratch, out=y)
        np.bitwise_xor(y, x, out=y)
