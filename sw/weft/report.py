"""The report of a run: cycles, utilization and where the time went, layer by layer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.observation.timeline import BOUNDS, Timeline
from weft.observation.traffic import layer_traffic
from weft.program import Program
from weft_sim.device import RunResult

__all__ = ["CYCLE_MODEL", "Accounting"]

CYCLE_MODEL = "cycle model"
"""Name, in reports, of what estimates cycles instead of simulating them."""


class Accounting:
    """Sums over the inputs of one run.

    Each cycle counts for one layer, and within it for what it went into: see
    :class:`weft.observation.timeline.Timeline`.

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
        self.layer_cycles: NDArray[np.int64] | None = None  # (layer, bound)
        self.last: RunResult | None = None

    def add(self, result: RunResult) -> None:
        """Count one input's run."""
        self.inputs += 1
        self.last = result
        self.wall_seconds += result.wall_seconds
        for name, value in result.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value
        if result.cycles is None:
            return
        self.cycles = (self.cycles or 0) + result.cycles
        if result.events is None:
            return
        cycles = Timeline(self.program, result).layer_cycles
        if cycles.any():
            self.layer_cycles = cycles if self.layer_cycles is None else self.layer_cycles + cycles

    def report(self) -> dict[str, Any]:
        """Plain values: model, config, engine, inputs, cycles, macs, utilization, wall_s,
        kcycles_per_s, layers, counters, host_ops, memory; None for what the engine cannot tell.

        Of a layer: name, op, source, cycles, macs, utilization, ``cycles_by`` (what its cycles went
        into, see :data:`weft.observation.timeline.BOUNDS`), ``bound`` (the largest of these),
        ``loaded_bytes`` and ``stored_bytes`` (asked of DRAM by its instructions).
        """
        program = self.program
        layers = []
        traffic = layer_traffic(program)
        for index, layer in enumerate(program.layers):
            cycles = cycles_by = bound = None
            if self.layer_cycles is not None:
                counts: list[int] = self.layer_cycles[index].tolist()
                cycles, cycles_by = sum(counts), dict(zip(BOUNDS, counts, strict=True))
                bound = BOUNDS[counts.index(max(counts))] if cycles else None
            macs = layer.macs * self.inputs
            layers.append(
                {
                    "name": layer.name,
                    "op": layer.op,
                    "source": layer.source,
                    "cycles": cycles,
                    "macs": macs,
                    "utilization": self._utilization(macs, cycles),
                    "cycles_by": cycles_by,
                    "bound": bound,
                    "loaded_bytes": traffic[index].loaded * self.inputs,
                    "stored_bytes": traffic[index].stored * self.inputs,
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
