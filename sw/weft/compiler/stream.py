"""The instruction stream while it is built: instructions, what each touches and belongs to."""

import enum
from dataclasses import dataclass, field

from weft_hw.instructions import Instruction

__all__ = ["Access", "Space", "Step", "Stream", "reads", "writes"]


class Space(enum.Enum):
    """The memories in which accesses can meet."""

    DRAM = "dram"
    ACTIVATION = "activation"
    WEIGHT = "weight"
    PARAMETER = "parameter"
    ACCUMULATOR = "accumulator"
    LOOKUP = "lookup"


@dataclass(frozen=True)
class Access:
    """A range [start, end) of a memory (rows of parameter and accumulator memory, else bytes)."""

    space: Space
    start: int
    end: int
    write: bool


def reads(space: Space, span: tuple[int, int]) -> Access:
    """A read of a range."""
    return Access(space, *span, write=False)


def writes(space: Space, span: tuple[int, int]) -> Access:
    """A write of a range."""
    return Access(space, *span, write=True)


@dataclass(frozen=True)
class Step:
    """One instruction of the stream.

    Parameters
    ----------
    instruction : Instruction
        Without semaphores.
    accesses : tuple of Access
        Everything that it may touch.
    layer : int
        Index of the operation that it belongs to.
    purpose : str
        What it does there, for example ``load weights``.
    tile : int
        Number of the tile within the layer.
    """

    instruction: Instruction
    accesses: tuple[Access, ...]
    layer: int
    purpose: str
    tile: int


@dataclass
class Stream:
    """A growing list of steps; ``layer`` and ``tile`` label those that follow."""

    steps: list[Step] = field(default_factory=list)
    layer: int = 0
    tile: int = 0

    def emit(self, instruction: Instruction, purpose: str, *accesses: Access) -> None:
        """Append an instruction."""
        self.steps.append(Step(instruction, accesses, self.layer, purpose, self.tile))
