"""Pipeline lengths of the machine that decide when things happen, in cycles.

The gateware's own constants are taken from it. The others are sums of registers along paths
through several components; each was read off single instructions on the RTL, and the tests compare
whole networks, cycle by cycle, with it.
"""

from dataclasses import dataclass

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.accumulator_memory import PATIENCE, UPDATE_LATENCY
from weft_hw.gateware.instruction_queue import IN_FLIGHT
from weft_hw.gateware.interfaces import READ_LATENCY

__all__ = ["Latencies"]


@dataclass(frozen=True)
class Latencies:
    """Cycles from one event to another.

    Parameters
    ----------
    fetch : int
        From the start register's write to the first request of instruction fetch.
    word : int
        From a beat on the bus to its word at dispatch.
    head : int
        From a word at dispatch to the instruction queue's head, and from an engine's taking an
        instruction to the first word of the next one there.
    grant : int
        From the last word in the head to the engine, its semaphores being there.
    signal : int
        From a retirement to the engine of an instruction that waited for it.
    burst : int
        From an instruction in LOAD or STORE to its first burst.
    load_end : int
        From LOAD's last beat to its retirement.
    matrix_start, matrix_end : int
        From an instruction in MATRIX to its first left row's request; from that of the last row to
        the retirement.
    matrix_gap : int
        From an instruction's last left row to the first one of the next.
    matrix_read, matrix_write : int
        From a left row's request to when its accumulator row comes before VECTOR's accesses: before
        reads that are requested then, and before writes whose operands are.
    vector_start, vector_end : int
        Likewise, of VECTOR.
    store_start, store_end : int
        From a STORE's first burst to its first read; from its last read to the beat on the bus.
    scalar : int
        A SCALAR instruction.
    end : int
        From the last retirement to the interrupt.
    in_flight : int
        Instructions in an engine.
    leak : float
        Accesses a cycle that MATRIX leaves to others in the accumulator bank that it updates.
    """

    fetch: int
    word: int
    head: int
    grant: int
    signal: int
    burst: int
    load_end: int
    matrix_start: int
    matrix_end: int
    matrix_gap: int
    matrix_read: int
    matrix_write: int
    vector_start: int
    vector_end: int
    store_start: int
    store_end: int
    scalar: int
    end: int
    in_flight: int
    leak: float

    @classmethod
    def of(cls, config: AcceleratorConfig) -> "Latencies":
        """Those of a configuration."""
        through = config.rows + config.columns
        row = READ_LATENCY + 1 + through
        return cls(
            fetch=2,
            word=3,
            head=2,
            grant=2,
            signal=3,
            burst=5,
            load_end=4,
            matrix_start=config.rows + 1,
            matrix_end=row + UPDATE_LATENCY + 6,
            matrix_gap=1,
            matrix_read=row,
            matrix_write=max(0, row - 20),
            vector_start=4,
            vector_end=29 + (config.vector_groups if config.vector_groups > 1 else 0),
            store_start=4,
            store_end=8,
            scalar=8,
            end=8,
            in_flight=IN_FLIGHT,
            leak=1 / (row + 2 * PATIENCE),
        )
