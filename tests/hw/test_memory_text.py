"""The tidied spelling of memories is proved equal to the generated one by Yosys."""

import re

import pytest
from amaranth.back import verilog

from verilog_equivalence import check_equivalence
from weft_hw.gateware.memory_text import tidy_memories
from weft_hw.gateware.scratchpad import Scratchpad


@pytest.fixture(scope="module")
def text() -> str:
    scratchpad = Scratchpad(16, 1, 4, 1, 1)
    return verilog.convert(scratchpad, name="top", emit_src=False, strip_internal_attrs=True)


def test_every_memory_is_rewritten(text: str) -> None:
    rewritten = tidy_memories(text)
    assert text.count("initial begin") == text.count("][7:0] <=") == 2
    assert "initial begin" not in rewritten and rewritten.count("initial for") == 2
    assert len(re.findall(r"    if \([^|]+ \| [^|]+ \| [^|]+ \| [^|]+\) begin\n", rewritten)) == 2
    assert tidy_memories(rewritten) == rewritten


def test_what_looks_different_stays() -> None:
    lane = "    if (a[{0}])\n      {1}[i][{2}] <= d[{2}];\n"
    port = "  always @(posedge clk) begin\n{}  end\n"
    two_memories = lane.format(0, "m", "7:0") + lane.format(1, "n", "15:8")
    not_zero = "  initial begin\n    m[0] = 8'h01;\n    m[1] = 8'h00;\n  end\n"
    for other in (port.format(two_memories), not_zero):
        assert tidy_memories(other) == other


@pytest.mark.synth
@pytest.mark.parametrize("wrong", [False, True])
def test_yosys_proves_the_two_equal(text: str, wrong: bool, tmp_path) -> None:
    rewritten = tidy_memories(text)
    if wrong:  # the proof can fail
        rewritten = re.sub(r" \| [^|\n]*\) begin", ") begin", rewritten, count=1)
        assert rewritten != tidy_memories(text)
    check_equivalence(text, rewritten, tmp_path, equal=not wrong)
