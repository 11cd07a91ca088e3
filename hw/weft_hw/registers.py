"""The register map, declared once: gateware block, driver and reference page derive from it."""

import enum
from dataclasses import dataclass

__all__ = [
    "REGISTERS",
    "Access",
    "Control",
    "FaultCause",
    "Interrupt",
    "Register",
    "Status",
    "register",
]

MACHINE_ID = 0x54464557  # "WEFT", little-endian


class Access(enum.Enum):
    """Who may write a register."""

    READ_ONLY = "read only"
    READ_WRITE = "read and write"
    WRITE_PULSE = "each 1 written acts once; reads as 0"
    WRITE_ONE_CLEARS = "each 1 written clears that bit"


class Control(enum.IntFlag):
    """Bits of CONTROL."""

    START = 1 << 0
    SOFT_RESET = 1 << 1


class Status(enum.IntFlag):
    """Bits of STATUS."""

    BUSY = 1 << 0
    DONE = 1 << 1
    FAULT = 1 << 2


class Interrupt(enum.IntFlag):
    """Bits of INTERRUPT_ENABLE and INTERRUPT_STATUS."""

    DONE = 1 << 0
    FAULT = 1 << 1


class FaultCause(enum.IntEnum):
    """Why the machine stopped; the first cause is latched, the others set a sticky bit each."""

    NONE = 0
    BAD_OPCODE = 1
    UNSUPPORTED_FIELD = 2
    ZERO_COUNT = 3
    LOCAL_ADDRESS = 4
    ALIGNMENT = 5
    READ_ERROR = 6
    WRITE_ERROR = 7
    FETCH_ERROR = 8
    SEMAPHORE_OVERFLOW = 9
    WATCHDOG = 10
    BUS_HUNG = 11

    @property
    def meaning(self) -> str:
        """One clause for people."""
        return _MEANINGS[self]


_MEANINGS = {
    FaultCause.NONE: "no fault",
    FaultCause.BAD_OPCODE: "the opcode is not known",
    FaultCause.UNSUPPORTED_FIELD: "a field holds a value that this machine does not execute",
    FaultCause.ZERO_COUNT: "a loop count or run length is zero",
    FaultCause.LOCAL_ADDRESS: "an on-chip address lies outside its memory",
    FaultCause.ALIGNMENT: "a parameter transfer is not aligned to bus beats",
    FaultCause.READ_ERROR: "the bus answered a read with an error",
    FaultCause.WRITE_ERROR: "the bus answered a write with an error",
    FaultCause.FETCH_ERROR: "the bus answered an instruction fetch with an error",
    FaultCause.SEMAPHORE_OVERFLOW: "a semaphore was signalled beyond its largest count",
    FaultCause.WATCHDOG: "nothing moved for the watchdog's limit: a wait that nobody signals",
    FaultCause.BUS_HUNG: "the bus did not answer outstanding bursts within the watchdog's limit",
}


@dataclass(frozen=True)
class Register:
    """One 32-bit register.

    Parameters
    ----------
    name : str
    offset : int
        Byte offset on the AXI4-Lite bus.
    access : Access
    reset : int
    doc : str
    bits : type of enum.IntFlag or enum.IntEnum or None
        Named bits or values.
    """

    name: str
    offset: int
    access: Access
    doc: str
    reset: int = 0
    bits: type[enum.IntFlag] | type[enum.IntEnum] | None = None


def _declare(*rows: tuple[str, Access, str] | tuple[str, Access, str, type]) -> list[Register]:
    return [
        Register(name, 4 * index, access, doc, bits=bits[0] if bits else None)
        for index, (name, access, doc, *bits) in enumerate(rows)
    ]


_RO, _RW = Access.READ_ONLY, Access.READ_WRITE

_ENGINES = ("LOAD", "MATRIX", "VECTOR", "STORE")  # in the order of instructions.Queue

REGISTERS: list[Register] = _declare(
    ("MACHINE_ID", _RO, "The bytes 'WEFT'."),
    ("CONFIG_HASH_LOW", _RO, "Content hash of the configuration, low half."),
    ("CONFIG_HASH_HIGH", _RO, "Content hash of the configuration, high half."),
    ("CONTROL", Access.WRITE_PULSE, "Start a program; reset everything but this block.", Control),
    ("STATUS", _RO, "What the machine is doing.", Status),
    ("INTERRUPT_ENABLE", _RW, "Which events raise the interrupt output.", Interrupt),
    ("INTERRUPT_STATUS", Access.WRITE_ONE_CLEARS, "Which events have happened.", Interrupt),
    ("PROGRAM_ADDRESS", _RW, "DRAM byte address of the first instruction, low half; beat-aligned."),
    ("PROGRAM_ADDRESS_HIGH", _RW, "The same, high half."),
    ("WATCHDOG_LIMIT", _RW, "Cycles without progress that count as a hang; 0 switches it off."),
    ("FAULT_CAUSE", _RO, "Cause of the first fault.", FaultCause),
    ("FAULT_STICKY", _RO, "Bit n: a fault of cause n has happened since the last reset."),
    ("FAULT_QUEUE", _RO, "Queue of the first fault (order of instructions.Queue; 4: dispatch)."),
    ("FAULT_INSTRUCTION", _RO, "Byte offset of its instruction from PROGRAM_ADDRESS."),
    ("FAULT_ADDRESS", _RO, "The offending address (on-chip or DRAM), low half."),
    ("FAULT_ADDRESS_HIGH", _RO, "The same, high half."),
    ("CYCLES_LOW", _RO, "Cycles from the start to the interrupt, low half."),
    ("CYCLES_HIGH", _RO, "The same, high half."),
    *[
        row
        for engine in _ENGINES
        for row in (
            (f"{engine}_HEAD", _RO, f"Byte offset of the {engine} queue's head instruction."),
            (f"{engine}_RETIRED", _RO, "Instructions retired."),
            (f"{engine}_BUSY", _RO, "Cycles with an instruction in the engine."),
            (f"{engine}_WAIT", _RO, "Cycles with an instruction held back by a semaphore."),
            (f"{engine}_STALL", _RO, "Cycles held back by a memory or the bus."),
        )
    ],
    ("READ_BEATS", _RO, "Data beats read by LOAD."),
    ("FETCH_BEATS", _RO, "Data beats read by instruction fetch."),
    ("WRITE_BEATS", _RO, "Data beats written by STORE."),
    ("RANDOM_SEED", _RW, "Seed of stochastic rounding; not to be written while a program runs."),
    ("SCALAR_INDEX", _RW, "Number of the scalar register that SCALAR_VALUE shows."),
    ("SCALAR_VALUE", _RO, "That register (int32), while no program runs."),
    ("RANDOM_STEP", _RW, "Step of stochastic rounding; not to be written while a program runs."),
)

_BY_NAME = {entry.name: entry for entry in REGISTERS}

DISPATCH_QUEUE = len(_ENGINES)  # FAULT_QUEUE's value for a fault of dispatch or fetch


def register(name: str) -> Register:
    """The register of that name."""
    return _BY_NAME[name]
