"""Apply each fault to a copy of the tree, run its tests, and say which of them noticed it."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutation.faults import FAULTS, GATEWARE, Fault

__all__ = ["apply", "main"]

TREE = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 300


def apply(fault: Fault, tree: Path) -> None:
    """Put the fault into a tree; refuse if its text is not there exactly once."""
    path = tree / GATEWARE / fault.file
    text = path.read_text()
    found = text.count(fault.old)
    if found != 1:
        raise ValueError(f"{fault.file} has {fault.old!r} {found} times, not once")
    path.write_text(text.replace(fault.old, fault.new))


def _copy(target: Path) -> None:
    target.mkdir()
    for name in ("hw", "sim", "sw", "tests"):
        shutil.copytree(TREE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(TREE / name, target / name)


def _pytest(
    tree: Path, tests: tuple[str, ...], limit: int = LIMIT_SECONDS
) -> tuple[int | None, str]:
    """Exit status (none: still running at the limit) and output of the tests in a tree."""
    paths = os.pathsep.join(str(tree / name) for name in ("hw", "sim", "sw", "tests"))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        run = subprocess.run(
            [*command, *(f"tests/hw/{name}" for name in tests)],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return run.returncode, run.stdout + run.stderr


def _outcome(status: int | None, output: str) -> str | None:
    """The test that failed, or None if all passed."""
    if status == 0:
        return None
    if status is None:
        return f"(no end within {LIMIT_SECONDS} s)"
    failed = re.search(r"^FAILED (.+?)(?: - .*)?$", output, re.MULTILINE)
    if status != 1 or failed is None:  # not a verdict of a test: an error of this run
        raise RuntimeError(f"pytest ended with status {status}:\n{output[-2000:]}")
    return failed[1].rpartition("/")[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose file or effect has one")
    words = parser.parse_args().words
    chosen = [
        fault
        for fault in FAULTS
        if not words or any(word in fault.file + fault.breaks for word in words)
    ]
    if not chosen:
        parser.error(f"no fault's file or effect has {' or '.join(words)}")
    # A test that fails without a fault notices nothing.
    with tempfile.TemporaryDirectory(prefix="weft-mutation-") as folder:
        tree = Path(folder, "weft")
        _copy(tree)
        tests = tuple(sorted({name for fault in chosen for name in fault.tests}))
        failing = _outcome(*_pytest(tree, tests, LIMIT_SECONDS * len(tests)))
        if failing is not None:
            raise RuntimeError(f"without any fault, {failing} fails")
    survivors = 0
    print("| file | fault | tests | noticed by | s |\n|---|---|---|---|---|", flush=True)
    for fault in chosen:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="weft-mutation-") as folder:
            tree = Path(folder, "weft")
            _copy(tree)
            apply(fault, tree)
            noticed = _outcome(*_pytest(tree, fault.tests))
        survivors += noticed is None
        seconds = time.monotonic() - begin
        print(
            f"| {fault.file} | {fault.breaks} | {', '.join(fault.tests)} "
            f"| {noticed or '**nothing**'} | {seconds:.0f} |",
            flush=True,
        )
    print(f"{len(chosen) - survivors} of {len(chosen)} faults noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
