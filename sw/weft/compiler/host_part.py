"""The cut between what the accelerator computes and what the host computes after it."""

import dataclasses

from weft.ir import Graph, HostOperation, Operation
from weft.program import HostStep

__all__ = ["split_host"]

COMMON = {"name", "inputs", "output", "source"}


def split_host(graph: Graph) -> tuple[Graph, tuple[HostStep, ...]]:
    """The accelerator's part of a graph, and the host's steps on its outputs.

    The part's outputs are those of the graph that the accelerator computes, and what the host
    reads. Host operations that no output needs are dropped.
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
    part = dataclasses.replace(
        graph,
        operations=tuple(each for each in graph.operations if each.output not in host),
        tensors=tuple(tensor for tensor in graph.tensors if tensor.name not in host),
        outputs=tuple(dict.fromkeys(wanted)),
    )
    steps = tuple(_step(each, graph) for each in host.values() if each.output in needed)
    return part, steps


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
