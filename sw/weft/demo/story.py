"""The demonstration's run: the held-out digits on the RTL, every bit compared."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from weft.cli.output import Output
from weft.demo.page import write_page
from weft.demo.preparation import Prepared, prepare
from weft.observation.timeline import BOUNDS
from weft.session import Session
from weft_hw import AcceleratorConfig
from weft_sim.cache import renewed

__all__ = ["run_demo"]

CHUNK = 12  # images between two steps of the progress bar


def run_demo(
    config: AcceleratorConfig, output: Output, *, fresh: bool, images: int | None, page: Path
) -> dict[str, Any]:
    """Tell the story and return its figures.

    Returns
    -------
    dict
        ``accuracy_float``, ``accuracy_int8``, ``accuracy_rtl``, ``mismatches`` (output elements
        of the RTL that differ from the functional engine or from the integer reference),
        ``cycles_per_image``, ``utilization``, ``kcycles_per_s`` and more.
    """
    began = time.perf_counter()
    prepared = prepare(config, output, fresh=fresh)
    built: list[str] = []
    with output.stages() as stage, renewed() if fresh else nullcontext():

        def progress(text: str, fraction: float | None) -> None:
            built.append(text)
            stage(text, fraction)

        session = Session(prepared.program, engine="rtl", progress=progress)
    origin = "built" if built else "from the cache"
    ready = time.perf_counter() - began
    output.say(f"simulator of {config.name}'s RTL: {origin}, {ready:.1f} s after the start")
    count = min(images or len(prepared.images), len(prepared.images))
    answers, reports, first_image_s = _run_rtl(session, prepared, count, began, output)
    output.say(f"the first image was through the RTL {first_image_s:.1f} s after the start")
    functional = Session(prepared.program, engine="functional").run(prepared.images[:count])
    different = (answers != functional) | (answers != prepared.reference[:count])
    predicted = answers.argmax(axis=1)
    figures = _figures(prepared, predicted, reports, count)
    figures["mismatches"] = int(different.sum())
    figures["first_image_s"] = first_image_s
    _tell(output, prepared, figures)
    write_page(page, config.name, prepared.images[:count], prepared.labels, predicted, figures)
    output.say(f"pictures: {page.resolve()}")
    figures["page"] = str(page)
    return figures


def _run_rtl(
    session: Session, prepared: Prepared, count: int, began: float, output: Output
) -> tuple[np.ndarray, list[dict[str, Any]], float]:
    answers, reports = [], []
    first_image_s = 0.0
    with output.bar("images on the RTL", count) as advance:
        start = 0
        while start < count:
            size = CHUNK if start else 1
            answers.append(session.run(prepared.images[start : min(start + size, count)]))
            reports.append(session.report)
            start = min(start + size, count)
            first_image_s = first_image_s or time.perf_counter() - began
            advance(start)
    return np.concatenate(answers), reports, first_image_s


def _figures(
    prepared: Prepared, predicted: np.ndarray, reports: list[dict[str, Any]], count: int
) -> dict[str, Any]:
    """The story's figures; cycles are means over the images."""
    cycles = sum(report["cycles"] for report in reports)
    seconds = sum(report["wall_s"] for report in reports)
    elements = reports[0]["utilization"] * reports[0]["cycles"] / reports[0]["macs"]
    layers = []
    for position, layer in enumerate(reports[0]["layers"]):
        layer_cycles = sum(report["layers"][position]["cycles"] for report in reports)
        layer_macs = sum(report["layers"][position]["macs"] for report in reports)
        parts = [report["layers"][position] for report in reports]
        cycles_by = {
            bound: sum(part["cycles_by"][bound] for part in parts) / count
            for bound in layer["cycles_by"]
        }
        layers.append(
            {
                "name": layer["name"],
                "op": layer["op"],
                "cycles": layer_cycles / count,
                "macs": layer_macs // count,
                "utilization": elements * layer_macs / layer_cycles if layer_cycles else 0.0,
                "source": "",
                "cycles_by": cycles_by,
                "bound": max(BOUNDS, key=cycles_by.__getitem__) if layer_cycles else None,
                "loaded_bytes": sum(part["loaded_bytes"] for part in parts) // count,
                "stored_bytes": sum(part["stored_bytes"] for part in parts) // count,
            }
        )
    return {
        "config": reports[0]["config"],
        "images": count,
        "accuracy_float": prepared.accuracy_float,
        "accuracy_int8": prepared.accuracy_int8,
        "accuracy_rtl": float((predicted == prepared.labels[:count]).mean()),
        "cycles_per_image": cycles / count,
        "utilization": elements * sum(report["macs"] for report in reports) / cycles,
        "kcycles_per_s": cycles / seconds / 1e3,
        "layers": layers,
        "counters": {
            name: sum(report["counters"][name] for report in reports) / count
            for name in reports[0]["counters"]
        },
        "host_ops": reports[0]["host_ops"],
        "from_cache": prepared.from_cache,
    }


def _tell(output: Output, prepared: Prepared, figures: dict[str, Any]) -> None:
    verdict = "[green]every bit is right[/]" if not figures["mismatches"] else "[red]WRONG BITS[/]"
    output.say(
        f"{figures['images']} images: {figures['mismatches']} of "
        f"{figures['images'] * prepared.reference.shape[1]:,} outputs differ from the functional "
        f"engine or the independent integer reference: {verdict}"
    )
    output.say(
        f"accuracy: float {figures['accuracy_float']:.2%}, int8 {figures['accuracy_int8']:.2%}, "
        f"on the RTL {figures['accuracy_rtl']:.2%}"
    )
    table = Table("layer", "op", "cycles", "multiply-accumulates", "utilization")
    for layer in figures["layers"]:
        table.add_row(
            layer["name"],
            layer["op"],
            f"{layer['cycles']:,.0f}",
            f"{layer['macs']:,}",
            f"{layer['utilization']:.1%}",
        )
    output.console.print(table)
    engines = Table("engine", "busy", "next instruction waits", "held by memory or bus")
    for engine in ("LOAD", "MATRIX", "VECTOR", "STORE"):
        share = [
            figures["counters"][f"{engine}_{what}"] / figures["cycles_per_image"]
            for what in ("BUSY", "WAIT", "STALL")
        ]
        engines.add_row(engine.lower(), *[f"{value:.0%}" for value in share])
    output.console.print(engines)
    output.say(
        f"{figures['cycles_per_image']:,.0f} cycles per image, utilization "
        f"{figures['utilization']:.1%}, simulated at {figures['kcycles_per_s']:,.0f} kcycles/s"
    )
    for host_op in figures["host_ops"]:
        output.say(f"[dim]on the host: {host_op}[/]")
