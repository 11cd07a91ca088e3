"""Fetches what MATRIX instructions put into the array's top, ahead of its use."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.array import TOP_BITS
from weft_hw.gateware.interfaces import READ_LATENCY, ReadPort, instruction_layout
from weft_hw.gateware.loops import LoopNest
from weft_hw.gateware.row_queue import RowQueue
from weft_hw.gateware.scratchpad import weight_banks_read
from weft_hw.instructions import (
    LOOPS_MATRIX,
    STRIDE_BITS,
    TILE_LOOPS_MATRIX,
    Bounds,
    Dataflow,
    LoadSide,
    Matrix,
)

__all__ = ["TOP_ADDRESS_BITS", "TileLoader"]

TOP_ADDRESS_BITS = STRIDE_BITS + 1  # one step beyond a valid address never wraps

COORDINATE_BITS = 24


class TileLoader(wiring.Component):
    """Reads the rows of an instruction's weight tiles, in order, as early as the array allows.

    In the output-stationary dataflow each top row is a tile of one row, which all rows of the array
    take; one that lies out of bounds is passed over.

    Requests are worked out ahead: they wait in a queue until the array has room for their rows.
    Rows wait in a buffer of ``READ_LATENCY + 2`` rows, just enough for one row a cycle. From there
    row 0 of a tile may enter the array from the cycle in which the previous tile's swap enters it;
    the shadow weights are free from then on. With the buffer no request depends on the left
    memory's readiness in the same cycle, and with the queue no step of the nest on a memory's.

    A row requested in cycle g and not held back enters the array in cycle g + READ_LATENCY + 1. So
    all rows of a tile are in the array before a left row that enters READ_LATENCY + 1 cycles after
    its own request in cycle a, provided that they were requested before a, and that a is at least
    as many cycles after the request of the previous tile's first left row as the tile has rows.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        Take a new instruction; only while ``free``.
    instruction : In(layout of Matrix)
        Its fields, valid in that cycle.
    free : Out(1)
        A new instruction may start in this cycle.
    halt : In(1)
        Request nothing more.
    top, top_banks : Out(ReadPort), Out(weight_banks)
        Weight scratchpad, and the banks that the address needs.
    tile_valid, tile_all, tile_sideways, tile_tag, tile_row : Out
        To the array's top; elements have had their zero point subtracted.
    swap : In(1)
        A tile's first left row enters the array in this cycle.
    swap_issued : In(1)
        A tile's first left row is requested in this cycle.
    loaded : Out(1)
        All rows of the next tile to be swapped in were requested in earlier cycles.
    bad, bad_address : Out(1), Out(signed)
        The next row lies outside the weight memory; it is never requested.
    stops : Out(1)
        Such a row has been found; it was stepped to in the cycle before this bit rose.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "instruction": In(instruction_layout(Matrix)),
                "free": Out(1),
                "halt": In(1),
                "top": Out(ReadPort(config.weight_address_bits, config.line_bytes)),
                "top_banks": Out(config.weight_banks),
                "tile_valid": Out(1),
                "tile_all": Out(1),
                "tile_sideways": Out(1),
                "tile_tag": Out(range(config.rows)),
                "tile_row": Out(data.ArrayLayout(signed(TOP_BITS), config.columns)),
                "swap": In(1),
                "swap_issued": In(1),
                "loaded": Out(1),
                "bad": Out(1),
                "stops": Out(1),
                "bad_address": Out(signed(TOP_ADDRESS_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._row = data.StructLayout({"zero_point": signed(8), "last": 1, "all": 1, "sideways": 1})
        credit = Signal()
        issued, row = self._requests(m, credit)
        popped = self._buffer(m, row)

        # Rows requested and not yet in the array; all of them must find a place in the buffer.
        outstanding = Signal(range(READ_LATENCY + 3))
        m.d.comb += credit.eq(outstanding < READ_LATENCY + 2)
        m.d.sync += outstanding.eq(outstanding + issued - popped)

        # Tiles requested whole whose first left row is still to be requested: those of one row that
        # are outstanding, and one in the shadow registers.
        tiles = Signal(range(READ_LATENCY + 4))
        tiles_next = Signal.like(tiles)
        loaded = Signal(name="has_tiles")
        m.d.comb += [
            tiles_next.eq(tiles + (issued & row.last) - self.swap_issued),
            self.loaded.eq(loaded),
        ]
        m.d.sync += [tiles.eq(tiles_next), loaded.eq(tiles_next != 0)]
        return m

    def _requests(self, m: Module, credit: Signal) -> tuple[Signal, Signal]:
        """The loop nest and, behind it, checks and a queue of requests."""
        rows = self._config.rows
        m.submodules.nest = nest = LoopNest(
            loops=LOOPS_MATRIX + 1,
            streams={"top": TOP_ADDRESS_BITS, "y": COORDINATE_BITS, "x": COORDINATE_BITS},
            handover=True,
            prepared=True,  # an instruction is checked in the cycle before
        )
        held = Signal(instruction_layout(Matrix), name="held", reset_less=True)
        active = Signal()
        step = Signal()
        with m.If(self.start):
            m.d.sync += [active.eq(1), held.eq(self.instruction)]
        with m.Elif(step & nest.finished):
            m.d.sync += active.eq(0)
        m.d.comb += [
            nest.load.eq(self.start),
            nest.advance.eq(step),
            nest.top_base.eq(self.instruction.top_address),
            nest.y_base.eq(self.instruction.y_origin),
            nest.x_base.eq(self.instruction.x_origin),
        ]
        arriving = self.instruction
        streams, streams_first = Signal(), Signal()
        m.d.comb += [
            streams.eq(held.dataflow == Dataflow.OUTPUT_STATIONARY),
            streams_first.eq(arriving.dataflow == Dataflow.OUTPUT_STATIONARY),
        ]
        for counts, fields, rows_stream in (
            (nest.first_counts, arriving, streams_first),
            (nest.counts, held, streams),
        ):
            for i in range(LOOPS_MATRIX):
                inner = Mux(rows_stream, fields.counts[i], 1)
                outer = i < TILE_LOOPS_MATRIX
                m.d.comb += counts[i].eq(fields.counts[i] if outer else inner)
            m.d.comb += counts[LOOPS_MATRIX].eq(Mux(rows_stream, 1, rows))
        for i in range(LOOPS_MATRIX):
            m.d.comb += [
                nest.top_strides[i].eq(held.top_strides[i]),
                nest.y_strides[i].eq(held.y_steps[i]),
                nest.x_strides[i].eq(held.x_steps[i]),
            ]
        m.d.comb += nest.top_strides[LOOPS_MATRIX].eq(held.tile_stride)

        request = data.StructLayout(
            {
                "address": self.top.address.shape(),
                "banks": self.top_banks.shape(),
                "row": self._row,
            }
        )
        m.submodules.row_queue = queue = RowQueue(request)
        inside = (nest.y.as_unsigned() < held.y_extent) & (nest.x.as_unsigned() < held.x_extent)
        last_address = self._config.weight_bytes - self._config.columns
        # In the cycle after a step: its row, whether it exists, and lies outside the memory.
        checked = Signal()
        exists = Signal(reset_less=True)
        outside = Signal(reset_less=True)
        address = Signal.like(nest.top, reset_less=True)
        row = Signal(self._row, reset_less=True)
        wrong, row_enters = Signal(), Signal()
        stuck = Signal(name="row_stuck")  # at a row that is wrong, for ever
        waiting = Signal()
        issued = Signal()
        m.d.comb += [
            step.eq(active & nest.ready & queue.room & ~stuck),
            self.free.eq(~active | (step & nest.finished)),
            wrong.eq(checked & exists & outside & ~stuck),
            queue.promise.eq(step),
            queue.withdraw.eq(checked & ~exists),
            row_enters.eq(checked & exists & ~outside & ~stuck),
            queue.i_valid.eq(row_enters),
            queue.i.address.eq(address),
            queue.i.banks.eq(weight_banks_read(m, "top_place", self._config, address)),
            queue.i.row.eq(row),
            self.stops.eq(wrong | stuck),
            self.bad.eq(stuck & ~queue.pending),
            self.top.valid.eq(queue.o_valid & credit & (~self.halt | waiting)),
            self.top.address.eq(queue.o.address),
            self.top_banks.eq(queue.o.banks),
            issued.eq(self.top.valid & self.top.ready),
            queue.taken.eq(issued),
        ]
        m.d.sync += [checked.eq(step), waiting.eq(self.top.valid & ~self.top.ready)]
        with m.If(step):
            m.d.sync += [
                exists.eq((held.bounds != Bounds.TOP) | inside),
                outside.eq(nest.top.as_unsigned() > last_address),  # a negative one, too
                address.eq(nest.top),
                row.zero_point.eq(held.top_zero_point),
                row.last.eq(nest.last[LOOPS_MATRIX]),
                row.all.eq(streams),
                row.sideways.eq((held.load_side == LoadSide.LEFT) & ~streams),
            ]
        with m.If(wrong):
            m.d.sync += [stuck.eq(1), self.bad_address.eq(address)]
        return issued, queue.o.row

    def _buffer(self, m: Module, row: Signal) -> Signal:
        """Rows that have arrived, and the rule by which they enter the array."""
        columns = self._config.columns
        arriving = row
        for k in range(READ_LATENCY):
            later = Signal(self._row, name=f"row_{k + 1}", reset_less=True)
            m.d.sync += later.eq(arriving)
            arriving = later

        depth = 1 << (READ_LATENCY + 1).bit_length()
        shape = data.StructLayout({"row": self._row, "elements": TOP_BITS * columns})
        rows: memory.Memory = memory.Memory(shape=shape, depth=depth, init=[])
        m.submodules.rows = rows
        write, read = rows.write_port(), rows.read_port(domain="comb")
        pushed = Signal(range(2 * depth))  # one more bit than an address, to tell full from empty
        popped = Signal(range(2 * depth))
        shadow_full = Signal()
        tag = Signal(range(self._config.rows))
        taken = [self.top.data[8 * c : 8 * c + 8].as_signed() for c in range(columns)]
        m.d.comb += [
            write.addr.eq(pushed[:-1]),
            write.data.row.eq(arriving),
            write.data.elements.eq(Cat((x - arriving.zero_point)[:TOP_BITS] for x in taken)),
            write.en.eq(self.top.data_valid),
            read.addr.eq(popped[:-1]),
            self.tile_row.as_value().eq(read.data.elements),
            self.tile_all.eq(read.data.row.all),
            self.tile_sideways.eq(read.data.row.sideways),
            self.tile_tag.eq(tag),
            self.tile_valid.eq((pushed != popped) & (~shadow_full | self.swap)),
        ]
        m.d.sync += [pushed.eq(pushed + self.top.data_valid), popped.eq(popped + self.tile_valid)]
        with m.If(self.tile_valid):
            m.d.sync += tag.eq(Mux(read.data.row.last, 0, tag + 1))
        with m.If(self.tile_valid & read.data.row.last):
            m.d.sync += shadow_full.eq(1)
        with m.Elif(self.swap):
            m.d.sync += shadow_full.eq(0)
        return self.tile_valid
