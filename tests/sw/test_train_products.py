"""Sums of convolutions and of their gradients as the machine computes them, against PyTorch."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

from product_bench import KINDS, Case, ProductBench
from weft.benchmarks.blocks import Block, requantize_block, scale_of, store_block
from weft.errors import InputError
from weft.train.machine import gather
from weft.train.machine.builder import Builder, ImageTile, WeightTile
from weft.train.machine.gather_plan import GatherPlan
from weft_hw import PRESETS, AcceleratorConfig
from weft_hw.instructions import Matrix

ROOMY = dataclasses.replace(
    PRESETS["tiny"],
    name="roomy",
    activation_bytes=4096,
    weight_bytes=2048,
    accumulator_rows=64,
)
LARGE = dataclasses.replace(
    PRESETS["tiny"],
    name="large",
    activation_bytes=1 << 16,
    weight_bytes=1 << 14,
    accumulator_rows=1024,
)
TINY = PRESETS["tiny"]


EDGES = {
    "one pixel": Case(1, (1, 1), (1, 1), (1, 1)),
    "dense": Case(17, (3, 5), (9, 7), (3, 5)),
    "dense of one pixel": Case(31, (1, 1), (67, 29), (1, 1)),
    "primes": Case(3, (11, 7), (5, 13), (3, 2), (2, 3), (1, 2)),
    "taps in the padding": Case(2, (1, 1), (5, 3), (3, 3), (1, 1), (1, 1)),
    "first tap never exists": Case(2, (2, 2), (3, 5), (4, 4), (1, 1), (5, 5), (3, 3)),
    "nothing meets": Case(2, (1, 1), (3, 5), (2, 2), (4, 4), (1, 1), (2, 2)),
    "stride beyond the kernel": Case(2, (11, 9), (4, 8), (1, 2), (4, 3)),
    "dilation and stride": Case(2, (9, 8), (4, 5), (3, 2), (2, 4), (2, 1), (2, 2)),
    "pointwise of stride 2": Case(3, (8, 6), (8, 12), (1, 1), (2, 2)),
    "row wider than the scratchpad": Case(1, (2, 700), (5, 3), (2, 3), (1, 2), (1, 1)),
    "image higher than a coordinate": Case(1, (4300, 1), (2, 3), (3, 1), (1, 1), (1, 0)),
    "reduction beyond the scratchpads": Case(2, (3, 3), (150, 7), (3, 3), (1, 1), (1, 1)),
    "results beyond the scratchpads": Case(2, (3, 3), (7, 150), (3, 3), (1, 1), (1, 1)),
    "stride and dilation beyond a step": Case(
        1, (300, 2), (2, 2), (2, 1), (130, 1), dilation=(150, 1)
    ),
    "distance beyond a field": Case(1, (2, 700), (20, 4), (3, 1), (1, 100), (145, 0), (100, 1)),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, rng: np.random.Generator) -> None:
    for kind in KINDS:
        ProductBench(TINY, EDGES[name], rng).check(kind)
        ProductBench(LARGE, EDGES[name], rng).check(kind, rows=[None, 5, 50][int(rng.integers(3))])


DIVIDED = {
    "offset of half a million bytes": (
        "forward",
        Case(1, (2, 700), (20, 4), (3, 1), (1, 100), (145, 0), (100, 1)),
        GatherPlan(1, 92, 7, 1, (3, 1), 5, True),
    ),
    "stride of 130": (
        "forward",
        Case(1, (3, 500), (2, 2), (2, 2), (1, 130), (1, 1)),
        GatherPlan(1, 4, 4, 1, (2, 2), 1, True),
    ),
    "dilation of 150": (
        "data gradient",
        Case(1, (310, 2), (2, 2), (3, 1), (1, 1), (2, 1), (150, 1)),
        GatherPlan(1, 310, 2, 1, (3, 1), 1, True),
    ),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_distances_beyond_fields_are_divided(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile takes several instructions; the tiling is given, as no choice would be such."""
    kind, case, plan = DIVIDED[name]
    monkeypatch.setattr(gather, "choose_plan", lambda problem, builder: plan)
    bench, builder = ProductBench(LARGE, case, rng), Builder(LARGE)
    assert len(list(bench.tiles(builder, kind))) == 1
    matrix = [step for step in builder.stream.steps if isinstance(step.instruction, Matrix)]
    assert len(matrix) > 1
    bench.check(kind)


@pytest.mark.parametrize("config", [TINY, ROOMY, PRESETS["edge8"]], ids=lambda c: c.name)
def test_random_convolutions(config: AcceleratorConfig, rng: np.random.Generator) -> None:
    for _ in range(8):
        case = Case.random(rng, config.rows)
        rows = [None, int(rng.integers(config.rows, 48))][int(rng.integers(2))]
        for kind in KINDS:
            ProductBench(config, case, rng).check(kind, rows=rows)


@pytest.mark.rtl
def test_random_convolutions_in_hardware(rng: np.random.Generator) -> None:
    for _ in range(3):
        case = Case.random(rng, TINY.rows, most=20_000, longest=6)
        for kind in KINDS:
            ProductBench(TINY, case, rng).check(kind, "rtl", stall_probability=0.1)


def test_an_array_tile_needs_room(rng: np.random.Generator) -> None:
    bench = ProductBench(TINY, Case(1, (2, 2), (3, 3), (1, 1)), rng)
    with pytest.raises(InputError, match="3 accumulator rows; .* needs 4"):
        list(bench.tiles(Builder(TINY, 3), "weight gradient"))


@pytest.mark.rtl
@pytest.mark.parametrize("kind", KINDS)
def test_products_keep_the_array_busy(kind: str, rng: np.random.Generator, record_property) -> None:
    """With results scaled and stored beside them, and over 100 % by products that are skipped:
    those with padding."""
    config = PRESETS["base16"]
    case = Case(8, (8, 8), (64, 64), (3, 3), (1, 1), (1, 1))
    bench = ProductBench(config, case, rng)

    def finish(builder: Builder, tile: ImageTile | WeightTile, address: int) -> int:
        first, end = tile.access
        rows, size = end - first, (end - first) * builder.side
        chip = Block(builder.staging.place(None, size), rows, builder.side, builder.side)
        requantize_block(builder.stream, config, first, chip, scale_of(None, 8))
        store_block(
            builder.stream, dataclasses.replace(chip, address=address), chip, "store result"
        )
        return size

    run = bench.run(kind, "rtl", finish=finish, latency=20)
    padded = np.pad(np.ones(case.size), 1)
    met = sum(padded[y : y + 8, x : x + 8].sum() for y in range(3) for x in range(3))
    share = met / (9 * 64)
    utilization = case.products / run.cycles / config.tile_bytes
    record_property(
        "modes",
        f"{kind}, 64 to 64 channels of 8 x 8, batch 8: {utilization:.1%} of the array's products "
        f"({utilization * share:.1%} without those of padding)",
    )
    assert utilization > {"forward": 0.92, "data gradient": 0.85, "weight gradient": 0.85}[kind]
    assert utilization * share > 0.85
