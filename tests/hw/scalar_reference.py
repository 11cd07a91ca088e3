"""SCALAR as ``docs/machine.md`` words it, in rational numbers and strings of bits."""

import math
from fractions import Fraction

from weft_hw.instructions import Operation, Scalar

__all__ = ["compute", "execute_scalar"]


def compute(operation: Operation, a: int, b: int) -> int:
    """Of two numbers in the int32 range."""
    exact = {
        Operation.MOVE: b,
        Operation.ADD: a + b,
        Operation.SUBTRACT: a - b,
        Operation.MINIMUM: sorted((a, b))[0],
        Operation.MAXIMUM: sorted((a, b))[1],
        Operation.SHIFT: math.floor(Fraction(a) * Fraction(2) ** max(min(b, 64), -64)),
        Operation.LEADING_ZEROS: f"{a % 2**32:032b}1".index("1"),
        Operation.MULTIPLY_HIGH: math.floor(Fraction(a * b, 2**32)),
        Operation.DIVIDE: math.trunc(Fraction(a, b))
        if b
        else (a > 0) * (2**31 - 1) - (a < 0) * 2**31,
    }[operation]
    low = exact % 2**32
    return low if low < 2**31 else low - 2**32


def execute_scalar(instruction: Scalar, scalars: list[int]) -> None:
    """Change the registers as the instruction does."""
    second = instruction.immediate if instruction.use_immediate else scalars[instruction.second]
    value = compute(Operation(instruction.operation), scalars[instruction.first], second)
    scalars[instruction.destination] = value
