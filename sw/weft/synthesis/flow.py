"""From a configuration to area and clock on an FPGA: Yosys, then nextpnr where there is one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft.errors import InputError
from weft.synthesis.area import Area, ModuleNames, area_by_module, instance_paths, read_cells
from weft.synthesis.placements import Placement, place_and_route
from weft.synthesis.sites import require_solvers
from weft.synthesis.targets import find_target
from weft.synthesis.timing import CriticalPath, clock_mhz, critical_path
from weft.synthesis.tools import find_tool, run_tool
from weft.synthesis.wrapper import WRAPPER, ports_of, wrapper
from weft_hw.config import AcceleratorConfig

__all__ = ["SynthesisReport", "synthesize", "synthesize_verilog"]

PLACERS = ("heap", "static", "sa")
ROUTERS = ("router1", "router2")
DESIGN, NETLIST = "design.v", "netlist.json"


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
        Why the design was not placed: what it needs more of than the target has, or that there is
        no open place and route for the target.
    placements : tuple of Placement
        Those finished, the routed one first.
    """

    used: Area
    available: Area
    modules: Mapping[str, Area]
    clock_mhz: float | None = None
    path: CriticalPath | None = None
    refusal: str | None = None
    placements: tuple[Placement, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def synthesize(
    config: AcceleratorConfig, target: str, directory: Path, **options: Any
) -> SynthesisReport:
    """Synthesize the whole machine of a configuration, then place and route it.

    Parameters are those of :func:`synthesize_verilog`.
    """
    from weft_hw.gateware.generate import TOP_MODULE, verilog

    find_target(target)  # a wrong name is told before the Verilog is made
    options.get("progress", _silent)("generating Verilog")
    return synthesize_verilog(verilog(config), TOP_MODULE, target, directory, **options)


def _silent(step: str) -> None:
    """Progress that nobody wants to hear of."""


def synthesize_verilog(
    text: str,
    top: str,
    target: str,
    directory: Path,
    *,
    place: bool = True,
    megahertz: float = 100.0,
    seed: int = 1,
    seeds: int = 1,
    jobs: int = 1,
    assign_sites: bool = False,
    speed_grade: int | None = None,
    placer: str | None = None,
    router: str | None = None,
    depth: int = 3,
    progress: Callable[[str], None] = _silent,
) -> SynthesisReport:
    """Synthesize a design with ports ``clk`` and ``rst``, then place and route it.

    The machine has more ports than a package has pins, so a design's ports go to registers in a
    shift chain around it (:mod:`weft.synthesis.wrapper`), which appears among the modules. Where
    there is no open place and route for the target, only the area is found.

    Parameters
    ----------
    text : str
        Verilog as Amaranth and Yosys write it.
    top : str
        Its top module.
    target : str
        A key of :data:`weft.synthesis.targets.TARGETS`.
    directory : Path
        Where Verilog, netlist, logs and report are left; made if it is not there.
    place : bool
        False: area only.
    megahertz : float
        What place and route aim for.
    seed, seeds : int
        Of placement: the first one, and how many. With several, the placement of which nextpnr
        expects the fastest clock is routed.
    jobs : int
        Placements at the same time.
    assign_sites : bool
        Choose sites of block RAMs and multipliers from that placement, and place the rest again.
    speed_grade : int or None
        Of the FPGA; None for the slowest.
    placer, router : str or None
        nextpnr's algorithms for them; None for the family's placer, and nextpnr's own choice.
    depth : int
        Levels of the module hierarchy that ``modules`` tells apart.
    progress : callable
        Told each step.

    Raises
    ------
    InputError
        If there is no such target, speed grade, placer or router.
    MissingExtra, ToolFailed
        If a tool is missing or fails.
    """
    device = find_target(target)
    family = device.family
    options = [*device.options, "--freq", f"{megahertz:g}"]
    slowest = next(iter(family.speed_grades), None)
    options += _choice("speed", speed_grade or slowest, family.speed_grades, "speed grade")
    options += _choice("placer", placer or family.placer, PLACERS)
    options += _choice("router", router, ROUTERS)
    if assign_sites:
        require_solvers()
    directory.mkdir(parents=True, exist_ok=True)
    yosys = find_tool("yosys", packaged=True)  # results differ much between versions
    nextpnr = find_tool(family.place_and_route) if place and family.place_and_route else None
    text += wrapper(ports_of(text, top), top)
    (directory / DESIGN).write_text(text)
    for name, content in family.files.items():
        (directory / name).write_text(content)
    commands = [
        f"read_verilog {DESIGN}",
        *(command.format(top=WRAPPER) for command in family.synthesis),
        "autoname",  # cells after the signals near them
        f"write_json {NETLIST}",
    ]
    script = "; ".join(commands)
    run_tool([yosys, "-p", script], directory, "yosys.log", lambda step: progress(f"Yosys: {step}"))
    if family.improvements:
        netlist = json.loads((directory / NETLIST).read_text())
        for what, improve in family.improvements.items():
            progress(f"netlist: {improve(netlist['modules'][WRAPPER])} {what}")
        (directory / NETLIST).write_text(json.dumps(netlist))
        del netlist

    cells = read_cells(directory / NETLIST, WRAPPER)
    names = ModuleNames(instance_paths(text, WRAPPER))
    modules = area_by_module(cells, names, family.cells, depth=depth)
    used = sum(modules.values(), Area())
    refusal = _refusal(used, device.available)
    if place and nextpnr is None and refusal is None:
        refusal = f"the package index has no open place and route for {target}"
    if nextpnr is None or refusal is not None:
        return SynthesisReport(used, device.available, modules, refusal=refusal)
    del cells
    report, placements = place_and_route(
        [nextpnr, *options],
        NETLIST,
        directory,
        seeds=range(seed, seed + seeds),
        jobs=jobs,
        assigned=device.few_sites if assign_sites else None,
        progress=progress,
    )
    return SynthesisReport(
        used,
        device.available,
        modules,
        clock_mhz(report),
        critical_path(report, names),
        placements=placements,
    )


def _choice(option: str, wanted: object, allowed: tuple[object, ...], name: str = "") -> list[str]:
    """nextpnr's option for a wish, if there is one."""
    if wanted is None:
        return []
    if wanted not in allowed:
        choices = ", ".join(map(str, allowed)) or "none for this target"
        raise InputError(
            f"`{wanted}` is not a {name or option} of place and route; there are {choices}"
        )
    return [f"--{option}", str(wanted)]


def _refusal(used: Area, available: Area) -> str | None:
    """What the target has too little of, in words."""
    have = asdict(available)
    short = [
        f"{count} {kind.replace('_', ' ')} of {have[kind]}"
        for kind, count in asdict(used).items()
        if count > have[kind]
    ]
    return f"the design does not fit: it needs {', '.join(short)}" if short else None
