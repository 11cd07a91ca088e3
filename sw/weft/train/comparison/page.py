"""A comparison as one self-contained HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from weft.observation.page import page_environment
from weft.train.comparison.protocol import answers

__all__ = ["TASK_OF_NETWORK", "comparison_page", "cycles_by_pass"]

TASK_OF_NETWORK = {"digits": "digits", "residual": "pictures"}
"""Of the networks of `weft bench train-step`."""

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
COLOURS = (
    "#1c2430",
    "#8e99a8",
    "#c3a6d8",
    "#3b6fb5",
    "#3d9970",
    "#7cc4a4",
    "#b0b73c",
    "#d08a2e",
    "#b3261e",
    "#e58a84",
    "#6b4fa0",
    "#2aa7b8",
)


def comparison_page(results: Sequence[dict[str, Any]]) -> str:
    """The page's text.

    Parameters
    ----------
    results : sequence of dict
        Of :func:`weft.train.comparison.protocol.compare`. Where one has ``cycles``, a list of
        ``layer``, ``pass`` and ``cycles``, they are shown.
    """
    names = dict.fromkeys(method["name"] for result in results for method in result["methods"])
    # A method has one colour in all tasks.
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    tasks = [
        {
            **result,
            "charts": _charts(result["methods"], colours),
            "answers": answers(result["methods"]),
            "cycles": _cycles(result.get("cycles", [])),
        }
        for result in results
    ]
    return (
        page_environment("weft.train.comparison")
        .get_template("comparison.html.jinja")
        .render(tasks=tasks, colours=COLOURS)
    )


def cycles_by_pass(operations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Operations of a step's JSON (``weft bench train-step``) as layer, pass and cycles."""
    entries = []
    for operation in operations:
        title = operation["title"]
        if operation["forward"]:
            layer, kind = title, "forward"
        elif title.startswith("update "):
            layer, kind = title.removeprefix("update ").rpartition(".")[0], "parameters"
        else:
            layer, kind = title.partition(".gradient")[0], "gradient"
        entries.append({"layer": layer, "pass": kind, "cycles": operation["cycles"] or 0})
    return entries


@dataclass(frozen=True)
class _Frame:
    """Where numbers of epochs and accuracies lie in a chart."""

    epochs: int
    low: float
    high: float

    def x(self, epoch: int) -> float:
        share = (epoch - 1) / max(self.epochs - 1, 1)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(self, accuracy: float) -> float:
        share = (accuracy - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def line(self, accuracies: Sequence[float]) -> str:
        return " ".join(
            f"{self.x(epoch):.1f},{self.y(accuracy):.1f}"
            for epoch, accuracy in enumerate(accuracies, start=1)
        )


def _charts(methods: Sequence[dict[str, Any]], colours: dict[str, str]) -> list[dict[str, Any]]:
    """The whole range, and the upper end where the methods differ."""
    epochs = max(len(run["curve"]) for method in methods for run in method["runs"])
    best = max(run["curve"][-1] for method in methods for run in method["runs"])
    step = 0.05
    high = min(1.0, step * (int(best / step) + 1))
    return [
        _chart(methods, colours, _Frame(epochs, low, top), title)
        for low, top, title in (
            (0.0, 1.0, "All accuracies"),
            (high - 2 * step, high, "The upper end, larger"),
        )
    ]


def _chart(
    methods: Sequence[dict[str, Any]], colours: dict[str, str], frame: _Frame, title: str
) -> dict[str, Any]:
    curves = []
    for method in methods:
        by_epoch = list(zip(*(run["curve"] for run in method["runs"]), strict=True))
        lowest, highest = ([end(epoch) for epoch in by_epoch] for end in (min, max))
        back = frame.line(lowest).split()[::-1]
        curves.append(
            {
                "name": method["name"],
                "colour": colours[method["name"]],
                "mean": frame.line([mean(epoch) for epoch in by_epoch]),
                "band": " ".join([frame.line(highest), *back]),
            }
        )
    marks = [frame.low + (frame.high - frame.low) * part / 5 for part in range(6)]
    every = max(1, frame.epochs // 8)
    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "top": TOP,
        "right": WIDTH - RIGHT,
        "bottom": HEIGHT - BOTTOM,
        "curves": curves,
        "levels": [{"y": frame.y(mark), "text": f"{100 * mark:.0f} %"} for mark in marks],
        "epochs": [
            {"x": frame.x(epoch), "text": epoch} for epoch in range(1, frame.epochs + 1, every)
        ],
    }


def _cycles(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Cycles by layer and pass, as rows."""
    passes = list(dict.fromkeys(entry["pass"] for entry in entries))
    rows: dict[str, dict[str, int]] = {}
    for entry in entries:
        row = rows.setdefault(entry["layer"], dict.fromkeys(passes, 0))
        row[entry["pass"]] += entry["cycles"]
    return {
        "passes": passes,
        "rows": [
            {"layer": layer, "by": by, "total": sum(by.values())} for layer, by in rows.items()
        ],
        "most": max((sum(by.values()) for by in rows.values()), default=0),
    }
