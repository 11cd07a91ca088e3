"""Instruction fetch, dispatch, and the queues in front of the engines."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from weft_hw.gateware.instruction_queue import engine_kind
from weft_hw.instructions import WORD_BYTES, End, Instruction, Queue

if TYPE_CHECKING:
    from weft_sim.cycle_model.engines import Engine
    from weft_sim.cycle_model.simulation import Simulation

__all__ = ["Dispatch", "InstructionQueue"]


class Dispatch:
    """Fetch and dispatch: words in order, each to the queue of its instruction."""

    def __init__(self, simulation: "Simulation", program: Sequence[Instruction]) -> None:
        self._simulation = simulation
        config = simulation.config
        self._words = deque[tuple[Instruction, bool]]()
        for instruction in program:
            if isinstance(instruction, End):
                break
            number = instruction.size // WORD_BYTES
            self._words.extend((instruction, n == number - 1) for n in range(number))
        self._beats_a_word = max(1, WORD_BYTES // config.bus_bytes)
        self._words_a_beat = max(1, config.bus_bytes // WORD_BYTES)
        self._beats = (len(self._words) + 1) * self._beats_a_word / self._words_a_beat
        self._requested = 0  # beats
        self._taken = 0
        self._words_left = self._words_a_beat  # of the beat that comes first
        self._arrived = deque[float]()  # when each beat that is not taken is there
        self._at_work = False

    def begin(self) -> None:
        """The start register has been written."""
        self._simulation.clock.at(self._simulation.latencies.fetch, self._request)

    def _request(self) -> None:
        config, clock = self._simulation.config, self._simulation.clock
        while (
            self._requested < self._beats + config.burst_beats
            and self._requested + config.burst_beats <= self._taken + 2 * config.burst_beats
        ):
            beats = config.burst_beats
            end = self._simulation.bus.burst(clock.now, beats, beats, 0.0)
            first = end - beats
            self._arrived.extend(
                first + n + 1 + self._simulation.latencies.word for n in range(beats)
            )
            self._requested += beats
        self._look()

    def _look(self) -> None:
        if not self._at_work and self._words and self._arrived:
            self._at_work = True
            needed = self._arrived[min(self._beats_a_word, len(self._arrived)) - 1]
            self._simulation.clock.at(needed, self._take)

    def _take(self) -> None:
        """The next word is here: pass it on, or wait until its queue has room."""
        instruction, last = self._words[0]
        assert instruction.queue is not None
        queue = self._simulation.queues[instruction.queue]
        if not queue.room:
            queue.on_room = self._take
            return
        self._words.popleft()
        queue.put(instruction if last else None)
        self._words_left -= 1
        if self._words_left == 0 or self._beats_a_word > 1:
            self._words_left = self._words_a_beat
            for _ in range(self._beats_a_word):
                self._arrived.popleft()
            self._taken += self._beats_a_word
        self._at_work = False
        clock = self._simulation.clock
        clock.at(clock.now + 1, self._request)


class InstructionQueue:
    """Words in; the head waits for its semaphores and goes to the engine."""

    def __init__(self, simulation: "Simulation", queue: Queue, engine: "Engine") -> None:
        self._simulation = simulation
        self._queue = queue
        self.engine = engine
        engine.queue = self
        self._room = simulation.config.queue_depth * engine_kind(queue).size // WORD_BYTES
        self._stored = 0
        self._complete = deque[Instruction]()  # in the queue, whole
        self._head: Instruction | None = None
        self._ready_at = 0.0  # the head's last word is there
        self._granted = False
        self._assembling = False
        self._free_at = 0.0  # for the first word of the next head
        self._signals = deque[int]()
        self.on_room: Callable[[], None] | None = None

    @property
    def room(self) -> bool:
        return self._stored < self._room

    def put(self, instruction: Instruction | None) -> None:
        """A word; with the instruction, if it is its last."""
        self._stored += 1
        if instruction is not None:
            self._complete.append(instruction)
            self._assemble()

    def _assemble(self) -> None:
        if self._head is not None or self._assembling or not self._complete:
            return
        clock, latencies = self._simulation.clock, self._simulation.latencies
        words = self._complete[0].size // WORD_BYTES
        self._assembling = True
        clock.at(max(clock.now + latencies.head, self._free_at + words), self._assembled)

    def _assembled(self) -> None:
        self._assembling = False
        self._head = self._complete.popleft()
        self._stored -= self._head.size // WORD_BYTES
        self._ready_at = self._simulation.clock.now
        if self.on_room is not None:
            call, self.on_room = self.on_room, None
            call()
        self.look()

    def look(self) -> None:
        """Grant the head its semaphores if they are all there."""
        head = self._head
        if (
            head is None
            or self._granted
            or len(self._signals) >= self._simulation.latencies.in_flight
        ):
            return
        semaphores = self._simulation.semaphores
        mine = [number for number in range(len(semaphores)) if head.wait >> number & 1]
        if all(semaphores[number] > 0 for number in mine):
            for number in mine:
                semaphores[number] -= 1
            self._granted = True
            clock = self._simulation.clock
            clock.at(clock.now + 1, self.offer)

    def offer(self) -> None:
        """Give the head to the engine, if that takes it now."""
        if self._head is None or not self._granted or not self.engine.ready:
            return
        head, clock = self._head, self._simulation.clock
        self._head, self._granted = None, False
        self._free_at = clock.now + self._simulation.latencies.head
        self._simulation.starts[self._queue].append(clock.now)
        self._signals.append(head.signal)
        self.engine.take(head)
        self._assemble()

    def retire(self) -> None:
        """The oldest instruction in the engine has retired now."""
        clock = self._simulation.clock
        self._simulation.retires[self._queue].append(clock.now)
        self._simulation.ended = clock.now
        mask = self._signals.popleft()
        after = clock.now + self._simulation.latencies.signal - 1
        clock.at(after, lambda: self._simulation.signal(mask))
