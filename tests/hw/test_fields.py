"""Packing of declared fields against slicing by hand."""

import enum
import random
from dataclasses import dataclass

import pytest

from weft_hw.errors import EncodingError
from weft_hw.fields import bit_fields, bits, pack, unpack


class Colour(enum.IntEnum):
    RED = 0
    GREEN = 1
    BLUE = 2


@dataclass(frozen=True, kw_only=True)
class Record:
    flag: int = bits(1, "One bit.")
    level: int = bits(7, "Signed.", signed=True)
    colour: Colour = bits(2, "Named.", kind=Colour, supported=(0, 1))
    steps: tuple[int, ...] = bits(5, "Signed array.", length=3, signed=True)
    wide: int = bits(40, "Wide.", default=9)
    note: str = "not a field of bits"


def test_offsets_follow_the_order_of_declaration() -> None:
    fields = {field.name: field for field in bit_fields(Record, 8)}
    places = {name: (field.offset, field.total_width) for name, field in fields.items()}
    assert places == {
        "flag": (8, 1),
        "level": (9, 7),
        "colour": (16, 2),
        "steps": (18, 15),
        "wide": (33, 40),
    }
    assert fields["level"].limits == (-64, 63)
    assert fields["wide"].limits == (0, (1 << 40) - 1)
    assert Record().colour is Colour.RED
    assert Record().steps == (0, 0, 0)
    assert Record().wide == 9


@pytest.mark.parametrize("case", range(50))
def test_packed_bits_are_where_they_belong(case: int, seed: int) -> None:
    rng = random.Random(f"{seed} {case}")

    def pick(low: int, high: int) -> int:
        return rng.choice([low, high, rng.randint(low, high)])

    record = Record(
        flag=pick(0, 1),
        level=pick(-64, 63),
        colour=rng.choice(list(Colour)),
        steps=tuple(pick(-16, 15) for _ in range(3)),
        wide=pick(0, (1 << 40) - 1),
    )
    packed = pack(record, 8)
    text = f"{packed:073b}"[::-1]  # character i is bit i

    def unsigned(low: int, width: int) -> int:
        return int(text[low : low + width][::-1], 2)

    assert unsigned(0, 8) == 0
    assert unsigned(8, 1) == record.flag
    assert unsigned(9, 7) == record.level % 128
    assert unsigned(16, 2) == record.colour
    assert [unsigned(18 + 5 * i, 5) for i in range(3)] == [step % 32 for step in record.steps]
    assert unsigned(33, 40) == record.wide
    assert packed < 1 << 73
    restored = unpack(Record, packed, 8)
    assert restored == record
    assert isinstance(restored.colour, Colour)


def test_value_without_a_name_is_kept_as_a_number() -> None:
    assert unpack(Record, 3 << 8).colour == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flag": 2}, "Record.flag must be from 0 to 1, not 2"),
        ({"level": -65}, "Record.level must be from -64 to 63, not -65"),
        ({"level": 64}, "Record.level must be from -64 to 63, not 64"),
        ({"steps": (0, 16, 0)}, r"Record.steps\[1\] must be from -16 to 15, not 16"),
        ({"steps": (0, 0)}, "Record.steps must have 3 elements, not 2"),
        ({"wide": -1}, "Record.wide must be from 0 to 1099511627775, not -1"),
    ],
)
def test_values_that_do_not_fit_are_named(values: dict, message: str) -> None:
    with pytest.raises(EncodingError, match=f"^{message}$"):
        pack(Record(**values))
