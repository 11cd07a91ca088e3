"""The compiled simulator as Python sees it: one call a register access or run, none a cycle."""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_sim.device import BUS_EVENT

__all__ = ["BusModel", "BusStatistics", "ErrorRange", "Simulation", "SimulationError"]

INTERFACE_VERSION = 2
FOREVER = (1 << 64) - 1
_CHUNK = 200_000  # cycles a call: about a second, after which Ctrl-C is heard

_INTERRUPT, _LIMIT, _FAILURE = range(3)


class SimulationError(RuntimeError):
    """The simulated hardware did what it must not: broke a bus rule, failed an assertion, hung."""


@dataclass(frozen=True)
class ErrorRange:
    """DRAM addresses from ``start`` up to, not including, ``end`` that misbehave.

    Parameters
    ----------
    start, end : int
    reads, writes : bool
        The directions concerned.
    hangs : bool
        False: beats inside are answered with an error. True: a burst that touches the range is
        never answered, nor any after it.
    """

    start: int
    end: int
    reads: bool = True
    writes: bool = True
    hangs: bool = False


@dataclass(frozen=True)
class BusModel:
    """How the memory behind the AXI4 bus behaves.

    Parameters
    ----------
    latency : int
        Cycles from the acceptance of a read burst to its first beat. Bursts overlap.
    write_latency : int or None
        Cycles from a write burst's last beat to its response; None: as ``latency``.
    beat_interval : int
        Cycles a beat, in each direction: 1 is the full bandwidth.
    outstanding : int
        Bursts of each direction that the memory accepts before it makes the machine wait.
    stall_probability : float
        With which each channel pauses in a cycle, independently; below 1.
    seed : int
        Of the pauses.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    latency: int = 20
    write_latency: int | None = None
    beat_interval: int = 1
    outstanding: int = 64
    stall_probability: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latency", "write_latency", "beat_interval", "outstanding"):
            value = getattr(self, name)
            if name == "write_latency" and value is None:
                continue
            if not 1 <= value < 1 << 32:
                raise ValueError(f"`{name}` must be a positive integer, not {value!r}")
        if not 0.0 <= self.stall_probability < 1.0:
            raise ValueError(
                "`stall_probability` must be at least 0 and below 1, "
                f"not {self.stall_probability!r}"
            )


@dataclass(frozen=True)
class BusStatistics:
    """What the memory saw since the last start, whatever the machine's own counters say."""

    read_bursts: int
    read_beats: int
    write_bursts: int
    write_beats: int
    largest_reads_outstanding: int
    largest_writes_outstanding: int


class _BusOptions(ctypes.Structure):
    _fields_ = [
        ("read_latency", ctypes.c_uint32),
        ("write_latency", ctypes.c_uint32),
        ("beat_interval", ctypes.c_uint32),
        ("outstanding", ctypes.c_uint32),
        ("stall_threshold", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
    ]


class _BusErrorRange(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("directions", ctypes.c_uint32),
        ("effect", ctypes.c_uint32),
    ]


class _BusStatistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in BusStatistics.__dataclass_fields__]


_POINTER = ctypes.c_void_p
_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "weft_interface_version": (_U32, []),
    "weft_bus_bytes": (_U32, []),
    "weft_create": (_POINTER, [_POINTER, _U64, ctypes.POINTER(_BusOptions)]),
    "weft_destroy": (None, [_POINTER]),
    "weft_failure": (ctypes.c_char_p, [_POINTER]),
    "weft_open_waveform": (ctypes.c_bool, [_POINTER, ctypes.c_char_p, _U64, _U64]),
    "weft_set_error_ranges": (None, [_POINTER, ctypes.POINTER(_BusErrorRange), _U32]),
    "weft_record_bus": (None, [_POINTER, ctypes.c_bool]),
    "weft_bus_events": (_POINTER, [_POINTER, ctypes.POINTER(_U64)]),
    "weft_reset": (ctypes.c_bool, [_POINTER]),
    "weft_write_register": (ctypes.c_bool, [_POINTER, _U32, _U32]),
    "weft_read_register": (ctypes.c_bool, [_POINTER, _U32, ctypes.POINTER(_U32)]),
    "weft_start": (ctypes.c_bool, [_POINTER, _U32, _U32]),
    "weft_run": (ctypes.c_int, [_POINTER, _U64]),
    "weft_idle": (ctypes.c_bool, [_POINTER, _U64]),
    "weft_cycle": (_U64, [_POINTER]),
    "weft_run_cycles": (_U64, [_POINTER]),
    "weft_idle_cycles": (_U64, [_POINTER]),
    "weft_statistics": (None, [_POINTER, ctypes.POINTER(_BusStatistics)]),
    "weft_started_at": (_U64, [_POINTER]),
    "weft_memory": (
        _POINTER,
        [_POINTER, ctypes.c_char_p, ctypes.POINTER(_U64), ctypes.POINTER(_U64)],
    ),
    "weft_events": (ctypes.POINTER(_U64), [_POINTER, _U32, _U32, ctypes.POINTER(_U64)]),
}


class Simulation:
    """One machine in simulation, with its clock, memory bus and register bus.

    Parameters
    ----------
    library : Path
        From :func:`weft_sim.rtl.build.build_simulator`.
    memory : uint8 array
        DRAM from address 0, which the machine reads and writes in place.
    bus : BusModel

    Raises
    ------
    OSError
        If the library cannot be loaded.
    """

    def __init__(self, library: Path, memory: NDArray[np.uint8], bus: BusModel) -> None:
        self._handle: int | None = None
        self._library = ctypes.CDLL(str(library))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        version = self._library.weft_interface_version()
        if version != INTERFACE_VERSION:
            raise OSError(f"{library} has interface {version} instead of {INTERFACE_VERSION}")
        self._memory = memory  # the simulator keeps its address
        options = _BusOptions(
            bus.latency,
            bus.latency if bus.write_latency is None else bus.write_latency,
            bus.beat_interval,
            bus.outstanding,
            int(bus.stall_probability * (1 << 32)),
            bus.seed & FOREVER,
        )
        self._handle = self._library.weft_create(memory.ctypes.data, memory.size, options)
        if self._handle is None:
            raise SimulationError(self._library.weft_failure(None).decode())

    @property
    def bus_bytes(self) -> int:
        """Bytes of a beat of the machine that was compiled in."""
        return int(self._library.weft_bus_bytes())

    @property
    def cycle(self) -> int:
        """Cycles simulated so far."""
        return int(self._library.weft_cycle(self._handle))

    @property
    def run_cycles(self) -> int:
        """Cycles of the last run, from the write of the start register to the interrupt."""
        return int(self._library.weft_run_cycles(self._handle))

    @property
    def statistics(self) -> BusStatistics:
        """What the memory saw since the last start."""
        values = _BusStatistics()
        self._library.weft_statistics(self._handle, values)
        return BusStatistics(
            *(getattr(values, name) for name in BusStatistics.__dataclass_fields__)
        )

    def open_waveform(self, path: Path, window: tuple[int, int] | None = None) -> None:
        """Write a waveform from now on, of all cycles or of a window after each program start."""
        first, last = window or (0, FOREVER)
        encoded = str(path).encode()
        self._check(self._library.weft_open_waveform(self._handle, encoded, first, last))

    def set_error_ranges(self, ranges: Sequence[ErrorRange]) -> None:
        """Replace the address ranges that misbehave; for bursts from now on."""
        values = (_BusErrorRange * len(ranges))(
            *[
                _BusErrorRange(entry.start, entry.end, entry.reads + 2 * entry.writes, entry.hangs)
                for entry in ranges
            ]
        )
        self._library.weft_set_error_ranges(self._handle, values, len(ranges))

    def record_bus(self, enabled: bool) -> None:
        """Note every handshake on the memory bus, or no longer."""
        self._library.weft_record_bus(self._handle, enabled)

    @property
    def bus_events(self) -> NDArray[np.void]:
        """What was noted since the last start: :data:`weft_sim.device.BUS_EVENT` records."""
        count = _U64()
        values = self._library.weft_bus_events(self._handle, count)
        if count.value == 0:
            return np.zeros(0, dtype=BUS_EVENT)
        data = ctypes.string_at(values, count.value * BUS_EVENT.itemsize)
        return np.frombuffer(data, dtype=BUS_EVENT)

    def reset(self) -> None:
        """Reset the machine by its pin, and the memory with it."""
        self._check(self._library.weft_reset(self._handle))

    def write_register(self, offset: int, value: int) -> None:
        """One write on the register bus."""
        self._check(self._library.weft_write_register(self._handle, offset, value))

    def read_register(self, offset: int) -> int:
        """One read on the register bus."""
        value = _U32()
        self._check(self._library.weft_read_register(self._handle, offset, value))
        return value.value

    def memory(self, name: str) -> NDArray[np.uint8]:
        """The rows of an on-chip memory as bytes (row, byte): the model's own, not a copy.

        Raises
        ------
        KeyError
            If the machine has no memory of that name, such as ``activation.bank_0_even``.
        """
        rows, row_bytes = _U64(), _U64()
        place = self._library.weft_memory(self._handle, name.encode(), rows, row_bytes)
        if place is None:
            raise KeyError(name)
        raw = (ctypes.c_uint8 * (rows.value * row_bytes.value)).from_address(place)
        values: NDArray[np.uint8] = np.ctypeslib.as_array(raw)
        values = values.reshape(rows.value, row_bytes.value)
        values.flags.writeable = False
        return values

    def run(
        self,
        offset: int,
        value: int,
        *,
        idle_limit: int,
        pauses: Iterable[int] = (),
        on_pause: Callable[[int], None] | None = None,
    ) -> int:
        """Write the register that starts the program; cycles from then to the interrupt.

        ``on_pause`` is called after each of the cycles ``pauses``, which ascend and count from the
        start as events do; those that are over before the start's write is answered come then.

        Raises
        ------
        SimulationError
            If the machine breaks a rule of the bus, an assertion fails, or nothing is heard of the
            machine (no bus transfer, start or retirement) for ``idle_limit`` cycles.
        """
        self._check(self._library.weft_start(self._handle, offset, value))
        if on_pause is not None:
            self._pause(pauses, on_pause)
        while (answer := self._library.weft_run(self._handle, _CHUNK)) == _LIMIT:
            silent = self._library.weft_idle_cycles(self._handle)
            if silent > idle_limit:
                raise SimulationError(
                    f"nothing was heard of the machine for {silent:,} cycles: no bus transfer, no "
                    "instruction started or retired, no interrupt"
                )
        self._check(answer == _INTERRUPT)
        return self.run_cycles

    def _pause(self, pauses: Iterable[int], on_pause: Callable[[int], None]) -> None:
        answer = _LIMIT
        for pause in pauses:
            remaining = self._library.weft_started_at(self._handle) + pause + 1 - self.cycle
            if remaining > 0 and answer == _LIMIT:
                answer = self._library.weft_run(self._handle, remaining)
            if answer == _FAILURE:
                return
            on_pause(pause)  # behind the interrupt nothing changes any more

    def idle(self, cycles: int) -> None:
        """Let time pass."""
        self._check(self._library.weft_idle(self._handle, cycles))

    def events(self, queue: int, *, retirements: bool) -> NDArray[np.int64]:
        """Cycles, from the last start, at which a queue's instructions started or retired."""
        count = _U64()
        values = self._library.weft_events(self._handle, queue, retirements, count)
        if count.value == 0:
            return np.zeros(0, dtype=np.int64)
        return np.ctypeslib.as_array(values, (count.value,)).astype(np.int64)

    def close(self) -> None:
        """Finish the waveform and release the simulator."""
        if self._handle is not None:
            self._library.weft_destroy(self._handle)
            self._handle = None

    def _check(self, good: bool) -> None:
        if not good:
            raise SimulationError(self._library.weft_failure(self._handle).decode())
