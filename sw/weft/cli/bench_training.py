"""`weft bench train-step`: what a training step costs on the machine."""

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from weft.cli.files import check_writable, write_text
from weft.cli.options import ConfigOption, EngineOption, JsonOption, LatencyOption, engine_options
from weft.cli.output import Output
from weft.errors import InputError
from weft_hw import load_config

__all__ = ["train_step"]


PADDING = (
    "multiply-accumulates are the model's, those with padding too: the machine leaves most of "
    "these out, and utilization may pass 100 %"
)


class Workload(enum.StrEnum):
    """What is measured."""

    CONVOLUTION = "convolution"
    DIGITS = "digits"
    RESIDUAL = "residual"


def train_step(
    workload: Annotated[
        Workload,
        typer.Option(
            "--network",
            help="The three passes of one 3x3 convolution (64 to 64 channels, 16x16 pixels); the "
            "network for digits; the residual network for 32x32 pictures.",
        ),
    ] = Workload.CONVOLUTION,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples of a step.")] = 8,
    method: Annotated[str, typer.Option("--method", help="As in `weft train`.")] = "octo",
    exponents: Annotated[
        str, typer.Option("--exponents", help="Whose largest sums count.", metavar="delayed|own")
    ] = "delayed",
    compensation: Annotated[
        str | None,
        typer.Option(
            "--compensation", help="In place of the method's.", metavar="none|channel|pixel"
        ),
    ] = None,
    config: ConfigOption = "base16",
    engine: EngineOption = "rtl",
    latency: LatencyOption = 20,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write a page (HTML) of a network's step.", metavar="FILE"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A training step: cycles by operation, memory by purpose, and what crosses to the host."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    if report is not None and workload is Workload.CONVOLUTION:
        raise InputError("--report is of a network's step: give --network digits or residual")
    if report is not None:
        check_writable("--report", report, (".html",))
    head = {
        "config": chosen.name,
        "engine": engine,
        "network": workload.value,
        "batch": batch,
        "exponents": exponents,
        "latency": latency if engine == "rtl" else None,
    }
    with output.stages() as stage:
        stage(f"{workload.value}, batch {batch}, on {engine}", None)
        options = engine_options(engine, latency, stage)
        if workload is Workload.CONVOLUTION:
            from weft.benchmarks.train_step import bench_passes

            passes = bench_passes(
                chosen, (16, 16, 64, 64), batch, 3, exponents=exponents, engine=engine, **options
            )
            result: dict[str, Any] = {"results": passes}
        else:
            from weft.benchmarks.train_networks import bench_network

            result = bench_network(
                workload.value,
                chosen,
                batch,
                method,
                exponents,
                engine=engine,
                compensation=compensation,
                **options,
            )
    output.console.print(PADDING)
    if workload is Workload.CONVOLUTION:
        _show_passes(output, result["results"])
    else:
        head |= {"method": method, "compensation": compensation}
        _show_step(output, result)
        if report is not None:
            from weft.train.machine.page import step_page

            write_text(report, step_page(head | result))
            output.say(f"wrote {report}")
    output.result(head | result)


def _share(utilization: float | None) -> str:
    return f"{utilization:.2%}" if utilization is not None else "-"


def _count(cycles: int | None) -> str:
    return f"{cycles:,}" if cycles is not None else "-"


def _show_passes(output: Output, passes: list[dict[str, Any]]) -> None:
    table = Table("pass", "multiply-accumulates", "cycles", "utilization")
    for entry in passes:
        cycles, share = _count(entry["cycles"]), _share(entry["utilization"])
        table.add_row(entry["name"], f"{entry['macs']:,}", cycles, share)
    output.console.print(table)


def _show_step(output: Output, result: dict[str, Any]) -> None:
    table = Table("operation", "kind", "multiply-accumulates", "cycles")
    for entry in result["operations"]:
        table.add_row(entry["title"], entry["kind"], f"{entry['macs']:,}", _count(entry["cycles"]))
    table.add_section()
    table.add_row("all", "", f"{result['macs']:,}", _count(result["cycles"]))
    output.console.print(table)
    output.console.print(
        f"utilization {_share(result['utilization'])} of the array's multiply-accumulates"
    )
    memory = Table("memory at its fullest", "bytes")
    for purpose, size in result["memory"].items():
        memory.add_row(purpose, f"{size:,}")
    memory.add_section()
    memory.add_row("peak (highest address)", f"{result['peak_bytes']:,}")
    output.console.print(memory)
    crossing = Table("between host and machine, a step", "to machine", "from machine")
    for entry in result["transfers"]:
        crossing.add_row(entry["what"], f"{entry['to_machine']:,}", f"{entry['from_machine']:,}")
    output.console.print(crossing)
