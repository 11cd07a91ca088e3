"""The layers of a report as a table for people."""

from typing import Any

from rich.table import Table

from weft.cli.output import Output

__all__ = ["show_layers"]


def show_layers(output: Output, report: dict[str, Any]) -> None:
    """Print a report (:meth:`weft.report.Accounting.report`): its layers, and their sum."""
    table = Table("layer", "op", "cycles", "multiply-accumulates", "utilization", "bound by")
    for layer in report["layers"]:
        table.add_row(
            layer["name"],
            layer["op"],
            "-" if layer["cycles"] is None else f"{layer['cycles']:,}",
            f"{layer['macs']:,}",
            "-" if layer["utilization"] is None else f"{layer['utilization']:.1%}",
            layer["bound"] or "-",
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
