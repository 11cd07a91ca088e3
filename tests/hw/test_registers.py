"""The register map: offsets, names, and that each is said once."""

import pytest

from weft_hw.gateware.counters import COUNTER_NAMES
from weft_hw.instructions import Queue
from weft_hw.registers import (
    DISPATCH_QUEUE,
    MACHINE_ID,
    REGISTERS,
    Access,
    Control,
    FaultCause,
    Interrupt,
    Status,
    register,
)


def test_offsets_are_consecutive_words() -> None:
    assert [entry.offset for entry in REGISTERS] == [4 * i for i in range(len(REGISTERS))]
    assert REGISTERS[-1].offset < 1 << 12


def test_names_are_unique_and_found() -> None:
    names = [entry.name for entry in REGISTERS]
    assert len(set(names)) == len(names)
    assert all(register(name).name == name for name in names)
    with pytest.raises(KeyError):
        register("NO_SUCH_REGISTER")


def test_offsets_that_software_in_the_field_relies_on() -> None:
    fixed = {"MACHINE_ID": 0x00, "CONTROL": 0x0C, "STATUS": 0x10, "FAULT_CAUSE": 0x28}
    assert {name: register(name).offset for name in fixed} == fixed
    assert MACHINE_ID.to_bytes(4, "little") == b"WEFT"


def test_access_kinds() -> None:
    writable = {e.name: e.access for e in REGISTERS if e.access is not Access.READ_ONLY}
    assert writable == {
        "CONTROL": Access.WRITE_PULSE,
        "INTERRUPT_ENABLE": Access.READ_WRITE,
        "INTERRUPT_STATUS": Access.WRITE_ONE_CLEARS,
        "PROGRAM_ADDRESS": Access.READ_WRITE,
        "PROGRAM_ADDRESS_HIGH": Access.READ_WRITE,
        "WATCHDOG_LIMIT": Access.READ_WRITE,
        "RANDOM_SEED": Access.READ_WRITE,
        "RANDOM_STEP": Access.READ_WRITE,
        "SCALAR_INDEX": Access.READ_WRITE,
    }


def test_engine_registers_are_in_the_order_of_the_queues() -> None:
    engines = [e.name.removesuffix("_HEAD") for e in REGISTERS if e.name.endswith("_HEAD")]
    assert engines == [queue.name for queue in Queue]
    assert len(Queue) == DISPATCH_QUEUE
    assert all(register(name.upper()).access is Access.READ_ONLY for name in COUNTER_NAMES)


def test_causes_have_meanings_and_fit_the_sticky_bits() -> None:
    assert all(cause.meaning for cause in FaultCause)
    assert len({cause.meaning for cause in FaultCause}) == len(FaultCause)
    assert max(FaultCause) < 32


@pytest.mark.parametrize("flags", [Control, Status, Interrupt])
def test_flags_are_single_bits(flags: type) -> None:
    values = [int(flag) for flag in flags]
    assert all(value & (value - 1) == 0 for value in values)
    assert len(set(values)) == len(values)
