"""How many bytes each transfer instruction moves between DRAM and the chip."""

import math
from dataclasses import dataclass

import numpy as np

from weft.program import Program
from weft_hw.instructions import Load, Store

__all__ = ["Traffic", "layer_traffic", "moved_bytes"]


@dataclass(frozen=True)
class Traffic:
    """Bytes that programs ask for; the bus moves whole beats, so it may carry a few more."""

    loaded: int = 0
    stored: int = 0

    @property
    def busier(self) -> int:
        """Bytes of the busier direction: reads and writes have a channel each."""
        return max(self.loaded, self.stored)


def moved_bytes(instruction: Load | Store) -> int:
    """Bytes of all runs that exist (a run outside its bounds is filled or dropped)."""
    coordinates = np.array([instruction.origin], dtype=np.int64)
    repeated = 1
    for count, step in zip(instruction.counts, instruction.steps, strict=True):
        if step == 0:
            repeated *= count
        else:
            coordinates = np.add.outer(coordinates, step * np.arange(count)).ravel()
    exist = int(((coordinates >= 0) & (coordinates < instruction.extent)).sum())
    return math.prod((repeated, exist, instruction.run_bytes))


def layer_traffic(program: Program) -> list[Traffic]:
    """For each layer, what its instructions move in one run."""
    loaded = [0] * len(program.layers)
    stored = [0] * len(program.layers)
    for symbol, (_, instruction) in zip(program.symbols, program.decoded, strict=False):
        if isinstance(instruction, Load):
            loaded[symbol.layer] += moved_bytes(instruction)
        elif isinstance(instruction, Store):
            stored[symbol.layer] += moved_bytes(instruction)
    return [Traffic(*each) for each in zip(loaded, stored, strict=True)]
