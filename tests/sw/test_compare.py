"""`weft run`: several inputs and outputs, and --compare, which must see a broken compiler."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

import weft
from tflite_writer import TfliteWriter, reference
from weft.cli import main
from weft.compiler import weighted
from weft.compiler.constants import parameter_rows
from weft.errors import UnsupportedModel

pytestmark = pytest.mark.tflite


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> TfliteWriter:
    """Two inputs, two outputs, in tmp_path/net.tflite with inputs x.npy and y.npy."""
    writer = TfliteWriter(rng)
    first = writer.input((1, 6, 5, 3), name="first")
    second = writer.input((1, 6, 5, 8), name="second:0")
    total = writer.elementwise("ADD", writer.conv(first, 8, (3, 3)), second)
    scores = writer.softmax(writer.dense(writer.mean(total, keep=False), 7))
    writer.outputs = [scores, total]
    (tmp_path / "net.tflite").write_bytes(writer.model(*writer.outputs))
    np.save(tmp_path / "x.npy", first.values)
    np.save(tmp_path / "y.npy", second.values)
    return writer


def arguments(folder: Path, *inputs: str) -> list[str]:
    words = ["run", str(folder / "net.tflite"), "--engine", "functional", "--config", "edge8"]
    for each in inputs:
        name, _, file = each.rpartition("=")
        words += ["--input", f"{name}={folder / file}" if name else str(folder / file)]
    return words


@pytest.mark.parametrize("given", [("x.npy", "y.npy"), ("second:0=y.npy", "first=x.npy")])
def test_inputs_by_name_or_in_order(given, model: TfliteWriter, tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    assert main([*arguments(tmp_path, *given), "--output", str(target)]) == 0
    expected = reference(
        (tmp_path / "net.tflite").read_bytes(), [each.values for each in model.inputs]
    )
    with np.load(target) as made:
        for record, values in zip(model.outputs, expected, strict=True):
            np.testing.assert_array_equal(made[record.name], values)


@pytest.mark.parametrize(
    ("given", "more", "words"),
    [
        (("x.npy",), [], "the model has 2 inputs: give --input first=FILE, --input second:0=FILE"),
        (("first=x.npy",), [], "1 of 2 inputs are given"),
        (("first=x.npy", "first=y.npy"), [], "input first is given twice"),
        (("x.npy", "y.npy"), ["--output", "out.npy"], "name a file that ends with .npz"),
    ],
)
def test_wrong_inputs_are_explained(
    given, more, words, model: TfliteWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path, *given), *more]) == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_compare_lists_every_tensor(
    model: TfliteWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path, "x.npy", "y.npy"), "--compare", "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["comparison"]
    assert [row["tensor"] for row in rows] == [node.outputs[0].name for node in model.nodes]
    assert [row["operation"] for row in rows][:2] == ["conv_2d_0", "add_1"]
    assert [row["elements"] for row in rows] == [240, 240, 8, 7, 7]
    assert not any(row["different"] for row in rows)
    assert "5 of 5 tensors equal TFLite's reference kernels" in captured.err


def test_compare_sees_a_wrong_multiplier(
    model: TfliteWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(kernel, source, result):
        data = bytearray(parameter_rows(kernel, source, result))
        if kernel.operation.name == "conv_2d_0":
            data[0:4] = (-20000).to_bytes(4, "little", signed=True)  # bias of the first channel
        return bytes(data)

    monkeypatch.setattr(weighted, "parameter_rows", broken)
    assert main([*arguments(tmp_path, "x.npy", "y.npy"), "--compare", "--json"]) == 3
    rows = json.loads(capsys.readouterr().out)["comparison"]
    assert 0 < rows[0]["different"] <= 30
    assert rows[0]["largest"] > 0


def test_strict_refuses_host_operations(
    model: TfliteWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "net.tflite")
    assert main(["compile", path, "--config", "edge8", "--strict"]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "net: Softmax (operator 4 SOFTMAX, " in text
    assert "runs on the host" in text
    assert main([*arguments(tmp_path, "x.npy", "y.npy"), "--strict"]) == 1
    with pytest.raises(UnsupportedModel, match="runs on the host"):
        weft.compile(path, strict=True)


def test_compare_needs_a_tflite_model(
    model: TfliteWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "net.weft"
    path = str(tmp_path / "net.tflite")
    assert main(["compile", path, "-o", str(program), "--config", "edge8"]) == 0
    words = arguments(tmp_path, "x.npy", "y.npy")
    words[1] = str(program)
    assert main([*words, "--compare"]) == 1
    assert "only .tflite models have a reference" in " ".join(capsys.readouterr().err.split())
