"""Rewrites generated Verilog so that Verilator's model of it does less: same behaviour, faster."""

import re
from collections import Counter

__all__ = ["model_text"]

# Yosys ends a name with a backslash by a space; a register's next value is such a name.
_NEXT = re.compile(r"\\\$\d+ ")
_NEXT_DECLARATION = re.compile(r"  reg (?P<range>\[\d+:0\] )?(?P<next>\\\$\d+ );\n")
_DECLARATION = re.compile(r"  reg (?P<range>\[\d+:0\] )?(?P<name>\\\S+ |\w+) = [^\n]+;\n")
_REGISTER = re.compile(
    r"  always @\(posedge (?P<clock>\w+)\)\n    (?P<name>\\\S+ |\w+) <= (?P<next>\\\$\d+ );\n"
)
_BLOCK = re.compile(
    r"  always @\* begin\n    if \(\S+ \) begin end\n"
    r"(?P<body>    (?P<next>\\\$\d+ ) = (?P<first>[^\n]+);\n(?:    [^\n]*\n)*)  end\n"
)
_ASSIGNMENT = re.compile(r"^( +)(\\\$\d+ )(\[\d+(?::\d+)?\])? = ", re.MULTILINE)
_ANY_ASSIGNMENT = re.compile(r"^(?! *\(\*).* = ", re.MULTILINE)

_LANE = re.compile(r"    if \(([^\n]+)\)\n      ((\w+)\[[^\n]+\])\[(\d+):(\d+)\] <= ([^\n]+);\n")
_WRITE_PORT = re.compile(
    r"  always @\(posedge (?P<clock>\w+)\) begin\n"
    r"    if \((?P<enabled>[^\n]+)\) begin\n"
    r"(?P<lanes>(?:    if \([^\n]+\)\n      \w+\[[^\n]+\]\[\d+:\d+\] <= [^\n]+;\n)+)"
    r"    end\n"
    r"  end\n"
)


def model_text(verilog: str) -> str:
    """The same design as a compiled simulator wants it.

    * Amaranth computes each register's next value in a block of its own, which begins with the
      value that the register has. A model then copies every register to and fro in each cycle.
      Here the block itself is clocked, and a register whose enable is off costs a test.
    * A write port with an enable a byte is one statement a byte, each with a note of whether, where
      and what it writes. Here it is one statement that writes the whole row.

    What does not look exactly like this stays as it is.
    """
    return "".join(_module(part) for part in re.split(r"(?<=^endmodule\n)", verilog, flags=re.M))


def _module(text: str) -> str:
    return _whole_rows(_clocked_blocks(text))


def _clocked_blocks(text: str) -> str:
    """One module with its registers' blocks clocked."""
    ranges = {match["name"]: match["range"] for match in _DECLARATION.finditer(text)}
    next_ranges = {match["next"]: match["range"] for match in _NEXT_DECLARATION.finditer(text)}
    registers = {match["next"]: match for match in _REGISTER.finditer(text)}
    mentions = Counter(_NEXT.findall(text))
    moved: set[str] = set()

    def clocked(block: re.Match[str]) -> str:
        following, body = block["next"], block["body"]
        register = registers.get(following)
        if register is None or following not in next_ranges:
            return block[0]
        name = register["name"]
        targets = [target for _, target, _ in _ASSIGNMENT.findall(body)]
        if (
            name not in ranges
            or ranges[name] != next_ranges[following]
            or set(targets) != {following}
            or len(targets) != len(_ANY_ASSIGNMENT.findall(body))
            # Besides them, the declaration and the register.
            or len(targets) + 2 != mentions[following]
        ):
            return block[0]
        moved.add(following)
        if block["first"].strip() == name.strip():
            body = body.split("\n", 1)[1]
        body = _ASSIGNMENT.sub(lambda match: f"{match[1]}{name}{match[3] or ''} <= ", body)
        return f"  always @(posedge {register['clock']}) begin\n{body}  end\n"

    text = _BLOCK.sub(clocked, text)
    for pattern in (_REGISTER, _NEXT_DECLARATION):
        text = pattern.sub(lambda match: "" if match["next"] in moved else match[0], text)
    return text


def _whole_rows(text: str) -> str:
    """One module with write ports that write whole rows."""

    def whole(port: re.Match[str]) -> str:
        lanes = _LANE.findall(port["lanes"])
        row, memory = lanes[0][1:3]
        gathered = f"{memory}$row"
        width = max(int(high) for _, _, _, high, _, _ in lanes) + 1
        writes = len(re.findall(rf"^ +{memory}\[[^\n]*<= ", text, re.MULTILINE))
        if {lane_row for _, lane_row, *_ in lanes} != {row} or writes != len(lanes):
            return port[0]  # more than one port: both may write bytes of one row
        if f"  reg [{width - 1}:0] {memory} [" not in text or gathered in text:
            return port[0]
        assignments = "".join(
            f"      if ({enable})\n        {gathered}[{high}:{low}] = {data};\n"
            for enable, _, _, high, low, data in lanes
        )
        return (
            f"  reg [{width - 1}:0] {gathered};\n"
            f"  always @(posedge {port['clock']}) begin\n"
            f"    if ({port['enabled']}) begin\n"
            f"      {gathered} = {row};\n"
            f"{assignments}"
            f"      {row} <= {gathered};\n"
            "    end\n"
            "  end\n"
        )

    return _WRITE_PORT.sub(whole, text)
