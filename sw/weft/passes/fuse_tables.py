"""A function of one code becomes the table behind the operation that computes the code."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from weft.ir import Graph, Lookup, Operation, Table
from weft.passes.base import Pass

__all__ = ["FuseTables"]


@dataclass(frozen=True)
class FuseTables(Pass):
    """Afterwards a Lookup reads only what others read too, or what copies and lookups compute."""

    def apply(self, graph: Graph) -> Graph:
        lookups = {
            operation.inputs[0]: operation
            for operation in graph.operations
            if isinstance(operation, Lookup) and _alone(graph, operation.inputs[0])
        }
        fused: set[str] = set()
        operations: list[Operation] = []
        for operation in graph.operations:
            if isinstance(operation, Lookup) and operation.inputs[0] in fused:
                continue
            lookup = lookups.get(operation.output)
            if lookup is not None and getattr(operation, "table", operation) is None:
                between = graph.tensor(operation.output)
                fused.add(between.name)
                table = Table(
                    codes=lookup.codes, scale=between.scale, zero_point=between.zero_point
                )
                changes: dict[str, Any] = {"output": lookup.output, "table": table}
                operation = dataclasses.replace(operation, **changes)
            operations.append(operation)
        tensors = tuple(tensor for tensor in graph.tensors if tensor.name not in fused)
        return dataclasses.replace(graph, tensors=tensors, operations=tuple(operations))


def _alone(graph: Graph, name: str) -> bool:
    """Whether one operation reads a tensor, and nobody else."""
    return name not in graph.outputs and len([*graph.consumers(name)]) == 1
