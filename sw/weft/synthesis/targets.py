"""FPGAs that machines are synthesized for: what each has, and how the tools are told of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.errors import InputError
from weft.synthesis import ecp5
from weft.synthesis.area import Area
from weft.synthesis.broadcasts import copy_broadcasts
from weft.synthesis.carries import absorb_tables

__all__ = ["TARGETS", "Family", "Target", "find_target"]


@dataclass(frozen=True)
class Family:
    """FPGAs of one architecture.

    Parameters
    ----------
    synthesis : tuple of str
        Yosys's commands, with ``{top}`` for the design's top module.
    cells : dict of str to Area
        What a cell takes; others (multiplexers of slices, buffers) take nothing of their own.
    place_and_route : str or None
        nextpnr's program; None where the package index has none.
    files : dict of str to str
        What the commands read, by file name.
    improvements : dict of str to callable
        Each improves the netlist, the flattened design in Yosys's JSON, in place, and returns how
        often; by what it does.
    speed_grades : tuple of int
        That place and route knows, the slowest first.
    placer : str or None
        nextpnr's algorithm that whole machines need.
    """

    synthesis: tuple[str, ...]
    cells: Mapping[str, Area]
    place_and_route: str | None
    files: Mapping[str, str] = field(default_factory=dict)
    improvements: Mapping[str, Callable[[dict[str, Any]], int]] = field(default_factory=dict)
    speed_grades: tuple[int, ...] = ()
    placer: str | None = None


@dataclass(frozen=True)
class Target:
    """An FPGA: its family, nextpnr's options for it, and what it has."""

    family: Family
    options: tuple[str, ...]
    available: Area

    @property
    def few_sites(self) -> dict[str, int]:
        """Types of cell that take a multiplier or a block RAM, and how many of each there are."""
        counts = {}
        for kind, area in sorted(self.family.cells.items()):
            if area == Area(multipliers=1):
                counts[kind] = self.available.multipliers
            elif area == Area(block_rams=1):
                counts[kind] = self.available.block_rams
        return counts


_ECP5 = Family(
    synthesis=ecp5.COMMANDS,
    cells={
        "LUT4": Area(luts=1),
        "CCU2C": Area(luts=2),  # two bits of carry occupy a slice's two look-up tables
        "TRELLIS_DPR16X4": Area(luts=6),  # four of memory, and two that hold the write port
        "TRELLIS_FF": Area(flip_flops=1),
        "MULT18X18D": Area(multipliers=1),
        "DP16KD": Area(block_rams=1),
    },
    place_and_route="nextpnr-ecp5",
    files=ecp5.FILES,
    improvements={
        "look-up tables merged into the carries that they feed": absorb_tables,
        "copies of registers for modules that look at them": copy_broadcasts,
    },
    speed_grades=(6, 7, 8),
    placer="static",  # of `edge8` the wires of the other one are a third longer
)

# Carry chains take no look-up table beside those that Yosys counts; an inverter joins one.
_XC7 = Family(
    synthesis=("synth_xilinx -family xc7 -flatten -noiopad -top {top}",),
    cells={
        **{f"LUT{inputs}": Area(luts=1) for inputs in range(1, 7)},
        "SRL16E": Area(luts=1),
        "SRLC32E": Area(luts=1),
        "RAM32X1D": Area(luts=2),
        "RAM64X1D": Area(luts=2),
        "RAM128X1D": Area(luts=4),
        "RAM32M": Area(luts=4),
        "RAM64M": Area(luts=4),
        **{f"FD{kind}E": Area(flip_flops=1) for kind in "RSCP"},
        "DSP48E1": Area(multipliers=1),
        "RAMB18E1": Area(block_rams=1),
        "RAMB36E1": Area(block_rams=2),
    },
    place_and_route=None,
)


def _ecp5(option: str, available: Area) -> Target:
    return Target(_ECP5, (option, "--package", "CABGA381"), available)


TARGETS: dict[str, Target] = {
    "ecp5-85k": _ecp5("--85k", Area(83640, 83640, 156, 208)),
    "ecp5-45k": _ecp5("--45k", Area(43848, 43848, 72, 108)),
    "ecp5-25k": _ecp5("--25k", Area(24288, 24288, 28, 56)),
    "xc7a35t": Target(_XC7, (), Area(20800, 41600, 90, 100)),
    "xc7a100t": Target(_XC7, (), Area(63400, 126800, 240, 270)),
    "xc7z020": Target(_XC7, (), Area(53200, 106400, 220, 280)),
}
"""By name; block RAMs are counted in units of 18 Kbit, as ECP5 has them."""


def find_target(name: str) -> Target:
    """The target of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in TARGETS:
        raise InputError(f"`{name}` is not a target; there are {', '.join(TARGETS)}")
    return TARGETS[name]
