"""What a prepared instruction is, and how preparing one can fail."""

from collections.abc import Sequence
from typing import Protocol

from weft_hw.registers import FaultCause
from weft_sim.race_check import Access

__all__ = ["Faulted", "Step"]


class Step(Protocol):
    """An instruction whose addresses have been worked out and checked."""

    def execute(self) -> None:
        """Change the memories as the instruction does."""
        ...

    def accesses(self) -> Sequence[Access]:
        """Everything that it reads and writes."""
        ...


class Faulted(Exception):
    """The instruction being prepared faults whenever it executes."""

    def __init__(self, cause: FaultCause, address: int = 0) -> None:
        super().__init__(cause, address)
        self.cause = cause
        self.address = address
