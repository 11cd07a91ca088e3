"""Area by module, from the netlist that Yosys writes.

Yosys flattens the design for synthesis, then names every cell after a signal near it, which begins
with the path of a module instance. Of a signal that passes several instances the outermost name
stays, so that what drives a module's output counts for the module around it.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Area", "ModuleNames", "area_by_module", "instance_paths", "read_cells"]

TOP = "(wrapper)"
_MODULE = re.compile(r"^module (\\?[^\s(]+)\s*\((.*?)^endmodule", re.M | re.S)
_INSTANCE = re.compile(r"^  \\?([^\s(]+)\s+\\?([^\s(]+)\s*\(", re.M)


@dataclass(frozen=True)
class Area:
    """Resources of an FPGA: look-up tables (those of carries and small memories included),
    flip-flops, multipliers, block RAMs of 18 Kbit.
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


def instance_paths(verilog: str, top: str) -> set[str]:
    """Paths of all module instances below a module of this Verilog, as flattening names them."""
    kinds = {name.lstrip("\\"): body for name, body in _MODULE.findall(verilog)}
    paths: set[str] = set()

    def descend(kind: str, prefix: str) -> None:
        for inner, name in _INSTANCE.findall(kinds[kind]):
            if inner in kinds:
                paths.add(prefix + name)
                descend(inner, f"{prefix}{name}.")

    descend(top, "")
    return paths


def read_cells(path: Path, top: str) -> Mapping[str, Any]:
    """The cells of Yosys's JSON netlist by name."""
    cells: Mapping[str, Any] = json.loads(path.read_text())["modules"][top]["cells"]
    return cells


def area_by_module(
    cells: Mapping[str, Any],
    names: ModuleNames,
    resources: Mapping[str, Area],
    *,
    depth: int = 2,
) -> dict[str, Area]:
    """Area of each module instance down to ``depth`` below the design's top, the largest first.

    ``resources`` is what a cell of each type takes, see :class:`weft.synthesis.targets.Family`.
    """
    totals: dict[str, Area] = defaultdict(Area)
    for name, cell in cells.items():
        area = resources.get(cell["type"])
        if area is not None:
            totals[".".join(names.owner(name).split(".")[:depth])] += area
    return dict(sorted(totals.items(), key=lambda item: -(item[1].luts + item[1].flip_flops)))
