"""SCALAR, and what VECTOR takes from the scalar registers and enters into them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weft_hw.arithmetic import INT32_MAX, scalar_operation, wrap_int32
from weft_hw.instruction_values import SCALAR_REGISTER_BITS
from weft_hw.instructions import Capture, Scalar, Vector
from weft_sim.functional.memories import Memories
from weft_sim.race_check import Access

__all__ = ["ScalarStep", "given_bounds", "given_scale", "note_clamped", "note_largest"]

Int32Array = NDArray[np.int32]


class ScalarStep:
    """SCALAR: one operation on the registers."""

    def __init__(self, instruction: Scalar, memories: Memories) -> None:
        self._instruction, self._memories = instruction, memories

    def execute(self) -> None:
        """Compute and write."""
        instruction, scalars = self._instruction, self._memories.scalars
        second = instruction.immediate if instruction.use_immediate else scalars[instruction.second]
        first = scalars[instruction.first]
        scalars[instruction.destination] = scalar_operation(instruction.operation, first, second)

    def accesses(self) -> Sequence[Access]:
        """None: the registers belong to the queue."""
        return ()


def given_scale(instruction: Vector, memories: Memories) -> tuple[int, int]:
    """Multiplier and exponent from the registers."""
    multiplier, exponent = (memories.scalars[n] for n in instruction.scalar_registers[:2])
    return multiplier & 0x7FFFFFFF, (exponent + 128) % 256 - 128


def given_bounds(instruction: Vector, memories: Memories) -> tuple[int, int]:
    """Bounds of the clamp from the registers."""
    low, high = (memories.scalars[n] for n in instruction.scalar_registers[2:])
    return low, high


def note_largest(instruction: Vector, memories: Memories, written: Sequence[Int32Array]) -> None:
    """Enter the largest absolute value of what will be written, before it is scaled."""
    largest = max((_largest(part) for part in written if part.size), default=0)
    register = instruction.capture_register
    memories.scalars[register] = max(memories.scalars[register], min(largest, INT32_MAX))


def _largest(values: Int32Array) -> int:
    return max(int(values.max()), -int(values.min()))


def note_clamped(instruction: Vector, memories: Memories, changed: int) -> None:
    """Count results that a bound has changed."""
    if instruction.capture in (Capture.CLAMPED, Capture.BOTH):
        register = (instruction.capture_register + 1) % (1 << SCALAR_REGISTER_BITS)
        memories.scalars[register] = int(wrap_int32(memories.scalars[register] + changed))
