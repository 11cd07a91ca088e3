"""Semaphores of a program that is executed serially, and what happens when that blocks."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import SEMAPHORE_BITS, Instruction, Queue
from weft_sim.race_check import OrderError

__all__ = ["Blocked", "SerialSemaphores", "first_waiting"]


class SerialSemaphores:
    """The counters, with instructions executed one after the other.

    Semaphores that the configuration does not have count to zero: a wait for one never ends, a
    signal to one overflows.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._largest = (1 << config.semaphore_bits) - 1
        self._existing = config.semaphores
        self._counts = [0] * SEMAPHORE_BITS

    def take(self, mask: int) -> bool:
        """Decrement every counter in the mask; or none, and False, if one of them is zero."""
        chosen = self._chosen(mask)
        if not all(self._counts[semaphore] for semaphore in chosen):
            return False
        for semaphore in chosen:
            self._counts[semaphore] -= 1
        return True

    def signal(self, mask: int) -> bool:
        """Increment every counter in the mask; False if one of them overflows."""
        for semaphore in self._chosen(mask):
            limit = self._largest if semaphore < self._existing else 0
            if self._counts[semaphore] == limit:
                return False
            self._counts[semaphore] += 1
        return True

    @staticmethod
    def _chosen(mask: int) -> list[int]:
        return [bit for bit in range(SEMAPHORE_BITS) if mask >> bit & 1] if mask else []


class Blocked(NamedTuple):
    """The instruction at the head of a queue that waits for good."""

    queue: int
    offset: int


def first_waiting(stream: Sequence[tuple[int, Instruction]], config: AcceleratorConfig) -> Blocked:
    """The first queue, in order of queues, that waits once nothing moves any more.

    Dispatch fills the queues in stream order, a full one holds it back, and each queue goes on by
    itself. As every semaphore has one waiting queue, where they come to rest depends on no timing.

    Parameters
    ----------
    stream : sequence of (offset, instruction)
        Serial execution of it blocks.

    Raises
    ------
    OrderError
        If the queues run to the end: the program depends on their overtaking each other.
    """
    semaphores = SerialSemaphores(config)
    queues: list[deque[tuple[int, Instruction]]] = [deque() for _ in Queue]
    coming = deque(stream)
    moved = True
    while moved:
        moved = False
        while coming:
            queue = coming[0][1].queue
            assert queue is not None
            if len(queues[queue]) > config.queue_depth:  # the head, and those behind it
                break
            queues[queue].append(coming.popleft())
            moved = True
        for waiting in queues:
            while waiting and semaphores.take(waiting[0][1].wait):
                semaphores.signal(waiting.popleft()[1].signal)
                moved = True
    for number, waiting in enumerate(queues):
        if waiting:
            return Blocked(number, waiting[0][0])
    raise OrderError(
        "executed in stream order, the program blocks: an instruction waits for a semaphore that "
        f"only later ones signal:\n  {_first_blocking(stream, config)}"
    )


def _first_blocking(stream: Sequence[tuple[int, Instruction]], config: AcceleratorConfig) -> str:
    semaphores = SerialSemaphores(config)
    for offset, instruction in stream:
        if not semaphores.take(instruction.wait):
            return f"{offset:#x}: {instruction}"
        semaphores.signal(instruction.signal)
    raise ValueError("serial execution does not block")
