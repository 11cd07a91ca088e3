"""Arbitration of requesters that each need one or two of several banks at once."""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["BankArbiter"]


class BankArbiter(wiring.Component):
    """Grant, each cycle, requesters whose banks do not overlap; least recently granted first.

    The requesters are in an order, kept as one bit for each pair of them. One is granted if nobody
    before it requests a bank that it needs, granted or not; those granted then go behind all the
    others. A requester gets all its banks in one cycle or none.

    The first that requests is granted whatever it needs. As nobody ever passes a requester that was
    refused, and each cycle somebody before it goes behind it, it waits for at most
    ``requesters - 1`` cycles, and none can deadlock.

    Grants are combinational, but short: no grant depends on another.

    Parameters
    ----------
    requesters : int
        How many compete.
    banks : int
        Number of banks.

    Members
    -------
    valid_I, needs_I : In(1), In(banks)
        Requester I's request and the mask of banks that it needs.
    grant_I : Out(1)
        Requester I is served in this cycle; low without a request.
    """

    def __init__(self, *, requesters: int, banks: int) -> None:
        for name, value in (("requesters", requesters), ("banks", banks)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer, not {value}")
        self._requesters = requesters
        members: dict[str, object] = {}
        for i in range(requesters):
            members[f"valid_{i}"] = In(1)
            members[f"needs_{i}"] = In(banks)
            members[f"grant_{i}"] = Out(1)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = self._requesters
        valid = [getattr(self, f"valid_{i}") for i in range(count)]
        needs = [getattr(self, f"needs_{i}") for i in range(count)]
        if count == 1:
            m.d.comb += self.grant_0.eq(self.valid_0)
            return m

        blocked: list[list[Value]] = [[] for _ in range(count)]
        for i in range(count):
            for j in range(i):
                overlap = Signal(name=f"overlap_{i}_{j}")
                later = Signal(name=f"later_{i}_{j}", init=1)  # i comes after j
                m.d.comb += overlap.eq(valid[i] & valid[j] & (needs[i] & needs[j]).any())
                blocked[i].append(overlap & later)
                blocked[j].append(overlap & ~later)
                grant_i, grant_j = getattr(self, f"grant_{i}"), getattr(self, f"grant_{j}")
                with m.If(grant_i != grant_j):
                    m.d.sync += later.eq(grant_i)
        for i in range(count):
            m.d.comb += getattr(self, f"grant_{i}").eq(valid[i] & ~reduce(or_, blocked[i]))
        return m
