"""The trainer: reports, resumed runs, checkpoints, state dicts, verification and clear errors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import weft
from weft.cli import main
from weft.errors import CheckpointError, InputError
from weft.train import EngineMismatch, MomentumUpdate, Schedule, Trainer, cosine, stairs
from weft.train import compile as compile_training
from weft.train.schedule import falling_bits
from weft.train.state import State

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

BATCH, CLASSES = 8, 3


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


def trainer_of(module: nn.Module | None = None, batch: int = BATCH, **options: Any) -> Trainer:
    options.setdefault("schedule", cosine(0.05, 60, warm_up=5))
    example = torch.zeros(batch, 2, 6, 6)
    return compile_training(module or network(), example, "tiny", **options)


def data(count: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is where they are bright, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    images = generator.uniform(-0.3, 0.3, (count, 2, 6, 6)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 0.6
    return images, labels


def test_imports_no_torch() -> None:
    code = "import sys, weft, weft.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reports_and_evaluates() -> None:
    """Loss and hits of the reports are those of the float module, to int8; evaluation is better
    after training than before, and equal to the exported weights' in PyTorch."""
    images, labels = data()
    trainer = trainer_of(method="int8")
    first = trainer.step(images[:BATCH], labels[:BATCH])
    with torch.no_grad():
        logits = network()(torch.from_numpy(images[:BATCH]))
        expected = float(functional.cross_entropy(logits, torch.from_numpy(labels[:BATCH])))
    assert first.number == 0
    assert first.loss == pytest.approx(expected, rel=0.05)
    assert abs(first.correct - int((logits.argmax(1).numpy() == labels[:BATCH]).sum())) <= 1
    assert first.saturations == sum(first.saturated.values())
    assert set(first.saturated) == {each.name for each in trainer.training_step.quantizers()}
    before = trainer.evaluate(images, labels)
    for _ in range(8):
        for report in trainer.epoch(torch.from_numpy(images), torch.from_numpy(labels)):
            assert 0 <= report.correct <= BATCH
    after = trainer.evaluate(images, labels)
    assert after.samples == 50 and after.accuracy > 0.9 and after.loss < before.loss / 2
    module = network()
    module.load_state_dict(trainer.state_dict())
    with torch.no_grad():
        logits = module(torch.from_numpy(images)).numpy()
    predicted = trainer.predict(images)
    # Evaluation keeps the range of the last step's batch: what is beyond it is clamped.
    limit = np.abs(predicted).max()
    assert limit > 0.8 * np.abs(logits).max()
    assert np.abs(predicted - np.clip(logits, -limit, limit)).max() < 0.06 * limit


@pytest.mark.parametrize(
    "options",
    [
        {"method": "octo", "exponents": "delayed"},
        {"method": "octo", "update": MomentumUpdate(32, 0.9, decays=True)},
        {"method": "shared", "exponents": "delayed"},
    ],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_one(options: Any, tmp_path: Path) -> None:
    """Interrupted within an epoch; every number of the state is equal, and every report."""
    images, labels = data()
    options["schedule"] = Schedule(cosine(0.05, 18), decay=0.01, bits=falling_bits(18))
    whole, part = trainer_of(**options), trainer_of(**options)
    reports = [report for _ in range(3) for report in whole.epoch(images, labels)]
    for _, report in zip(range(8), part.epoch(images, labels), strict=False):
        assert report == reports[report.number]
    for report in part.epoch(images, labels):
        assert report == reports[report.number]
        if report.number == 7:
            break
    part.save(tmp_path / "run")
    resumed = trainer_of(**options, seed=99)
    resumed.load(tmp_path / "run")
    assert resumed.number == 8 and resumed.seed == 0
    while resumed.number < 18:
        for report in resumed.epoch(images, labels):
            assert report == reports[report.number]
    assert resumed.state.difference(whole.state) is None
    other = trainer_of(**options, seed=1)
    list(other.epoch(images, labels))
    list(whole.epoch(images, labels))
    assert other.state.difference(whole.state) is not None


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    """Each gets its error, and leaves the trainer as it was."""
    images, labels = data()
    trainer = trainer_of()
    trainer.step(images[:BATCH], labels[:BATCH])
    good, bad = tmp_path / "good", tmp_path / "bad"
    trainer.save(good)
    assert list(tmp_path.iterdir()) == [good]
    content = good.read_bytes()
    before = trainer.state.copy()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    for text, written in (
        ("damaged", bytes(damaged)),
        ("damaged", content[:-1]),
        ("not a checkpoint", b"PK something else"),
        ("not a checkpoint", b""),
    ):
        bad.write_bytes(written)
        with pytest.raises(CheckpointError, match=text):
            trainer.load(bad)
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trainer.save(tmp_path / "none" / "run")
    assert trainer.state.difference(before) is None and trainer.number == 1
    for other, text in (
        (trainer_of(batch=BATCH + 1), "another module, batch size or method"),
        (trainer_of(method="clipped"), "another module, batch size or method"),
        (trainer_of(network_with_larger_weights()), "same seed"),
    ):
        with pytest.raises(CheckpointError, match=text):
            other.load(good)
    trainer.load(good)


def network_with_larger_weights() -> nn.Module:
    module = network()
    with torch.no_grad():
        module[0].weight.mul_(4)
    return module


def test_state_dict_round_trip() -> None:
    images, labels = data()
    trainer = trainer_of(method="octo", update=MomentumUpdate(32, 0.9))
    for _ in range(2):
        list(trainer.epoch(images, labels))
    values = trainer.state_dict()
    assert {"0.compensation", "4.compensation"} < set(values)
    other = trainer_of(method="octo", update=MomentumUpdate(32, 0.9))
    other.load_state_dict(values)
    for group in ("codes", "master"):
        for name, array in getattr(trainer.state, group).items():
            # float32 keeps 24 bits of the masters' 23 and a sign: all of them
            assert np.array_equal(array, getattr(other.state, group)[name]), (group, name)
    folded = trainer.state_dict(folded=True)
    assert set(folded) == set(network().state_dict())
    assert torch.equal(folded["0.bias"], values["0.bias"] + values["0.compensation"])
    plain = network(seed=3).state_dict()
    other.load_state_dict(plain)
    for name, tensor in other.state_dict().items():
        if name in plain:
            assert torch.allclose(tensor, plain[name], atol=1e-5)
        else:
            assert not tensor.any()
    state = other.state.copy()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**plain, "extra": torch.zeros(1)}, "has extra"),
        ({name: plain[name] for name in list(plain)[1:]}, "lacks 0.weight"),
        ({**plain, "0.bias": torch.zeros(5)}, "shape"),
        ({**plain, "0.bias": torch.full((4,), torch.nan)}, "0.bias reaches nan"),
        ({**plain, "0.weight": torch.full((4, 2, 3, 3), 9.0)}, "compile the module with"),
    ]
    for values, text in wrong:
        with pytest.raises(InputError, match=text):
            other.load_state_dict(values)
    assert other.state.difference(state) is None


def test_clear_errors_of_steps() -> None:
    """Nothing has changed after any of them."""
    images, labels = data(BATCH)
    trainer = trainer_of()
    with pytest.raises(InputError, match="first one sets the exponents"):
        trainer.evaluate(images, labels)
    trainer.step(images, labels)
    before = trainer.state.copy()
    broken = images.copy()
    broken[2, 1, 3, 0] = np.nan
    endless = images.copy()
    endless[0, 0, 0, 0] = -np.inf
    wrong: list[tuple[Any, Any, str]] = [
        (broken, labels, r"input at \(2, 1, 3, 0\) is nan"),
        (endless, labels, r"input at \(0, 0, 0, 0\) is -inf"),
        (images * 200, labels, r"scale them to \[-1, 1\]"),
        (images.astype(np.uint8), labels, "uint8"),
        (images[:, :, :5], labels, r"compiled for \(N, 2, 6, 6\)"),
        (images[:5], labels[:5], "compiled for 8"),
        (images, labels[:5], "8 inputs and 5 labels"),
        (images, labels * 3, r"label \d at place \d: the module has 3 classes"),
        (images, labels - 1, "label -1 at place"),
        (images, labels.astype(np.float32), "labels: float32"),
        (images, labels[:, None], r"labels: int64 of shape \(8, 1\)"),
    ]
    for x, y, text in wrong:
        with pytest.raises(InputError, match=text):
            trainer.step(x, y)
    with pytest.raises(InputError, match="less than one batch"):
        next(trainer.epoch(images[:3], labels[:3]))
    assert trainer.state.difference(before) is None and trainer.number == 1


def test_clear_errors_of_compile() -> None:
    for options, text in (
        ({"engine": "quick"}, "fast, functional, rtl"),
        ({"method": "adam"}, "int8, compensated, clipped, octo, shared"),
        ({"exponents": "late"}, "own, delayed"),
        ({"compensation": "row"}, "none, channel, pixel"),
        ({"update": MomentumUpdate(8)}, "16 or 32"),
        ({"seed": -1}, "seed"),
        ({"verify_every": -1}, "verify_every"),
    ):
        with pytest.raises(InputError, match=text):
            trainer_of(**options)
    with pytest.raises(weft.WeftError, match="no-such"):
        compile_training(network(), torch.zeros(8, 2, 6, 6), "no-such")


@pytest.mark.parametrize("method", ["octo", "shared"])
@pytest.mark.parametrize("engine", ["fast", "functional"])
def test_the_machine_verifies_and_is_verified(engine: str, method: str) -> None:
    """Delayed exponents, so that the machine starts from what the fast engine has measured."""
    images, labels = data(3 * BATCH)
    runs = []
    for verify_every in (2, 0):
        options = {"engine": engine, "verify_every": verify_every}
        with trainer_of(method=method, exponents="delayed", **options) as trainer:
            reports = list(trainer.epoch(images, labels))
        runs.append((trainer.state, reports))
    assert runs[0][0].difference(runs[1][0]) is None and runs[0][1] == runs[1][1]


class Broken:
    """An engine that is wrong from its second step on."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def run(self, state: State, *batch: Any) -> tuple[State, np.ndarray]:
        found, logits = self.engine.run(state, *batch)
        if batch[-1] > 0:
            found.codes["4.weight"] = found.codes["4.weight"].copy()
            found.codes["4.weight"][0, 1, 2, 0] += 1
        return found, logits


def test_verification_names_what_differs() -> None:
    images, labels = data()
    trainer = trainer_of()
    trainer._verifier, trainer._verify_every = Broken(trainer.fast), 3
    trainer.engine = trainer.fast
    with pytest.raises(EngineMismatch, match=r"step 3: .*codes of 4.weight: 1 of 108 differ"):
        list(trainer.epoch(images, labels))
    assert trainer.number == 3


def test_schedules() -> None:
    rate = cosine(1.0, 110, warm_up=10, last=0.1)
    assert [rate(0), rate(4), rate(10), rate(60)] == pytest.approx([0.1, 0.5, 1.0, 0.55])
    assert rate(110) == rate(1000) == pytest.approx(0.1)
    rate = stairs(1.0, (10, 20), 0.5)
    assert [rate(9), rate(10), rate(19), rate(20)] == [1.0, 0.5, 0.5, 0.25]
    bits = falling_bits(10, (5, 3, 1), (0.2, 0.5, 0.3))
    assert [bits(step) for step in range(12)] == [5, 5, 3, 3, 3, 3, 3, 1, 1, 1, 1, 1]


MODULE = """
from torch import nn
class Network(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
"""


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in two parts has the weights of one in one; errors are single lines."""
    images, labels = data()
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    (tmp_path / "net.py").write_text(MODULE)

    def run(output: str, *options: str, name: str = "Network") -> int:
        words = ["train", f"{tmp_path / 'net.py'}:{name}", "--config", "tiny", "--batch", "8"]
        words += ["--data", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy")]
        return main([*words, "--output", str(tmp_path / output), *options])

    assert run("whole", "--epochs", "4", "--schedule", "constant") == 0
    assert "epoch 4" in capsys.readouterr().out
    assert run("parts", "--epochs", "2", "--schedule", "constant") == 0
    assert run("parts", "--epochs", "4", "--schedule", "constant") == 1
    assert "--resume" in capsys.readouterr().err
    assert run("parts", "--epochs", "4", "--schedule", "constant", "--resume") == 0
    for name in ("checkpoint.weft", "history.json"):
        whole, parts = ((tmp_path / each / name).read_bytes() for each in ("whole", "parts"))
        assert whole == parts, name
    weights = [torch.load(tmp_path / each / "weights.pt") for each in ("whole", "parts")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    capsys.readouterr()
    for options, name, text in (
        (["--method", "adam"], "Network", "choose one of"),
        ([], "Missing", "defines no class or function Missing"),
        (["--batch", "51"], "Network", "less than one batch of 51"),
        (["--schedule", "sudden"], "Network", "cosine, constant"),
    ):
        assert run("other", *options, name=name) == 1
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1


def test_ctrl_c_saves_and_resumes(tmp_path: Path) -> None:
    """A signal within the training ends it behind a step, with a checkpoint."""
    images, labels = data()
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    code = f"""
import os, signal, sys
from weft.cli import main
from weft.train.fast import FastEngine
run = FastEngine.run
def interrupted(self, *arguments):
    if arguments[-1] == 7:
        os.kill(os.getpid(), signal.SIGINT)
    return run(self, *arguments)
FastEngine.run = interrupted
sys.exit(main({
        [
            "train",
            f"{tmp_path / 'net.py'}:Network",
            "--config",
            "tiny",
            "--batch",
            "8",
            "--data",
            str(tmp_path / "x.npy"),
            "--labels",
            str(tmp_path / "y.npy"),
            "--output",
            str(tmp_path / "out"),
            "--epochs",
            "3",
        ]
    }))
"""
    (tmp_path / "net.py").write_text(MODULE)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 130, found.stderr
    assert "stopped after 8 of 15 steps" in found.stdout and "--resume" in found.stdout
    assert (tmp_path / "out" / "checkpoint.weft").is_file()
    assert not (tmp_path / "out" / "weights.pt").exists()
