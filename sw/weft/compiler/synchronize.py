"""Semaphores for a stream: the fewest waits that order every conflict between queues.

The stream is correct when executed serially. Two accesses conflict if they meet in a memory, at
least one writes, and their queues differ; the later one must wait for the earlier one's retirement.
One semaphore serves each ordered pair of queues (A, B). Queues retire in order, so that B needs to
know only *how far* A has come: the k-th signal of the pair is sent by the instruction that the k-th
wait needs, both in stream order, and each signal has exactly one wait. What follows from other
waits (a vector clock of retired instructions travels with each instruction) needs none of its own.

A wait always stands behind its signal in the stream, so serial execution never blocks.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from weft.compiler.stream import Access, Space, Step
from weft.errors import UnsupportedModel
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import Instruction, Queue

__all__ = ["synchronize"]

Clock = tuple[int, ...]  # by queue: how many of its instructions have retired

IN_FLIGHT_BEHIND_QUEUE = 2  # instructions that dispatch may hold besides those in a queue


@dataclass
class _Segment:
    """A stretch of memory with one history: positions in the stream of the accesses that count."""

    end: int
    writer: int | None = None
    readers: dict[Queue, int] = field(default_factory=dict)


@dataclass
class _History:
    """The segments of one memory, sorted by start; they do not overlap and leave no holes."""

    starts: list[int] = field(default_factory=lambda: [0])
    segments: list[_Segment] = field(default_factory=lambda: [_Segment(end=1 << 62)])

    def _split(self, at: int) -> int:
        """Index of the segment that starts at an address."""
        index = bisect.bisect_right(self.starts, at) - 1
        if self.starts[index] == at:
            return index
        old = self.segments[index]
        self.starts.insert(index + 1, at)
        self.segments.insert(index + 1, _Segment(old.end, old.writer, dict(old.readers)))
        old.end = at
        return index + 1

    def record(self, access: Access, position: int, queue: Queue) -> set[int]:
        """Enter an access; the positions of the earlier ones that it conflicts with."""
        first = self._split(access.start)
        behind = self._split(access.end)
        met: set[int] = set()
        for segment in self.segments[first:behind]:
            if segment.writer is not None:
                met.add(segment.writer)
            if access.write:
                met.update(segment.readers.values())
            else:
                segment.readers[queue] = position
        if access.write:  # what came before is ordered before this write: it stands for all
            self.starts[first:behind] = [access.start]
            self.segments[first:behind] = [_Segment(access.end, writer=position)]
        return met


def synchronize(steps: Sequence[Step], config: AcceleratorConfig) -> list[Instruction]:
    """The stream's instructions with their ``wait`` and ``signal`` masks.

    Raises
    ------
    UnsupportedModel
        If the configuration has too few semaphores, or too narrow ones.
    """
    pairs = _pairs(steps)
    if len(pairs) > config.semaphores:
        raise UnsupportedModel(
            f"this program needs {len(pairs)} semaphores; configuration {config.name} has "
            f"{config.semaphores}"
        )
    waits, signals = [0] * len(steps), [0] * len(steps)
    for semaphore, pair in enumerate(sorted(pairs)):
        for signaller, waiter in pairs[pair]:
            signals[signaller] |= 1 << semaphore
            waits[waiter] |= 1 << semaphore
        _check_count(steps, pair, pairs[pair], config)
    return [
        dataclasses.replace(step.instruction, wait=wait, signal=signal)
        for step, wait, signal in zip(steps, waits, signals, strict=True)
    ]


def _pairs(steps: Sequence[Step]) -> dict[tuple[Queue, Queue], list[tuple[int, int]]]:
    """For each pair of queues the positions of (signalling, waiting) instructions."""
    histories = {space: _History() for space in Space}
    known: dict[Queue, list[int]] = {queue: [0] * len(Queue) for queue in Queue}
    number: list[int] = []  # of each instruction within its queue, from 1
    retired: list[Clock] = []  # what is known to have retired once an instruction has
    pairs: dict[tuple[Queue, Queue], list[tuple[int, int]]] = {}
    counts = [0] * len(Queue)
    for position, step in enumerate(steps):
        queue = _queue(step)
        met: set[int] = set()
        for access in step.accesses:
            met |= histories[access.space].record(access, position, queue)
        clock = known[queue]
        for earlier in sorted(met - {position}, reverse=True):  # a later one may imply the others
            other = _queue(steps[earlier])
            if other == queue or clock[other] >= number[earlier]:
                continue
            pairs.setdefault((other, queue), []).append((earlier, position))
            clock[:] = map(max, clock, retired[earlier])
        counts[queue] += 1
        number.append(counts[queue])
        own = list(clock)
        own[queue] = counts[queue]
        retired.append(tuple(own))
    return pairs


def _queue(step: Step) -> Queue:
    queue = step.instruction.queue
    if queue is None:
        raise ValueError(f"{step.instruction} belongs to no queue")
    return queue


def _check_count(
    steps: Sequence[Step],
    pair: tuple[Queue, Queue],
    events: Iterable[tuple[int, int]],
    config: AcceleratorConfig,
) -> None:
    """Refuse a semaphore that could pass its largest count.

    While the waiting queue stands still, dispatch advances until that queue is full; all signals up
    to there may have been sent.
    """
    signallers = sorted(signaller for signaller, _ in events)
    waiters = sorted(waiter for _, waiter in events)
    of_queue = [p for p, step in enumerate(steps) if step.instruction.queue == pair[1]]
    ahead = config.queue_depth + IN_FLIGHT_BEHIND_QUEUE
    limit = (1 << config.semaphore_bits) - 1
    for index, position in enumerate(of_queue):
        frontier = of_queue[index + ahead] if index + ahead < len(of_queue) else len(steps)
        sent = bisect.bisect_left(signallers, frontier)
        taken = bisect.bisect_left(waiters, position)
        if sent - taken > limit:
            raise UnsupportedModel(
                f"a semaphore could count to {sent - taken}; configuration {config.name} has "
                f"{config.semaphore_bits}-bit semaphores (up to {limit})"
            )
