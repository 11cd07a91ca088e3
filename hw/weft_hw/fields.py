"""Bit fields declared once on a dataclass; packing, unpacking and layouts are derived from them."""

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

from weft_hw.errors import EncodingError

__all__ = ["BitField", "bit_fields", "bits", "pack", "unpack"]


@dataclass(frozen=True)
class BitField:
    """One declared field of a packed record.

    Parameters
    ----------
    name : str
    offset : int
        Position of the lowest bit of element 0; derived from the order of declaration.
    width : int
        Bits of one element.
    length : int
        Elements; 0 for a plain (non-array) field.
    signed : bool
        Two's complement.
    kind : type of enum.IntEnum or None
        The named values, if the field is an enumeration.
    supported : tuple of int or None
        The values that the machine executes; None for all. Others encode to a fault.
    doc : str
    """

    name: str
    offset: int
    width: int
    length: int
    signed: bool
    kind: type[enum.IntEnum] | None
    supported: tuple[int, ...] | None
    doc: str

    @property
    def total_width(self) -> int:
        """Bits of all elements."""
        return self.width * max(self.length, 1)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an element."""
        if self.signed:
            return -(1 << (self.width - 1)), (1 << (self.width - 1)) - 1
        return 0, (1 << self.width) - 1


def bits(
    width: int,
    doc: str,
    *,
    length: int = 0,
    signed: bool = False,
    kind: type[enum.IntEnum] | None = None,
    supported: tuple[int, ...] | None = None,
    default: Any = 0,
) -> Any:
    """Declare a bit field of a dataclass; fields lie in order of declaration, lowest bit first."""
    values: Any
    if length:
        values = default if isinstance(default, tuple) else (default,) * length
    else:
        values = default if kind is None else kind(default)
    metadata = {
        "width": width,
        "length": length,
        "signed": signed,
        "kind": kind,
        "supported": supported,
        "doc": doc,
    }
    return dataclasses.field(default=values, metadata=metadata)


_declared: dict[tuple[type[Any], int], tuple[BitField, ...]] = {}


def bit_fields(record: type[Any], start: int = 0) -> tuple[BitField, ...]:
    """The declared bit fields of a dataclass from bit ``start`` upward; computed once a class."""
    known = _declared.get((record, start))
    if known is not None:
        return known
    fields: list[BitField] = []
    offset = start
    for field in dataclasses.fields(record):
        if "width" not in field.metadata:
            continue
        fields.append(BitField(name=field.name, offset=offset, **field.metadata))
        offset += fields[-1].total_width
    _declared[record, start] = tuple(fields)
    return tuple(fields)


def pack(record: Any, start: int = 0) -> int:
    """The fields of a record as one integer.

    Raises
    ------
    EncodingError
        If a value does not fit its field or an array has the wrong number of elements.
    """
    packed = 0
    owner = type(record).__name__
    for field in bit_fields(type(record), start):
        value = getattr(record, field.name)
        elements = tuple(value) if field.length else (value,)
        if field.length and len(elements) != field.length:
            raise EncodingError(
                f"{owner}.{field.name} must have {field.length} elements, not {len(elements)}"
            )
        low, high = field.limits
        for position, element in enumerate(elements):
            if not low <= element <= high:
                where = f"{field.name}[{position}]" if field.length else field.name
                raise EncodingError(
                    f"{owner}.{where} must be from {low} to {high}, not {int(element)}"
                )
            mask = (1 << field.width) - 1
            packed |= (int(element) & mask) << (field.offset + position * field.width)
    return packed


def unpack(record_type: type[Any], packed: int, start: int = 0) -> Any:
    """The record whose fields :func:`pack` packed into this integer."""
    values: dict[str, Any] = {}
    for field in bit_fields(record_type, start):
        elements = []
        for position in range(max(field.length, 1)):
            raw = packed >> (field.offset + position * field.width) & ((1 << field.width) - 1)
            if field.signed and raw >> (field.width - 1):
                raw -= 1 << field.width
            elements.append(raw)
        if field.length:
            values[field.name] = tuple(elements)
        else:
            value = elements[0]
            known = field.kind is not None and value in set(field.kind)
            values[field.name] = field.kind(value) if field.kind and known else value
    return record_type(**values)
