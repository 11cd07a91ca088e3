"""Tidies how generated Verilog spells memories: same behaviour, fewer steps for simulators."""

import re

__all__ = ["tidy_memories"]

_INITIAL = re.compile(
    r"  initial begin\n"
    r"(?P<rows>    (?P<name>\w+)\[0\] = \d+'[hd]0+;\n(?:    (?P=name)\[\d+\] = \d+'[hd]0+;\n)*)"
    r"  end\n"
)
_LANE = re.compile(r"    if \(([^\n]+)\)\n      (\w+\[[^\n]+\])\[\d+:\d+\] <= [^\n]+;\n")
_WRITE_PORT = re.compile(
    r"  always @\(posedge (?P<clock>\w+)\) begin\n"
    r"(?P<lanes>(?:    if \([^\n]+\)\n      \w+\[[^\n]+\]\[\d+:\d+\] <= [^\n]+;\n){2,})"
    r"  end\n"
)


def _initial_loop(match: re.Match[str]) -> str:
    name, rows = match["name"], match["rows"].count("\n")
    index = f"{name}_row"
    return (
        f"  integer {index};\n"
        f"  initial for ({index} = 0; {index} < {rows}; {index} = {index} + 1)\n"
        f"    {name}[{index}] = 0;\n"
    )


def _guarded_write(match: re.Match[str]) -> str:
    lanes = _LANE.findall(match["lanes"])
    if len({row for _, row in lanes}) != 1:
        return match[0]  # more than one port
    enabled = " | ".join(enable for enable, _ in lanes)
    return (
        f"  always @(posedge {match['clock']}) begin\n"
        f"    if ({enabled}) begin\n"
        f"{match['lanes']}"
        "    end\n"
        "  end\n"
    )


def tidy_memories(verilog: str) -> str:
    """The same design with memories written so that a compiled simulator does less.

    * A write port with an enable a byte is one statement a byte in what Yosys writes, and a
      simulator takes time for each in every cycle. Here they stand under one condition, that any
      byte is enabled, so that an idle port costs one step. Byte enables are inferred as before.
    * A memory that starts with zeros is one assignment a row. Here it is a loop, which compiles in
      a fraction of the time.

    What does not look exactly like Yosys's output for these two stays as it is.
    """
    return _WRITE_PORT.sub(_guarded_write, _INITIAL.sub(_initial_loop, verilog))
