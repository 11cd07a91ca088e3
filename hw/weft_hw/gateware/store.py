"""The STORE engine: from the activation scratchpad and the accumulator memory to DRAM."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, fifo, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import (
    MEMORY_BITS,
    READ_LATENCY,
    AccumulatorReadPort,
    AxiWritePort,
    EnginePort,
    ReadPort,
)
from weft_hw.gateware.packed_rows import PackedPlace, packed_chunk, rotated
from weft_hw.gateware.pieces import PieceCutter
from weft_hw.gateware.scratchpad import activation_banks_read
from weft_hw.gateware.transfer import (
    EntryKind,
    TransferGenerator,
    local_address_bits,
    packed_row_bits,
)
from weft_hw.instructions import DRAM_BITS, Element, Memory, Store
from weft_hw.registers import FaultCause

__all__ = ["StoreEngine"]

# Reads between their request and the bus: as many as pass before the first one's place is free
# and known to be.
BEATS_IN_FLIGHT = READ_LATENCY + 4


class StoreEngine(wiring.Component):
    """Executes STORE (docs/machine.md): byte ``dram + i`` of DRAM becomes byte ``local + i``.

    Of accumulators these are packed bytes (:mod:`weft_hw.gateware.packed_rows`). A read brings what
    one beat needs of one beat-wide chunk of a packed row; where a beat needs several, the first
    ones wait for the last.

    A :class:`~weft_hw.gateware.transfer.TransferGenerator` gives bursts; each one's address goes to
    the bus, and two queues note it: one for the read side, which fetches its beats from the
    scratchpad, one for the response side, which waits for its response and reports. At most
    ``max_outstanding`` bursts lack their response, across instructions.

    Flow control: a beat is read only if there is room for it behind the read latency. A
    scratchpad's address is such that the bytes come in their bus lanes; lanes beyond the run are
    not strobed. A burst's first data beat is never offered before its address.

    Timing: address valid three cycles after acceptance, the first read two later; one read a cycle,
    across bursts and instructions, and so one beat a cycle unless accumulators' runs and beats
    begin differently.
    ``retire`` is high in the cycle of an instruction's last write response.

    Faults: a failed check is reported once all earlier instructions have retired, an error response
    when it comes, with the burst's address. After that, or with ``stop``, no burst is issued, those
    issued are completed with strobes off, and nothing retires.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    engine : In(EnginePort(Store))
    activation, banks : Out(ReadPort(activation_address_bits, line_bytes)), Out
        ``banks``: those that the address needs.
    accumulator : Out(AccumulatorReadPort(config))
    axi : Out(AxiWritePort(config))
    beat : Out(1)
        A data beat is transferred.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._beats_layout = data.StructLayout(
            {
                "memory": unsigned(MEMORY_BITS),
                "element": unsigned(2),
                "local": unsigned(local_address_bits(config)),
                "offset": unsigned((config.bus_bytes - 1).bit_length()),
                "bytes": unsigned((config.burst_beats * config.bus_bytes).bit_length()),
            }
        )
        # What one read brings: bytes [offset, end) of a beat, from there in a packed row.
        self._piece_layout = data.StructLayout(
            {
                "offset": unsigned((config.bus_bytes - 1).bit_length()),
                "end": unsigned(config.bus_bytes.bit_length()),
                "beat_ends": unsigned(1),
                "burst_ends": unsigned(1),
                "in_rows": unsigned(1),
                "element": unsigned(2),
                "place": unsigned(packed_row_bits(config, Element.INT32)),
            }
        )
        self._response_layout = data.StructLayout(
            {
                "kind": unsigned(2),
                "address": unsigned(DRAM_BITS),
                "last": unsigned(1),
                "instruction": unsigned(32),
                "cause": FaultCause,
            }
        )
        super().__init__(
            {
                "engine": In(EnginePort(Store)),
                "activation": Out(ReadPort(config.activation_address_bits, config.line_bytes)),
                "banks": Out(config.activation_banks),
                "accumulator": Out(AccumulatorReadPort(config)),
                "axi": Out(AxiWritePort(config)),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = max(2, self._config.max_outstanding)
        m.submodules.generator = generator = TransferGenerator(self._config, Store)
        m.submodules.beats = beats = fifo.SyncFIFO(width=self._beats_layout.size, depth=depth)
        m.submodules.responses = responses = fifo.SyncFIFO(
            width=self._response_layout.size, depth=depth
        )
        dead = Signal()  # after a fault of its own
        halt = Signal()
        m.d.comb += halt.eq(dead | self.engine.stop)
        wiring.connect(m, generator.instruction, wiring.flipped(self.engine.instruction))

        self._elaborate_requests(m, generator.entry, beats, responses, halt)
        self._elaborate_beats(m, beats, halt)
        self._elaborate_responses(m, responses, halt, dead)

        inside = Signal(range(depth + 4))
        accepted = self.engine.instruction.valid & self.engine.instruction.ready
        m.d.sync += inside.eq(inside + accepted - self.engine.retire)
        axi = self.axi
        moved = self.beat | (axi.bvalid & axi.bready)
        for port in (self.activation, self.accumulator):
            moved |= port.valid & port.ready
        m.d.comb += [
            self.engine.busy.eq(inside.any()),
            self.engine.stall.eq(self.engine.bus_busy & ~moved),
        ]
        return m

    def _elaborate_requests(
        self,
        m: Module,
        entry: wiring.PureInterface,
        beats: fifo.SyncFIFO,
        responses: fifo.SyncFIFO,
        halt: Signal,
    ) -> None:
        """Present burst addresses to the bus and note every entry in the queues."""
        axi = self.axi
        limit = self._config.max_outstanding
        outstanding = Signal(range(limit + 1))
        is_burst = entry.payload.kind == EntryKind.BURST
        # As many places as bursts may be outstanding: the queue of beats cannot be full here.
        free = (~axi.awvalid | axi.awready) & (outstanding != limit) & ~halt
        taken = entry.valid & entry.ready
        # A burst that the bus does not take waits here, so that no entry depends on the bus.
        layout = data.StructLayout(
            {
                "address": unsigned(DRAM_BITS),
                "beats": unsigned(8),
                **{name: member.shape for name, member in self._beats_layout},
            }
        )
        spare = Signal(layout, name="spare_burst", reset_less=True)
        spare_valid = Signal(name="spare_burst_valid")
        arrives, issue = Signal(name="burst_arrives"), Signal()
        burst = Signal(layout)
        chosen = data.View(layout, Mux(spare_valid, spare.as_value(), burst.as_value()))
        noted = data.View(self._beats_layout, beats.w_data)
        awaited = data.View(self._response_layout, responses.w_data)
        m.d.comb += [
            entry.ready.eq(responses.w_rdy & ~halt & ~spare_valid),
            arrives.eq(taken & is_burst),
            issue.eq(free & (spare_valid | arrives)),
            *[burst[name].eq(entry.payload[name]) for name, _ in layout],
            beats.w_en.eq(issue),
            responses.w_en.eq(taken),
            *[noted[name].eq(chosen[name]) for name, _ in self._beats_layout],
            *[awaited[name].eq(entry.payload[name]) for name, _ in self._response_layout],
            self.engine.bus_busy.eq(outstanding.any()),
        ]
        with m.If(issue):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(chosen.address),
                axi.awlen.eq(chosen.beats),
            ]
        with m.Elif(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        m.d.sync += spare_valid.eq((spare_valid | arrives) & ~issue)
        with m.If(~spare_valid):
            m.d.sync += spare.eq(burst)
        m.d.sync += outstanding.eq(outstanding + issue - (axi.bvalid & axi.bready))

    def _elaborate_beats(self, m: Module, beats: fifo.SyncFIFO, halt: Signal) -> None:
        """Read each burst's beats, in one or several pieces, and pass them to the bus."""
        config = self._config
        width = config.bus_bytes
        head = data.View(self._beats_layout, beats.r_data)
        fields = data.StructLayout({"memory": unsigned(MEMORY_BITS), "element": unsigned(2)})
        m.submodules.cutter = cutter = PieceCutter(
            local_bits=local_address_bits(config),
            size_bits=width.bit_length(),
            fields=fields,
            banks=config.activation_banks,
        )
        m.d.comb += cutter.coming_banks.eq(
            activation_banks_read(m, "coming", config, cutter.coming, config.line_bytes)
        )
        run = cutter.run.payload
        whole = PackedPlace(m, config, "source", head.local, head.element)
        chunk_bits = (width - 1).bit_length()
        chunk_left = width - whole.place[:chunk_bits]
        m.d.comb += [
            cutter.run.valid.eq(beats.r_rdy),
            beats.r_en.eq(cutter.run.valid & cutter.run.ready),
            run.bytes.eq(head.bytes),
            run.aligned.eq(head.memory != Memory.ACCUMULATOR),
            run.fields.memory.eq(head.memory),
            run.fields.element.eq(head.element),
            run.room.eq(width - head.offset),
            run.room_size.eq(width),
        ]
        local = Signal.like(head.local)
        chunk = Signal(range(width + 1))
        chunk_size = Signal(range(width + 1))
        with m.If(head.memory == Memory.ACCUMULATOR):
            # A chunk ends with its row, which may be shorter; both sizes are powers of two.
            shorter = whole.size < width
            m.d.comb += [
                local.eq(head.local),
                chunk.eq(Mux(shorter, whole.left, chunk_left)),
                chunk_size.eq(Mux(shorter, whole.size, width)),
            ]
        with m.Else():  # every beat is one
            m.d.comb += [
                # Lanes before the run's first byte are not strobed: the address may wrap below 0.
                local.eq(head.local - head.offset),
                chunk.eq(run.room),
                chunk_size.eq(run.room_size),
            ]
        m.d.comb += [run.local.eq(local), run.chunk.eq(chunk), run.chunk_size.eq(chunk_size)]

        source = cutter.piece.payload
        in_rows = source.fields.memory == Memory.ACCUMULATOR
        row = PackedPlace(m, config, "piece", source.local, source.fields.element)
        piece = Signal(self._piece_layout)
        step = Signal()
        credits = Signal(range(BEATS_IN_FLIGHT + 1), init=BEATS_IN_FLIGHT)
        left = Signal(range(BEATS_IN_FLIGHT + 2))
        credit = Signal(init=1)  # there are credits
        asks = cutter.piece.valid & credit
        m.d.comb += [
            piece.offset.eq(width - source.room),
            piece.end.eq(piece.offset + Mux(source.run_ends, source.left, source.width)),
            piece.burst_ends.eq(source.run_ends),
            piece.beat_ends.eq(source.run_ends | source.beat_ends),
            piece.in_rows.eq(in_rows),
            piece.element.eq(source.fields.element),
            piece.place.eq(row.place),
            self.activation.valid.eq(asks & ~in_rows),
            self.accumulator.valid.eq(asks & in_rows),
            self.activation.address.eq(source.local),
            self.banks.eq(source.banks),
            self.accumulator.address.eq(row.row),
            step.eq(asks & Mux(in_rows, self.accumulator.ready, self.activation.ready)),
            cutter.piece.ready.eq(step),
        ]
        freed = Signal(2)  # from a register: whether the bus takes a beat is known late in a cycle
        m.d.sync += freed.eq(self._elaborate_data(m, piece, step, halt))
        m.d.comb += left.eq(credits - step + freed)
        m.d.sync += [credits.eq(left), credit.eq(left != 0)]

    def _elaborate_data(self, m: Module, piece: data.View, step: Signal, halt: Signal) -> Value:
        """Gather beats from what is read and offer them; the result counts places set free."""
        config = self._config
        axi = self.axi
        width = config.bus_bytes
        chunk_bits = (width - 1).bit_length()
        valid = step
        for stage in range(READ_LATENCY):  # what is to be known of a read travels beside it
            was_valid = Signal(name=f"piece_valid_{stage}")
            delayed = Signal(self._piece_layout, reset_less=True, name=f"piece_{stage}")
            m.d.sync += was_valid.eq(valid)
            with m.If(valid):
                m.d.sync += delayed.eq(piece)
            valid, piece = was_valid, delayed

        taken = Signal()
        taken_piece = Signal(self._piece_layout, reset_less=True)
        taken_data = Signal(8 * width, reset_less=True)
        chunk = packed_chunk(
            m, config, self.accumulator.data, piece.element, piece.place[chunk_bits:]
        )
        m.d.sync += taken.eq(valid)
        with m.If(valid):
            m.d.sync += taken_piece.eq(piece)
            m.d.sync += taken_data.eq(Mux(piece.in_rows, chunk, self.activation.data[: 8 * width]))

        # The beat so far; of its bytes those that are strobed count.
        begun, begun_strobes = Signal(8 * width, reset_less=True), Signal(width)
        beat, strobes = Signal(8 * width), Signal(width)
        turn = Signal(range(width))
        m.d.comb += turn.eq(Mux(taken_piece.in_rows, taken_piece.offset - taken_piece.place, 0))
        turned = rotated(m, taken_data, turn)
        for lane in range(width):
            mine = (lane >= taken_piece.offset) & (lane < taken_piece.end)
            m.d.comb += strobes[lane].eq(begun_strobes[lane] | mine)
            m.d.comb += beat.word_select(lane, 8).eq(
                Mux(begun_strobes[lane], begun.word_select(lane, 8), turned.word_select(lane, 8))
            )
        with m.If(taken):
            m.d.sync += begun_strobes.eq(Mux(taken_piece.beat_ends, 0, strobes))
            with m.If(~taken_piece.beat_ends):
                m.d.sync += begun.eq(beat)

        m.submodules.ready_beats = ready = fifo.SyncFIFO(width=9 * width + 1, depth=BEATS_IN_FLIGHT)
        free = ~axi.wvalid | axi.wready
        m.d.comb += [
            ready.w_data.eq(Cat(beat, strobes, taken_piece.burst_ends)),
            ready.w_en.eq(taken & taken_piece.beat_ends),
            ready.r_en.eq(free),
            self.beat.eq(axi.wvalid & axi.wready),
        ]
        with m.If(free):
            m.d.sync += axi.wvalid.eq(ready.r_rdy)
            with m.If(ready.r_rdy):
                # A beat already offered keeps its strobes, as AXI demands: hence this register.
                offered = ready.r_data[8 * width : 9 * width]
                m.d.sync += [
                    axi.wdata.eq(ready.r_data[: 8 * width]),
                    axi.wstrb.eq(Mux(halt, 0, offered)),
                    axi.wlast.eq(ready.r_data[-1]),
                ]
        return (ready.r_rdy & ready.r_en) + (taken & ~taken_piece.beat_ends)

    def _elaborate_responses(
        self, m: Module, responses: fifo.SyncFIFO, halt: Signal, dead: Signal
    ) -> None:
        """Take write responses in order, retire instructions, report faults."""
        axi = self.axi
        head = data.View(self._response_layout, responses.r_data)
        waits = Signal()  # the head is a burst
        done = Signal()
        failed = Signal()
        m.d.comb += [
            waits.eq(responses.r_rdy & (head.kind == EntryKind.BURST)),
            axi.bready.eq(halt | waits),
            failed.eq(waits & axi.bvalid & axi.bresp[1]),
            done.eq(
                ~halt
                & Mux(
                    head.kind == EntryKind.BURST,
                    waits & axi.bvalid & ~axi.bresp[1],
                    responses.r_rdy & (head.kind == EntryKind.ABSENT),
                )
            ),
            responses.r_en.eq(done),
            self.engine.retire.eq(done & head.last),
        ]
        fault = self.engine.fault
        m.d.sync += fault.valid.eq(0)
        with m.If(~halt & (failed | (responses.r_rdy & (head.kind == EntryKind.FAULT)))):
            m.d.sync += [
                dead.eq(1),
                fault.valid.eq(1),
                fault.cause.eq(Mux(failed, FaultCause.WRITE_ERROR, head.cause)),
                fault.instruction.eq(head.instruction),
                fault.address.eq(head.address),
            ]
