"""Sliding windows of the vector engine: which trips of a dot product's window need be made."""

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.gateware.vector_layouts import (
    COORDINATE_BITS,
    LOCAL_BITS,
    WINDOW_ROWS,
    WINDOW_TAPS,
    window_layout,
)
from weft_hw.instructions import (
    COUNT_BITS,
    LOOPS_VECTOR,
    LOOPS_VECTOR_OUTER,
    STRIDE_BITS,
    Head,
    Vector,
)

__all__ = ["VectorSliding"]

OUTPUT, ROW, TAP = LOOPS_VECTOR_OUTER - 1, LOOPS_VECTOR - 2, LOOPS_VECTOR - 1
"""The loop along which windows slide, and the two of the window."""

STEP_BITS = 8  # of the coordinates


class VectorSliding(wiring.Component):
    """Lets the trips of a dot product's loop nest leave out what the window registers hold.

    The window of a dot product *slides* if, along loop 3, it moves by one or two of its own
    taps, so that neighbouring windows share elements::

        loop 5 has 3 trips, loop 4 at most WINDOW_ROWS
        strides[3] = strides[5], or twice that: of A, and of y and x if they bound it
        b_strides[3] = 0

    Its first window in a row of outputs (loop 3 at its first trip) makes every trip, A into the
    window registers and B into those of the taps. The others of the row start at the first tap
    that the window before did not have: loop 3 leaps there at its second trip, and loop 5 makes one
    or two trips instead of three. What is left out has the addresses and coordinates of a trip
    that the row has already made, so that it needs no check either::

        trips of loop 5            moved by one              moved by two
        first window               0 1 2                     0 1 2
        all others of the row          2                       1 2

    An element B counts, and has its address checked, only where its A exists; in the first window
    it is read in any case, unless its address lies outside the memory. Then the row goes on without
    its window registers: all trips are made, and each is checked.

    Every other dot product makes all its trips.

    Members
    -------
    fields : In(encoded VECTOR instruction)
    start : In(1)
        As of :class:`VectorSteps`.
    take, advance : In(1), In(1)
        The nest's trip becomes a step; another one follows.
    first, last : In(6), In(6)
        Of the nest.
    b_outside : In(1)
        The nest's address of B lies outside its memory.
    window : Out(window)
        Of the nest's trip.
    taps : Out(12)
        Trips of loop 5 in the window that follows its last one.
    a_stride, b_stride, y_stride, x_stride : Out(signed)
        Strides of loop 3.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "fields": In(instruction_layout(Vector)),
                "start": In(1),
                "take": In(1),
                "advance": In(1),
                "first": In(LOOPS_VECTOR),
                "last": In(LOOPS_VECTOR),
                "b_outside": In(1),
                "window": Out(window_layout()),
                "taps": Out(COUNT_BITS),
                "a_stride": Out(signed(LOCAL_BITS)),
                "b_stride": Out(signed(LOCAL_BITS)),
                "y_stride": Out(signed(COORDINATE_BITS)),
                "x_stride": Out(signed(COORDINATE_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fields, first, last = self.fields, self.first, self.last
        by_two = Signal()
        fits = Signal()
        slides = Signal()  # the running instruction's windows do
        twice = Signal()  # by two taps
        m.d.comb += [
            by_two.eq(~self._moves(1)),
            fits.eq(
                (fields.head == Head.DOT)
                & (fields.counts[TAP] == WINDOW_TAPS)
                & (fields.counts[ROW] <= WINDOW_ROWS)
                & (fields.b_strides[OUTPUT] == 0)
                & (~by_two | self._moves(2))
            ),
        ]
        with m.If(self.start):
            m.d.sync += [slides.eq(fits), twice.eq(by_two)]

        unheld = Signal()  # the row's taps are not all in their registers
        row = Signal(range(WINDOW_ROWS))
        window_first = first[ROW] & first[TAP]
        window_last = last[ROW] & last[TAP]
        with m.If(self.take & first[OUTPUT] & ~last[TAP]):
            m.d.sync += unheld.eq(self.b_outside | (unheld & ~window_first))
        with m.If(self.start):
            m.d.sync += row.eq(0)
        with m.Elif(self.advance & last[TAP]):
            m.d.sync += row.eq(Mux(last[ROW], 0, row + 1))
        m.d.comb += [
            self.window.slides.eq(slides & (first[OUTPUT] | ~unheld)),
            self.window.loads.eq(slides & first[OUTPUT]),
            self.window.first_tap.eq(first[TAP]),
            self.window.last_tap.eq(last[TAP]),
            self.window.row.eq(row),
        ]

        whole = Signal()  # the window that follows loop 5 is the first of its row
        m.d.comb += whole.eq(self.start | Mux(window_last, last[OUTPUT], first[OUTPUT]))
        m.d.comb += self.taps.eq(fields.counts[TAP])
        with m.If(slides & ~unheld & ~whole):
            m.d.comb += self.taps.eq(Mux(twice, 2, 1))
        self._elaborate_leap(m, slides & ~unheld & first[OUTPUT], by_two)
        return m

    def _moves(self, taps: int) -> Value:
        """Whether from one window to the next of a row A moves by that many taps."""
        fields = self.fields

        def fit(strides: Value) -> Value:
            return strides[OUTPUT] == strides[TAP] * taps

        coordinates = fit(fields.y_steps) & fit(fields.x_steps)
        return fit(fields.a_strides) & (~fields.bounded | coordinates)

    def _elaborate_leap(self, m: Module, leaps: Value, by_two: Signal) -> None:
        """Strides of loop 3: in a row's first window to the first tap that is missing."""
        fields = self.fields
        for name, strides, bits in (
            ("a", fields.a_strides, STRIDE_BITS),
            ("y", fields.y_steps, STEP_BITS),
            ("x", fields.x_steps, STEP_BITS),
        ):
            # By as many taps as it moves, and over the others.
            leap = Signal(signed(bits + 2), name=f"{name}_leap", reset_less=True)
            with m.If(self.start):
                m.d.sync += leap.eq(strides[TAP] * 2 + strides[TAP])
            m.d.comb += getattr(self, f"{name}_stride").eq(Mux(leaps, leap, strides[OUTPUT]))
        leap = Signal(signed(STRIDE_BITS + 1), name="b_leap", reset_less=True)
        taps = fields.b_strides[TAP]
        with m.If(self.start):
            m.d.sync += leap.eq(Mux(by_two, taps, taps * 2))
        m.d.comb += self.b_stride.eq(Mux(leaps, leap, fields.b_strides[OUTPUT]))
