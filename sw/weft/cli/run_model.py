"""`weft run`: a model on an engine, inputs and outputs as .npy files."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from weft.cli.files import read_array
from weft.cli.layer_table import show_layers
from weft.cli.observation import Observed, ReportOption, TraceOption
from weft.cli.options import (
    ConfigOption,
    EngineOption,
    JsonOption,
    LatencyOption,
    ModelArgument,
    StrictOption,
)
from weft.cli.output import Output
from weft.compare import TensorComparison, compare_tflite
from weft.errors import InputError
from weft.program import Program
from weft_hw import load_config

__all__ = ["DIFFERENT", "read_inputs", "run"]

DIFFERENT = 3
"""Exit status where --compare finds a difference."""


def run(
    model: ModelArgument,
    input_paths: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="[NAME=]FILE",
            help=".npy: one sample, or a batch on the first axis; once for each input.",
        ),
    ],
    output_path: Annotated[
        Path | None,
        typer.Option("--output", help="Where to write the result: .npy, or .npz for several."),
    ] = None,
    engine: EngineOption = "rtl",
    config: ConfigOption = None,
    reports: ReportOption = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Write float32 values instead of codes.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Compare every tensor with TFLite's interpreter (.tflite models)."
        ),
    ] = False,
    traces: TraceOption = None,
    latency: LatencyOption = 20,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model on the RTL or the functional simulator."""
    output = Output(as_json=as_json)
    chosen = load_config(config) if config else None
    from weft.models import load_model
    from weft.session import Session

    observed = Observed(engine, reports or [], traces or [])
    options = observed.session_options
    if engine == "rtl":
        options["latency"] = latency
    with output.stages() as stage:
        stage(f"loading {model.name}", None)
        program = load_model(model, chosen)
        if strict:
            program.require_no_host_steps()
        values = read_inputs(input_paths, program)
        _check_output(output_path, program)
        if engine == "rtl":
            options["progress"] = stage
        session = Session(program, engine=engine, **options)
        stage(f"running on {engine}", None)
        result = session.run(values, dequantize=dequantize)
        report = {**session.report, "model": str(model)}
        if compare:
            stage("comparing with the reference", None)
            for name in ("trace", "record_bus"):
                options.pop(name, None)
            rows = compare_tflite(model, values, program.config, engine, **options)
            report["comparison"] = [dataclasses.asdict(row) for row in rows]
    if output_path is not None:
        _write_arrays(output_path, result)
        output.say(f"wrote {output_path}")
    session.close()  # completes a waveform
    observed.write(session, report, output)
    show_layers(output, report)
    if compare:
        _show_comparison(output, rows)
    output.result(report)
    if compare and any(row.different for row in rows):
        raise typer.Exit(DIFFERENT)


def read_inputs(texts: list[str], program: Program) -> dict[str, np.ndarray]:
    """The arrays by the names of the program's inputs; without names, in their order."""
    names = [port.name for port in program.inputs]
    wanted = ", ".join(f"--input {name}=FILE" for name in names)
    values: dict[str, np.ndarray] = {}
    for position, text in enumerate(texts):
        name = next((each for each in names if text.startswith(f"{each}=")), None)
        if name is not None:
            path = text[len(name) + 1 :]
        elif len(texts) == len(names):
            name, path = names[position], text
        else:
            raise InputError(f"--input {text}: the model has {len(names)} inputs: give {wanted}")
        if name in values:
            raise InputError(f"input {name} is given twice: give {wanted}")
        values[name] = read_array(Path(path))
    if len(values) != len(names):
        raise InputError(f"{len(values)} of {len(names)} inputs are given: give {wanted}")
    return values


def _check_output(path: Path | None, program: Program) -> None:
    if path is not None and len(program.results) > 1 and path.suffix != ".npz":
        raise InputError(
            f"{path}: the model has several outputs ({', '.join(program.results)}); "
            "name a file that ends with .npz"
        )


def _write_arrays(path: Path, result: Any) -> None:
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        if isinstance(result, dict):
            np.savez(file, **result)
        else:
            np.save(file, result)
    os.replace(temporary, path)


def _show_comparison(output: Output, rows: list[TensorComparison]) -> None:
    table = Table("tensor", "computed by", "elements", "different", "largest difference")
    for row in rows:
        table.add_row(
            row.tensor,
            row.operation,
            f"{row.elements:,}",
            f"{row.different:,}",
            f"{row.largest:g}",
        )
    output.console.print(table)
    equal = sum(not row.different for row in rows)
    output.say(f"{equal} of {len(rows)} tensors equal TFLite's reference kernels")
