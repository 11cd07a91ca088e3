"""Counting semaphores: the only thing that orders the four instruction queues."""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import SEMAPHORE_BITS, Queue

__all__ = ["Semaphores"]


class Semaphores(wiring.Component):
    """``config.semaphores`` counters that four queues decrement and increment::

        count' = count - (a granted queue waits for it) + (queues that signal it)

    A request is granted, in the same cycle, if every semaphore in its mask is above zero; they are
    all decremented in the next one, in which nobody is granted them. Where two queues ask for one
    semaphore in the same cycle, the lower one is
    served, or waits and the other one with it. An empty mask is always granted.
    Any number of counters may change in a cycle.

    A count that would exceed its largest value, before what is granted in the same cycle is taken
    from it, stays there and ``overflow`` is high in the next cycle.
    Semaphores that a mask can name but the configuration does not have count to zero: a wait for
    one is never granted, and a signal to one overflows.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    clear : In(1)
        All counts become zero.
    request, mask, grant : In(1), In(16), Out(1), arrays by queue
    signal : In(16), array by queue
        Mask of the semaphores that the queue increments in this cycle.
    overflow, overflow_queue : Out(1), Out(2)
        The lowest queue that signalled a semaphore which overflowed.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        queues = len(Queue)
        super().__init__(
            {
                "clear": In(1),
                "request": In(1).array(queues),
                "mask": In(SEMAPHORE_BITS).array(queues),
                "grant": Out(1).array(queues),
                "signal": In(SEMAPHORE_BITS).array(queues),
                "overflow": Out(1),
                "overflow_queue": Out(range(queues)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        queues = range(len(Queue))
        existing = self._config.semaphores
        largest = (1 << self._config.semaphore_bits) - 1
        counts = [
            Signal(self._config.semaphore_bits, name=f"count_{number}")
            for number in range(existing)
        ]
        # Above zero whatever is taken in this cycle. Those that do not exist stay 0.
        positive = Signal(SEMAPHORE_BITS)
        taken = Signal(SEMAPHORE_BITS)  # granted in the cycle before
        available = Signal(SEMAPHORE_BITS)
        m.d.comb += available.eq(positive & ~taken)

        grants = [Signal(name=f"granted_{queue}") for queue in queues]
        for queue in queues:
            contested = [
                self.request[lower] & (self.mask[lower] & self.mask[queue]).any()
                for lower in queues
                if lower < queue
            ]
            m.d.comb += [
                grants[queue].eq(
                    self.request[queue]
                    & ~(self.mask[queue] & ~available).any()
                    & ~reduce(or_, contested, 0)
                ),
                self.grant[queue].eq(grants[queue]),
            ]

        overflows = Signal(SEMAPHORE_BITS)
        for number, count in enumerate(counts):
            total = Signal(len(count) + 2, name=f"total_{number}")  # at most four signal at once
            consumed = reduce(or_, (grants[q] & self.mask[q][number] for q in queues))
            signalled = reduce(or_, (self.signal[q][number] for q in queues))
            m.d.sync += [
                taken[number].eq(consumed),
                positive[number].eq(count[1:].any() | (count[0] & ~taken[number]) | signalled),
            ]
            m.d.comb += [
                # Granted only if the count is above zero, so that the difference is never negative.
                total.eq(count + (sum(self.signal[q][number] for q in queues) - taken[number])),
                overflows[number].eq(total > largest),
            ]
            m.d.sync += count.eq(Mux(overflows[number], largest, total))
            with m.If(self.clear):
                m.d.sync += [count.eq(0), taken[number].eq(0), positive[number].eq(0)]
        for number in range(existing, SEMAPHORE_BITS):
            m.d.comb += overflows[number].eq(reduce(or_, (self.signal[q][number] for q in queues)))

        overflowed = Signal(SEMAPHORE_BITS)
        signalled_before = [
            Signal(SEMAPHORE_BITS, name=f"signalled_{queue}", reset_less=True) for queue in queues
        ]
        m.d.sync += overflowed.eq(overflows)
        m.d.sync += [before.eq(mask) for before, mask in zip(signalled_before, self.signal)]
        m.d.comb += self.overflow.eq(overflowed.any())
        for queue in reversed(queues):  # the last assignment, of the lowest queue, wins
            with m.If((overflowed & signalled_before[queue]).any()):
                m.d.comb += self.overflow_queue.eq(queue)
        return m
