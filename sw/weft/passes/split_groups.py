"""Grouped convolutions become what the engines compute: depthwise, or one group."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from weft.ir import Conv2d, Graph, Operation
from weft.passes.base import Pass

__all__ = ["SplitGroups"]


@dataclass(frozen=True)
class SplitGroups(Pass):
    """Afterwards every Conv2d has one group, or one filter for each of its input channels.

    The weights of other grouped convolutions (several channels a group, or several filters a
    channel) are spread over all input channels, with zeros where a filter does not look.
    """

    def apply(self, graph: Graph) -> Graph:
        operations = tuple(_rewrite(operation, graph) for operation in graph.operations)
        return dataclasses.replace(graph, operations=operations)


def _rewrite(operation: Operation, graph: Graph) -> Operation:
    if not isinstance(operation, Conv2d) or operation.groups == 1:
        return operation
    channels = graph.tensor(operation.inputs[0]).shape[2]
    filters, height, width, depth = operation.weights.shape
    if operation.groups == channels == filters:
        return operation
    weights = np.zeros((filters, height, width, channels), np.int8)
    for filter_ in range(filters):
        first = filter_ // (filters // operation.groups) * depth
        weights[filter_, :, :, first : first + depth] = operation.weights[filter_]
    return dataclasses.replace(operation, weights=weights, groups=1)
