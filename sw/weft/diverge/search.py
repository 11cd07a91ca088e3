"""The search for the first difference.

An on-chip memory is read past the machine, so that every instruction can be checked:

1. One instruction at a time, in stream order, on both engines. After each, all on-chip memories
   (after a STORE, DRAM as well) are compared whole: the first difference names the instruction
   that made it, for everything before was equal, and shows writes that should not be as well.
2. If nothing differs, the whole program as it is, in which the engines overlap: when an instruction
   retires, what it was to write is compared, before anything else may write there.
   A difference here depends on order: a missing wait, or hardware that fails only under overlap.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.diverge.engines import Machine, Model, Sample, Schedule, Written
from weft.diverge.locate import locate
from weft.diverge.reference import Expected
from weft.diverge.report import Comparison, Difference, Element, instruction_facts
from weft.diverge.state import ON_CHIP, describe_place, rtl_state, value_at
from weft.diverge.tensors import compare_tensor
from weft.program import Program
from weft_hw.instructions import Store
from weft_sim.cache import Progress
from weft_sim.device import DeviceFault
from weft_sim.functional import FunctionalDevice
from weft_sim.race_check import Space
from weft_sim.rtl import RtlDevice, SimulationError

__all__ = ["SETTLED", "STOPS", "Search"]

SETTLED = 8
"""Cycles behind a retirement after which what was written has passed every write port. (It is
readable at once: a read takes longer to its memory than the write has left.)"""

STOPS = (DeviceFault, SimulationError)
"""How the rtl engine says that it has stopped."""


class _Found(Exception):
    """Carries a difference out of a paused run."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(difference)
        self.difference = difference


class Search:
    """One comparison under way."""

    def __init__(
        self,
        program: Program,
        sample: Sample,
        model: Callable[..., FunctionalDevice],
        machine: Callable[..., RtlDevice],
        progress: Progress,
    ) -> None:
        self.program = program
        self.config = program.config
        self.sample = sample
        self.engines = ("functional", "rtl")
        self.skipped: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.place: tuple[Space, int] | None = None  # of the difference
        self._machine = machine
        self._progress = progress
        device = model(program.config, memory_bytes=program.memory_bytes)
        self.model = Model(program, sample, device)
        self.written: list[list[Written]] = []
        self.elements = 0

    def machine(self, **options: Any) -> Machine:
        """A fresh machine, ready to run the program."""
        return Machine(
            self.program,
            self.sample,
            lambda config, **sizes: self._machine(config, **sizes, **options),
        )

    def comparison(self, found: Difference | None) -> Comparison:
        """What has been found so far."""
        return Comparison(
            model=self.program.name,
            config=self.config.name,
            engines=self.engines,
            difference=found,
            instructions=len(self.written),
            elements=self.elements,
            skipped=self.skipped,
            race=self.model.race,
            notes=tuple(self.notes),
        )

    def _execute(self, index: int) -> list[Written]:
        """The next instruction on the functional engine."""
        self._progress("comparing", index / len(self.model.instructions))
        written = self.model.step(index)
        self.written.append(written)
        self.elements += sum(len(each.places) for each in written)
        return written

    # The rtl engine, one instruction at a time ----------------------------------------------------

    def one_at_a_time(self) -> Difference | None:
        """The first instruction that differs although it has the machine for itself."""
        with self.machine() as machine:
            for index, instruction in enumerate(self.model.instructions):
                before = {space: rtl_state(machine.device, space) for space in ON_CHIP}
                dram = machine.device.memory.copy() if isinstance(instruction, Store) else None
                written = self._execute(index)
                try:
                    machine.step(instruction)
                except STOPS as error:
                    return self._stopped(index, str(error))
                spaces = (*ON_CHIP, Space.DRAM) if dram is not None else ON_CHIP
                for space in spaces:
                    then = dram if space is Space.DRAM else before[space]
                    assert then is not None
                    found = self._compare_all(index, space, written, machine.device, then)
                    if found is not None:
                        return found
        return None

    def _compare_all(
        self,
        index: int,
        space: Space,
        written: Sequence[Written],
        device: RtlDevice,
        before: NDArray[Any],
    ) -> Difference | None:
        mine, other = self.model.state(space), rtl_state(device, space)[: self._size(space)]
        wrong = np.flatnonzero(mine != other)
        if not len(wrong):
            return None
        own = [each.places for each in written if each.space is space]
        ours = wrong[np.isin(wrong, own[0])] if own else wrong[:0]
        place = int(ours[0]) if len(ours) else int(wrong[0])
        found = self._difference(index, space, place, (mine, other), len(wrong))
        return replace(
            found,
            stray=not len(ours),
            before=value_at(before, space, place, self.config),
        )

    def _size(self, space: Space) -> int:
        return len(self.model.state(space))

    def _difference(
        self,
        index: int,
        space: Space,
        place: int,
        states: tuple[NDArray[Any], NDArray[Any]],
        elements: int,
    ) -> Difference:
        self.place = (space, place)
        logical = locate(self.program, index, space, place)
        element = Element(
            memory=describe_place(space, place, self.config),
            place=place,
            tensor=logical.tensor if logical else None,
            coordinates=logical.coordinates if logical else None,
            detail=logical.detail if logical else "",
        )
        values = {
            engine: value_at(state, space, place, self.config)
            for engine, state in zip(self.engines, states, strict=True)
        }
        facts = instruction_facts(self.program, index)
        return Difference(**facts, element=element, values=values, elements=elements)

    def _stopped(self, index: int, how: str) -> Difference:
        facts = instruction_facts(self.program, index)
        return Difference(**facts, element=None, values={}, stopped=f"rtl: {how}")

    # The rtl engine, the whole program ------------------------------------------------------------

    def all_together(self) -> Difference | None:
        """The first instruction, in time, whose results differ when engines overlap."""
        self._progress("running the whole program on rtl", None)
        found = self._whole_run()
        return None if found is None else replace(found, only_concurrent=True)

    def _whole_run(self) -> Difference | None:
        try:
            with self.machine() as machine:
                schedule = Schedule.of(self.model.instructions, machine.run())
        except STOPS as error:
            return self._stopped(self._index_of(error), str(error))
        order = np.argsort(schedule.retires, kind="stable").tolist()
        by_cycle: dict[int, list[int]] = {}
        for index in order:
            by_cycle.setdefault(schedule.retires[index] + SETTLED, []).append(index)
        with self.machine() as machine:

            def settled(cycle: int) -> None:
                for index in by_cycle[cycle]:
                    self._compare_settled(index, cycle, schedule, machine.device)

            try:
                machine.run(pauses=sorted(by_cycle), on_pause=settled)
            except _Found as found:
                return found.difference
            return self._compare_end(machine.device, order)

    def _index_of(self, error: Exception) -> int:
        """The instruction that a fault names; the first if it names none."""
        offset = error.instruction_offset if isinstance(error, DeviceFault) else 0
        offsets = [symbol.offset for symbol in self.program.symbols]
        return offsets.index(offset) if offset in offsets else 0

    def _compare_settled(
        self, index: int, cycle: int, schedule: Schedule, device: RtlDevice
    ) -> None:
        """Compare what an instruction wrote, except where later ones have begun to write."""
        for each in self.written[index]:
            where, values = each.places, each.values
            other = rtl_state(device, each.space)
            wrong = other[where] != values
            if not wrong.any():
                continue
            for later in self._begun_behind(index, cycle, schedule):
                for over in self.written[later]:
                    if over.space is each.space:
                        wrong &= ~np.isin(where, over.places)
            if not wrong.any():
                continue
            place = int(where[np.argmax(wrong)])
            mine = self.model.state(each.space).copy()
            mine[where] = values
            count = int(wrong.sum())
            raise _Found(self._difference(index, each.space, place, (mine, other), count))

    def _begun_behind(self, index: int, cycle: int, schedule: Schedule) -> list[int]:
        later = range(index + 1, len(self.model.instructions))
        return [other for other in later if schedule.starts[other] <= cycle + 1]

    def _compare_end(self, device: RtlDevice, order: Sequence[int]) -> Difference | None:
        """All memories at the end: what was right at its time, and changed afterwards."""
        for space in (*ON_CHIP, Space.DRAM):
            mine, other = self.model.state(space), rtl_state(device, space)[: self._size(space)]
            wrong = np.flatnonzero(mine != other)
            if not len(wrong):
                continue
            place = int(wrong[0])
            writers = [
                index
                for index in order
                if any(w.space is space and place in w.places for w in self.written[index])
            ]
            self.notes.append(
                "the instruction named wrote the element rightly; it changed after that, by a "
                "write that should not be"
            )
            index = writers[-1] if writers else 0
            return self._difference(index, space, place, (mine, other), len(wrong))
        return None

    # Reference tensors ----------------------------------------------------------------------------

    def against(self, expected: Sequence[Expected]) -> Difference | None:
        """The earliest instruction whose results, as they stand at last, differ from a tensor."""
        for index in range(len(self.model.instructions)):
            self._execute(index)
        outcome = [compare_tensor(self.program, self.written, each) for each in expected]
        self.elements = sum(compared for _, compared in outcome)
        wrong = [found for found, _ in outcome if found is not None]
        if not wrong:
            return None
        first = min(wrong, key=lambda found: found.index)
        self.place = (first.space, first.place)
        return first.difference(self.program)
