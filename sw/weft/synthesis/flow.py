"""From a configuration to area and clock on an ECP5: Yosys, then nextpnr."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft.errors import InputError
from weft.synthesis.area import Area, area_by_module, read_netlist
from weft.synthesis.timing import CriticalPath, clock_mhz, critical_path
from weft.synthesis.tools import find_tool, run_tool
from weft.synthesis.wrapper import WRAPPER, ports_of, wrapper
from weft_hw.config import AcceleratorConfig

__all__ = ["TARGETS", "SynthesisReport", "Target", "synthesize"]

NETLIST, REPORT = "netlist.json", "report.json"
PACKAGE, SPEED = "CABGA381", "6"


@dataclass(frozen=True)
class Target:
    """An FPGA: nextpnr's option for it, and what it has."""

    option: str
    available: Area


TARGETS: dict[str, Target] = {
    "ecp5-85k": Target("--85k", Area(83640, 83640, 156, 208)),
    "ecp5-45k": Target("--45k", Area(43848, 43848, 72, 108)),
    "ecp5-25k": Target("--25k", Area(24288, 24288, 28, 56)),
}


@dataclass(frozen=True)
class SynthesisReport:
    """What the tools found.

    Parameters
    ----------
    used, available : Area
        Of the machine with its wrapper, counted in the netlist, and of the target.
    modules : dict of str to Area
        By module instance, the largest first.
    clock_mhz : float or None
        After routing; None if the design was not placed and routed.
    path : CriticalPath or None
        What bounds the clock.
    refusal : str or None
        Why the design was not placed: what it needs more of than the target has.
    """

    used: Area
    available: Area
    modules: Mapping[str, Area]
    clock_mhz: float | None = None
    path: CriticalPath | None = None
    refusal: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def synthesize(
    config: AcceleratorConfig,
    target: str,
    directory: Path,
    *,
    place: bool = True,
    megahertz: float = 100.0,
    seed: int = 1,
    depth: int = 3,
    progress: Callable[[str], None] = lambda step: None,
) -> SynthesisReport:
    """Synthesize the whole machine, then place and route it.

    The machine has more ports than a package has pins, so its ports go to registers in a shift
    chain around it (:mod:`weft.synthesis.wrapper`), which appears among the modules.

    Parameters
    ----------
    config : AcceleratorConfig
    target : str
        A key of :data:`TARGETS`.
    directory : Path
        Where Verilog, netlist, logs and report are left; made if it is not there.
    place : bool
        False: area only.
    megahertz : float
        What place and route aim for.
    seed : int
        Of placement.
    depth : int
        Levels of the module hierarchy that ``modules`` tells apart.
    progress : callable
        Told each step.

    Raises
    ------
    InputError
        If there is no such target.
    MissingExtra, ToolFailed
        If a tool is missing or fails.
    """
    if target not in TARGETS:
        raise InputError(f"`{target}` is not a target; there are {', '.join(TARGETS)}")
    from weft_hw.gateware.generate import TOP_MODULE, verilog

    device = TARGETS[target]
    directory.mkdir(parents=True, exist_ok=True)
    yosys = find_tool("yosys")
    nextpnr = find_tool("nextpnr-ecp5") if place else ""
    progress("generating Verilog")
    text = verilog(config)
    (directory / "machine.v").write_text(text)
    (directory / "wrapper.v").write_text(wrapper(ports_of(text, TOP_MODULE), TOP_MODULE))
    script = f"read_verilog machine.v wrapper.v; synth_ecp5 -top {WRAPPER} -json {NETLIST}"
    run_tool([yosys, "-p", script], directory, "yosys.log", lambda step: progress(f"Yosys: {step}"))

    cells, names = read_netlist(directory / NETLIST, WRAPPER)
    modules = area_by_module(cells, names, depth=depth)
    used = sum(modules.values(), Area())
    refusal = _refusal(used, device.available)
    if not place or refusal is not None:
        return SynthesisReport(used, device.available, modules, refusal=refusal)
    del cells
    command = [nextpnr, device.option, "--package", PACKAGE, "--speed", SPEED]
    command += ["--json", NETLIST, "--report", REPORT, "--freq", f"{megahertz:g}"]
    # The wrapper's five pins may lie anywhere; a clock below the aim is a figure, not a failure.
    command += ["--lpf-allow-unconstrained", "--timing-allow-fail", "--seed", str(seed)]
    run_tool(command, directory, "nextpnr.log", lambda step: progress(f"nextpnr: {step}"))
    report = json.loads((directory / REPORT).read_text())
    return SynthesisReport(
        used, device.available, modules, clock_mhz(report), critical_path(report, names)
    )


def _refusal(used: Area, available: Area) -> str | None:
    """What the target has too little of, in words."""
    have = asdict(available)
    short = [
        f"{count} {kind.replace('_', ' ')} of {have[kind]}"
        for kind, count in asdict(used).items()
        if count > have[kind]
    ]
    return f"the design does not fit: it needs {', '.join(short)}" if short else None
