"""A .tflite model on the machine beside TFLite's own interpreter, tensor by tensor."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError
from weft.frontends.tflite_file import FILE_IDENTIFIER, read_tflite
from weft.frontends.tflite_interpreter import open_interpreter
from weft.host import prepare
from weft.ir import Graph
from weft.program import Program
from weft_hw.config import AcceleratorConfig

__all__ = ["TensorComparison", "compare_tflite"]

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class TensorComparison:
    """One tensor of the model, over all samples.

    Parameters
    ----------
    tensor : str
    operation : str
        Name of the operation that computes it.
    kind : str
        What that is.
    shape : tuple of int
        Of one sample.
    elements : int
        Compared, over all samples.
    different : int
    largest : float
        Largest difference: codes for int8, values for float32.
    """

    tensor: str
    operation: str
    kind: str
    shape: tuple[int, ...]
    elements: int
    different: int
    largest: float


def compare_tflite(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Any],
    config: AcceleratorConfig,
    engine: str = "functional",
    **options: Any,
) -> list[TensorComparison]:
    """Run a model with every tensor as an output, and the interpreter's reference kernels.

    Parameters
    ----------
    path : path
        A .tflite file.
    inputs : mapping of name to array
        As :meth:`weft.Session.run` takes them.
    config : AcceleratorConfig
    engine, options
        As for :class:`weft.Session`.

    Returns
    -------
    list of TensorComparison
        In the order of the model's operations.

    Raises
    ------
    InputError
        If the file is no .tflite file, or an input is missing or has the wrong shape or type.
    MissingExtra
        If the interpreter is not installed.
    """
    from weft.compiler import compile_graph
    from weft.frontends.tflite import graph_from_tflite_bytes
    from weft.session import Session

    data = Path(path).read_bytes()
    if data[4:8] != FILE_IDENTIFIER:
        raise InputError(f"{path}: only .tflite models have a reference to compare with")
    graph = graph_from_tflite_bytes(data, name=Path(path).stem)
    indices = {record.name: record.index for record in read_tflite(data, graph.name).tensors}
    compared = [each for each in graph.operations if each.output in indices]
    every = tuple(dict.fromkeys([*(each.output for each in compared), *graph.outputs]))
    program = compile_graph(dataclasses.replace(graph, outputs=every), config)
    missing = [port.name for port in program.inputs if port.name not in inputs]
    if missing:
        raise InputError(f"input {missing[0]} is missing")
    samples = {
        port.name: prepare(port, inputs[port.name])[0].reshape(-1, *port.shape)
        for port in program.inputs
    }
    with Session(program, engine, **options) as session:
        made = session.run(samples)
    made = made if isinstance(made, dict) else {every[0]: made}
    expected = _reference(data, graph, program, samples, inputs, [indices[n] for n in every])
    rows = []
    for operation in compared:
        ours = made[operation.output].astype(np.float64)
        theirs = expected[indices[operation.output]].astype(np.float64)
        away = np.abs(ours - theirs)
        rows.append(
            TensorComparison(
                tensor=operation.output,
                operation=operation.name,
                kind=operation.kind,
                shape=ours.shape[1:],
                elements=ours.size,
                different=int(np.count_nonzero(away)),
                largest=float(away.max(initial=0.0)),
            )
        )
    return rows


def _reference(
    data: bytes,
    graph: Graph,
    program: Program,
    samples: dict[str, Array],
    inputs: Mapping[str, Any],
    indices: list[int],
) -> dict[int, Array]:
    """Tensors by file index, samples on the first axis."""
    interpreter = open_interpreter(data, purpose="the comparison", every_tensor=True)
    details = interpreter.get_input_details()
    found: dict[int, list[Array]] = {index: [] for index in indices}
    for number in range(len(samples[program.inputs[0].name])):
        for port, detail in zip(program.inputs, details, strict=True):
            sample = samples[port.name][number]
            if detail["dtype"] == np.float32:
                values = np.asarray(inputs[port.name])
                if values.dtype != np.float32:
                    raise InputError(f"input {port.name} of the model is float32: give float32")
                sample = values.reshape(-1, *port.shape)[number]
            # A model of a fixed batch gets the sample as often as it wants.
            batch = np.broadcast_to(sample, (detail["shape"][0], *sample.shape))
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(batch))
        interpreter.invoke()
        for index in indices:
            found[index].append(interpreter.get_tensor(index)[0].copy())
    return {index: np.stack(values) for index, values in found.items()}
