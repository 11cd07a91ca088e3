"""The functional engine against loops over Python integers, and the faults of the document."""

import dataclasses

import numpy as np
import pytest

from sim.machine_reference import ReferenceFault, ReferenceMachine
from sim.programs import encode
from sim.random_instructions import RandomInstructions
from weft_hw import PRESETS, AcceleratorConfig, WeftError
from weft_hw.instructions import Instruction, Load, Matrix, Memory
from weft_sim.device import DeviceFault
from weft_sim.functional import FunctionalDevice

TALL = dataclasses.replace(PRESETS["tiny"], name="tall", rows=8, columns=2, vector_lanes=2)
CONFIGS = [PRESETS["tiny"], TALL, PRESETS["edge8"], PRESETS["base16"]]

DRAM = 4096
PROGRAM = 2048
OUTSIDE = 1 << 14


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


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("kind", ["load", "load_parameters", "store", "matrix", "vector"])
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
    device.memories.activation[:] = -128
    device.memories.weight[:] = -128
    device.memories.weight[1::16] = 127
    device.memories.accumulator[:] = 2**31 - 1
    matrix = Matrix(
        counts=(2, *reduction, 1, 3, 1),
        left_zero_point=127,
        left_strides=(0, 16, 16, 16, 0, 16, 0),
        top_strides=(256, 256, 256, 256, 0, 0, 0),
        tile_stride=16,
        accumulator_strides=(3, 0, 0, 0, 0, 1, 0),
    )
    for accumulate, before in (0, 0), (1, 2**31 - 1):
        device.memories.accumulator[:] = 2**31 - 1
        add = dataclasses.replace(matrix, accumulate=accumulate)
        device.write_memory(0, encode([add]))
        device.run(0)
        terms = 16 * int(np.prod(reduction))
        for lane, weight in enumerate([-128, 127]):
            expected = (before + terms * -255 * weight + 2**31) % 2**32 - 2**31
            assert device.memories.accumulator[:6, lane].tolist() == [expected] * 6


# Faults ------------------------------------------------------------------------------------------


def random_fault(random: RandomInstructions) -> Instruction:
    """A random instruction with one address field changed so that it probably faults."""
    while True:
        instruction = random.draw()
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


@pytest.mark.parametrize("config", CONFIGS[:2], ids=lambda config: config.name)
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
            cause, address = expected.args
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
