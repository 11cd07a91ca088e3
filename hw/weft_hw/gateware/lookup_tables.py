"""Memory of lookup tables: a copy a lane, written by beats, read by every lane at once."""

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.block_memory import NO_COLLISION
from weft_hw.gateware.interfaces import LOOKUP_ADDRESS_BITS, LookupPort, WritePort

__all__ = ["LookupTables"]


class LookupTables(wiring.Component):
    """All tables in ``vector_lanes`` memories of one byte's width, so that each fits one block RAM.

    Flow control: a write is a whole bus beat at an address aligned to beats. Its bytes are written
    one a cycle; it is accepted with the last of them. Lookups are always accepted.

    Timing: an entry comes one cycle after its address. A lookup in the cycle of a write to the same
    entry gives no particular one.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    write : In(WritePort)
    read : In(LookupPort)
    inhibit : In(1)
        Writes are accepted but change nothing.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "write": In(WritePort(LOOKUP_ADDRESS_BITS, config.bus_bytes)),
                "read": In(LookupPort(config)),
                "inhibit": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat = self._config.bus_bytes
        turn = Signal(range(beat))
        byte = Signal(8)
        m.d.comb += [
            self.write.ready.eq(turn == beat - 1),
            byte.eq(self.write.data.word_select(turn, 8)),
        ]
        with m.If(self.write.valid):
            m.d.sync += turn.eq(turn + 1)  # wraps: a beat is a power of two
        for lane in range(self._config.vector_lanes):
            cells: memory.Memory = memory.Memory(
                shape=unsigned(8), depth=1 << LOOKUP_ADDRESS_BITS, init=[], attrs=NO_COLLISION
            )
            m.submodules[f"lane_{lane}"] = cells
            write, read = cells.write_port(), cells.read_port()
            m.d.comb += [
                write.addr.eq(self.write.address | turn),
                write.data.eq(byte),
                write.en.eq(self.write.valid & ~self.inhibit),
                read.addr.eq(self.read.address[lane]),
                read.en.eq(self.read.valid),
                self.read.data[lane].eq(read.data),
            ]
        return m
