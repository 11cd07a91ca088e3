"""`weft bench train-step`: figures, a page, clear errors."""

import json
import re
from pathlib import Path

import pytest

from weft.benchmarks.train_step import convolution_passes
from weft.cli import main
from weft.train.machine.timing import macs_of
from weft.train.step import MomentumUpdate

pytestmark = pytest.mark.torch


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["bench", "train-step", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("exponents", ["own", "delayed"])
def test_passes_of_a_convolution(exponents: str) -> None:
    steps = convolution_passes(
        (16, 16, 64, 48), 2, 3, delayed=exponents == "delayed", update=MomentumUpdate()
    )
    for step in steps.values():
        (operation,) = step.operations
        assert macs_of(operation, 2) == 2 * 16 * 16 * 9 * 64 * 48


@pytest.mark.rtl
def test_a_network_s_step_with_its_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "step.html"
    words = ("--network", "digits", "--batch", "2", "--config", "edge8", "--json")
    code, out, _ = run(capsys, *words, "--report", str(page))
    assert code == 0
    result = json.loads(out)
    assert result["cycles"] == sum(entry["cycles"] for entry in result["operations"])
    assert result["peak_bytes"] == max(area["address"] + area["size"] for area in result["areas"])
    assert sum(result["memory"].values()) <= result["peak_bytes"]
    text = page.read_text()
    assert f"{result['cycles']:,}" in text and "gradients" in text
    assert len(re.findall("<rect", text)) == len(result["areas"])
    assert "http" not in text.replace("http://www.w3.org", "")  # nothing is fetched


def test_functional_has_no_cycles(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "step.html"
    words = ("--network", "digits", "--batch", "1", "--engine", "functional", "--json")
    code, out, _ = run(capsys, *words, "--report", str(page))
    assert code == 0 and page.is_file()
    assert json.loads(out)["cycles"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--report", "x.html"), "--network digits or residual"),
        (("--network", "digits", "--report", "x.txt"), "must end in .html"),
        (("--network", "digits", "--method", "best"), "choose one of"),
        (("--network", "digits", "--exponents", "none"), "choose one of own, delayed"),
    ],
)
def test_clear_errors(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, _, err = run(capsys, "--engine", "functional", *words)
    assert code != 0 and message in " ".join(err.split())
