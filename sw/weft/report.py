"""The report of a run: cycles, utilization and where the time went, layer by layer."""

from typing import Any

from weft.program import Program
from weft_hw.instructions import Queue
from weft_sim.device import RunResult

__all__ = ["Accounting"]


class Accounting:
    """Sums over the inputs of one run.

    A layer's cycles are the time from the last retirement of all layers before it to its own last
    retirement; what comes after the last layer's (END, interrupt) is its own too. So they add up to
    the total, and what overlaps counts for the earlier layer.

    Parameters
    ----------
    program : Program
    engine : str
    """

    def __init__(self, program: Program, engine: str) -> None:
        self.program = program
        self.engine = engine
        self._last = self._last_instructions()
        self.begin()

    def begin(self) -> None:
        """Start from nothing."""
        self.inputs = 0
        self.wall_seconds = 0.0
        self.cycles: int | None = None
        self.counters: dict[str, int] = {}
        self.layer_cycles: list[int] | None = None

    def add(self, result: RunResult) -> None:
        """Count one input's run."""
        self.inputs += 1
        self.wall_seconds += result.wall_seconds
        for name, value in result.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value
        if result.cycles is None:
            return
        self.cycles = (self.cycles or 0) + result.cycles
        layers = self._cycles_by_layer(result)
        if layers is not None:
            before = self.layer_cycles or [0] * len(layers)
            self.layer_cycles = [a + b for a, b in zip(before, layers, strict=True)]

    def report(self) -> dict[str, Any]:
        """Plain values: model, config, engine, inputs, cycles, macs, utilization, wall_s,
        kcycles_per_s, layers, counters, host_ops, memory; None for what the engine cannot tell.
        """
        program = self.program
        layers = []
        for index, layer in enumerate(program.layers):
            cycles = self.layer_cycles[index] if self.layer_cycles is not None else None
            macs = layer.macs * self.inputs
            layers.append(
                {
                    "name": layer.name,
                    "op": layer.op,
                    "cycles": cycles,
                    "macs": macs,
                    "utilization": self._utilization(macs, cycles),
                }
            )
        macs = program.macs * self.inputs
        speed = None
        if self.cycles is not None and self.wall_seconds > 0:
            speed = self.cycles / self.wall_seconds / 1e3
        return {
            "model": program.name,
            "config": program.config.name,
            "engine": self.engine,
            "inputs": self.inputs,
            "cycles": self.cycles,
            "macs": macs,
            "utilization": self._utilization(macs, self.cycles),
            "wall_s": self.wall_seconds,
            "kcycles_per_s": speed,
            "layers": layers,
            "counters": dict(self.counters),
            "host_ops": list(program.host_ops),
            "memory": program.memory_report(),
        }

    def _utilization(self, macs: int, cycles: int | None) -> float | None:
        if cycles is None:
            return None
        elements = self.program.config.rows * self.program.config.columns
        return macs / (cycles * elements) if cycles else 0.0

    def _last_instructions(self) -> list[dict[Queue, int]]:
        """For each layer the number, within its queue, of the last instruction in each queue."""
        last: list[dict[Queue, int]] = [{} for _ in self.program.layers]
        counts = dict.fromkeys(Queue, 0)
        for symbol, (_, instruction) in zip(
            self.program.symbols, self.program.decoded, strict=False
        ):
            if instruction.queue is None:
                continue
            last[symbol.layer][instruction.queue] = counts[instruction.queue]
            counts[instruction.queue] += 1
        return last

    def _cycles_by_layer(self, result: RunResult) -> list[int] | None:
        if result.events is None or result.cycles is None:
            return None
        cycles, before = [], 0
        for numbers in self._last:
            retired = [int(result.events[queue].retires[n]) for queue, n in numbers.items()]
            end = max([before, *retired])
            cycles.append(end - before)
            before = end
        if cycles:
            cycles[-1] += result.cycles - before
        return cycles
