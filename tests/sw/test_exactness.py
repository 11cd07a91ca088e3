"""The page of exactness: complete, as measured, and able to report a difference."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')
pytest.importorskip("torch")

from exactness.__main__ import table
from exactness.measure import Row, tflite_rows
from weft.frontends.tflite_operators import RULES, Place

pytestmark = [pytest.mark.tflite, pytest.mark.torch]

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
STALE = "docs/exactness.md is out of date: run `PYTHONPATH=tests python -m exactness docs`"


def test_every_operator_is_on_the_page() -> None:
    listed = {line.split()[1] for line in PAGE.read_text().splitlines() if line.startswith("| ")}
    computed = {name for name, rule in RULES.items() if rule.place != Place.COMPILER}
    assert computed <= listed, STALE


@pytest.mark.parametrize("name", ["DEPTHWISE_CONV_2D", "MUL", "SPLIT_V", "TANH"])
def test_the_page_shows_what_is_measured(name: str) -> None:
    (line,) = table(tflite_rows((name,)), "operator").splitlines()[2:]
    assert line in PAGE.read_text().splitlines(), STALE


def test_differences_are_counted() -> None:
    row = Row("it")
    codes = np.arange(6, dtype=np.int8)
    row.add([codes], [codes])
    row.add([codes], [np.where(codes < 2, codes + 1, codes).astype(np.int8)])
    row.add([codes], [codes.astype(np.int16)])
    assert (row.cases, row.codes, row.differ) == (3, 18, 8)
    assert "| it | 3 | 18 | 8 differ (0.44 of all) |" in table([row], "operator")
