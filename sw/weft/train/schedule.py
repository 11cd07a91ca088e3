"""What changes from step to step: learning rates, and the bits of updates of a set width."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from weft.train.state import Rates

__all__ = ["Schedule", "constant", "cosine", "falling_bits", "stairs"]

Rate = Callable[[int], float]
"""Learning rate by the number of the step, from 0."""


def constant(rate: float) -> Rate:
    """The same always."""
    return lambda step: rate


def cosine(rate: float, steps: int, *, warm_up: int = 0, last: float = 0.01) -> Rate:
    """Half a cosine from ``rate`` to ``last`` of it, behind a linear rise of ``warm_up`` steps."""

    def at(step: int) -> float:
        if step < warm_up:
            return rate * (step + 1) / warm_up
        done = min((step - warm_up) / max(steps - warm_up, 1), 1.0)
        return rate * (last + (1 - last) * (1 + math.cos(math.pi * done)) / 2)

    return at


def stairs(rate: float, boundaries: Sequence[int], factor: float = 0.1) -> Rate:
    """``factor`` smaller from each of the boundaries on."""
    return lambda step: rate * factor ** sum(step >= boundary for boundary in boundaries)


def falling_bits(
    steps: int, widths: Sequence[int] = (3, 2, 1), shares: Sequence[float] = (0.3, 0.4, 0.3)
) -> Callable[[int], int]:
    """Bits of an update by the number of the step: each width for its share of the steps."""
    ends = [share * steps for share in accumulate(shares)][:-1]
    return lambda step: widths[sum(step >= end for end in ends)]


@dataclass(frozen=True)
class Schedule:
    """Rates of every step.

    Parameters
    ----------
    rate : callable
        Learning rate by step, of the mean gradient of a batch.
    decay : float
        Weight decay: a step takes ``rate * decay`` of the weights.
    compensation_rate : callable, optional
        In place of ``rate``, for compensations.
    compensation_decay : float
    bits : callable
        Of updates of a set width, by step.
    """

    rate: Rate
    decay: float = 0.0
    compensation_rate: Rate | None = None
    compensation_decay: float = 0.0
    bits: Callable[[int], int] = lambda step: 1

    def rates(self, step: int, batch: int) -> Rates:
        """As the step's integers."""
        other = self.compensation_rate
        return Rates.of(
            batch,
            self.rate(step),
            decay=self.decay,
            compensation_rate=None if other is None else other(step),
            compensation_decay=self.compensation_decay,
            bits=self.bits(step),
        )
