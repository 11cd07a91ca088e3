"""VECTOR, prepared: all output vectors of an instruction at once, in int32 that wraps."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import Head, ScaleSource, Tail, Vector
from weft_sim.functional.loaded import LoadedCache
from weft_sim.functional.memories import FILL_BYTES, Memories, Scratch
from weft_sim.functional.nests import Addresses, ByteGather, disjoint, strided
from weft_sim.functional.scaling import Scaling
from weft_sim.functional.vector_nest import VectorNest
from weft_sim.race_check import Access

__all__ = ["ParameterRows", "VectorStep"]

Int32Array = NDArray[np.int32]
LONGEST_FOLD = 16
INT8, INT32 = np.iinfo(np.int8), np.iinfo(np.int32)


class VectorStep:
    """VECTOR on one int32 array of shape (four outer loops, columns), in place."""

    def __init__(
        self,
        instruction: Vector,
        memories: Memories,
        scratch: Scratch,
        cache: LoadedCache["ParameterRows"],
    ) -> None:
        self._instruction, self._scratch = instruction, scratch
        self._nest = nest = VectorNest(instruction, memories)
        self._shape = shape = (*nest.outer, nest.config.columns)
        self._head = _head(nest, memories, scratch)
        self._b = None
        if nest.b_used:
            address, strides = instruction.b_address, instruction.b_strides
            self._b = _view(memories, nest.b_wide, address, strides, shape)
        self._results = _Results(nest, memories)
        self._parameters, self._refreshes = None, False
        if nest.parameter_used:
            self._parameters, self._refreshes = _shared_parameters(nest, memories, cache)
        self._scaling = None
        if instruction.scale_source is ScaleSource.INSTRUCTION:
            self._scaling = Scaling(
                np.array(instruction.multiplier),
                np.array(instruction.exponent),
                instruction.rounding,
            )
        # Arrays without axes: NumPy converts Python numbers anew each time.
        self._zero_point = np.array(instruction.zero_point, np.int32)
        self._clamp_low = np.array(instruction.clamp_low, np.int32)
        self._clamp_high = np.array(instruction.clamp_high, np.int32)
        scratch.reserve("value", math.prod(shape))
        if instruction.scale_source is not ScaleSource.NONE:
            scratch.reserve("work", math.prod(shape))
            scratch.reserve("other", math.prod(shape))

    @cached_property
    def _value(self) -> Int32Array:
        return self._scratch.get("value", np.int32, self._shape)

    @cached_property
    def _folded(self) -> Int32Array:
        return self._value.reshape(_folded_shape(self._nest))

    @cached_property
    def _work(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shape = self._folded.shape
        work = self._scratch.get("work", np.int64, shape)
        return work, self._scratch.get("other", np.int64, shape)

    def execute(self) -> None:
        """Reduce, scale, combine, clamp, write."""
        instruction, value = self._instruction, self._value
        self._head.read(value)
        self._scale()
        if self._b is not None:
            self._combine(value, self._b)
        if instruction.zero_point:
            np.add(value, self._zero_point, out=value)
        # Not np.clip, which takes five times as long for small arrays.
        if instruction.clamp_low > INT32.min:
            np.maximum(value, self._clamp_low, out=value)
        if instruction.clamp_high < INT32.max:
            np.minimum(value, self._clamp_high, out=value)
        self._results.write(value)

    def _scale(self) -> None:
        """Bias, left shift, multiplier and exponent."""
        instruction, value, scaling = self._instruction, self._folded, self._scaling
        if self._parameters is not None:
            if self._refreshes:
                self._parameters.refresh()
            if instruction.use_bias:
                np.add(value, self._parameters.bias, out=value)
            if instruction.scale_source is ScaleSource.PARAMETER:
                scaling = self._parameters.scaling
        if instruction.pre_shift:
            bits = value.view(np.uint32)
            bits <<= np.uint32(instruction.pre_shift)
        if scaling is not None:
            np.copyto(value, scaling.apply(value, *self._work), casting="unsafe")

    def _combine(self, value: Int32Array, b: NDArray[Any]) -> None:
        zero_point = 0 if self._nest.b_wide else self._instruction.b_zero_point
        if zero_point:
            b = np.subtract(b, zero_point, dtype=np.int32)
        if self._instruction.tail is Tail.ADD:
            np.add(value, b, out=value)
        else:
            np.maximum(value, b, out=value)

    def accesses(self) -> Sequence[Access]:
        """Reads of operands and parameters, writes of results."""
        return self._nest.accesses()


def _fold(nest: VectorNest) -> int:
    """How many neighbouring vectors with the same parameter row are taken as one long vector.

    NumPy's loop over the last axis should be longer than a few lanes.
    """
    if nest.parameter.shape[1:] != (1, 1, 1):
        return 1
    return math.gcd(math.prod(nest.outer[1:]), LONGEST_FOLD)


def _folded_shape(nest: VectorNest) -> tuple[int, ...]:
    """The shape against which parameters are broadcast."""
    columns, fold = nest.config.columns, _fold(nest)
    if nest.parameter.shape[1:] != (1, 1, 1):
        return (*nest.outer, columns)
    return nest.outer[0], math.prod(nest.outer[1:]) // fold, fold * columns


class ParameterRows:
    """Bias and scale of every vector, from the parameter memory.

    They are shared between instructions of the same rows, rounding and fold.
    """

    def __init__(self, nest: VectorNest, memories: Memories) -> None:
        self._memories = memories
        self._rows = nest.parameter  # (outer loops)
        if nest.parameter.shape[1:] == (1, 1, 1):
            self._rows = nest.parameter.reshape(-1, 1)
        self._fold = _fold(nest)
        self._rounding = nest.instruction.rounding
        self.bias: Int32Array = np.empty(0, np.int32)
        self.scaling: Scaling | None = None

    def refresh(self) -> None:
        """Take what the memory holds now."""
        memories, rows, fold = self._memories, self._rows, self._fold
        self.bias = np.tile(memories.bias[rows], fold)
        multiplier = np.tile(memories.multiplier[rows] & np.uint32(0x7FFFFFFF), fold)
        exponent = np.tile(memories.exponent[rows], fold)
        self.scaling = Scaling(multiplier, exponent, self._rounding)


def _shared_parameters(
    nest: VectorNest, memories: Memories, cache: LoadedCache[ParameterRows]
) -> tuple[ParameterRows, bool]:
    rows = nest.parameter
    key = rows.tobytes(), rows.shape, nest.instruction.rounding, _fold(nest)
    return cache.get(key, nest.parameter_access, lambda: ParameterRows(nest, memories))


def _view(
    memories: Memories, wide: bool, address: int, strides: Sequence[int], shape: Sequence[int]
) -> NDArray[Any]:
    """The vectors of an operand, or of the results, without a copy."""
    *outer, columns = shape
    if not wide:
        return strided(memories.activation, address, strides, outer, columns)
    steps = [columns * stride for stride in strides]
    return strided(memories.accumulator.reshape(-1), address * columns, steps, outer, columns)


def _head(nest: VectorNest, memories: Memories, scratch: Scratch) -> "_Plain | _Window":
    if nest.exists is None and nest.counts[4:] == (1, 1):
        return _Plain(nest, memories)
    return _Window(nest, memories, scratch)


class _Plain:
    """Operand A without a window and without bounds."""

    def __init__(self, nest: VectorNest, memories: Memories) -> None:
        instruction = nest.instruction
        shape = (*nest.outer, nest.config.columns)
        self._a = _view(memories, nest.a_wide, instruction.a_address, instruction.a_strides, shape)
        self._zero_point = 0 if nest.a_wide else instruction.a_zero_point

    def read(self, out: Int32Array) -> None:
        """Put ``A - a_zero_point`` into ``out``."""
        np.copyto(out, self._a)
        if self._zero_point:
            np.subtract(out, np.int32(self._zero_point), out=out)


class _Window:
    """The sum or the maximum of operand A over the window loops.

    Elements that do not exist are read as the zero point (sum) or the least value (maximum), so
    that they change nothing; only where a maximum has no element at all is the result replaced.
    """

    def __init__(self, nest: VectorNest, memories: Memories, scratch: Scratch) -> None:
        instruction = nest.instruction
        self._memories, self._scratch = memories, scratch
        self._maximum = instruction.head is Head.MAXIMUM
        self._wide = nest.a_wide
        self._zero_point = 0 if nest.a_wide else instruction.a_zero_point
        # Window loops outermost: the reduction then runs over whole, contiguous images.
        order = (4, 5, 0, 1, 2, 3)
        a = np.broadcast_to(nest.a, nest.counts).transpose(order)
        exists = None
        if nest.exists is not None:
            exists = np.broadcast_to(nest.exists, nest.counts).transpose(order)
        self._elements = nest.counts[4] * nest.counts[5]
        self._length = a.size // self._elements * nest.config.columns
        self._empty: NDArray[np.bool_] | None = None
        if self._maximum and exists is not None:
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
        operation = np.maximum if self._maximum else np.add
        flat = out.reshape(self._length)
        operation.reduce(elements, axis=0, dtype=np.int32, out=flat)
        if self._zero_point:
            count = 1 if self._maximum else self._elements
            flat -= np.int32(count * self._zero_point)
        if self._empty is not None:
            out[self._empty] = INT32.min


class _Results:
    """Writes results: through views where no two vectors meet, else one vector after the other."""

    def __init__(self, nest: VectorNest, memories: Memories) -> None:
        instruction = nest.instruction
        outer, columns = nest.outer, nest.config.columns
        strides = instruction.strides
        result = np.broadcast_to(nest.result, outer)
        widths = 1 if nest.wide else np.broadcast_to(nest.lanes, outer)
        self._targets: list[tuple[tuple[Any, ...], NDArray[Any]]] = []
        if disjoint(result, widths):
            target = _view(memories, nest.wide, instruction.address, strides, (*outer, columns))
            if nest.last_lanes == columns:
                self._targets.append(((), target))
            else:
                self._targets.append(((slice(-1),), target[:-1]))
                lanes = (slice(-1, None), ..., slice(nest.last_lanes))
                self._targets.append((lanes, target[lanes]))
            return
        lanes_of = np.broadcast_to(nest.lanes, outer)
        for index in np.ndindex(*outer):
            address, lanes_here = int(result[index]), int(lanes_of[index])
            if nest.wide:
                target = memories.accumulator[address, :lanes_here]
            else:
                target = memories.activation[address : address + lanes_here]
            self._targets.append(((*index, slice(lanes_here)), target))

    def write(self, value: Int32Array) -> None:
        """Write in loop order; int8 results are the low 8 bits."""
        for where, target in self._targets:
            np.copyto(target, value[where], casting="unsafe")
