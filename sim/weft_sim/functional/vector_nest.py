"""The addresses of a VECTOR instruction: worked out for the whole nest, checked."""

import numpy as np
from numpy.typing import NDArray

from weft_hw.instruction_values import LOOKUP_ENTRIES
from weft_hw.instructions import (
    LOOPS_VECTOR_OUTER,
    Head,
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

__all__ = ["VectorNest", "space_of"]

PARAMETER_ROWS = 256  # parameter addresses are modulo this
_SPACES = {
    OperandSource.NONE: Space.ACTIVATION,  # never accessed
    OperandSource.ACTIVATION: Space.ACTIVATION,
    OperandSource.ACCUMULATOR: Space.ACCUMULATOR,
    OperandSource.WEIGHT: Space.WEIGHT,
}


class VectorNest:
    """All addresses of a VECTOR; axes of length 1 are to be broadcast (see ``affine``).

    Attributes
    ----------
    a : int64 array over all six loops
    b : int64 array over the four outer loops, in a dot product over all six
    result, parameter : int64 arrays over the four outer loops
    exists : bool array over all six loops, or None
        Which elements of A count; None if all do.
    lanes : int64 array over the four outer loops
        How many lanes of the result are written.
    a_wide, b_wide, wide : bool
        A, B and the result are accumulator rows, not bytes of a scratchpad.
    b_space : Space
    b_used, dot, parameter_used : bool
        The tail uses B; the head does.
    """

    def __init__(self, instruction: Vector, memories: Memories) -> None:
        self.instruction = instruction
        self.config = config = memories.config
        self.counts = counts = instruction.counts
        self.outer = outer = counts[:LOOPS_VECTOR_OUTER]
        trips(counts, "VECTOR")
        self.a = affine(instruction.a_address, instruction.a_strides, counts)
        self.dot = instruction.head is Head.DOT
        b_loops = counts if self.dot else outer
        self.b = affine(instruction.b_address, instruction.b_strides[: len(b_loops)], b_loops)
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
        self.b_space = _SPACES[instruction.b_source]
        self.b_used = instruction.tail is not Tail.NONE
        self.wide = instruction.destination is Memory.ACCUMULATOR
        self.parameter_used = bool(
            instruction.use_bias or instruction.scale_source is ScaleSource.PARAMETER
        )
        self._check()

    def _check(self) -> None:
        """Fault at the earliest trip; in one trip A comes first, then B, result, parameters."""
        config = self.config
        a_bad = self._outside(self.a, space_of(self.a_wide), config.columns)
        elements = [(self.a, a_bad if self.exists is None else a_bad & self.exists)]
        b_bad = self._outside(self.b, self.b_space, config.columns)
        checks = [(self.result, self._outside(self.result, space_of(self.wide), self.lanes))]
        if self.dot:
            elements.append((self.b, b_bad))
        elif self.b_used:
            checks.insert(0, (self.b, b_bad))
        if self.parameter_used:
            checks.append((self.parameter, self.parameter >= config.parameter_rows))
        faults = []
        for rank, (addresses, bad) in enumerate(elements):
            if bad.any():
                trip = first_trip(bad, self.counts)
                faults.append((trip, rank, np.broadcast_to(addresses, self.counts).flat[trip]))
        window = self.counts[4] * self.counts[5]
        for rank, (addresses, bad) in enumerate(checks, len(elements)):
            if bad.any():
                vector = first_trip(bad, self.outer)
                address = np.broadcast_to(addresses, self.outer).flat[vector]
                faults.append((vector * window + window - 1, rank, address))
        if faults:
            raise Faulted(FaultCause.LOCAL_ADDRESS, int(min(faults)[2]))

    def _outside(
        self, addresses: Addresses, space: Space, lanes: int | Addresses
    ) -> NDArray[np.bool_]:
        config = self.config
        ends = addresses + (1 if space is Space.ACCUMULATOR else lanes)
        size = {
            Space.ACTIVATION: config.activation_bytes,
            Space.WEIGHT: config.weight_bytes,
            Space.ACCUMULATOR: config.accumulator_total_rows,
        }[space]
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
        found = [
            _access(self._existing(self.a), space_of(self.a_wide), config.columns, write=False)
        ]
        if self.b_used or self.dot:
            b = self._existing(self.b) if self.dot else self.b
            found.append(_access(b, self.b_space, config.columns, write=False))
        if self.parameter_used:
            found.append(self.parameter_access)
        if self.instruction.lookup:
            table = np.array((self.instruction.lookup - 1) * LOOKUP_ENTRIES)
            found.append(access(Space.LOOKUP, table, LOOKUP_ENTRIES, write=False))
        result = np.broadcast_to(self.result, self.outer)
        for tiles, lanes in ((result[:-1], config.columns), (result[-1:], self.last_lanes)):
            found.append(_access(tiles, space_of(self.wide), lanes, write=True))
        return found

    def _existing(self, addresses: Addresses) -> Addresses:
        if self.exists is None:
            return addresses
        found: Addresses = np.broadcast_to(addresses, self.counts)[
            np.broadcast_to(self.exists, self.counts)
        ]
        return found


def space_of(wide: bool) -> Space:
    """Where operands of int32, or of int8 activations, lie."""
    return Space.ACCUMULATOR if wide else Space.ACTIVATION


def _access(addresses: Addresses, space: Space, width: int, *, write: bool) -> Access:
    return access(space, addresses, 1 if space is Space.ACCUMULATOR else width, write=write)
