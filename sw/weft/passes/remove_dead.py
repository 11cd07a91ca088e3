"""Removal of operations and constants whose results nobody reads."""

import dataclasses
from dataclasses import dataclass

from weft.ir import Graph
from weft.passes.base import Pass

__all__ = ["RemoveDead"]


@dataclass(frozen=True)
class RemoveDead(Pass):
    """Afterwards every operation contributes to an output; all inputs stay."""

    def apply(self, graph: Graph) -> Graph:
        needed = {*graph.inputs, *graph.outputs}
        kept = []
        for operation in reversed(graph.operations):
            if operation.output in needed:
                kept.append(operation)
                needed.update(operation.inputs)
        return dataclasses.replace(
            graph,
            operations=tuple(reversed(kept)),
            tensors=tuple(tensor for tensor in graph.tensors if tensor.name in needed),
        )
