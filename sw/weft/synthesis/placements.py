"""Place and route by nextpnr: of several placements, the most promising is routed."""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.synthesis.sites import all_sites, choose_sites, pin_cells
from weft.synthesis.tools import ToolFailed, run_tool

__all__ = ["Placement", "expected_clock", "place_and_route"]

REPORT = "report.json"
# The wrapper's five pins may lie anywhere; a clock below the aim is a figure, not a failure. With
# one thread a placement is the same on every machine, and several of them share no processor.
_COMMON = ("--lpf-allow-unconstrained", "--timing-allow-fail", "--threads", "1")
_CLOCK = re.compile(r"Max frequency for clock\s+'[^']*': ([0-9.]+) MHz")
_REFINING = re.compile(r"at iteration #\d+: .*wirelen = (\d+)")
WORTH_REFINING = 1.05
"""Refinement takes most of a placement's time, and shortens wires by 8 to 10 %. A placement whose
wires are longer than another one's by more than this factor when it begins is given up."""


@dataclass(frozen=True)
class Placement:
    """One placement: its seed, and the clock that nextpnr expects of it before routing, in MHz.

    The clock is None if nothing is clocked, or if the placement was routed at once.
    """

    seed: int
    expected_mhz: float | None = None


def expected_clock(log: str) -> float | None:
    """The last clock that a log of nextpnr tells, in MHz; None if there is none."""
    clocks = _CLOCK.findall(log)
    return float(clocks[-1]) if clocks else None


def place_and_route(
    command: Sequence[str],
    netlist: str,
    directory: Path,
    *,
    seeds: Sequence[int],
    jobs: int = 1,
    assigned: Mapping[str, int] | None = None,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], tuple[Placement, ...]]:
    """Place a netlist with each seed and route the placement of which nextpnr expects most.

    Placements whose wires are much longer than another one's before they are refined are not
    finished. The clock that nextpnr expects of a finished one tells placements of one netlist
    apart: of five netlists that were routed, the clock after routing was 1.35 to 1.44 times it
    (docs/measurements.md). Routing takes about twice as long as placing: only one is routed.

    Parameters
    ----------
    command : sequence of str
        nextpnr with the options of the target.
    netlist : str
        File of it in the directory, where reports, logs and placements are left as well.
    seeds : sequence of int
        At least one; a single one is placed and routed in one run, if no sites are assigned.
    jobs : int
        Placements at the same time.
    assigned : mapping of str to int, optional
        Types of cell, and how many of each the FPGA has. Their sites are chosen anew from the most
        promising placement (:mod:`weft.synthesis.sites`), and the others placed around them.
    progress : callable
        Told each step, also from other threads.

    Returns
    -------
    report : dict
        nextpnr's, after routing.
    placements : tuple of Placement
        Those finished, the routed one first.

    Raises
    ------
    ToolFailed
        If routing fails, or every placement does.
    """
    options = [*command, *_COMMON]
    if len(seeds) == 1 and not assigned:
        placements: tuple[Placement, ...] = (Placement(seeds[0]),)
        place = [*options, "--json", netlist, "--seed", str(seeds[0]), "--report", REPORT]
        run_tool(place, directory, "nextpnr.log", lambda step: progress(f"nextpnr: {step}"))
    else:
        placements = _place(options, netlist, directory, seeds, jobs, progress)
        seed = placements[0].seed
        if assigned:
            first = _place_anew(options, netlist, directory, placements[0], assigned, progress)
            placements = (first, *placements[1:])
        route = [*options, "--json", _placed(seed), "--seed", str(seed), "--no-pack", "--no-place"]
        run_tool(
            [*route, "--report", REPORT],
            directory,
            "nextpnr.log",
            lambda step: progress(f"nextpnr, seed {seed}: {step}"),
        )
    report: dict[str, Any] = json.loads((directory / REPORT).read_text())
    return report, placements


def _placed(seed: int) -> str:
    return f"placed-{seed}.json"


def _place_anew(
    options: Sequence[str],
    netlist: str,
    directory: Path,
    placement: Placement,
    assigned: Mapping[str, int],
    progress: Callable[[str], None],
) -> Placement:
    """A placement instead of that one, around cells whose sites are chosen from it."""
    progress("choosing sites of block RAMs and multipliers")
    seed = placement.seed
    sites = choose_sites(directory / _placed(seed), all_sites(options, directory, assigned))
    if not sites:
        return placement
    pinned, log = "pinned.json", f"place-{seed}-pinned.log"
    pin_cells(directory / netlist, directory / pinned, sites)
    run = [*options, "--json", pinned, "--seed", str(seed), "--no-route"]
    run_tool(
        [*run, "--write", _placed(seed)],
        directory,
        log,
        lambda step: progress(f"nextpnr, seed {seed}, {len(sites)} cells pinned: {step}"),
    )
    return Placement(seed, expected_clock((directory / log).read_text()))


class _GivenUp(Exception):
    """This placement's wires are too long to go on."""


def _place(
    options: Sequence[str],
    netlist: str,
    directory: Path,
    seeds: Sequence[int],
    jobs: int,
    progress: Callable[[str], None],
) -> tuple[Placement, ...]:
    """Place with each seed, so many at a time; the most promising first, only its file is kept."""
    stopped = threading.Event()
    failures: list[ToolFailed] = []
    lengths: dict[int, int] = {}  # of wires when refinement begins, by seed

    def place(seed: int) -> Placement | None:
        def tell(step: str) -> None:
            if stopped.is_set():  # the tool is ended by what its caller is told
                raise InterruptedError
            progress(f"nextpnr, seed {seed}: {step}")
            if (refining := _REFINING.search(step)) is not None:
                at_first = lengths.setdefault(seed, int(refining[1]))
                if at_first > WORTH_REFINING * min(lengths.copy().values()):
                    raise _GivenUp

        log = f"place-{seed}.log"
        run = [*options, "--json", netlist, "--seed", str(seed), "--no-route"]
        try:
            run_tool([*run, "--write", _placed(seed)], directory, log, tell)
        except _GivenUp:
            return None
        except ToolFailed as failure:  # a seed's legalization may fail where another one's does not
            failures.append(failure)
            return None
        return Placement(seed, expected_clock((directory / log).read_text()))

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        try:
            found = list(pool.map(place, seeds))
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    placements = sorted(
        (placement for placement in found if placement is not None),
        key=lambda placement: -(placement.expected_mhz or 0),
    )
    if not placements:
        raise failures[0]
    for placement in placements[1:]:
        (directory / _placed(placement.seed)).unlink(missing_ok=True)
    return tuple(placements)
