"""Affine address generation: a loop nest that steps any number of address streams at once."""

from collections.abc import Collection, Mapping

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.gateware.choice import selected
from weft_hw.instructions import COUNT_BITS

__all__ = ["LoopNest"]


class LoopNest(wiring.Component):
    """Nested loops, each stream's value being ``base + sum(index[i] * strides[i])``.

    In the cycle with ``load`` high the nest takes ``counts`` and the bases. From the second cycle
    after it ``ready`` is high, and the values and flags belong to the first trip. Each cycle with
    ``advance`` high steps to the next trip of the innermost loop, carrying outward, one step a
    cycle. ``counts`` and strides must be valid from the cycle after ``load`` until the nest has
    finished. Advancing while not ``ready`` is not allowed; beyond the last trip, values and flags
    mean nothing until ``load``.

    A stream keeps one register a loop (the value at the start of that loop's current trip), so that
    one addition a step suffices and no jump has to be computed beforehand. The counters are one
    trip ahead of the values: while a trip is shown, the stride and the origin of the step that
    leads to the next one lie in registers already::

        counters of trip n + 1 | origin and stride of the step from n to n + 1 | value of trip n

    An origin that the step before it changes is that step's result.

    Where windows overlap, trips can be left out: of loop ``overlap``, every trip but the first one
    makes only ``short_count`` trips of the innermost loop, and the step to its second trip adds
    ``NAME_leap`` instead of its stride.

    Parameters
    ----------
    loops : int
        Number of loops, outermost first.
    streams : mapping of str to int
        Width in bits of each stream's signed value.
    overlap : int or None
        The loop whose trips overlap, not the innermost; None for no such members.
    leaping : collection of str
        Streams that have a leap.
    handover : bool
        In the cycle with ``load`` the counts come from elsewhere than later.
    prepared : bool
        With ``handover``: what comes with ``load`` has been there in the cycle before it, too, so
        that what is compared with counts is in registers when ``load`` arrives, which may be late.

    Members
    -------
    load, advance : In(1)
    counts : In(array of unsigned(12))
        Trips of each loop, at least 1.
    ready : Out(1)
        The values and flags are valid; they are registers.
    first, last : Out(loops)
        Bit i: loop i is on its first (last) trip.
    finished : Out(1)
        Every loop is on its last trip.
    NAME_base, NAME_strides, NAME : In, In, Out
        For each stream.
    overlaps, short_count : In(1), In(unsigned(12))
        Whether trips are left out; valid as strides are.
    NAME_leap : In
        For each leaping stream.
    first_counts : In(array of unsigned(12))
        With ``handover``: instead of ``counts`` in the cycle with ``load``. One choice the less
        between ``load`` and the registers that look ahead. With ``prepared``: in the cycle before
        it as well.
    """

    def __init__(
        self,
        *,
        loops: int,
        streams: Mapping[str, int],
        overlap: int | None = None,
        leaping: Collection[str] = (),
        handover: bool = False,
        prepared: bool = False,
    ) -> None:
        if loops < 1:
            raise ValueError(f"`loops` must be a positive integer, not {loops}")
        if overlap is not None and not 0 <= overlap < loops - 1:
            raise ValueError(f"`overlap` must be from 0 to {loops - 2}, not {overlap}")
        if prepared and not handover:
            raise ValueError("`prepared` counts need `handover`")
        self._loops = loops
        self._streams = dict(streams)
        self._overlap = overlap
        self._leaping = frozenset(leaping)
        self._handover = handover
        self._prepared = prepared
        members: dict[str, object] = {
            "load": In(1),
            "advance": In(1),
            "counts": In(data.ArrayLayout(COUNT_BITS, loops)),
            "ready": Out(1),
            "first": Out(loops),
            "last": Out(loops),
            "finished": Out(1),
        }
        for name, width in self._streams.items():
            members[f"{name}_base"] = In(signed(width))
            members[f"{name}_strides"] = In(data.ArrayLayout(signed(width), loops))
            members[name] = Out(signed(width))
        if overlap is not None:
            members |= {"overlaps": In(1), "short_count": In(COUNT_BITS)}
            members |= {f"{name}_leap": In(signed(streams[name])) for name in leaping}
        if handover:
            members["first_counts"] = In(data.ArrayLayout(COUNT_BITS, loops))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        loops = range(self._loops)
        loaded = Signal()
        moves = Signal()  # the counters go on to the next trip
        m.d.comb += moves.eq(loaded | self.advance)
        m.d.sync += loaded.eq(self.load)
        with m.If(self.load):
            m.d.sync += self.ready.eq(0)
        with m.Elif(loaded):
            m.d.sync += self.ready.eq(1)

        # The trip after the one that is shown: trips left of each loop, this one included.
        remaining = [Signal(COUNT_BITS, name=f"remaining_{i}") for i in loops]
        first = Signal(self._loops, name="first_ahead")
        last = Signal(self._loops, name="last_ahead")
        nearly = Signal(self._loops, name="nearly_ahead")  # two trips are left
        single = Signal(self._loops)  # counts of one
        double = Signal(self._loops)
        # Bit i: loop i and all inside it are on their last trip. Bit i: loop i steps next.
        inner_last = Signal(self._loops + 1)
        steps = Signal(self._loops)
        shortened = Signal()  # the innermost loop, when it starts again
        if self._overlap is not None:
            inside = inner_last[self._overlap + 1]  # that loop steps, or one around it
            later = Mux(inside, ~last[self._overlap], ~first[self._overlap])
            m.d.comb += shortened.eq(self.overlaps & later)
        loads = self.first_counts if self._handover else self.counts
        ones, twos = Signal(self._loops), Signal(self._loops)  # of the counts that are loaded
        domain = m.d.sync if self._prepared else m.d.comb
        domain += [ones[i].eq(loads[i] == 1) for i in loops]
        domain += [twos[i].eq(loads[i] == 2) for i in loops]
        for i in loops:
            with m.If(self.load):
                m.d.sync += [remaining[i].eq(loads[i]), first[i].eq(1)]
                m.d.sync += [single[i].eq(ones[i]), double[i].eq(twos[i]), nearly[i].eq(twos[i])]
            with m.Elif(moves & inner_last[i]):
                m.d.sync += remaining[i].eq(self.counts[i])
                m.d.sync += [nearly[i].eq(double[i]), first[i].eq(1)]
                if self._overlap is not None and i == loops[-1]:
                    with m.If(shortened):
                        m.d.sync += remaining[i].eq(self.short_count)
                        m.d.sync += nearly[i].eq(self.short_count == 2)
            with m.Elif(moves & inner_last[i + 1]):
                m.d.sync += [remaining[i].eq(remaining[i] - 1), first[i].eq(0)]
                m.d.sync += nearly[i].eq(remaining[i] == 3)
        last_follows = Signal(self._loops)
        restarts: list[Value] = list(single)
        if self._overlap is not None:
            restarts[-1] = Mux(shortened, self.short_count == 1, single[-1])
        for i in loops:
            m.d.comb += last_follows[i].eq(
                Mux(inner_last[i], restarts[i], Mux(inner_last[i + 1], nearly[i], last[i]))
            )
        with m.If(self.load):
            m.d.sync += last.eq(ones)
        with m.Elif(moves):
            m.d.sync += last.eq(last_follows)
        for register, ahead in ((inner_last, self._inner_last), (steps, self._steps)):
            loaded_first = Signal.like(register, name=f"first_{register.name}")
            loads_ones = Cat(value == 1 for value in loads)
            domain += loaded_first.eq(ahead(loads_ones))
            with m.If(self.load):
                m.d.sync += register.eq(loaded_first)
            with m.Elif(moves):
                m.d.sync += register.eq(ahead(last_follows))

        # The step that leads to it: where it starts, and what it changes.
        changes = Signal(self._loops)
        from_value = Signal()  # the origin is what the step before it has changed
        with m.If(moves):
            m.d.sync += [
                self.first.eq(first),
                self.last.eq(last),
                self.finished.eq(inner_last[0]),
                changes.eq(inner_last[1:]),
                from_value.eq(steps[-1] | (steps & changes).any()),
            ]
        for name, width in self._streams.items():
            strides = list(getattr(self, f"{name}_strides"))
            if self._overlap is not None and name in self._leaping:
                leaps = self.overlaps & first[self._overlap]
                leap = getattr(self, f"{name}_leap")
                strides[self._overlap] = Mux(leaps, leap, strides[self._overlap])
            self._elaborate_stream(m, name, width, strides, moves, steps, changes, from_value)
        return m

    def _inner_last(self, last: Value) -> Value:
        """Of a trip's last flags: bit i for loop i and all inside it; one bit more for none."""
        return Cat(*(last[i:].all() for i in range(self._loops)), Const(1))

    def _steps(self, last: Value) -> Value:
        """Of a trip's last flags: which loop steps at its end."""
        return Cat(~last[i] & last[i + 1 :].all() for i in range(self._loops))

    def _elaborate_stream(
        self,
        m: Module,
        name: str,
        width: int,
        strides: list[Value],
        moves: Signal,
        steps: Signal,
        changes: Signal,
        from_value: Signal,
    ) -> None:
        base = getattr(self, f"{name}_base")
        at = [Signal(signed(width), name=f"{name}_at_{i}") for i in range(self._loops)]
        origin = Signal(signed(width), name=f"{name}_origin", reset_less=True)
        stride = Signal(signed(width), name=f"{name}_stride", reset_less=True)
        following = Signal(signed(width), name=f"{name}_following")
        value = at[-1]
        with m.If(moves):
            m.d.sync += [
                origin.eq(selected(steps, at[:-1])),  # the innermost loop's is the value
                stride.eq(selected(steps, strides)),
            ]
        m.d.comb += following.eq(Mux(from_value, value, origin) + stride)
        for i in range(self._loops):
            with m.If(self.load):
                m.d.sync += at[i].eq(base)
            with m.Elif(self.advance & changes[i]):
                m.d.sync += at[i].eq(following)
        m.d.comb += getattr(self, name).eq(value)
