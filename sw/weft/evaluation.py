"""Top-1 accuracy of a classifier on the machine, beside that of the model's own framework."""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError
from weft.frontends.tflite_file import FILE_IDENTIFIER
from weft.host import dequantize, prepare
from weft.models import TFLITE_AT, ZIP_MAGIC
from weft.program import MAGIC, Port, Program
from weft.session import Session

__all__ = ["Evaluation", "Reference", "check_samples", "evaluate", "open_reference"]

Array = NDArray[Any]
BATCH = 16
"""Samples at a time: neither inputs nor outputs of a whole data set need to fit in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What :func:`evaluate` counted.

    Parameters
    ----------
    samples : int
    reference : str
        What computed the reference.
    reference_correct, machine_correct : int
        Samples whose largest output (the first, if several are equal) is the label.
    equal_predictions : int
        Samples for which both have the same largest output.
    equal_outputs : int
        Samples whose whole output tensor is equal in every bit.
    cycles : int or None
        Of all samples; None where the engine counts none.
    """

    samples: int
    reference: str
    reference_correct: int
    machine_correct: int
    equal_predictions: int
    equal_outputs: int
    cycles: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, shares of the samples included."""
        return {
            **dataclasses.asdict(self),
            "reference_accuracy": self.reference_correct / self.samples,
            "machine_accuracy": self.machine_correct / self.samples,
            "cycles_per_inference": None if self.cycles is None else self.cycles / self.samples,
        }


class Reference(ABC):
    """A model in its own framework.

    Parameters
    ----------
    port : Port
        The program's input.
    """

    name: str
    """For people: what computes."""
    dequantized: bool
    """Whether the machine's output is compared as float32 values instead of codes."""

    def __init__(self, port: Port) -> None:
        self.port = port

    @abstractmethod
    def run(self, samples: Array) -> Array:
        """Outputs (N, *shape) for int8 codes or float32 values (N, *shape)."""


class _Tflite(Reference):
    name = "TFLite's reference kernels"
    dequantized = False

    def __init__(self, port: Port, path: Path) -> None:
        super().__init__(port)
        from weft.frontends.tflite_interpreter import open_interpreter

        self._interpreter = open_interpreter(path.read_bytes(), purpose="the reference")
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()

    def run(self, samples: Array) -> Array:
        if self._input["dtype"] == np.float32:
            if samples.dtype != np.float32:
                raise InputError(f"input {self.port.name} of the model is float32: give float32")
        else:
            samples, _ = prepare(self.port, samples)
        outputs = []
        for sample in samples:
            # A model of a fixed batch gets the sample as often as it wants.
            batch = np.repeat(sample[None], self._input["shape"][0], axis=0)
            self._interpreter.set_tensor(self._input["index"], batch)
            self._interpreter.invoke()
            outputs.append(self._interpreter.get_tensor(self._output["index"])[0].copy())
        return np.stack(outputs)


class _Pytorch(Reference):
    name = "PyTorch"
    dequantized = True

    def __init__(self, port: Port, path: Path) -> None:
        super().__init__(port)
        from weft.frontends.pt2_file import load_pt2

        self._module = load_pt2(path)
        nodes = self._module.graph.nodes
        (source,) = (node for node in nodes if node.op == "placeholder")
        size = source.meta["val"].shape[0]
        self._batch = size if isinstance(size, int) else 1

    def run(self, samples: Array) -> Array:
        from weft.quantize.pt2e import torch

        if samples.dtype == np.int8:
            samples = dequantize(samples, self.port.scale, self.port.zero_point)
        outputs = []
        with torch.no_grad():
            for sample in samples:
                batch = np.repeat(sample[None], self._batch, axis=0)
                result = self._module(torch.from_numpy(batch))
                result = result[0] if isinstance(result, tuple | list) else result
                outputs.append(result[0].numpy())
        return np.stack(outputs)


def open_reference(path: str | os.PathLike[str], program: Program) -> Reference:
    """The model of a .tflite or .pt2 file in its own framework.

    Raises
    ------
    InputError
        If the file is a compiled Program, which has no reference, or the model has several inputs
        or outputs.
    MissingExtra
        If the framework is not installed.
    """
    path = Path(path)
    if len(program.inputs) != 1 or len(program.results) != 1:
        raise InputError(
            f"{path}: accuracy needs a model of one input and one output, this has "
            f"{len(program.inputs)} and {len(program.results)}"
        )
    with open(path, "rb") as file:
        start = file.read(len(MAGIC))
    if start[TFLITE_AT:] == FILE_IDENTIFIER:
        return _Tflite(program.inputs[0], path)
    if start.startswith(ZIP_MAGIC):
        return _Pytorch(program.inputs[0], path)
    raise InputError(
        f"{path}: a compiled program has no reference to compare with; give the .tflite or .pt2 "
        "model that it was compiled from"
    )


def check_samples(program: Program, data: Array, labels: Array, limit: int | None = None) -> None:
    """Refuse data that is not the program's, before anything runs; reads it batch by batch.

    Values after the first ``limit`` samples are not looked at.

    Raises
    ------
    InputError
        If the data has the wrong shape or type or holds NaN, or the labels are no integers, not as
        many as the samples or outside the classes.
    """
    port, result = program.inputs[0], program.result(program.results[0])
    shape = "x".join(map(str, port.shape))
    if data.shape[1:] != port.shape:
        raise InputError(
            f"the data must be Nx{shape}, the samples on the first axis, not "
            f"{'x'.join(map(str, data.shape)) or 'a scalar'}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise InputError(
            "the labels must be integers on one axis, one a sample, not "
            f"{labels.dtype} of shape {'x'.join(map(str, labels.shape)) or '()'}"
        )
    if len(labels) != len(data):
        raise InputError(f"there are {len(data)} samples and {len(labels)} labels")
    classes = int(np.prod(result.shape))
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise InputError(
            f"label {labels[wrong[0]]} of sample {wrong[0]} is outside the model's {classes} "
            f"classes, 0 to {classes - 1}"
        )
    data = data[:limit]
    for start in range(0, max(len(data), 1), BATCH):
        prepare(port, data[start : start + BATCH])


def evaluate(
    session: Session,
    reference: Reference,
    data: Array,
    labels: Array,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Run the machine and the reference on the same samples.

    Parameters
    ----------
    session : Session
    reference : Reference
        Of the same model.
    data : int8 or float32 array (N, *input shape)
        Codes, or values that are quantized with the model's scale; may be a memory map.
    labels : integer array (N,)
    limit : int, optional
        Take this many samples only.
    progress : function of the number of finished samples

    Raises
    ------
    InputError
        As :func:`check_samples`.
    ProgramFault
        If the machine stops with a fault.
    """
    check_samples(session.program, data, labels, limit)
    data, labels = data[:limit], labels[:limit]
    counts = dict.fromkeys(
        ("reference_correct", "machine_correct", "equal_predictions", "equal_outputs"), 0
    )
    cycles: int | None = None
    for start in range(0, len(data), BATCH):
        samples, wanted = (np.asarray(each[start : start + BATCH]) for each in (data, labels))
        made = session.run(samples, dequantize=reference.dequantized).reshape(len(samples), -1)
        if (spent := session.report["cycles"]) is not None:
            cycles = (cycles or 0) + spent
        expected = reference.run(samples).reshape(len(samples), -1)
        ours, theirs = made.argmax(axis=1), expected.argmax(axis=1)
        counts["machine_correct"] += int(np.count_nonzero(ours == wanted))
        counts["reference_correct"] += int(np.count_nonzero(theirs == wanted))
        counts["equal_predictions"] += int(np.count_nonzero(ours == theirs))
        counts["equal_outputs"] += int(np.count_nonzero((made == expected).all(axis=1)))
        progress(start + len(samples))
    return Evaluation(samples=len(data), reference=reference.name, cycles=cycles, **counts)
