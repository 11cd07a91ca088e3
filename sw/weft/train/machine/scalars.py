"""Scalar registers and the cells of the state: exponents are computed on the machine.

A cell is an int32 in DRAM. It becomes a register through an accumulator row and a capture of the
largest absolute value, so cells are not negative: exponents carry ``EXPONENT_BIAS``. A register
becomes a cell by a VECTOR instruction both of whose clamp bounds come from it.
"""

import enum

from weft.compiler.stream import Space, reads, writes
from weft.train.machine.builder import STAGING_ROWS, Builder
from weft.train.step import Exponent
from weft_hw.instructions import (
    Capture,
    Element,
    Load,
    Memory,
    Operation,
    Scalar,
    Store,
    Vector,
)
from weft_hw.training import CLIP_NUMERATOR, CLIP_SHIFT, EXPONENT_BIAS, ONE

__all__ = ["CELL_BYTES", "Register", "Scalars"]

CELL_BYTES = 4


class Register(enum.IntEnum):
    """What each scalar register is for."""

    ONE = 0
    """The multiplier of a power of two, throughout a program."""
    MULTIPLIER = 1
    EXPONENT = 2
    LOW = 3
    HIGH = 4
    LARGEST = 5
    """Captured by VECTOR; the next one counts clamped results."""
    CLAMPED = 6
    SHIFT = 7
    SUMS = 8
    """Exponent of the sums at hand."""
    FIRST = 9
    SECOND = 10
    OTHER = 11


class Scalars:
    """Appends scalar work to a builder's stream.

    Parameters
    ----------
    builder : Builder
    cells : dict of str to int
        DRAM address of each cell.
    """

    def __init__(self, builder: Builder, cells: dict[str, int]) -> None:
        self.builder, self.cells = builder, cells
        self._row = 0

    def begin(self) -> None:
        """What holds throughout a program."""
        self.move(Register.ONE, ONE)

    # Arithmetic ------------------------------------------------------------------------------

    def move(self, target: Register, value: int | Register) -> None:
        """``target = value``."""
        self.compute(Operation.MOVE, target, target, value)

    def compute(
        self, operation: Operation, target: Register, first: Register, second: int | Register
    ) -> None:
        """``target = operation(first, second)``."""
        if isinstance(second, Register):
            instruction = Scalar(
                operation=operation, destination=target, first=first, second=second
            )
        else:
            instruction = Scalar(
                operation=operation,
                destination=target,
                first=first,
                use_immediate=1,
                immediate=second,
            )
        self.builder.stream.emit(instruction, "scalars")

    def add(self, target: Register, first: Register, second: int | Register) -> None:
        """``target = first + second``."""
        self.compute(Operation.ADD, target, first, second)

    def subtract(self, target: Register, first: int | Register, second: int | Register) -> None:
        """``target = first - second``; a first operand that is a number is moved to the target,
        which must not be the second."""
        if not isinstance(first, Register):
            assert target is not second
            self.move(target, first)
            first = target
        self.compute(Operation.SUBTRACT, target, first, second)

    def shift_by(self, target: Register, places: Register) -> None:
        """Shift a register left, or right by negative places."""
        self.compute(Operation.SHIFT, target, target, places)

    def larger(self, target: Register, first: Register, second: int | Register) -> None:
        """``target = max(first, second)``."""
        self.compute(Operation.MAXIMUM, target, first, second)

    def smaller(self, target: Register, first: Register, second: int | Register) -> None:
        """``target = min(first, second)``."""
        self.compute(Operation.MINIMUM, target, first, second)

    def limit(self, target: Register, low: int, high: int) -> None:
        """Clamp a register."""
        self.compute(Operation.MAXIMUM, target, target, low)
        self.compute(Operation.MINIMUM, target, target, high)

    # Cells -----------------------------------------------------------------------------------

    def _staging(self) -> int:
        self._row = (self._row + 1) % STAGING_ROWS
        return self.builder.staging_rows + self._row

    def read(self, cell: str, target: Register) -> None:
        """``target = cell``."""
        stream, row, address = self.builder.stream, self._staging(), self.cells[cell]
        stream.emit(
            Load(
                dram_address=address,
                address=row,
                run_bytes=CELL_BYTES,
                memory=Memory.ACCUMULATOR,
                element=Element.INT32,
                extent=1,
            ),
            f"load {cell}",
            reads(Space.DRAM, (address, address + CELL_BYTES)),
            writes(Space.ACCUMULATOR, (row, row + 1)),
        )
        self.move(target, 0)
        stream.emit(
            Vector(
                a_address=row,
                destination=Memory.ACCUMULATOR,
                address=row,
                last_lanes=1,
                capture=Capture.LARGEST,
                capture_register=target,
            ),
            f"read {cell}",
            reads(Space.ACCUMULATOR, (row, row + 1)),
            writes(Space.ACCUMULATOR, (row, row + 1)),
        )

    def write(self, cell: str, source: Register) -> None:
        """``cell = source``."""
        stream, row, address = self.builder.stream, self._staging(), self.cells[cell]
        stream.emit(
            Vector(
                a_address=row,
                destination=Memory.ACCUMULATOR,
                address=row,
                last_lanes=1,
                clamp_from_scalar=1,
                scalar_registers=(0, 0, source, source),
            ),
            f"write {cell}",
            reads(Space.ACCUMULATOR, (row, row + 1)),
            writes(Space.ACCUMULATOR, (row, row + 1)),
        )
        stream.emit(
            Store(
                dram_address=address,
                address=row,
                run_bytes=CELL_BYTES,
                memory=Memory.ACCUMULATOR,
                element=Element.INT32,
                extent=1,
            ),
            f"store {cell}",
            reads(Space.ACCUMULATOR, (row, row + 1)),
            writes(Space.DRAM, (address, address + CELL_BYTES)),
        )

    # Exponents and shifts --------------------------------------------------------------------

    def exponent(self, target: Register, exponent: Exponent, beside: int = 0) -> None:
        """``target = exponent + beside``."""
        if exponent.quantizer is None:
            self.move(target, exponent.offset + beside)
            return
        self.read(f"{exponent.quantizer}.exponent", target)
        self.add(target, target, exponent.offset + beside - EXPONENT_BIAS)

    def write_exponent(self, cell: str, source: Register) -> None:
        """``cell = source``, with the bias; uses OTHER."""
        self.add(Register.OTHER, source, EXPONENT_BIAS)
        self.write(cell, Register.OTHER)

    def clip(self, largest: Register) -> None:
        """``largest = clip_range(largest)``: the upper half of twice it times 243 * 2^23."""
        self.add(largest, largest, largest)
        self.compute(Operation.MULTIPLY_HIGH, largest, largest, CLIP_NUMERATOR << 31 - CLIP_SHIFT)

    def shift(self, target: Register, largest: Register, bits: int | Register) -> None:
        """``target = shift_of(largest, bits)``; uses OTHER."""
        self.compute(Operation.LEADING_ZEROS, Register.OTHER, largest, largest)
        self.subtract(target, 32, bits)
        self.subtract(target, target, Register.OTHER)
        self.compute(Operation.MAXIMUM, target, target, 0)

    def scale_exponent(self, target: Register, power: Register, sign: int = 1) -> None:
        """``target = clip(1 + sign * power, -31, 31)``: with ONE, the scale ``2**power``."""
        if sign > 0:
            self.add(target, power, 1)
        else:
            self.subtract(target, 1, power)
        self.limit(target, -31, 31)
