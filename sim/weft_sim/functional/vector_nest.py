"""The addresses of a VECTOR instruction: worked out for the whole nest, checked."""

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import (
    LOOPS_VECTOR_OUTER,
    Memory,
    OperandSource,
    ScaleSource,
    Tail,
    Vector,
)
from weft_hw.registers import FaultCause
from weft_sim.functional.memories import Memories
from weft_sim.functional.nests import Addresses, access, affine, first_trip, trips
from weft_sim.functional.step import Faulted
from weft_sim.race_check import Access, Space

__all__ = ["VectorNest"]

PARAMETER_ROWS = 256  # parameter addresses are modulo this


class VectorNest:
    """All addresses of a VECTOR; axes of length 1 are to be broadcast (see ``affine``).

    Attributes
    ----------
    a : int64 array over all six loops
    b, result, parameter : int64 arrays over the four outer loops
    exists : bool array over all six loops, or None
        Which elements of A count; None if all do.
    lanes : int64 array over the four outer loops
        How many lanes of the result are written.
    a_wide, b_wide, wide : bool
        A, B and the result are accumulator rows, not activation bytes.
    b_used, parameter_used : bool
    """

    def __init__(self, instruction: Vector, memories: Memories) -> None:
        self.instruction = instruction
        self.config = config = memories.config
        self.counts = counts = instruction.counts
        self.outer = outer = counts[:LOOPS_VECTOR_OUTER]
        trips(counts, "VECTOR")
        self.a = affine(instruction.a_address, instruction.a_strides, counts)
        self.b = affine(instruction.b_address, instruction.b_strides[:LOOPS_VECTOR_OUTER], outer)
        self.result = affine(instruction.address, instruction.strides, outer)
        rows = affine(instruction.parameter_address, instruction.parameter_strides, outer)
        self.parameter: Addresses = rows % PARAMETER_ROWS
        self.exists: NDArray[np.bool_] | None = None
        if instruction.bounded:
            y = affine(instruction.y_origin, instruction.y_steps, counts)
            x = affine(instruction.x_origin, instruction.x_steps, counts)
            inside = (y >= 0) & (y < instruction.y_extent) & (x >= 0) & (x < instruction.x_extent)
            self.exists = None if inside.all() else inside
        self.last_lanes = min(instruction.last_lanes or config.columns, config.columns)
        self.lanes: Addresses = np.full((outer[0], 1, 1, 1), config.columns)
        self.lanes[-1] = self.last_lanes
        self.a_wide = instruction.a_source is OperandSource.ACCUMULATOR
        self.b_wide = instruction.b_source is OperandSource.ACCUMULATOR
        self.b_used = instruction.tail is not Tail.NONE
        self.wide = instruction.destination is Memory.ACCUMULATOR
        self.parameter_used = bool(
            instruction.use_bias or instruction.scale_source is ScaleSource.PARAMETER
        )
        self._check()

    def _check(self) -> None:
        """Fault at the earliest trip; in one trip A comes first, then B, result, parameters."""
        config = self.config
        a_bad = self._outside(self.a, self.a_wide, config.columns)
        if self.exists is not None:
            a_bad = a_bad & self.exists
        checks = [(self.result, self._outside(self.result, self.wide, self.lanes))]
        if self.b_used:
            checks.insert(0, (self.b, self._outside(self.b, self.b_wide, config.columns)))
        if self.parameter_used:
            checks.append((self.parameter, self.parameter >= config.parameter_rows))
        faults = []
        if a_bad.any():
            trip = first_trip(a_bad, self.counts)
            faults.append((trip, 0, np.broadcast_to(self.a, self.counts).flat[trip]))
        window = self.counts[4] * self.counts[5]
        for rank, (addresses, bad) in enumerate(checks, 1):
            if bad.any():
                vector = first_trip(bad, self.outer)
                address = np.broadcast_to(addresses, self.outer).flat[vector]
                faults.append((vector * window + window - 1, rank, address))
        if faults:
            raise Faulted(FaultCause.LOCAL_ADDRESS, int(min(faults)[2]))

    def _outside(
        self, addresses: Addresses, wide: bool, lanes: int | Addresses
    ) -> NDArray[np.bool_]:
        ends = addresses + (1 if wide else lanes)
        size = self.config.accumulator_total_rows if wide else self.config.activation_bytes
        outside: NDArray[np.bool_] = (addresses < 0) | (ends > size)
        return outside

    @property
    def parameter_access(self) -> Access:
        """The read of the parameter rows."""
        pitch = self.config.parameter_row_pitch
        return access(Space.PARAMETER, self.parameter * pitch, pitch, write=False)

    def accesses(self) -> list[Access]:
        """Reads of operands and parameters, writes of results."""
        config = self.config
        a = self.a
        if self.exists is not None:
            a, exists = np.broadcast_arrays(a, self.exists)
            a = a[exists]
        found = [_access(a, self.a_wide, config.columns, write=False)]
        if self.b_used:
            found.append(_access(self.b, self.b_wide, config.columns, write=False))
        if self.parameter_used:
            found.append(self.parameter_access)
        result = np.broadcast_to(self.result, self.outer)
        for tiles, lanes in ((result[:-1], config.columns), (result[-1:], self.last_lanes)):
            found.append(_access(tiles, self.wide, lanes, write=True))
        return found


def _access(addresses: Addresses, wide: bool, width: int, *, write: bool) -> Access:
    if wide:
        return access(Space.ACCUMULATOR, addresses, 1, write=write)
    return access(Space.ACTIVATION, addresses, width, write=write)
