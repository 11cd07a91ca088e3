"""`weft eval`: a classifier's accuracy on the machine and in its own framework."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from weft.cli.files import read_array
from weft.cli.options import (
    ConfigOption,
    EngineOption,
    JsonOption,
    LatencyOption,
    ModelArgument,
    StrictOption,
)
from weft.cli.output import Output
from weft_hw import load_config

__all__ = ["evaluate_command"]


def evaluate_command(
    model: ModelArgument,
    data_path: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE",
            help=".npy: samples on the first axis; int8 codes, or float32 to be quantized.",
        ),
    ],
    labels_path: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help=".npy: the class of each sample.")
    ],
    engine: EngineOption = "functional",
    config: ConfigOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take this many samples only.")
    ] = None,
    latency: LatencyOption = 20,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a classifier's top-1 accuracy on the machine with its own framework's."""
    output = Output(as_json=as_json)
    chosen = load_config(config) if config else None
    data, labels = read_array(data_path, mapped=True), read_array(labels_path)
    from weft.evaluation import check_samples, evaluate, open_reference
    from weft.models import load_model
    from weft.session import Session

    with output.stages() as stage:
        stage(f"loading {model.name}", None)
        program = load_model(model, chosen)
        if strict:
            program.require_no_host_steps()
        reference = open_reference(model, program)
        check_samples(program, data, labels, limit)
        options: dict[str, Any] = {"latency": latency, "progress": stage} if engine == "rtl" else {}
        session = Session(program, engine=engine, **options)
    with session:
        total = len(data) if limit is None else min(limit, len(data))
        with output.bar(f"{model.name} on {engine}", total) as progress:
            found = evaluate(session, reference, data, labels, limit=limit, progress=progress)
    table = Table("top-1", "correct", "of", "accuracy")
    for name, correct in (
        (found.reference, found.reference_correct),
        (f"weft, {engine}", found.machine_correct),
    ):
        table.add_row(name, f"{correct:,}", f"{found.samples:,}", f"{correct / found.samples:.2%}")
    output.console.print(table)
    output.say(
        f"{found.equal_predictions:,} of {found.samples:,} predictions and "
        f"{found.equal_outputs:,} output tensors are equal"
    )
    values = found.to_dict()
    if found.cycles is not None:
        output.say(f"{values['cycles_per_inference']:,.0f} cycles per inference")
    output.result({"model": str(model), "config": program.config.name, "engine": engine, **values})
