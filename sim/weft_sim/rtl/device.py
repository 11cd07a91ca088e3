"""The machine's own Verilog, compiled and run in this process, as a device."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.errors import WeftError
from weft_hw.instruction_values import SCALAR_REGISTER_BITS
from weft_hw.instructions import Queue
from weft_hw.registers import (
    MACHINE_ID,
    Control,
    FaultCause,
    Interrupt,
    Status,
    register,
)
from weft_sim.cache import Progress
from weft_sim.device import DeviceFault, QueueEvents, RunResult
from weft_sim.rtl.build import Simulator, Variant, build_simulator, machine_verilog
from weft_sim.rtl.counters import COUNTERS
from weft_sim.rtl.library import BusModel, BusStatistics, ErrorRange, Simulation
from weft_sim.rtl.on_chip import OnChip

__all__ = ["RtlDevice"]

_SETTLE_CYCLES = 8  # after a soft reset, before the next access
_IDLE_LIMIT = 20_000_000  # cycles; the longest instruction that moves nothing on the bus is shorter


class RtlDevice:
    """The generated Verilog under Verilator, one thread, with a memory of ``memory_bytes``.

    The first device of a configuration builds its simulator (a minute or so); later ones find it in
    the cache.

    Parameters
    ----------
    config : AcceleratorConfig
    memory_bytes : int
        DRAM from address 0; accesses beyond it are answered with a bus error.
    latency, beat_interval, stall_probability, seed, write_latency, outstanding
        Behaviour of the memory: see :class:`weft_sim.rtl.BusModel`.
    trace : path, optional
        Where to write a waveform, ``.vcd`` or ``.fst``. That needs a build of its own.
    trace_window : (int, int), optional
        First and last cycle to write, counted from the start of each program.
    record_bus : bool
        Give the handshakes of the memory bus with each result (:attr:`RunResult.bus`).
    assertions : bool
        Build with the hardware's assertions (slower).
    error_ranges : sequence of ErrorRange
        DRAM addresses that misbehave.
    verilog : str, optional
        The machine's Verilog, if it is to be another text than what weft generates.
    progress : callable, optional
        ``progress(stage, fraction or None)``, called while building.

    Raises
    ------
    WeftError
        If a tool is missing, or an argument is out of range.
    """

    engine = "rtl"

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        memory_bytes: int,
        latency: int = 20,
        write_latency: int | None = None,
        beat_interval: int = 1,
        outstanding: int = 64,
        stall_probability: float = 0.0,
        seed: int = 0,
        trace: str | Path | None = None,
        trace_window: tuple[int, int] | None = None,
        record_bus: bool = False,
        assertions: bool = False,
        error_ranges: Sequence[ErrorRange] = (),
        verilog: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        _check_memory_size(config, memory_bytes)
        variant = Variant(waveform=_waveform_format(trace), assertions=assertions)
        try:
            bus = BusModel(
                latency=latency,
                write_latency=write_latency,
                beat_interval=beat_interval,
                outstanding=outstanding,
                stall_probability=stall_probability,
                seed=seed,
            )
        except ValueError as error:
            raise WeftError(str(error)) from None
        self.config = config
        self.memory_bytes = memory_bytes
        self._memory = np.zeros(memory_bytes, dtype=np.uint8)
        self._faulted = False
        self._record_bus = record_bus
        self._verilog = verilog
        self._simulation = self._load(variant, bus, progress)
        try:
            if trace is not None:
                self._simulation.open_waveform(Path(trace), trace_window)
            self._simulation.set_error_ranges(error_ranges)
            self._simulation.record_bus(record_bus)
            self._simulation.reset()
            self._check_identity()
        except BaseException:
            self.close()
            raise

    def _load(self, variant: Variant, bus: BusModel, progress: Progress | None) -> Simulation:
        def build() -> Simulator:
            verilog = self._verilog or machine_verilog(self.config, progress=progress)
            return build_simulator(verilog, variant=variant, progress=progress)

        simulator = build()
        try:
            return Simulation(simulator.library, self._memory, bus)
        except OSError:  # damaged, by a disk that lost power for example: once more, from scratch
            simulator.discard()
            return Simulation(build().library, self._memory, bus)

    def __enter__(self) -> "RtlDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory(self) -> NDArray[np.uint8]:
        """DRAM itself, not a copy."""
        return self._memory

    @property
    def on_chip(self) -> OnChip:
        """The on-chip memories as they are now, read past the machine."""
        return OnChip(self._simulation, self.config)

    @property
    def bus_statistics(self) -> BusStatistics:
        """What the memory saw of the last run, counted outside the machine."""
        return self._simulation.statistics

    @property
    def cycles_outside(self) -> int:
        """Cycles of the last run as seen from outside, whatever the machine's register says."""
        return self._simulation.run_cycles

    def write_memory(self, address: int, data: NDArray[np.uint8] | bytes) -> None:
        """Copy bytes into DRAM; an address outside it raises :class:`WeftError`."""
        values = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data
        values = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self._check_range(address, values.size)
        self._memory[address : address + values.size] = values

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """A copy of ``size`` bytes of DRAM; an address outside it raises :class:`WeftError`."""
        self._check_range(address, size)
        return self._memory[address : address + size].copy()

    def set_error_ranges(self, ranges: Sequence[ErrorRange]) -> None:
        """Replace the addresses that misbehave."""
        self._simulation.set_error_ranges(ranges)

    def read_register(self, name: str) -> int:
        """A register's value, by its name in the register map."""
        return self._simulation.read_register(register(name).offset)

    def read_scalars(self) -> tuple[int, ...]:
        """The scalar registers, int32 each, while no program runs."""
        values = []
        for number in range(1 << SCALAR_REGISTER_BITS):
            self.write_register("SCALAR_INDEX", number)
            values.append(self.read_register("SCALAR_VALUE"))
        return tuple(value - (value >> 31 << 32) for value in values)

    def write_register(self, name: str, value: int) -> None:
        """Write a register, by its name in the register map."""
        self._simulation.write_register(register(name).offset, value)

    def run(
        self,
        program_address: int,
        *,
        watchdog: int = 100_000,
        random_seed: int = 0,
        random_step: int = 0,
        pauses: Iterable[int] = (),
        on_pause: Callable[[int], None] | None = None,
    ) -> RunResult:
        """Run the program at that DRAM address up to its END; see :meth:`weft_sim.Device.run`.

        ``on_pause(cycle)`` is called after each of the ascending cycles ``pauses``, counted as
        :class:`QueueEvents` are; it may look at the memories but not use registers.

        Raises
        ------
        SimulationError
            If the hardware itself does what it must not, such as break a rule of its bus.
        """
        if self._faulted:
            raise WeftError("the machine has stopped with a fault; reset() must come before a run")
        if program_address % self.config.bus_bytes:
            raise WeftError(
                f"the program's address must be a multiple of {self.config.bus_bytes} (a beat of "
                f"the bus), not {program_address:#x}"
            )
        self._check_range(program_address, self.config.bus_bytes)
        if self.read_register("STATUS") & Status.BUSY:
            raise WeftError("the machine is busy")
        everything = int(Interrupt.DONE | Interrupt.FAULT)
        self.write_register("INTERRUPT_STATUS", everything)
        self.write_register("INTERRUPT_ENABLE", everything)
        self.write_register("WATCHDOG_LIMIT", watchdog)
        self.write_register("RANDOM_SEED", random_seed)
        self.write_register("RANDOM_STEP", random_step)
        self.write_register("PROGRAM_ADDRESS", program_address & 0xFFFF_FFFF)
        self.write_register("PROGRAM_ADDRESS_HIGH", program_address >> 32)
        began = time.perf_counter()
        self._simulation.run(
            register("CONTROL").offset,
            Control.START,
            idle_limit=_IDLE_LIMIT + 4 * watchdog,
            pauses=pauses,
            on_pause=on_pause,
        )
        wall_seconds = time.perf_counter() - began
        status = self.read_register("STATUS")
        self.write_register("INTERRUPT_STATUS", everything)
        if status & Status.FAULT:
            self._faulted = True
            raise self._fault()
        return RunResult(
            cycles=self._wide("CYCLES_LOW", "CYCLES_HIGH"),
            wall_seconds=wall_seconds,
            counters={name: self.read_register(name) for name in COUNTERS},
            events=tuple(
                QueueEvents(
                    self._simulation.events(queue, retirements=False),
                    self._simulation.events(queue, retirements=True),
                )
                for queue in Queue
            ),
            bus=self._simulation.bus_events if self._record_bus else None,
        )

    def reset(self) -> None:
        """Return the machine to its state after power-up; DRAM keeps its content.

        A soft reset, or a hard one if the bus hangs: bursts that are outstanding on AXI cannot be
        taken back by the machine alone.
        """
        hung = self.read_register("FAULT_STICKY") >> FaultCause.BUS_HUNG & 1
        if hung or self.read_register("STATUS") & Status.BUSY:
            self.hard_reset()
            return
        self.write_register("CONTROL", Control.SOFT_RESET)
        self._simulation.idle(_SETTLE_CYCLES)
        self._faulted = False

    def hard_reset(self) -> None:
        """Reset machine, registers and memory controller by the reset pin."""
        self._simulation.reset()
        self._faulted = False

    def close(self) -> None:
        """Finish the waveform and release the simulator."""
        self._simulation.close()

    def _check_identity(self) -> None:
        if (machine := self.read_register("MACHINE_ID")) != MACHINE_ID:
            raise WeftError(f"this is no weft machine: its MACHINE_ID is {machine:#010x}")
        found = self._wide("CONFIG_HASH_LOW", "CONFIG_HASH_HIGH")
        if found != self.config.content_hash:
            raise WeftError(
                f"the hardware was generated from another configuration (hash {found:016x}) than "
                f"{self.config.name} (hash {self.config.content_hash:016x})"
            )

    def _wide(self, low: str, high: str) -> int:
        return self.read_register(low) | self.read_register(high) << 32

    def _fault(self) -> DeviceFault:
        cause = FaultCause(self.read_register("FAULT_CAUSE"))
        seen = self.read_register("FAULT_STICKY")
        return DeviceFault(
            cause,
            queue=self.read_register("FAULT_QUEUE"),
            instruction_offset=self.read_register("FAULT_INSTRUCTION"),
            address=self._wide("FAULT_ADDRESS", "FAULT_ADDRESS_HIGH"),
            sticky=tuple(entry for entry in FaultCause if entry != cause and seen >> entry & 1),
        )

    def _check_range(self, address: int, size: int) -> None:
        if address < 0 or size < 0 or address + size > self.memory_bytes:
            raise WeftError(
                f"{size} bytes at address {address:#x} are not inside the device's memory of "
                f"{self.memory_bytes:,} bytes"
            )


def _check_memory_size(config: AcceleratorConfig, memory_bytes: int) -> None:
    limit = 1 << config.address_width
    if memory_bytes <= 0 or memory_bytes > limit or memory_bytes % config.bus_bytes:
        raise WeftError(
            f"`memory_bytes` must be a positive multiple of {config.bus_bytes} (a bus beat) up to "
            f"{limit}, not {memory_bytes}"
        )


def _waveform_format(trace: str | Path | None) -> str | None:
    if trace is None:
        return None
    path = Path(trace)
    if path.suffix not in (".vcd", ".fst"):
        raise WeftError(f"a waveform's name must end in .vcd or .fst, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise WeftError(f"there is no folder {path.absolute().parent} to write the waveform into")
    return path.suffix[1:]
