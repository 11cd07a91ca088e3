"""The report of a run as one self-contained HTML page."""

from pathlib import PurePath
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from weft.observation.charts import bus_levels, engine_lanes, memory_maps, roofline, ticks
from weft.observation.timeline import Timeline
from weft.program import Program
from weft_hw.config import AcceleratorConfig
from weft_sim.device import RunResult

__all__ = ["page_environment", "report_page"]

ZOOMS = (1, 4, 16, 64)

_BOUND_TEXT = {
    "matrix": "the array is at work",
    "vector": "only the vector engine is at work",
    "bus": "only transfers are under way",
    "waiting": "no engine works",
}


def page_environment(*packages: str) -> Environment:
    """Templates of these packages, and the pieces that all pages share."""
    loaders = [PackageLoader(package) for package in (*packages, "weft.observation")]
    return Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def report_page(program: Program, report: dict[str, Any], result: RunResult | None) -> str:
    """The page's text.

    Parameters
    ----------
    program : Program
    report : dict
        From :attr:`weft.session.Session.report`: every figure of the page.
    result : RunResult, optional
        Of the last input, for the pictures over time.
    """
    timeline = None
    if result is not None and result.events is not None and result.cycles:
        timeline = Timeline(program, result)
    layers_timed = all(layer["cycles"] is not None for layer in report["layers"])
    maps = memory_maps(program, timeline)
    for each in maps:
        each["ticks"] = ticks(each["end"])
    template = page_environment().get_template("report.html.jinja")
    return template.render(
        report=report,
        title=PurePath(report["model"]).name,
        summary=_summary(report, layers_timed),
        timed=report["cycles"] is not None,
        layers_timed=layers_timed,
        bytes={
            name: sum(layer[f"{name}_bytes"] for layer in report["layers"])
            for name in ("loaded", "stored")
        },
        roofline=roofline(program, report) if layers_timed else None,
        lanes=engine_lanes(timeline) if timeline else [],
        levels=bus_levels(program, result) if timeline and result else [],
        stretches=_stretches(timeline) if timeline else [],
        end=timeline.cycles if timeline else 0,
        zooms={factor: ticks(timeline.cycles, 8 * factor) for factor in ZOOMS} if timeline else {},
        maps=maps,
        peaks=_peaks(report["memory"], program.config),
    )


def _summary(report: dict[str, Any], layers_timed: bool) -> str:
    """What a reader should know first."""
    if not layers_timed or not report["cycles"]:
        return "A run without time: what is computed, moved and kept where."
    total = sum(layer["cycles"] for layer in report["layers"])
    by = {
        bound: sum(layer["cycles_by"][bound] for layer in report["layers"]) for bound in _BOUND_TEXT
    }
    shares = [
        f"in {count / total:.0%} of the cycles {_BOUND_TEXT[bound]}"
        for bound, count in sorted(by.items(), key=lambda entry: -entry[1])
        if count >= 0.05 * total
    ]
    longest = max(report["layers"], key=lambda layer: layer["cycles"])
    text = ", ".join(shares)
    return (
        f"{text[:1].upper()}{text[1:]}. The longest layer is {longest['name']} ({longest['op']}): "
        f"{longest['cycles'] / total:.0%} of the cycles, bound by {longest['bound']}."
    )


def _stretches(timeline: Timeline) -> list[dict[str, Any]]:
    return [
        {
            "name": timeline.program.layers[layer].name,
            "text": f"{timeline.program.layers[layer].name}: cycles {start:,} to {end:,}",
            "left": 100 * start / timeline.cycles,
            "width": 100 * (end - start) / timeline.cycles,
            "shade": layer % 2,
        }
        for layer, start, end in timeline.stretches
    ]


def _peaks(memory: dict[str, int], config: AcceleratorConfig) -> list[dict[str, Any]]:
    capacities = {
        "activation bytes": config.activation_bytes,
        "weight bytes": config.weight_bytes,
        "accumulator rows": config.accumulator_total_rows,
        "parameter rows": config.parameter_rows,
    }
    return [
        {"name": name, "used": used, "capacity": capacities.get(name)}
        for name, used in memory.items()
    ]
