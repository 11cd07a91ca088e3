"""`weft config` and `weft verilog`: look at a configuration, generate its hardware."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from weft.cli.options import ConfigOption, JsonOption
from weft.cli.output import Output
from weft_hw import PRESETS, load_config

__all__ = ["config", "verilog"]


def config(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="Show it; default: all presets.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show configurations; the JSON output of one is a file that --config takes."""
    output = Output(as_json=as_json)
    shown = [load_config(name)] if name else list(PRESETS.values())
    if as_json:
        values = {entry.name: entry.to_dict() for entry in shown}
        output.result(shown[0].to_dict() if name else values)
        return
    table = Table("field", *[entry.name for entry in shown])
    for field in shown[0].to_dict():
        if field != "name":
            table.add_row(field, *[str(entry.to_dict()[field]) for entry in shown])
    table.add_row("content hash", *[f"{entry.content_hash:016x}" for entry in shown])
    output.console.print(table)


def verilog(
    directory: Annotated[Path, typer.Option("-o", "--output", help="Folder for the files.")],
    config: ConfigOption = "base16",
    as_json: JsonOption = False,
) -> None:
    """Write the accelerator as Verilog, with its C header of registers and its configuration."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft_hw.gateware.generate import write_verilog

    with output.stages() as stage:
        stage(f"generating Verilog of {chosen.name}", None)
        paths = write_verilog(chosen, directory)
    for path in paths:
        output.say(f"wrote {path}")
    output.result(
        {
            "config": chosen.name,
            "content_hash": f"{chosen.content_hash:016x}",
            "files": [str(path) for path in paths],
        }
    )
