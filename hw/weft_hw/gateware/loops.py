"""Affine address generation: a loop nest that steps any number of address streams at once."""

from collections.abc import Mapping

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.instructions import COUNT_BITS

__all__ = ["LoopNest"]


class LoopNest(wiring.Component):
    """Nested loops, each stream's value being ``base + sum(index[i] * strides[i])``.

    In the cycle with ``load`` high the nest takes ``counts`` and the bases; from the next cycle on
    the values and flags belong to the first trip. Each cycle with ``advance`` high steps to the
    next trip of the innermost loop, carrying outward, one step a cycle. ``counts`` and strides must
    be held until the nest has finished; advancing beyond the last trip is not allowed.

    A stream keeps one register a loop (the value at the start of that loop's current trip), so that
    one addition a step suffices and no jump has to be computed beforehand.

    Parameters
    ----------
    loops : int
        Number of loops, outermost first.
    streams : mapping of str to int
        Width in bits of each stream's signed value.

    Members
    -------
    load, advance : In(1)
    counts : In(array of unsigned(12))
        Trips of each loop, at least 1.
    first, last : Out(loops)
        Bit i: loop i is on its first (last) trip.
    finished : Out(1)
        Every loop is on its last trip.
    NAME_base, NAME_strides, NAME : In, In, Out
        For each stream.
    """

    def __init__(self, *, loops: int, streams: Mapping[str, int]) -> None:
        if loops < 1:
            raise ValueError(f"`loops` must be a positive integer, not {loops}")
        self._loops = loops
        self._streams = dict(streams)
        members: dict[str, object] = {
            "load": In(1),
            "advance": In(1),
            "counts": In(data.ArrayLayout(COUNT_BITS, loops)),
            "first": Out(loops),
            "last": Out(loops),
            "finished": Out(1),
        }
        for name, width in self._streams.items():
            members[f"{name}_base"] = In(signed(width))
            members[f"{name}_strides"] = In(data.ArrayLayout(signed(width), loops))
            members[name] = Out(signed(width))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        loops = self._loops
        remaining = [Signal(COUNT_BITS, name=f"remaining_{i}") for i in range(loops)]
        first = Signal(loops)
        last = Signal(loops)
        steps = Signal(loops)  # one-hot: the loop that advances; all inner ones start again
        inner_last = [Signal(name=f"inner_last_{i}") for i in range(loops + 1)]
        m.d.comb += inner_last[loops].eq(1)
        for i in reversed(range(loops)):
            m.d.comb += [
                last[i].eq(remaining[i] == 0),
                inner_last[i].eq(inner_last[i + 1] & last[i]),
                steps[i].eq(inner_last[i + 1] & ~last[i]),
            ]
        m.d.comb += [self.first.eq(first), self.last.eq(last), self.finished.eq(inner_last[0])]

        with m.If(self.load):
            m.d.sync += first.eq(-1)
            for i in range(loops):
                m.d.sync += remaining[i].eq(self.counts[i] - 1)
        with m.Elif(self.advance):
            for i in range(loops):
                with m.If(steps[i]):
                    m.d.sync += [remaining[i].eq(remaining[i] - 1), first[i].eq(0)]
                with m.Elif(inner_last[i]):
                    m.d.sync += [remaining[i].eq(self.counts[i] - 1), first[i].eq(1)]

        for name, width in self._streams.items():
            base = getattr(self, f"{name}_base")
            strides = getattr(self, f"{name}_strides")
            at = [Signal(signed(width), name=f"{name}_at_{i}") for i in range(loops)]
            origin = Signal(signed(width), name=f"{name}_origin")
            stride = Signal(signed(width), name=f"{name}_stride")
            following = Signal(signed(width), name=f"{name}_following")
            for i in range(loops):
                with m.If(steps[i]):
                    m.d.comb += [origin.eq(at[i]), stride.eq(strides[i])]
            m.d.comb += following.eq(origin + stride)
            for i in range(loops):
                # Loop i restarts, or steps itself, whenever a loop at or outside it steps.
                with m.If(self.load):
                    m.d.sync += at[i].eq(base)
                with m.Elif(self.advance & (steps & ((2 << i) - 1)).any()):
                    m.d.sync += at[i].eq(following)
            m.d.comb += getattr(self, name).eq(at[loops - 1])
        return m
