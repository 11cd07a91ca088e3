"""The four reference networks of MLPerf Tiny, as their files are, against TFLite's interpreter."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

import weft
from tflite_writer import interpreter_tensors, open_interpreter
from weft.cli import main
from weft.compiler import compile_graph
from weft.frontends.tflite import graph_from_tflite
from weft.ir import HostOperation
from weft.session import Session
from weft_hw.config import PRESETS

pytestmark = pytest.mark.tflite

NETWORKS = {
    "pretrainedResnet_quant": 12_501_632,
    "vww_96_int8": 7_489_664,
    "kws_ref_model": 2_656_768,
    "ad01_int8": 264_192,
}
"""Multiply-accumulates, as the networks' own page counts them."""

RANDOM_INPUTS = 20


def inputs_of(models: Path, name: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """The provided samples, if there are any, and seeded random ones."""
    shape = open_interpreter(models / f"{name}.tflite").get_input_details()[0]["shape"][1:]
    samples = [rng.integers(-128, 128, (count, *shape)).astype(np.int8)]
    provided = models / f"{name}.input.npy"
    if provided.exists():
        samples.insert(0, np.load(provided).reshape(-1, *shape))
    return np.concatenate(samples)


def expected_of(models: Path, name: str, samples: np.ndarray) -> np.ndarray:
    interpreter = open_interpreter(models / f"{name}.tflite")
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    expected = []
    for sample in samples:
        interpreter.set_tensor(source["index"], sample[None])
        interpreter.invoke()
        expected.append(interpreter.get_tensor(result["index"])[0])
    return np.stack(expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_the_interpreter(name: str, models: Path, rng: np.random.Generator) -> None:
    samples = inputs_of(models, name, rng, RANDOM_INPUTS)
    program = weft.compile(models / f"{name}.tflite", config="base16")
    assert program.macs == NETWORKS[name]
    with Session(program, engine="functional") as session:
        made = session.run(samples)
    np.testing.assert_array_equal(made, expected_of(models, name, samples))


@pytest.mark.parametrize("config", ["base16", "flex16", "edge8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_equals_the_interpreter(
    name: str, config: str, models: Path, rng: np.random.Generator
) -> None:
    sample = inputs_of(models, name, rng, 1)[0]
    graph = graph_from_tflite(models / f"{name}.tflite")
    results = tuple(operation.output for operation in graph.operations)
    everything = dataclasses.replace(graph, outputs=results)
    with Session(compile_graph(everything, PRESETS[config]), engine="functional") as session:
        made = session.run(sample)
    assert set(made) == set(results)
    interpreter = open_interpreter(models / f"{name}.tflite")
    expected = interpreter_tensors(interpreter, [sample[None]])
    for tensor in results:
        np.testing.assert_array_equal(made[tensor], expected[tensor][0], err_msg=tensor)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_report_names_what_the_host_computes(name: str, models: Path) -> None:
    graph = graph_from_tflite(models / f"{name}.tflite")
    on_host = [each for each in graph.operations if isinstance(each, HostOperation)]
    program = weft.compile(models / f"{name}.tflite", config="edge8")
    told = [text for text in program.host_ops if text.startswith("compute ")]
    assert len(told) == len(on_host) == len(program.host_steps) <= 1
    for operation, text in zip(on_host, told, strict=True):
        assert operation.kind in text
        assert operation.source in text
    again = weft.Program.from_bytes(program.to_bytes())
    assert again == program


def test_run_command(
    models: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """`weft run MODEL.tflite`, and the same through a compiled program."""
    name = "kws_ref_model"
    samples = inputs_of(models, name, rng, 2)
    np.save(tmp_path / "x.npy", samples)
    model, program = str(models / f"{name}.tflite"), str(tmp_path / "kws.weft")
    expected = expected_of(models, name, samples)
    assert main(["compile", model, "-o", program, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [each["scale"] for each in summary["outputs"]] == [1 / 256]
    for source in (model, program):
        target = tmp_path / "y.npy"
        arguments = ["--input", str(tmp_path / "x.npy"), "--output", str(target)]
        assert main(["run", source, *arguments, "--engine", "functional"]) == 0
        assert "on the host: compute Softmax" in capsys.readouterr().out
        np.testing.assert_array_equal(np.load(target), expected)
