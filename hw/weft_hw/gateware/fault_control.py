"""Faults: the first one is latched, the machine is brought to rest, then the interrupt comes."""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.gateware.interfaces import FaultReport
from weft_hw.instructions import DRAM_BITS, Queue
from weft_hw.registers import DISPATCH_QUEUE, FaultCause

__all__ = ["SETTLE_CYCLES", "FaultControl"]

SETTLE_CYCLES = 4
"""Consecutive cycles without bursts that count as a quiet bus: a request may be on its way."""

SOURCES = len(Queue) + 1  # the engines and dispatch


class State(enum.Enum, shape=2):
    """How far the machine has come to rest."""

    RUNNING = 0
    DRAINING = 1
    HALTED = 2


class FaultControl(wiring.Component):
    """Latches the first fault, stops the machine, and waits until the bus is quiet.

    Of several faults in one cycle, the engines' come first in order of queues, then dispatch's,
    then a semaphore's overflow, then the watchdog's. Every cause that is ever reported sets its bit
    of ``sticky``. From the cycle after the first fault (or ``abort``, which has no cause) ``stop``
    is high. ``halted`` follows once no burst has been outstanding for ``SETTLE_CYCLES`` cycles, and
    stays high until reset.

    The watchdog counts cycles of a running program without progress. When they reach ``limit``
    (0: never) it reports BUS_HUNG if bursts are outstanding, naming the first queue that has some
    and its oldest instruction, else WATCHDOG, naming the first queue whose head waits. A bus
    that lets nothing through for as long while it drains sets BUS_HUNG's sticky bit and ``halted``.

    Members
    -------
    reports : In(FaultReport), array: engines by queue, then dispatch
    overflow, overflow_queue : In(FaultReport), In(2)
    running : In(1)
        A program runs.
    progress : In(1)
        An instruction started or retired, or an engine advanced.
    bus_progress : In(1)
        A transfer on any bus channel.
    bus_busy : In(5)
        Bursts are outstanding: engines by queue, then fetch.
    busy, waiting : In(4)
        By queue: an instruction is in the engine; the head waits for a semaphore.
    head_offset, oldest_offset : In(32), arrays by queue
    abort : In(1)
        Come to rest without a fault.
    limit : In(32)
    cause, sticky, queue, instruction, address : Out
        Of the first fault.
    stop, faulted, halted : Out(1)
    """

    def __init__(self) -> None:
        queues = len(Queue)
        super().__init__(
            {
                "reports": In(FaultReport()).array(SOURCES),
                "overflow": In(FaultReport()),
                "overflow_queue": In(range(queues)),
                "running": In(1),
                "progress": In(1),
                "bus_progress": In(1),
                "bus_busy": In(SOURCES),
                "busy": In(queues),
                "waiting": In(queues),
                "head_offset": In(32).array(queues),
                "oldest_offset": In(32).array(queues),
                "abort": In(1),
                "limit": In(32),
                "cause": Out(FaultCause),
                "sticky": Out(32),
                "queue": Out(range(SOURCES)),
                "instruction": Out(32),
                "address": Out(DRAM_BITS),
                "stop": Out(1),
                "faulted": Out(1),
                "halted": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        state = Signal(State)
        # In registers, as every other report comes: whom to blame is a long choice.
        expired = self._watch(m, state)
        watchdog = FaultReport().create()
        watchdog_queue = Signal(range(SOURCES))
        hung_in_drain = Signal()
        m.d.sync += [
            watchdog.valid.eq(expired & (state == State.RUNNING)),
            hung_in_drain.eq(expired & (state == State.DRAINING) & self.bus_busy.any()),
        ]
        self._blame(m, watchdog, watchdog_queue)

        # Lowest priority first: the last assignment wins.
        sources = [
            *((self.reports[i], i) for i in range(SOURCES)),
            (self.overflow, self.overflow_queue),
            (watchdog, watchdog_queue),
        ]
        first_cause = Signal(FaultCause)
        first_queue = Signal(range(SOURCES))
        first_instruction = Signal(32)
        first_address = Signal(DRAM_BITS)
        for report, queue in reversed(sources):
            with m.If(report.valid):
                m.d.comb += [
                    first_cause.eq(report.cause),
                    first_queue.eq(queue),
                    first_instruction.eq(report.instruction),
                    first_address.eq(report.address),
                ]
        raised = [Signal(FaultCause, name=f"raised_{i}") for i in range(len(sources))]
        for signal, (report, _) in zip(raised, sources):
            m.d.comb += signal.eq(Mux(report.valid, report.cause, FaultCause.NONE))
        any_report = Signal()
        m.d.comb += any_report.eq(reduce(or_, (report.valid for report, _ in sources)))

        for cause in FaultCause:
            if cause is FaultCause.NONE:
                continue
            seen = reduce(or_, (signal == cause for signal in raised))
            if cause is FaultCause.BUS_HUNG:
                seen = seen | hung_in_drain
            with m.If(seen):
                m.d.sync += self.sticky[cause].eq(1)
        with m.If(any_report & ~self.faulted):
            m.d.sync += [
                self.faulted.eq(1),
                self.cause.eq(first_cause),
                self.queue.eq(first_queue),
                self.instruction.eq(first_instruction),
                self.address.eq(first_address),
            ]

        settling = Signal(range(SETTLE_CYCLES))
        m.d.comb += self.halted.eq(state == State.HALTED)
        with m.Switch(state):
            with m.Case(State.RUNNING):
                m.d.sync += settling.eq(0)
                with m.If(any_report | self.abort):
                    # A register of its own: every engine asks for it late in its cycle.
                    m.d.sync += [state.eq(State.DRAINING), self.stop.eq(1)]
            with m.Case(State.DRAINING):
                with m.If(self.bus_busy.any()):
                    m.d.sync += settling.eq(0)
                with m.Elif(settling == SETTLE_CYCLES - 1):
                    m.d.sync += state.eq(State.HALTED)
                with m.Else():
                    m.d.sync += settling.eq(settling + 1)
                # The watchdog's limit has passed before, if that is the fault.
                with m.If(hung_in_drain | (self.cause == FaultCause.BUS_HUNG)):
                    m.d.sync += state.eq(State.HALTED)
        return m

    def _watch(self, m: Module, state: Signal) -> Signal:
        """One bit: as many cycles as the limit have passed without progress."""
        idle_cycles = Signal(32)
        expired = Signal()
        moved = Signal()
        m.d.comb += [
            moved.eq(
                self.bus_progress
                | (self.progress & (state == State.RUNNING))
                | ~(self.running | self.stop)
            ),
            expired.eq(~moved & (self.limit != 0) & (idle_cycles >= self.limit)),
        ]
        with m.If(moved | expired):
            m.d.sync += idle_cycles.eq(0)
        with m.Else():
            m.d.sync += idle_cycles.eq(idle_cycles + 1)
        return expired

    def _blame(self, m: Module, report: FaultReport, queue: Signal) -> None:
        """Registers of the watchdog's report: cause, queue and instruction."""
        bus_busy = self.bus_busy.any()
        m.d.sync += [
            report.cause.eq(Mux(bus_busy, FaultCause.BUS_HUNG, FaultCause.WATCHDOG)),
            queue.eq(DISPATCH_QUEUE),
            report.instruction.eq(0),
        ]
        # Lowest priority first: the last assignment wins. An engine that neither waits nor has
        # bursts outstanding is named only if there is no other.
        for number in reversed(range(len(Queue))):
            with m.If(self.busy[number]):
                m.d.sync += [
                    queue.eq(number),
                    report.instruction.eq(self.oldest_offset[number]),
                ]
        for number in reversed(range(len(Queue))):
            with m.If(self.waiting[number] & ~bus_busy):
                m.d.sync += [
                    queue.eq(number),
                    report.instruction.eq(self.head_offset[number]),
                ]
        with m.If(bus_busy):
            m.d.sync += [queue.eq(DISPATCH_QUEUE), report.instruction.eq(0)]
        for number in reversed(range(len(Queue))):
            with m.If(self.bus_busy[number]):
                m.d.sync += [
                    queue.eq(number),
                    report.instruction.eq(self.oldest_offset[number]),
                ]
