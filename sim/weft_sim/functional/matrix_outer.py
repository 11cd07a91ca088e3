"""Output-stationary MATRIX, prepared: an output tile is left rows, transposed, times top rows.

Products of two 9-bit numbers, summed in float64, are exact in any order for every reduction that
an instruction can hold. All tiles are one batched product; the operands are gathered once for each
tile index on which they depend.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import LOOPS_MATRIX, TILE_LOOPS_MATRIX, Accumulate, Bounds, Matrix
from weft_hw.registers import FaultCause
from weft_sim.functional.memories import Memories
from weft_sim.functional.nests import (
    Addresses,
    access,
    affine,
    disjoint,
    existing,
    first_trip,
    inside,
    trips,
)
from weft_sim.functional.step import Faulted
from weft_sim.race_check import Access, Space

__all__ = ["OuterProductStep"]

Exists = NDArray[np.bool_] | None


class OuterProductStep:
    """MATRIX with the sums in the array.

    Parameters
    ----------
    instruction : Matrix
    memories : Memories

    Raises
    ------
    Faulted
        If an access that takes place lies outside its memory.
    """

    def __init__(self, instruction: Matrix, memories: Memories) -> None:
        self._instruction, self._memories = instruction, memories
        self._config = config = memories.config
        self._counts = counts = instruction.counts
        trips(counts, "MATRIX")
        self._left = affine(instruction.left_address, instruction.left_strides, counts)
        self._top = affine(instruction.top_address, instruction.top_strides, counts)
        self._left_exists = inside(instruction, Bounds.LEFT)
        self._top_exists = inside(instruction, Bounds.TOP)
        tile_counts = counts[:TILE_LOOPS_MATRIX]
        tiles = affine(
            instruction.accumulator_address,
            instruction.accumulator_strides[:TILE_LOOPS_MATRIX],
            tile_counts,
        )
        rows = np.arange(config.rows) * instruction.tile_stride
        self._rows: Addresses = tiles[..., np.newaxis] + rows
        self._check()

    def _check(self) -> None:
        config, counts = self._config, self._counts
        left_bad = (self._left < 0) | (self._left + config.rows > config.activation_bytes)
        top_bad = (self._top < 0) | (self._top + config.columns > config.weight_bytes)
        if self._left_exists is not None:
            left_bad = left_bad & self._left_exists
        if self._top_exists is not None:
            top_bad = top_bad & self._top_exists
        ends = self._rows[..., [0, -1]]
        end_bad = (ends < 0) | (ends >= config.accumulator_total_rows)
        if not (left_bad.any() or top_bad.any() or end_bad.any()):
            return
        # A tile's rows are checked in its last step, behind the operands.
        closing = np.zeros((1,) * TILE_LOOPS_MATRIX + counts[TILE_LOOPS_MATRIX:], np.bool_)
        closing[..., -1, -1, -1] = True
        inner = (1,) * (LOOPS_MATRIX - TILE_LOOPS_MATRIX)
        row_bad = end_bad.any(axis=-1)
        row_bad = row_bad.reshape(row_bad.shape + inner) & closing
        trip = first_trip(top_bad | left_bad | row_bad, counts)
        index = np.unravel_index(trip, counts)
        if _at(top_bad, index):
            address = _at(self._top, index)
        elif _at(left_bad, index):
            address = _at(self._left, index)
        else:
            first, last = _at(end_bad, index), _at(ends, index)
            address = last[0] if first[0] else last[1]
        raise Faulted(FaultCause.LOCAL_ADDRESS, int(address))

    def execute(self) -> None:
        """Gather, multiply, write or add."""
        instruction, memories = self._instruction, self._memories
        left = self._operand(
            memories.activation,
            self._left,
            self._left_exists,
            self._config.rows,
            instruction.left_zero_point,
        )
        top = self._operand(
            memories.weight,
            self._top,
            self._top_exists,
            self._config.columns,
            instruction.top_zero_point,
        )
        tiles = np.matmul(left.swapaxes(-1, -2), top).astype(np.int64).astype(np.int32)
        rows = np.broadcast_to(self._rows, (*self._counts[:TILE_LOOPS_MATRIX], self._config.rows))
        tiles = np.broadcast_to(tiles, (*rows.shape, self._config.columns))
        # In the order in which they leave: tile by tile, last row first.
        order = rows[..., ::-1].reshape(-1)
        sums = tiles[..., ::-1, :].reshape(-1, self._config.columns)
        accumulator = memories.accumulator
        if disjoint(order, 1):
            if instruction.accumulate is Accumulate.ALWAYS_ADD:
                accumulator[order] += sums
            else:
                accumulator[order] = sums
        elif instruction.accumulate is Accumulate.ALWAYS_ADD:
            np.add.at(accumulator, order, sums)
        else:
            last = len(order) - 1 - np.unique(order[::-1], return_index=True)[1]
            accumulator[order[last]] = sums[last]

    def _operand(
        self,
        memory: NDArray[np.int8],
        addresses: Addresses,
        exists: Exists,
        width: int,
        zero_point: int,
    ) -> NDArray[np.float64]:
        """[tile indexes on which it depends, step, element], without its zero point."""
        steps = self._counts[TILE_LOOPS_MATRIX:]
        outer = addresses.shape[:TILE_LOOPS_MATRIX]
        if exists is not None:
            outer = np.broadcast_shapes(outer, exists.shape[:TILE_LOOPS_MATRIX])
        addresses = np.broadcast_to(addresses, (*outer, *steps))
        if exists is not None:
            exists = np.broadcast_to(exists, addresses.shape)
            addresses = np.where(exists, addresses, 0)  # any address that may be read
        values = memory[addresses[..., np.newaxis] + np.arange(width)].astype(np.float64)
        values -= zero_point
        if exists is not None:
            values[~exists] = 0
        result: NDArray[np.float64] = values.reshape(*outer, -1, width)
        return result

    def accesses(self) -> Sequence[Access]:
        """Reads of both operands, writes of accumulator rows."""
        left = existing(self._left, self._left_exists)
        top = existing(self._top, self._top_exists)
        return [
            access(Space.ACTIVATION, left, self._config.rows, write=False),
            access(Space.WEIGHT, top, self._config.columns, write=False),
            access(Space.ACCUMULATOR, self._rows, 1, write=True),
        ]


def _at(values: NDArray[Any], index: Sequence[np.intp]) -> Any:
    """The element of a broadcast array, or the vector where it has more axes than the index."""
    loops = index[: min(len(index), values.ndim)]
    if values.ndim < LOOPS_MATRIX:  # by tile, and one more axis
        loops = index[:TILE_LOOPS_MATRIX]
    return values[tuple(int(i) if length > 1 else 0 for i, length in zip(loops, values.shape))]
