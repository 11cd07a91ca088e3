"""The STORE engine: from the activation scratchpad to DRAM."""

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, fifo, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import READ_LATENCY, AxiWritePort, EnginePort, ReadPort
from weft_hw.gateware.transfer import (
    EntryKind,
    TransferGenerator,
    local_address_bits,
)
from weft_hw.instructions import DRAM_BITS, Store
from weft_hw.registers import FaultCause

__all__ = ["StoreEngine"]

# Beats between a read request and the bus: as many as pass before the first one's place is free.
BEATS_IN_FLIGHT = READ_LATENCY + 2


class StoreEngine(wiring.Component):
    """Executes STORE (docs/machine.md): byte ``dram + i`` of DRAM becomes byte ``local + i``.

    A :class:`~weft_hw.gateware.transfer.TransferGenerator` gives bursts; each one's address goes to
    the bus, and two queues note it: one for the read side, which fetches its beats from the
    scratchpad, one for the response side, which waits for its response and reports. At most
    ``max_outstanding`` bursts lack their response, across instructions.

    Flow control: a beat is read from the scratchpad only if there is room for it behind the read
    latency. Its address is such that the bytes come in their bus lanes; lanes beyond the run are
    not strobed. A burst's first data beat is never offered before its address.

    Timing: address valid three cycles after acceptance; one beat a cycle, across bursts and
    instructions. ``retire`` is high in the cycle of an instruction's last write response.

    Faults: a failed check is reported once all earlier instructions have retired, an error response
    when it comes, with the burst's address. After that, or with ``stop``, no burst is issued, those
    issued are completed with strobes off, and nothing retires.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    engine : In(EnginePort(Store))
    activation : Out(ReadPort(activation_address_bits, line_bytes))
    axi : Out(AxiWritePort(config))
    beat : Out(1)
        A data beat is transferred.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._beats_layout = data.StructLayout(
            {
                "local": unsigned(local_address_bits(config)),
                "offset": unsigned((config.bus_bytes - 1).bit_length()),
                "bytes": unsigned((config.burst_beats * config.bus_bytes).bit_length()),
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
        moved = (
            self.beat | (axi.bvalid & axi.bready) | (self.activation.valid & self.activation.ready)
        )
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
        free = (~axi.awvalid | axi.awready) & (outstanding != limit)
        taken = entry.valid & entry.ready
        issue = Signal()
        noted = data.View(self._beats_layout, beats.w_data)
        awaited = data.View(self._response_layout, responses.w_data)
        m.d.comb += [
            entry.ready.eq(responses.w_rdy & ~halt & (free | ~is_burst)),
            issue.eq(taken & is_burst),
            beats.w_en.eq(issue),
            responses.w_en.eq(taken),
            *[noted[name].eq(entry.payload[name]) for name, _ in self._beats_layout],
            *[awaited[name].eq(entry.payload[name]) for name, _ in self._response_layout],
            self.engine.bus_busy.eq(outstanding.any()),
        ]
        with m.If(issue):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(entry.payload.address),
                axi.awlen.eq(entry.payload.beats),
            ]
        with m.Elif(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        m.d.sync += outstanding.eq(outstanding + issue - (axi.bvalid & axi.bready))

    def _elaborate_beats(self, m: Module, beats: fifo.SyncFIFO, halt: Signal) -> None:
        """Read each burst's beats from the scratchpad and pass them to the bus."""
        config = self._config
        axi, read = self.axi, self.activation
        width = config.bus_bytes
        head = data.View(self._beats_layout, beats.r_data)

        first = Signal(init=1)  # the head burst was not begun
        next_local = Signal.like(head.local, reset_less=True)
        next_left = Signal.like(head.bytes, reset_less=True)
        local = Mux(first, head.local, next_local)
        left = Signal.like(head.bytes)
        offset = Signal.like(head.offset)
        room = Signal(range(width + 1))
        count = Signal(range(width + 1))
        final = Signal()
        step = Signal()
        credits = Signal(range(BEATS_IN_FLIGHT + 1), init=BEATS_IN_FLIGHT)
        m.d.comb += [
            left.eq(Mux(first, head.bytes, next_left)),
            offset.eq(Mux(first, head.offset, 0)),
            room.eq(width - offset),
            final.eq(left <= room),
            count.eq(Mux(final, left, room)),
            read.valid.eq(beats.r_rdy & credits.any()),
            # Lanes before the run's first byte are not strobed: the address may wrap below zero.
            read.address.eq(local - offset),
            step.eq(read.valid & read.ready),
            beats.r_en.eq(step & final),
        ]
        with m.If(step):
            m.d.sync += [
                first.eq(final),
                next_local.eq(local + count),
                next_left.eq(left - count),
            ]

        # Strobes and the end mark travel beside the read data.
        end = Signal(range(width + 1))
        m.d.comb += end.eq(offset + count)
        strobe = Cat((lane >= offset) & (lane < end) for lane in range(width))
        beside = Cat(strobe, final)
        for stage in range(READ_LATENCY):
            delayed = Signal(width + 1, reset_less=True, name=f"beside_{stage}")
            m.d.sync += delayed.eq(beside)
            beside = delayed
        m.submodules.ready_beats = ready = fifo.SyncFIFO(width=9 * width + 1, depth=BEATS_IN_FLIGHT)
        free = ~axi.wvalid | axi.wready
        m.d.comb += [
            ready.w_data.eq(Cat(read.data[: 8 * width], beside)),
            ready.w_en.eq(read.data_valid),
            ready.r_en.eq(free),
            self.beat.eq(axi.wvalid & axi.wready),
        ]
        m.d.sync += credits.eq(credits - step + (ready.r_rdy & ready.r_en))
        with m.If(free):
            m.d.sync += axi.wvalid.eq(ready.r_rdy)
            with m.If(ready.r_rdy):
                # A beat already offered keeps its strobes, as AXI demands: hence this register.
                strobes = ready.r_data[8 * width : 9 * width]
                m.d.sync += [
                    axi.wdata.eq(ready.r_data[: 8 * width]),
                    axi.wstrb.eq(Mux(halt, 0, strobes)),
                    axi.wlast.eq(ready.r_data[-1]),
                ]

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
