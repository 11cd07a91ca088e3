"""The architectural state of the machine as NumPy arrays, and scratch space to compute in."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES, SCALAR_REGISTER_BITS

__all__ = ["FILL_BYTES", "Memories", "Scratch"]

FILL_BYTES = 512  # twice the widest left row: 64 array rows, four weights a byte
"""Bytes behind the activation scratchpad from which reads that do not take place get their fill:
two of the widest accesses, so that one lies inside them at any phase."""


class Memories:
    """DRAM and the on-chip memories.

    Attributes
    ----------
    dram : uint8 array
    activation, weight : int8 arrays
        The scratchpads; the activations have ``FILL_BYTES`` more, which belong to the simulator.
    accumulator : int32 array (rows + 1, columns)
        The last row is the simulator's own, for fills.
    parameter : uint8 array
        The parameter memory's address space.
    bias, multiplier, exponent : arrays (parameter rows, columns)
        Views of ``parameter``: int32, uint32, int8.
    lookup : int8 array (tables, entries)
    scalars : list of int
        The scalar registers, in the int32 range.
    random_seed, random_step : int
        The registers of stochastic rounding.
    """

    def __init__(self, config: AcceleratorConfig, memory_bytes: int) -> None:
        self.config = config
        self.random_seed, self.random_step = 0, 0
        self.scalars = [0] * (1 << SCALAR_REGISTER_BITS)
        self.lookup: NDArray[np.int8] = np.zeros((LOOKUP_TABLES, LOOKUP_ENTRIES), np.int8)
        self.dram: NDArray[np.uint8] = np.zeros(memory_bytes, np.uint8)
        self.activation: NDArray[np.int8] = np.zeros(config.activation_bytes + FILL_BYTES, np.int8)
        self.weight: NDArray[np.int8] = np.zeros(config.weight_bytes, np.int8)
        rows, columns = config.accumulator_total_rows, config.columns
        self.accumulator: NDArray[np.int32] = np.zeros((rows + 1, columns), np.int32)
        self.parameter: NDArray[np.uint8] = np.zeros(config.parameter_bytes, np.uint8)
        self.bias: NDArray[np.int32] = self._parameters(np.int32, 0)
        self.multiplier: NDArray[np.uint32] = self._parameters(np.uint32, 4)
        self.exponent: NDArray[np.int8] = self._parameters(np.int8, 8)

    def _parameters(self, kind: type[np.generic], bytes_before: int) -> NDArray[Any]:
        """One value a channel of every parameter row, behind that many bytes a channel."""
        config = self.config
        return np.ndarray(
            (config.parameter_rows, config.columns),
            kind,
            buffer=self.parameter,
            offset=bytes_before * config.columns,
            strides=(config.parameter_row_pitch, np.dtype(kind).itemsize),
        )


class Scratch:
    """Buffers that instructions use one after the other, and index arrays that they share.

    All that will use a buffer reserve it first, so that it has its final size when it is made.
    (Fresh pages from the operating system cost more than the arithmetic on them.)

    Attributes
    ----------
    indexes : dict
        See :class:`weft_sim.functional.nests.ByteGather`.
    """

    def __init__(self) -> None:
        self.indexes: dict[bytes, NDArray[np.intp]] = {}
        self._sizes: dict[str, int] = {}
        self._buffers: dict[str, NDArray[Any]] = {}

    def reserve(self, name: str, size: int) -> None:
        """Announce that ``size`` elements of the buffer of that name will be used."""
        self._sizes[name] = max(size, self._sizes.get(name, 0))

    def get(self, name: str, kind: type[np.generic], shape: Sequence[int]) -> NDArray[Any]:
        """The first elements of the buffer, in that shape; their values are undefined."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = np.empty(max(size, self._sizes.get(name, 0)), kind)
        return buffer[:size].reshape(shape)
