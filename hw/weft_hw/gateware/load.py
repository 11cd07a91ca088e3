"""The LOAD engine: from DRAM to the on-chip memories."""

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import (
    LOOKUP_ADDRESS_BITS,
    MEMORY_BITS,
    AccumulatorWritePort,
    AxiReadPort,
    EnginePort,
    WritePort,
)
from weft_hw.gateware.packed_rows import PackedPlace, rotated, unpacked_row
from weft_hw.gateware.pieces import PieceCutter
from weft_hw.gateware.transfer import (
    EntryKind,
    TransferGenerator,
    entry_layout,
    local_address_bits,
    packed_row_bits,
)
from weft_hw.instructions import Element, Load, Memory
from weft_hw.registers import FaultCause

__all__ = ["LoadEngine"]

# Of an entry: what each piece needs, what the cutter needs, what is left for responses and faults.
PIECE_FIELDS = ("kind", "memory", "element", "fill", "last")
RUN_FIELDS = (*PIECE_FIELDS, "offset", "local", "bytes")
NOTE_FIELDS = ("address", "instruction", "cause")
BUS_FIELDS = ("address", "beats")


class LoadEngine(wiring.Component):
    """Executes LOAD (docs/machine.md): byte ``local + i`` of a run is byte ``dram + i`` of DRAM.

    Of accumulators these are packed bytes (:mod:`weft_hw.gateware.packed_rows`): what a beat holds
    of one row is rotated to its place there, sign-extended and written in one step.

    A :class:`~weft_hw.gateware.transfer.TransferGenerator` runs ahead: its bursts go to the bus as
    fast as it takes them, at most ``max_outstanding`` in flight, across instructions. A queue of as
    many entries remembers them, and the runs to fill and the faults between them, for the response
    side, which handles one entry after the other.

    Flow control: one beat a cycle is taken from the bus and written, unless the memory refuses:
    then the bus waits. A beat with elements of several accumulator rows takes a cycle for each of
    them. Absent runs are filled a line a cycle (parameter memory: a beat; accumulators: a row).

    Timing: address valid three cycles after acceptance; a beat is presented to the memory in the
    cycle after its transfer. ``retire`` is high in the cycle after the memory took an instruction's
    last byte.

    Faults: a failed check is reported once all earlier instructions have retired, an error response
    once all earlier beats are written, with the burst's address. After that, or with ``stop``, the
    engine issues no burst, drops the beats still to come and retires nothing.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    engine : In(EnginePort(Load))
    axi : Out(AxiReadPort(config))
    activation, weight : Out(WritePort(bits of the memory, line_bytes))
    parameter : Out(WritePort(bits of parameter_bytes, bus_bytes))
    lookup : Out(WritePort(bits of all tables, bus_bytes))
    accumulator : Out(AccumulatorWritePort(config))
    beat : Out(1)
        A data beat is transferred.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        parameter_bits = (config.parameter_bytes - 1).bit_length()
        super().__init__(
            {
                "engine": In(EnginePort(Load)),
                "axi": Out(AxiReadPort(config)),
                "activation": Out(WritePort(config.activation_address_bits, config.line_bytes)),
                "weight": Out(WritePort(config.weight_address_bits, config.line_bytes)),
                "parameter": Out(WritePort(parameter_bits, config.bus_bytes)),
                "lookup": Out(WritePort(LOOKUP_ADDRESS_BITS, config.bus_bytes)),
                "accumulator": Out(AccumulatorWritePort(config)),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.generator = generator = TransferGenerator(config, Load)
        depth = max(2, config.max_outstanding)
        # The queue in two: what cuts a burst into pieces runs ahead of its beats.
        entry = entry_layout(config)
        self._run_layout = data.StructLayout({name: entry[name].shape for name in RUN_FIELDS})
        self._note_layout = data.StructLayout({name: entry[name].shape for name in NOTE_FIELDS})
        # One more place: its output register may be empty for a cycle while the others are full.
        width = self._run_layout.size
        m.submodules.runs = runs = fifo.SyncFIFOBuffered(width=width, depth=depth + 1)
        m.submodules.notes = notes = fifo.SyncFIFO(width=self._note_layout.size, depth=depth)
        m.submodules.cutter = cutter = self._cutter()
        dead = Signal()  # after a fault of its own
        halt = Signal()
        m.d.comb += halt.eq(dead | self.engine.stop)
        wiring.connect(m, generator.instruction, wiring.flipped(self.engine.instruction))

        self._elaborate_requests(m, generator, runs, notes, halt)
        self._elaborate_runs(m, runs, cutter)
        waiting = self._elaborate_responses(m, cutter, notes, halt, dead)

        inside = Signal(range(depth + 8))
        accepted = self.engine.instruction.valid & self.engine.instruction.ready
        m.d.sync += inside.eq(inside + accepted - self.engine.retire)
        m.d.comb += [self.engine.busy.eq(inside.any()), self.engine.stall.eq(waiting)]
        return m

    def _cutter(self) -> PieceCutter:
        config = self._config
        entry = entry_layout(config)
        largest = max(config.line_bytes, 1 << packed_row_bits(config, Element.INT32))
        return PieceCutter(
            local_bits=local_address_bits(config),
            size_bits=largest.bit_length(),
            fields=data.StructLayout({name: entry[name].shape for name in PIECE_FIELDS}),
        )

    def _elaborate_requests(
        self,
        m: Module,
        generator: TransferGenerator,
        runs: fifo.SyncFIFOBuffered,
        notes: fifo.SyncFIFO,
        halt: Signal,
    ) -> None:
        """Present bursts to the bus and note every entry in the queues."""
        axi = self.axi
        entry = generator.entry
        limit = self._config.max_outstanding
        outstanding = Signal(range(limit + 1))
        is_burst = entry.payload.kind == EntryKind.BURST
        free = (~axi.arvalid | axi.arready) & (outstanding != limit) & ~halt
        # A burst that the bus does not take waits here, so that no entry depends on the bus.
        layout = data.StructLayout({name: entry.payload[name].shape() for name in BUS_FIELDS})
        spare = Signal(layout, name="spare_burst", reset_less=True)
        spare_valid = Signal(name="spare_burst_valid")
        arrives, issue = Signal(name="burst_arrives"), Signal()
        burst = data.View(layout, Cat(entry.payload[name] for name in BUS_FIELDS))
        chosen = data.View(layout, Mux(spare_valid, spare.as_value(), burst.as_value()))
        run = data.View(self._run_layout, runs.w_data)
        note = data.View(self._note_layout, notes.w_data)
        m.d.comb += [
            # A note stays longer than the run that it belongs to.
            entry.ready.eq(notes.w_rdy & ~halt & ~spare_valid),
            arrives.eq(entry.valid & entry.ready & is_burst),
            issue.eq(free & (spare_valid | arrives)),
            *[run[name].eq(entry.payload[name]) for name in RUN_FIELDS],
            *[note[name].eq(entry.payload[name]) for name in NOTE_FIELDS],
            runs.w_en.eq(entry.valid & entry.ready),
            notes.w_en.eq(entry.valid & entry.ready),
            self.engine.bus_busy.eq(outstanding.any()),
        ]
        with m.If(issue):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(chosen.address),
                axi.arlen.eq(chosen.beats),
            ]
        with m.Elif(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        m.d.sync += spare_valid.eq((spare_valid | arrives) & ~issue)
        with m.If(~spare_valid):
            m.d.sync += spare.eq(burst)
        completed = axi.rvalid & axi.rready & axi.rlast
        m.d.sync += outstanding.eq(outstanding + issue - completed)

    def _elaborate_runs(self, m: Module, runs: fifo.SyncFIFOBuffered, cutter: PieceCutter) -> None:
        """Give each entry to the cutter, with the sizes of its beats and chunks."""
        config = self._config
        head = data.View(self._run_layout, runs.r_data)
        run = cutter.run.payload
        is_burst = head.kind == EntryKind.BURST
        row = PackedPlace(m, config, "target", head.local, head.element)
        m.d.comb += [
            cutter.run.valid.eq(runs.r_rdy),
            runs.r_en.eq(cutter.run.valid & cutter.run.ready),
            run.bytes.eq(head.bytes),
            run.aligned.eq(head.memory != Memory.ACCUMULATOR),
            *[run.fields[name].eq(head[name]) for name in PIECE_FIELDS],
        ]
        with m.If(is_burst):
            m.d.comb += run.room.eq(config.bus_bytes - head.offset)
            m.d.comb += run.room_size.eq(config.bus_bytes)
        with m.Elif(head.memory == Memory.ACCUMULATOR):
            m.d.comb += [run.room.eq(row.left), run.room_size.eq(row.size)]
        with m.Else():
            by_beats = (head.memory == Memory.PARAMETER) | (head.memory == Memory.LOOKUP)
            width = Mux(by_beats, config.bus_bytes, config.line_bytes)
            m.d.comb += [run.room.eq(width), run.room_size.eq(width)]
        with m.If(head.memory == Memory.ACCUMULATOR):
            m.d.comb += run.local.eq(head.local)
            m.d.comb += [run.chunk.eq(row.left), run.chunk_size.eq(row.size)]
        with m.Else():  # every beat is one
            # Lanes before the run's first byte are not strobed: the address may wrap below zero.
            m.d.comb += run.local.eq(head.local - Mux(is_burst, head.offset, 0))
            m.d.comb += [run.chunk.eq(run.room), run.chunk_size.eq(run.room_size)]

    def _elaborate_responses(
        self, m: Module, cutter: PieceCutter, notes: fifo.SyncFIFO, halt: Signal, dead: Signal
    ) -> Signal:
        """Write piece by piece; the result is high while a memory or the bus holds it up."""
        config = self._config
        axi = self.axi
        line = config.line_bytes
        step = Signal()
        here, piece = self._elaborate_places(m, cutter, step)
        is_burst = piece.kind == EntryKind.BURST
        error = axi.rresp[1]
        m.submodules.writer = writer = _Writer(config)
        for name in ("activation", "weight", "parameter", "lookup", "accumulator"):
            wiring.connect(m, getattr(writer, name), wiring.flipped(getattr(self, name)))
        retired = Signal()
        m.d.sync += retired.eq(writer.finished)
        m.d.comb += [
            axi.rready.eq(halt | (here & is_burst & writer.i.ready & (piece.exhausted | error))),
            self.beat.eq(axi.rvalid & axi.rready),
            step.eq(writer.i.valid & writer.i.ready),
            notes.r_en.eq(step & piece.run_ends),
            writer.i.valid.eq(
                here & ~halt & Mux(is_burst, axi.rvalid & ~error, piece.kind == EntryKind.ABSENT)
            ),
            writer.i.payload.memory.eq(piece.memory),
            writer.i.payload.element.eq(Mux(is_burst, piece.element, Element.INT8)),
            writer.i.payload.address.eq(piece.address),
            writer.i.payload.strobe.eq(
                Cat((lane >= piece.low) & (lane < piece.high) for lane in range(line))
            ),
            writer.i.payload.last.eq(piece.last & piece.run_ends),
            self.engine.retire.eq(retired & ~self.engine.stop),
        ]
        with m.If(is_burst):
            m.d.comb += writer.i.payload.data.eq(rotated(m, axi.rdata, piece.turn))
        with m.Else():
            m.d.comb += writer.i.payload.data.eq(piece.fill.replicate(line))

        # A fault is noted at once and reported when all that came before it is written.
        fault = self.engine.fault
        note = data.View(self._note_layout, notes.r_data)
        pending = Signal()
        failed_read = is_burst & axi.rvalid & axi.rready & error
        with m.If(here & ~halt & (failed_read | (piece.kind == EntryKind.FAULT))):
            m.d.sync += [dead.eq(1), pending.eq(1)]
            m.d.sync += [fault.instruction.eq(note.instruction), fault.address.eq(note.address)]
            m.d.sync += fault.cause.eq(Mux(is_burst, FaultCause.READ_ERROR, note.cause))
        m.d.comb += fault.valid.eq(pending & writer.empty & ~retired)
        with m.If(fault.valid):
            m.d.sync += pending.eq(0)

        waiting = Signal()
        m.d.comb += waiting.eq(here & (~writer.i.ready | (is_burst & ~axi.rvalid)))
        return waiting

    def _elaborate_places(
        self, m: Module, cutter: PieceCutter, step: Signal
    ) -> tuple[Signal, Signal]:
        """The piece at hand, in a register until ``step``: where it goes, worked out beforehand."""
        config = self._config
        line, beat = config.line_bytes, config.bus_bytes
        source, fields = cutter.piece.payload, cutter.piece.payload.fields
        layout = data.StructLayout(
            {
                **{name: fields[name].shape() for name in PIECE_FIELDS},
                "address": unsigned(local_address_bits(config)),  # of accumulators: a row
                # Bytes, or lanes of a row: from the first one to before the last one.
                "low": unsigned((line - 1).bit_length()),
                "high": unsigned(line.bit_length()),
                "turn": unsigned((beat - 1).bit_length()),  # bytes by which the beat is rotated
                "run_ends": unsigned(1),
                "exhausted": unsigned(1),  # the beat is not needed any more after this piece
            }
        )
        piece = Signal(layout, name="place", reset_less=True)
        here = Signal(name="place_valid")
        row = PackedPlace(m, config, "piece", source.local, fields.element)
        in_rows = fields.memory == Memory.ACCUMULATOR
        offset = Signal(range(beat), name="piece_offset")
        count = Signal.like(source.width, name="piece_count")
        m.d.comb += [
            offset.eq(Mux(fields.kind == EntryKind.BURST, beat - source.room, 0)),
            count.eq(Mux(source.run_ends, source.left, source.width)),
            cutter.piece.ready.eq(~here | step),
        ]
        with m.If(cutter.piece.ready):
            m.d.sync += here.eq(cutter.piece.valid)
            m.d.sync += [piece[name].eq(fields[name]) for name in PIECE_FIELDS]
            m.d.sync += [
                piece.address.eq(Mux(in_rows, row.row, source.local)),
                piece.low.eq(Mux(in_rows, row.place >> fields.element, offset)),
                piece.high.eq(Mux(in_rows, (row.place + count) >> fields.element, offset + count)),
                piece.turn.eq(Mux(in_rows, row.place - offset, 0)),
                piece.run_ends.eq(source.run_ends),
                piece.exhausted.eq(source.run_ends | source.beat_ends),
            ]
        return here, piece


class _Writer(wiring.Component):
    """Holds a write until the memory that it is for takes it, and one more, so that ``i.ready`` is
    a register.

    Members
    -------
    i : In(stream of (memory, element, address, data, strobe, last))
        For accumulators the address is a row, the strobe has a bit a lane, and the data are of
        packed elements of that width, which are extended here.
    activation, weight, parameter, lookup : Out(WritePort)
    accumulator : Out(AccumulatorWritePort)
    finished : Out(1)
        A write with ``last`` is taken in this cycle.
    empty : Out(1)
        Nothing is held.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        line = config.line_bytes
        parameter_bits = (config.parameter_bytes - 1).bit_length()
        self._payload = data.StructLayout(
            {
                "memory": unsigned(MEMORY_BITS),
                "element": unsigned(2),
                "address": unsigned(local_address_bits(config)),
                "data": unsigned(8 * line),
                "strobe": unsigned(line),
                "last": unsigned(1),
            }
        )
        super().__init__(
            {
                "i": In(stream.Signature(self._payload)),
                "activation": Out(WritePort(config.activation_address_bits, line)),
                "weight": Out(WritePort(config.weight_address_bits, line)),
                "parameter": Out(WritePort(parameter_bits, config.bus_bytes)),
                "lookup": Out(WritePort(LOOKUP_ADDRESS_BITS, config.bus_bytes)),
                "accumulator": Out(AccumulatorWritePort(config)),
                "finished": Out(1),
                "empty": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal(self._payload, reset_less=True)
        valid = Signal()
        valid_for = {memory: Signal(name=f"valid_for_{memory.name.lower()}") for memory in Memory}
        taken = Signal()
        ports = {
            Memory.ACTIVATION: self.activation,
            Memory.WEIGHT: self.weight,
            Memory.PARAMETER: self.parameter,
            Memory.LOOKUP: self.lookup,
            Memory.ACCUMULATOR: self.accumulator,
        }
        for memory, port in ports.items():
            m.d.comb += port.valid.eq(valid_for[memory])
        m.d.comb += taken.eq(Cat(port.valid & port.ready for port in ports.values()).any())
        for port in ports.values():
            m.d.comb += [port.address.eq(held.address), port.strobe.eq(held.strobe)]
        beat = held.data[: self._config.bus_width]
        row = unpacked_row(m, self._config, beat, held.element)
        m.d.comb += self.accumulator.data.eq(row)
        for port in (self.activation, self.weight, self.parameter, self.lookup):
            m.d.comb += port.data.eq(held.data)
        spare = Signal(self._payload, reset_less=True)
        spare_valid = Signal()
        m.d.comb += [
            self.i.ready.eq(~spare_valid),
            self.finished.eq(taken & held.last),
            self.empty.eq(~valid),
        ]
        following = Signal(self._payload)
        arrives = Signal()
        m.d.comb += [
            following.eq(Mux(spare_valid, spare.as_value(), self.i.payload.as_value())),
            arrives.eq(self.i.valid | spare_valid),
        ]
        with m.If(~valid | taken):
            m.d.sync += [valid.eq(arrives), spare_valid.eq(0), held.eq(following)]
            for memory, valid_there in valid_for.items():
                m.d.sync += valid_there.eq(arrives & (following.memory == memory))
        with m.Elif(self.i.valid):
            m.d.sync += spare_valid.eq(1)
        with m.If(~spare_valid):  # whether it is needed is known late
            m.d.sync += spare.eq(self.i.payload)
        return m
