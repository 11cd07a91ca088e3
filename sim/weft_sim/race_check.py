"""Happens-before check of a program: are all conflicting accesses of different queues ordered?

Serial execution hides a missing wait; this finds it from the instructions alone.
"""

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weft_hw.errors import WeftError
from weft_hw.instructions import SEMAPHORE_BITS, Instruction, Queue

__all__ = ["Access", "Entry", "OrderError", "Space", "check_order", "check_semaphores"]

Positions = NDArray[np.int64]


class OrderError(WeftError):
    """The semaphores of a program do not order what has to be ordered."""


class Space(enum.Enum):
    """The memories in which accesses can meet; the value says what is counted."""

    DRAM = "DRAM byte"
    ACTIVATION = "activation scratchpad byte"
    WEIGHT = "weight scratchpad byte"
    PARAMETER = "parameter memory byte"
    ACCUMULATOR = "accumulator row"
    LOOKUP = "lookup table byte"


@dataclass(frozen=True)
class Access:
    """What one instruction reads, or writes, in one memory.

    Parameters
    ----------
    space : Space
    starts, ends : int64 arrays
        Intervals [start, end), ascending and disjoint.
    write : bool
    """

    space: Space
    starts: Positions
    ends: Positions
    write: bool


class Entry(NamedTuple):
    """An instruction of the stream with its byte offset and everything that it touches."""

    offset: int
    instruction: Instruction
    accesses: Sequence[Access]

    def __str__(self) -> str:
        return f"{self.offset:#x}: {self.instruction}"


def numbered(mask: int) -> list[int]:
    """The bits that are set in a mask."""
    return [bit for bit in range(SEMAPHORE_BITS) if mask >> bit & 1]


def check_semaphores(entries: Sequence[Entry]) -> None:
    """Check that each semaphore has one signalling and one waiting queue.

    Raises
    ------
    OrderError
        Naming the semaphore and the two instructions that share it wrongly.
    """
    for use, verb in (("signal", "signal"), ("wait", "wait for")):
        users: dict[int, Entry] = {}
        for entry in entries:
            for semaphore in numbered(getattr(entry.instruction, use)):
                first = users.setdefault(semaphore, entry)
                if first.instruction.queue != entry.instruction.queue:
                    raise OrderError(
                        f"two queues {verb} semaphore {semaphore}:\n  {first}\n  {entry}"
                    )


def check_order(entries: Sequence[Entry], program: tuple[int, int]) -> None:
    """Check that semaphores order every two accesses of different queues of which one writes.

    An instruction comes after all earlier ones of its queue; its k-th wait for a semaphore, counted
    over the program, comes after the retirement of the k-th instruction that signals it; and so on
    transitively. A vector clock an instruction (how many instructions of each queue have retired
    before it starts) holds all of this. Within a queue the latest access to a place stands for all.

    Parameters
    ----------
    entries : sequence of Entry
        The whole stream without END; serial execution of it must not block.
    program : (int, int)
        DRAM range of the program itself: fetch reads it at any time, so nothing may write to it.

    Raises
    ------
    OrderError
        Naming both instructions and the memory range in which they meet.
    """
    check_semaphores(entries)
    _check_fetch(entries, program)
    histories = {space: _History.of(space, entries) for space in Space}
    known = np.zeros(
        (len(Queue), len(Queue)), np.int64
    )  # by queue: clock of its latest instruction
    signals: dict[int, deque[Positions]] = {}
    queues: list[list[Entry]] = [[] for _ in Queue]
    for entry in entries:
        queue = entry.instruction.queue
        assert queue is not None  # END is left out
        clock = known[queue]
        for semaphore in numbered(entry.instruction.wait):
            np.maximum(clock, signals[semaphore].popleft(), out=clock)
        for access in entry.accesses:
            conflict = histories[access.space].meet(access, queue, clock)
            if conflict is not None:
                raise OrderError(_describe(access.space, conflict, entry, queues))
        queues[queue].append(entry)
        number = len(queues[queue])
        for access in entry.accesses:
            histories[access.space].record(access, queue, number)
        retired = clock.copy()
        retired[queue] = number
        for semaphore in numbered(entry.instruction.signal):
            signals.setdefault(semaphore, deque()).append(retired)


def _check_fetch(entries: Sequence[Entry], program: tuple[int, int]) -> None:
    start, end = program
    for entry in entries:
        for access in entry.accesses:
            if access.space is not Space.DRAM or not access.write:
                continue
            meets = (access.starts < end) & (access.ends > start)
            if meets.any():
                raise OrderError(
                    f"instruction\n  {entry}\nwrites to the program itself, which lies in DRAM "
                    f"bytes {start:#x} to {end - 1:#x}"
                )


class _Conflict(NamedTuple):
    queue: int
    number: int  # of the instruction in its queue, from 1
    write: bool
    start: int
    end: int


@dataclass
class _History:
    """Latest readers and writers of one memory, cut into pieces that every access takes whole."""

    points: Positions  # piece i is [points[i], points[i + 1])
    latest: NDArray[np.int32]  # (read or write, queue, piece): number in its queue, or 0

    @classmethod
    def of(cls, space: Space, entries: Sequence[Entry]) -> "_History":
        parts = [
            bound
            for entry in entries
            for access in entry.accesses
            if access.space is space
            for bound in (access.starts, access.ends)
        ]
        points = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
        return cls(points, np.zeros((2, len(Queue), len(points)), np.int32))

    def pieces(self, access: Access) -> Positions | slice:
        """Indexes of the pieces that an access covers."""
        first = np.searchsorted(self.points, access.starts)
        behind = np.searchsorted(self.points, access.ends)
        if len(first) == 1:
            return slice(int(first[0]), int(behind[0]))
        lengths = behind - first
        jumps = np.repeat(first - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
        result: Positions = jumps + np.arange(len(jumps))
        return result

    def meet(self, access: Access, queue: int, clock: Positions) -> _Conflict | None:
        """An earlier conflicting access that need not have retired, if there is one."""
        pieces = self.pieces(access)
        for write in (True, False) if access.write else (True,):
            for other in Queue:
                if other == queue:
                    continue
                latest = self.latest[int(write), other][pieces]
                if not latest.size or latest.max() <= clock[other]:
                    continue
                at = int(np.argmax(latest > clock[other]))
                piece = pieces.start + at if isinstance(pieces, slice) else int(pieces[at])
                start, end = int(self.points[piece]), int(self.points[piece + 1])
                return _Conflict(other, int(latest[at]), write, start, end)
        return None

    def record(self, access: Access, queue: int, number: int) -> None:
        """Enter an access."""
        self.latest[int(access.write), queue][self.pieces(access)] = number


def _describe(
    space: Space, conflict: _Conflict, entry: Entry, queues: Sequence[Sequence[Entry]]
) -> str:
    earlier = queues[conflict.queue][conflict.number - 1]
    place = f"{conflict.start:#x}"
    if conflict.end - conflict.start > 1:
        place += f" to {conflict.end - 1:#x}"
    return (
        f"no chain of semaphores orders two instructions that meet in {space.value} {place}, which "
        f"the first {'writes' if conflict.write else 'reads'}:\n  {earlier}\n  {entry}"
    )
