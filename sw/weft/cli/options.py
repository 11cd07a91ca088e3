"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.output import Stage

__all__ = [
    "ConfigOption",
    "EngineOption",
    "JsonOption",
    "LatencyOption",
    "ModelArgument",
    "StrictOption",
    "engine_options",
]

ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A compiled Program, a .tflite or a quantized .pt2 model."
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", help="A preset's name or a JSON file.", metavar="NAME|FILE"),
]
EngineOption = Annotated[
    str, typer.Option("--engine", help="functional or rtl.", metavar="functional|rtl")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output.")
]
LatencyOption = Annotated[
    int, typer.Option("--latency", min=0, help="Memory read latency of rtl, in cycles.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse a model of which the host computes a part.")
]


def engine_options(engine: str, latency: int, stage: Stage) -> dict[str, Any]:
    """What a benchmark passes on to an engine: only ``rtl`` has a memory latency and is built."""
    return {"latency": latency, "progress": stage} if engine == "rtl" else {}
