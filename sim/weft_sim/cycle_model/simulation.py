"""The machine's queues, engines and bus as events in time."""

from collections import deque
from collections.abc import Callable, Sequence

from weft_hw.config import AcceleratorConfig
from weft_hw.errors import WeftError
from weft_hw.gateware.instruction_queue import engine_kind
from weft_hw.instruction_values import Memory, OperandSource, Tail
from weft_hw.instructions import (
    WORD_BYTES,
    End,
    Instruction,
    Load,
    Matrix,
    Queue,
    Scalar,
    Store,
    Vector,
)
from weft_sim.cycle_model.clock import Clock
from weft_sim.cycle_model.contention import Contention, Stream
from weft_sim.cycle_model.latencies import Latencies
from weft_sim.cycle_model.work import (
    Bank,
    Entry,
    Work,
    entries_of,
    matrix_work,
    store_work,
    vector_work,
)

__all__ = ["Simulation"]


class _ReadBus:
    """Answers bursts in the order of their requests, a beat a cycle after the latency."""

    def __init__(self, latency: int) -> None:
        self._latency = latency
        self._free = 0.0

    def burst(self, now: float, beats: int, takes: float, not_before: float) -> float:
        """When the last beat of a burst requested now is taken, in ``takes`` cycles."""
        begin = max(now + self._latency, self._free, not_before)
        self._free = begin + max(beats, takes)
        return self._free


class Simulation:
    """One run of a program.

    Parameters
    ----------
    config : AcceleratorConfig
    program : sequence of Instruction
        Up to END, which may be left out.
    latency : int
        Of the memory's answers, in cycles.

    Attributes
    ----------
    starts, retires : dict of Queue to list of float
        By instruction.
    """

    def __init__(
        self, config: AcceleratorConfig, program: Sequence[Instruction], latency: int
    ) -> None:
        self.config = config
        self.clock = Clock()
        self.latencies = Latencies.of(config)
        self.latency = latency
        self.bus = _ReadBus(latency)
        self.contention = Contention(self.clock, self.latencies.leak)
        self.semaphores = [0] * config.semaphores
        self.starts: dict[Queue, list[float]] = {queue: [] for queue in Queue}
        self.retires: dict[Queue, list[float]] = {queue: [] for queue in Queue}
        self.ended = 0.0
        engines: dict[Queue, _Engine] = {
            Queue.LOAD: _Load(self),
            Queue.MATRIX: _Matrix(self),
            Queue.VECTOR: _Vector(self),
            Queue.STORE: _Store(self),
        }
        self.queues = {queue: _InstructionQueue(self, queue, engines[queue]) for queue in Queue}
        ends = (n for n, each in enumerate(program) if isinstance(each, End))
        self._instructions = next(ends, len(program))
        self._dispatch = _Dispatch(self, program)

    def run(self) -> int:
        """Cycles from the start register's write to the interrupt.

        Raises
        ------
        WeftError
            If not every instruction retires.
        """
        self._dispatch.begin()
        self.clock.run()
        retired = sum(map(len, self.retires.values()))
        if retired != self._instructions:
            raise WeftError(
                f"the program would not end: {retired} of {self._instructions} instructions "
                "retire, the others wait for semaphores that nothing signals"
            )
        return round(self.ended + self.latencies.end)

    def signal(self, mask: int) -> None:
        """Increment semaphores; look whether instructions waited for them."""
        for number in range(len(self.semaphores)):
            self.semaphores[number] += mask >> number & 1
        for queue in self.queues.values():
            queue.look()


class _Dispatch:
    """Fetch and dispatch: words in order, each to the queue of its instruction."""

    def __init__(self, simulation: Simulation, program: Sequence[Instruction]) -> None:
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


class _InstructionQueue:
    """Words in; the head waits for its semaphores and goes to the engine."""

    def __init__(self, simulation: Simulation, queue: Queue, engine: "_Engine") -> None:
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
        if head is None or self._granted or len(self._signals) >= 8:
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


class _Engine:
    """An engine takes instructions from its queue while ``ready``, and retires them in order."""

    queue: _InstructionQueue

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.clock = simulation.clock
        self.config = simulation.config
        self.latencies = simulation.latencies
        self.ready = True
        self._last_retirement = 0.0

    def take(self, instruction: Instruction) -> None:
        raise NotImplementedError

    def free(self) -> None:
        """The next instruction may come."""
        self.ready = True
        self.queue.offer()

    def retire_at(self, time: float) -> None:
        """Retire then, or after the instruction before, whichever is later."""
        self._last_retirement = max(time, self._last_retirement)
        self.clock.at(self._last_retirement, self.queue.retire)


class _Load(_Engine):
    """Issues a burst a cycle; data come in order, and runs to be filled between them."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self._written = 0.0  # when everything issued so far is written
        self._noted = deque[float]()  # when each entry that may be unfinished is
        self._entries = deque[Entry]()

    def take(self, instruction: Instruction) -> None:
        assert isinstance(instruction, Load)
        self.ready = False
        self._entries.extend(entries_of(self.config, instruction))
        self.clock.at(self.clock.now + self.latencies.burst, self._issue)

    def _issue(self) -> None:
        now = self.clock.now
        while self._noted and self._noted[0] <= now:
            self._noted.popleft()
        if len(self._noted) >= max(2, self.config.max_outstanding):
            self.clock.at(self._noted[0], self._issue)
            return
        if self._entries:
            entry = self._entries.popleft()
            if entry.beats:
                self._written = self.simulation.bus.burst(
                    now, entry.beats, entry.writes, self._written
                )
            else:
                self._written = max(self._written, now + 3) + entry.writes
            self._noted.append(self._written)
        if self._entries:
            self.clock.at(now + 1, self._issue)
        else:
            self.retire_at(self._written + self.latencies.load_end)
            self.free()


class _Matrix(_Engine):
    """One instruction streams, one waits in front: its first weight tile comes meanwhile."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self._next: tuple[Work, float] | None = None
        self._streaming = False

    def take(self, instruction: Instruction) -> None:
        assert isinstance(instruction, Matrix)
        self.ready = False
        work = matrix_work(self.config, instruction)
        self._next = (work, self.clock.now + self.latencies.matrix_start)
        if not self._streaming:
            self._begin()

    def _begin(self) -> None:
        if self._next is None:
            return
        work, earliest = self._next
        self._next = None
        self._streaming = True
        self.clock.at(max(self.clock.now, earliest), lambda: self._stream(work))
        self.clock.at(self.clock.now + 1, self.free)

    def _stream(self, work: Work) -> None:
        """Rows are requested now; their sums reach the accumulators later."""
        updates = [
            _Updates(self.simulation, work, "read", self.latencies.matrix_read),
            _Updates(self.simulation, work, "write", self.latencies.matrix_write),
        ]

        def done() -> None:
            for port in updates:
                port.stop()
            self.retire_at(self.clock.now + self.latencies.matrix_end)
            self.clock.at(self.clock.now + work.recharge + self.latencies.matrix_gap, self._finish)

        self.simulation.contention.begin(Stream(work, done, updates=True))

    def _finish(self) -> None:
        self._streaming = False
        self._begin()


class _Updates:
    """MATRIX's use of the accumulators' read or write ports, phase by phase, from ``delay`` cycles
    after now to as long after :meth:`stop`."""

    def __init__(self, simulation: Simulation, work: Work, port: str, delay: int) -> None:
        self._contention, self._clock = simulation.contention, simulation.clock
        self._delay = delay
        self._phases = deque(
            (steps, {bank: n for bank, n in accesses.items() if bank[1] == port})
            for steps, accesses in work.updates
        )
        self._current: dict[Bank, float] = {}
        self._clock.at(self._clock.now + delay, self._advance)

    def stop(self) -> None:
        """The last row has been requested."""
        self._clock.at(self._clock.now + self._delay, self._end)

    def _advance(self) -> None:
        self._contention.update(self._current, -1)
        self._current = {}
        if self._phases:
            steps, self._current = self._phases.popleft()
            self._contention.update(self._current, 1)
            self._clock.at(self._clock.now + steps, self._advance)

    def _end(self) -> None:
        self._phases.clear()
        self._advance()


class _Vector(_Engine):
    """Two instructions at most are inside; one that reads what the other writes waits for it."""

    SLOTS = 2

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self._inside = 0
        self._waiting: Vector | Scalar | None = None
        self._written: Memory | None = None  # the predecessor's destination

    def take(self, instruction: Instruction) -> None:
        assert isinstance(instruction, Vector | Scalar)
        self.ready = False
        self._waiting = instruction
        self._look()

    def _look(self) -> None:
        instruction = self._waiting
        if instruction is None or self._inside == self.SLOTS:
            return
        if isinstance(instruction, Scalar):
            if self._inside == 0:
                self._waiting = None
                self.retire_at(self.clock.now + self.latencies.scalar)
                self.clock.at(self.clock.now + self.latencies.scalar, self.free)
            return
        if self._inside and self._conflicts(instruction):
            return
        self._waiting = None
        self._inside += 1
        self._written = instruction.destination
        work = vector_work(self.config, instruction)
        start = self.clock.now + self.latencies.vector_start
        self.clock.at(start, lambda: self.simulation.contention.begin(Stream(work, self._done)))

    def _conflicts(self, instruction: Vector) -> bool:
        sources = {instruction.a_source}
        if instruction.tail is not Tail.NONE:
            sources.add(instruction.b_source)
        written = OperandSource.ACTIVATION
        if self._written is Memory.ACCUMULATOR:
            written = OperandSource.ACCUMULATOR
        return written in sources

    def _done(self) -> None:
        end = self.clock.now + self.latencies.vector_end
        self.retire_at(end)
        self.clock.at(end, self._leave)
        self.free()

    def _leave(self) -> None:
        self._inside -= 1
        self._look()


class _Store(_Engine):
    """Bursts are announced ahead; their beats are read and written in order."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self._works = deque[Work]()
        self._streaming = False

    def take(self, instruction: Instruction) -> None:
        assert isinstance(instruction, Store)
        self.ready = False
        entries = entries_of(self.config, instruction)
        work = store_work(self.config, instruction, entries)
        begin = self.clock.now + self.latencies.burst
        self.clock.at(begin + len(entries), self.free)
        self.clock.at(begin + self.latencies.store_start, lambda: self._arrive(work))

    def _arrive(self, work: Work) -> None:
        self._works.append(work)
        self._begin()

    def _begin(self) -> None:
        if self._works and not self._streaming:
            self._streaming = True
            self.simulation.contention.begin(Stream(self._works.popleft(), self._done))

    def _done(self) -> None:
        self._streaming = False
        self.retire_at(self.clock.now + self.latencies.store_end + self.simulation.latency)
        self._begin()
