"""The instruction stream of a matrix product Y = X W, scheduled by hand for the benchmark.

X (rows of activations), W (in array tiles, as the compiler lays weights out) and Y lie in DRAM. Two
orders are used. A product whose operands fit twice on chip runs as a *wavefront*: each new block of
X or W is loaded just before the first tile that needs it, and every tile that it makes possible
follows at once, so that MATRIX starts after two small loads and then stays ahead of LOAD. A larger
one runs block row by block row with the reduction in pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from weft.benchmarks.product import Addresses, Product
from weft.compiler.context import Ring
from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Space, Stream, reads, writes
from weft.compiler.synchronize import synchronize
from weft.compiler.transfers import load_parameters
from weft.compiler.vectors import trim
from weft_hw.instructions import (
    Accumulate,
    End,
    Load,
    Matrix,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Store,
    Vector,
    WeightBits,
)

__all__ = ["product_program"]

SHORTEST_MATRIX = 64
"""Cycles of a wavefront's tile, at least: below, fetching its three instructions shows."""


_Tile = tuple[int, int, int, int]
"""A part of Y: first row, rows, first column tile, column tiles."""


@dataclass(frozen=True)
class _Blocks:
    """Sizes of a tile: rows of X, column tiles of W, array passes of the reduction."""

    rows: int
    width: int
    depth: int
    wavefront: bool


def product_program(product: Product, places: list[Addresses]) -> bytes:
    """Machine code that computes the product once for each of the places, in order."""
    schedule = _Schedule(product)
    for number, addresses in enumerate(places):
        schedule.add(number, addresses)
    instructions = synchronize(schedule.stream.steps, product.config)
    return b"".join(entry.encode() for entry in [*instructions, End()])


def _runs(count: int, longest: int, *, spare: bool) -> Iterator[tuple[int, int]]:
    """Parts (first, length) of ``count`` neighbours; with ``spare`` the last one stands alone.

    The very last tile should be small: nothing hides its requantization and its store.
    """
    behind = count - 1 if spare and count > 1 else count
    for first in range(0, behind, longest):
        yield first, min(longest, behind - first)
    if behind < count:
        yield behind, 1


class _Schedule:
    def __init__(self, product: Product) -> None:
        config = product.config
        self.product, self.config = product, config
        self.stream = Stream()
        # Results lie in banks of their own, so that STORE and VECTOR never meet MATRIX and LOAD.
        self.result_base = config.activation_bytes * 3 // 4
        self.left = Ring(self.result_base)
        self.results = Ring(config.activation_bytes - self.result_base)
        self.weights = Ring(config.weight_bytes)
        self.parameters = Ring(config.parameter_rows)
        self.banks = [Ring(config.accumulator_rows) for _ in range(config.accumulator_banks)]
        self.bank = 0
        self.loaded: dict[tuple[str, int], int] = {}
        self.blocks = self._choose()

    def _choose(self) -> _Blocks:
        product, config = self.product, self.config
        fits = (
            2 * product.left_bytes <= self.left.capacity
            and 2 * product.weight_bytes <= self.weights.capacity
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
            max(1, self.left.capacity // (4 * rows * product.tile_depth)),
        )
        return _Blocks(rows, width, depth, wavefront=False)

    # Order -------------------------------------------------------------------------------------

    def add(self, number: int, places: Addresses) -> None:
        """Append one product."""
        self.stream.layer, self.stream.tile = number, 0
        if self.blocks.wavefront:
            # One place each for all of X and W: neighbouring blocks can be read as one.
            self.whole_left = self.left.place(number, self.product.left_bytes)
            self.whole_weights = self.weights.place(number, self.product.weight_bytes)
        tiles = list(self._order())
        for tile, after in zip(tiles, [*tiles[1:], None], strict=True):
            self._tile(number, places, tile, after)
            self.stream.tile += 1

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

    def _tile(self, number: int, places: Addresses, tile: _Tile, after: _Tile | None) -> None:
        row, rows, column, width = tile
        product, config, blocks = self.product, self.config, self.blocks
        self.bank = (self.bank + 1) % config.accumulator_banks
        sums = self.bank * config.accumulator_rows + self.banks[self.bank].place(None, rows * width)
        for first in range(0, product.depth_tiles, blocks.depth):
            depth = min(blocks.depth, product.depth_tiles - first)
            weights = self._load_weights(number, places, column, width, first, depth)
            left = self._load_left(number, places, row, rows, first, depth)
            self._multiply(left, weights, sums, rows, width, depth, overwrite=first == 0)
        if after is not None and blocks.wavefront:  # ahead of what VECTOR and STORE wait for
            self._load_weights(number, places, after[2], after[3], 0, product.depth_tiles)
            self._load_left(number, places, after[0], after[1], 0, product.depth_tiles)
        parameters = self._load_parameters(number, places, column, width)
        result = self.result_base + self.results.place(None, rows * width * config.columns)
        self._requantize(sums, parameters, result, rows, width)
        self._store(places, result, row, rows, column, width)

    def _load_weights(
        self, number: int, places: Addresses, column: int, width: int, first: int, depth: int
    ) -> int:
        """A block of tiles, those of a column tile behind one another."""
        key, tile = (number, column, first), self.config.tile_bytes
        size = width * depth * tile
        if self.blocks.wavefront:
            address = self.whole_weights + column * depth * tile
            if not self._is_new(("weights", number), column):
                return address
        else:
            found = self.weights.find(key)
            if found is not None:
                return found
            address = self.weights.place(key, size)
        whole = depth == self.product.depth_tiles
        pitch = self.product.depth_tiles * tile
        dram = places.weights + column * pitch + first * tile
        self.stream.emit(
            Load(
                dram_address=dram,
                address=address,
                counts=(1 if whole else width, 1, 1),
                dram_strides=(0 if whole or width == 1 else pitch, 0, 0),
                strides=(0 if whole or width == 1 else depth * tile, 0, 0),
                run_bytes=size if whole else depth * tile,
                memory=Memory.WEIGHT,
                extent=1,
            ),
            "load weights",
            reads(Space.DRAM, (dram, dram + (width - 1) * pitch + depth * tile)),
            writes(Space.WEIGHT, (address, address + size)),
        )
        return address

    def _load_left(
        self, number: int, places: Addresses, row: int, rows: int, first: int, depth: int
    ) -> int:
        key, run = (number, row, first), depth * self.product.tile_depth
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
        whole = run == pitch
        dram = places.left + row * pitch + first * self.product.tile_depth
        self.stream.emit(
            Load(
                dram_address=dram,
                address=address,
                counts=(1 if whole else rows, 1, 1),
                dram_strides=(0 if whole or rows == 1 else pitch, 0, 0),
                strides=(0 if whole or rows == 1 else run, 0, 0),
                run_bytes=rows * run if whole else run,
                memory=Memory.ACTIVATION,
                extent=1,
            ),
            "load X",
            reads(Space.DRAM, (dram, dram + (rows - 1) * pitch + run)),
            writes(Space.ACTIVATION, (address, address + rows * run)),
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
        if self.blocks.wavefront and self.product.width_tiles <= self.config.parameter_rows // 2:
            return self._load_all_parameters(number, places) + column
        found = self.parameters.find((number, column, width))
        if found is not None:
            return found
        row = self.parameters.place((number, column, width), width)
        dram = places.parameters + column * self.config.parameter_row_bytes
        load_parameters(self.stream, dram, row, width, self.config)
        return row

    def _load_all_parameters(self, number: int, places: Addresses) -> int:
        found = self.parameters.find(number)
        if found is not None:
            return found
        row = self.parameters.place(number, self.product.width_tiles)
        load_parameters(self.stream, places.parameters, row, self.product.width_tiles, self.config)
        return row

    def _multiply(
        self,
        left: int,
        weights: int,
        sums: int,
        rows: int,
        width: int,
        depth: int,
        *,
        overwrite: bool,
    ) -> None:
        config, step = self.config, self.product.tile_depth
        tile, run = config.tile_bytes, depth * step
        counts = (width, 1, 1, depth, 1, 1, rows)
        self.stream.emit(
            Matrix(
                weight_bits=WeightBits.of(self.product.weight_bits),
                accumulate=Accumulate.OVERWRITE_FIRST if overwrite else Accumulate.ALWAYS_ADD,
                counts=counts,
                left_address=left,
                left_strides=trim((0, 0, 0, step, 0, 0, run), counts),
                top_address=weights,
                top_strides=trim((depth * tile, 0, 0, tile, 0, 0, 0), counts),
                tile_stride=config.columns,
                accumulator_address=sums,
                accumulator_strides=trim((rows, 0, 0, 0, 0, 0, 1), counts),
            ),
            "multiply",
            reads(Space.ACTIVATION, (left, left + rows * run)),
            reads(Space.WEIGHT, (weights, weights + width * depth * tile)),
            writes(Space.ACCUMULATOR, (sums, sums + rows * width)),
        )

    def _requantize(self, sums: int, parameters: int, result: int, rows: int, width: int) -> None:
        columns = self.config.columns
        counts = (width, 1, 1, rows, 1, 1)
        self.stream.emit(
            Vector(
                counts=counts,
                a_source=OperandSource.ACCUMULATOR,
                a_address=sums,
                a_strides=trim((rows, 0, 0, 1, 0, 0), counts),
                use_bias=1,
                scale_source=ScaleSource.PARAMETER,
                parameter_address=parameters,
                parameter_strides=trim((1, 0, 0, 0), counts),
                rounding=Rounding.HALF_EVEN,
                clamp_low=-128,
                clamp_high=127,
                destination=Memory.ACTIVATION,
                address=result,
                strides=trim((columns, 0, 0, width * columns), counts),
            ),
            "requantize",
            reads(Space.ACCUMULATOR, (sums, sums + rows * width)),
            reads(Space.PARAMETER, (parameters, parameters + width)),
            writes(Space.ACTIVATION, (result, result + rows * width * columns)),
        )

    def _store(
        self, places: Addresses, result: int, row: int, rows: int, column: int, width: int
    ) -> None:
        columns, pitch = self.config.columns, self.product.result_pitch
        run = width * columns
        whole = run == pitch
        dram = places.result + row * pitch + column * columns
        self.stream.emit(
            Store(
                dram_address=dram,
                address=result,
                counts=(1 if whole else rows, 1, 1),
                dram_strides=(0 if whole or rows == 1 else pitch, 0, 0),
                strides=(0 if whole or rows == 1 else run, 0, 0),
                run_bytes=rows * run if whole else run,
                memory=Memory.ACTIVATION,
                extent=1,
            ),
            "store Y",
            reads(Space.ACTIVATION, (result, result + rows * run)),
            writes(Space.DRAM, (dram, dram + (rows - 1) * pitch + run)),
        )
