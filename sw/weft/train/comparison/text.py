"""A comparison as Markdown."""

from collections.abc import Sequence
from typing import Any

from weft.train.comparison.protocol import answers

__all__ = ["markdown"]


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Tables of accuracies and of what each part adds, for results of ``compare``."""
    return "\n".join(line for result in results for line in _task(result))


def _task(result: dict[str, Any]) -> list[str]:
    train, validation, test = result["pictures"]
    seeds = len(result["methods"][0]["runs"])
    about = (
        f"**{result['text'][:1].upper()}{result['text'][1:]}**: {result['parameters']:,} "
        f"parameters; {train:,} pictures to train on, {validation:,} to choose by, {test:,} to "
        f"test; {result['epochs']} epochs of batches of {result['batch']}; {seeds} seeds."
    )
    lines = [
        about,
        "",
        "| method | test accuracy % | standard deviation | lowest to highest | chosen |",
        "|---|---:|---:|---:|---|",
    ]
    for method in result["methods"]:
        ends = [100 * run["curve"][-1] for run in method["runs"]]
        lines.append(
            f"| {method['name']} | {100 * method['mean']:.2f} | {100 * method['spread']:.2f} "
            f"| {min(ends):.2f} to {max(ends):.2f} | {method['schedule']} |"
        )
    lines += [
        "",
        "| question | difference, points (standard error) | answer |",
        "|---|---:|---|",
    ]
    for answer in answers(result["methods"]):
        error = "" if answer["error"] is None else f" ({answer['error']:.2f})"
        lines.append(
            f"| {answer['question']} | {answer['difference']:+.2f}{error} | {answer['answer']} |"
        )
    return [*lines, "", *_diagnoses(result["methods"])]


def _diagnoses(methods: Sequence[dict[str, Any]]) -> list[str]:
    """Angles of gradients and bytes of state, for those methods that have them."""
    known = [method for method in methods if "gradients" in method]
    if not known:
        return []
    heads = (
        "| method | start | start, forward unquantized | end | end, forward unquantized "
        "| bytes of weights | of biases | of compensations |"
    )
    lines = [
        heads,
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in known:
        lowest = (
            f"{min(entry[when][place] for entry in method['gradients']):.4f}"
            for when in ("start", "end")
            for place in (0, 1)
        )
        sizes = (f"{size:,}" for size in method["bytes"].values())
        lines.append(f"| {' | '.join((method['name'], *lowest, *sizes))} |")
    return [*lines, ""]
