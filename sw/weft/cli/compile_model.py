"""`weft compile`: a quantized model to a Program file."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.options import ConfigOption, JsonOption, ModelArgument, StrictOption
from weft.cli.output import Output
from weft_hw import load_config

__all__ = ["compile_command"]


def compile_command(
    model: ModelArgument,
    output_path: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Program file; default: MODEL with the ending .weft."),
    ] = None,
    config: ConfigOption = "base16",
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a .tflite or quantized .pt2 model to a Program for one configuration."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft.models import load_model

    with output.stages() as stage:
        stage(f"compiling {model.name} for {chosen.name}", None)
        program = load_model(model, chosen)
        if strict:
            program.require_no_host_steps()
    target = output_path or model.with_suffix(".weft")
    program.save(target)
    summary = program.summary()
    output.say(f"wrote {target} ({target.stat().st_size:,} bytes)")
    for name, size in summary["memory"].items():
        output.say(f"  {name}: {size}")
    for host_op in summary["host_ops"]:
        output.say(f"  on the host: {host_op}")
    output.result({"program": str(target), **summary})
