"""Which registers count what a program did."""

from weft_hw.registers import REGISTERS, Access

__all__ = ["COUNTERS"]

_OTHERS = ("MACHINE_ID", "CONFIG_HASH_", "STATUS", "FAULT_", "CYCLES_", "SCALAR_")

COUNTERS = tuple(
    entry.name
    for entry in REGISTERS
    if entry.access is Access.READ_ONLY
    and not entry.name.startswith(_OTHERS)
    and not entry.name.endswith("_HEAD")
)
"""Registers that the result of a run lists."""
