"""Yosys and nextpnr: where they are, and running them with their progress."""

import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.errors import missing_extra
from weft_hw.errors import WeftError

__all__ = ["ToolFailed", "find_tool", "run_tool"]

LAST_LINES = 12
_STEP = re.compile(r"^(?:\d+\.)+ Executing (?P<yosys>.+?)\.?$|^Info: +(?P<nextpnr>\S.*)$")


class ToolFailed(WeftError):
    """A tool ended with an error; ``lines`` are the last that it wrote."""

    def __init__(self, command: str, status: int, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        told = "\n".join(lines) or "(it wrote nothing)"
        super().__init__(f"{command} ended with status {status}; its last lines:\n{told}")


def find_tool(name: str, *, packaged: bool = False) -> str:
    """Path of a tool: the system's own, otherwise the Python package's (``yowasp-`` before it).

    Parameters
    ----------
    name : str
    packaged : bool
        The package's rather than the system's: its version is known.

    Raises
    ------
    MissingExtra
        If neither is there.
    """
    beside = str(Path(sys.executable).parent)  # of an environment that was not activated
    package = f"yowasp-{name}"
    places = [(name, None), (package, None), (package, beside)]
    for command, path in sorted(places, key=lambda place: packaged and place[0] == name):
        found = shutil.which(command, path=path)
        if found is not None:
            return found
    raise missing_extra(f"yowasp-{name}", "synth", purpose="`weft synth`")


def run_tool(
    command: Sequence[str], directory: Path, log: str, progress: Callable[[str], None]
) -> None:
    """Run a tool in a directory, write what it says to a file there and pass on its steps.

    Raises
    ------
    ToolFailed
        If its exit status is not 0.
    """
    tail: deque[str] = deque(maxlen=LAST_LINES)
    with (
        open(directory / log, "w") as file,
        subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if line.strip():
                    tail.append(line.rstrip())
                step = _STEP.match(line)
                if step is not None:
                    progress(step["yosys"] or step["nextpnr"])
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise ToolFailed(Path(command[0]).name, process.returncode, tail)
