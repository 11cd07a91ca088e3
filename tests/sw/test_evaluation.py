"""`weft eval`: counts equal those of an interpreter that the test runs by itself."""

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
from weft.evaluation import BATCH

CLASSES = 7
SAMPLES = 2 * BATCH + 5
SHAPE = (6, 5, 3)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A classifier with its samples, their labels, and what the interpreter makes of them."""
    writer = TfliteWriter(rng)
    image = writer.input((1, *SHAPE), name="image", scales=(0.25,), zero_points=(3,))
    pooled = writer.mean(writer.conv(image, 8, (3, 3)), keep=False)
    data = writer.model(writer.softmax(writer.dense(pooled, CLASSES)))
    (tmp_path / "net.tflite").write_bytes(data)
    samples = rng.integers(-128, 128, (SAMPLES, *SHAPE)).astype(np.int8)
    outputs = np.concatenate([reference(data, [each[None]])[0] for each in samples])
    labels = np.where(rng.random(SAMPLES) < 0.5, outputs.argmax(1), rng.integers(0, CLASSES))
    np.save(tmp_path / "x.npy", samples)
    np.save(tmp_path / "outputs.npy", outputs)
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "float.npy", (samples.astype(np.float32) - 3) * np.float32(0.25))
    return tmp_path


def figures(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> dict:
    arguments = ["eval", str(folder / "net.tflite"), "--labels", str(folder / "labels.npy")]
    capsys.readouterr()
    assert main([*arguments, "--config", "tiny", "--json", *words]) == 0
    result: dict = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.tflite
@pytest.mark.parametrize("limit", [None, 1, BATCH + 1, SAMPLES + 1])
def test_counts(limit: int | None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs, labels = np.load(folder / "outputs.npy"), np.load(folder / "labels.npy")
    correct = int((outputs.argmax(1) == labels)[:limit].sum())
    count = min(limit or SAMPLES, SAMPLES)
    words = [] if limit is None else ["--limit", str(limit)]
    for data in ("x.npy", "float.npy"):
        made = figures(capsys, folder, "--data", str(folder / data), *words)
        assert made["samples"] == made["equal_predictions"] == made["equal_outputs"] == count
        assert made["machine_correct"] == made["reference_correct"] == correct
        assert made["machine_accuracy"] == made["reference_accuracy"] == correct / count
        assert made["cycles"] is None


@pytest.mark.tflite
@pytest.mark.rtl
def test_cycles_per_inference_on_rtl(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(folder / "x.npy"), "--engine", "rtl"]
    one = figures(capsys, folder, *words, "--limit", "1")
    many = figures(capsys, folder, *words, "--limit", str(BATCH + 1))
    assert many["equal_outputs"] == many["samples"] == BATCH + 1
    assert one["cycles"] == one["cycles_per_inference"] > 1000
    assert many["cycles_per_inference"] == many["cycles"] / (BATCH + 1)
    assert many["cycles_per_inference"] == pytest.approx(one["cycles"], rel=0.02)


@pytest.mark.tflite
def test_a_broken_compiler_is_seen(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases of every layer shuffled: the counts must not be the reference's."""

    def shuffled(*arguments) -> bytes:
        rows = parameter_rows(*arguments)
        return rows[len(rows) // 2 :] + rows[: len(rows) // 2]

    monkeypatch.setattr(weighted, "parameter_rows", shuffled)
    made = figures(capsys, folder, "--data", str(folder / "x.npy"))
    assert made["equal_outputs"] < SAMPLES // 2
    assert made["equal_predictions"] < SAMPLES
    outputs, labels = np.load(folder / "outputs.npy"), np.load(folder / "labels.npy")
    assert made["reference_correct"] == int((outputs.argmax(1) == labels).sum())


@pytest.mark.tflite
@pytest.mark.parametrize(
    ("data", "labels", "words"),
    [
        (np.zeros((4, 6, 5, 2), np.int8), np.zeros(4, int), ["4x6x5x2", "Nx6x5x3"]),
        (np.zeros(SHAPE, np.int8), np.zeros(6, int), ["6x5x3", "first axis"]),
        (np.zeros((), np.int8), np.zeros(1, int), ["a scalar"]),
        (np.zeros((0, *SHAPE), np.int8), np.zeros(0, int), ["empty"]),
        (np.zeros((4, *SHAPE), np.float64), np.zeros(4, int), ["float64", "float32 or int8"]),
        (np.full((20, *SHAPE), np.nan, np.float32), np.zeros(20, int), ["NaN"]),
        (np.zeros((4, *SHAPE), np.int8), np.zeros(5, int), ["4 samples and 5 labels"]),
        (np.zeros((4, *SHAPE), np.int8), np.zeros(4, np.float32), ["labels", "float32"]),
        (np.zeros((4, *SHAPE), np.int8), np.zeros((4, 1), int), ["labels", "4x1"]),
        (np.zeros((4, *SHAPE), np.int8), np.array([0, 6, 7, 0]), ["7 of sample 2", "0 to 6"]),
        (np.zeros((4, *SHAPE), np.int8), np.array([0, -1, 0, 0]), ["-1 of sample 1"]),
    ],
)
def test_bad_data(
    data: np.ndarray,
    labels: np.ndarray,
    words: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(folder / "bad.npy", data)
    np.save(folder / "bad_labels.npy", labels)
    arguments = ["--data", str(folder / "bad.npy"), "--labels", str(folder / "bad_labels.npy")]
    assert main(["eval", str(folder / "net.tflite"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error


@pytest.mark.tflite
def test_a_program_has_no_reference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weft.compile(folder / "net.tflite", config="tiny").save(folder / "net.weft")
    arguments = ["--data", str(folder / "x.npy"), "--labels", str(folder / "labels.npy")]
    assert main(["eval", str(folder / "net.weft"), *arguments]) == 1
    assert "give the .tflite or .pt2" in capsys.readouterr().err


@pytest.mark.torch
def test_pytorch_is_the_reference_of_a_pt2_model(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason='needs pip install "weft[torch]"')
    from weft.quantize import quantize

    torch.manual_seed(int(rng.integers(1 << 30)))
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 3, CLASSES),
    )
    example = (torch.randn(1, 3, 6, 5),)
    converted = quantize(model, example, [torch.randn(1, 3, 6, 5) for _ in range(8)])
    weft.save_pt2(converted, tmp_path / "net.pt2", example)
    samples = rng.normal(size=(SAMPLES, 3, 6, 5)).astype(np.float32)
    with torch.no_grad():
        outputs = torch.cat([converted(torch.from_numpy(each[None])) for each in samples])
    labels = rng.permutation(outputs.numpy().argmax(1))
    np.save(tmp_path / "x.npy", samples)
    np.save(tmp_path / "labels.npy", labels)
    words = ["--data", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "labels.npy")]
    assert main(["eval", str(tmp_path / "net.pt2"), *words, "--config", "tiny", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["reference"] == "PyTorch"
    assert made["reference_correct"] == int((outputs.numpy().argmax(1) == labels).sum())
    # PyTorch sums in float32, where a code beside a tie may differ: equality is counted, not given.
    with weft.Session(weft.compile(converted, "tiny"), engine="functional") as session:
        machine = session.run(samples, dequantize=True)
    equal = (machine == outputs.numpy()).all(axis=1)
    assert made["equal_outputs"] == int(equal.sum()) > SAMPLES // 2
    assert made["machine_correct"] == int((machine.argmax(1) == labels).sum())
