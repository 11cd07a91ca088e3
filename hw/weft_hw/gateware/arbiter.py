"""Round-robin arbitration of requesters that each need one or two of several banks at once."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["BankArbiter"]


class BankArbiter(wiring.Component):
    """Grant, each cycle, requesters whose banks do not overlap.

    The requester that the pointer names comes first, the others follow in cyclic order; each is
    granted if no earlier one was granted a bank that it needs. A requester gets all its banks in
    one cycle or none.

    One pointer serves all banks and moves to the first requester that was refused: that one is
    granted in the next cycle, whatever it needs. As the pointer never passes over a refused
    requester, each one waits for at most ``requesters - 1`` cycles, and none can deadlock.

    Grants are combinational.

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

        # overlap[i][j], j < i: both request, and some bank is needed by both.
        overlap = [
            [Signal(name=f"overlap_{max(i, j)}_{min(i, j)}") for j in range(i)]
            for i in range(count)
        ]
        for i in range(count):
            for j in range(i):
                m.d.comb += overlap[i][j].eq(valid[i] & valid[j] & (needs[i] & needs[j]).any())

        pointer = Signal(range(count))
        with m.Switch(pointer):
            for top in range(count):
                with m.Case(top):
                    order = [(top + step) % count for step in range(count)]
                    # Signals of their own for each value of the pointer: a chain through grant_I
                    # itself would be a combinational loop, if never a closed one.
                    granted = {i: Signal(name=f"granted_{top}_{i}") for i in order}
                    for position, i in enumerate(order):
                        blocked = 0
                        for j in order[:position]:
                            blocked = blocked | (granted[j] & overlap[max(i, j)][min(i, j)])
                        m.d.comb += granted[i].eq(valid[i] & ~blocked)
                        m.d.comb += getattr(self, f"grant_{i}").eq(granted[i])
                    for i in reversed(order):  # the last assignment, of the first refused, wins
                        with m.If(valid[i] & ~granted[i]):
                            m.d.sync += pointer.eq(i)
        return m
