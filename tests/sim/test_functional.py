"""The functional engine against loops over Python integers, and the faults of the document."""

import dataclasses

import numpy as np
import pytest

from sim.machine_reference import ReferenceFault, ReferenceMachine
from sim.programs import encode, serialized
from sim.random_instructions import RandomInstructions
from weft_hw import PRESETS, AcceleratorConfig, WeftError
from weft_hw.instructions import Instruction, Load, Matrix, Memory, Scalar, ScaleSource, Vector
from weft_sim.device import DeviceFault
from weft_sim.functional import FunctionalDevice, blas

TALL = dataclasses.replace(PRESETS["tiny"], name="tall", rows=8, columns=2, vector_lanes=2)
FLEXIBLE = dataclasses.replace(PRESETS["tiny"], name="flexible", weight_modes=(8, 4, 2))
CONFIGS = [PRESETS["tiny"], TALL, FLEXIBLE, PRESETS["edge8"], PRESETS["base16"]]

DRAM = 4096
PROGRAM = 2048
OUTSIDE = 1 << 14


KINDS = ["load", "load_parameters", "load_lookup", "store", "matrix", "vector", "scalar"]


class Pair:
    """A functional device and the reference in the same random state."""

    def __init__(self, config: AcceleratorConfig, rng: np.random.Generator) -> None:
        self.device = FunctionalDevice(config, memory_bytes=DRAM + OUTSIDE, check_races=False)
        self.random = RandomInstructions(config, rng, (0, PROGRAM))
        memories = self.device.memories
        memories.dram[:PROGRAM] = rng.integers(0, 256, PROGRAM)
        memories.activation[: config.activation_bytes] = rng.integers(
            -128, 128, config.activation_bytes
        )
        memories.weight[:] = rng.integers(-128, 128, config.weight_bytes)
        limit = self.random.pick([1 << 31, 1 << 24, 1 << 9])
        memories.accumulator[:] = rng.integers(-limit, limit, memories.accumulator.shape)
        memories.parameter[:] = np.frombuffer(self.random.parameter_rows(), np.uint8)
        # LOAD of parameters finds rows in memory too.
        rows = memories.parameter[: min(PROGRAM, config.parameter_bytes) // 2]
        memories.dram[: len(rows)] = rows
        self.reference = ReferenceMachine(config, memories.dram.tobytes())
        self.reference.activation = memories.activation[: config.activation_bytes].tolist()
        self.reference.activation = [byte % 256 for byte in self.reference.activation]
        self.reference.weight = [byte % 256 for byte in memories.weight.tolist()]
        self.reference.parameter = memories.parameter.tolist()
        memories.lookup[:] = rng.integers(-128, 128, memories.lookup.shape)
        self.reference.lookup = [entry % 256 for entry in memories.lookup.reshape(-1).tolist()]
        self.reference.accumulator = memories.accumulator[:-1].tolist()

    def run(self, instructions: list[Instruction]) -> None:
        self.device.write_memory(DRAM, encode(instructions))
        self.device.run(DRAM)

    def check(self, instructions: list[Instruction]) -> None:
        memories, reference = self.device.memories, self.reference
        about = "\n".join(str(instruction) for instruction in instructions)
        config = self.device.config
        assert memories.dram[:DRAM].tolist() == reference.dram[:DRAM], about
        activation = memories.activation[: config.activation_bytes].view(np.uint8)
        assert activation.tolist() == reference.activation, about
        assert memories.weight.view(np.uint8).tolist() == reference.weight, about
        assert memories.parameter.tolist() == reference.parameter, about
        assert memories.accumulator[:-1].tolist() == reference.accumulator, about
        assert memories.lookup.reshape(-1).view(np.uint8).tolist() == reference.lookup, about
        assert list(self.device.read_scalars()) == reference.scalars, about


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize(
    "kind", ["load", "load_parameters", "load_lookup", "store", "matrix", "vector", "scalar"]
)
def test_random_instructions(kind: str, config: AcceleratorConfig, rng: np.random.Generator):
    pair = Pair(config, rng)
    for _ in range(12 if config.columns < 16 else 5):
        instruction = getattr(pair.random, kind)()
        pair.run([instruction])
        pair.reference.execute(instruction)
        pair.check([instruction])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_random_programs(config: AcceleratorConfig, rng: np.random.Generator):
    pair = Pair(config, rng)
    for _ in range(3):
        instructions = [pair.random.draw() for _ in range(8)]
        pair.run(instructions)
        for instruction in instructions:
            pair.reference.execute(instruction)
        pair.check(instructions)
        pair.device.run(DRAM)  # the prepared program once more
        for instruction in instructions:
            pair.reference.execute(instruction)
        pair.check(instructions)


@pytest.mark.parametrize("reduction", [(4, 4, 16), (8, 8, 5), (3, 3, 29)])
def test_long_reductions_stay_exact(reduction: tuple[int, ...]):
    """The largest products, all of one sign, over reductions beyond what float32 can sum."""
    config = PRESETS["base16"]
    device = FunctionalDevice(config, memory_bytes=DRAM, check_races=False)
    memories = device.memories
    depth = int(np.prod(reduction))
    # Odd products: a sum that is rounded anywhere shows it.
    memories.activation[:] = -127
    memories.weight[:] = -127
    memories.weight[1::16] = 127
    strides = (depth, reduction[1] * reduction[2], reduction[2], 1)
    matrix = Matrix(
        left_zero_point=127,
        counts=(2, *reduction, 1, 3, 1),
        left_strides=(0, 16, 16, 16, 0, 16, 0),
        top_strides=(*(256 * stride % 8192 for stride in strides), 0, 0, 0),
        tile_stride=16,
        accumulator_strides=(3, 0, 0, 0, 0, 1, 0),
    )
    for zero_point in (0, 127):
        for accumulate, before in (0, 0), (1, 2**31 - 1):
            memories.accumulator[:] = 2**31 - 1
            fields = {"accumulate": accumulate, "left_zero_point": zero_point}
            device.write_memory(0, encode([dataclasses.replace(matrix, **fields)]))
            device.run(0)
            for lane, weight in enumerate([-127, 127]):
                total = before + 16 * depth * (-127 - zero_point) * weight
                expected = (total + 2**31) % 2**32 - 2**31
                assert memories.accumulator[:6, lane].tolist() == [expected] * 6


# Faults ------------------------------------------------------------------------------------------


def random_fault(random: RandomInstructions) -> Instruction:
    """A random instruction with one address field changed so that it probably faults."""
    while True:
        instruction = random.draw()
        if isinstance(instruction, Scalar):
            continue
        fields = [
            name for name in ("address", "a_address", "b_address") if hasattr(instruction, name)
        ]
        fields += [f for f in ("left_address", "accumulator_address") if hasattr(instruction, f)]
        name = random.pick(fields)
        field = next(f for f in instruction.bit_fields() if f.name == name)
        value = getattr(instruction, name) + random.pick([-1, 1]) * int(
            random.rng.integers(1, 3000)
        )
        if field.limits[0] <= value <= field.limits[1]:
            return dataclasses.replace(instruction, **{name: value})


@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda config: config.name)
def test_random_addresses_fault_as_the_reference_does(
    config: AcceleratorConfig, rng: np.random.Generator
):
    faults = 0
    for _ in range(60):
        pair = Pair(config, rng)
        instruction = random_fault(pair.random)
        try:
            pair.reference.execute(instruction)
        except ReferenceFault as expected:
            faults += 1
            with pytest.raises(DeviceFault) as caught:
                pair.run([Load(extent=0), instruction])
            cause, address = (*expected.args, 0)[:2]  # some causes have no address
            assert (caught.value.cause.name, caught.value.address) == (cause, address), instruction
            assert caught.value.instruction_offset == Load.size
            assert caught.value.queue == instruction.queue
        else:
            pair.run([instruction])
            pair.check([instruction])
    assert faults > 10


def test_bus_errors_name_the_burst():
    config = PRESETS["base16"]
    device = FunctionalDevice(config, memory_bytes=1008, check_races=False)
    # Bursts end at multiples of 256 bytes; the beat at 1008 is the first that does not exist.
    for start, run, burst in (992, 17, 992), (300, 709, 768), (1020, 1, 1008), (9000, 4, 8992):
        load = Load(dram_address=start, run_bytes=run, extent=1, memory=Memory.WEIGHT)
        device.write_memory(0, encode([load]))
        with pytest.raises(DeviceFault) as caught:
            device.run(0)
        assert (caught.value.cause.name, caught.value.address) == ("READ_ERROR", burst)
        device.reset()


def test_long_nests_are_refused():
    device = FunctionalDevice(PRESETS["tiny"], memory_bytes=DRAM)
    device.write_memory(0, encode([Matrix(counts=(4095,) * 7)]))
    with pytest.raises(WeftError, match=r"MATRIX has a loop nest of \d+ trips"):
        device.run(0)


def test_a_changed_program_is_prepared_again():
    device = FunctionalDevice(PRESETS["tiny"], memory_bytes=DRAM)
    for fill in (3, 4, 4, 3):
        load = Load(run_bytes=2, extent=0, fill=fill)
        device.write_memory(1024, encode([load]))
        device.run(1024)
        assert device.memories.activation[:3].tolist() == [fill, fill, 0]


# What is kept between instructions and runs ------------------------------------------------------


def test_constants_loaded_between_equal_instructions():
    """A LOAD changes weights and parameters, in part, between two uses and between two runs."""
    config = PRESETS["tiny"]
    device = FunctionalDevice(config, memory_bytes=1 << 16)
    rng = np.random.default_rng(5)
    random = RandomInstructions(config, rng, (0, 1))
    matrix = Matrix(
        counts=(2, 1, 2, 1, 1, 3, 1),
        left_zero_point=3,
        left_strides=(0, 0, 4, 0, 0, 8, 0),
        top_address=40,
        top_strides=(32, 0, 16, 0, 0, 0, 0),
        tile_stride=4,
        accumulator_strides=(3, 0, 0, 0, 0, 1, 0),
    )
    vector = Vector(
        counts=(2, 1, 1, 3, 1, 1),
        a_strides=(3, 0, 0, 1, 0, 0),
        use_bias=1,
        scale_source=ScaleSource.PARAMETER,
        parameter_strides=(1, 0, 0, 0),
        address=1024,
        strides=(12, 0, 0, 4),
    )
    pitch = config.parameter_row_pitch
    weights = [
        Load(dram_address=0, address=40, run_bytes=64, memory=Memory.WEIGHT, extent=1),
        Load(  # one run before the tiles, one in the middle of them
            dram_address=64,
            counts=(2, 1, 1),
            address=20,
            strides=(75, 0, 0),
            run_bytes=3,
            memory=Memory.WEIGHT,
            extent=1,
        ),
        Load(dram_address=70, address=104, run_bytes=9, memory=Memory.WEIGHT, extent=1),  # behind
    ]
    parameters = [
        Load(dram_address=1024, run_bytes=2 * pitch, memory=Memory.PARAMETER, extent=1),
        Load(dram_address=2048, address=pitch, run_bytes=16, memory=Memory.PARAMETER, extent=1),
    ]
    activations = Load(dram_address=512, run_bytes=64, extent=1)
    stream: list[Instruction] = [activations]
    for load in (weights[0], parameters[0], weights[1], weights[2], parameters[1]):
        stream += [load, matrix, vector]
        vector = dataclasses.replace(vector, address=vector.address + 24)
    code = encode(serialized(stream))
    device.write_memory(8192, code)
    for _ in range(3):
        dram = rng.integers(0, 256, 4096).astype(np.uint8)
        for start in (1024, 2048):
            rows = np.frombuffer(random.parameter_rows(), np.uint8)
            dram[start : start + len(rows)] = rows
        device.write_memory(0, dram)
        reference = ReferenceMachine(config, device.memories.dram.tobytes())
        reference.activation = [byte % 256 for byte in device.memories.activation[:2048].tolist()]
        reference.weight = [byte % 256 for byte in device.memories.weight.tolist()]
        reference.parameter = device.memories.parameter.tolist()
        reference.accumulator = device.memories.accumulator[:-1].tolist()
        device.run(8192)
        for instruction in stream:
            reference.execute(instruction)
        found = device.memories.activation[:2048].view(np.uint8)
        assert found.tolist() == reference.activation


def test_two_programs_on_one_device_do_not_disturb_each_other(rng: np.random.Generator):
    pair = Pair(PRESETS["tiny"], rng)
    programs = [[pair.random.draw() for _ in range(5)] for _ in range(2)]
    addresses = [DRAM, DRAM + 8192]
    for address, instructions in zip(addresses, programs):
        pair.device.write_memory(address, encode(instructions))
    for which in (0, 1, 0, 0, 1):
        pair.device.run(addresses[which])
        for instruction in programs[which]:
            pair.reference.execute(instruction)
        pair.check(programs[which])


def test_blas_threads_are_restored():
    if blas._CONTROLS is None:
        pytest.skip("NumPy is not linked to OpenBLAS")
    get_threads, set_threads = blas._CONTROLS
    before = get_threads()
    set_threads(2)
    try:
        with blas.one_thread():
            assert get_threads() == 1
        assert get_threads() == 2
    finally:
        set_threads(before)


def test_same_tiles_with_shared_and_with_separate_left_rows(rng: np.random.Generator):
    pair = Pair(PRESETS["tiny"], rng)
    shared = Matrix(
        counts=(2, 1, 1, 2, 1, 1, 3),
        left_strides=(0, 0, 0, 4, 0, 0, 8),
        top_strides=(32, 0, 0, 16, 0, 0, 0),
        tile_stride=4,
        accumulator_strides=(3, 0, 0, 0, 0, 0, 1),
    )
    separate = dataclasses.replace(
        shared, left_strides=(64, 0, 0, 4, 0, 0, 8), accumulator_address=16
    )
    instructions: list[Instruction] = [shared, separate, shared]
    pair.run(instructions)
    for instruction in instructions:
        pair.reference.execute(instruction)
    pair.check(instructions)


def test_parameter_rows_are_modulo_256(rng: np.random.Generator):
    pair = Pair(dataclasses.replace(PRESETS["tiny"], parameter_rows=256), rng)
    vector = Vector(
        counts=(4, 1, 1, 3, 1, 1),
        a_strides=(3, 0, 0, 1, 0, 0),
        use_bias=1,
        scale_source=ScaleSource.PARAMETER,
        parameter_address=254,
        parameter_strides=(1, 0, 0, -127),
        strides=(12, 0, 0, 4),
    )
    pair.run([vector])
    pair.reference.execute(vector)
    pair.check([vector])


def test_same_parameter_rows_in_vectors_that_differ(rng: np.random.Generator):
    """The second of each pair must not take over what only the first one's fields determine."""
    pair = Pair(PRESETS["tiny"], rng)
    vector = Vector(
        counts=(2, 1, 1, 8, 1, 1),
        a_strides=(8, 0, 0, 1, 0, 0),
        use_bias=1,
        scale_source=ScaleSource.PARAMETER,
        parameter_strides=(1, 0, 0, 0),
        destination=Memory.ACCUMULATOR,
        address=32,
        strides=(8, 0, 0, 1),
    )
    changes: list[dict[str, object]] = [
        {},
        {"rounding": 1},
        {"rounding": 2},
        {"counts": (2, 1, 1, 6, 1, 1)},
        {"counts": (1, 1, 1, 8, 1, 1)},
        {"use_bias": 0},
        {"scale_source": ScaleSource.NONE},
        {"parameter_strides": (0, 0, 0, 0)},
        {"parameter_strides": (1, 0, 0, 0), "parameter_address": 1},
        {"parameter_strides": (0, 1, 0, 0), "counts": (1, 2, 1, 8, 1, 1)},
    ]
    instructions: list[Instruction] = [dataclasses.replace(vector, **c) for c in changes]
    for instruction in [*instructions, *reversed(instructions)]:
        pair.reference.execute(instruction)
    pair.run([*instructions, *reversed(instructions)])
    pair.check(instructions)
    for instruction in instructions:  # each alone, for what a later one would overwrite
        pair.run([vector, instruction])
        pair.reference.execute(vector)
        pair.reference.execute(instruction)
        pair.check([instruction])
