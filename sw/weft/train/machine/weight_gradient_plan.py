"""Choice of blocks and parts of the reduction for the gradient of weights."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from weft.compiler.context import Ring
from weft.compiler.kernels import ceil_div
from weft.train.machine.axes import Axis
from weft.train.machine.builder import MOST_TRIPS, Builder
from weft.train.machine.gather_plan import BESIDE, TRANSFER, bands_of, splits
from weft.train.step import Geometry

__all__ = ["WeightGradientPlan", "WeightGradientProblem", "choose_weight_gradient_plan"]

PER_MATRIX = 6  # beats of an instruction on a bus of its size, roughly


@dataclass(frozen=True)
class WeightGradientPlan:
    """Sizes of a block of sums, and of the part of the reduction that is on chip at once.

    Parameters
    ----------
    taps : (int, int)
        Kernel rows and columns of a block; all columns, if it has several rows.
    inputs, outputs : int
        Channel tiles of a block.
    images, rows, columns : int
        Of dY, of a part of the reduction.
    inputs_first : bool
        Blocks of other output channels come before those of other input channels.
    whole : bool
        X's slab is that of all taps, and so serves blocks of other taps too.
    """

    taps: tuple[int, int]
    inputs: int
    outputs: int
    images: int
    rows: int
    columns: int
    inputs_first: bool
    whole: bool


@dataclass(frozen=True)
class WeightGradientProblem:
    """Axes of the forward pass (rows, columns), channel tiles of X and of dY."""

    batch: int
    axes: tuple[Axis, Axis]
    geometry: Geometry
    inputs: int
    outputs: int


def choose_weight_gradient_plan(
    problem: WeightGradientProblem, builder: Builder
) -> WeightGradientPlan:
    """The plan that fits and should take least time."""
    chooser = _Chooser(problem, builder)
    best: tuple[float, WeightGradientPlan] | None = None
    blocks = list(chooser.blocks())
    for matrix, chunk in sorted((chooser.matrix(chunk), chunk) for chunk in chooser.chunks()):
        if best is not None and matrix >= best[0]:
            break
        for block in blocks:
            for order in itertools.product((True, False), repeat=2):
                plan = WeightGradientPlan(*block, *chunk, *order)
                cost = chooser.cost(plan, matrix)
                if cost is not None and (best is None or cost < best[0]):
                    best = cost, plan
    assert best is not None, "one tap and one pixel of one channel tile always fit"
    return best[1]


class _Chooser:
    """Estimates of one problem's plans."""

    def __init__(self, problem: WeightGradientProblem, builder: Builder) -> None:
        self.problem, self.builder, self.side = problem, builder, builder.side
        self._known: dict[tuple[int, int], tuple[int, int]] = {}

    def blocks(self) -> Iterator[tuple[tuple[int, int], int, int]]:
        """Taps, input tiles, output tiles."""
        rows, columns = self.problem.geometry.kernel
        taps = [(part, columns) for part in splits(rows)]
        taps += [(1, part) for part in splits(columns) if part < columns]
        most = self.builder.limit_rows // self.side
        for y, x in taps:
            for inputs in splits(self.problem.inputs):
                for outputs in splits(self.problem.outputs):
                    if y * x * inputs * outputs <= most:
                        yield (y, x), inputs, outputs

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """Images, rows, columns of dY."""
        height, width = (axis.result for axis in self.problem.axes)
        pixels = [(rows, width) for rows in splits(height)]
        pixels += [(1, columns) for columns in splits(width) if columns < width]
        most = self.builder.weights.capacity // self.side
        for rows, columns in pixels:
            for images in splits(self.problem.batch):
                if images * rows * columns <= most and max(images, rows, columns) <= MOST_TRIPS:
                    yield images, rows, columns

    def _bands(self, number: int, size: int) -> tuple[int, int]:
        """Bands of that size; dY's rows (columns) that taps met, over all taps."""
        key = number, size
        if key not in self._known:
            bands = bands_of(self.problem.axes[number], size, 1)
            self._known[key] = bands.count, bands.products
        return self._known[key]

    def matrix(self, chunk: tuple[int, int, int]) -> int:
        """MATRIX's cycles."""
        images, rows, columns = chunk
        problem, (height, width) = self.problem, self.problem.geometry.kernel
        y, x = self._bands(0, rows), self._bands(1, columns)
        chunks = ceil_div(problem.batch, images) * y[0] * x[0]
        trips = problem.batch * y[1] * x[1] + chunks * height * width * (self.side + 1)
        return problem.inputs * problem.outputs * trips

    def _reach(self, number: int, size: int, kernel: int) -> int:
        """Most rows (columns) of X that a part of dY meets by so many taps."""
        geometry = self.problem.geometry
        needed = (size - 1) * geometry.stride[number]
        needed += (kernel - 1) * geometry.dilation[number] + 1
        return min(self.problem.axes[number].source, needed)

    def cost(self, plan: WeightGradientPlan, matrix: int) -> float | None:
        """Cycles, roughly; None if it does not fit."""
        problem, builder, side = self.problem, self.builder, self.side
        kernel = problem.geometry.kernel
        reach = kernel if plan.whole else plan.taps
        height = self._reach(0, plan.rows, reach[0])
        width = self._reach(1, plan.columns, reach[1])
        left = plan.images * height * width * plan.inputs * side
        top = plan.images * plan.rows * plan.columns * plan.outputs * side
        if left > builder.operands.capacity or top > builder.weights.capacity:
            return None
        if max(height, width) > MOST_TRIPS:
            return None
        chunks = (
            ceil_div(problem.batch, plan.images)
            * ceil_div(problem.axes[0].result, plan.rows)
            * ceil_div(problem.axes[1].result, plan.columns)
        )
        inputs, outputs = (
            ceil_div(problem.inputs, plan.inputs),
            ceil_div(problem.outputs, plan.outputs),
        )
        taps = ceil_div(kernel[0], plan.taps[0]) * ceil_div(kernel[1], plan.taps[1])
        bus = builder.config.bus_bytes

        def loading(
            size: int, ring: Ring, groups: int, others: int, *, outer: bool, kept: bool
        ) -> tuple[float, float]:
            """Of an operand of ``size`` bytes a chunk: cycles, and those that nothing can hide."""
            everything = chunks * size
            if kept and everything * groups <= ring.capacity:
                times = 1
            elif kept and everything <= ring.capacity:
                times = 1 if outer else others
            else:
                times = others * taps
            cycles = times * everything * groups / bus
            if 2 * size > ring.capacity and cycles > size / bus:
                return cycles, cycles
            if times == 1 < groups and everything * groups > ring.capacity:  # change all at once
                return cycles, (groups - 1) * max(0, 2 * everything - ring.capacity) / bus
            return cycles, 0

        of_left = loading(
            *(left, builder.operands, inputs, outputs),
            outer=plan.inputs_first,
            kept=plan.whole or taps == 1,
        )
        of_top = loading(
            *(top, builder.weights, outputs, inputs), outer=not plan.inputs_first, kept=True
        )
        loads, waits = of_left[0] + of_top[0], of_left[1] + of_top[1]
        sums = plan.taps[0] * plan.taps[1] * plan.inputs * plan.outputs * side
        first = (left + top) / bus + TRANSFER
        instructions = PER_MATRIX * chunks * taps * inputs * outputs
        return max(matrix, loads) + BESIDE * loads + waits + first + sums + instructions
