"""`weft bench`: figures with units, as text and as JSON."""

from typing import Annotated

import typer
from rich.table import Table

from weft.cli.options import ConfigOption, JsonOption
from weft.cli.output import Output
from weft_hw import load_config

__all__ = ["application"]

application = typer.Typer(help="Measure: figures with units.", no_args_is_help=True)


@application.callback()
def bench() -> None:
    """Measure: figures with units."""


@application.command("sim")
def simulators(
    config: ConfigOption = "base16",
    cocotb: Annotated[
        bool, typer.Option("--cocotb/--no-cocotb", help="Measure cocotb as well.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Simulated cycles a second of rtl, functional and cocotb."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft.benchmarks.simulators import bench_simulators

    results = bench_simulators(chosen, output, with_cocotb=cocotb)
    table = Table("engine", "network", "multiply-accumulates", "cycles", "wall s", "kcycles/s")
    for entry in results:
        table.add_row(
            entry["engine"],
            entry["network"],
            f"{entry['macs']:,}",
            f"{entry['cycles']:,}",
            f"{entry['wall_s']:.3f}",
            f"{entry['kcycles_per_s']:,.0f}",
        )
    output.console.print(table)
    output.result({"config": chosen.name, "results": results})
