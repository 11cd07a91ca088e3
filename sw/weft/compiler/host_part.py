"""The cut between what the accelerator computes and what the host does before and after it."""

import dataclasses
from dataclasses import dataclass

from weft.ir import Graph, HostOperation, Operation, Tensor, Transpose
from weft.program import HostStep

__all__ = ["HostPart", "View", "split_host"]

COMMON = {"name", "inputs", "output", "source"}


@dataclass(frozen=True)
class View:
    """An input or output as the user has it.

    Parameters
    ----------
    tensor : Tensor
    order : str
        The axes of the accelerator's image in the tensor's order.
    source : str
        The transposition in the model that this order stands for; empty if there is none.
    """

    tensor: Tensor
    order: str
    source: str = ""


@dataclass(frozen=True)
class HostPart:
    """A graph without what the host does: its inputs and outputs by place, and the host's steps."""

    graph: Graph
    inputs: tuple[View, ...]
    outputs: tuple[View, ...]
    steps: tuple[HostStep, ...]


def split_host(graph: Graph) -> HostPart:
    """The accelerator's part of a graph, and the host's.

    The part's outputs are those of the graph that the accelerator computes, and what the host
    reads. Host operations that no output needs are dropped. The host transposes an input whose
    only reader does so, and what only outputs and host operations read.
    """
    host = {
        operation.output: operation
        for operation in graph.operations
        if isinstance(operation, HostOperation)
    }
    needed = set(graph.outputs)
    for operation in reversed(host.values()):
        if operation.output in needed:
            needed.update(operation.inputs)
    wanted = [name for name in graph.outputs if name not in host]
    for operation in host.values():
        if operation.output in needed:
            wanted += [name for name in operation.inputs if name not in host]
    before = _before(graph)
    after = _after(graph, set(wanted), {each.output for each in before.values()})
    inputs = [_input(name, before.get(name), graph) for name in graph.inputs]
    outputs = [_output(name, after.get(name), graph) for name in dict.fromkeys(wanted)]
    gone = {*host, *after, *(each.output for each in before.values())}
    unknown = {*host, *after, *before}
    part = dataclasses.replace(
        graph,
        operations=tuple(each for each in graph.operations if each.output not in gone),
        tensors=tuple(tensor for tensor in graph.tensors if tensor.name not in unknown),
        inputs=tuple(name for name, _ in inputs),
        outputs=tuple(name for name, _ in outputs),
    )
    steps = tuple(_step(each, graph) for each in host.values() if each.output in needed)
    views = [tuple(view for _, view in ports) for ports in (inputs, outputs)]
    return HostPart(part, views[0], views[1], steps)


def _before(graph: Graph) -> dict[str, Transpose]:
    """The transpositions of inputs, by the input's name."""
    found = {}
    for name in graph.inputs:
        readers = list(graph.consumers(name))
        if len(readers) == 1 and _moves(readers[0]) and name not in graph.outputs:
            assert isinstance(readers[0], Transpose)
            found[name] = readers[0]
    return found


def _after(graph: Graph, wanted: set[str], taken: set[str]) -> dict[str, Transpose]:
    """The transpositions that give outputs, by the result's name."""
    return {
        operation.output: operation
        for operation in graph.operations
        if isinstance(operation, Transpose)
        and _moves(operation)
        and operation.output in wanted - taken
        and all(isinstance(each, HostOperation) for each in graph.consumers(operation.output))
    }


def _moves(operation: Operation) -> bool:
    return isinstance(operation, Transpose) and operation.permutation != (0, 1, 2)


def _input(name: str, transpose: Transpose | None, graph: Graph) -> tuple[str, View]:
    """The part's input, and what the user gives."""
    tensor = graph.tensor(name)
    if transpose is None:
        return name, View(tensor, graph.layout)
    places = sorted(range(3), key=lambda axis: transpose.permutation[axis])
    order = "".join("HWC"[place] for place in places)
    return transpose.output, View(tensor, order, transpose.source)


def _output(name: str, transpose: Transpose | None, graph: Graph) -> tuple[str, View]:
    """The part's output, and what the user gets."""
    tensor = graph.tensor(name)
    if transpose is None:
        return name, View(tensor, graph.layout)
    return transpose.inputs[0], View(tensor, transpose.order, transpose.source)


def _step(operation: Operation, graph: Graph) -> HostStep:
    result = graph.tensor(operation.output)
    fields = (field.name for field in dataclasses.fields(operation) if field.name not in COMMON)
    return HostStep(
        name=result.name,
        kind=operation.kind,
        source=operation.source,
        inputs=operation.inputs,
        shape=result.shape,
        scale=result.scale,
        zero_point=result.zero_point,
        dtype=result.dtype,
        parameters={name: float(getattr(operation, name)) for name in fields},
    )
