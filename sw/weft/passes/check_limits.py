"""Refusal of what the machine's arithmetic or descriptors cannot express, layer by layer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.errors import UnsupportedModel
from weft.ir import (
    AveragePool2d,
    Conv2d,
    Graph,
    MaxPool2d,
    Multiply,
    Operation,
    Pad,
    Rescale,
)
from weft.passes.base import Pass
from weft_hw.instructions import Rounding

__all__ = ["CheckLimits"]

Refuse = Callable[[str], None]

LARGEST_SIDE = 4095  # the coordinates' extents have 12 bits
LARGEST_STEP = 127  # and their steps 8, signed
LARGEST_PADDING = 4096  # and their origins 13, signed
LARGEST_SUM = (1 << 31) - 1
LARGEST_POOL = 1 << 22  # elements of one window whose sum of 9-bit values fits 32 bits


@dataclass(frozen=True)
class CheckLimits(Pass):
    """The graph is unchanged; every operation can be expressed as instructions, memory apart.

    Raises
    ------
    UnsupportedModel
        For sizes beyond the descriptors' fields and for sums that could
        leave 32 bits; the message names the layer.
    """

    def apply(self, graph: Graph) -> Graph:
        for tensor in graph.tensors:
            if max(tensor.shape[:2]) > LARGEST_SIDE:
                raise UnsupportedModel(
                    f"tensor {tensor.name} is {tensor.shape[0]} x {tensor.shape[1]} pixels; "
                    f"a side may be at most {LARGEST_SIDE}"
                )
        for operation in graph.operations:
            _check(operation, graph)
        return graph


def _left_shift(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """The power of two by which a two-step rounding multiplies first, as TFLite does."""
    return np.exp2(np.maximum(np.frexp(ratios)[1], 0))


def _check_shift(
    operation: Conv2d | Rescale | Multiply, largest: NDArray[np.float64], refuse: Refuse
) -> None:
    if operation.rounding == Rounding.TWO_STEP and largest.max() > LARGEST_SUM:
        refuse(
            "its inputs' scale is so much larger than its output's that values shifted to the "
            "output's scale could leave 32 bits; quantize the output more coarsely"
        )


def _check(operation: Operation, graph: Graph) -> None:
    def refuse(text: str) -> None:
        source = f" ({operation.source})" if operation.source else ""
        raise UnsupportedModel(f"{operation.name}{source}: {text}")

    if getattr(operation, "rounding", None) == Rounding.STOCHASTIC:
        refuse("stochastic rounding is not supported")
    if isinstance(operation, Conv2d):
        if max(operation.dilation) > LARGEST_STEP:
            refuse(f"dilation {operation.dilation}: at most {LARGEST_STEP} is supported")
        zero = graph.tensor(operation.inputs[0]).zero_point
        largest = max(127 - zero, zero + 128)
        sums = np.abs(operation.weights.astype(np.int64)).sum(axis=(1, 2, 3)) * largest
        if operation.bias is not None:
            sums = sums + np.abs(operation.bias.astype(np.int64))
        if sums.max() > LARGEST_SUM:
            refuse(f"the sum of channel {int(sums.argmax())} could leave 32 bits")
        source, result = graph.tensor(operation.inputs[0]), graph.scaled(operation)
        ratios = source.scale * operation.weight_scales / result.scale
        _check_shift(operation, sums * _left_shift(ratios), refuse)
    if isinstance(operation, Rescale | Multiply):
        tensors = [graph.tensor(name) for name in operation.inputs]
        largest = math.prod(max(127 - each.zero_point, each.zero_point + 128) for each in tensors)
        ratio = math.prod(each.scale for each in tensors) / graph.scaled(operation).scale
        _check_shift(operation, largest * _left_shift(np.array([ratio])), refuse)
    if isinstance(operation, Conv2d | MaxPool2d | AveragePool2d):
        if max(operation.stride) > LARGEST_STEP:
            refuse(f"stride {operation.stride}: at most {LARGEST_STEP} is supported")
    if isinstance(operation, Conv2d | MaxPool2d | AveragePool2d | Pad):
        if max(max(axis) for axis in operation.padding) > LARGEST_PADDING:
            refuse(f"padding {operation.padding}: at most {LARGEST_PADDING} is supported")
    if isinstance(operation, AveragePool2d) and math.prod(operation.kernel) > LARGEST_POOL:
        refuse(f"kernel {operation.kernel}: the sum could leave 32 bits")
