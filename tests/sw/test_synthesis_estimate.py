"""The estimate of paths on netlists small enough to add up by hand."""

import pytest

from weft.synthesis.estimate import longest_paths


def cell(kind: str, inputs: dict[str, int], outputs: dict[str, int]) -> dict:
    directions = dict.fromkeys(inputs, "input") | dict.fromkeys(outputs, "output")
    ports = {port: [bit] for port, bit in (inputs | outputs).items()}
    return {"type": kind, "port_directions": directions, "connections": ports}


def test_two_tables_between_two_registers() -> None:
    cells = {
        "far": cell("TRELLIS_FF", {"CLK": 1, "DI": 9}, {"Q": 2}),
        "near": cell("TRELLIS_FF", {"CLK": 1, "DI": 2}, {"Q": 3}),
        "first": cell("LUT4", {"A": 2, "B": 3}, {"Z": 4}),
        "second": cell("LUT4", {"A": 4, "B": 3}, {"Z": 5}),
        "end": cell("TRELLIS_FF", {"CLK": 1, "DI": 5}, {"Q": 6}),
    }
    longest = longest_paths(cells)
    # Bits 2 and 3 have two readers each: 0.75 + 0.13 ns; bits 4 and 5 one: 0.75 ns.
    assert longest[0].ns == pytest.approx(0.52 + 0.88 + 0.24 + 0.75 + 0.24 + 0.75)
    assert (longest[0].cells, longest[0].end) == (2, "end")
    assert longest[0].start in ("far", "near")
    assert {path.end for path in longest} == {"far", "near", "end"}


def test_a_carry_takes_no_wire_and_a_memory_is_slow() -> None:
    cells = {
        "memory": cell("DP16KD", {"CLKA": 1, "ADA0": 7}, {"DOA0": 2}),
        "low": cell("CCU2C", {"A0": 2}, {"COUT": 3}),
        "high": cell("CCU2C", {"CIN": 3}, {"S1": 4}),
        "end": cell("TRELLIS_FF", {"CLK": 1, "DI": 4}, {"Q": 7}),
    }
    longest = longest_paths(cells)
    assert longest[0].ns == pytest.approx(5.6 + 0.75 + 0.45 + 0.45 + 0.75)
    assert (longest[0].start, longest[0].end, longest[0].cells) == ("memory", "end", 2)
