"""Random .tflite networks: 100 of them with every tensor equal to the interpreter's, 20 on RTL."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

from tflite_networks import random_network
from tflite_writer import interpreter_tensors, open_interpreter, reference
from weft.compiler import compile_graph
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.session import Session
from weft_hw.config import PRESETS

pytestmark = pytest.mark.tflite

CONFIGS = ("base16", "edge8", "flex16")
NETWORKS = 100
ON_RTL = 20


@pytest.mark.parametrize("case", range(NETWORKS))
def test_random_network(case: int, rng: np.random.Generator) -> None:
    """As compiled for its outputs, and with every tensor an output and tiles drawn at random."""
    writer, outputs = random_network(rng)
    data = writer.model(*outputs)
    inputs = [record.values for record in writer.inputs]
    graph = graph_from_tflite_bytes(data, name=f"random{case}")
    expected = interpreter_tensors(open_interpreter(data), inputs)
    everything = tuple(dict.fromkeys(each.output for each in graph.operations))
    seen = [name for name in everything if name in expected]
    assert len(seen) >= 3
    config = PRESETS[CONFIGS[case % len(CONFIGS)]]
    whole = dataclasses.replace(graph, outputs=tuple(seen))
    for each, force_tiles in ((graph, None), (whole, case)):
        program = compile_graph(each, config, force_tiles=force_tiles)
        with Session(program, engine="functional") as session:
            made = session.run(tuple(inputs) if len(inputs) > 1 else inputs[0])
        made = made if isinstance(made, dict) else {program.results[0]: made}
        assert set(made) == set(each.outputs)
        for name, values in made.items():
            assert values.dtype == expected[name].dtype
            np.testing.assert_array_equal(values, expected[name], err_msg=f"{name}\n{graph!r}")


@pytest.mark.rtl
@pytest.mark.parametrize("case", range(ON_RTL))
def test_small_network_on_rtl(case: int, rng: np.random.Generator) -> None:
    """As compiled for its outputs, tables behind other layers included."""
    writer, outputs = random_network(rng, small=True)
    data = writer.model(*outputs)
    inputs = [record.values for record in writer.inputs]
    program = compile_graph(graph_from_tflite_bytes(data, name=f"rtl{case}"), PRESETS["base16"])
    with Session(program, engine="rtl") as session:
        made = session.run(tuple(inputs) if len(inputs) > 1 else inputs[0])
        assert session.report["cycles"] > 0
    made = list(made.values()) if isinstance(made, dict) else [made]
    for one, other in zip(reference(data, inputs), made, strict=True):
        np.testing.assert_array_equal(other, one)
