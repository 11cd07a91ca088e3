"""Weights that fit fewer bits are marked so, for arrays that compute faster with them."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.ir import Conv2d, Graph
from weft.passes.base import Pass

__all__ = ["NarrowWeights", "narrowest_bits"]

WIDTHS = (2, 4, 8)


def narrowest_bits(weights: NDArray[np.int8]) -> int:
    """The smallest of 2, 4 and 8 bits that holds every weight in two's complement."""
    low, high = int(weights.min(initial=0)), int(weights.max(initial=0))
    return next(bits for bits in WIDTHS if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1))


@dataclass(frozen=True)
class NarrowWeights(Pass):
    """Every convolution's ``weight_bits`` is the smallest width that holds its weights.

    The values decide, not the type in the model's file: int8 files hold narrow weights too. Which
    of the array's modes a layer takes is for the kernels to choose.
    """

    def apply(self, graph: Graph) -> Graph:
        operations = tuple(
            dataclasses.replace(each, weight_bits=narrowest_bits(each.weights))
            if isinstance(each, Conv2d)
            else each
            for each in graph.operations
        )
        return dataclasses.replace(graph, operations=operations)
