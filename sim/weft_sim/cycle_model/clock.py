"""Simulated time: what is to be done when."""

import heapq
import itertools
from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """Calls what was asked for, in order of time; at equal times in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Call it then; at once, if that has passed."""
        heapq.heappush(self._agenda, (max(time, self.now), next(self._numbers), call))

    def run(self) -> None:
        """Until nothing is left to do."""
        while self._agenda:
            self.now, _, call = heapq.heappop(self._agenda)
            call()
