"""`weft bench train`: methods of training compared, as a table, JSON, Markdown and a page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from weft.cli.files import check_writable, write_text
from weft.cli.options import JsonOption
from weft.cli.output import Output
from weft.errors import InputError, missing_extra

__all__ = ["train"]

BEGIN, END = "<!-- begin: weft bench train -->", "<!-- end: weft bench train -->"


def train(
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Data and network; repeatable.", metavar="digits|pictures"),
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Only these; repeatable.", metavar="NAME")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Tested runs of each method.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of every run.")] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write the results, behind each method.", metavar="FILE.json"),
    ] = None,
    saved: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Show these results; train nothing.", metavar="FILE.json"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page.", metavar="FILE.html")
    ] = None,
    steps: Annotated[
        list[Path] | None,
        typer.Option(
            "--cycles",
            help="For the page: cycles of a step, from `weft bench train-step --json`.",
            metavar="FILE.json",
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", help="Put the tables between the marks of a page.", metavar="FILE.md"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of FP32, INT8, Octo and its parts, and shared exponents: same start, data, trials.

    The learning rate of each method is the best of three on validation data.
    """
    output = Output(as_json=as_json)
    for option, path, ending in (
        ("--save", save, ".json"),
        ("--report", report, ".html"),
        ("--table", table, ".md"),
    ):
        if path is not None:
            check_writable(option, path, (ending,))
    try:
        import torch  # noqa: F401  (only to name the extra that may be missing)
    except ImportError:
        raise missing_extra("PyTorch", "torch", purpose="training") from None
    if table is not None:
        _marked(table)
    results = _read(saved) if saved else _measure(output, tasks, methods, seeds, epochs, save)
    for path in steps or ():
        _add_cycles(results, path)
    from weft.train.comparison.page import comparison_page
    from weft.train.comparison.protocol import answers
    from weft.train.comparison.text import markdown

    for result in results:
        _show(output, result, answers(result["methods"]))
    if report is not None:
        write_text(report, comparison_page(results))
    if table is not None:
        before, after = _marked(table)
        write_text(table, f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}")
    output.result({"results": results})


def _marked(path: Path) -> tuple[str, str]:
    """A page before and behind its marks."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--table {path}: cannot be read: {error.strerror}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"--table {path}: no lines {BEGIN} and {END} to write between")
    return before, after


def _read(paths: list[Path]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for path in paths:
        try:
            results += json.loads(path.read_text(encoding="utf-8"))["results"]
        except OSError as error:
            raise InputError(f"--from {path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"--from {path}: not a file that --save has written") from None
    return results


def _add_cycles(results: list[dict[str, Any]], path: Path) -> None:
    """To the task whose network the step is of."""
    from weft.train.comparison.page import TASK_OF_NETWORK, cycles_by_pass

    try:
        step = json.loads(path.read_text(encoding="utf-8"))
        task, cycles = TASK_OF_NETWORK[step["network"]], cycles_by_pass(step["operations"])
        words = f"{step['method']}, {step['exponents']} exponents, batch {step['batch']}"
    except OSError as error:
        raise InputError(f"--cycles {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"--cycles {path}: not what `weft bench train-step --json` prints for a network"
        ) from None
    for result in results:
        if result["task"] == task:
            result["cycles"] = cycles
            result["cycles_of"] = f"{step['config']}, {words}: {step['cycles']:,} cycles in all"


def _measure(
    output: Output,
    names: list[str] | None,
    methods: list[str] | None,
    seeds: int | None,
    epochs: int | None,
    save: Path | None,
) -> list[dict[str, Any]]:
    from weft.train.comparison.protocol import TASKS, compare, runs_of

    results: list[dict[str, Any]] = []
    for name in names or TASKS:
        if name not in TASKS:
            raise InputError(f"--task {name}: choose one of {', '.join(TASKS)}")
        task = TASKS[name]
        for method in methods or ():
            if method not in task.contenders:
                known = ", ".join(task.contenders)
                raise InputError(f"--method {method!r}: for {name}, choose of {known}")
        task = replace(
            task,
            contenders=tuple(methods or task.contenders),
            seeds=seeds or task.seeds,
            epochs=epochs or task.epochs,
            tuning_epochs=epochs or task.tuning_epochs,
        )

        def write(result: dict[str, Any]) -> None:
            if save is not None:
                write_text(save, json.dumps({"results": [*results, result]}, indent=1))

        with output.bar(name, runs_of(task)) as finished:
            results.append(compare(task, finished, write))
    return results


def _show(output: Output, result: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    train, validation, test = result["pictures"]
    output.say(
        f"\n{result['text']}: {result['parameters']:,} parameters, {train:,} pictures to train on, "
        f"{validation:,} to choose by, {test:,} to test; {result['epochs']} epochs of batches of "
        f"{result['batch']}"
    )
    table = Table("method", "accuracy %", "spread", "lowest", "highest", "chosen", "s / run")
    for method in result["methods"]:
        ends = [100 * run["curve"][-1] for run in method["runs"]]
        table.add_row(
            method["name"],
            f"{100 * method['mean']:.2f}",
            f"{100 * method['spread']:.2f}",
            f"{min(ends):.2f}",
            f"{max(ends):.2f}",
            method["schedule"],
            f"{method['seconds']:.1f}",
        )
    output.console.print(table)
    for answer in answers:
        error = "" if answer["error"] is None else f" +- {answer['error']:.2f}"
        output.say(
            f"{answer['question']} {answer['answer']} ({answer['difference']:+.2f}{error} points)"
        )
