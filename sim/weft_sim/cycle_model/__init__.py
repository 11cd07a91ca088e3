"""Cycles of a program without simulating its RTL: queues, engines, banks and the bus as events."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import Instruction, Queue
from weft_sim.cycle_model.simulation import Simulation
from weft_sim.device import QueueEvents, RunResult

__all__ = ["estimate_run"]


def estimate_run(
    config: AcceleratorConfig, program: Sequence[Instruction], *, latency: int = 20
) -> RunResult:
    """When each instruction would start and retire, and the cycles of the whole program.

    Instructions pass through dispatch, queues, semaphores and engines as in the machine; what an
    engine does in between is one stream of steps, slowed by others that use the same memory bank,
    and bursts of the bus one after the other. Values are not computed, so this takes milliseconds.

    Parameters
    ----------
    config : AcceleratorConfig
    program : sequence of Instruction
        As encoded, up to END.
    latency : int
        From a burst's address to its first beat, and from a write's last beat to its response.

    Returns
    -------
    RunResult
        With cycles and events, and without counters.
    """
    begin = time.perf_counter()
    simulation = Simulation(config, program, latency)
    cycles = simulation.run()
    events = tuple(
        QueueEvents(_cycles(simulation.starts[queue]), _cycles(simulation.retires[queue]))
        for queue in Queue
    )
    return RunResult(
        cycles=cycles, wall_seconds=time.perf_counter() - begin, counters={}, events=events
    )


def _cycles(times: Sequence[float]) -> NDArray[np.int64]:
    return np.round(np.array(times, dtype=np.float64)).astype(np.int64)
