"""How commands speak: one JSON object on standard output, or rich text for people."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Output", "Stage"]

Stage = Callable[[str, float | None], None]
"""Progress callback: name of the stage, and the finished fraction where it is known."""

SECONDS_BETWEEN_LINES = 60.0
"""Where no terminal shows a spinner, stages are told at most so often."""


class Output:
    """Where a command writes.

    Parameters
    ----------
    as_json : bool
        True: text for people goes to standard error and only :meth:`result` writes to standard
        output, one JSON object.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False)

    def say(self, text: str) -> None:
        """A line for people."""
        self.console.print(text)

    def result(self, values: Mapping[str, Any]) -> None:
        """The command's result, as JSON if asked for."""
        if self.as_json:
            print(json.dumps(values, indent=2))

    @contextmanager
    def stages(self) -> Iterator[Stage]:
        """The stage of a long build: a spinner, of which nothing stays, or on no terminal lines.

        Lines go to standard error, so that a log of an hour's place and route shows where it is.
        """
        started = told = monotonic()
        with self.console.status("") as status:

            def update(stage: str, fraction: float | None = None) -> None:
                nonlocal told
                share = "" if fraction is None else f" {fraction:.0%}"
                status.update(f"{stage}{share}")
                now = monotonic()
                if not self.console.is_terminal and now - told >= SECONDS_BETWEEN_LINES:
                    told = now
                    line = f"after {(now - started) / 60:.0f} min: {stage}{share}"
                    print(line, file=sys.stderr, flush=True)

            yield update

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar; call the yielded function with the number of finished items.

        Its second argument, where given, replaces the bar's text.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=not self.as_json) as progress:
            task = progress.add_task(text, total=total)
            yield lambda done, text=None: progress.update(task, completed=done, description=text)
