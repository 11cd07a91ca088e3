"""Copies of registers that many modules look at: every load still sees the same value."""

import copy
import random
from typing import Any

import pytest

from weft.synthesis.broadcasts import LEAST_LOADS, LEAST_MODULES, LEVELS, copy_broadcasts

CLOCK = 2
MODULES = ("core.load", "core.matrix", "core.vector", "core.store")


def _cell(kind: str, inputs: dict[str, Any], outputs: dict[str, int]) -> dict[str, Any]:
    return {
        "type": kind,
        "parameters": {},
        "attributes": {},
        "port_directions": {**dict.fromkeys(inputs, "input"), **dict.fromkeys(outputs, "output")},
        "connections": {port: [bit] for port, bit in {**inputs, **outputs}.items()},
    }


def _broadcast(loads: dict[str, int], *, delays: bool = True) -> dict[str, Any]:
    """A register, one behind it or behind a look-up table, and so many loads of that by module."""
    cells = {
        "design.core.faults.stop": _cell("TRELLIS_FF", {"CLK": CLOCK, "DI": 3}, {"Q": 4}),
        "design.core.dispatch.stop": _cell("TRELLIS_FF", {"CLK": CLOCK, "DI": 4}, {"Q": 5}),
    }
    if not delays:
        cells["design.core.faults.stop"] = _cell("LUT4", {"A": 3}, {"Z": 4})
    bit = 10
    for module, count in loads.items():
        for number in range(count):
            name, bit = f"design.{module}.gate_{number}", bit + 1
            cells[name] = _cell("LUT4", {"A": 5, "B": 3}, {"Z": bit})
    ports = {"clk": {"direction": "input", "bits": [CLOCK]}}
    return {"cells": cells, "ports": ports, "netnames": {"last": {"bits": [bit]}}}


def _delayed(module: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """What each load sees: for a net of a register that delays another one, that one's net."""
    behind = {
        cell["connections"]["Q"][0]: ("behind", cell["connections"]["DI"][0])
        for cell in module["cells"].values()
        if cell["type"] == "TRELLIS_FF"
    }
    return {
        (name, port): behind.get(bits[0], bits[0])
        for name, cell in module["cells"].items()
        for port, bits in cell["connections"].items()
        if cell["type"] == "LUT4" and cell["port_directions"][port] == "input"
    }


def test_every_module_has_its_own() -> None:
    module = _broadcast(dict.fromkeys(MODULES, LEAST_LOADS // len(MODULES)))
    before = _delayed(copy.deepcopy(module))
    assert copy_broadcasts(module) == len(MODULES) - 1
    assert _delayed(module) == before
    nets = {
        path: {
            cell["connections"]["A"][0]
            for name, cell in module["cells"].items()
            if name.startswith(f"design.{path}.gate")
        }
        for path in MODULES
    }
    assert all(len(there) == 1 for there in nets.values())
    assert len(set.union(*nets.values())) == len(MODULES)
    assert copy_broadcasts(module) == 0  # each has one module now


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_a_table_belongs_to_the_registers_before_it(levels: int) -> None:
    """One of LOAD's name looks at a register of STORE's, directly or through other tables."""
    module = _broadcast(dict.fromkeys(MODULES, LEAST_LOADS // len(MODULES)))
    cells = module["cells"]
    cells["design.core.store.held"] = _cell("TRELLIS_FF", {"CLK": CLOCK, "DI": 3}, {"Q": 1000})
    for level in range(levels):
        name = f"design.core.load.between_{level}"
        cells[name] = _cell("LUT4", {"A": 1000 + level, "B": 5}, {"Z": 1001 + level})
    table = cells["design.core.load.gate_0"]
    table["connections"]["B"] = [1000 + levels]
    before = _delayed(copy.deepcopy(module))
    copy_broadcasts(module)
    assert _delayed(module) == before
    beside = "store" if levels < LEVELS else "load"
    assert table["connections"]["A"] == cells[f"design.core.{beside}.gate_1"]["connections"]["A"]


@pytest.mark.parametrize(
    "loads",
    [
        dict.fromkeys(MODULES, (LEAST_LOADS - 1) // len(MODULES)),
        {"core.load": LEAST_LOADS, "core.store": LEAST_LOADS},
        {"core.load": LEAST_LOADS, **dict.fromkeys(MODULES[1:], 1)},
    ],
    ids=["few loads", f"fewer than {LEAST_MODULES} modules", "single loads"],
)
def test_others_stay(loads: dict[str, int]) -> None:
    module = _broadcast(loads)
    before = copy.deepcopy(module)
    assert copy_broadcasts(module) == 0
    assert module == before


def test_a_register_behind_logic_stays() -> None:
    module = _broadcast(dict.fromkeys(MODULES, LEAST_LOADS), delays=False)
    assert copy_broadcasts(module) == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_loads(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    module = _broadcast({path: rng.randint(0, 30) for path in MODULES})
    before = _delayed(copy.deepcopy(module))
    bits = max(b for cell in module["cells"].values() for (b,) in cell["connections"].values())
    copies = copy_broadcasts(module)
    assert _delayed(module) == before
    added = [cell for name, cell in module["cells"].items() if "_of_" in name]
    assert len(added) == copies
    outputs = [cell["connections"]["Q"][0] for cell in added]
    assert len(set(outputs)) == copies and all(bit > bits for bit in outputs)
