"""The machine's queues, engines and bus as events in time."""

from collections.abc import Sequence

from weft_hw.config import AcceleratorConfig
from weft_hw.errors import WeftError
from weft_hw.instructions import End, Instruction, Queue
from weft_sim.cycle_model.clock import Clock
from weft_sim.cycle_model.contention import Contention
from weft_sim.cycle_model.dispatch import Dispatch, InstructionQueue
from weft_sim.cycle_model.engines import ENGINES
from weft_sim.cycle_model.latencies import Latencies

__all__ = ["Simulation"]


class ReadBus:
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
        self.bus = ReadBus(latency)
        self.contention = Contention(self.clock, self.latencies.leak)
        self.semaphores = [0] * config.semaphores
        self.starts: dict[Queue, list[float]] = {queue: [] for queue in Queue}
        self.retires: dict[Queue, list[float]] = {queue: [] for queue in Queue}
        self.ended = 0.0
        self.queues = {
            queue: InstructionQueue(self, queue, ENGINES[queue](self)) for queue in Queue
        }
        ends = (n for n, each in enumerate(program) if isinstance(each, End))
        self._instructions = next(ends, len(program))
        self._dispatch = Dispatch(self, program)

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
