"""Merges look-up tables into the carry cells that they feed, in a netlist for ECP5.

A carry cell (CCU2C) adds two bits, each with a look-up table of four inputs of its own; Yosys uses
two of them. A choice or an inversion before an adder fits into the others, with one look-up table
and one wire the less on the way to the sum. Half a cell computes, of its inputs A to D::

    sum   = propagate(A, B, C, D) ^ carry in
    carry = carry in if propagate(A, B, C, D) else generate(A, B)

where the table of ``generate`` is the part of that of ``propagate`` for C = D = 0.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations, permutations, product
from typing import Any, NamedTuple

__all__ = ["absorb_tables"]

PINS = "ABCD"
LOW_PINS = 4  # entries of a table for C = D = 0, in which the carry looks up A and B


class _Half(NamedTuple):
    """One bit of a carry cell: a bit or a constant ("0", "1") by pin, and its table."""

    pins: tuple[Any, ...]
    table: int


class _Table(NamedTuple):
    """A look-up table's cell, inputs by pin and truth table."""

    cell: str
    pins: tuple[Any, ...]
    table: int


def absorb_tables(module: dict[str, Any]) -> int:
    """Merge what can be merged, in place; returns the number of look-up tables that went away.

    Only a look-up table that feeds nothing else is merged, and only where the cell's sum and carry
    are the same function of the nets as before.

    Parameters
    ----------
    module : dict
        The flattened design in Yosys's JSON netlist.
    """
    cells = module["cells"]
    loads: Counter[Any] = Counter()
    for cell in cells.values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == "input":
                loads.update(bits)
    for port in module["ports"].values():
        if port["direction"] != "input":
            loads.update(port["bits"])
    tables = {}  # of look-up tables with one load, by their output
    for name, cell in cells.items():
        if cell["type"] == "LUT4":
            (bit,) = cell["connections"]["Z"]
            if loads[bit] == 1:
                pins = tuple(cell["connections"][pin][0] for pin in PINS)
                tables[bit] = _Table(name, pins, int(cell["parameters"]["INIT"], 2))

    merged = 0
    for cell in [cell for cell in cells.values() if cell["type"] == "CCU2C"]:
        for number in "01":
            connections, parameters = cell["connections"], cell["parameters"]
            pins = tuple(connections[pin + number][0] for pin in PINS)
            half = _Half(pins, int(parameters[f"INIT{number}"], 2))
            found = _absorbed(half, tables)
            if found is None:
                continue
            (pins, table), gone = found
            for pin, bit in zip(PINS, pins, strict=True):
                connections[pin + number] = [bit]
            parameters[f"INIT{number}"] = f"{table:016b}"
            for bit in gone:
                del cells[tables.pop(bit).cell]
            merged += len(gone)
    return merged


def _absorbed(half: _Half, tables: Mapping[Any, _Table]) -> tuple[_Half, tuple[Any, ...]] | None:
    """The half with the most tables merged into it, and their outputs; None if there is none."""
    candidates = sorted(bit for bit in set(half.pins) if bit in tables)
    for count in range(len(candidates), 0, -1):
        for gone in combinations(candidates, count):
            merged = _merged(half, {bit: tables[bit] for bit in gone})
            if merged is not None:
                return merged, gone
    return None


def _merged(half: _Half, tables: Mapping[Any, _Table]) -> _Half | None:
    """The half with these tables inside it; None if there is no such half."""
    sources = [bit for bit in half.pins if bit not in tables]
    for table in tables.values():
        sources += table.pins
    nets = sorted({bit for bit in sources if isinstance(bit, int)})
    if len(nets) > len(PINS):
        return None
    # Rows of the truth table: values of the nets, whether the carry passes, the carry otherwise.
    rows = []
    for values in product((0, 1), repeat=len(nets)):
        known: dict[Any, int] = {"0": 0, "1": 1, "x": 0}
        known.update(zip(nets, values, strict=True))
        for bit, table in tables.items():
            known[bit] = table.table >> _entry(known[pin] for pin in table.pins) & 1
        entry = _entry(known[pin] for pin in half.pins)
        rows.append((known, half.table >> entry & 1, half.table >> entry % LOW_PINS & 1))
    for pins in _arrangements(nets):
        entries: dict[int, int] = {}
        fits = True
        for known, propagate, generate in rows:
            entry = _entry(known[pin] for pin in pins)
            fits = fits and entries.setdefault(entry, propagate) == propagate
            if not propagate:
                low = entry % LOW_PINS
                fits = fits and entries.setdefault(low, generate) == generate
        if fits:
            return _Half(pins, sum(value << entry for entry, value in entries.items()))
    return None


def _entry(values: Iterator[int]) -> int:
    """The entry of a table that pins of these values, the lowest first, look up."""
    return sum(value << place for place, value in enumerate(values))


def _arrangements(nets: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Ways to connect the pins; one that is left over is high, which frees the entries below."""
    filled = [*nets, *["1"] * (len(PINS) - len(nets))]
    yield from dict.fromkeys(permutations(filled))
