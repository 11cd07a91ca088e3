"""The clock and the longest path, from the report that nextpnr writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft.synthesis.area import ModuleNames

__all__ = ["CriticalPath", "PathStep", "clock_mhz", "critical_path"]


@dataclass(frozen=True)
class PathStep:
    """Neighbouring parts of the path in one module instance: gates passed and time.

    ``signals`` are the names, within the module, of the first and last of them.
    """

    module: str
    gates: int
    logic_ns: float
    routing_ns: float
    signals: tuple[str, str]


@dataclass(frozen=True)
class CriticalPath:
    """The longest path between two registers."""

    start: str
    end: str
    logic_ns: float
    routing_ns: float
    steps: tuple[PathStep, ...]


def clock_mhz(report: Mapping[str, Any]) -> float | None:
    """The highest frequency of the slowest clock; None if nothing is clocked."""
    clocks = report.get("fmax", {}).values()
    return min((float(clock["achieved"]) for clock in clocks), default=None)


def critical_path(report: Mapping[str, Any], names: ModuleNames) -> CriticalPath | None:
    """The longest path from a clock edge to a clock edge of the same clock."""
    paths = [
        entry["path"]
        for entry in report.get("critical_paths", ())
        if entry["from"] == entry["to"] and entry["path"]
    ]
    if not paths:
        return None
    path = max(paths, key=lambda parts: sum(part["delay"] for part in parts))
    steps: list[PathStep] = []
    for part in path:
        cell = part["from"]["cell"] if part["type"] == "routing" else part["to"]["cell"]
        module, signal = names.owner(cell), _short(cell)
        routing = part["type"] == "routing"
        step = PathStep(
            module=module,
            gates=int(part["type"] == "logic"),
            logic_ns=0.0 if routing else part["delay"],
            routing_ns=part["delay"] if routing else 0.0,
            signals=(signal, signal),
        )
        if steps and steps[-1].module == module:
            before = steps.pop()
            step = PathStep(
                module=module,
                gates=before.gates + step.gates,
                logic_ns=before.logic_ns + step.logic_ns,
                routing_ns=before.routing_ns + step.routing_ns,
                signals=(before.signals[0], signal),
            )
        steps.append(step)
    return CriticalPath(
        start=f"{names.owner(path[0]['from']['cell'])}: {_short(path[0]['from']['cell'])}",
        end=f"{names.owner(path[-1]['to']['cell'])}: {_short(path[-1]['to']['cell'])}",
        logic_ns=sum(step.logic_ns for step in steps),
        routing_ns=sum(step.routing_ns for step in steps),
        steps=tuple(steps),
    )


def _short(cell: str) -> str:
    """The signal that a cell was named after."""
    leaf = cell.rpartition(".")[2]
    for kind in ("_TRELLIS_", "_LUT4", "_CCU2C", "_PFUMX", "_L6MUX21", "_DP16KD", "_MULT18X18D"):
        leaf = leaf.partition(kind)[0]
    return leaf
