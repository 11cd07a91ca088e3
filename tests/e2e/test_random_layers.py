"""Random layers and networks on every engine against an independent integer evaluation."""

import numpy as np
import pytest

from network_reference import evaluate, random_chain, random_layer
from weft.compiler import compile_graph
from weft.ir import Graph
from weft.program import Program
from weft.session import Session
from weft_hw import PRESETS

CONFIGS = ("tiny", "edge8", "base16")
FUNCTIONAL_BATCHES, LAYERS_A_BATCH = 25, 10  # 250 layers and networks on functional
RTL_LAYERS = {"tiny": 24, "edge8": 12, "base16": 12}
COCOTB_PROGRAMS = 12

Arrays = dict[str, np.ndarray]


def drawn(rng: np.random.Generator, number: int) -> Graph:
    """Three layers of one operation, then a network."""
    return random_chain(rng) if number % 4 == 3 else random_layer(rng)


def inputs_for(graph: Graph, rng: np.random.Generator, count: int | None = None) -> Arrays:
    """Random codes; one sample in four holds only the two extreme codes."""
    arrays = {}
    for name in graph.inputs:
        shape = graph.tensor(name).shape
        shape = (shape[2], *shape[:2]) if len(shape) == 3 else shape
        size = shape if count is None else (count, *shape)
        values = rng.integers(-128, 128, size)
        if rng.random() < 0.25:
            values = rng.choice([-128, 127], size)
        arrays[name] = values.astype(np.int8)
    return arrays


def outputs_by_name(graph: Graph, result: np.ndarray | Arrays) -> Arrays:
    return result if isinstance(result, dict) else {graph.outputs[0]: result}


def assert_equal(graph: Graph, actual: np.ndarray | Arrays, expected: Arrays) -> None:
    for name, array in outputs_by_name(graph, actual).items():
        assert np.array_equal(array, np.asarray(expected[name]).reshape(array.shape)), (
            f"{name} differs\n{graph!r}"
        )


def compiled(graph: Graph, config: str, rng: np.random.Generator) -> Program:
    """With the best tiles, or with tiles drawn at random."""
    force = int(rng.integers(1, 1 << 30)) if rng.random() < 0.5 else None
    return compile_graph(graph, PRESETS[config], force_tiles=force)


@pytest.mark.parametrize("batch", range(FUNCTIONAL_BATCHES))
def test_functional(batch: int, rng: np.random.Generator) -> None:
    for number in range(LAYERS_A_BATCH):
        graph = drawn(rng, number)
        program = compiled(graph, CONFIGS[number % len(CONFIGS)], rng)
        inputs = inputs_for(graph, rng)
        with Session(program, engine="functional") as session:
            assert_equal(graph, session.run(inputs), evaluate(graph, inputs))


@pytest.mark.rtl
@pytest.mark.parametrize("config", CONFIGS)
def test_rtl_with_bus_stalls(config: str, rng: np.random.Generator) -> None:
    for number in range(RTL_LAYERS[config]):
        graph = drawn(rng, number)
        program = compiled(graph, config, rng)
        inputs = inputs_for(graph, rng)
        memory = {
            "stall_probability": float(rng.choice([0, 0.1, 0.5])),
            "latency": int(rng.choice([1, 20, 100])),
            "seed": int(rng.integers(1 << 30)),
        }
        with Session(program, engine="rtl", **memory) as session:
            assert_equal(graph, session.run(inputs), evaluate(graph, inputs))


@pytest.mark.cocotb
def test_cocotb_with_back_pressure(rng: np.random.Generator) -> None:
    from weft.benchmarks.cocotb_program import run_programs

    graphs = [drawn(rng, number) for number in range(COCOTB_PROGRAMS)]
    programs = [compiled(graph, "tiny", rng) for graph in graphs]
    samples = [inputs_for(graph, rng) for graph in graphs]
    ran = run_programs(
        programs,
        [[sample[name] for name in graph.inputs] for graph, sample in zip(graphs, samples)],
        seeds=[int(seed) for seed in rng.integers(1, 1 << 30, COCOTB_PROGRAMS)],
    )
    assert len(ran) == COCOTB_PROGRAMS
    for graph, sample, (outputs, _) in zip(graphs, samples, ran, strict=True):
        expected = evaluate(graph, sample)
        for name, array in zip(graph.outputs, outputs, strict=True):
            assert np.array_equal(array, np.asarray(expected[name]).reshape(array.shape))


@pytest.mark.rtl
def test_one_model_gives_equal_bits_on_every_configuration_and_tiling(
    rng: np.random.Generator,
) -> None:
    graph = random_chain(rng)
    inputs = inputs_for(graph, rng, count=3)
    expected = [
        evaluate(graph, {name: array[n] for name, array in inputs.items()}) for n in range(3)
    ]
    for config in CONFIGS:
        for force in (None, 1, 2):
            program = compile_graph(graph, PRESETS[config], force_tiles=force)
            for engine in ("functional", "rtl"):
                with Session(program, engine=engine) as session:
                    batch = outputs_by_name(graph, session.run(inputs))
                    for n in range(3):
                        single = {name: array[n] for name, array in inputs.items()}
                        assert_equal(graph, session.run(single), expected[n])
                        assert_equal(graph, {k: v[n] for k, v in batch.items()}, expected[n])


def test_the_program_file_is_reproducible(rng: np.random.Generator) -> None:
    graph = random_chain(rng)
    first = compile_graph(graph, PRESETS["edge8"])
    second = compile_graph(graph, PRESETS["edge8"])
    assert first.to_bytes() == second.to_bytes()
    assert Program.from_bytes(first.to_bytes()) == first
