"""The four reference networks of MLPerf Tiny, as their files are, against TFLite's interpreter."""

import dataclasses
import functools
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

CONFIGS = ("base16", "flex16", "edge8")
RANDOM_INPUTS = 20


@functools.cache
def compiled(path: Path, config: str) -> weft.Program:
    """One compilation for all tests of a worker; it takes seconds, and nothing changes it."""
    return weft.compile(path, config=config)


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


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_the_interpreter(
    name: str, config: str, models: Path, rng: np.random.Generator
) -> None:
    samples = inputs_of(models, name, rng, RANDOM_INPUTS)
    program = compiled(models / f"{name}.tflite", config)
    assert program.macs == NETWORKS[name]
    with Session(program, engine="functional") as session:
        made = session.run(samples)
    np.testing.assert_array_equal(made, expected_of(models, name, samples))


@pytest.mark.rtl
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_the_interpreter_on_rtl(
    name: str, config: str, models: Path, rng: np.random.Generator
) -> None:
    """Three samples, a provided one first; what it prints is in `docs/measurements.md`."""
    samples = inputs_of(models, name, rng, 3)[[0, -2, -1]]
    program = compiled(models / f"{name}.tflite", config)
    with Session(program, engine="rtl") as session:
        made = session.run(samples)
        cycles, remainder = divmod(session.report["cycles"], len(samples))
    np.testing.assert_array_equal(made, expected_of(models, name, samples))
    assert remainder == 0  # what the machine does never depends on the values
    print(f"{name} {config}: {cycles:,} cycles an inference")


@pytest.mark.parametrize("engine", ["functional", pytest.param("rtl", marks=pytest.mark.rtl)])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_equals_the_interpreter(
    name: str, config: str, engine: str, models: Path, rng: np.random.Generator
) -> None:
    sample = inputs_of(models, name, rng, 1)[0]
    graph = graph_from_tflite(models / f"{name}.tflite")
    results = tuple(operation.output for operation in graph.operations)
    everything = dataclasses.replace(graph, outputs=results)
    # Forced tiles: others than those that the outputs alone are compiled with, and no search.
    program = compile_graph(everything, PRESETS[config], force_tiles=len(results))
    with Session(program, engine=engine) as session:
        made = session.run(sample)
    assert set(made) == set(results)
    interpreter = open_interpreter(models / f"{name}.tflite")
    expected = interpreter_tensors(interpreter, [sample[None]])
    for tensor in results:
        np.testing.assert_array_equal(made[tensor], expected[tensor][0], err_msg=tensor)


def photographs(size: int) -> np.ndarray:
    """scikit-learn's two photographs, squares from their left and right and whole, uint8."""
    datasets = pytest.importorskip("sklearn.datasets", reason='needs pip install "weft[demo]"')
    image = pytest.importorskip("PIL.Image", reason='needs pip install "weft[demo]"')
    found = []
    for photograph in datasets.load_sample_images().images:
        height, width, _ = photograph.shape
        assert width > height
        for part in (photograph[:, :height], photograph[:, width - height :], photograph):
            resized = image.fromarray(part).resize((size, size), image.Resampling.BILINEAR)
            found.append(np.asarray(resized))
    return np.stack(found)


@pytest.mark.parametrize("engine", ["functional", pytest.param("rtl", marks=pytest.mark.rtl)])
@pytest.mark.parametrize("config", CONFIGS)
def test_photographs(config: str, engine: str, models: Path) -> None:
    """Float pixels, which the session quantizes; the interpreter gets codes counted by hand."""
    name = "vww_96_int8"
    pixels = photographs(96)
    if engine == "rtl":
        pixels = pixels[2::3]  # both photographs, whole
    assert len(np.unique(pixels)) > 200
    with Session(compiled(models / f"{name}.tflite", config), engine=engine) as session:
        made = session.run(pixels.astype(np.float32) / np.float32(255))
    codes = (pixels.astype(np.int16) - 128).astype(np.int8)  # scale 1/255, zero point -128
    expected = expected_of(models, name, codes)
    assert len(np.unique(expected, axis=0)) > 1
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_report_names_what_the_host_computes(name: str, models: Path) -> None:
    graph = graph_from_tflite(models / f"{name}.tflite")
    on_host = [each for each in graph.operations if isinstance(each, HostOperation)]
    program = compiled(models / f"{name}.tflite", "edge8")
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
