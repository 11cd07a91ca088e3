"""A border that only convolutions read becomes their own padding."""

import dataclasses
from dataclasses import dataclass

from weft.ir import Conv2d, Graph, Operation, Pad
from weft.passes.base import Pass

__all__ = ["FusePadding"]


@dataclass(frozen=True)
class FusePadding(Pass):
    """Afterwards no Pad is left whose result is read by convolutions alone."""

    def apply(self, graph: Graph) -> Graph:
        fused: dict[str, Pad] = {}
        operations: list[Operation] = []
        for operation in graph.operations:
            if isinstance(operation, Pad) and operation.output not in graph.outputs:
                readers = list(graph.consumers(operation.output))
                if readers and all(isinstance(reader, Conv2d) for reader in readers):
                    fused[operation.output] = operation
                    continue
            if isinstance(operation, Conv2d) and operation.inputs[0] in fused:
                border = fused[operation.inputs[0]]
                (top, bottom), (left, right) = border.padding
                (own_top, own_bottom), (own_left, own_right) = operation.padding
                operation = dataclasses.replace(
                    operation,
                    inputs=border.inputs,
                    padding=(
                        (top + own_top, bottom + own_bottom),
                        (left + own_left, right + own_right),
                    ),
                )
            operations.append(operation)
        tensors = tuple(tensor for tensor in graph.tensors if tensor.name not in fused)
        return dataclasses.replace(graph, tensors=tensors, operations=tuple(operations))
