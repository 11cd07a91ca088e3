"""Random layers on the functional engine, bit for bit against the independent evaluation."""

import numpy as np
import pytest

from network_reference import GraphBuilder, evaluate, random_inputs, random_layer, scaled
from weft.compiler import compile_graph
from weft.ir import AveragePool2d, Graph, MaxPool2d
from weft.session import Session
from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.instructions import Rounding

CONFIGS = ("base16", "edge8", "tiny")

WIDE = AcceleratorConfig(
    name="wide",
    rows=4,
    columns=8,
    bus_width=64,
    activation_bytes=4096,
    activation_banks=2,
    weight_bytes=2048,
    weight_banks=2,
    accumulator_rows=64,
    parameter_rows=8,
    vector_lanes=8,
)
TALL = AcceleratorConfig(
    name="tall",
    rows=16,
    columns=4,
    bus_width=32,
    activation_bytes=8192,
    activation_banks=4,
    weight_bytes=8192,
    weight_banks=2,
    accumulator_rows=64,
    vector_lanes=4,
)


def run(graph: Graph, config: AcceleratorConfig, inputs, force_tiles=None) -> dict[str, np.ndarray]:
    """Outputs by name on the functional engine."""
    program = compile_graph(graph, config, force_tiles=force_tiles)
    with Session(program, engine="functional") as session:
        outputs = session.run(inputs)
    return outputs if isinstance(outputs, dict) else {graph.outputs[0]: outputs}


def check(graph: Graph, inputs, config: AcceleratorConfig, force_tiles=None, expected=None) -> None:
    expected = expected or evaluate(graph, inputs)
    given = run(graph, config, inputs, force_tiles)
    for name, values in expected.items():
        np.testing.assert_array_equal(
            given[name], values, err_msg=f"{config.name} tiles={force_tiles}\n{graph!r}"
        )


@pytest.mark.parametrize("case", range(240))
def test_random_layer(case: int, rng: np.random.Generator) -> None:
    graph = random_layer(rng)
    inputs = random_inputs(graph, rng)
    expected = evaluate(graph, inputs)
    check(graph, inputs, PRESETS[CONFIGS[case % 3]], expected=expected)
    check(graph, inputs, PRESETS[CONFIGS[(case + 1) % 3]], force_tiles=case, expected=expected)


@pytest.mark.parametrize("config", [WIDE, TALL], ids=lambda config: config.name)
@pytest.mark.parametrize("case", range(12))
def test_random_layer_on_a_rectangular_array(case: int, config, rng: np.random.Generator) -> None:
    graph = random_layer(rng)
    inputs = random_inputs(graph, rng)
    check(graph, inputs, config)
    check(graph, inputs, config, force_tiles=case)


@pytest.mark.parametrize("seed_of_tiles", range(8))
@pytest.mark.parametrize("config", ["base16", "tiny"])
def test_tile_sizes_do_not_change_a_bit(config: str, seed_of_tiles: int) -> None:
    build = GraphBuilder(np.random.default_rng(seed_of_tiles))
    source = build.tensor((9, 11, 20))
    out = build.conv(source, 37, (3, 3), (2, 1), ((1, 1), (1, 1)))
    graph = build.graph([source], [out])
    inputs = random_inputs(graph, build.rng)
    check(graph, inputs, PRESETS[config], force_tiles=seed_of_tiles)


LARGE = {
    "convolution": ("base16", (75, 60, 40), lambda b, x: b.conv(x, 20, (3, 3), (2, 2))),
    "narrow convolution": ("base16", (200, 220, 3), lambda b, x: b.conv(x, 4, (3, 3), (3, 3))),
    "weights": ("base16", (2, 2, 300), lambda b, x: b.conv(x, 70, (2, 2), (1, 1))),
    "deep reduction": ("base16", (3, 3, 520), lambda b, x: b.conv(x, 3, (3, 3), (1, 1))),
    "dense": ("base16", (12, 12, 70), lambda b, x: b.linear(b.flatten(x), 12)),
    "max pool": ("edge8", (70, 50, 33), lambda b, x: b.pool(MaxPool2d, x, (3, 3), (3, 3))),
    "global average": (
        "tiny",
        (40, 30, 5),
        lambda b, x: b.pool(AveragePool2d, x, (40, 30), (1, 1)),
    ),
    "global maximum": ("tiny", (40, 30, 5), lambda b, x: b.pool(MaxPool2d, x, (40, 30), (1, 1))),
    "rescale": ("tiny", (30, 30, 9), lambda b, x: b.rescale(x)),
    "add": ("tiny", (20, 20, 9), lambda b, x: b.add(x, b.constant((20, 20, 9)))),
}


@pytest.mark.parametrize("name", LARGE)
def test_tensor_larger_than_its_scratchpad(name: str, rng: np.random.Generator) -> None:
    config, shape, make = LARGE[name]
    build = GraphBuilder(rng)
    source = build.tensor(shape)
    graph = build.graph([source], [make(build, source)], name)
    check(graph, random_inputs(graph, rng), PRESETS[config])


def test_add_rounds_the_exact_sum_except_near_ties(rng: np.random.Generator) -> None:
    """Pairs of codes: the exact rational, rounded, unless it is nearer to a tie than the bound."""
    from fractions import Fraction

    build = GraphBuilder(rng)
    first, second = build.tensor((256, 256, 1)), build.tensor((256, 256, 1))
    out = build.add(first, second)
    graph = build.graph([first, second], [out])
    codes = np.arange(-128, 128, dtype=np.int8)
    a, b = np.meshgrid(codes, codes)
    values = run(graph, PRESETS["edge8"], {first.name: a[None], second.name: b[None]})[out.name][0]
    clamp = graph.operations[0].clamp
    larger = max(first.scale, second.scale)
    bound = Fraction(63, 100) * Fraction(larger) / Fraction(out.scale) / 2**22 + Fraction(1, 2**23)
    sums_a = [
        Fraction(first.scale) / Fraction(out.scale) * (int(q) - first.zero_point) for q in codes
    ]
    sums_b = [
        Fraction(second.scale) / Fraction(out.scale) * (int(q) - second.zero_point) for q in codes
    ]
    for y in range(256):
        for x in range(0, 256, 5):
            exact = sums_a[x] + sums_b[y]
            code = min(max(round(exact) + out.zero_point, clamp[0]), clamp[1])
            if values[y, x] != code:
                assert abs(exact - (exact.__floor__() + Fraction(1, 2))) <= bound


def test_the_reference_rounds_as_python_does() -> None:
    """The reference's own rounding, against exact rationals."""
    from fractions import Fraction

    for value in range(-4000, 4000, 7):
        for scale in (0.5, 0.25, 2.0**-5, 0.75, 3.0):
            exact = value * Fraction(scale)
            assert scaled(value, scale, Rounding.HALF_EVEN) == round(exact)
            assert scaled(value, scale, Rounding.HALF_UP) == (exact + Fraction(1, 2)).__floor__()
