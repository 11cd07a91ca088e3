"""Sliding windows of the vector engine: which trips of a dot product's window need be made."""

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.gateware.vector_layouts import WINDOW_ROWS, WINDOW_TAPS, window_layout
from weft_hw.instructions import (
    LOOPS_VECTOR,
    LOOPS_VECTOR_OUTER,
    STRIDE_BITS,
    Head,
    Vector,
)

__all__ = ["LEAPING", "OVERLAP", "VectorSliding"]

OVERLAP, ROW, TAP = LOOPS_VECTOR_OUTER - 1, LOOPS_VECTOR - 2, LOOPS_VECTOR - 1
"""The loop along which windows slide, and the two of the window."""

STEP_BITS = 8  # of the coordinates
LEAPING = {"a": STRIDE_BITS + 2, "b": STRIDE_BITS + 1, "y": STEP_BITS + 2, "x": STEP_BITS + 2}
"""Streams that leap, with the width of their leaps."""


class VectorSliding(wiring.Component):
    """Tells the loop nest of a dot product which trips to leave out: those whose elements the
    window registers hold.

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

    Every other dot product makes all its trips.

    Members
    -------
    fields : In(encoded VECTOR instruction)
    start : In(1)
        As of :class:`VectorSteps`.
    advance : In(1)
        The nest goes on to its next trip.
    first, last : In(6), In(6)
        Of the nest.
    window : Out(window)
        Of the nest's trip.
    overlaps, short_count : Out(1), Out(2)
    a_leap, b_leap, y_leap, x_leap : Out(signed)
        As of :class:`weft_hw.gateware.loops.LoopNest`; valid from the cycle after ``start``.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "fields": In(instruction_layout(Vector)),
                "start": In(1),
                "advance": In(1),
                "first": In(LOOPS_VECTOR),
                "last": In(LOOPS_VECTOR),
                "window": Out(window_layout()),
                "overlaps": Out(1),
                "short_count": Out(2),
                **{f"{name}_leap": Out(signed(width)) for name, width in LEAPING.items()},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fields, first, last = self.fields, self.first, self.last
        by_two = Signal()
        fits = Signal()
        twice = Signal()  # the running instruction's windows move by two taps
        m.d.comb += [
            by_two.eq(~self._moves(1)),
            fits.eq(
                (fields.head == Head.DOT)
                & (fields.counts[TAP] == WINDOW_TAPS)
                & (fields.counts[ROW] <= WINDOW_ROWS)
                & (fields.b_strides[OVERLAP] == 0)
                & (~by_two | self._moves(2))
            ),
            self.short_count.eq(Mux(twice, 2, 1)),
        ]
        row = Signal(range(WINDOW_ROWS))
        with m.If(self.start):
            m.d.sync += [self.overlaps.eq(fits), twice.eq(by_two), row.eq(0)]
            # A moves by as many taps as the window does, and over those that are not new.
            m.d.sync += [
                self.a_leap.eq(_three_times(fields.a_strides[TAP])),
                self.y_leap.eq(_three_times(fields.y_steps[TAP])),
                self.x_leap.eq(_three_times(fields.x_steps[TAP])),
                self.b_leap.eq(Mux(by_two, fields.b_strides[TAP], fields.b_strides[TAP] << 1)),
            ]
        with m.Elif(self.advance & last[TAP]):
            m.d.sync += row.eq(Mux(last[ROW], 0, row + 1))
        m.d.comb += [
            self.window.slides.eq(self.overlaps),
            self.window.loads.eq(self.overlaps & first[OVERLAP]),
            self.window.first_tap.eq(first[TAP]),
            self.window.last_tap.eq(last[TAP]),
            self.window.row.eq(row),
        ]
        return m

    def _moves(self, taps: int) -> Value:
        """Whether from one window to the next of a row A moves by that many taps."""
        fields = self.fields

        def fit(strides: Value) -> Value:
            return strides[OVERLAP] == strides[TAP] * taps

        coordinates = fit(fields.y_steps) & fit(fields.x_steps)
        return fit(fields.a_strides) & (~fields.bounded | coordinates)


def _three_times(value: Value) -> Value:
    return (value << 1) + value
