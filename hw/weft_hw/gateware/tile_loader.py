"""Fetches the weight tiles of MATRIX instructions ahead of their use and feeds the array's top."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import READ_LATENCY, ReadPort
from weft_hw.gateware.loops import LoopNest
from weft_hw.instructions import COUNT_BITS, STRIDE_BITS, TILE_LOOPS_MATRIX

__all__ = ["TOP_ADDRESS_BITS", "TileLoader"]

TOP_ADDRESS_BITS = STRIDE_BITS + 1  # one step beyond a valid address never wraps

TILE_STRIDE_BITS = 16


class TileLoader(wiring.Component):
    """Reads the rows of an instruction's weight tiles, in order, as early as the array allows.

    Rows wait in a buffer of ``READ_LATENCY + 2`` rows, just enough for one row a cycle. From there
    row 0 of a tile may enter the array from the cycle in which the previous tile's swap enters it;
    the shadow weights are free from then on. With the buffer no request depends on the left
    memory's readiness in the same cycle.

    A row requested in cycle g and not held back enters the array in cycle g + READ_LATENCY + 1. So
    all rows of a tile are in the array before an activation that enters READ_LATENCY + 1 cycles
    after its own request in cycle a, provided that they were requested before a, and that a is at
    least ``rows`` cycles after the request of the previous tile's first activation.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        Take a new instruction; only while ``free``.
    counts, address, strides, tile_stride : In
        Its fields (the four tile loops' for arrays), valid in that cycle.
    free : Out(1)
        A new instruction may start in this cycle.
    halt : In(1)
        Request nothing more.
    top : Out(ReadPort)
    tile_valid, tile_tag, tile_row : Out
        To the array.
    swap : In(1)
        A tile's first activation enters the array in this cycle.
    swap_issued : In(1)
        A tile's first activation is requested in this cycle.
    loaded : Out(1)
        All rows of the next tile to be swapped in were requested in earlier cycles.
    bad, bad_address : Out(1), Out(signed)
        The next row lies outside the weight memory; it is never requested.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        loops = TILE_LOOPS_MATRIX
        super().__init__(
            {
                "start": In(1),
                "counts": In(data.ArrayLayout(COUNT_BITS, loops)),
                "address": In(signed(STRIDE_BITS)),
                "strides": In(data.ArrayLayout(signed(STRIDE_BITS), loops)),
                "tile_stride": In(signed(TILE_STRIDE_BITS)),
                "free": Out(1),
                "halt": In(1),
                "top": Out(ReadPort(config.weight_address_bits, config.line_bytes)),
                "tile_valid": Out(1),
                "tile_tag": Out(range(config.rows)),
                "tile_row": Out(8 * config.columns),
                "swap": In(1),
                "swap_issued": In(1),
                "loaded": Out(1),
                "bad": Out(1),
                "bad_address": Out(signed(TOP_ADDRESS_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        credit = Signal()
        issued, last_row = self._requests(m, credit)
        popped = self._buffer(m)

        # Rows requested and not yet in the array; all of them must find a place in the buffer.
        outstanding = Signal(range(READ_LATENCY + 3))
        m.d.comb += credit.eq(outstanding < READ_LATENCY + 2)
        m.d.sync += outstanding.eq(outstanding + issued - popped)

        # Tiles requested whole whose first activation is still to be requested.
        tiles = Signal(range(2 + (READ_LATENCY + 2) // 2))
        m.d.comb += self.loaded.eq(tiles != 0)
        m.d.sync += tiles.eq(tiles + (issued & last_row) - self.swap_issued)
        return m

    def _requests(self, m: Module, credit: Signal) -> tuple[Signal, Signal]:
        """The loop nest and, behind it, a register that holds the request."""
        rows = self._config.rows
        m.submodules.nest = nest = LoopNest(
            loops=TILE_LOOPS_MATRIX + 1, streams={"top": TOP_ADDRESS_BITS}
        )
        held = Signal(
            data.StructLayout(
                {
                    "counts": self.counts.shape(),
                    "strides": self.strides.shape(),
                    "tile_stride": signed(TILE_STRIDE_BITS),
                }
            ),
            reset_less=True,
        )
        active = Signal()
        step = Signal()
        with m.If(self.start):
            m.d.sync += [
                active.eq(1),
                held.counts.eq(self.counts),
                held.strides.eq(self.strides),
                held.tile_stride.eq(self.tile_stride),
            ]
        with m.Elif(step & nest.finished):
            m.d.sync += active.eq(0)
        strides = [held.strides[i] for i in range(TILE_LOOPS_MATRIX)] + [held.tile_stride]
        m.d.comb += [
            nest.load.eq(self.start),
            nest.advance.eq(step & ~nest.finished),
            nest.top_base.eq(self.address),
            nest.counts[TILE_LOOPS_MATRIX].eq(rows),
        ]
        for i in range(TILE_LOOPS_MATRIX):
            m.d.comb += nest.counts[i].eq(Mux(self.start, self.counts[i], held.counts[i]))
        for i, stride in enumerate(strides):
            m.d.comb += nest.top_strides[i].eq(stride)

        last_address = self._config.weight_bytes - self._config.columns
        outside = nest.top.as_unsigned() > last_address  # a negative one, too
        request = Signal()
        waiting = Signal()
        last_row = Signal(reset_less=True)
        address = Signal.like(self.top.address, reset_less=True)
        issued = Signal()
        m.d.comb += [
            self.bad.eq(active & outside),
            self.bad_address.eq(nest.top),
            self.top.valid.eq(request & credit & (~self.halt | waiting)),
            self.top.address.eq(address),
            issued.eq(self.top.valid & self.top.ready),
            step.eq(active & ~outside & (~request | issued)),
            self.free.eq(~active | (step & nest.finished)),
        ]
        m.d.sync += waiting.eq(self.top.valid & ~self.top.ready)
        with m.If(step):
            m.d.sync += [
                request.eq(1),
                address.eq(nest.top),
                last_row.eq(nest.last[TILE_LOOPS_MATRIX]),
            ]
        with m.Elif(issued):
            m.d.sync += request.eq(0)
        return issued, last_row

    def _buffer(self, m: Module) -> Signal:
        """Rows that have arrived, and the rule by which they enter the array."""
        depth = 1 << (READ_LATENCY + 1).bit_length()
        rows: memory.Memory = memory.Memory(shape=8 * self._config.columns, depth=depth, init=[])
        m.submodules.rows = rows
        write, read = rows.write_port(), rows.read_port(domain="comb")
        pushed = Signal(range(2 * depth))  # one more bit than an address, to tell full from empty
        popped = Signal(range(2 * depth))
        shadow_full = Signal()
        tag = Signal(range(self._config.rows))
        m.d.comb += [
            write.addr.eq(pushed[:-1]),
            write.data.eq(self.top.data[: 8 * self._config.columns]),
            write.en.eq(self.top.data_valid),
            read.addr.eq(popped[:-1]),
            self.tile_row.eq(read.data),
            self.tile_tag.eq(tag),
            self.tile_valid.eq((pushed != popped) & (~shadow_full | self.swap)),
        ]
        m.d.sync += [
            pushed.eq(pushed + self.top.data_valid),
            popped.eq(popped + self.tile_valid),
            tag.eq(tag + self.tile_valid),
        ]
        with m.If(self.tile_valid & (tag == self._config.rows - 1)):
            m.d.sync += shadow_full.eq(1)
        with m.Elif(self.swap):
            m.d.sync += shadow_full.eq(0)
        return self.tile_valid
