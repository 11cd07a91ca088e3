"""`weft run`: a model on an engine, inputs and outputs as .npy files."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from weft.cli.options import ConfigOption, EngineOption, JsonOption, LatencyOption, ModelArgument
from weft.cli.output import Output
from weft.errors import InputError
from weft_hw import load_config

__all__ = ["run"]


def run(
    model: ModelArgument,
    input_path: Annotated[
        Path, typer.Option("--input", help=".npy: one sample, or a batch on the first axis.")
    ],
    output_path: Annotated[
        Path | None, typer.Option("--output", help="Where to write the result as .npy.")
    ] = None,
    engine: EngineOption = "rtl",
    config: ConfigOption = None,
    report_path: Annotated[
        Path | None, typer.Option("--report", help="Where to write the report as JSON.")
    ] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Write float32 values instead of codes.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Waveform of rtl, .fst or .vcd.")
    ] = None,
    latency: LatencyOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Run a model on the RTL or the functional simulator."""
    output = Output(as_json=as_json)
    chosen = load_config(config) if config else None
    from weft.models import load_model
    from weft.session import Session

    if trace is not None and engine != "rtl":
        raise InputError(f"--trace writes waveforms of the rtl engine; {engine} has none")
    options: dict[str, Any] = {"latency": latency, "trace": trace} if engine == "rtl" else {}
    with output.stages() as stage:
        stage(f"loading {model.name}", None)
        program = load_model(model, chosen)
        values = _read_array(input_path)
        if engine == "rtl":
            options["progress"] = stage
        session = Session(program, engine=engine, **options)
        stage(f"running on {engine}", None)
        result = session.run(values, dequantize=dequantize)
    report = {**session.report, "model": str(model)}
    if output_path is not None:
        _write_arrays(output_path, result)
        output.say(f"wrote {output_path}")
    if report_path is not None:
        _write_text(report_path, json.dumps(report, indent=2) + "\n")
        output.say(f"wrote {report_path}")
    _show(output, report)
    output.result(report)


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such input file") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from None


def _write_arrays(path: Path, result: Any) -> None:
    if isinstance(result, dict):
        raise InputError(
            f"{path}: the model has several outputs ({', '.join(result)}); use the Python interface"
        )
    temporary = path.with_name(path.name + ".partial.npy")
    with open(temporary, "wb") as file:
        np.save(file, result)
    os.replace(temporary, path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    os.replace(temporary, path)


def _show(output: Output, report: dict[str, Any]) -> None:
    table = Table("layer", "op", "cycles", "multiply-accumulates", "utilization")
    for layer in report["layers"]:
        table.add_row(
            layer["name"],
            layer["op"],
            "-" if layer["cycles"] is None else f"{layer['cycles']:,}",
            f"{layer['macs']:,}",
            "-" if layer["utilization"] is None else f"{layer['utilization']:.1%}",
        )
    output.console.print(table)
    if report["cycles"] is not None:
        output.say(
            f"{report['inputs']} input(s), {report['cycles']:,} cycles, "
            f"utilization {report['utilization']:.1%}, "
            f"{report['kcycles_per_s']:,.0f} kcycles/s on {report['engine']}"
        )
    for host_op in report["host_ops"]:
        output.say(f"on the host: {host_op}")
