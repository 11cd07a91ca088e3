"""MATRIX, prepared: one exact floating-point product for a whole loop nest where that is possible.

A product of two int8 values is at most 2^14 in size, so that float32 sums of up to 1,024 of them
are exact in any order. Longer reductions are cut into such pieces. The zero point is taken off the
sums, not the operands, and everything from there on is int32, modulo 2^32::

    sum_k (left[k] - z) * tile[k]  =  sum_k left[k] * tile[k]  -  z * sum_k tile[k]

A left row that does not exist reads as z, hence adds nothing. (The zero point of the top operand is
taken off the tile.) Narrow weights are unpacked into rows of the reduction of their own. The
output-stationary dataflow has a module of its own.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import (
    TILE_LOOPS_MATRIX,
    Accumulate,
    Bounds,
    Dataflow,
    LoadSide,
    Matrix,
    WeightBits,
)
from weft_hw.registers import FaultCause
from weft_sim.functional.loaded import LoadedCache
from weft_sim.functional.matrix_outer import OuterProductStep
from weft_sim.functional.memories import FILL_BYTES, Memories, Scratch
from weft_sim.functional.nests import (
    Addresses,
    ByteGather,
    access,
    affine,
    disjoint,
    existing,
    first_trip,
    inside,
    strided,
    trips,
)
from weft_sim.functional.step import Faulted, Step
from weft_sim.race_check import Access, Space

__all__ = ["Weights", "prepare_matrix"]

EXACT_REDUCTION = 1024
EXACT_REDUCTION_WIDE = 512  # where a tile's elements have 9 bits, less a zero point

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]


class _Nest:
    """All addresses of a MATRIX, checked; axes of length 1 are broadcast (see ``affine``)."""

    def __init__(self, instruction: Matrix, memories: Memories) -> None:
        self.instruction = instruction
        self.config = config = memories.config
        self.counts = counts = instruction.counts
        trips(counts, "MATRIX")
        self.left = affine(instruction.left_address, instruction.left_strides, counts)
        self.accumulator = affine(
            instruction.accumulator_address, instruction.accumulator_strides, counts
        )
        self.left_width = config.rows * instruction.weight_bits.weights
        self.exists = inside(instruction, Bounds.LEFT)
        self.written = inside(instruction, Bounds.ACCUMULATOR)
        tile_counts = counts[:TILE_LOOPS_MATRIX]
        tiles = affine(
            instruction.top_address, instruction.top_strides[:TILE_LOOPS_MATRIX], tile_counts
        )
        rows = np.arange(config.rows) * instruction.tile_stride
        self.top: Addresses = tiles[..., np.newaxis] + rows  # first byte of each tile's rows
        self._check(memories)

    def _check(self, memories: Memories) -> None:
        config, counts = self.config, self.counts
        left_bad = (self.left < 0) | (self.left + self.left_width > config.activation_bytes)
        if self.exists is not None:
            left_bad = left_bad & self.exists
        row_bad = (self.accumulator < 0) | (self.accumulator >= config.accumulator_total_rows)
        if self.written is not None:
            row_bad = row_bad & self.written
        top_bad = (self.top < 0) | (self.top + config.columns > config.weight_bytes)
        tile_bad: NDArray[np.bool_] = np.any(top_bad, axis=-1)
        if not (left_bad.any() or row_bad.any() or tile_bad.any()):
            return
        inner = (1,) * (len(counts) - TILE_LOOPS_MATRIX)
        trip = first_trip(left_bad | row_bad | tile_bad.reshape(tile_bad.shape + inner), counts)
        index = np.unravel_index(trip, counts)

        def at(values: NDArray[Any]) -> int:
            place = tuple(i if length > 1 else 0 for i, length in zip(index, values.shape))
            return int(values[place])

        if at(tile_bad):
            first = int(np.argmax(top_bad[_clip(index, top_bad.shape)]))
            address = int(self.top[_clip(index, self.top.shape)][first])
        else:
            address = at(self.left) if at(left_bad) else at(self.accumulator)
        raise Faulted(FaultCause.LOCAL_ADDRESS, address)

    @property
    def left_repeats(self) -> bool:
        """Whether the left rows are the same for every output tile."""
        return self.left.shape[0] == 1 and (self.exists is None or self.exists.shape[0] == 1)

    @property
    def reduces_in_place(self) -> bool:
        """Whether each accumulator row belongs to one output tile and one activation row."""
        if self.written is not None:
            return False
        tiles, _, _, _, *rows = self.counts
        if self.accumulator.shape[1:TILE_LOOPS_MATRIX] != (1, 1, 1):
            return False
        return disjoint(np.broadcast_to(self.accumulator, (tiles, 1, 1, 1, *rows)), 1)

    def accesses(self) -> list[Access]:
        """Reads of both operands, writes of accumulator rows."""
        left, rows = existing(self.left, self.exists), existing(self.accumulator, self.written)
        return [
            access(Space.ACTIVATION, left, self.left_width, write=False),
            access(Space.WEIGHT, self.top, self.config.columns, write=False),
            access(Space.ACCUMULATOR, rows, 1, write=True),
        ]


def _clip(index: Sequence[np.intp], shape: Sequence[int]) -> tuple[int, ...]:
    """The tile loops' indexes, for an array whose axes of length 1 are broadcast."""
    tile_index = index[:TILE_LOOPS_MATRIX]
    return tuple(int(i) if length > 1 else 0 for i, length in zip(tile_index, shape))


def _unpacked(tiles: NDArray[np.int8], bits: WeightBits) -> NDArray[np.int8]:
    """The weights of bytes [.., row, column] as [.., row, number, column]."""
    width = 8 // bits.weights
    # Shifted up to the sign bit and, arithmetically, down again.
    parts = [(tiles << 8 - width * (i + 1)) >> 8 - width for i in range(bits.weights)]
    return np.stack(parts, axis=-2)


class Weights:
    """The weight tiles of a nest as one float32 matrix; made once for all that multiply by them.

    ``matrix`` is [output tile, reduction, column] where each tile has left rows of its own, else
    [reduction, (output tile, column)]. ``offsets`` are the zero point times the sums over the
    reduction, as [output tile, 1, 1, 1, column].
    """

    def __init__(self, nest: _Nest, memories: Memories, scratch: Scratch) -> None:
        columns = nest.config.columns
        tiles = nest.counts[0]
        top = np.broadcast_to(nest.top, (*nest.counts[:TILE_LOOPS_MATRIX], nest.config.rows))
        self._bits = nest.instruction.weight_bits
        self.depth = top[0].size * self._bits.weights
        shape: tuple[int, ...] = (tiles, self.depth, columns)
        if nest.left_repeats:
            top = np.moveaxis(top, 0, -1)
            shape = (self.depth, tiles * columns)
        self._zero_point = nest.instruction.left_zero_point
        self._top_zero_point = nest.instruction.top_zero_point
        self._sideways = nest.instruction.load_side is LoadSide.LEFT
        self._by_tile = (tiles, -1, columns, columns)
        self._gather = ByteGather(memories.weight, top, None, columns, pool=scratch.indexes)
        self._scratch = scratch
        scratch.reserve("bytes", self._gather.size)
        self.matrix: Float32Array = np.empty(shape, np.float32)
        self.offsets: Int32Array = np.zeros((tiles, 1, 1, 1, columns), np.int32)

    def refresh(self) -> None:
        """Take the tiles from the weight scratchpad."""
        tiles = self._scratch.get("bytes", np.int8, (self._gather.size,))
        self._gather.read(self._gather.target(tiles))
        if self._sideways:  # byte r of a tile's row c is its element (r, c)
            self._take_transposed(tiles)
        elif self._bits is WeightBits.EIGHT:
            np.copyto(self.matrix, tiles.reshape(self.matrix.shape))
        else:
            *outer, depth, width = self.matrix.shape
            unpacked = _unpacked(tiles.reshape(*outer, -1, width), self._bits)
            np.copyto(self.matrix, unpacked.reshape(self.matrix.shape))
        if self._top_zero_point:
            np.subtract(self.matrix, self._top_zero_point, out=self.matrix)
        if not self._zero_point:
            return
        total = np.zeros(self.offsets.size, np.int64)
        for start in range(0, self.depth, EXACT_REDUCTION):
            piece = self.matrix[..., start : start + EXACT_REDUCTION, :]
            total += piece.sum(axis=-2).reshape(-1).astype(np.int64)
        self.offsets.reshape(-1)[:] = (self._zero_point * total).astype(np.int32)

    def _take_transposed(self, tiles: NDArray[np.int8]) -> None:
        count, _, columns, _ = self._by_tile
        if self.matrix.ndim == 2:
            shape = (-1, columns, count, columns)
            order = (0, 3, 2, 1)
        else:
            shape, order = self._by_tile, (0, 1, 3, 2)
        np.copyto(self.matrix, tiles.reshape(shape).transpose(order).reshape(self.matrix.shape))


def _shared_weights(
    nest: _Nest, memories: Memories, scratch: Scratch, cache: LoadedCache[Weights]
) -> tuple[Weights, bool]:
    instruction = nest.instruction
    key = (
        instruction.top_address,
        instruction.counts[:TILE_LOOPS_MATRIX],
        instruction.top_strides[:TILE_LOOPS_MATRIX],
        instruction.tile_stride,
        instruction.load_side,
        instruction.weight_bits,
        instruction.left_zero_point,
        instruction.top_zero_point,
        nest.left_repeats,
    )
    read = access(Space.WEIGHT, nest.top, nest.config.columns, write=False)
    return cache.get(key, read, lambda: Weights(nest, memories, scratch))


def prepare_matrix(
    instruction: Matrix, memories: Memories, scratch: Scratch, cache: LoadedCache[Weights]
) -> Step:
    """The fastest step that executes a MATRIX exactly."""
    if instruction.dataflow is Dataflow.OUTPUT_STATIONARY:
        return OuterProductStep(instruction, memories)
    nest = _Nest(instruction, memories)
    if nest.reduces_in_place:
        return _ProductStep(nest, memories, scratch, cache)
    return _TileByTileStep(nest, memories)


class _Buffers(NamedTuple):
    """Where a product is computed: the same scratch space, as each stage wants to see it."""

    units: NDArray[np.int8]  # what the gather writes
    gathered: NDArray[np.int8]
    left: Float32Array
    pieces: list[tuple[Float32Array, Float32Array]]  # factors, cut along the reduction
    result: Float32Array
    by_row: Float32Array  # in the order of the accumulator rows


class _ProductStep:
    """Each accumulator row is one sum over the whole reduction: one matrix product."""

    def __init__(
        self, nest: _Nest, memories: Memories, scratch: Scratch, cache: LoadedCache[Weights]
    ) -> None:
        self._nest, self._scratch = nest, scratch
        instruction = nest.instruction
        tiles, *reduction, i4, i5, i6 = nest.counts
        shared = nest.left_repeats
        self._weights, self._refreshes = _shared_weights(nest, memories, scratch, cache)
        self._zero_point = instruction.left_zero_point
        self._adds = instruction.accumulate is Accumulate.ALWAYS_ADD

        # Left rows as [output tile (if it matters), pixel, reduction].
        shape = (1 if shared else tiles, *reduction, i4, i5, i6)
        order = (0, 4, 5, 6, 1, 2, 3)
        left = np.broadcast_to(nest.left, shape).transpose(order)
        exists = None
        if nest.exists is not None:
            exists = np.broadcast_to(nest.exists, shape).transpose(order)
        self._gather = ByteGather(
            memories.activation,
            left,
            exists,
            nest.left_width,
            fill_bytes=FILL_BYTES,
            pool=scratch.indexes,
        )
        scratch.reserve("bytes", self._gather.size)
        scratch.reserve("left", self._gather.size)
        columns = nest.config.columns
        scratch.reserve("result", tiles * i4 * i5 * i6 * columns)

        # The accumulator rows as [output tile, row loops, column].
        rows = memories.accumulator.reshape(-1)
        steps = instruction.accumulator_strides
        self._target: Int32Array = strided(
            rows,
            instruction.accumulator_address * columns,
            [columns * steps[loop] for loop in (0, 4, 5, 6)],
            (tiles, i4, i5, i6),
            columns,
        )

    @cached_property
    def _buffers(self) -> _Buffers:
        """Views of the scratch space, made once all instructions have reserved theirs."""
        scratch, gather, depth = self._scratch, self._gather, self._weights.depth
        tiles, i4, i5, i6, columns = self._target.shape
        pixels = i4 * i5 * i6
        gathered = scratch.get("bytes", np.int8, (gather.size,))
        if self._nest.left_repeats:
            left_shape: tuple[int, ...] = (pixels, depth)
            result = scratch.get("result", np.float32, (pixels, tiles * columns))
            by_row = result.reshape(i4, i5, i6, tiles, columns).transpose(3, 0, 1, 2, 4)
        else:
            left_shape = (tiles, pixels, depth)
            result = scratch.get("result", np.float32, (tiles, pixels, columns))
            by_row = result.reshape(self._target.shape)
        left = scratch.get("left", np.float32, left_shape)
        matrix = self._weights.matrix
        wide = self._nest.instruction.top_zero_point != 0
        exact = EXACT_REDUCTION_WIDE if wide else EXACT_REDUCTION
        pieces = [
            (left[..., k : k + exact], matrix[..., k : k + exact, :])
            for k in range(0, depth, exact)
        ]
        return _Buffers(
            gather.target(gathered), gathered.reshape(left_shape), left, pieces, result, by_row
        )

    def execute(self) -> None:
        """Gather, multiply, write or add."""
        if self._refreshes:
            self._weights.refresh()
        buffers, target = self._buffers, self._target
        self._gather.read(buffers.units, self._zero_point)
        np.copyto(buffers.left, buffers.gathered)
        adds = self._adds
        for left, matrix in buffers.pieces:
            np.matmul(left, matrix, out=buffers.result)
            if adds:
                np.add(target, buffers.by_row.astype(np.int32), out=target)
            else:
                np.copyto(target, buffers.by_row, casting="unsafe")  # whole, below 2^24
            adds = True
        if self._zero_point:
            np.subtract(target, self._weights.offsets, out=target)

    def accesses(self) -> Sequence[Access]:
        """Reads of both operands, writes of accumulator rows."""
        return self._nest.accesses()


class _TileByTileStep:
    """Several tiles or activation rows share an accumulator row: tile after tile, in loop order."""

    def __init__(self, nest: _Nest, memories: Memories) -> None:
        self._nest, self._memories = nest, memories
        counts = nest.counts
        self._left = np.broadcast_to(nest.left, counts)
        self._rows = np.broadcast_to(nest.accumulator, counts)
        self._exists = None if nest.exists is None else np.broadcast_to(nest.exists, counts)
        self._written = None if nest.written is None else np.broadcast_to(nest.written, counts)

    def execute(self) -> None:
        """Visit every tile."""
        nest, memories = self._nest, self._memories
        instruction = nest.instruction
        activation, weight = memories.activation, memories.weight
        across, down = np.arange(nest.left_width), np.arange(nest.config.columns)
        tile_counts = nest.counts[:TILE_LOOPS_MATRIX]
        tops = np.broadcast_to(nest.top, (*tile_counts, nest.config.rows))
        for index in itertools.product(*map(range, tile_counts)):
            stored = weight[tops[index][:, np.newaxis] + down]
            if instruction.weight_bits is not WeightBits.EIGHT:
                stored = _unpacked(stored, instruction.weight_bits).reshape(-1, len(down))
            tile = stored.astype(np.float64)
            tile -= instruction.top_zero_point
            if instruction.load_side is LoadSide.LEFT:
                tile = tile.T
            addresses = self._left[index].ravel()
            exists = None if self._exists is None else self._exists[index].ravel()
            if exists is not None:
                addresses = np.where(exists, addresses, 0)  # any address that may be read
            left = activation[addresses[:, np.newaxis] + across].astype(np.float64)
            left -= instruction.left_zero_point
            if exists is not None:
                left[~exists] = 0
            sums = (left @ tile).astype(np.int32)
            rows = self._rows[index].ravel()
            if self._written is not None:
                written = self._written[index].ravel()
                rows, sums = rows[written], sums[written]
            overwrites = instruction.accumulate is Accumulate.OVERWRITE_FIRST
            if overwrites and index[1:] == (0, 0, 0):
                last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
                memories.accumulator[rows[last]] = sums[last]
            else:
                np.add.at(memories.accumulator, rows, sums)

    def accesses(self) -> Sequence[Access]:
        """Reads of both operands, writes of accumulator rows."""
        return self._nest.accesses()
