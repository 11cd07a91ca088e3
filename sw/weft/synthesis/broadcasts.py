"""Gives each module its own copy of a register that many modules look at, in a netlist for ECP5.

A design may state such copies itself, one register beside each user, but Yosys makes equal
registers one again. Its wires then lead from one place to all users across the FPGA.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["copy_broadcasts"]

REGISTER = "TRELLIS_FF"
MEMORIES = ("DP16KD", "TRELLIS_DPR16X4")
LEAST_LOADS = 32
LEAST_MODULES = 3
LEVELS = 3  # of look-up tables that are looked through for the registers in front of one
PATH_PARTS = 3  # of a cell's name that tell its module: wrapper's instance, core, engine or memory


def copy_broadcasts(module: dict[str, Any]) -> int:
    """Copy registers that only hand on another register's value, in place; returns how many copies.

    Only those with at least ``LEAST_LOADS`` loads, and two or more in each of ``LEAST_MODULES``
    modules. A copy takes a flip-flop, and no look-up table. The original keeps the module with the
    most loads.

    Look-up tables that Yosys has made of several modules' logic bear the name of one of them, but
    are placed beside the registers that they look at: those tell which copy they are to have.

    Parameters
    ----------
    module : dict
        The flattened design in Yosys's JSON netlist.
    """
    cells = module["cells"]
    outputs = {cell["connections"]["Q"][0] for cell in cells.values() if cell["type"] == REGISTER}
    loads, drivers = _loads_and_drivers(cells, outputs)
    following = 1 + max(bit for bits in _all_bits(module) for bit in bits if isinstance(bit, int))
    copies = {}
    for name, cell in cells.items():
        if cell["type"] != REGISTER or cell["connections"]["DI"][0] not in outputs:
            continue
        source = cell["connections"]["Q"][0]
        if len(loads[source]) < LEAST_LOADS:
            continue
        by_module = defaultdict(list)
        for load in loads[source]:
            by_module[_module_beside(load[0], source, cells, drivers)].append(load)
        if sum(len(there) > 1 for there in by_module.values()) < LEAST_MODULES:
            continue
        for path in sorted(by_module, key=lambda path: (-len(by_module[path]), path))[1:]:
            copy_name = f"{name}_of_{path.rpartition('.')[2] or 'top'}"
            copies[copy_name] = copy.deepcopy(cell)
            copies[copy_name]["connections"]["Q"] = [following]
            for user, port, place in by_module[path]:
                cells[user]["connections"][port][place] = following
            net = {"hide_name": 0, "bits": [following], "attributes": {}}
            module["netnames"][f"{copy_name}_Q"] = net
            following += 1
    cells.update(copies)
    return len(copies)


def _loads_and_drivers(
    cells: Mapping[str, Any], outputs: Collection[int]
) -> tuple[dict[int, list[tuple[str, str, int]]], dict[int, str]]:
    """Cell, port and place in it of each load of the ``outputs``; the cell that drives each bit."""
    loads: dict[int, list[tuple[str, str, int]]] = defaultdict(list)
    drivers: dict[int, str] = {}
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            reads = cell["port_directions"][port] == "input"
            for place, bit in enumerate(bits):
                if not reads:
                    drivers[bit] = name
                elif bit in outputs:
                    loads[bit].append((name, port, place))
    return loads, drivers


def _module_beside(
    name: str, source: int, cells: Mapping[str, Any], drivers: Mapping[int, str]
) -> str:
    """The module of a load: its own name's, of a look-up table that of most registers before it.

    ``source`` is the bit that it is a load of, which tells nothing.
    """
    if _keeps_state(cells[name]):
        return _module(name)
    votes: Counter[str] = Counter()
    level = {name}
    for _ in range(LEVELS):
        before = {
            drivers[bit]
            for cell in level
            for port, bits in cells[cell]["connections"].items()
            if cells[cell]["port_directions"][port] == "input"
            for bit in bits
            if bit in drivers and bit != source
        }
        votes.update(_module(cell) for cell in before if _keeps_state(cells[cell]))
        level = {cell for cell in before if not _keeps_state(cells[cell])}
    return min(votes, key=lambda path: (-votes[path], path)) if votes else _module(name)


def _keeps_state(cell: Mapping[str, Any]) -> bool:
    return cell["type"] == REGISTER or cell["type"] in MEMORIES


def _all_bits(module: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The bits of every connection, port and name; constants among them are strings."""
    for cell in module["cells"].values():
        yield from cell["connections"].values()
    for entry in (*module["ports"].values(), *module["netnames"].values()):
        yield entry["bits"]


def _module(cell: str) -> str:
    """The module that a cell lies in, as far as it matters where it is placed."""
    return ".".join(cell.split(".")[:-1][:PATH_PARTS])
