"""Choosing one of several values, by one-hot bits or by number."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_

from amaranth.hdl import Const, Mux, Value

__all__ = ["numbered", "selected"]


def selected(one_hot: Iterable[Value], values: Iterable[Value]) -> Value:
    """The value whose bit is set, 0 if none is; shorter than a chain, which knows priorities."""
    return reduce(or_, (Mux(bit, value, 0) for bit, value in zip(one_hot, values)), Const(0, 1))


def numbered(number: Value, values: Sequence[Value]) -> Value:
    """The value of that number, as a tree of choices between two: half the look-up tables of
    comparing the number with each.
    """
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    high = numbered(number[: (len(values) - half - 1).bit_length()], values[half:])
    return Mux(number[half.bit_length() - 1], high, numbered(number, values[:half]))
