"""Named values of the instructions' fields: memories, modes and operations."""

import enum

__all__ = [
    "LOOKUP_ENTRIES",
    "LOOKUP_TABLES",
    "SCALAR_REGISTER_BITS",
    "Accumulate",
    "Bounds",
    "Capture",
    "Dataflow",
    "Element",
    "Head",
    "LoadSide",
    "Memory",
    "OperandSource",
    "Operation",
    "Queue",
    "Rounding",
    "ScaleSource",
    "Tail",
    "WeightBits",
]

LOOKUP_TABLES = 4
LOOKUP_ENTRIES = 256
"""Of a table: one for each int8, by its bits as an unsigned number."""

SCALAR_REGISTER_BITS = 4
"""Of a scalar register's number."""


class Queue(enum.IntEnum):
    """The four instruction queues; END and unknown opcodes belong to dispatch itself."""

    LOAD = 0
    MATRIX = 1
    VECTOR = 2
    STORE = 3


class Memory(enum.IntEnum):
    """On-chip memories that LOAD fills and STORE empties."""

    ACTIVATION = 0
    WEIGHT = 1
    PARAMETER = 2
    ACCUMULATOR = 3
    LOOKUP = 4


class Element(enum.IntEnum):
    """Element width in memory."""

    INT8 = 0
    INT16 = 1
    INT32 = 2


class Dataflow(enum.IntEnum):
    """What stays in the array while the others stream."""

    WEIGHT_STATIONARY = 0
    OUTPUT_STATIONARY = 1


class WeightBits(enum.IntEnum):
    """Width of a weight; the reduction deepens by 8 / width."""

    EIGHT = 0
    FOUR = 1
    TWO = 2

    @classmethod
    def of(cls, bits: int) -> "WeightBits":
        """The value for 8, 4 or 2 bits."""
        return cls((8 // bits).bit_length() - 1)

    @property
    def weights(self) -> int:
        """Weights in a byte, and left operands that an array element takes at once."""
        return 1 << self.value


class LoadSide(enum.IntEnum):
    """Where a weight tile enters; from the left it arrives transposed."""

    TOP = 0
    LEFT = 1


class Accumulate(enum.IntEnum):
    """What the first visit to an accumulator row does."""

    OVERWRITE_FIRST = 0
    ALWAYS_ADD = 1


class Bounds(enum.IntEnum):
    """The stream of a MATRIX instruction to which the coordinates' bounds apply."""

    NONE = 0
    LEFT = 1
    TOP = 2
    ACCUMULATOR = 3


class Head(enum.IntEnum):
    """Reduction over the window loops of a VECTOR instruction."""

    SUM = 0
    MAXIMUM = 1
    DOT = 2
    INDEX_OF_MAXIMUM = 3


class OperandSource(enum.IntEnum):
    """Where a VECTOR operand comes from."""

    NONE = 0
    ACTIVATION = 1
    ACCUMULATOR = 2
    WEIGHT = 3


class ScaleSource(enum.IntEnum):
    """Where multiplier and exponent come from; NONE passes the value unscaled."""

    NONE = 0
    PARAMETER = 1
    INSTRUCTION = 2
    SCALAR = 3


class Rounding(enum.IntEnum):
    """How a product with a 31-bit multiplier is rounded; formulas in :mod:`weft_hw.arithmetic`."""

    TWO_STEP = 0
    HALF_UP = 1
    HALF_EVEN = 2
    STOCHASTIC = 3


class Tail(enum.IntEnum):
    """What happens with operand B after scaling."""

    NONE = 0
    ADD = 1
    MAXIMUM = 2
    PRODUCT = 3
    SELECT = 4


class Capture(enum.IntEnum):
    """What a VECTOR instruction notes in scalar registers."""

    NONE = 0
    LARGEST = 1
    CLAMPED = 2
    BOTH = 3


class Operation(enum.IntEnum):
    """Operations of a SCALAR instruction, on int32 registers."""

    MOVE = 0
    ADD = 1
    SUBTRACT = 2
    MINIMUM = 3
    MAXIMUM = 4
    SHIFT = 5
    LEADING_ZEROS = 6
    MULTIPLY_HIGH = 7
    DIVIDE = 8
