"""Whole random networks: residual connections, several outputs, everything on and off chip."""

import numpy as np
import pytest

from network_reference import GraphBuilder, evaluate, random_chain
from weft.compiler import compile_graph
from weft.errors import UnsupportedModel
from weft.ir import Flatten, Graph, MaxPool2d
from weft.session import Session
from weft_hw.config import PRESETS
from weft_hw.instructions import Load, Memory, Store


def sample(graph: Graph, rng: np.random.Generator, count: int) -> np.ndarray:
    height, width, channels = graph.tensor(graph.inputs[0]).shape
    return rng.integers(-128, 128, (count, channels, height, width)).astype(np.int8)


def outputs_of(graph: Graph, config: str, batch: np.ndarray, force_tiles=None):
    program = compile_graph(graph, PRESETS[config], force_tiles=force_tiles)
    with Session(program, engine="functional") as session:
        given = session.run(batch)
    return given if isinstance(given, dict) else {graph.outputs[0]: given}


@pytest.mark.parametrize("case", range(36))
def test_random_network(case: int, rng: np.random.Generator) -> None:
    """The same bits on every configuration, with tiles as chosen and at random."""
    graph = random_chain(rng)
    batch = sample(graph, rng, 1)
    expected = evaluate(graph, {graph.inputs[0]: batch[0]})
    for config in ("base16", "edge8", "tiny"):
        for force_tiles in (None, case):
            given = outputs_of(graph, config, batch, force_tiles)
            for name, values in expected.items():
                np.testing.assert_array_equal(
                    given[name][0], values, err_msg=f"{name} {config} {force_tiles}\n{graph!r}"
                )


def test_batch_equals_single_runs(rng: np.random.Generator) -> None:
    graph = random_chain(rng)
    batch = sample(graph, rng, 3)
    program = compile_graph(graph, PRESETS["edge8"])
    with Session(program, engine="functional") as session:
        together = session.run(batch)
        singles = [session.run(one) for one in batch]
    for name in graph.outputs:
        pick = (lambda value, name=name: value[name]) if len(graph.outputs) > 1 else (lambda v: v)
        np.testing.assert_array_equal(pick(together), np.stack([pick(one) for one in singles]))


def test_small_network_stays_on_chip(rng: np.random.Generator) -> None:
    """One load of the input and one store of the output are the only transfers of activations."""
    build = GraphBuilder(rng)
    source = build.tensor((8, 8, 16))
    middle = build.conv(source, 16, (3, 3), (1, 1), ((1, 1), (1, 1)))
    out = build.conv(build.add(middle, source), 16, (1, 1))
    program = compile_graph(build.graph([source], [out]), PRESETS["base16"])
    transfers = [each for _, each in program.decoded if isinstance(each, Load | Store)]
    loaded = sum(
        np.prod(each.counts) * each.run_bytes
        for each in transfers
        if isinstance(each, Load) and each.memory == Memory.ACTIVATION
    )
    stored = sum(
        np.prod(each.counts) * each.run_bytes for each in transfers if isinstance(each, Store)
    )
    assert (loaded, stored) == (8 * 8 * 16, 8 * 8 * 16)


def test_flattened_image_as_output(rng: np.random.Generator) -> None:
    """The host brings it into the model's order, and the program says so."""
    build = GraphBuilder(rng)
    source = build.tensor((4, 5, 6))
    flat = build.flatten(build.pool(MaxPool2d, source, (2, 2), (1, 1)))
    graph = build.graph([source], [flat])
    batch = sample(graph, rng, 2)
    program = compile_graph(graph, PRESETS["edge8"])
    assert any(text.startswith(f"repack output {flat.name}") for text in program.host_ops)
    with Session(program, engine="functional") as session:
        given = session.run(batch)
    for one, values in zip(batch, given, strict=True):
        expected = evaluate(graph, {source.name: one})[flat.name]
        np.testing.assert_array_equal(values, expected)


def test_input_that_is_an_output_needs_no_instruction(rng: np.random.Generator) -> None:
    build = GraphBuilder(rng)
    source = build.tensor((3, 4, 5))
    graph = build.graph([source], [source])
    batch = sample(graph, rng, 1)
    np.testing.assert_array_equal(outputs_of(graph, "tiny", batch)[source.name], batch)


def test_same_graph_gives_the_same_bytes(seed: int) -> None:
    def compiled() -> bytes:
        graph = random_chain(np.random.default_rng(seed))
        return compile_graph(graph, PRESETS["tiny"]).to_bytes()

    assert compiled() == compiled()


def test_channels_last_models(rng: np.random.Generator) -> None:
    """Layout HWC: inputs, outputs and Flatten in the machine's own order."""
    build = GraphBuilder(rng)
    source = build.tensor((4, 4, 5))
    middle = build.conv(source, 7, (3, 3))
    flat = build.tensor((middle.elements,), like=middle)
    build.operations.append(
        Flatten(name="flat", inputs=(middle.name,), output=flat.name, order="HWC")
    )
    out = build.linear(flat, 9)
    chw = build.graph([source], [middle, out])
    graph = Graph(
        name="hwc",
        tensors=chw.tensors,
        inputs=chw.inputs,
        outputs=chw.outputs,
        operations=chw.operations,
        layout="HWC",
    )
    image = rng.integers(-128, 128, (4, 4, 5)).astype(np.int8)
    program = compile_graph(graph, PRESETS["base16"])
    with Session(program, engine="functional") as session:
        given = session.run(image)
    # The reference flattens channels first: give it the Linear on the permuted vector.
    middle_codes = given[middle.name]
    head = build.graph([source], [middle])
    expected = evaluate(head, {source.name: image.transpose(2, 0, 1)})[middle.name]
    np.testing.assert_array_equal(middle_codes.transpose(2, 0, 1), expected)
    tail = Graph(
        name="tail",
        tensors=(flat, out),
        inputs=(flat.name,),
        outputs=(out.name,),
        operations=(build.operations[-1],),
    )
    expected = evaluate(tail, {flat.name: middle_codes.reshape(-1)})[out.name]
    np.testing.assert_array_equal(given[out.name], expected)


def test_window_that_cannot_fit_is_refused(rng: np.random.Generator) -> None:
    """Packed taps need one kernel row of the image at once."""
    build = GraphBuilder(rng)
    source = build.tensor((1, 3000, 1))
    graph = build.graph([source], [build.linear(build.flatten(source), 2)])
    with pytest.raises(UnsupportedModel) as caught:
        compile_graph(graph, PRESETS["tiny"])
    text = str(caught.value)
    assert text.startswith("linear1 (node linear1): its smallest tile needs ")
    assert "bytes of the activation scratchpad; configuration tiny has 2048" in text
