"""A program in memory, prepared: decoded, checked, its faults known, all addresses worked out.

No address and no fault of the machine depends on data, so that all of this holds for every run.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import (
    INSTRUCTIONS,
    WORD_BYTES,
    End,
    Instruction,
    Load,
    Matrix,
    Scalar,
    Store,
    Vector,
    decode,
)
from weft_hw.registers import DISPATCH_QUEUE, FaultCause
from weft_sim.device import DeviceFault
from weft_sim.functional.blas import one_thread
from weft_sim.functional.loaded import LoadedCache
from weft_sim.functional.matrix import Weights, prepare_matrix
from weft_sim.functional.memories import Memories, Scratch
from weft_sim.functional.scalars import ScalarStep
from weft_sim.functional.semaphores import SerialSemaphores, first_waiting
from weft_sim.functional.step import Faulted, Step
from weft_sim.functional.transfers import LoadStep, StoreStep
from weft_sim.functional.vector import ParameterRows, VectorStep
from weft_sim.race_check import Entry, check_order

__all__ = ["PreparedProgram", "prepare"]


@dataclass(frozen=True)
class Fault:
    """What :class:`DeviceFault` is made of, in each run anew."""

    cause: FaultCause
    queue: int
    instruction_offset: int
    address: int = 0

    def error(self) -> DeviceFault:
        """The exception."""
        return DeviceFault(
            self.cause,
            queue=self.queue,
            instruction_offset=self.instruction_offset,
            address=self.address,
        )


@dataclass(frozen=True)
class PreparedProgram:
    """What runs: the steps in stream order, and the fault that stops them, if any.

    ``code`` are the bytes that it was made from.
    """

    address: int
    code: NDArray[np.uint8]
    steps: tuple[Step, ...]
    fault: Fault | None

    def matches(self, dram: NDArray[np.uint8]) -> bool:
        """Whether memory still holds the bytes that this was made from."""
        return np.array_equal(dram[self.address : self.address + len(self.code)], self.code)

    def run(self) -> None:
        """Execute.

        Raises
        ------
        DeviceFault
        """
        with one_thread():
            for step in self.steps:
                step.execute()
        if self.fault is not None:
            raise self.fault.error()


def prepare(memories: Memories, address: int, *, check_races: bool) -> PreparedProgram:
    """Prepare the program at a DRAM address.

    Raises
    ------
    OrderError
        If serial execution blocks although the queues would not, or if ``check_races`` finds two
        conflicting accesses that no semaphores order.
    WeftError
        If a loop nest is too large for this engine.
    """
    stream, fault, size = _read_stream(memories, address)
    preparation = _Preparation(memories)
    entries: list[Entry] = []
    steps: list[Step] = []
    semaphores = SerialSemaphores(memories.config)
    for offset, instruction in stream:
        queue = instruction.queue
        assert queue is not None  # END is left out
        if not semaphores.take(instruction.wait):
            blocked = first_waiting(stream, memories.config)
            fault = Fault(FaultCause.WATCHDOG, blocked.queue, blocked.offset)
            break
        try:
            step = preparation.step(instruction)
        except Faulted as faulted:
            fault = Fault(faulted.cause, queue, offset, faulted.address)
            break
        steps.append(step)
        if check_races:
            entries.append(Entry(offset, instruction, step.accesses()))
        if not semaphores.signal(instruction.signal):
            fault = Fault(FaultCause.SEMAPHORE_OVERFLOW, queue, offset)
            break
    if check_races and fault is None:
        check_order(entries, (address, address + size))
    code = memories.dram[address : address + size].copy()
    return PreparedProgram(address, code, tuple(steps), fault)


def _read_stream(
    memories: Memories, address: int
) -> tuple[list[tuple[int, Instruction]], Fault | None, int]:
    """Instructions up to END or to a fault of dispatch, with offsets; and the bytes looked at."""
    dram = memories.dram
    stream: list[tuple[int, Instruction]] = []
    offset = 0
    while True:
        if not _can_fetch(address + offset, memories):
            fault = Fault(FaultCause.FETCH_ERROR, DISPATCH_QUEUE, offset, address + offset)
            return stream, fault, offset
        kind = INSTRUCTIONS.get(int(dram[address + offset]))
        if kind is None:
            fault = Fault(FaultCause.BAD_OPCODE, DISPATCH_QUEUE, offset, address + offset)
            return stream, fault, offset + WORD_BYTES
        if kind is End:
            return stream, None, offset + kind.size
        for word in range(offset, offset + kind.size, WORD_BYTES):
            if not _can_fetch(address + word, memories):
                fault = Fault(FaultCause.FETCH_ERROR, DISPATCH_QUEUE, offset, address + word)
                return stream, fault, word
        code = dram[address + offset : address + offset + kind.size]
        stream.append((offset, decode(code.tobytes())))
        offset += kind.size


def _can_fetch(address: int, memories: Memories) -> bool:
    """Whether memory holds the beats of a word of the program."""
    beat = memories.config.bus_bytes
    start, end = address // beat * beat, -(-(address + WORD_BYTES) // beat) * beat
    limit = min(len(memories.dram), 1 << memories.config.address_width)
    return 0 <= start and end <= limit


class _Preparation:
    """Makes steps in stream order; what one loads, later ones must not take from a cache."""

    def __init__(self, memories: Memories) -> None:
        self._memories, self._scratch = memories, Scratch()
        self._weights: LoadedCache[Weights] = LoadedCache()
        self._parameters: LoadedCache[ParameterRows] = LoadedCache()

    def step(self, instruction: Instruction) -> Step:
        """The step of an instruction.

        Raises
        ------
        Faulted
            If executing it faults.
        """
        if instruction.unsupported(self._memories.config) is not None:
            raise Faulted(FaultCause.UNSUPPORTED_FIELD)
        match instruction:
            case Load() | Store():
                counted = (*instruction.counts, instruction.run_bytes)
            case Matrix() | Vector():
                counted = instruction.counts
            case Scalar():
                return ScalarStep(instruction, self._memories)
            case _:
                raise Faulted(FaultCause.UNSUPPORTED_FIELD)
        if 0 in counted:
            raise Faulted(FaultCause.ZERO_COUNT)
        match instruction:
            case Load():
                load = LoadStep(instruction, self._memories)
                accesses = load.accesses()
                self._weights.loaded(accesses)
                self._parameters.loaded(accesses)
                return load
            case Store():
                return StoreStep(instruction, self._memories)
            case Matrix():
                return prepare_matrix(instruction, self._memories, self._scratch, self._weights)
            case Vector():
                return VectorStep(instruction, self._memories, self._scratch, self._parameters)
        raise AssertionError(instruction)
