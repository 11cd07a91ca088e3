"""The text that Verilator reads is proved equal to the generated one by Yosys."""

from pathlib import Path

import pytest
from amaranth.back import verilog

from verilog_equivalence import check_equivalence
from weft_hw.gateware.memory_text import tidy_memories
from weft_hw.gateware.scratchpad import Scratchpad
from weft_sim.rtl.model_text import model_text

REGISTER = """\
module top(clk, enable, a, q);
  reg \\$auto$1  = 0;
  reg [7:0] \\$2 ;
  input clk;
  input enable;
  input [7:0] a;
  output [7:0] q;
  reg [7:0] q = 8'h00;
  always @(posedge clk)
    q <= \\$2 ;
  always @* begin
    if (\\$auto$1 ) begin end
    \\$2  = q;
    if (enable) begin
      \\$2 [3:0] = a[3:0];
    end
  end
endmodule
"""
PORT = """\
module top(clk, enable, row, a);
  reg [7:0] m [3:0];
  always @(posedge clk) begin
    if (enable[0] | enable[1]) begin
    if (enable[0])
      m[row][3:0] <= a[3:0];
    if (enable[1])
      m[row][7:4] <= a[7:4];
    end
  end
endmodule
"""


@pytest.fixture(scope="module")
def text() -> str:
    scratchpad = Scratchpad(16, 1, 4, 1, 1)
    return tidy_memories(
        verilog.convert(scratchpad, name="top", emit_src=False, strip_internal_attrs=True)
    )


def test_a_register_is_assigned_in_its_own_block() -> None:
    assert model_text(REGISTER) == (
        REGISTER.split("  always @(posedge")[0].replace("  reg [7:0] \\$2 ;\n", "")
        + "  always @(posedge clk) begin\n"
        "    if (enable) begin\n"
        "      q[3:0] <= a[3:0];\n"
        "    end\n"
        "  end\n"
        "endmodule\n"
    )


def test_a_write_port_writes_its_row_at_once() -> None:
    assert model_text(PORT).splitlines()[2:-3] == [
        "  reg [7:0] m$row;",
        "  always @(posedge clk) begin",
        "    if (enable[0] | enable[1]) begin",
        "      m$row = m[row];",
        "      if (enable[0])",
        "        m$row[3:0] = a[3:0];",
        "      if (enable[1])",
        "        m$row[7:4] = a[7:4];",
        "      m[row] <= m$row;",
    ]


@pytest.mark.parametrize(
    "before, after",
    [
        ("    q <= \\$2 ;", "    q <= \\$2 [7:0];"),
        ("  input clk;\n", "  input clk;\n  assign seen = \\$2 ;\n"),  # another reader
        ("      \\$2 [3:0] = a[3:0];", "      \\$2 [3:0] = a[3:0];\n      other = a;"),
        ("      \\$2 [3:0] = a[3:0];", "      { \\$2 [1], \\$2 [0] } = a[1:0];"),
        ("    \\$2  = q;\n", ""),  # a latch
        ("  reg [7:0] \\$2 ;", "  reg [8:0] \\$2 ;"),
        ("  reg [7:0] q = 8'h00;", "  reg signed [7:0] q = 8'h00;"),
        ("m[row][3:0]", "m[other][3:0]"),
        ("  reg [7:0] m [3:0];", "  reg [8:0] m [3:0];"),
        ("  reg [7:0] m [3:0];", "  reg [7:0] m [3:0];\n  reg m$row;"),
        ("  reg [7:0] m [3:0];", "  reg [7:0] m [3:0];\n  always @(posedge clk)\n    m[1] <= a;"),
    ],
)
def test_what_looks_different_stays(before: str, after: str) -> None:
    (original,) = [text for text in (REGISTER, PORT) if before in text]
    changed = original.replace(before, after)
    assert model_text(changed) == changed


def test_modules_are_apart() -> None:
    other = REGISTER.replace("module top", "module other").replace("[7:0]", "[15:0]")
    assert model_text(REGISTER + other + PORT) == "".join(map(model_text, (REGISTER, other, PORT)))


@pytest.mark.synth
@pytest.mark.parametrize("wrong", [None, ("<= 1'h0;", "<= 1'h1;"), ("$row = ", "$row = ~")])
def test_yosys_proves_the_two_equal(
    text: str, wrong: tuple[str, str] | None, tmp_path: Path
) -> None:
    rewritten = model_text(text)
    assert "always @*" not in rewritten and rewritten.count("$row;\n") == 4
    if wrong:  # the proof can fail
        assert wrong[0] in rewritten
        rewritten = rewritten.replace(*wrong, 1)
    check_equivalence(text, rewritten, tmp_path, equal=not wrong)
