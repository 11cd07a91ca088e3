"""The functional engine: programs executed serially on architectural state."""

import time
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.errors import WeftError
from weft_sim.device import DeviceFault, RunResult
from weft_sim.functional.memories import Memories
from weft_sim.functional.program import PreparedProgram, prepare

__all__ = ["FunctionalDevice"]

PROGRAMS_KEPT = 16


class FunctionalDevice:
    """A :class:`weft_sim.device.Device` that executes instructions in stream order, without time.

    The results are those of the machine for every program whose semaphores order all conflicting
    accesses. The first run of a program works out all addresses; runs with the same bytes
    at the same address reuse that.

    Parameters
    ----------
    config : AcceleratorConfig
    memory_bytes : int
        Size of DRAM; it begins at address 0. Accesses beyond it are bus errors.
    check_races : bool
        Check, once a program, that semaphores order all conflicting accesses
        (:func:`weft_sim.race_check.check_order`).

    Attributes
    ----------
    memories : Memories
        The architectural state, for tests and debugging.
    """

    engine = "functional"

    def __init__(
        self, config: AcceleratorConfig, *, memory_bytes: int, check_races: bool = True
    ) -> None:
        limit = 1 << config.address_width
        if not 0 < memory_bytes <= limit or memory_bytes % config.bus_bytes:
            raise WeftError(
                f"`memory_bytes` must be a positive multiple of {config.bus_bytes} (a bus beat) up "
                f"to {limit}, not {memory_bytes}"
            )
        self.config = config
        self.memory_bytes = memory_bytes
        self.memories = Memories(config, memory_bytes)
        self._check_races = check_races
        self._programs: OrderedDict[int, PreparedProgram] = OrderedDict()
        self._faulted = False

    def _range(self, address: int, size: int) -> slice:
        if address < 0 or size < 0 or address + size > self.memory_bytes:
            raise WeftError(
                f"{size} bytes at address {address:#x} are not inside the device's memory of "
                f"{self.memory_bytes:,} bytes"
            )
        return slice(address, address + size)

    def __enter__(self) -> "FunctionalDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_memory(self, address: int, data: NDArray[np.uint8] | bytes) -> None:
        """Copy bytes into DRAM.

        Raises
        ------
        WeftError
            If they do not fit.
        """
        values = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        values = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.memories.dram[self._range(address, values.size)] = values

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """A copy of bytes of DRAM.

        Raises
        ------
        WeftError
            If they do not exist.
        """
        return self.memories.dram[self._range(address, size)].copy()

    def read_scalars(self) -> tuple[int, ...]:
        """The scalar registers, int32 each."""
        return tuple(self.memories.scalars)

    def run(
        self,
        program_address: int,
        *,
        watchdog: int = 100_000,
        random_seed: int = 0,
        random_step: int = 0,
    ) -> RunResult:
        """Run the program at that DRAM address up to its END.

        A wait that nobody signals is found at once, whatever the watchdog's limit.

        Raises
        ------
        DeviceFault
            If the machine would stop with a fault.
        OrderError
            If the program's semaphores do not order what they have to.
        WeftError
            If an earlier fault has not been followed by :meth:`reset`, if the address is not one of
            a program, or if a loop nest is too large for this engine.
        """
        if self._faulted:
            raise WeftError("the machine has stopped with a fault; reset() must come before a run")
        if program_address % self.config.bus_bytes:
            raise WeftError(
                f"the program's address must be a multiple of {self.config.bus_bytes} (a beat of "
                f"the bus), not {program_address:#x}"
            )
        self._range(program_address, self.config.bus_bytes)
        self.memories.random_seed, self.memories.random_step = random_seed, random_step
        began = time.perf_counter()
        try:
            self._program(program_address).run()
        except DeviceFault:
            self._faulted = True
            raise
        return RunResult(cycles=None, wall_seconds=time.perf_counter() - began)

    def _program(self, address: int) -> PreparedProgram:
        program = self._programs.get(address)
        if program is None or not program.matches(self.memories.dram):
            program = prepare(self.memories, address, check_races=self._check_races)
            self._programs[address] = program
            if len(self._programs) > PROGRAMS_KEPT:
                self._programs.popitem(last=False)
        return program

    def reset(self) -> None:
        """Make the device ready for the next run; memories keep their content."""
        self._faulted = False
        self.memories.scalars[:] = [0] * len(self.memories.scalars)

    def close(self) -> None:
        """Forget all prepared programs."""
        self._programs.clear()
