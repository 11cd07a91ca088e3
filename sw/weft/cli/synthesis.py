"""`weft synth`: area and clock of a machine on an FPGA."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from weft.cli.options import ConfigOption, JsonOption
from weft.cli.output import Output
from weft.synthesis import TARGETS, SynthesisReport, synthesize
from weft_hw import load_config

__all__ = ["synth"]

SMALLEST_SHARE = 0.005  # of all look-up tables and flip-flops: smaller modules share a row


def synth(
    config: ConfigOption = "edge8",
    target: Annotated[
        str, typer.Option("--target", help=f"{', '.join(TARGETS)}.", metavar="TARGET")
    ] = "ecp5-85k",
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for Verilog, netlist and logs.")
    ] = None,
    resources_only: Annotated[
        bool, typer.Option("--resources-only", help="Synthesize, but do not place and route.")
    ] = False,
    frequency: Annotated[
        float, typer.Option("--frequency", min=1, help="MHz that place and route aim for.")
    ] = 100.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the first placement.")] = 1,
    seeds: Annotated[
        int,
        typer.Option("--seeds", min=1, help="Placements; the most promising one is routed."),
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Placements at a time; without it one a processor."),
    ] = None,
    assign_sites: Annotated[
        bool,
        typer.Option(
            "--assign-sites",
            help="Place again with block RAMs and multipliers where the first placement's wires "
            "pull them: for machines in which they crowd.",
        ),
    ] = False,
    speed_grade: Annotated[
        int | None,
        typer.Option("--speed-grade", help="Of the FPGA; without it the slowest."),
    ] = None,
    placer: Annotated[
        str | None,
        typer.Option("--placer", help="nextpnr's: static (for ECP5 without it), heap, sa."),
    ] = None,
    router: Annotated[
        str | None,
        typer.Option("--router", help="nextpnr's: router1 (its default), router2."),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Levels of modules to show.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Synthesize the whole machine for an FPGA: area by module, clock and what bounds it."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "edge8")
    folder = directory or Path("build") / f"synth-{chosen.name}-{target}"
    with output.stages() as stage:
        report = synthesize(
            chosen,
            target,
            folder,
            place=not resources_only,
            megahertz=frequency,
            seed=seed,
            seeds=seeds,
            jobs=jobs or os.cpu_count() or 1,
            assign_sites=assign_sites,
            speed_grade=speed_grade,
            placer=placer,
            router=router,
            depth=depth,
            progress=lambda step: stage(step, None),
        )
    _show(output, report)
    output.say(f"Verilog, netlist, logs: {folder}")
    output.result(
        {"config": chosen.name, "target": target, "folder": str(folder), **report.to_dict()}
    )


def _show(output: Output, report: SynthesisReport) -> None:
    table = Table("module", "LUT", "FF", "DSP", "block RAM")
    size = report.used.luts + report.used.flip_flops
    small = type(report.used)()
    for name, area in report.modules.items():
        memories = area.multipliers + area.block_rams
        if memories or area.luts + area.flip_flops >= SMALLEST_SHARE * size:
            table.add_row(
                name, *_counts(area.luts, area.flip_flops, area.multipliers, area.block_rams)
            )
        else:
            small += area
    used, have = report.used, report.available
    table.add_row("others", *_counts(small.luts, small.flip_flops, 0, 0), end_section=True)
    table.add_row("all", *_counts(used.luts, used.flip_flops, used.multipliers, used.block_rams))
    table.add_row("of", *_counts(have.luts, have.flip_flops, have.multipliers, have.block_rams))
    output.console.print(table)
    output.say("(wrapper): shift registers around the ports, which are more than a package's pins")
    if report.refusal is not None:
        output.say(f"not placed: {report.refusal}")
    expected = [
        f"{placement.expected_mhz:.1f} MHz (seed {placement.seed})"
        for placement in report.placements
        if placement.expected_mhz is not None
    ]
    if expected:
        output.say(f"expected before routing: {', '.join(expected)}; the first one was routed")
    if report.clock_mhz is not None:
        output.say(f"clock: {report.clock_mhz:.1f} MHz after routing")
    if report.path is not None:
        path = report.path
        output.say(
            f"bounded by {path.start} to {path.end}: {path.logic_ns:.1f} ns of logic, "
            f"{path.routing_ns:.1f} ns of routing"
        )
        steps = Table("on the path", "gates", "logic ns", "routing ns", "signals")
        for step in path.steps:
            first, last = step.signals
            signals = first if first == last else f"{first} ... {last}"
            times = (f"{step.logic_ns:.1f}", f"{step.routing_ns:.1f}")
            steps.add_row(step.module, str(step.gates), *times, signals)
        output.console.print(steps)


def _counts(*counts: int) -> tuple[str, ...]:
    return tuple(f"{count:,}" for count in counts)
