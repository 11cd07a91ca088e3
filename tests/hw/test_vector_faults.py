"""Faults of the vector engine: which, when, and that nothing follows them."""

import dataclasses
import random

import pytest

from hw.vector_bench import run_engine
from hw.vector_programs import TINY, copy, random_state
from hw.vector_reference import OutsideError, execute
from weft_hw.config import PRESETS
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
from weft_hw.registers import FaultCause

GOOD = copy(5, OperandSource.ACCUMULATOR, Memory.ACTIVATION)


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
    program = [copy(20, OperandSource.ACCUMULATOR, Memory.ACTIVATION, zero_point=1)] * 4
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
