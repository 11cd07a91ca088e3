"""Methods compared: fairness of the protocol, figures in words, tables and the page."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weft.cli import main
from weft.train.comparison import protocol
from weft.train.comparison.contenders import CONTENDERS, Contender
from weft.train.comparison.gradients import float_gradients, gradient_cosines
from weft.train.comparison.learners import (
    BitSchedule,
    DeviceLearner,
    RateSchedule,
    float_images,
)
from weft.train.comparison.page import comparison_page
from weft.train.comparison.text import markdown
from weft.train.data import DataSet
from weft.train.methods import choose_method
from weft.train.networks import DigitsNetwork

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def some_data(rng: np.random.Generator, train: int = 96) -> DataSet:
    """A bright row is the label."""
    count = train + 40
    labels = rng.integers(0, 8, count)
    images = rng.integers(0, 30, (count, 8, 8, 1)).astype(np.int8)
    images[np.arange(count), labels] += 90
    return DataSet.split("rows", images, labels, 20, 20)


def some_task(rng: np.random.Generator, **changes: Any) -> protocol.Task:
    data = some_data(rng)
    task = protocol.Task(
        "rows",
        "bright rows",
        lambda: data,
        DigitsNetwork,
        ("FP32", "Octo"),
        seeds=2,
        tuning_seeds=1,
        epochs=2,
        tuning_epochs=1,
        rates=(0.05, 0.1),
    )
    return dataclasses.replace(task, **changes)


class Recorder:
    """Learns nothing; predicts by what it is told."""

    def __init__(self, network: torch.nn.Module, good: float) -> None:
        self.start = [parameter.detach().clone() for parameter in network.parameters()]
        self.seen: list[tuple[np.ndarray, float]] = []
        self.good = good
        self.rate = 0.0

    def step(self, images: Any, labels: Any, schedule: Any, done: float) -> None:
        self.seen.append((images.copy(), done))
        self.rate = schedule.start

    def predict(self, images: Any) -> Any:
        # Right on validation data (of this rate) and wrong elsewhere: tells what was chosen by.
        rows = images[:, :, :, 0].astype(int).sum(2).argmax(1)
        return rows if self.rate == self.good else (rows + 1) % 8


def test_all_methods_see_the_same(rng: np.random.Generator) -> None:
    task = some_task(rng)
    data = task.data()
    seen = []
    for name in ("one", "other"):
        contender = Contender(name, "", lambda network, example, seed: Recorder(network, 0.1))
        learner = protocol.run_once(task, data, contender, RateSchedule(0.1), 3, epochs=2)
        seen.append(learner)
    first, second = seen
    assert all(torch.equal(a, b) for a, b in zip(first.start, second.start, strict=True))
    assert [done for _, done in first.seen] == [step / 6 for step in range(6)]
    for (a, _), (b, _) in zip(first.seen, second.seen, strict=True):
        np.testing.assert_array_equal(a, b)
    epoch = np.concatenate([images for images, _ in first.seen[:3]])
    assert sorted(map(bytes, epoch)) == sorted(map(bytes, data.train_images)), "each picture once"
    assert not np.array_equal(first.seen[0][0], first.seen[3][0]), "a new order in each epoch"


def test_the_best_schedule_is_chosen(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for good in (0.05, 0.1):
        contender = Contender("fake", "", lambda network, e, s, good=good: Recorder(network, good))
        monkeypatch.setitem(CONTENDERS, "fake", contender)
        done: list[int] = []
        task = some_task(rng, contenders=("fake",))
        result = protocol.compare(task, done.append)
        assert result["methods"][0]["schedule"] == f"rate {good:g}"
        assert done == list(range(1, protocol.runs_of(task) + 1))
        assert protocol.runs_of(task) == 2 * 1 + 2
        assert result["methods"][0]["mean"] == 1.0


def test_real_methods_learn(rng: np.random.Generator) -> None:
    saved: list[int] = []
    data = some_data(rng, train=256)
    task = some_task(rng, data=lambda: data, epochs=7, tuning_epochs=1, rates=(0.1,), seeds=1)
    result = protocol.compare(task, save=lambda r: saved.append(len(r["methods"])))
    assert saved == [1, 2]
    for method in result["methods"]:
        assert len(method["runs"]) == 1 and len(method["runs"][0]["curve"]) == 7
        assert method["mean"] > 0.5, method["name"]
    octo = result["methods"][1]
    assert octo["bytes"]["weights"] == 12_176 * (1 + 2 + 2)
    assert octo["bytes"]["compensations"] == (16 * 64 + 24 * 16 * 2 + 32 + 10) * (1 + 2 + 2)
    assert min(entry["start"][0] for entry in octo["gradients"]) > 0.99
    assert "gradients" not in result["methods"][0]
    assert f"| Octo | {min(entry['start'][0] for entry in octo['gradients']):.4f} |" in markdown(
        [result]
    )
    assert "of compensations" in comparison_page([result])
    assert json.loads(json.dumps(result)) == result


def made_up(*ends: tuple[str, tuple[float, ...]]) -> dict[str, Any]:
    methods = [
        {
            "name": name,
            "text": f"{name} & more",
            "schedule": "rate 0.1",
            "trials": [],
            "runs": [{"seed": s, "curve": [0.1, end]} for s, end in enumerate(accuracies)],
            "mean": float(np.mean(accuracies)),
            "spread": float(np.std(accuracies, ddof=1)),
            "seconds": 1.0,
        }
        for name, accuracies in ends
    ]
    about = {"task": "digits", "text": "some digits", "parameters": 10, "batch": 4, "epochs": 2}
    return {**about, "pictures": [5, 6, 7], "methods": methods}


def test_answers_are_paired_by_seed() -> None:
    result = made_up(("INT8", (0.90, 0.94, 0.92)), ("INT8 + PRC", (0.91, 0.95, 0.93)))
    (answer,) = protocol.answers(result["methods"])
    assert answer["question"] == "What does PRC add to INT8?"
    assert answer["difference"] == pytest.approx(1.0) and answer["error"] < 1e-9
    assert answer["answer"] == "1.00 points more accurate."
    result = made_up(("FP32", (0.90, 0.94, 0.92)), ("INT8", (0.92, 0.92, 0.92)))
    (answer,) = protocol.answers(result["methods"])
    assert answer["answer"] == "Nothing that 3 seeds can show."
    assert answer["error"] == pytest.approx(100 * 0.02 / 3**0.5)
    (answer,) = protocol.answers(made_up(("FP32", (0.9, 0.9)), ("INT8", (0.8, 0.82)))["methods"])
    assert answer["answer"] == "9.00 points less accurate."


def test_page_and_tables() -> None:
    result = made_up(("FP32", (0.90, 0.94, 0.92)), ("INT8", (0.91, 0.93, 0.93)))
    result["cycles"] = [
        {"layer": "stem", "pass": "forward", "cycles": 1234},
        {"layer": "stem", "pass": "weights", "cycles": 2000},
    ]
    page = comparison_page([result])
    assert page.count('<polyline class="mean"') == 4 and page.count('<polygon class="band"') == 4
    assert "INT8 &amp; more" in page and "Some digits" in page
    assert "1,234" in page and "3,234" in page
    assert "http" not in page.replace("http://www.w3.org", ""), "nothing from elsewhere"
    text = markdown([result])
    assert "| FP32 | 92.00 | 2.00 | 90.00 to 94.00 | rate 0.1 |" in text
    assert "| How far is plain INT8 from float? | +0.33 (0.67) |" in text


def test_bits_fall() -> None:
    schedule = BitSchedule(((0.0, 3), (0.5, 2), (0.75, 1)))
    assert [schedule.bits(done) for done in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [
        3,
        3,
        2,
        2,
        1,
        1,
    ]
    assert RateSchedule(0.2).rate(0.5) == pytest.approx(0.1)


def test_control_of_compensation_has_its_rates(rng: np.random.Generator) -> None:
    learner = DeviceLearner(
        DigitsNetwork(), torch.zeros(4, 1, 8, 8), choose_method("int8"), biases_as_compensation=True
    )
    groups = {p.name: p.group for p in learner.training_step.parameters()}
    for name, group in groups.items():
        assert group == ("compensation" if name.endswith("bias") else "weights"), name
    before = learner.parameters.real(learner.state, "stem.bias")
    # A rate at which the L2 shows: the biases shrink although no gradient is this large.
    data = some_data(rng)
    learner.step(data.train_images[:4], data.train_labels[:4], RateSchedule(0.5), 0.0)
    after = learner.parameters.real(learner.state, "stem.bias")
    big = np.abs(before) > 0.2
    assert big.any() and (np.abs(after[big]) < 0.8 * np.abs(before[big])).all()


@pytest.mark.parametrize("method", ["octo", "shared"])
def test_gradients_point_where_autograd_says(
    rng: np.random.Generator, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = some_data(rng)
    torch.manual_seed(int(rng.integers(1000)))
    learner = DeviceLearner(DigitsNetwork(), torch.zeros(32, 1, 8, 8), choose_method(method))
    batches = [
        (data.train_images[start : start + 32], data.train_labels[start : start + 32])
        for start in (0, 32)
    ]
    cosines = gradient_cosines(learner, batches)
    assert {c.parameter for c in cosines} == {p.name for p in learner.training_step.parameters()}
    for cosine in cosines:
        assert cosine.quantized > 0.99, cosine
        assert cosine.unquantized > 0.7, cosine

    values = learner.engine.values

    def wrong(*arguments: Any) -> Any:
        images, gradients = values(*arguments)
        return images, {**gradients, "stem.weight": gradients["stem.weight"][::-1]}

    monkeypatch.setattr(learner.engine, "values", wrong)
    spoiled = {c.parameter: c.quantized for c in gradient_cosines(learner, batches)}
    assert spoiled["stem.weight"] < 0.9 < spoiled["down.weight"]


def test_float_gradients_are_those_of_the_module(rng: np.random.Generator) -> None:
    """Without quantization, the step's graph is the module's own."""
    data = some_data(rng)
    images, labels = data.train_images[:8], data.train_labels[:8]
    network = DigitsNetwork().double()
    learner = DeviceLearner(DigitsNetwork(), torch.zeros(8, 1, 8, 8), choose_method("int8"))
    step = learner.training_step
    given = {
        p.name: torch.from_numpy(learner.parameters.real(learner.state, p.name))
        for p in step.parameters()
    }
    stored = learner.parameters.to_torch(learner.state)
    network.load_state_dict({name: torch.from_numpy(v).double() for name, v in stored.items()})
    logits = network(float_images(images).double())
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum").backward()
    found = float_gradients(step, given, images, labels, None)
    for name, parameter in network.named_parameters():
        expected = parameter.grad
        if expected.ndim == 4:
            expected = expected.permute(2, 3, 1, 0)
            torch.testing.assert_close(found[name], expected)
        elif expected.ndim == 1:
            torch.testing.assert_close(found[name], expected)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, page, report = tmp_path / "r.json", tmp_path / "docs.md", tmp_path / "r.html"
    page.write_text(
        "before\n<!-- begin: weft bench train -->\nold\n<!-- end: weft bench train -->\nafter"
    )
    saved.write_text(
        json.dumps({"results": [made_up(("FP32", (0.9, 0.92)), ("INT8", (0.9, 0.9)))]})
    )
    step = tmp_path / "step.json"
    head = {
        "network": "digits",
        "method": "octo",
        "exponents": "own",
        "batch": 8,
        "config": "edge8",
    }
    operations = [
        {"title": title, "forward": forward, "cycles": cycles}
        for title, forward, cycles in (
            ("stem", True, 100),
            ("stem.gradient.2", False, 20),
            ("update stem.weight", False, 3),
            ("update stem.bias", False, 4_000),
        )
    ]
    step.write_text(json.dumps({**head, "cycles": 4_123, "operations": operations}))
    words = ["bench", "train", "--from", str(saved), "--json", "--cycles", str(step)]
    assert main([*words, "--table", str(page), "--report", str(report)]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["task"] == "digits"
    text = page.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter")
    assert "| FP32 | 91.00 |" in text and "old" not in text
    written = report.read_text()
    assert written.startswith("<!doctype html>")
    assert "edge8, octo, own exponents, batch 8: 4,123 cycles in all" in written
    row = written[written.index("<td>stem</td>") :].split("</tr>")[0]
    assert [f">{n}<" in row for n in ("100", "20", "4,003", "4,123")] == [True] * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task letters", "choose one of digits, pictures"),
        ("--task pictures --method INT9", "choose of FP32"),
        ("--from /nowhere.json", "cannot be read"),
        ("--from /nowhere.json --cycles x", "cannot be read"),
        ("--report x.pdf", "must end in .html"),
        ("--table README.md", "no lines <!-- begin"),
    ],
)
def test_mistakes(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *words.split()]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
