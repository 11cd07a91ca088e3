"""Checks of an instruction's fields that every engine makes, derived from their declarations."""

from functools import reduce
from operator import or_

from amaranth.hdl import Const, Module, Signal, Value
from amaranth.lib import data

from weft_hw.fields import BitField
from weft_hw.instructions import Instruction

__all__ = ["unsupported_field", "zero_count"]


def _elements(field: BitField, view: data.View) -> list[Value]:
    member = view[field.name]
    return [member[i] for i in range(field.length)] if field.length else [member]


def _field_unsupported(field: BitField, view: data.View) -> Value:
    if field.supported == (0,):  # the common case, as one comparison for a whole array
        return Value.cast(view[field.name]).any()
    mismatches = []
    for element in _elements(field, view):
        matches = [element == value for value in field.supported or ()]
        mismatches.append(~reduce(or_, matches, Const(0, 1)))
    return reduce(or_, mismatches)


def unsupported_field(m: Module | None, kind: type[Instruction], view: data.View) -> Value:
    """One bit: a field holds a value that its declaration does not list as ``supported``.

    Parameters
    ----------
    m : Module or None
        Where to place a named signal for the result; without it the result is an expression, which
        each use emits again.
    kind : type of Instruction
    view : View
        The fields, in the layout of :func:`weft_hw.gateware.interfaces.instruction_layout`.
    """
    checked = [field for field in kind.bit_fields() if field.supported is not None]
    value = reduce(or_, (_field_unsupported(field, view) for field in checked), Const(0, 1))
    if m is None:
        return value
    named = Signal(name="unsupported_field")
    m.d.comb += named.eq(value)
    return named


def zero_count(kind: type[Instruction], view: data.View) -> Value:
    """One bit: a loop count, or the length of a transfer's runs, is zero."""
    counted = [field for field in kind.bit_fields() if field.name in ("counts", "run_bytes")]
    elements = [element for field in counted for element in _elements(field, view)]
    return reduce(or_, (element == 0 for element in elements), Const(0, 1))
