"""Verilog to native code: Verilator, then the compiler on each file, then the linker; cached."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft_hw.errors import WeftError
from weft_sim.cache import Progress, cached, content_key
from weft_sim.toolchain import Tool, compiler_accepts, cpu_identity, find_compiler, find_verilator

__all__ = ["TOP", "Recipe", "compiled"]

TOP = "weft_top"
"""Name of the top module."""

_ON_CHIP = re.compile(
    rf" ({TOP}__DOT__core__DOT__(activation|weight|accumulator|parameter|tables)__DOT__(\w+));$",
    re.MULTILINE,
)
"""Members of the model's root that are arrays of the on-chip memories."""

# Warnings do not stop a build: a test lints the presets with every warning on.
_VERILATOR_FLAGS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "-Wno-fatal")
_COMMON_FLAGS = ("-std=c++20", "-fPIC", "-w")
# The last bounds GCC's search for earlier stores to a memory: without it one file of a wide
# machine's (64 bytes on every port of the scratchpad) takes 150 s, with it 4 s. With 20 instead of
# 2, one file of `base16` takes 47 s instead of 9 s; the model is as fast with either.
_OPTIONAL_FLAGS = (
    "-march=native",
    "-fbracket-depth=4096",
    "--param=sccvn-max-alias-queries-per-access=2",
)
# What runs every cycle: -O3 makes the model of `base16` no faster and takes twice as long or more.
_FAST_FLAGS = ("-O2",)
_SLOW_FLAGS = ("-O0",)  # what runs once: constructors, the initial state
_RUNTIME_FLAGS = ("-O1",)  # Verilator's own library, which the hot loop hardly calls


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to build from Verilog.

    Parameters
    ----------
    output : str
        Name of the file that comes out.
    prefix : str
        Verilator's name for the C++ class of the top module.
    verilator_flags : tuple of str
        Besides the common ones.
    control : str
        A Verilator control file.
    defines : mapping of str to int
        Preprocessor symbols.
    sources : tuple of Path
        C++ files to compile along.
    headers : tuple of Path
        What they include; only for the cache key.
    compile_flags, link_flags : tuple of str
    """

    output: str
    prefix: str
    verilator_flags: tuple[str, ...] = ()
    control: str = ""
    defines: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    headers: tuple[Path, ...] = ()
    compile_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()

    def key_parts(self) -> list[str | bytes]:
        """Everything of the recipe that shapes the result."""
        parts: list[str | bytes] = [self.output, self.prefix, self.control]
        parts += [repr(self.verilator_flags), repr(sorted(self.defines.items()))]
        parts += [repr(self.compile_flags), repr(self.link_flags)]
        for path in (*self.sources, *self.headers):
            parts += [path.name, path.read_bytes()]
        return parts


def compiled(
    kind: str, recipe: Recipe, verilog: str, *, progress: Progress | None = None
) -> tuple[Path, str]:
    """The built file, from the cache or made now, and the key of its cache entry.

    Raises
    ------
    WeftError
        If a tool is missing or the disk is full.
    RuntimeError
        If Verilator or the compiler rejects the sources.
    """
    verilator, compiler = find_verilator(), find_compiler()
    key = content_key(
        verilog,
        *recipe.key_parts(),
        repr((_VERILATOR_FLAGS, _COMMON_FLAGS, _OPTIONAL_FLAGS)),
        repr((_FAST_FLAGS, _SLOW_FLAGS, _RUNTIME_FLAGS)),
        verilator.version,
        *compiler.command,
        compiler.version,
        os.environ.get("CXXFLAGS", ""),
        cpu_identity(),
    )

    def make(directory: Path) -> None:
        # Sources and objects lie apart: only what a later run needs stays in the cache.
        scratch = directory / "scratch"
        scratch.mkdir()
        build = _Build(recipe, scratch, verilator, compiler, progress)
        os.replace(build.run(verilog), directory / recipe.output)
        shutil.rmtree(scratch)

    return cached(kind, key, make, progress=progress) / recipe.output, key


class _Build:
    """One build in a scratch directory."""

    def __init__(
        self,
        recipe: Recipe,
        scratch: Path,
        verilator: Tool,
        compiler: Tool,
        progress: Progress | None,
    ) -> None:
        self._recipe = recipe
        self._scratch = scratch
        self._verilator = verilator
        self._compiler = compiler
        self._progress = progress or (lambda stage, fraction: None)

    def run(self, verilog: str) -> Path:
        """Path of the linked file."""
        description = self._verilate(verilog)
        include = Path(description["system"]["verilator_root"]) / "include"
        flags = [
            *_COMMON_FLAGS,
            *self._recipe.compile_flags,
            *[flag for flag in _OPTIONAL_FLAGS if compiler_accepts(self._compiler, flag)],
            *[f"-D{name}={value}" for name, value in self._recipe.defines.items()],
            f"-I{self._scratch}",
            f"-I{include}",
            f"-I{include / 'vltstd'}",
        ]
        own = os.environ.get("CXXFLAGS", "").split()
        jobs: list[tuple[Path, list[str]]] = []
        for path, optimization in self._files(description["sources"]):
            jobs.append((path, [*flags, *optimization, *own]))
        objects = self._compile(jobs)
        self._progress("linking the simulator", None)
        linked = self._scratch / self._recipe.output
        command = [*self._compiler.command, "-pthread", "-o", str(linked), *objects]
        self._call(self._compiler, [*command, *self._recipe.link_flags])
        return linked

    def _files(self, sources: dict[str, list[str]]) -> Iterable[tuple[Path, tuple[str, ...]]]:
        for name, paths in sources.items():
            if name == "deps":
                continue
            optimization = _SLOW_FLAGS if name.endswith("_slow") else _FAST_FLAGS
            if name == "global":
                optimization = _RUNTIME_FLAGS
            for path in paths:
                if path.endswith(".cpp"):
                    yield Path(path), optimization
        for source in self._recipe.sources:
            yield source, _FAST_FLAGS

    def _verilate(self, verilog: str) -> dict[str, Any]:
        """Verilator's translation to C++, and its list of what came out."""
        self._progress("translating Verilog to C++", None)
        source = self._scratch / f"{TOP}.v"
        source.write_text(verilog)
        control = self._scratch / "control.vlt"
        control.write_text(f"`verilator_config\n{self._recipe.control}\n")
        prefix = self._recipe.prefix
        command = [
            *self._verilator.command,
            *("--cc", "--make", "json", "--top-module", TOP, "--prefix", prefix),
            *("--Mdir", str(self._scratch)),
            *_VERILATOR_FLAGS,
            *self._recipe.verilator_flags,
            str(control),
            str(source),
        ]
        self._call(self._verilator, command)
        self._tabulate_memories()
        description: dict[str, Any] = json.loads((self._scratch / f"{prefix}.json").read_text())
        return description

    def _tabulate_memories(self) -> None:
        """A header that gives the harness each on-chip memory of the model by its name."""
        root = self._scratch / f"{self._recipe.prefix}___024root.h"
        lines = re.findall(r"^ *VlUnpacked<.*;$", root.read_text(), re.MULTILINE)
        found = _ON_CHIP.findall("\n".join(lines))
        entries = [f' \\\n    ENTRY("{unit}.{name}", {member})' for member, unit, name in found]
        text = f"#pragma once\n\n#define WEFT_MEMORIES(ENTRY){''.join(entries)}\n"
        (self._scratch / "memory_table.h").write_text(text)

    def _compile(self, jobs: list[tuple[Path, list[str]]]) -> list[str]:
        """Compile, largest first, as many at a time as there are processors."""
        waiting = sorted(jobs, key=lambda job: job[0].stat().st_size)
        total = sum(path.stat().st_size for path, _ in waiting)
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        running: dict[subprocess.Popen[bytes], tuple[Path, Path]] = {}
        objects: list[str] = []
        done = 0
        self._progress("compiling the simulator", 0.0)
        try:
            while waiting or running:
                while waiting and len(running) < processors:
                    path, flags = waiting.pop()
                    target = self._scratch / f"{path.stem}.o"
                    command = [*self._compiler.command, *flags, "-c", str(path), "-o", str(target)]
                    with open(target.with_suffix(".log"), "wb") as log:
                        process = subprocess.Popen(command, stdout=log, stderr=log)
                    running[process] = (path, target)
                    objects.append(str(target))
                finished = [process for process in running if process.poll() is not None]
                if not finished:
                    time.sleep(0.02)
                for process in finished:
                    path, target = running.pop(process)
                    done += path.stat().st_size
                    self._progress("compiling the simulator", done / total)
                    if process.returncode != 0:
                        text = target.with_suffix(".log").read_text(errors="replace")
                        self._fail(self._compiler, path.name, text)
        finally:
            for process in running:
                process.kill()
                process.wait()
        return objects

    def _call(self, tool: Tool, command: list[str]) -> None:
        done = subprocess.run(
            command,
            env=tool.full_environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode != 0:
            self._fail(tool, "the simulator", done.stdout)

    def _fail(self, tool: Tool, what: str, text: str) -> None:
        if "No space left on device" in text:
            raise WeftError(
                f"no space is left on the disk of {self._scratch} while building {what}: "
                "free some, or set WEFT_CACHE to a folder on another disk"
            )
        shown = "\n".join(text.strip().splitlines()[-30:])
        raise RuntimeError(f"{tool.command[0]} ({tool.version}) failed on {what}:\n{shown}")
