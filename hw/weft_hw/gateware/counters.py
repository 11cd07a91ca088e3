"""Performance counters: what a program's cycles went into."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.instructions import Queue

__all__ = ["COUNTER_NAMES", "Counters"]

ENGINE_EVENTS = ("retired", "busy", "wait", "stall")
BEAT_EVENTS = ("read_beats", "fetch_beats", "write_beats")

COUNTER_NAMES = (
    *(f"{queue.name.lower()}_{event}" for queue in Queue for event in ENGINE_EVENTS),
    *BEAT_EVENTS,
)
"""The counts, by the names of their registers in lower case."""


class Counters(wiring.Component):
    """Counts, while ``running``, the cycles themselves and those in which an event bit is high.

    ``clear`` sets all counts to zero. The cycle of ``clear`` counts as the first one, so that the
    cycles of a program are those from the write of its start to its interrupt.

    Members
    -------
    clear, running : In(1)
    retired, busy, wait, stall : In(4)
        One bit a queue.
    read_beats, fetch_beats, write_beats : In(1)
    cycles : Out(64)
    counts : Out(32), array
        In the order of :data:`COUNTER_NAMES`.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "clear": In(1),
                "running": In(1),
                **{event: In(len(Queue)) for event in ENGINE_EVENTS},
                **{event: In(1) for event in BEAT_EVENTS},
                "cycles": Out(64),
                "counts": Out(32).array(len(COUNTER_NAMES)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        events = {
            f"{queue.name.lower()}_{event}": getattr(self, event)[queue]
            for queue in Queue
            for event in ENGINE_EVENTS
        } | {event: getattr(self, event) for event in BEAT_EVENTS}
        with m.If(self.clear):
            m.d.sync += self.cycles.eq(1)
        with m.Elif(self.running):
            m.d.sync += self.cycles.eq(self.cycles + 1)
        for name, count in zip(COUNTER_NAMES, self.counts):
            with m.If(self.clear):
                m.d.sync += count.eq(0)
            with m.Elif(self.running & events[name]):
                m.d.sync += count.eq(count + 1)
        return m
