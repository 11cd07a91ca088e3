"""What every engine must do behind the ``Device`` protocol: one suite, run against each."""

import dataclasses
import itertools

import numpy as np
import pytest

from sim.machine_reference import ReferenceMachine
from sim.programs import dump_state, encode, fill_state, serialized
from sim.random_instructions import RandomInstructions
from weft_hw import PRESETS, AcceleratorConfig, WeftError
from weft_hw.instructions import (
    End,
    Instruction,
    Load,
    LoadSide,
    Matrix,
    Memory,
    OperandSource,
    Queue,
    Rounding,
    Scalar,
    ScaleSource,
    Store,
    Vector,
)
from weft_hw.registers import DISPATCH_QUEUE
from weft_sim.device import Device, DeviceFault, open_device

TINY = PRESETS["tiny"]
WIDE = dataclasses.replace(
    TINY, name="wide", rows=2, columns=8, vector_lanes=2, bus_width=64, depthwise_taps=3
)
TALL = dataclasses.replace(
    TINY, name="tall", rows=8, columns=2, vector_lanes=2, weight_modes=(8, 4), element="slices"
)
FLEXIBLE = dataclasses.replace(TINY, name="flexible", weight_modes=(8, 4, 2))

WATCHDOG = 2000


def memory_layout(
    config: AcceleratorConfig,
) -> tuple[list[Instruction], list[Instruction], int, int]:
    """Prologue, epilogue, address of the program and size of memory."""
    working = 1024  # the first bytes of DRAM are for random LOAD and STORE
    prologue, filled = fill_state(config, working)
    epilogue, dumped = dump_state(config, working + filled)
    program = -(-(working + filled + dumped) // 64) * 64
    return prologue, epilogue, program, program + (1 << 15)


@pytest.mark.parametrize("config", [TINY, WIDE, TALL, FLEXIBLE], ids=lambda config: config.name)
@pytest.mark.parametrize("number", range(4))
def test_random_programs(config: AcceleratorConfig, number: int, open_engine, rng):
    prologue, epilogue, program_address, memory_bytes = memory_layout(config)
    stalls = {"stall_probability": 0.3 * (number % 2), "seed": number, "latency": 1 + 13 * number}
    device = open_engine(config, memory_bytes, **stalls)
    dram = rng.integers(0, 256, memory_bytes).astype(np.uint8)
    random = RandomInstructions(config, rng, (0, 1024), apart=True)
    rows = np.frombuffer(random.parameter_rows(), np.uint8)
    start = 1024 + config.activation_bytes + config.weight_bytes
    dram[start : start + len(rows)] = rows
    body = [random.draw() for _ in range(12)]
    instructions = serialized([*prologue, *body, *epilogue])
    code = encode(instructions)
    dram[program_address : program_address + len(code)] = np.frombuffer(code, np.uint8)
    device.write_memory(0, dram)
    reference = ReferenceMachine(config, dram.tobytes())
    for step in range(2):  # the second time on what the first has left
        reference.random = (0x12345678 * (number + 1), 0xFEDC0000 + step)
        random_seed, random_step = reference.random
        device.run(
            program_address, watchdog=WATCHDOG, random_seed=random_seed, random_step=random_step
        )
        for instruction in instructions:
            reference.execute(instruction)
        found = device.read_memory(0, memory_bytes)
        assert found.tolist() == reference.dram, "\n".join(map(str, body))
        assert device.read_scalars() == tuple(reference.scalars), "\n".join(map(str, body))


def _stochastic_program(config: AcceleratorConfig, rows: list[int]) -> list[Instruction]:
    """16 channels of 6 rows of 4 pixels, halved; ``rows`` rows an instruction."""
    columns, channels, pixels = config.columns, 16, 4
    tiles, row_bytes = channels // columns, channels * pixels
    instructions: list[Instruction] = [Load(run_bytes=6 * row_bytes, extent=1)]
    for first, count in zip(itertools.accumulate([0, *rows]), rows):
        strides = (columns, row_bytes, channels)
        vector = Vector(
            counts=(tiles, count, pixels, 1, 1, 1),
            a_source=OperandSource.ACTIVATION,
            a_address=first * row_bytes,
            a_strides=(*strides, 0, 0, 0),
            address=1024 + first * row_bytes,
            strides=(*strides, 0),
            scale_source=ScaleSource.INSTRUCTION,
            multiplier=1 << 30,
            rounding=Rounding.STOCHASTIC,
            index_address=first * row_bytes,
            index_strides=(*strides, 0),
            tensor=5,
        )
        instructions.append(vector)
    instructions.append(
        Store(dram_address=1024, address=1024, run_bytes=6 * row_bytes, extent=1),
    )
    return serialized(instructions)


def test_stochastic_rounding_depends_on_place_seed_and_step_only(open_engine, rng):
    """Neither on how a tensor is cut into instructions nor on the number of lanes."""
    data = rng.integers(0, 256, 384).astype(np.uint8)
    results = {}
    for config, rows in ((TINY, [6]), (TINY, [1, 3, 2]), (WIDE, [6]), (WIDE, [5, 1])):
        device: Device = open_engine(config, 8192)
        device.write_memory(0, data)
        device.write_memory(4096, encode(_stochastic_program(config, rows)))
        for seed, step in ((0, 0), (7, 0), (0, 7), (7, 1 << 20)):
            device.run(4096, watchdog=WATCHDOG, random_seed=seed, random_step=step)
            found = device.read_memory(1024, 384)
            expected = results.setdefault((seed, step), found)
            assert np.array_equal(found, expected)
    halves = data.view(np.int8).astype(int) // 2
    odd = data % 2 == 1
    for found in results.values():
        up = found.view(np.int8) - halves
        assert set(up[odd].tolist()) == {0, 1} and not up[~odd].any()
    assert len({found.tobytes() for found in results.values()}) == len(results)


def test_memory(open_engine):
    device: Device = open_engine(TINY, 4096)
    device.write_memory(100, bytes(range(50)))
    device.write_memory(120, np.array([7, 8, 9], np.uint8))
    assert device.read_memory(118, 7).tolist() == [18, 19, 7, 8, 9, 23, 24]
    copy = device.read_memory(100, 2)
    copy[:] = 77
    assert device.read_memory(100, 2).tolist() == [0, 1]
    assert (device.config, device.memory_bytes) == (TINY, 4096)
    device.write_memory(4095, b"\x05")
    assert device.read_memory(4095, 1).tolist() == [5]
    for address, size in (4096, 1), (4000, 97), (-1, 1):
        with pytest.raises(WeftError, match="not inside the device's memory of 4,096 bytes"):
            device.read_memory(address, size)
        with pytest.raises(WeftError, match="not inside the device's memory of 4,096 bytes"):
            device.write_memory(address, bytes(size))


def test_program_addresses(open_engine):
    device: Device = open_engine(TINY, 4096)
    with pytest.raises(WeftError, match="must be a multiple of 4"):
        device.run(1026)
    with pytest.raises(WeftError, match="not inside the device's memory"):
        device.run(4096)
    device.write_memory(4096 - End.size, encode([]))
    device.run(4096 - End.size)  # ends with the memory


FILL = Load(run_bytes=4, extent=0, fill=1)

FAULTS = {
    "reserved opcode": (b"\xee" * 16, "BAD_OPCODE", DISPATCH_QUEUE, 0x8000),
    "scalar": (Scalar(operation=9), "UNSUPPORTED_FIELD", Queue.VECTOR, None),
    "store of weights": (Store(memory=Memory.WEIGHT, extent=1), "UNSUPPORTED_FIELD", 3, None),
    "store of parameters": (Store(memory=Memory.PARAMETER, extent=1), "UNSUPPORTED_FIELD", 3, None),
    "wide elements of weights": (
        Load(memory=Memory.WEIGHT, element=1, run_bytes=2),
        "UNSUPPORTED_FIELD",
        0,
        None,
    ),
    "elements of no width": (
        Store(memory=Memory.ACCUMULATOR, element=3, extent=1),
        "UNSUPPORTED_FIELD",
        3,
        None,
    ),
    "accumulators, half an element": (
        Load(memory=Memory.ACCUMULATOR, element=2, run_bytes=6),
        "ALIGNMENT",
        0,
        None,
    ),
    "accumulators, stride of half an element": (
        Store(memory=Memory.ACCUMULATOR, element=1, run_bytes=2, dram_strides=(0, 0, -1)),
        "ALIGNMENT",
        3,
        None,
    ),
    "load of rows above": (
        Load(memory=Memory.ACCUMULATOR, address=63, run_bytes=5, extent=1),
        "LOCAL_ADDRESS",
        0,
        63,
    ),
    "store of rows above": (
        Store(memory=Memory.ACCUMULATOR, address=62, run_bytes=36, element=2, extent=1),
        "LOCAL_ADDRESS",
        3,
        62,
    ),
    "matrix, 4-bit weights": (Matrix(weight_bits=1), "UNSUPPORTED_FIELD", 1, None),
    "vector, dot product": (Vector(head=2), "UNSUPPORTED_FIELD", 2, None),
    "load of no runs": (Load(counts=(1, 0, 1), extent=1), "ZERO_COUNT", 0, None),
    "load of no bytes": (Load(run_bytes=0, extent=1), "ZERO_COUNT", 0, None),
    "matrix of no tiles": (Matrix(counts=(0, 1, 1, 1, 1, 1, 1)), "ZERO_COUNT", 1, None),
    "vector of no window": (Vector(counts=(1, 1, 1, 1, 1, 0)), "ZERO_COUNT", 2, None),
    "load below": (Load(address=-1, run_bytes=9, extent=1), "LOCAL_ADDRESS", 0, -1),
    "load above": (Load(address=2044, run_bytes=5, extent=1), "LOCAL_ADDRESS", 0, 2044),
    "fill above": (Load(address=2044, run_bytes=5, extent=0), "LOCAL_ADDRESS", 0, 2044),
    "store above": (Store(address=2048, extent=1), "LOCAL_ADDRESS", 3, 2048),
    "matrix, left": (Matrix(left_address=2045, tile_stride=4), "LOCAL_ADDRESS", 1, 2045),
    "matrix, top": (Matrix(top_address=1021, tile_stride=0), "LOCAL_ADDRESS", 1, 1021),
    "matrix, accumulator": (Matrix(accumulator_address=64), "LOCAL_ADDRESS", 1, 64),
    "matrix, bounds of top": (Matrix(bounds=2), "UNSUPPORTED_FIELD", 1, None),
    "outer product, bounds of sums": (Matrix(dataflow=1, bounds=3), "UNSUPPORTED_FIELD", 1, None),
    "outer product, left": (
        Matrix(
            dataflow=1, counts=(1, 1, 1, 1, 1, 1, 3), left_address=-4, left_strides=(0,) * 6 + (2,)
        ),
        "LOCAL_ADDRESS",
        1,
        -4,
    ),
    "outer product, top": (
        Matrix(
            dataflow=1, counts=(1, 1, 1, 1, 1, 1, 3), top_address=1019, top_strides=(0,) * 6 + (1,)
        ),
        "LOCAL_ADDRESS",
        1,
        1021,
    ),
    "outer product, first row": (
        Matrix(dataflow=1, accumulator_address=-1, tile_stride=1),
        "LOCAL_ADDRESS",
        1,
        -1,
    ),
    "outer product, last row": (
        Matrix(dataflow=1, accumulator_address=62, tile_stride=1),
        "LOCAL_ADDRESS",
        1,
        65,
    ),
    "vector, a": (Vector(a_address=-2), "LOCAL_ADDRESS", 2, -2),
    "vector, b": (Vector(tail=1, b_source=1, b_address=2046), "LOCAL_ADDRESS", 2, 2046),
    "vector, result": (Vector(address=2045), "LOCAL_ADDRESS", 2, 2045),
    "vector, parameters": (Vector(use_bias=1, parameter_address=4), "LOCAL_ADDRESS", 2, 4),
    "parameters, run": (Load(memory=Memory.PARAMETER, run_bytes=6, extent=1), "ALIGNMENT", 0, None),
    "parameters, address": (
        Load(memory=Memory.PARAMETER, run_bytes=4, address=2, extent=1),
        "ALIGNMENT",
        0,
        None,
    ),
    "read beyond memory": (Load(dram_address=65530, run_bytes=9, extent=1), "READ_ERROR", 0, 65536),
    "write beyond memory": (Store(dram_address=65536, extent=1), "WRITE_ERROR", 3, 65536),
    "wait for nobody": (Matrix(wait=1 << 7, tile_stride=4), "WATCHDOG", 1, None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, open_engine):
    """Each stops with its cause, and after a reset the machine runs the next program correctly."""
    instruction, cause, queue, address = FAULTS[name]
    device: Device = open_engine(TINY, 65536)
    code = instruction if isinstance(instruction, bytes) else instruction.encode()
    device.write_memory(0x8000 - FILL.size, FILL.encode() + code + End().encode())
    with pytest.raises(DeviceFault) as caught:
        device.run(0x8000 - FILL.size, watchdog=WATCHDOG)
    fault = caught.value
    assert (fault.cause.name, fault.queue) == (cause, queue)
    assert fault.instruction_offset == FILL.size
    if address is not None:
        assert fault.address == address
    assert cause in str(fault) and "instruction at byte 0x30" in str(fault)

    with pytest.raises(WeftError, match="has stopped with a fault"):
        device.run(0x4000)
    device.reset()
    code = encode(
        serialized(
            [
                Load(dram_address=0x1000, address=32, run_bytes=40, extent=1),
                Store(dram_address=0x2000, address=30, run_bytes=44, extent=1),
            ]
        )
    )
    device.write_memory(0x4000, code)
    device.write_memory(0x1000, bytes(range(100, 140)))
    device.run(0x4000, watchdog=WATCHDOG)
    assert device.read_memory(0x2002, 40).tolist() == list(range(100, 140))


def test_transposed_load_needs_a_square_array(open_engine):
    device: Device = open_engine(WIDE, 4096)
    device.write_memory(0, encode([Matrix(load_side=LoadSide.LEFT)]))
    with pytest.raises(DeviceFault) as caught:
        device.run(0, watchdog=WATCHDOG)
    assert (caught.value.cause.name, caught.value.queue) == ("UNSUPPORTED_FIELD", Queue.MATRIX)


def test_program_that_runs_out_of_memory(open_engine):
    device: Device = open_engine(TINY, 4096)
    device.write_memory(4096 - FILL.size, FILL.encode())
    with pytest.raises(DeviceFault) as caught:
        device.run(4096 - FILL.size, watchdog=WATCHDOG)
    assert (caught.value.cause.name, caught.value.queue) == ("FETCH_ERROR", DISPATCH_QUEUE)
    assert (caught.value.instruction_offset, caught.value.address) == (FILL.size, 4096)


def test_semaphore_overflow(open_engine):
    """One signal more than a counter holds, and nobody waits."""
    device: Device = open_engine(TINY, 16384)
    limit = (1 << TINY.semaphore_bits) - 1
    signals = [dataclasses.replace(FILL, signal=1 << 3)] * (limit + 1)
    device.write_memory(0, encode(signals[:limit]))
    device.run(0, watchdog=WATCHDOG)  # counters are zero when a program starts
    device.write_memory(0, encode(signals))
    with pytest.raises(DeviceFault) as caught:
        device.run(0, watchdog=WATCHDOG)
    assert (caught.value.cause.name, caught.value.queue) == ("SEMAPHORE_OVERFLOW", Queue.LOAD)
    assert caught.value.instruction_offset == limit * FILL.size


def test_first_waiting_queue_is_named(open_engine):
    """VECTOR waits for a semaphore that MATRIX would signal, which waits for nobody."""
    device: Device = open_engine(TINY, 4096)
    stream = [
        FILL,
        Vector(wait=1 << 5, strides=(0, 0, 0, 0)),
        Store(wait=1 << 6, extent=1),
        Matrix(wait=1 << 4, signal=1 << 5, tile_stride=4),
    ]
    device.write_memory(0, encode(stream))
    with pytest.raises(DeviceFault) as caught:
        device.run(0, watchdog=WATCHDOG)
    assert (caught.value.cause.name, caught.value.queue) == ("WATCHDOG", Queue.MATRIX)
    assert caught.value.instruction_offset == FILL.size + Vector.size + Store.size


def test_result_of_a_run(engine: str, open_engine):
    device: Device = open_engine(TINY, 4096)
    assert device.engine == engine
    device.write_memory(0, encode([FILL, FILL]))
    result = device.run(0, watchdog=WATCHDOG)
    assert result.wall_seconds > 0
    if engine == "functional":  # it has no notion of time
        assert (result.cycles, dict(result.counters), result.events) == (None, {}, None)
    else:
        assert result.cycles > 0
        assert result.counters["LOAD_RETIRED"] == 2
        load = result.events[Queue.LOAD]
        assert len(load.starts) == len(load.retires) == 2
        assert 0 < load.starts[0] < load.retires[0] < load.retires[1] <= result.cycles


def test_unknown_engine():
    with pytest.raises(WeftError, match="`functoinal` is not an engine.*did you mean `functional`"):
        open_device("functoinal", TINY, memory_bytes=64)
