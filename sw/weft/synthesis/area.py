"""Area by module, from the netlist that Yosys writes.

Yosys flattens the design for synthesis, then names every cell after a signal near it, which begins
with the path of a module instance. Of a signal that passes several instances the outermost name
stays, so that what drives a module's output counts for the module around it.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Area", "ModuleNames", "area_by_module", "read_netlist"]

TOP = "(wrapper)"


@dataclass(frozen=True)
class Area:
    """Resources of an ECP5: look-up tables (those of carries and small memories included),
    flip-flops, multipliers, block RAMs.
    """

    luts: int = 0
    flip_flops: int = 0
    multipliers: int = 0
    block_rams: int = 0

    def __add__(self, other: "Area") -> "Area":
        return Area(
            self.luts + other.luts,
            self.flip_flops + other.flip_flops,
            self.multipliers + other.multipliers,
            self.block_rams + other.block_rams,
        )


CELLS: dict[str, Area] = {
    "LUT4": Area(luts=1),
    "CCU2C": Area(luts=2),  # two bits of carry occupy a slice's two look-up tables
    "TRELLIS_DPR16X4": Area(luts=6),  # four of memory, and two that hold the write port
    "TRELLIS_FF": Area(flip_flops=1),
    "MULT18X18D": Area(multipliers=1),
    "DP16KD": Area(block_rams=1),
}
"""What a cell takes; others (multiplexers of slices) take nothing of their own."""


class ModuleNames:
    """Finds the module instance that a name of the flattened design belongs to."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)

    def owner(self, name: str) -> str:
        """Path of the innermost instance, without the wrapper's own part of it."""
        at = name.rfind(".")
        while at > 0:
            if name[:at] in self.paths:
                return name[:at].partition(".")[2] or "(top)"
            at = name.rfind(".", 0, at)
        return TOP


def read_netlist(path: Path, top: str) -> tuple[Mapping[str, Any], ModuleNames]:
    """The cells of Yosys's JSON netlist, and the module instances that were flattened into it."""
    cells = json.loads(path.read_text())["modules"][top]["cells"]
    return cells, ModuleNames(name for name in cells if cells[name]["type"] == "$scopeinfo")


def area_by_module(
    cells: Mapping[str, Any], names: ModuleNames, *, depth: int = 2
) -> dict[str, Area]:
    """Area of each module instance down to ``depth`` below the design's top, the largest first."""
    totals: dict[str, Area] = defaultdict(Area)
    for name, cell in cells.items():
        area = CELLS.get(cell["type"])
        if area is not None:
            totals[".".join(names.owner(name).split(".")[:depth])] += area
    return dict(sorted(totals.items(), key=lambda item: -(item[1].luts + item[1].flip_flops)))
