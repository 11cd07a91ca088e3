"""The vector engine against loops over Python integers: random programs, faults, order, speed."""

import dataclasses
import itertools
import random
import zlib

import pytest

from hw.vector_bench import run_engine
from hw.vector_reference import OutsideError, State, accesses, execute
from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.instructions import (
    Capture,
    Head,
    Memory,
    OperandSource,
    Operation,
    Rounding,
    Scalar,
    ScaleSource,
    Tail,
    Vector,
)
from weft_hw.registers import FaultCause

TINY = PRESETS["tiny"]
# Lines wider than a vector, more lanes, one parameter row, window registers.
WIDE = dataclasses.replace(
    TINY, name="wide", rows=16, columns=8, vector_lanes=8, parameter_rows=1, depthwise_taps=3
)
NARROW = dataclasses.replace(TINY, name="narrow", rows=2, columns=2, vector_lanes=2, bus_width=64)
MULTIPLIER, EXPONENT = 3, 4  # scalar registers that hold nothing else
NOTED = [n for n in range(16) if not {n, (n + 1) % 16} & {MULTIPLIER, EXPONENT}]
EDGES = (0, 1, -1, 127, -128, (1 << 31) - 1, -(1 << 31), 1 << 30, -(1 << 30))


def random_word(rng: random.Random) -> int:
    if rng.random() < 0.2:
        return rng.choice(EDGES)
    bits = rng.randint(1, 32)
    return rng.getrandbits(bits) - (1 << (bits - 1))


def random_state(config: AcceleratorConfig, rng: random.Random) -> State:
    def parameter() -> tuple[int, int, int]:
        multiplier = rng.choice([rng.getrandbits(31), 1 << 30, 0, (1 << 31) - 1])
        return random_word(rng), multiplier, rng.choice([rng.randint(-31, 31), -8, -16])

    columns = range(config.columns)
    return State(
        [rng.randint(-128, 127) for _ in range(config.activation_bytes)],
        [[random_word(rng) for _ in columns] for _ in range(config.accumulator_total_rows)],
        [[parameter() for _ in columns] for _ in range(config.parameter_rows)],
        [rng.randint(-128, 127) for _ in range(config.weight_bytes)],
        (rng.getrandbits(32), rng.getrandbits(32)),
        [[rng.randint(-128, 127) for _ in range(256)] for _ in range(4)],
        [0] * 16,
    )


# Random instructions ------------------------------------------------------------------------------


def _place(rng: random.Random, touched: list[int], lengths: list[int], size: int) -> int | None:
    """What to add to these addresses so that all are inside the memory, at times at its end."""
    low = min(touched, default=0)
    high = max((a + n for a, n in zip(touched, lengths)), default=0)
    if high - low > size:
        return None
    return rng.choice([-low, size - high, rng.randint(-low, size - high)])


def _candidate(config: AcceleratorConfig, rng: random.Random, scalars: bool) -> Vector:
    counts = [rng.choice([1, 1, 1, 2, 3]) for _ in range(4)]
    window = rng.random() < 0.4
    counts += [rng.randint(1, 3), rng.randint(1, 3)] if window else [1, 1]

    def strides(reach: int, length: int = 6) -> tuple[int, ...]:
        return tuple(rng.choice([0, 1, -1, rng.randint(-reach, reach)]) for _ in range(length))

    source = (OperandSource.ACTIVATION, OperandSource.ACCUMULATOR)
    a_source, b_source = rng.choice(source), rng.choice([*source, OperandSource.WEIGHT])
    head = rng.choice(list(Head))
    tail = rng.choice([Tail.NONE, Tail.ADD, Tail.MAXIMUM, Tail.PRODUCT, Tail.SELECT])
    if head == Head.DOT:
        a_source, tail = OperandSource.ACTIVATION, Tail.NONE
    int8_only = head == Head.DOT or tail in (Tail.PRODUCT, Tail.SELECT)
    if int8_only and b_source == OperandSource.ACCUMULATOR:
        b_source = OperandSource.WEIGHT
    b_used = head == Head.DOT or tail != Tail.NONE
    destination = rng.choice([Memory.ACTIVATION, Memory.ACCUMULATOR])
    reach = {s: 4 if s == OperandSource.ACCUMULATOR else 40 for s in OperandSource}
    low, high = sorted((random_word(rng), random_word(rng)))
    return Vector(
        counts=tuple(counts),
        head=head,
        a_source=a_source,
        a_strides=strides(reach[a_source]),
        a_zero_point=rng.choice([0, -128, 127, rng.randint(-128, 127)]),
        b_source=b_source if b_used else rng.choice([OperandSource.NONE, b_source]),
        b_strides=strides(reach[b_source]),
        b_zero_point=rng.randint(-128, 127),
        destination=destination,
        strides=strides(40 if destination == Memory.ACTIVATION else 5, 4),
        last_lanes=rng.choice([0, 1, config.columns - 1, config.columns, 127]),
        y_origin=rng.randint(-3, 2),
        y_extent=rng.randint(0, 5),
        y_steps=strides(2),
        x_origin=rng.randint(-3, 2),
        x_extent=rng.choice([1, 3, 4095]),
        x_steps=strides(2),
        bounded=rng.randint(0, 1),
        parameter_address=rng.randrange(config.parameter_rows),
        use_bias=rng.randint(0, 1),
        pre_shift=rng.choice([0, 0, 20, rng.randint(0, 31)]),
        scale_source=rng.choice(list(ScaleSource)[: 4 if scalars else 3]),
        clamp_from_scalar=rng.randint(0, 1) if scalars else 0,
        scalar_registers=(MULTIPLIER, EXPONENT, *rng.sample(range(16), 2)) if scalars else (0,) * 4,
        capture=rng.choice(list(Capture)) if scalars else Capture.NONE,
        capture_register=rng.choice(NOTED) if scalars else 0,
        lookup=rng.choice([0, 0, 0, 1, 2, 3, 4]),
        multiplier=rng.choice([rng.getrandbits(31), 1 << 30, 0]),
        exponent=rng.choice([rng.randint(-31, 31), -10]),
        rounding=rng.choice(list(Rounding)),
        index_address=rng.choice([0, 0xFFFFFFFE, rng.getrandbits(32)]),
        index_strides=tuple(rng.choice([0, 1, rng.getrandbits(22)]) for _ in range(4)),
        tensor=rng.choice([0, rng.getrandbits(12)]),
        tail=tail,
        zero_point=rng.choice([0, -128, -32768, 32767, rng.randint(-128, 127)]),
        clamp_low=rng.choice([-128, low, -(1 << 31)]),
        clamp_high=rng.choice([127, high, (1 << 31) - 1]),
        select_low=rng.choice([0, -512, rng.randint(-256, 255)]),
        select_high=rng.choice([127, 511, rng.randint(-256, 255)]),
    )


def random_scalar(rng: random.Random) -> Scalar:
    """An operation, or a multiplier or exponent that scales well."""
    kind = rng.random()
    if kind < 0.2:
        value = rng.choice([1 << 30, rng.getrandbits(31)])
        return Scalar(destination=MULTIPLIER, use_immediate=1, immediate=value)
    if kind < 0.4:
        value = rng.randint(-31, 31) + 256 * rng.randint(-3, 3)
        return Scalar(destination=EXPONENT, use_immediate=1, immediate=value)
    return Scalar(
        operation=rng.choice(list(Operation)),
        destination=rng.choice([n for n in range(16) if n not in (MULTIPLIER, EXPONENT)]),
        first=rng.randrange(16),
        second=rng.randrange(16),
        use_immediate=rng.randint(0, 1),
        immediate=rng.choice([random_word(rng), rng.randint(-40, 40)]),
    )


def random_instruction(
    config: AcceleratorConfig, rng: random.Random, *, scalars: bool = False
) -> Vector:
    """An instruction without a fault whose reads do not depend on its writes.

    With ``scalars`` it may take scalar registers and capture into them.
    """
    while True:
        candidate = _candidate(config, rng, scalars)
        if config.parameter_rows > 1:
            # A step of one row forward or back from a row that leaves room, modulo 256.
            forward = rng.random() < 0.5
            candidate = dataclasses.replace(
                candidate,
                parameter_address=0 if forward else 2,
                parameter_strides=tuple(
                    (1 if forward else -1) if i == rng.randrange(4) else 0 for i in range(4)
                )
                if max(candidate.counts[:4]) <= 3
                else (0, 0, 0, 0),
            )
            if any(
                row >= config.parameter_rows
                for vector in accesses(candidate, config)
                for what, row, _ in vector
                if what == "parameter"
            ):
                continue
        placed = _placed(candidate, config, rng)
        if placed is not None:
            return placed


def _placed(candidate: Vector, config: AcceleratorConfig, rng: random.Random) -> Vector | None:
    everything = list(itertools.chain(*accesses(candidate, config)))
    touched: dict[str, set[tuple[OperandSource, int]]] = {"read": set(), "written": set()}
    sizes = {
        OperandSource.NONE: config.activation_bytes,
        OperandSource.ACTIVATION: config.activation_bytes,
        OperandSource.ACCUMULATOR: config.accumulator_total_rows,
        OperandSource.WEIGHT: config.weight_bytes,
    }
    for what, field in (("a", "a_address"), ("b", "b_address"), ("result", "address")):
        if what == "result":
            in_rows = candidate.destination == Memory.ACCUMULATOR
            place = OperandSource.ACCUMULATOR if in_rows else OperandSource.ACTIVATION
        else:
            place = getattr(candidate, f"{what}_source")
        wide, size = place == OperandSource.ACCUMULATOR, sizes[place]
        starts = [address for kind, address, _ in everything if kind == what]
        lengths = [1 if wide else length for kind, _, length in everything if kind == what]
        base = _place(rng, starts, lengths, size)
        if base is None:
            return None
        candidate = dataclasses.replace(candidate, **{field: base})
        group = touched["written" if what == "result" else "read"]
        for start, length in zip(starts, lengths):
            group.update((place, base + start + i) for i in range(length))
    return None if touched["read"] & touched["written"] else candidate


@pytest.mark.parametrize("refusal", [0.0, 0.4])
@pytest.mark.parametrize("config", [TINY, WIDE, NARROW], ids=lambda config: config.name)
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
@pytest.mark.parametrize("config", [TINY, WIDE, NARROW], ids=lambda config: config.name)
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
    program = [_copy(60, OperandSource.ACCUMULATOR, Memory.ACTIVATION)] * 2
    outcome = run_engine(TINY, program, state, rng, write_refusal=write_refusal)
    execute(program[0], TINY, expected)
    assert state == expected and len(outcome.retired) == 2
    assert outcome.reads[-1] - outcome.reads[0] > 200


# Speed --------------------------------------------------------------------------------------------


def _copy(vectors: int, source: OperandSource, destination: Memory, **fields: object) -> Vector:
    return Vector(
        counts=(1, 1, 1, vectors, 1, 1),
        a_source=source,
        a_strides=(0, 0, 0, 1 if source == OperandSource.ACCUMULATOR else 4, 0, 0),
        destination=destination,
        strides=(0, 0, 0, 1 if destination == Memory.ACCUMULATOR else 4),
        **fields,
    )


@pytest.mark.parametrize("with_b", [False, True])
def test_one_vector_a_cycle(with_b: bool) -> None:
    rng = random.Random(1)
    second = (
        {"tail": Tail.ADD, "b_source": OperandSource.ACTIVATION, "b_address": 1024}
        if with_b
        else {}
    )
    program = [_copy(64, OperandSource.ACCUMULATOR, Memory.ACTIVATION, **second)]
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
    program = [_copy(40, OperandSource.ACCUMULATOR, Memory.ACTIVATION)] * 4
    outcome = run_engine(TINY, program, random_state(TINY, rng), rng)
    gaps = [later - earlier for earlier, later in itertools.pairwise(outcome.reads)]
    assert sorted(gaps) == [1] * 156 + [5] * 3


def test_reader_of_a_predecessors_results_waits_for_them() -> None:
    rng = random.Random(4)
    program = [
        _copy(6, OperandSource.ACTIVATION, Memory.ACCUMULATOR),
        _copy(6, OperandSource.ACCUMULATOR, Memory.ACTIVATION),
    ]
    outcome = run_engine(TINY, program, random_state(TINY, rng), rng)
    assert outcome.reads[6] > outcome.retired[0]


# Faults -------------------------------------------------------------------------------------------

GOOD = _copy(5, OperandSource.ACCUMULATOR, Memory.ACTIVATION)


def _unsupported_values() -> list[tuple[str, object]]:
    cases: list[tuple[str, object]] = []
    for field in Vector.bit_fields():
        if field.supported is None:
            continue
        value = next(
            v for v in reversed(range(1 << min(field.width, 8))) if v not in field.supported
        )
        elements = (*[field.supported[0]] * (field.length - 1), value) if field.length else value
        cases.append((field.name, elements))
    return cases


def _expect_fault(bad: Vector | bytes, cause: FaultCause, address: int = 0) -> None:
    """Between two good instructions; the first retires, the last never starts."""
    rng = random.Random(6)
    state = random_state(TINY, rng)
    expected = state.copy()
    outcome = run_engine(TINY, [GOOD, bad, GOOD], state, rng, refusal=0.2)
    assert outcome.fault == (cause, GOOD.size, address % (1 << 40))
    assert len(outcome.retired) == 1
    execute(GOOD, TINY, expected)
    if cause == FaultCause.LOCAL_ADDRESS:
        with pytest.raises(OutsideError, match=f"^{address}$"):
            execute(bad, TINY, expected)
    assert state == expected


@pytest.mark.parametrize(("name", "value"), _unsupported_values())
def test_unsupported_field(name: str, value: object) -> None:
    _expect_fault(dataclasses.replace(GOOD, **{name: value}), FaultCause.UNSUPPORTED_FIELD)


NARROW_DOT = {"head": Head.DOT, "a_source": OperandSource.ACTIVATION}


@pytest.mark.parametrize(
    "fields",
    [
        *[{"tail": tail} for tail in (Tail.ADD, Tail.MAXIMUM, Tail.PRODUCT, Tail.SELECT)],
        {"tail": Tail.PRODUCT, "b_source": OperandSource.ACCUMULATOR},
        {"tail": Tail.SELECT, "b_source": OperandSource.ACCUMULATOR},
        {"head": Head.DOT, "b_source": OperandSource.WEIGHT},  # of accumulators
        NARROW_DOT,
        dict(NARROW_DOT, b_source=OperandSource.ACCUMULATOR),
        dict(NARROW_DOT, b_source=OperandSource.WEIGHT, tail=Tail.ADD),
    ],
)
def test_operands_that_do_not_fit_their_use(fields: dict[str, object]) -> None:
    bad = dataclasses.replace(GOOD, **fields)
    assert bad.unsupported(PRESETS["tiny"]) is not None
    _expect_fault(bad, FaultCause.UNSUPPORTED_FIELD)


@pytest.mark.parametrize("operation", [max(Operation) + 1, 15])
def test_scalar_operation_that_is_none(operation: int) -> None:
    encoded = Scalar(operation=operation, destination=1, immediate=-1).encode()
    _expect_fault(encoded, FaultCause.UNSUPPORTED_FIELD)


@pytest.mark.parametrize("loop", range(6))
def test_zero_count(loop: int) -> None:
    counts = tuple(0 if i == loop else 2 for i in range(6))
    _expect_fault(dataclasses.replace(GOOD, counts=counts), FaultCause.ZERO_COUNT)


BYTES, ROWS = TINY.activation_bytes, TINY.accumulator_total_rows
NARROW_A = {"a_source": OperandSource.ACTIVATION, "a_strides": (0, 0, 0, 4, 0, 0)}
NARROW_B = {"tail": Tail.ADD, "b_source": OperandSource.ACTIVATION, "b_strides": (0, 0, 0, 4, 0, 0)}
WEIGHT_B = dict(NARROW_B, b_source=OperandSource.WEIGHT)
DOT = {
    "counts": (1, 1, 1, 5, 1, 2),
    "head": Head.DOT,
    "a_source": OperandSource.ACTIVATION,
    "a_strides": (0, 0, 0, 4, 0, 4),
    "b_source": OperandSource.WEIGHT,
    "b_strides": (0, 0, 0, 0, 0, 4),
    "address": BYTES // 2,
}
WIDE_B = {"tail": Tail.ADD, "b_source": OperandSource.ACCUMULATOR, "b_strides": (0, 0, 0, 1, 0, 0)}


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({"a_address": -1}, -1),
        ({"a_address": ROWS - 3}, ROWS),
        (dict(NARROW_A, a_address=BYTES - 16), BYTES),
        (dict(NARROW_A, a_address=BYTES - 15), BYTES - 3),
        (dict(NARROW_A, a_address=-2), -2),
        (dict(NARROW_B, b_address=BYTES - 9), BYTES - 1),
        (dict(WIDE_B, b_address=ROWS - 1), ROWS),
        (dict(WEIGHT_B, b_address=TINY.weight_bytes - 9), TINY.weight_bytes - 1),
        (dict(DOT, b_address=TINY.weight_bytes - 7), TINY.weight_bytes - 3),
        (dict(DOT, b_address=BYTES - 8), BYTES - 8),
        (  # of a tap whose element does not exist
            dict(DOT, b_address=TINY.weight_bytes - 4, bounded=1, x_extent=1, y_extent=1)
            | {"x_steps": (0, 0, 0, 0, 0, 1)},
            TINY.weight_bytes,
        ),
        (dict(DOT, a_address=-4, b_address=-1), -4),
        ({"address": BYTES - 18}, BYTES - 2),
        ({"address": BYTES - 18, "last_lanes": 3}, BYTES - 2),
        ({"address": -(1 << 19)}, -(1 << 19)),
        ({"strides": (0, 0, 0, (1 << 19) - 1)}, (1 << 19) - 1),
        ({"a_strides": (0, 0, 0, -(1 << 19), 0, 0)}, -(1 << 19)),
        ({"destination": Memory.ACCUMULATOR, "strides": (0, 0, 0, 20)}, 80),
        ({"use_bias": 1, "parameter_address": 4}, 4),
        ({"scale_source": ScaleSource.PARAMETER, "parameter_strides": (0, 0, 0, -1)}, 255),
    ],
)
def test_address_outside_its_memory(fields: dict[str, object], address: int) -> None:
    _expect_fault(dataclasses.replace(GOOD, **fields), FaultCause.LOCAL_ADDRESS, address)


@pytest.mark.parametrize(
    "fields",
    [
        dict(NARROW_A, a_address=BYTES - 20, address=BYTES // 2),  # the very last bytes
        {"address": BYTES - 18, "last_lanes": 2},
        {"b_address": -5},  # no use of B
        {"parameter_address": 255},  # nor of parameters
        dict(DOT, b_address=TINY.weight_bytes - 8),
        # Far outside as long as x does not exist.
        {
            "bounded": 1,
            "x_origin": -4,
            "x_extent": 9,
            "x_steps": (0, 0, 0, 1, 0, 0),
            "y_extent": 1,
            "a_address": -(1 << 19),
            "a_strides": (0, 0, 0, 1 << 17, 0, 0),
        },
    ],
)
def test_what_is_not_accessed_is_not_checked(fields: dict[str, object]) -> None:
    rng = random.Random(7)
    state = random_state(TINY, rng)
    expected = state.copy()
    instruction = dataclasses.replace(GOOD, **fields)
    outcome = run_engine(TINY, [instruction, GOOD], state, rng)
    assert outcome.fault is None and len(outcome.retired) == 2
    execute(instruction, TINY, expected)
    execute(GOOD, TINY, expected)
    assert state == expected


def test_addresses_do_not_wrap_round_into_range() -> None:
    """Eight steps of 2^17 elements that do not exist lead round 20 bits, and must still fault."""
    instruction = dataclasses.replace(
        GOOD,
        counts=(1, 1, 1, 9, 1, 1),
        bounded=1,
        x_origin=-8,
        x_extent=1,
        x_steps=(0, 0, 0, 1, 0, 0),
        y_extent=1,
        a_strides=(0, 0, 0, 1 << 17, 0, 0),
    )
    _expect_fault(instruction, FaultCause.LOCAL_ADDRESS, 1 << 20)


@pytest.mark.parametrize("stop_at", [3, 17, 30, 60])
def test_stop_ends_all_effects(stop_at: int) -> None:
    rng = random.Random(8)
    state = random_state(TINY, rng)
    program = [_copy(20, OperandSource.ACCUMULATOR, Memory.ACTIVATION, zero_point=1)] * 4
    outcome = run_engine(TINY, program, state, rng, refusal=0.1, stop_at=stop_at)
    before = state.copy()
    assert outcome.fault is None and len(outcome.retired) < len(program)
    assert all(cycle < stop_at for cycle in outcome.retired)
    written = sum(cycle < stop_at for cycle in outcome.writes)
    fresh = random_state(TINY, random.Random(8))
    expected = fresh.copy()
    for instruction in program[: written // 20]:
        execute(instruction, TINY, expected)
    if written % 20:
        part = dataclasses.replace(program[0], counts=(1, 1, 1, written % 20, 1, 1))
        execute(part, TINY, expected)
    assert before == expected
