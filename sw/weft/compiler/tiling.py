"""Choice of tile sizes: what fits the memories, and of that what should take the fewest cycles."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from weft.compiler.kernels import Chunk, Kernel, ceil_div
from weft.ir import AveragePool2d, Concatenate, MaxPool2d
from weft_hw.instructions import Load, Matrix, Store, Vector

__all__ = ["NO_LIMITS", "TileLimits", "Tiling", "Where", "choose_tiling", "smallest_need"]

# Cycles between neighbouring instructions of an engine, and from an instruction's last step to its
# retirement. A MATRIX follows another without a pause.
VECTOR_GAP = 5
VECTOR_LATENCY = 20
TRANSFER_GAP = 8
TRANSFER_LATENCY = 40
MATRIX_LATENCY = 15  # besides rows + columns

FETCH_COST = 1.0  # cycles a beat of instructions counts for although it is hidden
BESIDE = 0.5
"""Weight of VECTOR's cycles that should hide behind a convolution."""


@dataclass(frozen=True)
class Where:
    """What a layer finds: which operands are on chip, and how much room is left for the others.

    Parameters
    ----------
    spilled_inputs : int
        Inputs that have to be loaded tile by tile.
    spilled_output : bool
        Whether results have to be stored tile by tile from a staging area.
    room : int
        Bytes of the activation scratchpad for all this.
    """

    spilled_inputs: int
    spilled_output: bool
    room: int


@dataclass(frozen=True)
class Tiling:
    """Sizes of a layer's tiles.

    Parameters
    ----------
    channel_tiles : int
        Output channel tiles (of ``columns`` channels) a tile.
    rows, columns : int
        Output pixels a tile.
    chunks : tuple of Chunk
        The parts of the reduction (or pooling window), in order.
    input_bytes, output_bytes : int
        Size of an input slab and of a staging area, 0 if not needed.
    slots : int
        How many of each: 2 let transfers overlap with computing.
    """

    channel_tiles: int
    rows: int
    columns: int
    chunks: tuple[Chunk, ...]
    input_bytes: int
    output_bytes: int
    slots: int


@dataclass(frozen=True)
class TileLimits:
    """What the tiles of a layer with weights are kept to, if its operands are all on chip.

    A layer on its own wants large tiles. Smaller ones let the next layer begin earlier, and so
    VECTOR work for one layer while MATRIX does for another.

    Parameters
    ----------
    steps : int or None
        Vectors of a tile, times the cycles that a depthwise convolution takes for each.
    all_channels : bool
        A tile has all output channels.
    """

    steps: int | None = None
    all_channels: bool = False

    def allow(self, kernel: Kernel, channel_tiles: int, rows: int, columns: int) -> bool:
        """Whether a tile of these sizes stays within them, or cannot be smaller."""
        if self.all_channels and channel_tiles < kernel.result_tiles:
            return False
        cycles = kernel.window[0] if kernel.is_depthwise else 1
        return (
            self.steps is None or rows == 1 or channel_tiles * rows * columns * cycles <= self.steps
        )


NO_LIMITS = TileLimits()


def choose_tiling(
    kernel: Kernel, where: Where, random: Random | None = None, limits: TileLimits = NO_LIMITS
) -> Tiling | None:
    """The tiling with the least estimated time, or None if none fits.

    Parameters
    ----------
    kernel : Kernel
    where : Where
    random : random.Random, optional
        For tests: any tiling that fits, instead of the best one.
    limits : TileLimits
        Followed if any tiling within them fits.
    """
    if random is not None:
        return _any_tiling(kernel, where, random)
    weighted = kernel.is_convolution or kernel.is_depthwise
    if limits != NO_LIMITS and (where.spilled_inputs or where.spilled_output or not weighted):
        limits = NO_LIMITS
    for chunks in _chunkings(kernel):
        best: tuple[float, Tiling] | None = None
        for sizes in _sizes(kernel):
            if not limits.allow(kernel, *sizes):
                continue
            tiling = _fit(kernel, where, chunks, *sizes)
            if tiling is None:
                continue
            cost = _cost(kernel, where, tiling)
            if best is None or cost < best[0]:
                best = cost, tiling
        if best is not None:
            return best[1]
    return None if limits == NO_LIMITS else choose_tiling(kernel, where)


def smallest_need(kernel: Kernel, where: Where) -> int:
    """Bytes of activation scratchpad that the smallest tile takes, for error messages."""
    chunks = list(_chunkings(kernel))[-1]
    inputs, output = _areas(kernel, where, chunks, 1, 1, 1)
    return inputs * where.spilled_inputs + output


def _any_tiling(kernel: Kernel, where: Where, random: Random) -> Tiling | None:
    options = list(_chunkings(kernel))
    sizes = list(itertools.product(*map(_splits, (kernel.result_tiles, *kernel.result[:2]))))
    for _ in range(40):
        tiling = _fit(kernel, where, random.choice(options), *random.choice(sizes))
        if tiling is not None:
            return tiling
    return choose_tiling(kernel, where)


def _splits(count: int) -> list[int]:
    """Sizes of equal parts, from one part to ``count`` parts, in growing steps."""
    parts = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048]
    return sorted({ceil_div(count, part) for part in parts if part < count} | {1}, reverse=True)


def _sizes(kernel: Kernel) -> Iterator[tuple[int, int, int]]:
    rows, columns, _ = kernel.result
    pixels = {(row, columns) for row in _splits(rows)}
    pixels |= {(row, column) for column in _splits(columns) for row in (1, 2, 4, 8) if row <= rows}
    for channel_tiles in _splits(kernel.result_tiles):
        # Whole rows first: of equal cost they win, and a reader of the result waits for rows.
        for row, column in sorted(pixels, key=lambda size: (-size[1], -size[0])):
            yield channel_tiles, row, column


def _chunkings(kernel: Kernel) -> Iterator[tuple[Chunk, ...]]:
    """Ways to cut the reduction, from whole to finest."""
    taps_y, taps_x = kernel.taps
    if isinstance(kernel.operation, MaxPool2d | AveragePool2d):
        tiles = [kernel.reduction_tiles]
    elif kernel.packs_taps:
        # A slab of packed taps spans the kernel's width, so that only kernel rows are cut.
        tiles = [kernel.reduction_tiles]
    elif kernel.is_convolution:
        tiles = _splits(kernel.reduction_tiles)
    else:
        yield (kernel.whole,)
        return
    cuts = [(taps_y, taps_x, count) for count in tiles]
    cuts += [(rows, taps_x, tiles[0]) for rows in _splits(taps_y)]
    cuts += [(1, taps_x, count) for count in tiles]
    cuts += [(1, columns, tiles[-1]) for columns in _splits(taps_x)]
    for cut in dict.fromkeys(cuts):
        yield tuple(_cut(kernel.whole, *cut))


def _cut(whole: Chunk, rows: int, columns: int, tiles: int) -> Iterator[Chunk]:
    for y in range(whole.y0, whole.y1, rows):
        for x in range(whole.x0, whole.x1, columns):
            for r in range(whole.r0, whole.r1, tiles):
                yield Chunk(
                    y,
                    min(y + rows, whole.y1),
                    x,
                    min(x + columns, whole.x1),
                    r,
                    min(r + tiles, whole.r1),
                )


def _areas(
    kernel: Kernel,
    where: Where,
    chunks: tuple[Chunk, ...],
    channel_tiles: int,
    rows: int,
    cols: int,
) -> tuple[int, int]:
    """Bytes of an input slab and of a staging area, each with room for wide reads behind it."""
    config = kernel.config
    line = config.line_bytes
    width = channel_tiles * config.columns
    inputs = output = 0
    if where.spilled_inputs:
        chunk = chunks[0]  # the largest
        needed_rows = min(kernel.rows_needed(rows, chunk), kernel.source[0])
        first, end = kernel.columns_needed(0, cols, chunk)
        needed = min(end - first, kernel.source[1])
        pitch = kernel.source_pitch
        gap = 0
        if kernel.packs_taps:
            blocks = range(0, kernel.result[1], cols)
            gap = max(kernel.gap(x, min(cols, kernel.result[1] - x), chunk) for x in blocks)
        elif kernel.is_convolution:
            pitch = (chunk.r1 - chunk.r0) * kernel.step_bytes
        else:
            pitch = min(pitch, width)
        inputs = (gap + needed_rows * (needed + gap)) * pitch + line
    if where.spilled_output:
        output = rows * cols * min(width, kernel.result_pitch) + line
    return ceil_div(inputs, line) * line, ceil_div(output, line) * line


def _fit(
    kernel: Kernel,
    where: Where,
    chunks: tuple[Chunk, ...],
    channel_tiles: int,
    rows: int,
    cols: int,
) -> Tiling | None:
    """The tiling of these sizes, or None if a memory or a descriptor's field is too small."""
    config = kernel.config
    uses_accumulators = kernel.is_convolution or kernel.adds
    if uses_accumulators or len(chunks) > 1:
        if channel_tiles * rows * cols > config.accumulator_rows:
            return None
    if kernel.is_convolution:
        if channel_tiles > config.parameter_rows:
            return None
        if channel_tiles * chunks[0].tiles * config.tile_bytes > config.weight_bytes:
            return None
    if kernel.is_depthwise:
        taps = kernel.window[0] * kernel.window[1]
        if channel_tiles > config.parameter_rows:
            return None
        if channel_tiles * taps * config.columns > config.weight_bytes:
            return None
    if isinstance(kernel.operation, Concatenate) and channel_tiles < kernel.result_tiles:
        return None
    if channel_tiles > 4095 or chunks[0].r1 - chunks[0].r0 > 4095:
        return None
    inputs, output = _areas(kernel, where, chunks, channel_tiles, rows, cols)
    for slots in (2, 1):
        if slots * (inputs * where.spilled_inputs + output) <= where.room:
            return Tiling(channel_tiles, rows, cols, chunks, inputs, output, slots)
    return None


def _cost(kernel: Kernel, where: Where, tiling: Tiling) -> float:
    """Estimated cycles of the pipeline load, matrix, vector, store over all tiles.

    The slowest engine sets the pace; the first tile runs through all of them, and then so does the
    last one's rest.
    """
    config = kernel.config
    rows, columns, _ = kernel.result
    spatial = ceil_div(rows, tiling.rows) * ceil_div(columns, tiling.columns)
    blocks = ceil_div(kernel.result_tiles, tiling.channel_tiles)
    tiles = spatial * blocks
    chunks = len(tiling.chunks)
    vectors = tiling.channel_tiles * tiling.rows * tiling.columns
    vector, latency = _vector_cycles(kernel, vectors)
    fetched = Vector.size * (3 if kernel.adds else 1)
    alone = not kernel.is_convolution and not kernel.is_depthwise  # without weights to load
    if alone and not where.spilled_inputs and not where.spilled_output:
        # All but the last tile can run beside the layer before (weft.compiler.overlap).
        return vector + latency + BESIDE * (tiles - 1) * (vector + latency)
    matrix = store = load = turns = 0.0
    first_load = 0.0
    if kernel.is_convolution:
        steps = tiling.channel_tiles * kernel.whole.tiles
        matrix = steps * max(config.rows, tiling.rows * tiling.columns)
        latency += config.rows + config.columns + MATRIX_LATENCY
        fetched += Matrix.size * chunks
        weights = steps * config.tile_bytes / config.bus_bytes + TRANSFER_GAP * chunks
        everything = kernel.result_tiles * kernel.whole.tiles * config.tile_bytes
        stays = chunks == 1 or everything <= config.weight_bytes
        load += weights * blocks * (1 if stays else spatial)
        first_load += weights
        if 2 * steps * config.tile_bytes > config.weight_bytes and blocks > 1:
            turns += weights + TRANSFER_LATENCY  # no second buffer: loading and computing alternate
    if where.spilled_inputs:
        slabs = where.spilled_inputs * chunks
        slab = slabs * (tiling.input_bytes / config.bus_bytes + TRANSFER_GAP)
        fetched += Load.size * slabs
        load += slab * spatial * (blocks if spatial * chunks > 1 else 1)
        first_load += slab / chunks
        if tiling.slots == 1:
            turns += slab + TRANSFER_LATENCY
    if where.spilled_output:
        store = tiling.output_bytes / config.bus_bytes + TRANSFER_GAP
        fetched += Store.size
    load += tiles * fetched / config.bus_bytes  # instructions come over the same bus
    buffers = config.accumulator_banks * (config.accumulator_rows // max(1, vectors))
    waiting = (matrix + vector + latency) / max(1, buffers)  # for accumulators to become free
    slowest = max(load / tiles, matrix + turns, vector, store, waiting)
    first = first_load + matrix + vector + store + latency + TRANSFER_LATENCY
    instructions = FETCH_COST * tiles * fetched / config.bus_bytes
    return first + (tiles - 1) * slowest + instructions


def _vector_cycles(kernel: Kernel, vectors: int) -> tuple[float, float]:
    """VECTOR's cycles for a tile, and its latency."""
    if kernel.adds:  # each pass reads what the one before has written
        return 3 * (vectors + VECTOR_GAP) + 2 * VECTOR_LATENCY, VECTOR_LATENCY
    window = 1 if kernel.is_convolution else kernel.window[0] * kernel.window[1]
    return vectors * window + VECTOR_GAP, VECTOR_LATENCY
