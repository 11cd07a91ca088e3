"""VECTOR, prepared: all output vectors of an instruction at once, in int32 that wraps."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.arithmetic import random_bits
from weft_hw.instructions import Capture, Rounding, ScaleSource, Tail, Vector
from weft_sim.functional.loaded import LoadedCache
from weft_sim.functional.memories import Memories, Scratch
from weft_sim.functional.nests import affine, disjoint
from weft_sim.functional.scalars import given_bounds, given_scale, note_clamped, note_largest
from weft_sim.functional.scaling import Scaling
from weft_sim.functional.vector_heads import make_head, operand_view
from weft_sim.functional.vector_nest import VectorNest, space_of
from weft_sim.race_check import Access

__all__ = ["ParameterRows", "VectorStep"]

Int32Array = NDArray[np.int32]
LONGEST_FOLD = 16
INT32 = np.iinfo(np.int32)


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
        self._head = make_head(nest, memories, scratch)
        self._b = None
        if nest.b_used:
            address, strides = instruction.b_address, instruction.b_strides
            self._b = operand_view(memories, nest.b_space, address, strides, shape)
        self._results = _Results(nest, memories)
        self._parameters, self._refreshes = None, False
        if nest.parameter_used:
            self._parameters, self._refreshes = _shared_parameters(nest, memories, cache)
        self._memories = memories
        self._index = None
        if instruction.scale_source is not ScaleSource.NONE and (
            instruction.rounding is Rounding.STOCHASTIC
        ):
            first = affine(instruction.index_address, instruction.index_strides, nest.outer)
            index = first[..., np.newaxis] + np.arange(nest.config.columns)
            self._index = np.broadcast_to(index, shape).reshape(_folded_shape(nest))
        self._scaling = None
        self._notes = Capture(instruction.capture)
        if instruction.scale_source is ScaleSource.INSTRUCTION:
            self._scaling = Scaling(
                np.array(instruction.multiplier),
                np.array(instruction.exponent),
                instruction.rounding,
            )
        # Arrays without axes: NumPy converts Python numbers anew each time.
        self._zero_point = np.array(instruction.zero_point, np.int32)
        self._select_low = np.array(instruction.select_low, np.int32)
        self._select_high = np.array(instruction.select_high, np.int32)
        self._set_bounds(instruction.clamp_low, instruction.clamp_high)
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
        self._take_scalars()
        self._head.read(value)
        self._scale()
        if self._b is not None:
            self._combine(value, self._b)
        if instruction.zero_point:
            np.add(value, self._zero_point, out=value)
        if self._notes in (Capture.CLAMPED, Capture.BOTH):
            low, high = self._bounds
            changed = self._results.written((value < low) | (value > high))
            note_clamped(instruction, self._memories, sum(map(np.count_nonzero, changed)))
        # Not np.clip, which takes five times as long for small arrays.
        if self._bounds[0] > INT32.min:
            np.maximum(value, self._clamp_low, out=value)
        if self._bounds[1] < INT32.max:
            np.minimum(value, self._clamp_high, out=value)
        if instruction.lookup:
            table = self._memories.lookup[instruction.lookup - 1]
            np.copyto(value, table[value & 0xFF])
        self._results.write(value)

    def _take_scalars(self) -> None:
        """What the scalar registers give, as they are now."""
        instruction, memories = self._instruction, self._memories
        if instruction.scale_source is ScaleSource.SCALAR:
            multiplier, exponent = (np.array(n) for n in given_scale(instruction, memories))
            self._scaling = Scaling(multiplier, exponent, instruction.rounding)
        if instruction.clamp_from_scalar:
            self._set_bounds(*given_bounds(instruction, memories))

    def _set_bounds(self, low: int, high: int) -> None:
        """The upper bound wins where they cross."""
        self._bounds = min(low, high), high
        self._clamp_low, self._clamp_high = (np.array(n, np.int32) for n in self._bounds)

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
        if self._notes in (Capture.LARGEST, Capture.BOTH):
            note_largest(instruction, self._memories, self._results.written(self._value))
        if instruction.pre_shift:
            bits = value.view(np.uint32)
            bits <<= np.uint32(instruction.pre_shift)
        if scaling is not None:
            np.copyto(value, scaling.apply(value, *self._work, self._random()), casting="unsafe")

    def _random(self) -> NDArray[np.int64] | None:
        """Random bits of all elements, if they are rounded by them."""
        if self._index is None:
            return None
        memories = self._memories
        seed, step = memories.random_seed, memories.random_step
        return random_bits(seed, step, self._instruction.tensor, self._index)

    def _combine(self, value: Int32Array, b: NDArray[Any]) -> None:
        zero_point = 0 if self._nest.b_wide else self._instruction.b_zero_point
        if zero_point:
            b = np.subtract(b, zero_point, dtype=np.int32)
        match self._instruction.tail:
            case Tail.ADD:
                np.add(value, b, out=value)
            case Tail.MAXIMUM:
                np.maximum(value, b, out=value)
            case Tail.PRODUCT:
                np.multiply(value, b, out=value)
            case Tail.SELECT:
                np.multiply(value, (b > self._select_low) & (b < self._select_high), out=value)

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
            space = space_of(nest.wide)
            target = operand_view(memories, space, instruction.address, strides, (*outer, columns))
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

    def written(self, value: NDArray[Any]) -> list[NDArray[Any]]:
        """Those elements that are written."""
        return [value[where] for where, _ in self._targets]

    def write(self, value: Int32Array) -> None:
        """Write in loop order; int8 results are the low 8 bits."""
        for where, target in self._targets:
            np.copyto(target, value[where], casting="unsafe")
