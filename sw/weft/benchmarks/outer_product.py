"""dW = X^T dY, output-stationary: both operands stream through the array as they lie in memory.

A block of the result, of several row and column tiles, is the product of a column block of X and
one of dY; each stays on chip while it is used. A reduction too long for the chip comes in pieces.
"""

from dataclasses import dataclass

from weft.benchmarks.blocks import Block, load_block
from weft.benchmarks.product import Addresses, Product
from weft.benchmarks.product_memories import ProductMemories
from weft.compiler.context import Ring
from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Space, reads, writes
from weft.compiler.vectors import trim
from weft_hw.instructions import COUNT_BITS, Accumulate, Dataflow, Matrix, Memory

__all__ = ["OuterProductSchedule"]

LONGEST_PIECE = 512
"""Of a reduction: at the end of a piece each tile costs rows + 1 cycles, 3 % of this on base16."""

BLOCK_TILES = 4
"""Tiles of a block, each way: loading 4 + 4 tiles takes half the time of 4 * 4 products."""


@dataclass(frozen=True)
class _Sizes:
    """Of a block: row tiles, column tiles, and the piece of the reduction."""

    height: int
    width: int
    piece: int


class OuterProductSchedule(ProductMemories):
    """Appends products dW = X^T dY to a stream.

    Parameters
    ----------
    product : Product
        Of kind DW.
    shift : int
    """

    def __init__(self, product: Product, shift: int) -> None:
        super().__init__(product.config, product.kind.value, shift)
        self.product = product
        self.sizes = self._choose()

    def _choose(self) -> _Sizes:
        product, config = self.product, self.config
        # Two blocks at least each way, where there are two tiles: nothing hides the first loads.
        height = min(BLOCK_TILES, ceil_div(product.row_tiles, 2))
        width = min(BLOCK_TILES, ceil_div(product.width_tiles, 2))
        while height * width * config.rows > config.accumulator_rows or (
            2 * height * width * config.tile_bytes > self.results.capacity
        ):
            height, width = max(1, height // 2), max(1, width // 2)

        def longest(height: int, width: int) -> int:
            return min(
                self.left.capacity // (2 * height * config.rows),
                self.top.capacity // (2 * width * config.columns),
            )

        wanted = min(product.depth, LONGEST_PIECE)
        while longest(height, width) < wanted and max(height, width) > 1:
            if self.left.capacity * width < self.top.capacity * height:
                height = max(1, height // 2)
            elif width > 1:
                width = max(1, width // 2)
            else:
                height = max(1, height // 2)
        piece = min(longest(height, width), product.depth, (1 << COUNT_BITS) - 1)
        return _Sizes(height, width, max(1, piece))

    def add(self, number: int, places: Addresses) -> None:
        """Append one product."""
        product, sizes = self.product, self.sizes
        self.stream.layer, self.stream.tile = number, 0
        for row in range(0, product.row_tiles, sizes.height):
            height = min(sizes.height, product.row_tiles - row)
            for column in range(0, product.width_tiles, sizes.width):
                width = min(sizes.width, product.width_tiles - column)
                self._block(number, places, row, height, column, width)
                self.stream.tile += 1

    def _block(
        self, number: int, places: Addresses, row: int, height: int, column: int, width: int
    ) -> None:
        product, config = self.product, self.config
        sums = self.sums(height * width * config.rows)
        for first in range(0, product.depth, self.sizes.piece):
            count = min(self.sizes.piece, product.depth - first)
            run = height * product.left_row
            start = places.left + first * product.left_pitch + row * product.left_row
            left = self._load(
                (number, row, first),
                Block(start, count, run, product.left_pitch),
                Memory.ACTIVATION,
            )
            run = width * config.columns
            start = places.top + first * product.result_pitch + column * config.columns
            top = self._load(
                (number, column, first),
                Block(start, count, run, product.result_pitch),
                Memory.WEIGHT,
            )
            self._multiply(left, top, sums, overwrite=first == 0)
        pitch = product.result_pitch
        target = places.result + row * config.rows * pitch + column * config.columns
        self.finish(sums, Block(target, height * config.rows, width * config.columns, pitch))

    def _load(self, key: tuple[int, int, int], dram: Block, memory: Memory) -> Block:
        """The block on chip, its runs behind one another."""
        ring: Ring = self.left if memory is Memory.ACTIVATION else self.top
        found = ring.find(key)
        address = ring.place(key, dram.rows * dram.run) if found is None else found
        chip = Block(address, dram.rows, dram.run, dram.run)
        if found is None:
            purpose = "load X" if memory is Memory.ACTIVATION else "load dY"
            load_block(self.stream, dram, chip, memory, purpose)
        return chip

    def _multiply(self, left: Block, top: Block, sums: int, *, overwrite: bool) -> None:
        config = self.config
        height, width = left.run // config.rows, top.run // config.columns
        counts = (height, width, 1, 1, 1, 1, left.rows)
        rows = height * config.rows  # of sums, of a column tile
        self.stream.emit(
            Matrix(
                dataflow=Dataflow.OUTPUT_STATIONARY,
                accumulate=Accumulate.OVERWRITE_FIRST if overwrite else Accumulate.ALWAYS_ADD,
                counts=counts,
                left_address=left.address,
                left_strides=trim((config.rows, 0, 0, 0, 0, 0, left.pitch), counts),
                top_address=top.address,
                top_strides=trim((0, config.columns, 0, 0, 0, 0, top.pitch), counts),
                tile_stride=1,
                accumulator_address=sums,
                accumulator_strides=trim((config.rows, rows, 0, 0, 0, 0, 0), counts),
            ),
            "multiply",
            reads(Space.ACTIVATION, left.span),
            reads(Space.WEIGHT, top.span),
            writes(Space.ACCUMULATOR, (sums, sums + rows * width)),
        )
