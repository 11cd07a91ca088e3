"""A queue of requests that are worked out ahead of their use, by credit."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RowQueue"]

DEPTH = 8
"""More than the cycles from a promise to the one in which its place can be promised again."""


class RowQueue(wiring.Component):
    """Holds requests from their checks to their acceptance, one a cycle.

    A place is promised in the cycle in which work on a request begins; the request may come any
    number of cycles later, and always finds room. So nothing on its way has to stop, and whether a
    memory accepts a request in this cycle reaches the output register and two counters only::

        promise -> (stages of the caller) -> i -> places -> output register -> taken

    At full rate there may be up to ``DEPTH - 4`` stages in between.

    Parameters
    ----------
    layout : StructLayout

    Members
    -------
    room : Out(1)
        A place may be promised in this cycle, by ``promise``.
    withdraw : In(1)
        A request that has a place will not come.
    i_valid, i : In
        A request that has a place.
    o_valid, o : Out
        The oldest request, from registers; ``taken`` removes it.
    pending : Out(1)
        Requests are inside.
    """

    def __init__(self, layout: data.StructLayout) -> None:
        self._layout = layout
        super().__init__(
            {
                "room": Out(1),
                "promise": In(1),
                "withdraw": In(1),
                "i_valid": In(1),
                "i": In(layout),
                "o_valid": Out(1),
                "o": Out(layout),
                "taken": In(1),
                "pending": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        places: memory.Memory = memory.Memory(shape=self._layout, depth=DEPTH, init=[])
        m.submodules.places = places
        write, read = places.write_port(), places.read_port(domain="comb")
        pushed = Signal(range(2 * DEPTH))  # one more bit than an address, to tell full from empty
        popped = Signal(range(2 * DEPTH))
        promised = Signal(range(DEPTH + 1))
        room = Signal(init=1, name="has_room")
        valid = Signal()
        output = Signal(self._layout, reset_less=True)
        waits, moves = Signal(), Signal()
        m.d.comb += [
            write.addr.eq(pushed[:-1]),
            write.data.eq(self.i),
            write.en.eq(self.i_valid),
            read.addr.eq(popped[:-1]),
            waits.eq(pushed != popped),
            moves.eq(waits & (~valid | self.taken)),
            self.o_valid.eq(valid),
            self.o.eq(output),
            self.pending.eq(valid | waits),
        ]
        # Whether a place comes free in this cycle matters only when all are taken: it is not asked.
        m.d.sync += room.eq(Mux(self.promise, promised < DEPTH - 1, promised != DEPTH))
        m.d.comb += self.room.eq(room)
        m.d.sync += [
            pushed.eq(pushed + self.i_valid),
            popped.eq(popped + moves),
            promised.eq(promised + self.promise - self.withdraw - self.taken),
        ]
        with m.If(moves):
            m.d.sync += [valid.eq(1), output.eq(read.data)]
        with m.Elif(self.taken):
            m.d.sync += valid.eq(0)
        return m
