"""The two comparisons, with the cycles and the waveform of what they find."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.diverge.engines import Schedule, sample_of
from weft.diverge.reference import expected_regions
from weft.diverge.report import Comparison
from weft.diverge.search import SETTLED, STOPS, Search
from weft.diverge.state import rtl_state, value_at
from weft.errors import InputError
from weft.program import Program
from weft_sim.cache import Progress
from weft_sim.functional import FunctionalDevice
from weft_sim.race_check import Space
from weft_sim.rtl import RtlDevice

__all__ = ["WINDOW", "compare_machine", "compare_reference"]

WINDOW = 50
"""Cycles of the waveform before the difference, and as many behind it."""


def compare_machine(
    program: Program,
    inputs: Any,
    *,
    waveform: Path | None = None,
    window: int = WINDOW,
    model: Callable[..., FunctionalDevice] = FunctionalDevice,
    machine: Callable[..., RtlDevice] = RtlDevice,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the rtl engine with the functional one.

    Parameters
    ----------
    program : Program
    inputs : array, or mapping of name to array
        One sample, as :class:`weft.Session` takes it.
    waveform : path, optional
        A .vcd or .fst file for the cycles around the difference. That needs a build of its own.
    window : int
        Cycles of the waveform on either side.
    model, machine : callable
        Open the two devices, given a configuration and ``memory_bytes=...`` (``machine`` also
        ``trace`` and ``trace_window``).
    progress : callable, optional

    Raises
    ------
    InputError
        If the input does not fit the model, or ``window`` is negative.
    DeviceFault
        If the program faults on the functional engine.
    """
    _check(waveform, window)
    sample = sample_of(program, inputs)
    search = Search(program, sample, model, machine, progress or (lambda stage, fraction: None))
    found = search.one_at_a_time() or search.all_together()
    comparison = search.comparison(found)
    if found is None or found.stopped:
        return comparison
    return _timed(comparison, search, waveform, window)


def compare_reference(
    program: Program,
    inputs: Any,
    reference: Mapping[str, NDArray[np.int8]],
    *,
    waveform: Path | None = None,
    window: int = WINDOW,
    cycles: bool = False,
    model: Callable[..., FunctionalDevice] = FunctionalDevice,
    machine: Callable[..., RtlDevice] = RtlDevice,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the functional engine with a front end's reference tensors.

    Parameters
    ----------
    program, inputs, waveform, window, model, machine, progress
        As for :func:`compare_machine`.
    reference : mapping of tensor name to int8 array
        Codes as the model orders them, with or without a batch axis of one.
    cycles : bool
        Run the program on rtl as well, for the cycle of a difference (a waveform needs that too).

    Raises
    ------
    InputError
        If no tensor of the reference has a place in the program, or an array's size is not its
        tensor's.
    """
    _check(waveform, window)
    sample = sample_of(program, inputs)
    search = Search(program, sample, model, machine, progress or (lambda stage, fraction: None))
    search.engines = ("reference", "functional")
    expected, search.skipped = expected_regions(program, reference)
    found = search.against(expected)
    comparison = search.comparison(found)
    if found is None or not (cycles or waveform is not None):
        return comparison
    return _timed(comparison, search, waveform, window)


def _check(waveform: Path | None, window: int) -> None:
    if window < 0:
        raise InputError(f"the waveform's window must be 0 cycles or more, not {window}")
    if waveform is not None and waveform.suffix not in (".vcd", ".fst"):
        raise InputError(f"a waveform's name must end in .vcd or .fst, not {waveform.name!r}")


def _timed(
    comparison: Comparison, search: Search, waveform: Path | None, window: int
) -> Comparison:
    """The comparison with cycles of the whole program on rtl, and the waveform around them."""
    found, place = comparison.difference, search.place
    assert found is not None and place is not None
    try:
        with search.machine() as machine:
            schedule = Schedule.of(search.model.instructions, machine.run())
        start, retire = schedule.starts[found.index], schedule.retires[found.index]
        wrong = found.values[search.engines[1]]
        cycle = _last_change(search, place, start, retire, wrong)
    except STOPS as error:
        note = f"no cycle and no waveform: the whole program does not end on rtl ({error})"
        return replace(comparison, notes=(*comparison.notes, note))
    found = replace(found, cycle=cycle, start=start, retire=retire)
    comparison = replace(comparison, difference=found)
    if waveform is None:
        return comparison
    middle = retire if cycle is None else cycle
    span = (max(middle - window, 0), middle + window)
    with search.machine(trace=waveform, trace_window=span) as machine:
        machine.run()
    return replace(comparison, waveform=waveform, window=span)


def _last_change(
    search: Search, place: tuple[Space, int], start: int, retire: int, wrong: int
) -> int | None:
    """The last cycle of an instruction in which the element took its wrong value, if it did."""
    space, where = place
    changes: list[int] = []
    seen: list[int] = []
    with search.machine() as machine:

        def look(cycle: int) -> None:
            value = value_at(rtl_state(machine.device, space), space, where, search.config)
            if seen and seen[-1] != value == wrong:
                changes.append(cycle)
            seen.append(value)

        machine.run(pauses=range(max(start - 1, 0), retire + SETTLED), on_pause=look)
    return changes[-1] if changes else None
