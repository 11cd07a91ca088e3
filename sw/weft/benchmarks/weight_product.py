"""Y = X W and dX = dY W^T, weight-stationary, from the same W in memory.

Below, X is the left operand: dY for dX, whose weight tiles enter from the left, transposed. Two
orders are used. A product whose operands fit twice on chip runs as a *wavefront*: each new block of
X or W is loaded just before the first tile that needs it, and every tile that it makes possible
follows at once, so that MATRIX starts after two small loads and then stays ahead of LOAD. A larger
one runs block row by block row with the reduction in pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from weft.benchmarks.blocks import Block, load_block
from weft.benchmarks.product import Addresses, Product
from weft.benchmarks.product_memories import ProductMemories
from weft.compiler.context import Ring
from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Space, reads, writes
from weft.compiler.transfers import load_parameters
from weft.compiler.vectors import trim
from weft_hw.instructions import Accumulate, LoadSide, Matrix, Memory, WeightBits

__all__ = ["WeightProductSchedule"]

SHORTEST_MATRIX = 64
"""Cycles of a wavefront's tile, at least: below, fetching its three instructions shows."""


_Tile = tuple[int, int, int, int]
"""A part of the result: first row, rows, first column tile, column tiles."""


@dataclass(frozen=True)
class _Blocks:
    """Sizes of a tile: rows of X, column tiles of W, array passes of the reduction."""

    rows: int
    width: int
    depth: int
    wavefront: bool


@dataclass(frozen=True)
class _Tiles:
    """Weight tiles on chip: the first one, and distances of column and of reduction tiles."""

    address: int
    column_step: int
    depth_step: int


def _runs(count: int, longest: int, *, spare: bool) -> Iterator[tuple[int, int]]:
    """Parts (first, length) of ``count`` neighbours; with ``spare`` the last one stands alone.

    The very last tile should be small: nothing hides its requantization and its store.
    """
    behind = count - 1 if spare and count > 1 else count
    for first in range(0, behind, longest):
        yield first, min(longest, behind - first)
    if behind < count:
        yield behind, 1


class WeightProductSchedule(ProductMemories):
    """Appends products Y = X W, or dX = dY W^T, to a stream.

    Parameters
    ----------
    product : Product
        Of kind Y or DX.
    shift : int
    """

    def __init__(self, product: Product, shift: int) -> None:
        super().__init__(product.config, product.kind.value, shift)
        self.product = product
        self.parameters = Ring(self.config.parameter_rows)
        self.loaded: dict[tuple[str, int], int] = {}
        # Tiles between neighbouring column tiles, and reduction tiles, of W in memory.
        self.column_step = 1 if product.transposed else product.depth_tiles
        self.depth_step = product.width_tiles if product.transposed else 1
        self.blocks = self._choose()

    def _choose(self) -> _Blocks:
        product, config = self.product, self.config
        fits = (
            2 * product.left_bytes <= self.left.capacity
            and 2 * product.top_bytes <= self.top.capacity
            and 2 * product.result_bytes <= self.results.capacity
        )
        if fits:
            rows = config.rows * ceil_div(SHORTEST_MATRIX, config.rows * product.depth_tiles)
            rows = min(rows, product.rows, config.accumulator_rows)
            return _Blocks(rows, 1, product.depth_tiles, wavefront=True)
        rows = min(product.rows, 4 * config.rows, config.accumulator_rows)
        while rows > config.rows and 2 * rows * product.left_pitch > self.left.capacity:
            rows //= 2
        width = min(
            product.width_tiles,
            config.accumulator_rows // rows,
            max(1, config.parameter_rows // 2),
            max(1, config.weight_bytes // (2 * config.tile_bytes)),
            max(1, self.results.capacity // (2 * rows * config.columns)),
        )
        depth = min(
            product.depth_tiles,
            max(1, config.weight_bytes // (8 * width * config.tile_bytes)),
            max(1, self.left.capacity // (4 * rows * product.left_row)),
        )
        return _Blocks(rows, width, depth, wavefront=False)

    # Order -------------------------------------------------------------------------------------

    def add(self, number: int, places: Addresses) -> None:
        """Append one product."""
        self.stream.layer, self.stream.tile = number, 0
        if self.blocks.wavefront:
            # One place each for all of X and W: neighbouring blocks can be read as one.
            self.whole_left = self.left.place(number, self.product.left_bytes)
            self.whole_weights = self.top.place(number, self.product.top_bytes)
        held: tuple[_Tile, int] | None = None
        tiles = list(self._order())
        for tile, after in zip(tiles, [*tiles[1:], None], strict=True):
            sums = self._sum(number, places, tile)
            if after is not None and self.blocks.wavefront:
                self._load(number, places, after, 0, self.product.depth_tiles)
            # A tile behind: neither fetch nor LOAD serves a result before the next tile's sums.
            if held is not None:
                self._requantize(number, places, *held)
            held = tile, sums
            self.stream.tile += 1
        if held is not None:
            self._requantize(number, places, *held)

    def _order(self) -> Iterator[_Tile]:
        """All tiles in the order of their computation."""
        product, blocks = self.product, self.blocks
        rows = [
            (row, min(blocks.rows, product.rows - row))
            for row in range(0, product.rows, blocks.rows)
        ]
        columns = [
            (column, min(blocks.width, product.width_tiles - column))
            for column in range(0, product.width_tiles, blocks.width)
        ]
        if not blocks.wavefront:
            yield from ((*row, *column) for row in rows for column in columns)
            return
        most = self.config.accumulator_rows
        known_rows = known_columns = 1
        yield (*rows[0], *columns[0])
        while known_rows < len(rows) or known_columns < len(columns):
            more_columns = known_columns < len(columns)
            if more_columns and (known_columns <= known_rows or known_rows == len(rows)):
                column = columns[known_columns][0]
                known_columns += 1
                last = known_rows == len(rows) and known_columns == len(columns)
                for part, parts in _runs(known_rows, most // blocks.rows, spare=last):
                    start = rows[part][0]
                    yield start, sum(count for _, count in rows[part : part + parts]), column, 1
            else:
                row, count = rows[known_rows]
                known_rows += 1
                last = known_rows == len(rows) and known_columns == len(columns)
                for part, width in _runs(known_columns, most // count, spare=last):
                    yield row, count, part, width

    # One tile ----------------------------------------------------------------------------------

    def _sum(self, number: int, places: Addresses, tile: _Tile) -> int:
        """Load what is not on chip, and multiply; the result is the first row of sums."""
        _, rows, _, width = tile
        sums = self.sums(rows * width)
        for first in range(0, self.product.depth_tiles, self.blocks.depth):
            depth = min(self.blocks.depth, self.product.depth_tiles - first)
            weights, left = self._load(number, places, tile, first, depth)
            self._multiply(left, weights, sums, rows, width, depth, overwrite=first == 0)
        return sums

    def _load(
        self, number: int, places: Addresses, tile: _Tile, first: int, depth: int
    ) -> tuple[_Tiles, int]:
        """Operands of a tile's part of the reduction: weights, and address of the left block."""
        row, rows, column, width = tile
        weights = self._load_weights(number, places, column, width, first, depth)
        return weights, self._load_left(number, places, row, rows, first, depth)

    def _requantize(self, number: int, places: Addresses, tile: _Tile, sums: int) -> None:
        row, rows, column, width = tile
        parameters = None
        if not self.product.transposed:
            parameters = self._load_parameters(number, places, column, width)
        columns, pitch = self.config.columns, self.product.result_pitch
        target = places.result + row * pitch + column * columns
        self.finish(sums, Block(target, rows, width * columns, pitch), parameters)

    def _load_weights(
        self, number: int, places: Addresses, column: int, width: int, first: int, depth: int
    ) -> _Tiles:
        """A block of weight tiles; a wavefront loads single columns and reads several."""
        key, tile, product = (number, column, first), self.config.tile_bytes, self.product
        start = (column * self.column_step + first * self.depth_step) * tile
        # What is contiguous in memory: the reduction's tiles, or the columns' if transposed.
        inner, outer = (width, depth) if product.transposed else (depth, width)
        pitch = (self.depth_step if product.transposed else self.column_step) * tile
        size = inner * outer * tile
        if self.blocks.wavefront:
            address = self.whole_weights + column * depth * tile
            known = not self._is_new(("weights", number), column)
        else:
            found = self.top.find(key)
            known = found is not None
            address = self.top.place(key, size) if found is None else found
        if not known:
            load_block(
                self.stream,
                Block(places.top + start, outer, inner * tile, pitch),
                Block(address, outer, inner * tile, inner * tile),
                Memory.WEIGHT,
                "load weights",
            )
        # A column tile's tiles lie behind one another, unless several columns come transposed.
        if product.transposed and not self.blocks.wavefront:
            return _Tiles(address, tile, width * tile)
        return _Tiles(address, depth * tile, tile)

    def _load_left(
        self, number: int, places: Addresses, row: int, rows: int, first: int, depth: int
    ) -> int:
        key, run = (number, row, first), depth * self.product.left_row
        if self.blocks.wavefront:
            address = self.whole_left + row * run
            if not self._is_new(("left", number), row):
                return address
        else:
            found = self.left.find(key)
            if found is not None:
                return found
            address = self.left.place(key, rows * run)
        pitch = self.product.left_pitch
        start = places.left + row * pitch + first * self.product.left_row
        load_block(
            self.stream,
            Block(start, rows, run, pitch),
            Block(address, rows, run, run),
            Memory.ACTIVATION,
            "load dY" if self.product.transposed else "load X",
        )
        return address

    def _is_new(self, operand: tuple[str, int], first: int) -> bool:
        """Whether a wavefront has not loaded up to here yet; then it is about to."""
        new = first > self.loaded.get(operand, -1)
        if new:
            self.loaded[operand] = first
        return new

    def _load_parameters(self, number: int, places: Addresses, column: int, width: int) -> int:
        """Parameter rows, once a column block; VECTOR needs them later than MATRIX its operands."""
        config, column_tiles = self.config, self.product.width_tiles
        first = column
        if self.blocks.wavefront and column_tiles <= config.parameter_rows // 2:
            first, width = 0, column_tiles  # all at once
        row = self.parameters.find((number, first, width))
        if row is None:
            row = self.parameters.place((number, first, width), width)
            dram = places.parameters + first * config.parameter_row_bytes
            load_parameters(self.stream, dram, row, width, config)
        return row + column - first

    def _multiply(
        self,
        left: int,
        weights: _Tiles,
        sums: int,
        rows: int,
        width: int,
        depth: int,
        *,
        overwrite: bool,
    ) -> None:
        config = self.config
        row = self.product.left_row
        run = depth * row
        counts = (width, 1, 1, depth, 1, 1, rows)
        behind = (width - 1) * weights.column_step + (depth - 1) * weights.depth_step
        end = weights.address + behind + config.tile_bytes
        self.stream.emit(
            Matrix(
                weight_bits=WeightBits.of(self.product.weight_bits),
                accumulate=Accumulate.OVERWRITE_FIRST if overwrite else Accumulate.ALWAYS_ADD,
                load_side=LoadSide.LEFT if self.product.transposed else LoadSide.TOP,
                counts=counts,
                left_address=left,
                left_strides=trim((0, 0, 0, row, 0, 0, run), counts),
                top_address=weights.address,
                top_strides=trim((weights.column_step, 0, 0, weights.depth_step, 0, 0, 0), counts),
                tile_stride=config.columns,
                accumulator_address=sums,
                accumulator_strides=trim((rows, 0, 0, 0, 0, 0, 1), counts),
            ),
            "multiply",
            reads(Space.ACTIVATION, (left, left + rows * run)),
            reads(Space.WEIGHT, (weights.address, end)),
            writes(Space.ACCUMULATOR, (sums, sums + rows * width)),
        )
