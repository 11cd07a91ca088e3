"""When each instruction of a run was in its engine, and what each cycle went into."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError
from weft.program import Program
from weft_hw.instructions import Instruction, Load, Memory, Queue, Store, Vector
from weft_sim.device import RunResult

__all__ = ["BOUNDS", "Slice", "Timeline"]

BOUNDS = ("matrix", "vector", "bus", "waiting")
"""What a cycle can go into, in order of precedence: MATRIX works, else VECTOR, else LOAD or STORE,
else nobody."""

_NOBODY = -1
_BOUND_OF = {
    Queue.MATRIX: BOUNDS.index("matrix"),
    Queue.VECTOR: BOUNDS.index("vector"),
    Queue.LOAD: BOUNDS.index("bus"),
    Queue.STORE: BOUNDS.index("bus"),
}
_LAST_TO_FIRST = (Queue.STORE, Queue.LOAD, Queue.VECTOR, Queue.MATRIX)


@dataclass(frozen=True)
class Slice:
    """An instruction's time in its engine, in cycles from the start register's write.

    Parameters
    ----------
    queue : Queue
    offset : int
        Of the instruction in the program, in bytes.
    instruction : Instruction
    layer, tile : int
    purpose : str
    start : int
        The engine took it.
    begin : int
        The engine had nothing older to do: ``start``, or the retirement of its predecessor.
    retire : int
    """

    queue: Queue
    offset: int
    instruction: Instruction
    layer: int
    tile: int
    purpose: str
    start: int
    begin: int
    retire: int


class Timeline:
    """The instructions of one run in time.

    An engine may take an instruction before the one ahead of it has retired. Slices therefore last
    from ``begin`` to ``retire``: they do not overlap within an engine, and add up to the cycles in
    which the engine held an instruction, its BUSY counter.

    Each cycle counts for one layer: the one whose instruction MATRIX is running in it; if MATRIX
    has none, then VECTOR's, LOAD's or STORE's, in this order; a cycle in which no engine runs
    anything counts for the layer that runs next. So layers add up to the total although they
    overlap, and no layer exceeds the array's peak.

    Parameters
    ----------
    program : Program
    result : RunResult
        Of an engine that has time.

    Raises
    ------
    InputError
        If the result has no times, or not those of this program.
    """

    def __init__(self, program: Program, result: RunResult) -> None:
        if result.events is None or result.cycles is None:
            raise InputError("this engine has no time: a timeline needs a run on rtl")
        self.program = program
        self.cycles = result.cycles
        self.slices = self._slices(result)

    def _slices(self, result: RunResult) -> tuple[Slice, ...]:
        """In stream order."""
        assert result.events is not None
        seen = dict.fromkeys(Queue, 0)
        before = dict.fromkeys(Queue, 0)
        times = [(each.starts.tolist(), each.retires.tolist()) for each in result.events]
        slices = []
        for symbol, (offset, instruction) in zip(
            self.program.symbols, self.program.decoded, strict=False
        ):
            queue = instruction.queue
            assert queue is not None
            starts, retires = times[queue]
            number = seen[queue]
            if number >= len(retires):
                raise InputError("the run's events are not those of this program")
            start, retire = starts[number], retires[number]
            slices.append(
                Slice(
                    queue=queue,
                    offset=offset,
                    instruction=instruction,
                    layer=symbol.layer,
                    tile=symbol.tile,
                    purpose=symbol.purpose,
                    start=start,
                    begin=max(start, before[queue]),
                    retire=retire,
                )
            )
            before[queue] = retire
            seen[queue] = number + 1
        if any(seen[queue] != len(times[queue][1]) for queue in Queue):
            raise InputError("the run's events are not those of this program")
        return tuple(slices)

    def of_queue(self, queue: Queue) -> list[Slice]:
        """One engine's slices, in order."""
        return [each for each in self.slices if each.queue is queue]

    @cached_property
    def _owners(self) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
        owner = np.full(self.cycles, _NOBODY, dtype=np.int32)
        bound = np.full(self.cycles, BOUNDS.index("waiting"), dtype=np.int8)
        for queue in _LAST_TO_FIRST:
            for each in self.of_queue(queue):
                owner[each.begin : each.retire] = each.layer
                bound[each.begin : each.retire] = _BOUND_OF[queue]
        owned = np.flatnonzero(owner != _NOBODY)
        if len(owned):
            following = np.searchsorted(owned, np.arange(self.cycles))
            owner = owner[owned[np.minimum(following, len(owned) - 1)]]
        return owner, bound

    @property
    def owner(self) -> NDArray[np.int32]:
        """The layer that each cycle counts for; all -1 if nothing ran."""
        return self._owners[0]

    @cached_property
    def layer_cycles(self) -> NDArray[np.int64]:
        """Cycles (layer, bound), the bounds in the order of :data:`BOUNDS`."""
        layers, kinds = len(self.program.layers), len(BOUNDS)
        owner, bound = self._owners
        known = owner != _NOBODY
        joined = owner[known].astype(np.int64) * kinds + bound[known]
        return np.bincount(joined, minlength=layers * kinds).reshape(layers, kinds)

    def data_span(self, first_layer: int, last_layer: int) -> tuple[int, int]:
        """When a tensor written in one layer and last read in another is in use.

        From the first instruction of the one that writes activations or DRAM, to the retirement of
        the last one of the other; whole layers, as the memory plan has them.
        """
        begins = [
            each.begin
            for each in self.slices
            if each.layer == first_layer and _writes_data(each.instruction)
        ]
        ends = [each.retire for each in self.slices if each.layer == last_layer]
        start = min(begins, default=0)
        return start, max(max(ends, default=self.cycles), start)

    @cached_property
    def stretches(self) -> list[tuple[int, int, int]]:
        """Stretches (layer, from, to) of cycles that count for one layer, in time order."""
        owner = self.owner
        if not len(owner) or owner[0] == _NOBODY:
            return []
        edges = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
        return [
            (int(owner[start]), start, end)
            for start, end in zip(edges[:-1], edges[1:], strict=True)
        ]


def _writes_data(instruction: Instruction) -> bool:
    """Whether it writes more than weights, parameters or sums."""
    if isinstance(instruction, Load):
        return instruction.memory == Memory.ACTIVATION
    if isinstance(instruction, Vector):
        return instruction.destination == Memory.ACTIVATION
    return isinstance(instruction, Store)
