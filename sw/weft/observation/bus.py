"""What a recording of the memory bus says: beats by purpose, bursts outstanding."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.program import Program
from weft_sim.device import BusEventKind

__all__ = ["BusActivity", "Stretch"]


@dataclass(frozen=True)
class Stretch:
    """Cycles [start, end) in each of which a beat moved."""

    start: int
    end: int


class BusActivity:
    """The bus of one run.

    Parameters
    ----------
    program : Program
    events : array of weft_sim.device.BUS_EVENT
    """

    def __init__(self, program: Program, events: NDArray[np.void]) -> None:
        kinds, cycles = events["kind"], events["cycle"].astype(np.int64)
        reads = kinds == BusEventKind.READ_BEAT
        # Nothing but instructions lies from there on.
        of_fetch = events["address"] >= program.instructions_address
        self.load_beats: NDArray[np.int64] = cycles[reads & ~of_fetch]
        """Cycles in which LOAD read a beat."""
        self.fetch_beats: NDArray[np.int64] = cycles[reads & of_fetch]
        """Cycles in which instruction fetch read a beat."""
        self.write_beats: NDArray[np.int64] = cycles[kinds == BusEventKind.WRITE_BEAT]
        """Cycles in which STORE wrote a beat."""
        self.fetched_to: NDArray[np.int64] = (
            events["address"][reads & of_fetch].astype(np.int64)
            + program.config.bus_bytes
            - program.instructions_address
        )
        """For each of ``fetch_beats``: the bytes of the program that have arrived with it."""
        self.outstanding = {
            "read": _outstanding_reads(events),
            "write": _outstanding_writes(events),
        }
        """For each direction (cycle, bursts that await data or answer from then on)."""

    @staticmethod
    def stretches(beats: NDArray[np.int64]) -> list[Stretch]:
        """Beats in consecutive cycles, joined."""
        if not len(beats):
            return []
        breaks = np.flatnonzero(np.diff(beats) != 1)
        starts = beats[np.concatenate([[0], breaks + 1])].tolist()
        ends = (beats[np.concatenate([breaks, [len(beats) - 1]])] + 1).tolist()
        return [Stretch(start, end) for start, end in zip(starts, ends, strict=True)]


def _outstanding_reads(events: NDArray[np.void]) -> list[tuple[int, int]]:
    """Bursts answer in order, so that their beats tell which is complete."""
    left: deque[int] = deque()
    changes = []
    for event in events[events["kind"] <= BusEventKind.READ_BEAT]:
        if event["kind"] == BusEventKind.READ_BURST:
            left.append(int(event["beats"]))
        else:
            left[0] -= 1
            if left[0]:
                continue
            left.popleft()
        changes.append((int(event["cycle"]), len(left)))
    return changes


def _outstanding_writes(events: NDArray[np.void]) -> list[tuple[int, int]]:
    count = 0
    changes = []
    for event in events[np.isin(events["kind"], _WRITE_CHANGES)]:
        count += 1 if event["kind"] == BusEventKind.WRITE_BURST else -1
        changes.append((int(event["cycle"]), count))
    return changes


_WRITE_CHANGES = (BusEventKind.WRITE_BURST, BusEventKind.WRITE_RESPONSE)
