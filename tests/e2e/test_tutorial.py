"""Every command of docs/tutorial.md runs as it stands there, and prints the figures it names."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

pytestmark = [pytest.mark.tflite, pytest.mark.rtl]

TUTORIAL = (Path(__file__).parents[2] / "docs/tutorial.md").read_text()
WEFT = Path(sys.executable).parent / "weft"
MODEL = "kws_ref_model.tflite"


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] == "weft"
    target = words[words.index(">") + 1] if ">" in words else None
    if target is not None:
        words = words[: words.index(">")]
    done = subprocess.run([str(WEFT), *words[1:]], cwd=folder, capture_output=True, text=True)
    if target is not None:
        (folder / target).write_text(done.stdout)
    return done


def cycles(text: str) -> str:
    found = re.search(r"([\d,]+) cycles, utilization", text)
    assert found is not None, text
    return found[1]


def test_the_tutorial(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / MODEL, tmp_path)
    shutil.copy(models / "kws_ref_model.input.npy", tmp_path / "x.npy")
    commands = [each.strip() for each in re.findall(r"^    (weft .*)$", TUTORIAL, re.MULTILINE)]
    assert len(commands) == 5
    strict, first, simulated, shown, again = commands
    refused = run(strict, tmp_path)
    assert refused.returncode == 1
    assert "SOFTMAX" in refused.stderr
    figures = []
    for command in (first, simulated, shown):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if command != shown:
            figures.append(cycles(done.stdout))
    assert (tmp_path / "report.html").is_file()
    path = tmp_path / "wide.json"
    base = json.loads(path.read_text())
    wide = {"name": "wide", "rows": 8, "columns": 32, "vector_lanes": 32}
    for changes in (wide, {"name": "one-tap", "depthwise_taps": 1}):
        path.write_text(json.dumps({**base, **changes}))
        figures.append(cycles(run(again, tmp_path).stdout))
    shutil.copy(models / "pretrainedResnet_quant.tflite", tmp_path)
    resnet = "weft estimate pretrainedResnet_quant.tflite --config "
    path.write_text(json.dumps({**base, **wide}))
    figures += [cycles(run(resnet + name, tmp_path).stdout) for name in ("wide.json", "base16")]
    print(figures)
    assert np.load(tmp_path / "x.npy").shape[-3:] == (49, 10, 1)
    for figure in figures:
        assert re.search(rf"(?<!\d){figure}(?!\d)", TUTORIAL), figures
