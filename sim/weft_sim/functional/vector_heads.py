"""Heads of VECTOR: what each reduces operand A, or A and B, to before scaling."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import Head
from weft_sim.functional.memories import FILL_BYTES, Memories, Scratch
from weft_sim.functional.nests import Addresses, ByteGather, strided
from weft_sim.functional.vector_nest import VectorNest, space_of
from weft_sim.race_check import Space

__all__ = ["VectorHead", "make_head", "operand_view"]

Int32Array = NDArray[np.int32]
INT8, INT32 = np.iinfo(np.int8), np.iinfo(np.int32)

# Window loops outermost: a reduction then runs over whole, contiguous images.
WINDOW_FIRST = (4, 5, 0, 1, 2, 3)


class VectorHead(Protocol):
    """A prepared reduction."""

    def read(self, out: Int32Array) -> None:
        """Put the reduction into ``out``, of shape (four outer loops, columns)."""
        ...


def operand_view(
    memories: Memories, space: Space, address: int, strides: Sequence[int], shape: Sequence[int]
) -> NDArray[Any]:
    """The vectors of an operand, or of the results, without a copy."""
    *outer, columns = shape
    if space is not Space.ACCUMULATOR:
        scratchpad = memories.weight if space is Space.WEIGHT else memories.activation
        return strided(scratchpad, address, strides, outer, columns)
    steps = [columns * stride for stride in strides]
    return strided(memories.accumulator.reshape(-1), address * columns, steps, outer, columns)


def make_head(nest: VectorNest, memories: Memories, scratch: Scratch) -> VectorHead:
    """The head of an instruction."""
    if nest.dot:
        return _Dot(nest, memories, scratch)
    index = nest.instruction.head is Head.INDEX_OF_MAXIMUM
    if nest.exists is None and nest.counts[4:] == (1, 1) and not index:
        return _Plain(nest, memories)
    return _Window(nest, memories, scratch)


class _Plain:
    """Operand A without a window and without bounds."""

    def __init__(self, nest: VectorNest, memories: Memories) -> None:
        instruction = nest.instruction
        shape = (*nest.outer, nest.config.columns)
        address, strides = instruction.a_address, instruction.a_strides
        self._a = operand_view(memories, space_of(nest.a_wide), address, strides, shape)
        self._zero_point = 0 if nest.a_wide else instruction.a_zero_point

    def read(self, out: Int32Array) -> None:
        """Put ``A - a_zero_point`` into ``out``."""
        np.copyto(out, self._a)
        if self._zero_point:
            np.subtract(out, np.int32(self._zero_point), out=out)


class _Window:
    """The sum or the maximum of operand A over the window loops, or the number of the maximum.

    Elements that do not exist are read as the zero point (sum) or the least value (maximum), so
    that they change nothing; only where a maximum has no element at all is the result replaced.
    """

    def __init__(self, nest: VectorNest, memories: Memories, scratch: Scratch) -> None:
        instruction = nest.instruction
        self._memories, self._scratch = memories, scratch
        self._index = instruction.head is Head.INDEX_OF_MAXIMUM
        self._maximum = self._index or instruction.head is Head.MAXIMUM
        self._wide = nest.a_wide
        self._zero_point = 0 if nest.a_wide else instruction.a_zero_point
        a = np.broadcast_to(nest.a, nest.counts).transpose(WINDOW_FIRST)
        exists = None
        if nest.exists is not None:
            exists = np.broadcast_to(nest.exists, nest.counts).transpose(WINDOW_FIRST)
        self._elements = nest.counts[4] * nest.counts[5]
        self._length = a.size // self._elements * nest.config.columns
        self._columns = nest.config.columns
        self._exists: NDArray[np.bool_] | None = None
        if self._index and exists is not None:
            self._exists = exists.reshape(self._elements, -1, 1)
        self._empty: NDArray[np.bool_] | None = None
        if self._maximum and not self._index and exists is not None:
            empty: NDArray[np.bool_] = ~np.any(exists, axis=(0, 1))
            self._empty = empty if empty.any() else None
        if nest.a_wide:
            rows = a if exists is None else np.where(exists, a, len(memories.accumulator) - 1)
            self._rows: Addresses = np.ascontiguousarray(rows, np.intp).ravel()
            scratch.reserve("elements", a.size * nest.config.columns)
        else:
            scratch.reserve("bytes", a.size * nest.config.columns)
            self._gather = ByteGather(
                memories.activation,
                a,
                exists,
                nest.config.columns,
                fill_bytes=FILL_BYTES,
                pool=scratch.indexes,
            )

    def read(self, out: Int32Array) -> None:
        """Put the reduction into ``out``."""
        shape = (self._elements, self._length)
        if self._wide:
            accumulator = self._memories.accumulator
            accumulator[-1] = INT32.min if self._maximum else 0
            elements = self._scratch.get("elements", np.int32, shape)
            rows = elements.reshape(-1, accumulator.shape[1])
            accumulator.take(self._rows, axis=0, out=rows, mode="clip")
        else:
            elements = self._scratch.get("bytes", np.int8, shape)
            fill = INT8.min if self._maximum else self._zero_point
            self._gather.read(self._gather.target(elements), fill)
        if self._index:
            out[...] = self._first_maximum(elements).reshape(out.shape)
            return
        operation = np.maximum if self._maximum else np.add
        flat = out.reshape(self._length)
        operation.reduce(elements, axis=0, dtype=np.int32, out=flat)
        if self._zero_point:
            count = 1 if self._maximum else self._elements
            flat -= np.int32(count * self._zero_point)
        if self._empty is not None:
            out[self._empty] = INT32.min

    def _first_maximum(self, elements: NDArray[Any]) -> NDArray[np.intp]:
        """For each lane of each vector; an element that does not exist is none, 0 if all are."""
        equal = elements == np.maximum.reduce(elements, axis=0)
        if self._exists is not None:
            equal = equal.reshape(self._elements, -1, self._columns) & self._exists
        numbers: NDArray[np.intp] = np.argmax(equal, axis=0)
        return numbers


class _Dot:
    """The sum of products of operands A and B over the window loops.

    An A that does not exist is read as its zero point, so that its product is zero whatever B is.
    Along loops that do not move B, its elements are read once.
    """

    def __init__(self, nest: VectorNest, memories: Memories, scratch: Scratch) -> None:
        instruction, columns = nest.instruction, nest.config.columns
        self._scratch = scratch
        self._zero_points = instruction.a_zero_point, np.int32(instruction.b_zero_point)
        counts = nest.counts
        self._shape = (counts[4], counts[5], *nest.outer, columns)
        a = np.broadcast_to(nest.a, counts).transpose(WINDOW_FIRST)
        exists = None
        if nest.exists is not None:
            exists = np.broadcast_to(nest.exists, counts).transpose(WINDOW_FIRST)
        self._a = ByteGather(
            memories.activation,
            a,
            exists,
            columns,
            fill_bytes=FILL_BYTES,
            pool=scratch.indexes,
        )
        source = memories.weight if nest.b_space is Space.WEIGHT else memories.activation
        b = nest.b.transpose(WINDOW_FIRST)
        self._b_shape = (*b.shape, columns)
        self._b = ByteGather(source, b, None, columns, pool=scratch.indexes)
        scratch.reserve("bytes", self._a.size)
        scratch.reserve("factors", self._b.size)
        scratch.reserve("products", self._a.size // (counts[4] * counts[5]))

    def read(self, out: Int32Array) -> None:
        """Put the dot product into ``out``."""
        a_zero_point, b_zero_point = self._zero_points
        a = self._scratch.get("bytes", np.int8, self._shape)
        self._a.read(self._a.target(a.reshape(-1)), a_zero_point)
        factors = self._scratch.get("factors", np.int8, self._b_shape)
        self._b.read(self._b.target(factors.reshape(-1)))
        b = factors.astype(np.int32)
        if b_zero_point:
            b -= b_zero_point
        products = self._scratch.get("products", np.int32, self._shape[2:])
        out.fill(0)
        for index in np.ndindex(*self._shape[:2]):
            np.subtract(a[index], np.int32(a_zero_point), out=products)
            where = tuple(min(i, length - 1) for i, length in zip(index, self._b_shape))
            np.multiply(products, b[where], out=products)
            np.add(out, products, out=out)
