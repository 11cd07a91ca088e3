"""Both engines as a debugger drives them: an instruction at a time, or paused in a whole run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.diverge.state import functional_state, places
from weft.errors import InputError
from weft.host import pack, prepare
from weft.program import Program
from weft_hw.instructions import End, Instruction, Queue
from weft_sim.device import Device, RunResult
from weft_sim.functional import FunctionalDevice
from weft_sim.functional.blas import one_thread
from weft_sim.functional.program import prepare as prepare_program
from weft_sim.race_check import OrderError, Space
from weft_sim.rtl import RtlDevice

__all__ = ["Machine", "Model", "Written", "sample_of"]

PAGE = 4096
Sample = dict[str, NDArray[np.int8]]


def sample_of(program: Program, inputs: Any) -> Sample:
    """Codes of one sample by input name.

    Raises
    ------
    InputError
        If an input is missing, has the wrong shape or type, or is a batch of several samples.
    """
    names = [port.name for port in program.inputs]
    given = inputs if isinstance(inputs, Mapping) else dict.fromkeys(names, inputs)
    if len(names) > 1 and not isinstance(inputs, Mapping):
        raise InputError(f"the model has {len(names)} inputs: give {', '.join(names)} by name")
    if set(given) != set(names):
        raise InputError(f"the inputs are {', '.join(names)}; given: {', '.join(map(str, given))}")
    sample = {}
    for port in program.inputs:
        codes, _ = prepare(port, given[port.name])
        if len(codes) != 1:
            raise InputError(
                f"input {port.name} is a batch of {len(codes)}; one sample is compared at a time"
            )
        sample[port.name] = codes[0]
    return sample


def _place(program: Program, device: Device, sample: Sample) -> None:
    device.write_memory(program.constants_address, program.constants)
    device.write_memory(program.instructions_address, program.instructions)
    for port in program.inputs:
        device.write_memory(port.address, pack(port, sample[port.name]))


@dataclass(frozen=True)
class Written:
    """What an instruction is to write in one memory: places, ascending, and values."""

    space: Space
    places: NDArray[np.int64]
    values: NDArray[Any]


class Model:
    """The functional engine, an instruction at a time.

    Parameters
    ----------
    program : Program
    sample : Sample
    device : FunctionalDevice
        Fresh, with DRAM for the program.

    Attributes
    ----------
    race : str
        What the race check says against the program; empty if nothing.
    instructions : list of Instruction
        Those that execute: all but END, or up to a fault of the program itself.
    """

    def __init__(self, program: Program, sample: Sample, device: FunctionalDevice) -> None:
        self.config = program.config
        self._memories = memories = device.memories
        _place(program, device, sample)
        self.race = ""
        try:
            prepared = prepare_program(memories, program.instructions_address, check_races=True)
        except OrderError as error:
            self.race = str(error)
            prepared = prepare_program(memories, program.instructions_address, check_races=False)
        if prepared.fault is not None:
            raise prepared.fault.error()
        self._steps = prepared.steps
        self.instructions = [instruction for _, instruction in program.decoded[:-1]]

    def step(self, index: int) -> list[Written]:
        """Execute an instruction, and tell what it wrote."""
        step = self._steps[index]
        with one_thread():
            step.execute()
        accesses = step.accesses()
        written = []
        for space in {access.space for access in accesses if access.write}:
            where = places(accesses, space, self.config)
            written.append(Written(space, where, self.state(space)[where].copy()))
        return written

    def state(self, space: Space) -> NDArray[Any]:
        """A memory as it is now."""
        return functional_state(self._memories, space, self.config)


class Machine:
    """The rtl engine with a program and an input in its DRAM.

    Parameters
    ----------
    program : Program
    sample : Sample
    open_device : callable
        ``open_device(config, memory_bytes=...)`` gives a fresh device.
    """

    def __init__(
        self, program: Program, sample: Sample, open_device: Callable[..., RtlDevice]
    ) -> None:
        self._program = program
        self._scratch = -(-program.memory_bytes // PAGE) * PAGE  # behind all that the program uses
        self.device = open_device(program.config, memory_bytes=self._scratch + PAGE)
        _place(program, self.device, sample)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()

    def step(self, instruction: Instruction) -> None:
        """Execute one instruction to its end, whatever it waits for.

        Raises
        ------
        DeviceFault, SimulationError
            If the machine stops.
        """
        alone = replace(instruction, wait=0, signal=0)
        self.device.write_memory(self._scratch, alone.encode() + End().encode())
        self.device.run(self._scratch)

    def run(
        self, pauses: Iterable[int] = (), on_pause: Callable[[int], None] | None = None
    ) -> RunResult:
        """The whole program; see :meth:`RtlDevice.run`."""
        return self.device.run(self._program.instructions_address, pauses=pauses, on_pause=on_pause)


@dataclass(frozen=True)
class Schedule:
    """When each instruction of the stream started and retired in a run of the whole program."""

    starts: tuple[int, ...]
    retires: tuple[int, ...]

    @classmethod
    def of(cls, instructions: Sequence[Instruction], result: RunResult) -> "Schedule":
        """The events of a run, in stream order."""
        assert result.events is not None
        starts = [result.events[queue].starts.tolist() for queue in Queue]
        retires = [result.events[queue].retires.tolist() for queue in Queue]
        queues = [instruction.queue for instruction in instructions]
        numbers: dict[Any, int] = dict.fromkeys(Queue, 0)
        begun, ended = [], []
        for queue in queues:
            assert queue is not None  # END is left out
            number = numbers[queue]
            begun.append(starts[queue][number])
            ended.append(retires[queue][number])
            numbers[queue] = number + 1
        return cls(tuple(begun), tuple(ended))
