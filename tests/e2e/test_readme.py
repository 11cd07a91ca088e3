"""Every command of the README runs as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.cli import main, synthesis
from weft.synthesis import SynthesisReport
from weft.synthesis.area import Area
from weft_hw import AcceleratorConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def commands(program: str) -> list[str]:
    """The README's indented command lines that start with ``program``."""
    found = re.findall(rf"^    ({program} .*?)(?:  +#.*)?$", README, flags=re.MULTILINE)
    return [command.strip() for command in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's Python example has run, with its model and input saved."""
    torch = pytest.importorskip("torch", reason='needs pip install "weft[torch]"')
    path = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    example = torch.randn(1, 3, 12, 12)
    x = torch.randn(2, 3, 12, 12).numpy()
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {
        "model": model,
        "example": example,
        "calibration": [torch.randn(1, 3, 12, 12) for _ in range(8)],
        "x": x,
    }
    exec(block, names)
    assert names["y"].shape == (2, 5)
    assert names["session"].report["cycles"] > 0
    names["weft"].save_pt2(names["converted"], path / "model.pt2", (example,))
    np.save(path / "x.npy", x)
    np.save(path / "expected.npy", names["y"])
    return path


@pytest.fixture(scope="module")
def tflite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a .tflite model and an input for it, of the names that the README gives."""
    pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')
    from tflite_writer import TfliteWriter

    path = tmp_path_factory.mktemp("tflite")
    writer = TfliteWriter(np.random.default_rng(1))
    image = writer.input((1, 6, 5, 3), name="image")
    scores = writer.dense(writer.mean(writer.conv(image, 8, (3, 3)), keep=False), 7)
    (path / "model.tflite").write_bytes(writer.model(scores))
    np.save(path / "x.npy", image.values)
    np.save(path / "labels.npy", np.array([3]))
    return path


NETWORK = """
import torch


class Network(torch.nn.Sequential):
    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * 3 * 3, 5),
        )
"""


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network to train and its data, of the names that the README gives."""
    path = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(1)
    (path / "network.py").write_text(NETWORK)
    np.save(path / "samples.npy", rng.uniform(-1, 1, (80, 1, 6, 5)).astype(np.float32))
    np.save(path / "labels.npy", rng.integers(0, 5, 80))
    return path


@pytest.mark.rtl
@pytest.mark.torch
@pytest.mark.tflite
def test_weft_commands_run_in_the_readmes_order(
    folder: Path, tflite_folder: Path, training_folder: Path
) -> None:
    found = commands("weft")
    assert len(found) >= 5
    for command in found:
        words = shlex.split(command)
        where = tflite_folder if "model.tflite" in words else folder
        where = training_folder if words[1] == "train" else where
        result = subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=where, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert np.array_equal(np.load(folder / "y.npy"), np.load(folder / "expected.npy"))
    for name in ("report.html", "trace.json"):
        assert (folder / name).is_file()
    assert (tflite_folder / "report.json").is_file() and (tflite_folder / "y.npy").is_file()
    assert (folder / "build/base16/weft_top.v").is_file()
    assert (training_folder / "trained" / "weights.pt").is_file()
    assert (training_folder / "on_rtl" / "weights.pt").is_file()


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {shlex.split(command)[1] for command in commands("make")}
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_synthesis_command_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes too long for a test: only what it asks for is looked at."""
    asked = {}

    def take(config: AcceleratorConfig, target: str, folder: Path, **options: Any) -> Any:
        asked.update(options, config=config.name, target=target)
        return SynthesisReport(Area(), Area(), {})

    monkeypatch.setattr(synthesis, "synthesize", take)
    (command,) = re.findall(r"`(weft synth .*?)`", README.replace("\n", " "))
    assert main(shlex.split(command)[1:]) == 0
    wanted = {"config": "edge8", "target": "ecp5-85k", "megahertz": 80, "seeds": 4, "place": True}
    assert wanted.items() <= asked.items()
