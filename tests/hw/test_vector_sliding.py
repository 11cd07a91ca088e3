"""Dot products whose windows slide: window registers change cycles, and nothing else."""

import dataclasses
import itertools
import random
import zlib

import pytest

from hw.vector_bench import run_engine
from hw.vector_programs import random_state
from hw.vector_reference import OutsideError, State, accesses, execute
from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware.vector_layouts import WINDOW_ROWS
from weft_hw.instructions import Head, Memory, OperandSource, Vector
from weft_hw.registers import FaultCause

TAPS_3 = dataclasses.replace(PRESETS["tiny"], name="taps_3", depthwise_taps=3)
TAPS_1 = dataclasses.replace(TAPS_3, name="taps_1", depthwise_taps=1)
WIDE = dataclasses.replace(TAPS_3, name="wide", rows=2, columns=8, vector_lanes=8)
NARROW = dataclasses.replace(TAPS_3, name="narrow", rows=2, columns=2, vector_lanes=2)


def random_window(config: AcceleratorConfig, rng: random.Random) -> Vector:
    """A dot product that slides, or just does not, without base addresses."""
    rows = rng.choice([1, 1, 2, 3, 3, 5, WINDOW_ROWS, WINDOW_ROWS + 1])
    counts = (
        rng.randint(1, 2),
        rng.choice([1, 1, 2]),
        rng.randint(1, 3),
        rng.choice([1, 2, 3, 5]),
        rows,
        rng.choice([3, 3, 3, 3, 1, 2, 4]),
    )
    moves = rng.choice([1, 1, 2, 2, 0, 3, -1])

    different = rng.choice(["a", "y", "x", *5 * [""]])  # what does not move along

    def strides(what: str, reach: int) -> tuple[int, ...]:
        free = [rng.randint(-reach, reach) for _ in range(6)]
        free[3] = free[5] * moves + (what == different)
        return tuple(free)

    b_strides = [rng.randint(-9, 9) for _ in range(6)]
    b_strides[3] = rng.choice([0, 0, 0, 0, 1])
    return Vector(
        counts=counts,
        head=Head.DOT,
        a_source=OperandSource.ACTIVATION,
        a_strides=strides("a", 2 * config.columns),
        a_zero_point=rng.choice([-128, 127, rng.randint(-128, 127)]),
        b_source=rng.choice([OperandSource.WEIGHT, OperandSource.ACTIVATION]),
        b_strides=tuple(b_strides),
        b_zero_point=rng.choice([0, -128, 127]),
        destination=Memory.ACCUMULATOR,
        strides=tuple(rng.randint(-3, 3) for _ in range(4)),
        y_origin=rng.randint(-2, 2),
        y_extent=rng.randint(0, 6),
        y_steps=strides("y", 1),
        x_origin=rng.randint(-2, 2),
        x_extent=rng.randint(1, 6),
        x_steps=strides("x", 1),
        bounded=rng.choice([1, 1, 1, 0]),
    )


def placed(
    instruction: Vector, config: AcceleratorConfig, rng: random.Random, outside: float
) -> Vector:
    """With bases so that every access lies in its memory, or with some probability not."""
    touched = list(itertools.chain(*accesses(instruction, config)))
    b_size = (
        config.weight_bytes
        if instruction.b_source == OperandSource.WEIGHT
        else config.activation_bytes
    )
    for what, field, size, length in (
        ("a", "a_address", config.activation_bytes, config.columns),
        ("b", "b_address", b_size, config.columns),
        ("result", "address", config.accumulator_total_rows, 1),
    ):
        starts = [address for kind, address, _ in touched if kind == what] or [0]
        low, high = -min(starts), size - length - max(starts)
        base = rng.choice([low, high, rng.randint(min(low, high), max(low, high))])
        if rng.random() < outside:
            base = rng.choice([low - rng.randint(1, 9), high + rng.randint(1, 9)])
        instruction = dataclasses.replace(instruction, **{field: base})
    return instruction


def random_program(config: AcceleratorConfig, rng: random.Random, length: int) -> list[Vector]:
    return [placed(random_window(config, rng), config, rng, 0) for _ in range(length)]


@pytest.mark.parametrize("refusal", [0.0, 0.4])
@pytest.mark.parametrize("config", [TAPS_3, WIDE, NARROW], ids=lambda config: config.name)
def test_random_windows(config: AcceleratorConfig, refusal: float, seed: int) -> None:
    rng = random.Random(zlib.crc32(f"{seed} {config.name} {refusal} sliding".encode()))
    program = random_program(config, rng, 12)
    state = random_state(config, rng)
    expected = state.copy()
    outcome = run_engine(config, program, state, rng, refusal=refusal)
    for instruction in program:
        execute(instruction, config, expected)
    assert outcome.fault is None and len(outcome.retired) == len(program)
    assert state == expected


def _until_fault(instruction: Vector, config: AcceleratorConfig, state: State) -> int | None:
    try:
        execute(instruction, config, state)
    except OutsideError as error:
        return int(error.args[0])
    return None


def test_same_faults(seed: int) -> None:
    """The address, and all that was written before, as with every trip made."""
    rng = random.Random(zlib.crc32(f"{seed} faults".encode()))
    faults = 0
    for _ in range(25):
        instruction = placed(random_window(TAPS_3, rng), TAPS_3, rng, 0.3)
        state = random_state(TAPS_3, rng)
        expected = state.copy()
        outcome = run_engine(TAPS_3, [instruction], state, rng, refusal=0.1)
        address = _until_fault(instruction, TAPS_3, expected)
        if address is None:
            assert outcome.fault is None
        else:
            faults += 1
            assert outcome.fault == (FaultCause.LOCAL_ADDRESS, 0, address % (1 << 40))
        assert state == expected
    assert faults > 5


# Convolutions -------------------------------------------------------------------------------------

CONVOLUTION = Vector(
    head=Head.DOT,
    a_source=OperandSource.ACTIVATION,
    a_zero_point=-11,
    b_source=OperandSource.WEIGHT,
    b_zero_point=2,
    bounded=1,
    destination=Memory.ACCUMULATOR,
)


def convolution(
    config: AcceleratorConfig,
    kernel: tuple[int, int],
    size: tuple[int, int],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
    tiles: int = 1,
    along_y: bool = False,
) -> Vector:
    """Depthwise, of activations and tap weights in rows of channels; windows slide along x or y."""
    columns, pitch = config.columns, tiles * config.columns
    (height, width), (rows, taps) = size, kernel
    out_height = (height + 2 * padding - dilation * (rows - 1) - 1) // stride + 1
    out_width = (width + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    down, right = width * pitch, pitch
    a = (columns, 0, stride * down, stride * right, dilation * down, dilation * right)
    y, x = (0, 0, stride, 0, dilation, 0), (0, 0, 0, stride, 0, dilation)
    b = (columns, 0, 0, 0, taps * pitch, pitch)
    result = (out_height * out_width, 0, out_width, 1)
    counts = (tiles, 1, out_height, out_width, rows, taps)
    order = [0, 1, 3, 2, 5, 4] if along_y else list(range(6))
    return dataclasses.replace(
        CONVOLUTION,
        counts=tuple(counts[i] for i in order),
        a_address=-padding * (down + right),
        a_strides=tuple(a[i] for i in order),
        b_strides=tuple(b[i] for i in order),
        y_origin=-padding,
        y_extent=height,
        y_steps=tuple(y[i] for i in order),
        x_origin=-padding,
        x_extent=width,
        x_steps=tuple(x[i] for i in order),
        strides=tuple(result[i] for i in order[:4]),
    )


SHAPES = {
    "3x3": {"kernel": (3, 3), "size": (4, 6), "padding": 1, "tiles": 2},
    "3x3 along y": {"kernel": (3, 3), "size": (6, 3), "padding": 1, "along_y": True},
    "3x3 stride 2": {"kernel": (3, 3), "size": (5, 9), "padding": 1, "stride": 2},
    "3x3 stride 3": {"kernel": (3, 3), "size": (5, 9), "stride": 3},
    "3x3 dilation 2": {"kernel": (3, 3), "size": (6, 7), "padding": 2, "dilation": 2},
    "3x3 valid": {"kernel": (3, 3), "size": (3, 11)},
    "3x3 of one pixel": {"kernel": (3, 3), "size": (1, 1), "padding": 1},
    "1x3": {"kernel": (1, 3), "size": (2, 7), "padding": 0},
    "3x1": {"kernel": (3, 1), "size": (5, 4)},
    "3x1 along y": {"kernel": (3, 1), "size": (7, 2), "along_y": True},
    "5x3": {"kernel": (5, 3), "size": (5, 8), "padding": 1},
    "5x5": {"kernel": (5, 5), "size": (2, 4), "padding": 2},
    "2x2": {"kernel": (2, 2), "size": (4, 5)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_convolutions(name: str) -> None:
    rng = random.Random(name)
    program = [convolution(TAPS_3, **SHAPES[name])] * 2
    state = random_state(TAPS_3, rng)
    expected, plain = state.copy(), state.copy()
    run_engine(TAPS_3, program, state, rng, refusal=0.2)
    run_engine(TAPS_1, program, plain, rng, refusal=0.2)
    execute(program[0], TAPS_3, expected)
    assert state == expected and plain == expected


@pytest.mark.parametrize(
    ("name", "first", "others"),
    [
        ("3x3", 9, 3),
        ("3x3 along y", 9, 3),
        ("3x3 stride 2", 9, 6),
        ("3x3 stride 3", 9, 9),
        ("3x3 dilation 2", 9, 9),
        ("1x3", 3, 1),
        ("3x1 along y", 3, 1),
        ("5x3", 15, 5),
        ("5x5", 25, 25),
    ],
)
def test_cycles(name: str, first: int, others: int) -> None:
    """Cycles of the first vector of a row of outputs, and of all others in it."""
    rng = random.Random(name)
    instruction = convolution(TAPS_3, **SHAPES[name])
    outcome = run_engine(TAPS_3, [instruction], random_state(TAPS_3, rng), rng)
    length = instruction.counts[3]
    gaps = [later - earlier for earlier, later in itertools.pairwise(outcome.writes)]
    expected = [others if number % length else first for number in range(1, len(outcome.writes))]
    assert gaps == expected
    plain = run_engine(TAPS_1, [instruction], random_state(TAPS_1, rng), rng)
    elements = instruction.counts[4] * instruction.counts[5]
    assert plain.writes[-1] - plain.writes[0] == elements * (len(plain.writes) - 1)


@pytest.mark.parametrize("field", ["a_strides", "b_strides", "y_steps", "x_steps"])
def test_windows_that_almost_slide(field: str) -> None:
    rng = random.Random(field)
    like = convolution(TAPS_3, (3, 3), (3, 6), padding=1)
    steps = list(getattr(like, field))
    steps[3] += 1
    instruction = dataclasses.replace(
        like, a_address=200, b_address=40, **{field: tuple(steps)}, y_extent=4
    )
    state = random_state(TAPS_3, rng)
    expected = state.copy()
    outcome = run_engine(TAPS_3, [instruction], state, rng)
    execute(instruction, TAPS_3, expected)
    assert outcome.fault is None and state == expected


def test_taps_are_read_once_a_row_of_outputs() -> None:
    """And elements of A once each, by the rows of windows that hold them."""
    rng = random.Random(1)
    instruction = convolution(TAPS_3, (3, 3), (4, 6))
    outcome = run_engine(TAPS_3, [instruction], random_state(TAPS_3, rng), rng)
    assert len(outcome.reads) == 2 * (3 * 6) + 2 * 9


def test_b_outside_its_memory_where_a_does_not_exist() -> None:
    """A fault whether trips are left out or not: the taps of a row are read before all its uses."""
    rng = random.Random(2)
    columns = TAPS_3.columns
    instruction = dataclasses.replace(
        CONVOLUTION,
        counts=(1, 1, 2, 3, 1, 3),
        a_strides=(0, 0, 0, columns, 0, columns),
        x_origin=-4,
        x_extent=1,
        x_steps=(0, 0, 0, 1, 0, 1),
        y_extent=1,
        b_address=2 * columns,
        b_strides=(0, 0, -2 * columns - 1, 0, 0, columns),
    )
    for config in (TAPS_1, TAPS_3):
        state = random_state(config, rng)
        expected = state.copy()
        outcome = run_engine(config, [instruction], state, rng)
        assert _until_fault(instruction, config, expected) == -1
        assert outcome.fault == (FaultCause.LOCAL_ADDRESS, 0, (1 << 40) - 1)
        assert state == expected
