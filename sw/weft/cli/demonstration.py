"""`weft demo`: the main job, told as a short story."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.options import ConfigOption, JsonOption
from weft.cli.output import Output
from weft_hw import load_config

__all__ = ["demo"]


def demo(
    config: ConfigOption = "base16",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train, compile and build again, whatever is cached.")
    ] = False,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Held-out images to run (default: all).")
    ] = None,
    page: Annotated[Path, typer.Option("--page", help="Where to write the picture page.")] = Path(
        "weft-demo.html"
    ),
    as_json: JsonOption = False,
) -> None:
    """Train a network on handwritten digits and run it on the accelerator's own RTL."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft.demo.story import run_demo

    result = run_demo(chosen, output, fresh=fresh, images=images, page=page)
    output.result(result)
    if result["mismatches"]:
        raise typer.Exit(1)
