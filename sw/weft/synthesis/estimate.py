"""The longest paths of a netlist before place and route, with a model of the wires.

Placing and routing a machine takes long; this takes seconds, and tells which paths to shorten.
Cells have about the delays of an ECP5 of speed grade 6; a wire takes 0.75 ns, and 0.13 ns more for
each doubling of its fan-out. Of a machine of 43,000 look-up tables the longest path took 26.6 ns by
this model and 44.5 ns after placement: rank paths with it, do not quote it as a clock.

Run as ``python -m weft.synthesis.estimate DIRECTORY``, where ``weft synth --output DIRECTORY`` ran.
"""

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.synthesis.area import ModuleNames, instance_paths, read_cells
from weft.synthesis.flow import DESIGN, NETLIST
from weft.synthesis.wrapper import WRAPPER

__all__ = ["EstimatedPath", "longest_paths"]

WIRE_NS, FAN_OUT_NS = 0.75, 0.13
CLOCK_TO_Q_NS = {"TRELLIS_FF": 0.52, "DP16KD": 5.6}
"""From the clock to an output of a cell that begins paths."""

_CARRY = (
    (r"[ABCD]0", "S0", 0.45, False),
    (r"[ABCD]0", "S1", 0.65, False),
    (r"[ABCD]1", "S1", 0.45, False),
    (r"[ABCD][01]", "COUT", 0.45, False),
    (r"CIN", "COUT", 0.07, True),
    (r"CIN", r"S[01]", 0.45, True),
)
ARCS: dict[str, tuple[tuple[str, str, float, bool], ...]] = {
    "LUT4": ((r"[ABCD]", "Z", 0.24, False),),
    "PFUMX": ((r"[AB]LUT", "Z", 0.15, True), (r"C0", "Z", 0.2, False)),
    "L6MUX21": ((r"D[01]", "Z", 0.18, True), (r"SD", "Z", 0.2, False)),
    "CCU2C": _CARRY,
    "TRELLIS_DPR16X4": ((r"RAD", "DO", 0.24, False),),
    "MULT18X18D": ((r"[AB]\d+", r"P\d+", 3.93, False),),
}
"""By cell: input and output ports, ns, and whether the wire to the input is a dedicated one."""

ENDS = {
    "TRELLIS_FF": r"DI|M|CE|LSR",
    "TRELLIS_DPR16X4": r"DI|WAD|WRE",
    "DP16KD": r"(AD|DI|CE|WE|CS|OCE|RST)\w+",
}
"""By cell that ends paths: the ports at which."""


@dataclass(frozen=True)
class EstimatedPath:
    """From one register to another: estimated time, cells passed, the cells at its two ends."""

    ns: float
    cells: int
    start: str
    end: str


def longest_paths(cells: Mapping[str, Any]) -> list[EstimatedPath]:
    """The longest path to each register and memory, the longest first.

    Parameters
    ----------
    cells : mapping
        As :func:`weft.synthesis.area.read_cells` returns them.
    """
    fan_out: dict[int, int] = defaultdict(int)
    arcs: dict[int, list[tuple[int, float, bool]]] = defaultdict(list)
    arrival: dict[int, tuple[float, int, str]] = {}  # ns, cells passed, where the path begins
    ends: list[tuple[int, str]] = []
    for name, cell in cells.items():
        kind, ports = cell["type"], cell["connections"]
        for port, direction in cell["port_directions"].items():
            bits = [bit for bit in ports.get(port, ()) if isinstance(bit, int)]
            if direction == "output" and kind in CLOCK_TO_Q_NS:
                arrival |= dict.fromkeys(bits, (CLOCK_TO_Q_NS[kind], 0, name))
            elif direction == "input" and "CLK" not in port:
                for bit in bits:
                    fan_out[bit] += 1
                if kind in ENDS and re.fullmatch(ENDS[kind], port):
                    ends += [(bit, name) for bit in bits]
        for source, target, ns, dedicated in ARCS.get(kind, ()):
            inputs = [b for port in ports if re.fullmatch(source, port) for b in ports[port]]
            for port in ports:
                if re.fullmatch(target, port):
                    for out in ports[port]:
                        arcs[out] += [(b, ns, dedicated) for b in inputs if isinstance(b, int)]

    def wire(bit: int) -> float:
        return WIRE_NS + FAN_OUT_NS * math.log2(max(1, fan_out[bit]))

    def settle(root: int) -> tuple[float, int, str]:
        """When a bit settles; what it depends on first, without recursion."""
        waiting = [root]
        while waiting:
            bit = waiting[-1]
            missing = [b for b, _, _ in arcs.get(bit, ()) if b not in arrival and b in arcs]
            if bit not in arrival and missing:
                waiting += missing
                continue
            waiting.pop()
            if bit in arrival:
                continue
            latest = (0.0, 0, "input")
            for source, ns, dedicated in arcs.get(bit, ()):
                at, passed, start = arrival.get(source, (0.0, 0, "input"))
                at += ns + (0.0 if dedicated else wire(source))
                latest = max(latest, (at, passed + 1, start))
            arrival[bit] = latest
        return arrival[root]

    longest: dict[str, EstimatedPath] = {}
    for bit, name in ends:
        at, passed, start = settle(bit)
        path = EstimatedPath(at + wire(bit), passed, start, name)
        if name not in longest or path.ns > longest[name].ns:
            longest[name] = path
    return sorted(longest.values(), key=lambda path: -path.ns)


def main() -> None:
    """Print the longest path between each pair of module instances."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where `weft synth` left its files")
    parser.add_argument("--paths", type=int, default=40, help="how many to print")
    arguments = parser.parse_args()
    design = (arguments.directory / DESIGN).read_text()
    names = ModuleNames(instance_paths(design, WRAPPER))
    cells = read_cells(arguments.directory / NETLIST, WRAPPER)
    seen: set[tuple[str, str]] = set()
    for path in longest_paths(cells):
        pair = (names.owner(path.start), names.owner(path.end))
        if pair not in seen and len(seen) < arguments.paths:
            seen.add(pair)
            start, end = _leaf(path.start, names), _leaf(path.end, names)
            print(f"{path.ns:6.2f} ns {path.cells:3d} cells  {start} -> {end}")


def _leaf(cell: str, names: ModuleNames) -> str:
    """The module instance of a cell, and the signal that it was named after."""
    leaf = cell.rpartition(".")[2]
    return f"{names.owner(cell)}: {re.split(r'_(?:TRELLIS|DP16KD|LUT4|CCU2C|MULT)', leaf)[0]}"


if __name__ == "__main__":
    main()
