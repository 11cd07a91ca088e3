"""A top with five pins around a design of any number of ports, for place and route.

The machine's bus alone has more bits than a package has pins. So each input of the design is a
register of a chain that shifts a serial pin in, and each output goes to a register of a chain that
captures or shifts out. Every path then starts and ends at a register, as in a system on the chip;
no logic can be optimized away, and no path runs through pins.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from weft_hw.errors import WeftError

__all__ = ["WRAPPER", "DesignPort", "ports_of", "wrapper"]

WRAPPER = "weft_synthesis_wrapper"

_PORT = re.compile(r"^  (?P<direction>input|output) (?:\[(?P<high>\d+):0\] )?(?P<name>\w+);$", re.M)


@dataclass(frozen=True)
class DesignPort:
    """A port of the design's top module."""

    name: str
    direction: str
    width: int


def ports_of(verilog: str, top: str) -> list[DesignPort]:
    """The ports of a module in generated Verilog, in the order of their declarations.

    Raises
    ------
    WeftError
        If there is no such module.
    """
    start = re.search(rf"^module {re.escape(top)}\(", verilog, re.M)
    if start is None:
        raise WeftError(f"the Verilog has no module `{top}`")
    end = verilog.index("endmodule", start.end())
    return [
        DesignPort(match["name"], match["direction"], int(match["high"] or 0) + 1)
        for match in _PORT.finditer(verilog, start.end(), end)
    ]


def wrapper(ports: Sequence[DesignPort], top: str) -> str:
    """Verilog of the module :data:`WRAPPER` around ``top``, which has ports ``clk`` and ``rst``."""
    data = [port for port in ports if port.name not in ("clk", "rst")]
    connections = [".clk(clk)", ".rst(rst)"]
    widths = {"input": 0, "output": 0}
    for port in data:
        low = widths[port.direction]
        widths[port.direction] = low + port.width
        vector = "inputs" if port.direction == "input" else "results"
        connections.append(f".{port.name}({vector}[{low + port.width - 1}:{low}])")
    joined = ",\n    ".join(connections)
    return f"""\
module {WRAPPER}(input clk, input rst, input shift, input serial_in, output serial_out);
  reg [{max(widths["input"], 2) - 1}:0] inputs;
  reg [{max(widths["output"], 2) - 1}:0] outputs;
  wire [{max(widths["output"], 2) - 1}:0] results;
  assign serial_out = outputs[0];
  always @(posedge clk) begin
    inputs <= {{serial_in, inputs[{max(widths["input"], 2) - 1}:1]}};
    outputs <= shift ? {{serial_in, outputs[{max(widths["output"], 2) - 1}:1]}} : results;
  end
  {top} design (
    {joined}
  );
endmodule
"""
