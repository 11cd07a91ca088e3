"""`weft train`: train a PyTorch module in integers, with checkpoints."""

import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from weft.cli.files import read_array, write_text
from weft.cli.options import JsonOption, LatencyOption
from weft.cli.output import Output
from weft.errors import InputError, missing_extra

__all__ = ["load_factory", "train_command"]

INTERRUPTED = 130
CHECKPOINT, HISTORY, WEIGHTS = "checkpoint.weft", "history.json", "weights.pt"
SCHEDULES = ("cosine", "constant")


def load_factory(text: str) -> Any:
    """What ``FILE.py:NAME`` names: a module class, or a function that returns a module.

    Raises
    ------
    InputError
        If there is no such file or name, or running the file fails.
    """
    file, separator, name = text.rpartition(":")
    if not separator or not file.endswith(".py") or not name:
        raise InputError(f"{text}: give a file and what it defines, as in module.py:Network")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    found = getattr(loaded, name, None)
    if not callable(found):
        raise InputError(f"{path} defines no class or function {name}")
    return found


def train_command(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:NAME", help="A PyTorch module's class, or a function that makes one."
        ),
    ],
    data_path: Annotated[
        Path,
        typer.Option(
            "--data", metavar="FILE", help=".npy: samples (N, C, H, W), floats in [-1, 1] or int8."
        ),
    ],
    labels_path: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help=".npy: the class of each sample.")
    ],
    output_path: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="For checkpoint and weights.")
    ],
    held_out: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of the samples, the last ones, to evaluate with."),
    ] = 0.1,
    config: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The machine: a preset or a JSON file.")
    ] = "base16",
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="int8, compensated, clipped, octo or shared."),
    ] = "octo",
    exponents: Annotated[str, typer.Option(metavar="own|delayed", help="Of every tensor.")] = "own",
    state_bits: Annotated[int, typer.Option(metavar="16|32", help="Of weights and velocity.")] = 16,
    momentum: Annotated[float, typer.Option(min=0, max=0.999)] = 0.9,
    decay: Annotated[float, typer.Option(min=0, help="Weight decay.")] = 0.0,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 32,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate of the mean gradient.")] = 0.05,
    schedule: Annotated[str, typer.Option(metavar="cosine|constant", help="Of the rate.")] = (
        "cosine"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and rounding.")] = 0,
    engine: Annotated[
        str, typer.Option(metavar="fast|functional|rtl", help="What computes the steps.")
    ] = "fast",
    verify_every: Annotated[
        int, typer.Option(min=0, metavar="STEPS", help="Compare with another engine so often.")
    ] = 0,
    latency: LatencyOption = 20,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a PyTorch module in integers: forward, backward and update."""
    output = Output(as_json=as_json)
    if schedule not in SCHEDULES:
        raise InputError(f"--schedule {schedule}: choose one of {', '.join(SCHEDULES)}")
    checkpoint = output_path / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise InputError(f"{checkpoint} exists: go on with --resume, or give another --output")
    samples, labels = read_array(data_path), read_array(labels_path)
    train_count = _split(samples, labels, held_out, batch)
    try:
        import torch
    except ImportError as error:
        raise missing_extra("PyTorch", "torch", purpose="training") from error
    from weft import train

    torch.manual_seed(seed)
    module = load_factory(factory)()
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{factory} makes a {type(module).__name__}, not a torch.nn.Module")
    steps = epochs * (train_count // batch)
    update = None
    if method != "shared":
        update = train.MomentumUpdate(state_bits, momentum, decays=decay > 0)
    options: dict[str, Any] = {"latency": latency} if engine == "rtl" else {}
    with output.stages() as stage:
        stage(f"preparing {factory}", None)
        trainer = train.compile(
            module,
            torch.zeros(batch, *samples.shape[1:]),
            config,
            method=method,
            update=update,
            exponents=exponents,
            engine=engine,
            verify_every=verify_every,
            seed=seed,
            schedule=train.Schedule(
                train.cosine(rate, steps) if schedule == "cosine" else train.constant(rate),
                decay=decay,
                bits=train.falling_bits(steps),
            ),
            **options,
        )
        if resume:
            trainer.load(checkpoint)
    try:
        output_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output_path}: {error.strerror}") from None
    split = samples[:train_count], labels[:train_count]
    rest = samples[train_count:], labels[train_count:]
    history = _train(trainer, split, rest, epochs, output, output_path)
    if history is None:
        output.say(
            f"stopped after {trainer.number:,} of {steps:,} steps: run the same command with "
            "--resume to go on"
        )
        raise typer.Exit(INTERRUPTED)
    weights = output_path / WEIGHTS
    partial = weights.with_name(WEIGHTS + ".partial")
    torch.save(trainer.state_dict(), partial)
    os.replace(partial, weights)
    output.say(f"wrote {CHECKPOINT}, {WEIGHTS} and {HISTORY} to {output_path}")
    machine: Any = trainer.engine  # the fast engine has no cycles
    cycles = getattr(machine, "cycles", 0)
    if cycles:
        output.say(
            f"{machine.runs:,} steps on rtl: {cycles:,} cycles in {machine.wall_seconds:.1f} s, "
            f"{cycles / machine.wall_seconds / 1000:,.0f} kcycles/s"
        )
    output.result({"steps": trainer.number, "epochs": history, "cycles": cycles})


def _split(samples: NDArray[Any], labels: NDArray[Any], held_out: float, batch: int) -> int:
    """How many samples to train with."""
    if len(samples) != len(labels):
        raise InputError(f"{len(samples)} samples and {len(labels)} labels")
    count = len(samples) - round(held_out * len(samples))
    if count < batch:
        raise InputError(f"{count} samples to train with are less than one batch of {batch}")
    return count


@contextmanager
def _interruption() -> Iterator[list[bool]]:
    """A list that is not empty once the user has pressed Ctrl-C; a second time ends at once."""
    pressed: list[bool] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _train(
    trainer: Any,
    split: tuple[NDArray[Any], NDArray[Any]],
    rest: tuple[NDArray[Any], NDArray[Any]],
    epochs: int,
    output: Output,
    folder: Path,
) -> list[dict[str, Any]] | None:
    """Epoch by epoch, a checkpoint behind each; returns a line for each, or None if stopped."""
    steps = trainer.steps_of_epoch(len(split[0]))
    history = _read_history(folder / HISTORY, trainer.number // steps)
    with _interruption() as pressed, output.bar("", epochs * steps) as progress:
        for epoch in range(trainer.number // steps, epochs):
            reports: list[Any] = []
            correct = 0
            for report in trainer.epoch(*split):
                reports.append(report)
                correct += report.correct
                accuracy = correct / (len(reports) * trainer.batch)
                recent = np.mean([each.loss for each in reports[-20:]])
                text = f"epoch {epoch + 1}/{epochs}, loss {recent:.4f}, accuracy {accuracy:.2%}"
                progress(trainer.number, text)
                if pressed:
                    break
            trainer.save(folder / CHECKPOINT)
            if pressed and trainer.number < epochs * steps:
                return None
            line = {
                "epoch": epoch + 1,
                "steps": trainer.number,
                "loss": float(np.mean([each.loss for each in reports])),
                "accuracy": accuracy,
                "saturations": sum(each.saturations for each in reports),
            }
            text = f"epoch {epoch + 1}: loss {line['loss']:.4f}, accuracy {accuracy:.2%}"
            if len(rest[0]):
                found = trainer.evaluate(*rest)
                line |= {"held_out_loss": found.loss, "held_out_accuracy": found.accuracy}
                text += f"; held out {found.loss:.4f}, {found.accuracy:.2%}"
            output.say(f"{text}; {line['saturations']:,} saturated")
            history.append(line)
            write_text(folder / HISTORY, json.dumps(history, indent=2))
    return history


def _read_history(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The lines of the epochs that a resumed run has behind it."""
    if not epochs or not path.is_file():
        return []
    try:
        lines: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}): remove it") from None
    return lines[:epochs]
