"""The vector engine against loops over Python integers: random programs, uses, order, speed."""

import dataclasses
import itertools
import random
import zlib

import pytest

from hw.vector_bench import run_engine
from hw.vector_programs import (
    EDGES,
    HALVES,
    NARROW,
    QUARTERS,
    SINGLE,
    TINY,
    WIDE,
    copy,
    random_instruction,
    random_scalar,
    random_state,
)
from hw.vector_reference import execute
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import (
    Head,
    Memory,
    OperandSource,
    Operation,
    Scalar,
    ScaleSource,
    Tail,
    Vector,
)

CONFIGS = [TINY, WIDE, NARROW, HALVES, QUARTERS, SINGLE]


@pytest.mark.parametrize("refusal", [0.0, 0.4])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_random_programs(config: AcceleratorConfig, refusal: float, seed: int) -> None:
    rng = random.Random(zlib.crc32(f"{seed} {config.name} {refusal}".encode()))
    program = [random_instruction(config, rng) for _ in range(30)]
    state = random_state(config, rng)
    expected = state.copy()
    outcome = run_engine(config, program, state, rng, refusal=refusal)
    for instruction in program:
        execute(instruction, config, expected)
    assert outcome.fault is None
    assert len(outcome.retired) == len(program)
    assert state == expected
    assert (outcome.stalls > 0) == (refusal > 0)


@pytest.mark.parametrize("refusal", [0.0, 0.4])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_random_programs_with_scalars(config: AcceleratorConfig, refusal: float, seed: int) -> None:
    """Captures, SCALAR operations and uses of registers, close behind each other."""
    rng = random.Random(zlib.crc32(f"{seed} {config.name} {refusal} scalars".encode()))
    program: list[Vector | Scalar] = []
    while len(program) < 40:
        if rng.random() < 0.5:
            program.append(random_scalar(rng))
        else:
            program.append(random_instruction(config, rng, scalars=True))
    state = random_state(config, rng)
    expected = state.copy()
    outcome = run_engine(config, program, state, rng, refusal=refusal, cycles=40000)
    for instruction in program:
        execute(instruction, config, expected)
    assert outcome.fault is None
    assert len(outcome.retired) == len(program)
    assert state == expected


def test_every_scalar_operation() -> None:
    """Of all pairs of edge cases: the first comes from a register, the second is immediate."""
    values = [*EDGES, 2, -2, 31, -31, 32, -32, 33, -33, 1000, 12345678, -87654321]
    program, expected = [], []
    for operation, a, b in itertools.product(Operation, values, values):
        program.append(Scalar(destination=1, use_immediate=1, immediate=a))
        fields = {"operation": operation, "first": 1, "use_immediate": 1, "immediate": b}
        program.append(Scalar(destination=2, **fields))
        program.append(Scalar(operation=Operation.SUBTRACT, destination=3, first=3, second=2))
        # A digest of all results: each is subtracted from the last digest, which is then rotated.
        program.append(Scalar(operation=Operation.MULTIPLY_HIGH, destination=4, first=3, second=2))
        program.append(Scalar(operation=Operation.ADD, destination=3, first=3, second=4))
        expected.append((operation, a, b))
    rng = random.Random(7)
    chosen = [5 * i for i in rng.sample(range(len(expected)), 250)]
    program = [item for i in chosen for item in program[i : i + 5]]
    state = random_state(TINY, rng)
    reference = state.copy()
    run_engine(TINY, program, state, rng, cycles=300000)
    for instruction in program:
        execute(instruction, TINY, reference)
    assert state == reference


# Uses that networks make of it --------------------------------------------------------------------


def test_residual_add_in_three_passes() -> None:
    """TFLite's ADD: both inputs shifted by 20 and scaled, their sum scaled to the output."""
    rng = random.Random(5)
    state = random_state(TINY, rng)
    expected = state.copy()
    vectors, columns = 12, TINY.columns
    to_accumulators = Vector(
        counts=(1, 1, 1, vectors, 1, 1),
        a_source=OperandSource.ACTIVATION,
        a_address=100,
        a_strides=(0, 0, 0, columns, 0, 0),
        a_zero_point=-7,
        destination=Memory.ACCUMULATOR,
        address=3,
        strides=(0, 0, 0, 1),
        pre_shift=20,
        scale_source=ScaleSource.INSTRUCTION,
        multiplier=1342177280,
        exponent=-1,
    )
    program = [
        to_accumulators,
        dataclasses.replace(
            to_accumulators,
            a_address=501,
            a_zero_point=12,
            multiplier=1073741824,
            exponent=0,
            address=30,
            tail=Tail.ADD,
            b_source=OperandSource.ACCUMULATOR,
            b_address=3,
            b_strides=(0, 0, 0, 1, 0, 0),
        ),
        Vector(
            counts=(1, 1, 1, vectors, 1, 1),
            a_address=30,
            a_strides=(0, 0, 0, 1, 0, 0),
            destination=Memory.ACTIVATION,
            address=1000,
            strides=(0, 0, 0, columns),
            scale_source=ScaleSource.INSTRUCTION,
            multiplier=1690880011,
            exponent=-18,
            zero_point=-3,
            clamp_low=-128,
            clamp_high=127,
        ),
    ]
    outcome = run_engine(TINY, program, state, rng, refusal=0.3)
    for instruction in program:
        execute(instruction, TINY, expected)
    assert len(outcome.retired) == 3 and state == expected
    assert len(set(state.activation[1000 : 1000 + vectors * columns])) > 10  # not all clamped


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution(stride: int) -> None:
    """3x3 with padding of the zero point, int32 results, against the definition of convolution."""
    rng = random.Random(stride)
    state = random_state(TINY, rng)
    size, tiles, columns = 5, 2, TINY.columns
    channels, outputs = tiles * columns, (size - 1) // stride + 1
    convolution = Vector(
        counts=(tiles, 1, outputs, outputs, 3, 3),
        head=Head.DOT,
        a_source=OperandSource.ACTIVATION,
        a_address=-(size + 1) * channels,
        a_strides=(
            columns,
            0,
            stride * size * channels,
            stride * channels,
            size * channels,
            channels,
        ),
        a_zero_point=-11,
        b_source=OperandSource.WEIGHT,
        b_address=40,
        b_strides=(columns, 0, 0, 0, 3 * channels, channels),
        bounded=1,
        y_origin=-1,
        y_extent=size,
        y_steps=(0, 0, stride, 0, 1, 0),
        x_origin=-1,
        x_extent=size,
        x_steps=(0, 0, 0, stride, 0, 1),
        destination=Memory.ACCUMULATOR,
        address=7,
        strides=(outputs * outputs, 0, outputs, 1),
    )
    outcome = run_engine(TINY, [convolution], state, rng)
    assert len(outcome.retired) == 1
    for channel, y, x in itertools.product(range(channels), range(outputs), range(outputs)):
        total = 0
        for ky, kx in itertools.product(range(3), range(3)):
            row, column = stride * y + ky - 1, stride * x + kx - 1
            if 0 <= row < size and 0 <= column < size:
                pixel = state.activation[(row * size + column) * channels + channel]
                total += (pixel + 11) * state.weight[40 + (3 * ky + kx) * channels + channel]
        tile, lane = divmod(channel, columns)
        assert state.accumulator[7 + (tile * outputs + y) * outputs + x][lane] == total
    # One product a lane and cycle.
    assert outcome.writes[-1] - outcome.writes[0] == 9 * (tiles * outputs * outputs - 1)


@pytest.mark.parametrize("write_refusal", [0.7, 0.95])
def test_slow_writes_hold_the_reads(write_refusal: float) -> None:
    """More vectors than there are places for results, which come faster than they leave."""
    rng = random.Random(9)
    state = random_state(TINY, rng)
    expected = state.copy()
    program = [copy(60, OperandSource.ACCUMULATOR, Memory.ACTIVATION)] * 2
    outcome = run_engine(TINY, program, state, rng, write_refusal=write_refusal)
    execute(program[0], TINY, expected)
    assert state == expected and len(outcome.retired) == 2
    assert outcome.reads[-1] - outcome.reads[0] > 200


# Speed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_b", [False, True])
def test_one_vector_a_cycle(with_b: bool) -> None:
    rng = random.Random(1)
    second = (
        {"tail": Tail.ADD, "b_source": OperandSource.ACTIVATION, "b_address": 1024}
        if with_b
        else {}
    )
    program = [copy(64, OperandSource.ACCUMULATOR, Memory.ACTIVATION, **second)]
    outcome = run_engine(TINY, program, random_state(TINY, rng), rng)
    assert len(outcome.writes) == 64
    assert outcome.writes[-1] - outcome.writes[0] == 63
    assert outcome.reads[0] - outcome.accepted[0] == 8
    assert outcome.retired == [outcome.writes[-1] + 1]


def test_one_window_element_a_cycle() -> None:
    rng = random.Random(2)
    pool = Vector(
        counts=(1, 1, 2, 10, 2, 3),
        head=Head.MAXIMUM,
        a_source=OperandSource.ACTIVATION,
        a_strides=(0, 0, 4, 8, 100, 4),
        destination=Memory.ACTIVATION,
        address=1500,
        strides=(0, 0, 40, 4),
    )
    outcome = run_engine(TINY, [pool], random_state(TINY, rng), rng)
    assert outcome.reads == list(range(outcome.reads[0], outcome.reads[0] + 120))
    assert outcome.writes == list(range(outcome.writes[0], outcome.writes[0] + 120, 6))


def test_next_instruction_starts_while_its_predecessor_drains() -> None:
    rng = random.Random(3)
    program = [copy(40, OperandSource.ACCUMULATOR, Memory.ACTIVATION)] * 4
    outcome = run_engine(TINY, program, random_state(TINY, rng), rng)
    gaps = [later - earlier for earlier, later in itertools.pairwise(outcome.reads)]
    assert sorted(gaps) == [1] * 156 + [5] * 3


def test_reader_of_a_predecessors_results_waits_for_them() -> None:
    rng = random.Random(4)
    program = [
        copy(6, OperandSource.ACTIVATION, Memory.ACCUMULATOR),
        copy(6, OperandSource.ACCUMULATOR, Memory.ACTIVATION),
    ]
    outcome = run_engine(TINY, program, random_state(TINY, rng), rng)
    assert outcome.reads[6] > outcome.retired[0]
