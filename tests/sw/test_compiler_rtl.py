"""Compiled layers and networks on the RTL with random bus stalls, bit for bit."""

import numpy as np
import pytest

from network_reference import evaluate, random_chain, random_inputs, random_layer
from weft.compiler import compile_graph
from weft.ir import Graph
from weft.session import Session
from weft_hw.config import PRESETS

pytestmark = pytest.mark.rtl


def check_on_rtl(graph: Graph, config: str, rng: np.random.Generator, case: int) -> None:
    """Against the independent evaluation, on a bus of random latency and stalls."""
    inputs = random_inputs(graph, rng)
    program = compile_graph(graph, PRESETS[config], force_tiles=case if case % 2 else None)
    bus = {
        "latency": int(rng.choice([1, 20, 100])),
        "stall_probability": float(rng.choice([0.0, 0.1, 0.5])),
        "seed": case,
    }
    with Session(program, engine="rtl", **bus) as session:
        outputs = session.run(inputs)
        report = session.report
    if not isinstance(outputs, dict):
        outputs = {graph.outputs[0]: outputs}
    for name, values in evaluate(graph, inputs).items():
        np.testing.assert_array_equal(outputs[name], values, err_msg=f"{config} {bus}\n{graph!r}")
    assert report["cycles"] > 0
    assert sum(layer["cycles"] for layer in report["layers"]) == report["cycles"]


@pytest.mark.parametrize("config", ["tiny", "edge8", "base16"])
@pytest.mark.parametrize("case", range(20))
def test_random_layer(case: int, config: str, rng: np.random.Generator) -> None:
    check_on_rtl(random_layer(rng), config, rng, case)


@pytest.mark.parametrize("config", ["tiny", "edge8", "base16"])
@pytest.mark.parametrize("case", range(3))
def test_random_network(case: int, config: str, rng: np.random.Generator) -> None:
    check_on_rtl(random_chain(rng), config, rng, case)
