"""How Yosys is told to synthesize for Lattice ECP5.

Beside what its ``synth_ecp5`` does by itself, choices between four or eight values take the
multiplexers behind a slice's look-up tables, which the mapping of functions to look-up tables does
not find: two look-up tables instead of three, and four instead of six.
"""

__all__ = ["COMMANDS", "FILES"]

CHOICES = "choices.v"

COMMANDS = (
    "synth_ecp5 -top {top} -run begin:map_luts",
    "muxcover -nopartial -mux4=200 -mux8=400",  # one of two values is 100
    "clean",
    f"techmap -map {CHOICES}",
    "opt_clean",
    "synth_ecp5 -top {top} -run map_luts:json",
)


def _pair(output: str, inputs: tuple[str, str, str, str], first: str, second: str) -> str:
    """Two look-up tables of two inputs each, and the multiplexer of both."""
    low, high = f"{output}_low", f"{output}_high"
    table = "LUT4 #(.INIT(16'hCACA))"
    return f"""\
  wire {low}, {high};
  {table} {low}_table (.A({inputs[0]}), .B({inputs[1]}), .C({first}), .D(1'b0), .Z({low}));
  {table} {high}_table (.A({inputs[2]}), .B({inputs[3]}), .C({first}), .D(1'b0), .Z({high}));
  PFUMX {output}_choice (.BLUT({low}), .ALUT({high}), .C0({second}), .Z({output}));
"""


FILES = {
    CHOICES: f"""\
module \\$_MUX4_ (A, B, C, D, S, T, Y);
  input A, B, C, D, S, T;
  output Y;
{_pair("Y", ("A", "B", "C", "D"), "S", "T")}endmodule

module \\$_MUX8_ (A, B, C, D, E, F, G, H, S, T, U, Y);
  input A, B, C, D, E, F, G, H, S, T, U;
  output Y;
  wire low, high;
{_pair("low", ("A", "B", "C", "D"), "S", "T")}\
{_pair("high", ("E", "F", "G", "H"), "S", "T")}\
  L6MUX21 choice (.D0(low), .D1(high), .SD(U), .Z(Y));
endmodule
"""
}
"""Verilog that the commands read, by file name."""
