"""From nothing to a compiled Program with its reference answers, kept for the next run."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weft.cli.output import Output
from weft.program import Program
from weft_hw import AcceleratorConfig
from weft_sim.cache import cache_directory, source_hash

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """What the RTL run needs, and what it is compared with.

    ``reference`` (N, 10) int8 are the answers of the independent integer evaluation of the
    converted PyTorch graph; ``images`` (N, 1, 8, 8) float32 and ``labels`` (N,) are the held-out
    digits.
    """

    program: Program
    images: np.ndarray
    labels: np.ndarray
    reference: np.ndarray
    accuracy_float: float
    accuracy_int8: float
    from_cache: bool


def prepare(config: AcceleratorConfig, output: Output, *, fresh: bool) -> Prepared:
    """Load the cached preparation, or train, quantize and compile (which imports torch)."""
    directory = _directory(config)
    if not fresh and (directory / "meta.json").is_file():
        output.say(f"[dim]network and program from {directory} (--fresh makes them anew)[/]")
        return _load(directory)
    prepared = _make(config, output)
    _save(prepared, directory)
    return prepared


def _directory(config: AcceleratorConfig) -> Path:
    """Changes with the configuration and with every source that shapes the program."""
    key = hashlib.sha256(f"{config.content_hash}{source_hash('weft')}".encode()).hexdigest()
    return cache_directory() / "demo" / key[:16]


def _make(config: AcceleratorConfig, output: Output) -> Prepared:
    from weft.demo.data import load_digits

    digits = load_digits()
    output.say(
        f"data: {len(digits.train_images)} digits to train on, {len(digits.test_images)} held out"
    )
    try:
        with output.stages() as stage:
            stage("importing torch", None)
            import torch

            from weft.compiler import compile_graph
            from weft.demo.training import accuracy, train
            from weft.frontends.pytorch import graph_from_torch
            from weft.quantize import quantize
            from weft.quantize.integer_reference import evaluate_integer
    except ImportError as error:
        from weft.errors import missing_extra

        raise missing_extra(str(error.name), "demo") from None
    with output.stages() as stage:
        stage("training", None)
        network = train(digits)
        test = torch.from_numpy(digits.test_images)
        with torch.no_grad():
            accuracy_float = accuracy(network(test).numpy(), digits.test_labels)
        output.say(f"training: float accuracy {accuracy_float:.2%}")
        stage("quantizing", None)
        calibration = torch.from_numpy(digits.train_images[:256])
        example = (calibration[:1],)
        converted = quantize(network, example, [(image[None],) for image in calibration])
        with torch.no_grad():
            scores = np.concatenate([converted(image[None]).numpy() for image in test])
        accuracy_int8 = accuracy(scores, digits.test_labels)
        output.say(f"quantized: int8 accuracy {accuracy_int8:.2%} (PyTorch's converted graph)")
        stage("independent integer reference", None)
        reference = evaluate_integer(converted, digits.test_images)
        stage("compiling", None)
        program = compile_graph(graph_from_torch(converted, name="digits"), config)
    output.say(
        f"compiled for {config.name}: {len(program.instructions):,} bytes of instructions, "
        f"{len(program.constants):,} bytes of constants"
    )
    return Prepared(
        program=program,
        images=digits.test_images,
        labels=digits.test_labels,
        reference=reference,
        accuracy_float=accuracy_float,
        accuracy_int8=accuracy_int8,
        from_cache=False,
    )


def _save(prepared: Prepared, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        target = Path(temporary) / "entry"
        target.mkdir()
        prepared.program.save(target / "program.weft")
        np.savez(
            target / "data.npz",
            images=prepared.images,
            labels=prepared.labels,
            reference=prepared.reference,
        )
        figures = {
            "accuracy_float": prepared.accuracy_float,
            "accuracy_int8": prepared.accuracy_int8,
        }
        (target / "meta.json").write_text(json.dumps(figures))
        if directory.exists():
            os.replace(directory, Path(temporary) / "old")
        os.replace(target, directory)


def _load(directory: Path) -> Prepared:
    figures = json.loads((directory / "meta.json").read_text())
    with np.load(directory / "data.npz") as data:
        arrays = {name: data[name] for name in ("images", "labels", "reference")}
    return Prepared(
        program=Program.load(directory / "program.weft"), **arrays, **figures, from_cache=True
    )
