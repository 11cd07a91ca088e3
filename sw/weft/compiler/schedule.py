"""Tile sizes by the cycle model: small enough that neighbouring layers overlap, and no smaller.

A layer's own tiling (:mod:`weft.compiler.tiling`) takes it for itself alone. But a depthwise
convolution keeps VECTOR busy while MATRIX idles, and a pointwise one the reverse: in tiles of some
rows each, one can work for its layer while the other works for the next
(:mod:`weft.compiler.overlap`). How small is best depends on both layers, so it is tried out on the
cycle model: layer by layer, in a window of its neighbours, and at last on the whole program.
"""

import dataclasses
from collections.abc import Sequence

from weft.compiler.kernels import Kernel
from weft.compiler.lowering import lower
from weft.compiler.memory_plan import MemoryPlan
from weft.compiler.overlap import overlap_layers
from weft.compiler.synchronize import synchronize
from weft.compiler.tiling import TileLimits, Tiling, Where, choose_tiling
from weft.ir import Graph
from weft_hw.config import AcceleratorConfig
from weft_sim.cycle_model import estimate_run

__all__ = ["choose_schedule"]

DEPTHWISE = tuple(TileLimits(steps) for steps in (150, 300, 600, 1000, 2000))
CONVOLUTION = tuple(
    TileLimits(steps, whole) for steps in (100, 200, 400, None) for whole in (False, True)
)
BEFORE, BEHIND = 2, 2
"""Neighbours of a layer that are looked at with it."""

ROUNDS = 2


def choose_schedule(
    graph: Graph, config: AcceleratorConfig, plan: MemoryPlan, kernels: Sequence[Kernel]
) -> MemoryPlan:
    """The plan with the tilings that the cycle model finds quickest; never slower than before."""
    choices = [_choices(graph, plan, kernels, layer) for layer in range(len(kernels))]
    if not any(choices):
        return plan
    tilings = list(plan.tilings)
    known: dict[tuple[int, tuple[Tiling, ...]], int] = {}

    def cycles(chosen: Sequence[Tiling], layers: range) -> int:
        tried = dataclasses.replace(plan, tilings=tuple(chosen))
        steps = lower(graph, config, tried, kernels, layers).stream.steps
        instructions = synchronize(overlap_layers(steps), config)
        total = estimate_run(config, instructions).cycles
        assert total is not None
        return total

    for _ in range(ROUNDS):
        before = list(tilings)
        for layer, options in enumerate(choices):
            window = range(max(0, layer - BEFORE), min(len(kernels), layer + BEHIND + 1))
            best = None
            for option in dict.fromkeys((tilings[layer], *options)):
                tilings[layer], kept = option, tilings[layer]
                key = layer, tuple(tilings[window.start : window.stop])
                if key not in known:
                    known[key] = cycles(tilings, window)
                if best is None or known[key] < best[0]:
                    best = known[key], option
                tilings[layer] = kept
            assert best is not None
            tilings[layer] = best[1]
        if tilings == before:
            break
    whole = range(len(kernels))
    better = min((plan.tilings, tuple(tilings)), key=lambda chosen: cycles(chosen, whole))
    return dataclasses.replace(plan, tilings=better)


def _choices(graph: Graph, plan: MemoryPlan, kernels: Sequence[Kernel], layer: int) -> list[Tiling]:
    """Other tilings of a layer with weights whose operands are all on chip."""
    kernel = kernels[layer]
    names = (*kernel.operation.inputs, kernel.operation.output)
    if not (kernel.is_convolution or kernel.is_depthwise):
        return []
    if any(plan.placements[name].chip is None for name in names):
        return []
    here = Where(spilled_inputs=0, spilled_output=False, room=0)
    limits = DEPTHWISE if kernel.is_depthwise else CONVOLUTION
    found = (choose_tiling(kernel, here, limits=each) for each in limits)
    return list(dict.fromkeys(each for each in found if each is not None))
