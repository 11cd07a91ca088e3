"""The LOAD engine: from DRAM to the on-chip memories."""

from amaranth.hdl import Module, Mux, Signal, unsigned
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
from weft_hw.gateware.transfer import (
    EntryKind,
    TransferGenerator,
    entry_layout,
    local_address_bits,
    packed_row_bits,
)
from weft_hw.instructions import STRIDE_BITS, Element, Load, Memory
from weft_hw.registers import FaultCause

__all__ = ["LoadEngine"]


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
    cycle after its transfer. ``retire`` is high in the cycle in which the memory takes an
    instruction's last byte.

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
        layout = entry_layout(self._config)
        m.submodules.generator = generator = TransferGenerator(self._config, Load)
        m.submodules.queue = queue = fifo.SyncFIFO(
            width=layout.size, depth=max(2, self._config.max_outstanding)
        )
        dead = Signal()  # after a fault of its own
        halt = Signal()
        m.d.comb += halt.eq(dead | self.engine.stop)
        wiring.connect(m, generator.instruction, wiring.flipped(self.engine.instruction))

        self._elaborate_requests(m, generator, queue, halt)
        waiting = self._elaborate_responses(m, data.View(layout, queue.r_data), queue, halt, dead)

        inside = Signal(range(queue.depth + 4))
        accepted = self.engine.instruction.valid & self.engine.instruction.ready
        m.d.sync += inside.eq(inside + accepted - self.engine.retire)
        m.d.comb += [self.engine.busy.eq(inside.any()), self.engine.stall.eq(waiting)]
        return m

    def _elaborate_requests(
        self, m: Module, generator: TransferGenerator, queue: fifo.SyncFIFO, halt: Signal
    ) -> None:
        """Present bursts to the bus and note every entry in the queue."""
        axi = self.axi
        entry = generator.entry
        limit = self._config.max_outstanding
        outstanding = Signal(range(limit + 1))
        is_burst = entry.payload.kind == EntryKind.BURST
        free = (~axi.arvalid | axi.arready) & (outstanding != limit)
        issue = Signal()
        m.d.comb += [
            entry.ready.eq(queue.w_rdy & ~halt & (free | ~is_burst)),
            issue.eq(entry.valid & entry.ready & is_burst),
            queue.w_data.eq(entry.payload),
            queue.w_en.eq(entry.valid & entry.ready),
            self.engine.bus_busy.eq(outstanding.any()),
        ]
        with m.If(issue):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(entry.payload.address),
                axi.arlen.eq(entry.payload.beats),
            ]
        with m.Elif(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        completed = axi.rvalid & axi.rready & axi.rlast
        m.d.sync += outstanding.eq(outstanding + issue - completed)

    def _elaborate_responses(
        self, m: Module, head: data.View, queue: fifo.SyncFIFO, halt: Signal, dead: Signal
    ) -> Signal:
        """Work through the queue; the result is high while a memory or the bus holds it up."""
        config = self._config
        axi = self.axi
        line, beat = config.line_bytes, config.bus_bytes
        widest = max(line, 1 << packed_row_bits(config, Element.INT32))

        is_burst = Signal()
        in_rows = Signal()  # accumulators
        first = Signal(init=1)  # the head entry was not begun
        next_offset = Signal.like(head.offset, reset_less=True)
        next_local = Signal(local_address_bits(config), reset_less=True)
        next_left = Signal(STRIDE_BITS, reset_less=True)
        local = Signal(local_address_bits(config))
        left = Signal(STRIDE_BITS)
        offset = Signal.like(head.offset)
        room = Signal(range(beat + 1))  # bytes of the beat
        width = Signal(range(widest + 1))  # bytes that one step can move
        count = Signal(range(widest + 1))
        final = Signal()
        exhausted = Signal()  # the beat is not needed any more after this step
        m.d.comb += [
            is_burst.eq(head.kind == EntryKind.BURST),
            in_rows.eq(head.memory == Memory.ACCUMULATOR),
            local.eq(Mux(first, head.local, next_local)),
            left.eq(Mux(first, head.bytes, next_left)),
            offset.eq(Mux(first, Mux(is_burst, head.offset, 0), next_offset)),
            room.eq(beat - offset),
            final.eq(left <= width),
            count.eq(Mux(final, left, width)),
            exhausted.eq(final | ~in_rows | (count == room)),
        ]
        row = PackedPlace(m, config, "target", local, head.element)
        with m.If(is_burst):
            m.d.comb += width.eq(Mux(in_rows & (row.left < room), row.left, room))
        with m.Elif(in_rows):
            m.d.comb += width.eq(row.left)
        with m.Elif((head.memory == Memory.PARAMETER) | (head.memory == Memory.LOOKUP)):
            m.d.comb += width.eq(beat)
        with m.Else():
            m.d.comb += width.eq(line)

        error = axi.rresp[1]
        step = Signal()
        m.submodules.writer = writer = _Writer(config)
        for name in ("activation", "weight", "parameter", "lookup", "accumulator"):
            wiring.connect(m, getattr(writer, name), wiring.flipped(getattr(self, name)))
        m.d.comb += [
            axi.rready.eq(halt | (queue.r_rdy & is_burst & writer.i.ready & (exhausted | error))),
            self.beat.eq(axi.rvalid & axi.rready),
            step.eq(writer.i.valid & writer.i.ready),
            queue.r_en.eq(step & final),
            writer.i.valid.eq(
                queue.r_rdy
                & ~halt
                & Mux(is_burst, axi.rvalid & ~error, head.kind == EntryKind.ABSENT)
            ),
            writer.i.payload.memory.eq(head.memory),
            writer.i.payload.element.eq(Mux(is_burst, head.element, Element.INT8)),
            # Lanes before the run's first byte are not strobed: the address may wrap below zero.
            writer.i.payload.address.eq(Mux(in_rows, row.row, local - offset)),
            writer.i.payload.last.eq(head.last & final),
            self.engine.retire.eq(writer.finished & ~self.engine.stop),
        ]
        # Strobed are bytes, or lanes of a row.
        low, high = Signal(range(line)), Signal(range(line + 1))
        m.d.comb += [low.eq(offset), high.eq(offset + count)]
        with m.If(in_rows):
            m.d.comb += low.eq(row.place >> head.element)
            m.d.comb += high.eq((row.place + count) >> head.element)
        for lane in range(line):
            m.d.comb += writer.i.payload.strobe[lane].eq((lane >= low) & (lane < high))
        turn = Signal(range(beat))
        m.d.comb += turn.eq(Mux(in_rows, row.place - offset, 0))
        with m.If(is_burst):
            m.d.comb += writer.i.payload.data.eq(rotated(m, axi.rdata, turn))
        with m.Else():
            m.d.comb += writer.i.payload.data.eq(head.fill.replicate(line))
        with m.If(step):
            m.d.sync += [
                first.eq(final),
                next_offset.eq(Mux(exhausted, 0, offset + count)),
                next_local.eq(local + count),
                next_left.eq(left - count),
            ]

        # A fault is noted at once and reported when all that came before it is written.
        fault = self.engine.fault
        pending = Signal()
        failed_read = is_burst & axi.rvalid & axi.rready & error
        with m.If(queue.r_rdy & ~halt & (failed_read | (head.kind == EntryKind.FAULT))):
            m.d.sync += [dead.eq(1), pending.eq(1)]
            m.d.sync += [fault.instruction.eq(head.instruction), fault.address.eq(head.address)]
            m.d.sync += fault.cause.eq(Mux(is_burst, FaultCause.READ_ERROR, head.cause))
        m.d.comb += fault.valid.eq(pending & writer.empty)
        with m.If(fault.valid):
            m.d.sync += pending.eq(0)

        waiting = Signal()
        no_beat = queue.r_rdy & is_burst & ~axi.rvalid
        m.d.comb += waiting.eq(~writer.i.ready | no_beat)
        return waiting


class _Writer(wiring.Component):
    """Holds one write until the memory that it is for takes it.

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
        taken = Signal()
        ports = {
            Memory.ACTIVATION: self.activation,
            Memory.WEIGHT: self.weight,
            Memory.PARAMETER: self.parameter,
            Memory.LOOKUP: self.lookup,
            Memory.ACCUMULATOR: self.accumulator,
        }
        with m.Switch(held.memory):
            for memory, port in ports.items():
                with m.Case(memory):
                    m.d.comb += [port.valid.eq(valid), taken.eq(valid & port.ready)]
        for port in ports.values():
            m.d.comb += [port.address.eq(held.address), port.strobe.eq(held.strobe)]
        beat = held.data[: self._config.bus_width]
        row = unpacked_row(m, self._config, beat, held.element)
        m.d.comb += self.accumulator.data.eq(row)
        for port in (self.activation, self.weight, self.parameter, self.lookup):
            m.d.comb += port.data.eq(held.data)
        m.d.comb += [
            self.i.ready.eq(~valid | taken),
            self.finished.eq(taken & held.last),
            self.empty.eq(~valid),
        ]
        with m.If(self.i.ready):
            m.d.sync += valid.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += held.eq(self.i.payload)
        return m
