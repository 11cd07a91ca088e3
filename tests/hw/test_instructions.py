"""Encoding and decoding of every instruction; the gateware's layout agrees with both."""

import dataclasses
import random

import pytest
from amaranth.lib import data

from weft_hw.config import PRESETS
from weft_hw.errors import EncodingError
from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.instructions import (
    INSTRUCTIONS,
    WORD_BYTES,
    Dataflow,
    End,
    Instruction,
    Load,
    LoadSide,
    Matrix,
    OperandSource,
    Queue,
    Rounding,
    Scalar,
    Store,
    Vector,
    WeightBits,
    decode,
    decode_stream,
    disassemble,
)

KINDS = list(INSTRUCTIONS.values())


def random_instruction(rng: random.Random, kind: type[Instruction]) -> Instruction:
    """Fields at random, often at their limits."""

    def pick(field) -> int:
        low, high = field.limits
        return rng.choice([low, high, 0, rng.randint(low, high)])

    values = {}
    for field in kind.bit_fields():
        one = pick(field)
        values[field.name] = (
            tuple(pick(field) for _ in range(field.length)) if field.length else one
        )
    return kind(**values)


def test_the_set_of_instructions() -> None:
    listed = {k.__name__: (k.opcode, k.size, k.queue) for k in KINDS}
    assert listed == {
        "End": (0x01, 16, None),
        "Load": (0x10, 48, Queue.LOAD),
        "Store": (0x40, 48, Queue.STORE),
        "Matrix": (0x20, 96, Queue.MATRIX),
        "Vector": (0x30, 128, Queue.VECTOR),
        "Scalar": (0x31, 16, Queue.VECTOR),
    }
    assert all(kind.size % WORD_BYTES == 0 for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_fields_neither_overlap_nor_overrun(kind: type[Instruction]) -> None:
    owner: dict[int, str] = dict.fromkeys(range(8), "opcode")
    for field in kind.bit_fields():
        for bit in range(field.offset, field.offset + field.total_width):
            assert bit not in owner, f"{field.name} overlaps {owner[bit]}"
            owner[bit] = field.name
    assert max(owner) < 8 * kind.size
    assert owner[8] == "wait"
    assert owner[24] == "signal"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("case", range(20))
def test_round_trip(kind: type[Instruction], case: int, seed: int) -> None:
    rng = random.Random(f"{seed} {kind} {case}")
    instruction = random_instruction(rng, kind)
    encoded = instruction.encode()
    assert len(encoded) == kind.size
    assert encoded[0] == kind.opcode
    assert int.from_bytes(encoded[1:3], "little") == instruction.wait
    assert int.from_bytes(encoded[3:5], "little") == instruction.signal
    assert decode(encoded + rng.randbytes(20)) == instruction

    packed = int.from_bytes(encoded, "little")
    view = data.Const(instruction_layout(kind), packed)
    assert view["opcode"] == kind.opcode
    for field in kind.bit_fields():
        value = getattr(instruction, field.name)
        seen = [view[field.name][i] for i in range(field.length)] or view[field.name]
        assert (tuple(seen) if field.length else seen) == value, field.name
        # Bit by bit, without the layout: element i begins at offset + i * width.
        elements = value if field.length else (value,)
        for number, element in enumerate(elements):
            raw = packed >> (field.offset + number * field.width) & ((1 << field.width) - 1)
            assert raw == element % (1 << field.width)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_layout_is_as_long_as_the_instruction(kind: type[Instruction]) -> None:
    assert instruction_layout(kind).size == 8 * kind.size


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (Load(run_bytes=1 << 20), "Load.run_bytes must be from 0 to 1048575, not 1048576"),
        (Store(steps=(0, 0, 128)), r"Store.steps\[2\] must be from -128 to 127, not 128"),
        (Matrix(counts=(1, 1)), "Matrix.counts must have 7 elements, not 2"),
        (Vector(multiplier=-1), "Vector.multiplier must be from 0 to 2147483647, not -1"),
        (End(wait=1 << 16), "End.wait must be from 0 to 65535, not 65536"),
    ],
)
def test_values_that_do_not_fit_are_named(instruction: Instruction, message: str) -> None:
    with pytest.raises(EncodingError, match=f"^{message}$"):
        instruction.encode()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"", "no bytes to decode"),
        (b"\x02" + bytes(15), "opcode 0x02 is not known"),
        (Load().encode()[:40], "Load needs 48 bytes, only 40 are left"),
    ],
)
def test_what_cannot_be_decoded_is_named(code: bytes, message: str) -> None:
    with pytest.raises(EncodingError, match=f"^{message}$"):
        decode(code)


def test_stream_ends_at_end() -> None:
    stream = Load().encode() + Vector().encode() + End().encode() + b"\xff" * 64
    assert decode_stream(stream) == [(0, Load()), (48, Vector()), (176, End())]
    with pytest.raises(EncodingError, match="no bytes to decode"):
        decode_stream(Load().encode())


def test_disassembly_shows_what_differs_from_the_defaults() -> None:
    stream = (
        Load(wait=0b101, dram_address=0x1000, run_bytes=64, strides=(0, -1, 2)).encode()
        + Vector(a_source=OperandSource.ACTIVATION, rounding=Rounding.HALF_UP).encode()
        + End().encode()
    )
    assert disassemble(stream).split("\n") == [
        "     0  LOAD wait={0,2} dram_address=0x1000 run_bytes=64 strides=[0,-1,2]",
        "    30  VECTOR a_source=ACTIVATION rounding=HALF_UP",
        "    b0  END",
    ]


def test_unsupported_names_the_first_reserved_value() -> None:
    tiny = PRESETS["tiny"]
    assert Matrix().unsupported(tiny) is None
    assert Matrix(top_zero_point=1, bounds=2).unsupported(tiny) == "bounds"
    assert Vector(lookup=5).unsupported(tiny) == "lookup"
    assert Scalar(operation=9).unsupported(tiny) == "operation"


def test_weight_bits_are_those_of_the_array_and_of_plain_tiles_only() -> None:
    flexible = dataclasses.replace(PRESETS["tiny"], weight_modes=(8, 4))
    four = Matrix(weight_bits=WeightBits.FOUR)
    assert four.unsupported(flexible) is None
    assert four.unsupported(PRESETS["tiny"]) == "weight_bits"
    assert dataclasses.replace(four, weight_bits=WeightBits.TWO).unsupported(flexible)
    for field, value in (
        ("dataflow", Dataflow.OUTPUT_STATIONARY),
        ("load_side", LoadSide.LEFT),
        ("top_zero_point", -1),
    ):
        changed = dataclasses.replace(four, **{field: value})
        assert changed.unsupported(flexible) == "weight_bits"
    oblong = dataclasses.replace(PRESETS["tiny"], rows=8)
    assert Matrix(load_side=LoadSide.LEFT).unsupported(oblong) == "load_side"
