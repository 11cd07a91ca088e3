"""The four engines: what each lets in, how long it takes, when it retires."""

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from weft_hw.instruction_values import Memory, OperandSource, Tail
from weft_hw.instructions import Instruction, Load, Matrix, Queue, Scalar, Store, Vector
from weft_sim.cycle_model.contention import Stream
from weft_sim.cycle_model.work import (
    Bank,
    Entry,
    Work,
    entries_of,
    matrix_work,
    store_work,
    vector_work,
)

if TYPE_CHECKING:
    from weft_sim.cycle_model.dispatch import InstructionQueue
    from weft_sim.cycle_model.simulation import Simulation

__all__ = ["ENGINES", "Engine"]


class Engine(ABC):
    """An engine takes instructions from its queue while ``ready``, and retires them in order."""

    queue: "InstructionQueue"

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        self.clock = simulation.clock
        self.config = simulation.config
        self.latencies = simulation.latencies
        self.ready = True
        self._last_retirement = 0.0

    @abstractmethod
    def take(self, instruction: Instruction) -> None:
        """Begin an instruction; calls :meth:`free` and :meth:`retire_at` for it."""

    def free(self) -> None:
        """The next instruction may come."""
        self.ready = True
        self.queue.offer()

    def retire_at(self, time: float) -> None:
        """Retire then, or after the instruction before, whichever is later."""
        self._last_retirement = max(time, self._last_retirement)
        self.clock.at(self._last_retirement, self.queue.retire)


class LoadEngine(Engine):
    """Issues a burst a cycle; data come in order, and runs to be filled between them."""

    def __init__(self, simulation: "Simulation") -> None:
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


class MatrixEngine(Engine):
    """One instruction streams, one waits in front: its first weight tile comes meanwhile."""

    def __init__(self, simulation: "Simulation") -> None:
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

    def __init__(self, simulation: "Simulation", work: Work, port: str, delay: int) -> None:
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


class VectorEngine(Engine):
    """Two instructions at most are inside; one that reads what the other writes waits for it."""

    SLOTS = 2

    def __init__(self, simulation: "Simulation") -> None:
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


class StoreEngine(Engine):
    """Bursts are announced ahead; their beats are read and written in order."""

    def __init__(self, simulation: "Simulation") -> None:
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


ENGINES: dict[Queue, type[Engine]] = {
    Queue.LOAD: LoadEngine,
    Queue.MATRIX: MatrixEngine,
    Queue.VECTOR: VectorEngine,
    Queue.STORE: StoreEngine,
}
