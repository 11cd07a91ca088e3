"""Choice of tile sizes for a gather: what fits on chip, and of that what should take least time."""

from collections.abc import Iterator
from dataclasses import dataclass

from weft.compiler.kernels import ceil_div
from weft.train.machine.axes import Axis
from weft.train.machine.builder import MOST_TRIPS, Builder

__all__ = [
    "BESIDE",
    "TRANSFER",
    "Bands",
    "GatherPlan",
    "Problem",
    "bands_of",
    "choose_plan",
    "splits",
]

TRANSFER = 60  # cycles from a load's start to its retirement, besides those of its bytes
BESIDE = 0.15  # weight of loads that hide behind products: others want the bus too
PER_TILE = 40  # cycles that a tile costs although its operands are there


def splits(count: int) -> list[int]:
    """Sizes of nearly equal parts, from one part to ``count`` parts, in growing steps."""
    parts = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048]
    return sorted({ceil_div(count, part) for part in parts if part < count} | {1}, reverse=True)


@dataclass(frozen=True)
class Problem:
    """Sizes of a gather.

    Parameters
    ----------
    batch : int
    y, x : Axis
    tiles, depth : int
        Channel tiles of the result and of the source.
    """

    batch: int
    y: Axis
    x: Axis
    tiles: int
    depth: int


@dataclass(frozen=True)
class GatherPlan:
    """Sizes of tiles and of the parts of their reductions; those at an end may be smaller.

    Parameters
    ----------
    images, rows, columns, tiles : int
        Of a tile of sums; ``tiles`` of its channels.
    kernel : (int, int)
        Kernel rows and columns of a part of the reduction.
    depth : int
        Channel tiles of a part of the reduction.
    tiles_first : bool
        Tiles of other channels come before those of other pixels: an image's slab stays on chip.
    """

    images: int
    rows: int
    columns: int
    tiles: int
    kernel: tuple[int, int]
    depth: int
    tiles_first: bool


@dataclass(frozen=True)
class Bands:
    """What an axis cut into bands of a size asks for, in all and at most."""

    count: int
    passes: int  # taps, of all bands and phases
    products: int  # positions times taps
    largest: int  # sources of a band
    read: int  # sources of all bands
    parts: int  # parts of the kernel that bands meet, in all


def bands_of(axis: Axis, size: int, kernel: int) -> Bands:
    """What bands of ``size`` results need, each by ``kernel`` taps at a time."""
    count = passes = products = largest = read = parts = 0
    for first in range(0, axis.result, size):
        results = first, min(first + size, axis.result)
        count += 1
        for tap in range(0, axis.kernel, kernel):
            taps = tap, min(tap + kernel, axis.kernel)
            found = [part for part in axis.parts(results, taps) if part.counts[1]]
            if not found:
                continue
            spans = [part.spans(axis.source) for part in found]
            sources = max(end for _, end in spans) - min(begin for begin, _ in spans)
            parts += 1
            passes += sum(part.counts[1] for part in found)
            products += sum(part.counts[0] * part.counts[1] for part in found)
            largest = max(largest, sources)
            read += sources
    return Bands(count, max(1, passes), max(1, products), largest, read, max(1, parts))


class _Chooser:
    """Estimates of one problem's plans."""

    def __init__(self, problem: Problem, builder: Builder) -> None:
        self.problem, self.builder = problem, builder
        self.side = builder.side
        self.known: dict[tuple[int, int, int], Bands] = {}

    def bands(self, number: int, size: int, kernel: int) -> Bands:
        key = number, size, kernel
        if key not in self.known:
            axis = (self.problem.y, self.problem.x)[number]
            self.known[key] = bands_of(axis, size, kernel)
        return self.known[key]

    def sizes(self) -> Iterator[tuple[int, int, int, int]]:
        """Images, rows, columns, channel tiles."""
        problem, limit = self.problem, self.builder.limit_rows
        height, width = problem.y.result, problem.x.result
        pixels = [(rows, width) for rows in splits(height)]
        pixels += [(1, columns) for columns in splits(width) if columns < width]
        for rows, columns in pixels:
            for images in splits(problem.batch):
                for tiles in splits(problem.tiles):
                    if images * rows * columns * tiles <= limit:
                        yield images, rows, columns, tiles

    def kernels(self) -> Iterator[tuple[tuple[int, int], int]]:
        """Parts of the reduction: kernel rows and columns, channel tiles."""
        (rows, columns), depth = (
            (self.problem.y.kernel, self.problem.x.kernel),
            self.problem.depth,
        )
        cuts = [((rows, columns), part) for part in splits(depth)]
        cuts += [((1, columns), part) for part in (depth, *splits(depth))]
        cuts += [((part, columns), depth) for part in splits(rows)]
        cuts += [((1, part), depth) for part in splits(columns)]
        cuts += [((1, 1), part) for part in splits(depth)]
        yield from dict.fromkeys(cuts)

    def cost(self, plan: GatherPlan) -> float | None:
        """Cycles, roughly; None if it does not fit."""
        problem, builder, side = self.problem, self.builder, self.side
        bus = builder.config.bus_bytes
        y = self.bands(0, plan.rows, plan.kernel[0])
        x = self.bands(1, plan.columns, plan.kernel[1])
        slab = plan.images * y.largest * x.largest * plan.depth * side
        weights = plan.kernel[0] * plan.kernel[1] * plan.depth * plan.tiles * side * side
        if slab > builder.operands.capacity or weights > builder.weights.capacity:
            return None
        if max(y.largest, x.largest, *plan.kernel, plan.depth) > MOST_TRIPS:
            return None
        groups = ceil_div(problem.tiles, plan.tiles)
        cuts = ceil_div(problem.depth, plan.depth)
        images = ceil_div(problem.batch, plan.images)
        boxes = images * y.count * x.count
        parts = cuts * y.parts * x.parts / (y.count * x.count)  # of a tile's reduction
        whole_slab = parts * slab
        passes = images * y.passes * x.passes * problem.depth
        vectors = problem.batch * y.products * x.products / (images * y.passes * x.passes)
        matrix = passes * problem.tiles * max(side, vectors)

        read = problem.batch * y.read * x.read * problem.depth * side
        runs = read / (plan.depth * side)  # shorter than a row, where some channels are left out
        if plan.depth == problem.depth:
            runs /= max(1, x.read / x.parts)
        image = max(read / bus, runs)
        stored = problem.y.kernel * problem.x.kernel * problem.depth * side * side
        group = stored * plan.tiles
        per_box = parts * weights * groups / bus
        waits = 0.0  # for what cannot be loaded ahead
        if plan.tiles_first:
            kept = whole_slab <= builder.operands.capacity
            load_image = image * (1 if kept else groups)
            everything = stored * problem.tiles <= builder.weights.capacity
            if kept:
                waits += (boxes - 1) * max(0, 2 * whole_slab - builder.operands.capacity) / bus
        else:
            load_image = image * groups
            everything = group <= builder.weights.capacity
            if everything:
                waits += (groups - 1) * max(0, 2 * group - builder.weights.capacity) / bus
        load_weights = stored * problem.tiles / bus if everything else per_box * boxes
        if 2 * slab > builder.operands.capacity and load_image > slab / bus:
            waits += load_image
        if 2 * weights > builder.weights.capacity and load_weights > weights / bus:
            waits += load_weights
        first = slab / bus + weights / bus + TRANSFER
        tiles = boxes * groups
        sums = plan.images * plan.rows * plan.columns * plan.tiles
        instructions = tiles * parts * (PER_TILE + TRANSFER * (waits > 0))
        loads = load_image + load_weights
        return max(matrix, loads) + BESIDE * loads + waits + first + sums + instructions


def choose_plan(problem: Problem, builder: Builder) -> GatherPlan:
    """The plan that fits and should take least time."""
    chooser = _Chooser(problem, builder)
    kernels = list(chooser.kernels())
    best: tuple[float, GatherPlan] | None = None
    for images, rows, columns, tiles in chooser.sizes():
        for kernel, depth in kernels:
            for tiles_first in (True, False):
                plan = GatherPlan(images, rows, columns, tiles, kernel, depth, tiles_first)
                cost = chooser.cost(plan)
                if cost is None:
                    break
                if best is None or cost < best[0]:
                    best = cost, plan
    assert best is not None, "one pixel by one tap of one channel tile always fits"
    return best[1]
