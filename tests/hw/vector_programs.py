"""Random states and programs of the vector engine that do not fault, and a plain copy."""

import dataclasses
import itertools
import random

from hw.vector_reference import State, accesses
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

__all__ = [
    "EDGES",
    "HALVES",
    "NARROW",
    "QUARTERS",
    "SINGLE",
    "TINY",
    "WIDE",
    "copy",
    "random_instruction",
    "random_scalar",
    "random_state",
]

TINY = PRESETS["tiny"]
# Lines wider than a vector, more lanes, one parameter row, window registers.
WIDE = dataclasses.replace(
    TINY, name="wide", rows=16, columns=8, vector_lanes=8, parameter_rows=1, depthwise_taps=3
)
# Fewer lanes than columns: a vector in two, four and as many groups as columns.
HALVES = dataclasses.replace(TINY, name="halves", vector_lanes=2)
QUARTERS = dataclasses.replace(WIDE, name="quarters", vector_lanes=2)
SINGLE = dataclasses.replace(TINY, name="single", vector_lanes=1, depthwise_taps=3)
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


# One vector after the other, unchanged ------------------------------------------------------------


def copy(vectors: int, source: OperandSource, destination: Memory, **fields: object) -> Vector:
    return Vector(
        counts=(1, 1, 1, vectors, 1, 1),
        a_source=source,
        a_strides=(0, 0, 0, 1 if source == OperandSource.ACCUMULATOR else 4, 0, 0),
        destination=destination,
        strides=(0, 0, 0, 1 if destination == Memory.ACCUMULATOR else 4),
        **fields,
    )
