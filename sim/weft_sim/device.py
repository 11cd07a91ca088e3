"""What every engine looks like to the driver: memory, a program run, counters, faults."""

import difflib
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weft_hw import AcceleratorConfig, WeftError
from weft_hw.instructions import DRAM_BITS, Queue
from weft_hw.registers import DISPATCH_QUEUE, FaultCause

__all__ = [
    "BUS_EVENT",
    "ENGINES",
    "BusEventKind",
    "Device",
    "DeviceFault",
    "QueueEvents",
    "RunResult",
    "open_device",
]

ENGINES = ("functional", "rtl")


class BusEventKind(enum.IntEnum):
    """A handshake on the memory bus: a burst's address, a beat of data, or a write's response."""

    READ_BURST = 0
    READ_BEAT = 1
    WRITE_BURST = 2
    WRITE_BEAT = 3
    WRITE_RESPONSE = 4


BUS_EVENT = np.dtype([("cycle", "<u8"), ("address", "<u8"), ("kind", "<u4"), ("beats", "<u4")])
"""One handshake: cycle from the start register's write, byte address (of bursts and read beats),
:class:`BusEventKind`, and beats of the burst."""


@dataclass(frozen=True)
class QueueEvents:
    """When a queue's instructions started and retired, in cycles from the start register's write.

    Element n of each int64 array belongs to the queue's nth instruction.
    """

    starts: NDArray[np.int64]
    retires: NDArray[np.int64]


@dataclass(frozen=True)
class RunResult:
    """What one program run gave.

    Parameters
    ----------
    cycles : int or None
        From the write of the start register to the interrupt; None on an engine without time.
    counters : mapping of str to int
        By register name (such as ``MATRIX_BUSY``); empty on an engine without counters.
    events : tuple of QueueEvents or None
        One a :class:`weft_hw.instructions.Queue`, in its order.
    wall_seconds : float
    bus : array of BUS_EVENT or None
        What happened on the memory bus, in order; None unless the engine was asked to record it.
    """

    cycles: int | None
    wall_seconds: float
    counters: Mapping[str, int] = field(default_factory=dict)
    events: tuple[QueueEvents, ...] | None = None
    bus: NDArray[np.void] | None = None


class DeviceFault(WeftError):
    """The machine stopped with a fault.

    Parameters
    ----------
    cause : FaultCause
    queue : int
        A :class:`weft_hw.instructions.Queue`, or ``DISPATCH_QUEUE``.
    instruction_offset : int
        Byte offset of the faulting instruction from the program's start.
    address : int
        The offending address, where the cause has one. The register holds 40 bits; of a
        LOCAL_ADDRESS they are two's complement, so that an address below zero reads as one.
    sticky : tuple of FaultCause
        Further causes that were seen after the first.
    """

    def __init__(
        self,
        cause: FaultCause,
        *,
        queue: int,
        instruction_offset: int,
        address: int = 0,
        sticky: tuple[FaultCause, ...] = (),
    ) -> None:
        self.cause = cause
        self.queue = queue
        self.instruction_offset = instruction_offset
        if cause is FaultCause.LOCAL_ADDRESS and address >= 1 << (DRAM_BITS - 1):
            address -= 1 << DRAM_BITS
        self.address = address
        self.sticky = sticky
        where = "dispatch" if queue == DISPATCH_QUEUE else f"{Queue(queue).name} queue"
        text = (
            f"{cause.name}: {cause.meaning} ({where}, instruction at byte "
            f"{instruction_offset:#x} of the program, address {address:#x})"
        )
        if sticky:
            text += f"; also seen: {', '.join(entry.name for entry in sticky)}"
        super().__init__(text)


class Device(Protocol):
    """An accelerator with its memory, simulated or real.

    A program that faults raises :class:`DeviceFault`; :meth:`reset` must come before the next run.
    """

    config: AcceleratorConfig
    engine: str
    memory_bytes: int

    def write_memory(self, address: int, data: NDArray[np.uint8] | bytes) -> None:
        """Copy bytes into DRAM; an address outside it raises :class:`WeftError`."""
        ...

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """A copy of ``size`` bytes of DRAM; an address outside it raises :class:`WeftError`."""
        ...

    def run(
        self,
        program_address: int,
        *,
        watchdog: int = 100_000,
        random_seed: int = 0,
        random_step: int = 0,
    ) -> RunResult:
        """Run the program at that DRAM address up to its END.

        Parameters
        ----------
        program_address : int
            Aligned to a bus beat.
        watchdog : int
            Cycles without progress that count as a hang.
        random_seed, random_step : int
            32 bits each: what stochastic rounding depends on, besides a tensor's number and an
            element's place in it (:func:`weft_hw.arithmetic.random_bits`).

        Raises
        ------
        DeviceFault
            If the machine stops with a fault.
        WeftError
            If an earlier fault has not been followed by :meth:`reset`.
        """
        ...

    def read_scalars(self) -> tuple[int, ...]:
        """The scalar registers, int32 each, while no program runs."""
        ...

    def reset(self) -> None:
        """Return the machine to its state after power-up; DRAM keeps its content."""
        ...

    def close(self) -> None:
        """Release what the device holds."""
        ...


def open_device(
    engine: str, config: AcceleratorConfig, *, memory_bytes: int, **options: Any
) -> Device:
    """A device of that engine; ``options`` are the engine's own.

    Raises
    ------
    WeftError
        If there is no such engine.
    """
    if engine == "functional":
        from weft_sim.functional import FunctionalDevice

        return FunctionalDevice(config, memory_bytes=memory_bytes, **options)
    if engine == "rtl":
        from weft_sim.rtl import RtlDevice

        return RtlDevice(config, memory_bytes=memory_bytes, **options)
    near = difflib.get_close_matches(engine, ENGINES, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise WeftError(f"`{engine}` is not an engine; there are {', '.join(ENGINES)}{hint}")
