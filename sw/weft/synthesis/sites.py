"""Sites of block RAMs and multipliers, chosen from a placement by nextpnr for the next one.

nextpnr's analytical placers let cells overlap, then push those of a kind that has few sites apart
one after another. In a machine with many memories that is the costliest step of all: of `edge8`
with weight modes 8, 4 and 2, 441,000 wire segments became 589,000 in it. Here the same cells are
assigned to sites all at once: relaxed positions by a quadratic placement whose wires count about
as much as their length (the bound-to-bound model: Spindler, Schlichtmann, Johannes, "Kraftwerk2",
IEEE TCAD 27(8), 2008), then the least total distance (an assignment problem), then the shortest
wires with all other cells where they are.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import missing_extra
from weft.synthesis.tools import run_tool

__all__ = ["Site", "all_sites", "choose_sites", "pin_cells", "require_solvers"]

TIE = 0.1
"""How strongly a cell that stays movable is held where it was, in units of all its wires."""
ROUNDS = 4
MOST_PINS = 60  # of a net: resets and the like say nothing about places
_BEL = re.compile(r"X(\d+)/Y(\d+)/")
_FIXED = "TRELLIS_IO"


@dataclass(frozen=True)
class Site:
    """A place for a cell: nextpnr's name of it, and its column and row."""

    name: str
    x: int
    y: int


def require_solvers() -> None:
    """Raise MissingExtra if what solves for the sites is not installed."""
    try:
        import scipy  # noqa: F401  (only to name the extra that may be missing)
    except ImportError as error:
        raise missing_extra("SciPy", "synth", purpose="choosing sites of memories") from error


def _site(name: str) -> Site:
    place = _BEL.match(name)
    assert place is not None, name
    return Site(name, int(place[1]), int(place[2]))


def _design(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A netlist of Yosys or nextpnr, and its top module: the marked one, or the only one."""
    netlist = json.loads(file.read_text())
    modules = list(netlist["modules"].values())
    marked = [each for each in modules if "1" in str(each.get("attributes", {}).get("top", ""))]
    return netlist, (marked or modules)[0]


def all_sites(
    command: Sequence[str], directory: Path, counts: Mapping[str, int]
) -> dict[str, list[Site]]:
    """All sites of an FPGA for some types of cell, which nextpnr tells by filling it with them.

    Parameters
    ----------
    command : sequence of str
        nextpnr with the options of the target.
    directory : Path
        For its files.
    counts : mapping of str to int
        How many the FPGA has, by type of cell.

    Raises
    ------
    ToolFailed
        If nextpnr fails.
    """
    cells = {
        f"{kind}_{i}": {
            "hide_name": 0,
            "type": kind,
            "parameters": {},
            "attributes": {},
            "port_directions": {},
            "connections": {},
        }
        for kind, count in counts.items()
        for i in range(count)
    }
    top = {"attributes": {"top": "1"}, "ports": {}, "cells": cells, "netnames": {}}
    (directory / "full.json").write_text(json.dumps({"modules": {"full": top}}))
    plain = list(command)
    if "--placer" in plain:  # cells without wires make the other placer divide by nothing
        plain[plain.index("--placer") + 1] = "heap"
    run = [*plain, "--json", "full.json", "--write", "full-placed.json", "--no-route"]
    run_tool(run, directory, "full.log", lambda step: None)
    _, design = _design(directory / "full-placed.json")
    found: dict[str, list[Site]] = {kind: [] for kind in counts}
    for cell in design["cells"].values():
        found[cell["type"]].append(_site(cell["attributes"]["NEXTPNR_BEL"]))
    return {kind: sorted(sites, key=lambda site: (site.y, site.x)) for kind, sites in found.items()}


class _Placed:
    """Cells and nets of a placement, as arrays.

    ``start[n] : start[n + 1]`` are the places of net n's pins in ``cell``, the cells' numbers.
    """

    def __init__(self, file: Path) -> None:
        _, design = _design(file)
        self.names: list[str] = []
        self.types: list[str] = []
        places: list[tuple[int, int]] = []
        pins: dict[int, set[int]] = {}
        for name, cell in design["cells"].items():
            place = _BEL.match(cell["attributes"].get("NEXTPNR_BEL", ""))
            if place is None:
                continue
            for bits in cell["connections"].values():
                for bit in bits:
                    if isinstance(bit, int):
                        pins.setdefault(bit, set()).add(len(self.names))
            self.names.append(name)
            self.types.append(cell["type"])
            places.append((int(place[1]), int(place[2])))
        self.places = np.array(places, float).reshape(-1, 2)
        nets = [sorted(cells) for cells in pins.values() if 2 <= len(cells) <= MOST_PINS]
        self.cell = np.array([cell for net in nets for cell in net], int)
        self.start = np.cumsum([0, *map(len, nets)])

    def springs(self, at: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """Of one axis, the bound-to-bound model: pairs of cells, and the weight of each."""
        sizes = np.diff(self.start)
        net = np.repeat(np.arange(len(sizes)), sizes)
        first, last = self.start[:-1], self.start[1:] - 1
        # The sorts are stable: of equal places the first pin.
        low = self.cell[np.lexsort((at[self.cell], net))[first]]
        high = self.cell[np.lexsort((-at[self.cell], net))[first]]
        high = np.where(low == high, self.cell[last], high)
        low, high = np.repeat(low, sizes), np.repeat(high, sizes)
        scale = np.repeat(sizes - 1, sizes)
        pairs = []
        for bound, rest in (
            (low, self.cell != low),
            (high, (self.cell != low) & (self.cell != high)),
        ):
            ends, others = self.cell[rest], bound[rest]
            length = np.maximum(1.0, np.abs(at[ends] - at[others]))
            pairs.append((ends, others, 1 / (scale[rest] * length), np.flatnonzero(rest)))
        ends, others, weights, pin = (np.concatenate(each) for each in zip(*pairs, strict=True))
        # Net by net: weights of equal pairs are summed in this order, and sites may tie.
        order = np.argsort(pin, kind="stable")
        return ends[order], others[order], weights[order]


def choose_sites(file: Path, sites: Mapping[str, Sequence[Site]]) -> dict[str, str]:
    """The site for each cell of the types that ``sites`` has, by the cell's name.

    Parameters
    ----------
    file : Path
        A placement that nextpnr has written.
    sites : mapping of str to sequence of Site
        By type of cell; at least as many as the placement has cells of it.
    """
    from scipy.optimize import linear_sum_assignment

    placed = _Placed(file)
    chosen = [i for i, kind in enumerate(placed.types) if kind in sites]
    if not chosen:
        return {}
    every = [(kind, site) for kind, places in sites.items() for site in places]
    where = np.array([(site.x, site.y) for _, site in every], float)
    unfit = 1e6 * np.array([[placed.types[i] != kind for kind, _ in every] for i in chosen])

    at = _relaxed(placed, chosen)
    distance = np.abs(at[chosen][:, None] - where).sum(2)
    rows, columns = linear_sum_assignment(distance + unfit)
    at[chosen] = where[columns]
    nets = _nets_of(placed, chosen)
    for _ in range(ROUNDS):  # each with the other cells of its kind where the last one has them
        lengths = np.array([_wires(placed, at, i, nets[i], where) for i in chosen])
        rows, columns = linear_sum_assignment(lengths + unfit)
        at[chosen] = where[columns]
    return {placed.names[chosen[i]]: every[j][1].name for i, j in zip(rows, columns, strict=True)}


def _relaxed(placed: _Placed, free: Sequence[int]) -> NDArray[np.float64]:
    """Positions where the wires of the free cells, which may overlap, are short."""
    from scipy import sparse
    from scipy.sparse.linalg import cg

    count = len(placed.names)
    fixed = np.array([kind == _FIXED for kind in placed.types])
    at = placed.places.copy()
    for _ in range(ROUNDS):
        for axis in range(2):
            ends, others, weights = placed.springs(at[:, axis])
            half = sparse.coo_matrix((weights, (ends, others)), shape=(count, count)).tocsr()
            matrix = half + half.T
            degree = np.asarray(matrix.sum(1)).ravel()
            ties = TIE * degree
            ties[free] = 1e-6
            ties[fixed] = 1e3
            system = sparse.diags(degree + ties) - matrix
            right = ties * placed.places[:, axis]
            at[:, axis], _ = cg(system, right, x0=at[:, axis], rtol=1e-4, maxiter=300)
    return at


def _nets_of(placed: _Placed, cells: Sequence[int]) -> dict[int, list[int]]:
    wanted = set(cells)
    nets: dict[int, list[int]] = {cell: [] for cell in cells}
    for net, (start, stop) in enumerate(zip(placed.start, placed.start[1:], strict=False)):
        for cell in placed.cell[start:stop]:
            if cell in wanted:
                nets[cell].append(net)
    return nets


def _wires(
    placed: _Placed,
    at: NDArray[np.float64],
    cell: int,
    nets: Sequence[int],
    where: NDArray[np.float64],
) -> NDArray[np.float64]:
    """By site: what the wires of one cell are longer for it than for the others on them."""
    total = np.zeros(len(where))
    for net in nets:
        pins = placed.cell[placed.start[net] : placed.start[net + 1]]
        others = at[pins[pins != cell]]
        low, high = others.min(0), others.max(0)
        total += (np.maximum(0, low - where) + np.maximum(0, where - high)).sum(1)
    return total


def pin_cells(netlist: Path, pinned: Path, sites: Mapping[str, str]) -> None:
    """Write a netlist in which cells have their sites, for nextpnr to place the others."""
    content, design = _design(netlist)
    for name, site in sites.items():
        design["cells"][name]["attributes"]["BEL"] = site
    pinned.write_text(json.dumps(content))
