"""The report of a run: cycles, utilization and where the time went, layer by layer."""

from functools import cached_property
from typing import Any

import numpy as np

from weft.program import Program
from weft_hw.instructions import Queue
from weft_sim.device import RunResult

__all__ = ["Accounting"]

_LAST_TO_FIRST = (Queue.STORE, Queue.LOAD, Queue.VECTOR, Queue.MATRIX)
_NOBODY = -1


class Accounting:
    """Sums over the inputs of one run.

    Each cycle counts for one layer: the one whose instruction MATRIX is running in it; if MATRIX
    has none, then VECTOR's, LOAD's or STORE's, in this order; a cycle in which no engine runs
    anything counts for the layer that runs next. So layers add up to the total although they
    overlap, and no layer exceeds the array's peak.

    Parameters
    ----------
    program : Program
    engine : str
    """

    def __init__(self, program: Program, engine: str) -> None:
        self.program = program
        self.engine = engine
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

    @cached_property
    def _layers_by_queue(self) -> dict[Queue, list[int]]:
        """For each queue the layer of each of its instructions, in order."""
        layers: dict[Queue, list[int]] = {queue: [] for queue in Queue}
        for symbol, (_, instruction) in zip(
            self.program.symbols, self.program.decoded, strict=False
        ):
            if instruction.queue is not None:
                layers[instruction.queue].append(symbol.layer)
        return layers

    def _cycles_by_layer(self, result: RunResult) -> list[int] | None:
        if result.events is None or result.cycles is None:
            return None
        owner = np.full(result.cycles, _NOBODY, dtype=np.int32)
        for queue in _LAST_TO_FIRST:
            events = result.events[queue]
            before = 0
            for layer, start, retire in zip(
                self._layers_by_queue[queue],
                events.starts.tolist(),
                events.retires.tolist(),
                strict=True,
            ):
                # An engine overlaps an instruction's start with its predecessor's end.
                owner[max(start, before) : retire] = layer
                before = retire
        owned = np.flatnonzero(owner != _NOBODY)
        if not len(owned):
            return None
        following = np.searchsorted(owned, np.arange(result.cycles))
        owner = owner[owned[np.minimum(following, len(owned) - 1)]]
        counted: list[int] = np.bincount(owner, minlength=len(self.program.layers)).tolist()
        return counted
