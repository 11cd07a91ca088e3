"""Choosing one of several values by one-hot bits."""

from collections.abc import Iterable
from functools import reduce
from operator import or_

from amaranth.hdl import Const, Mux, Value

__all__ = ["selected"]


def selected(one_hot: Iterable[Value], values: Iterable[Value]) -> Value:
    """The value whose bit is set, 0 if none is; shorter than a chain, which knows priorities."""
    return reduce(or_, (Mux(bit, value, 0) for bit, value in zip(one_hot, values)), Const(0, 1))
