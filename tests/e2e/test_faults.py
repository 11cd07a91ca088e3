"""Faults in a compiled program: each names its instruction, layer and source; none hangs."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from weft.benchmarks.networks import residual_network
from weft.compiler import compile_graph
from weft.program import Program
from weft.session import ProgramFault, Session
from weft_hw import PRESETS
from weft_hw.instructions import Load, Matrix, Memory, Queue, Store, Vector
from weft_hw.registers import DISPATCH_QUEUE, FaultCause
from weft_sim.device import open_device
from weft_sim.rtl.library import ErrorRange

WATCHDOG = 3000
Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_graph(residual_network(8, (4, 8)), PRESETS["tiny"])


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(5).integers(-128, 128, (3, 8, 8)).astype(np.int8)


@pytest.fixture(scope="module")
def expected(program: Program, image: np.ndarray) -> np.ndarray:
    return np.asarray(Session(program, engine="functional").run(image))


def damaged(program: Program, kind: type, change: Change, nth: int = 0) -> tuple[Program, int]:
    """The program with its nth instruction of that kind changed, and that one's offset."""
    offset = [at for at, each in program.decoded if type(each) is kind][nth]
    code = program.instructions
    changed = change(code[offset : offset + kind.size])
    assert len(changed) == kind.size
    code = code[:offset] + changed + code[offset + kind.size :]
    return dataclasses.replace(program, instructions=code), offset


def changing(kind: type, **fields: object) -> Change:
    return lambda code: dataclasses.replace(kind.from_bytes(code), **fields).encode()


FAULTS = {
    "bad opcode": (Matrix, lambda code: b"\xee" + code[1:], FaultCause.BAD_OPCODE),
    "unsupported": (Matrix, changing(Matrix, weight_bits=1), FaultCause.UNSUPPORTED_FIELD),
    "unsupported tail": (Vector, changing(Vector, tail=5), FaultCause.UNSUPPORTED_FIELD),
    "zero count": (Vector, changing(Vector, counts=(1, 0, 1, 1, 1, 1)), FaultCause.ZERO_COUNT),
    "left address": (
        Matrix,
        changing(Matrix, left_address=1 << 18, bounds=0),
        FaultCause.LOCAL_ADDRESS,
    ),
    "negative result address": (Vector, changing(Vector, address=-64), FaultCause.LOCAL_ADDRESS),
    "load address": (Load, changing(Load, address=1 << 18), FaultCause.LOCAL_ADDRESS),
    "store address": (Store, changing(Store, address=-1), FaultCause.LOCAL_ADDRESS),
    "wait for nobody": (Matrix, changing(Matrix, wait=1 << 15), FaultCause.WATCHDOG),
    "read outside memory": (Load, changing(Load, dram_address=1 << 28), FaultCause.READ_ERROR),
    "write outside memory": (Store, changing(Store, dram_address=1 << 28), FaultCause.WRITE_ERROR),
}


@pytest.fixture(scope="module", params=["functional", pytest.param("rtl", marks=pytest.mark.rtl)])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def device(engine: str, program: Program) -> Iterator[object]:
    opened = open_device(engine, program.config, memory_bytes=program.memory_bytes)
    yield opened
    opened.close()


class Impatient:
    """A device whose watchdog is short, so that a hang is seen soon."""

    def __init__(self, device: object) -> None:
        self._device = device

    def __getattr__(self, name: str) -> object:
        return getattr(self._device, name)

    def run(self, program_address: int) -> object:
        return self._device.run(program_address, watchdog=WATCHDOG)


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_and_the_next_program_runs(
    name: str, program: Program, image: np.ndarray, expected: np.ndarray, device: object
) -> None:
    kind, change, cause = FAULTS[name]
    broken, offset = damaged(program, kind, change, nth=-1 if kind is Store else 1)
    session = Session(broken, device=Impatient(device))
    with pytest.raises(ProgramFault) as caught:
        session.run(image)
    fault = caught.value
    assert fault.cause == cause
    assert fault.instruction_offset == offset
    assert fault.queue == (
        DISPATCH_QUEUE if cause is FaultCause.BAD_OPCODE else Queue[kind.__name__.upper()]
    )
    symbol = next(each for each in program.symbols if each.offset == offset)
    layer = program.layers[symbol.layer]
    assert cause.name in str(fault)
    assert f"layer {layer.name} ({layer.op}, from {layer.source})" in str(fault)
    assert layer.source
    good = Session(program, device=device)
    assert np.array_equal(good.run(image), expected)


@pytest.mark.rtl
@pytest.mark.parametrize("direction", ["read", "write", "fetch"])
def test_bus_errors_are_named_and_the_next_program_runs(
    direction: str, program: Program, image: np.ndarray, expected: np.ndarray
) -> None:
    port = program.outputs[0]
    weights = next(
        each
        for _, each in program.decoded
        if isinstance(each, Load) and each.memory is Memory.WEIGHT
    )
    place = {
        "read": weights.dram_address + weights.run_bytes // 2,
        "write": port.address,
        "fetch": program.instructions_address + len(program.instructions) // 2,
    }[direction]
    cause = {
        "read": FaultCause.READ_ERROR,
        "write": FaultCause.WRITE_ERROR,
        "fetch": FaultCause.FETCH_ERROR,
    }[direction]
    device = open_device(
        "rtl",
        program.config,
        memory_bytes=program.memory_bytes,
        error_ranges=[
            ErrorRange(place, place + 1, reads=direction != "write", writes=direction == "write")
        ],
    )
    with pytest.raises(ProgramFault) as caught:
        Session(program, device=Impatient(device)).run(image)
    assert caught.value.cause == cause
    if direction != "fetch":
        assert "layer " in str(caught.value)
    device.close()
    good = open_device("rtl", program.config, memory_bytes=program.memory_bytes)
    assert np.array_equal(Session(program, device=good).run(image), expected)
    good.close()
