"""What a user can get wrong on the command line: one clear line, non-zero exit, no traceback."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from weft.benchmarks.networks import residual_network
from weft.cli import main
from weft.compiler import compile_graph
from weft_hw import PRESETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and inputs, good and bad."""
    path = tmp_path_factory.mktemp("bad")
    compile_graph(residual_network(8, (4,)), PRESETS["tiny"]).save(path / "good.weft")
    data = (path / "good.weft").read_bytes()
    (path / "cut.weft").write_bytes(data[: len(data) // 2])
    (path / "flipped.weft").write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    )
    (path / "text.weft").write_text("not a model")
    (path / "empty.weft").write_bytes(b"")
    np.save(path / "x.npy", np.zeros((3, 8, 8), np.int8))
    np.save(path / "shape.npy", np.zeros((3, 9, 8), np.int8))
    np.save(path / "dtype.npy", np.zeros((3, 8, 8), np.int64))
    np.save(path / "nan.npy", np.full((3, 8, 8), np.nan, np.float32))
    (path / "x.txt").write_text("1 2 3")
    values = PRESETS["tiny"].to_dict()
    (path / "unknown.json").write_text(json.dumps({**values, "rowz": 4}))
    (path / "wrong.json").write_text(json.dumps({**values, "rows": 5}))
    (path / "broken.json").write_text("{")
    return path


CASES: dict[str, tuple[list[str], list[str]]] = {
    "missing model": (["run", "none.weft", "--input", "x.npy"], ["none.weft", "no such"]),
    "not a model": (["run", "text.weft", "--input", "x.npy"], ["text.weft", "weft.save_pt2"]),
    "empty model": (["run", "empty.weft", "--input", "x.npy"], ["empty.weft"]),
    "truncated program": (["run", "cut.weft", "--input", "x.npy"], ["cut.weft"]),
    "damaged program": (["run", "flipped.weft", "--input", "x.npy"], ["flipped.weft"]),
    "other configuration": (
        ["run", "good.weft", "--input", "x.npy", "--config", "edge8"],
        ["tiny", "edge8", "compile"],
    ),
    "missing input": (["run", "good.weft", "--input", "none.npy"], ["none.npy", "no such"]),
    "input is no array": (["run", "good.weft", "--input", "x.txt"], ["x.txt", ".npy"]),
    "wrong shape": (["run", "good.weft", "--input", "shape.npy"], ["image", "3x9x8", "3x8x8"]),
    "wrong dtype": (["run", "good.weft", "--input", "dtype.npy"], ["int64", "int8", "float32"]),
    "not a number": (["run", "good.weft", "--input", "nan.npy"], ["nan"]),
    "unknown engine": (
        ["run", "good.weft", "--input", "x.npy", "--engine", "functionel"],
        ["functionel", "functional"],
    ),
    "unknown preset": (["config", "base61"], ["base61", "base16"]),
    "unknown field": (["config", "unknown.json"], ["unknown.json", "rowz", "rows"]),
    "wrong value": (
        ["verilog", "--config", "wrong.json", "-o", "out"],
        ["rows", "power of two", "5"],
    ),
    "broken JSON": (["config", "broken.json"], ["broken.json", "JSON"]),
    "trace on functional": (
        ["run", "good.weft", "--input", "x.npy", "--engine", "functional", "--trace", "a.vcd"],
        ["--trace", "rtl"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, expected = CASES[name]
    if "--engine" not in words and words[0] == "run":
        words = [*words, "--engine", "functional"]
    monkeypatch.chdir(folder)
    assert main(words) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for text in expected:
        assert text.lower() in error.lower(), error


def bad_models() -> dict[str, tuple[object, tuple[int, ...], list[str]]]:
    """Networks that cannot be compiled, their input's shape, and what the error must say."""
    torch = pytest.importorskip("torch", reason='needs pip install "weft[torch]"')
    nn = torch.nn

    class Sigmoid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.squash = nn.Sigmoid()

        def forward(self, x):
            return self.squash(self.first(x))

    return {
        "unknown op": (Sigmoid(), (1, 3, 8, 8), ["sigmoid", "squash"]),
        "dilated pool": (
            nn.Sequential(nn.MaxPool2d(2, dilation=2)),
            (1, 4, 8, 8),
            ["dilation", "2"],
        ),
        "too large": (
            nn.Sequential(nn.Conv2d(1, 20, 1)),
            (1, 1, 60, 60),
            ["bytes of DRAM", "narrow", "65536"],
        ),
    }


@pytest.mark.torch
@pytest.mark.parametrize("name", ["unknown op", "dilated pool", "too large"])
def test_a_model_that_cannot_be_compiled(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, shape, expected = bad_models()[name]
    import torch

    from weft import save_pt2
    from weft.quantize import quantize

    example = (torch.randn(shape),)
    path = tmp_path / "model.pt2"
    save_pt2(quantize(model, example, [example]), path, example)
    config = tmp_path / "narrow.json"
    config.write_text(
        dataclasses.replace(PRESETS["tiny"], name="narrow", address_width=16).to_json()
    )
    capsys.readouterr()
    assert (
        main(["compile", str(path), "--config", str(config), "-o", str(tmp_path / "out.weft")]) == 1
    )
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    for text in expected:
        assert text in error, error
    assert not (tmp_path / "out.weft").exists()


def test_misuse_of_the_command_line_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert main(["compile", "--no-such-option"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(folder: Path) -> None:
    command = [sys.executable, "-c", "import sys; from weft.cli import main; sys.exit(main())"]
    plain = subprocess.run(
        [*command, "config", "none"], cwd=folder, capture_output=True, text=True, check=False
    )
    debug = subprocess.run(
        [*command, "config", "none", "--debug"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert plain.returncode == 1
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
