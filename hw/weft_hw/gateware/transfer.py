"""What LOAD and STORE share: loops over runs, their checks, and splitting them into bursts.

The accumulator memory appears as bytes here: *packed*, which is how a transfer's elements would lie
if each row took as many bytes as in DRAM, C elements of the instruction's width.
"""

import enum
from functools import reduce
from operator import or_

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.checks import unsupported_field, zero_count
from weft_hw.gateware.interfaces import MEMORY_BITS, instruction_layout
from weft_hw.gateware.loops import LoopNest
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES
from weft_hw.instructions import (
    COUNT_BITS,
    DRAM_BITS,
    LOOPS_TRANSFER,
    STRIDE_BITS,
    Element,
    Load,
    Memory,
    Store,
)
from weft_hw.registers import FaultCause

__all__ = [
    "EntryKind",
    "TransferGenerator",
    "entry_layout",
    "local_address_bits",
    "packed_row_bits",
]

# Wide enough that no address or coordinate of any instruction wraps: base plus three loops.
DRAM_STREAM_BITS = DRAM_BITS + 8
LOCAL_STREAM_BITS = STRIDE_BITS + COUNT_BITS + 2
COORDINATE_STREAM_BITS = 8 + COUNT_BITS + 3


class EntryKind(enum.IntEnum):
    """What an entry asks for."""

    BURST = 0  # move bytes between DRAM and the on-chip memory
    ABSENT = 1  # a run without coordinate: LOAD fills it; STORE has only its end to note
    FAULT = 2  # stop here


def local_address_bits(config: AcceleratorConfig) -> int:
    """Bits of a byte address in the largest memory that LOAD and STORE reach."""
    largest = max(
        config.activation_bytes,
        config.weight_bytes,
        config.parameter_bytes,
        LOOKUP_TABLES * LOOKUP_ENTRIES,
        config.accumulator_total_rows << packed_row_bits(config, Element.INT32),
    )
    return (largest - 1).bit_length()


def packed_row_bits(config: AcceleratorConfig, element: Element) -> int:
    """Binary logarithm of the bytes of an accumulator row whose elements have that width."""
    return (config.columns - 1).bit_length() + element


def entry_layout(config: AcceleratorConfig) -> data.StructLayout:
    """One burst, absent run or fault.

    ``address`` is that of the burst's first beat, ``beats`` its length less one, ``offset`` the
    place of the run's first byte in that beat, ``local`` the on-chip address of that byte (of
    accumulators: packed), ``bytes`` the bytes of the run in this burst (absent: all of them). Of a
    fault, ``address`` and ``cause`` are to be reported. ``last`` marks an instruction's last entry.
    """
    return data.StructLayout(
        {
            "kind": unsigned(2),
            "address": unsigned(DRAM_BITS),
            "beats": unsigned(8),
            "offset": unsigned((config.bus_bytes - 1).bit_length()),
            "local": unsigned(local_address_bits(config)),
            "bytes": unsigned(STRIDE_BITS),
            "memory": unsigned(MEMORY_BITS),
            "element": unsigned(2),
            "fill": unsigned(8),
            "last": unsigned(1),
            "instruction": unsigned(32),
            "cause": FaultCause,
        }
    )


class TransferGenerator(wiring.Component):
    """Turn LOAD or STORE instructions into bursts, in loop order.

    Each run that exists becomes bursts of whole beats; a burst ends at the latest at the next
    multiple of ``burst_beats`` beats, hence never crosses 4 KiB. A run that does not exist becomes
    one entry (LOAD), or none unless it is its instruction's last (STORE).

    Checks: UNSUPPORTED_FIELD, ZERO_COUNT and ALIGNMENT before an instruction's first run,
    LOCAL_ADDRESS before each run that takes place: with the run's on-chip address if a byte of it
    lies outside the memory, with its DRAM address if a byte of it lies outside ``address_width``. A
    fault is an entry too, so that it can be reported in order; nothing follows it until reset.

    Timing: an instruction's first entry is valid three cycles after its acceptance; then one
    entry a cycle, across runs.

    Parameters
    ----------
    config : AcceleratorConfig
    kind : type of Load or Store

    Members
    -------
    instruction : In(stream of (fields, offset))
    entry : Out(stream of entry_layout(config))
    """

    def __init__(self, config: AcceleratorConfig, kind: type[Load] | type[Store]) -> None:
        self._config = config
        self._kind = kind
        self._payload = data.StructLayout({"fields": instruction_layout(kind), "offset": 32})
        super().__init__(
            {
                "instruction": In(stream.Signature(self._payload)),
                "entry": Out(stream.Signature(entry_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        accept = Signal()
        take = Signal()  # the current trip's run goes on to be split
        active = Signal()  # the held instruction has a trip that was not taken yet
        dead = Signal()  # after a fault
        held = Signal(self._payload, reset_less=True)
        nest = self._elaborate_nest(m, held, accept, take)

        m.d.comb += accept.eq(self.instruction.valid & self.instruction.ready)
        m.d.comb += self.instruction.ready.eq(~dead & (~active | (take & nest.finished)))
        with m.If(accept):
            m.d.sync += [held.eq(self.instruction.payload), active.eq(1)]
        with m.Elif(take & nest.finished):
            m.d.sync += active.eq(0)

        exists = Signal()
        m.d.comb += exists.eq((nest.coordinate >= 0) & (nest.coordinate < held.fields.extent))
        cause, address = self._elaborate_checks(m, held.fields, nest, exists)

        local = Signal(LOCAL_STREAM_BITS)
        m.d.comb += local.eq(nest.local)
        with m.If(held.fields.memory == Memory.ACCUMULATOR):
            packed = (nest.local << packed_row_bits(self._config, width) for width in Element)
            m.d.comb += local.eq(Array(packed)[held.fields.element])

        run = Signal(entry_layout(self._config), reset_less=True)  # what is left of it
        run_valid = Signal()
        done = self._elaborate_split(m, run, run_valid)
        m.d.comb += take.eq(active & nest.ready & ~dead & (~run_valid | done))
        with m.If(take):
            dropped = ~exists & ~nest.finished if self._kind is Store else Const(0)
            m.d.sync += [
                run_valid.eq((cause != FaultCause.NONE) | ~dropped),
                dead.eq(cause != FaultCause.NONE),
                run.kind.eq(Mux(exists, EntryKind.BURST, EntryKind.ABSENT)),
                run.address.eq(address),
                run.local.eq(local),
                run.bytes.eq(held.fields.run_bytes),
                run.memory.eq(held.fields.memory),
                run.element.eq(held.fields.element),
                run.fill.eq(held.fields.fill),
                run.last.eq(nest.finished),
                run.instruction.eq(held.offset),
                run.cause.eq(cause),
            ]
            with m.If(cause != FaultCause.NONE):
                m.d.sync += run.kind.eq(EntryKind.FAULT)
        with m.Elif(done):
            m.d.sync += run_valid.eq(0)
        return m

    def _elaborate_nest(self, m: Module, held: data.View, accept: Signal, take: Signal) -> LoopNest:
        m.submodules.nest = nest = LoopNest(
            loops=LOOPS_TRANSFER,
            streams={
                "dram": DRAM_STREAM_BITS,
                "local": LOCAL_STREAM_BITS,
                "coordinate": COORDINATE_STREAM_BITS,
            },
        )
        arriving = self.instruction.payload.fields
        m.d.comb += [
            nest.load.eq(accept),
            nest.advance.eq(take & ~nest.finished),
            nest.counts.eq(
                Mux(accept, Value.cast(arriving.counts), Value.cast(held.fields.counts))
            ),
            nest.dram_base.eq(arriving.dram_address),
            nest.local_base.eq(arriving.address),
            nest.coordinate_base.eq(arriving.origin),
        ]
        for i in range(LOOPS_TRANSFER):
            m.d.comb += [
                nest.dram_strides[i].eq(held.fields.dram_strides[i]),
                nest.local_strides[i].eq(held.fields.strides[i]),
                nest.coordinate_strides[i].eq(held.fields.steps[i]),
            ]
        return nest

    def _elaborate_checks(
        self, m: Module, fields: data.View, nest: LoopNest, exists: Signal
    ) -> tuple[Signal, Signal]:
        """The cause of the current run's fault, or NONE, and the address to report or start at."""
        config = self._config
        rows = fields.memory == Memory.ACCUMULATOR
        unsupported = unsupported_field(m, self._kind, fields)
        unsupported |= ~rows & (fields.element != Element.INT8)
        beat_bits = (config.bus_bytes - 1).bit_length()
        placed = [fields.dram_address, fields.address, fields.run_bytes]
        placed += [fields.dram_strides[i] for i in range(LOOPS_TRANSFER)]
        placed += [fields.strides[i] for i in range(LOOPS_TRANSFER)]
        unaligned = reduce(or_, (value[:beat_bits] for value in placed)).any()

        misplaced = Signal()
        by_beats = (fields.memory == Memory.PARAMETER) | (fields.memory == Memory.LOOKUP)
        # Elements have their natural alignment in DRAM; on chip they are rows and lanes.
        in_dram = [fields.dram_address, fields.run_bytes]
        in_dram += [fields.dram_strides[i] for i in range(LOOPS_TRANSFER)]
        low = Signal(Element.INT32)
        m.d.comb += low.eq(reduce(or_, (value[: Element.INT32] for value in in_dram)))
        with m.If(rows):
            element_unaligned = Array([Const(0), low[0], low.any(), Const(0)])[fields.element]
            m.d.comb += misplaced.eq(element_unaligned)
        with m.Else():
            m.d.comb += misplaced.eq(by_beats & unaligned)

        last_local = Signal(signed(LOCAL_STREAM_BITS + 1))
        last_dram = Signal(signed(DRAM_STREAM_BITS + 1))
        m.d.comb += last_local.eq(nest.local + fields.run_bytes - 1)
        with m.If(rows):
            further = [(fields.run_bytes - 1) >> packed_row_bits(config, e) for e in Element]
            m.d.comb += last_local.eq(nest.local + Array(further)[fields.element])
        m.d.comb += last_dram.eq(nest.dram + fields.run_bytes - 1)
        local_outside = Signal()
        dram_outside = Signal()
        # Sizes are powers of two: a byte is inside if no bit above, the sign included, is set.
        with m.Switch(fields.memory):
            for memory, size in (
                (Memory.ACTIVATION, config.activation_bytes),
                (Memory.WEIGHT, config.weight_bytes),
                (Memory.PARAMETER, config.parameter_bytes),
                (Memory.LOOKUP, LOOKUP_TABLES * LOOKUP_ENTRIES),
                (Memory.ACCUMULATOR, config.accumulator_total_rows),
            ):
                with m.Case(memory):
                    bits = (size - 1).bit_length()
                    m.d.comb += local_outside.eq(nest.local[bits:].any() | last_local[bits:].any())
        width = config.address_width
        m.d.comb += dram_outside.eq(nest.dram[width:].any() | last_dram[width:].any())

        cause = Signal(FaultCause)
        address = Signal(DRAM_BITS)
        with m.If(unsupported):
            m.d.comb += cause.eq(FaultCause.UNSUPPORTED_FIELD)
        with m.Elif(zero_count(self._kind, fields)):
            m.d.comb += cause.eq(FaultCause.ZERO_COUNT)
        with m.Elif(misplaced):
            m.d.comb += cause.eq(FaultCause.ALIGNMENT)
        with m.Elif(local_outside & (exists | (self._kind is Load))):
            m.d.comb += [cause.eq(FaultCause.LOCAL_ADDRESS), address.eq(nest.local)]
        with m.Elif(dram_outside & exists):
            m.d.comb += [cause.eq(FaultCause.LOCAL_ADDRESS), address.eq(nest.dram)]
        with m.Else():
            m.d.comb += address.eq(nest.dram)
        return cause, address

    def _elaborate_split(self, m: Module, run: data.View, run_valid: Signal) -> Value:
        """Offer the run's next burst; the result is high when its last entry is taken."""
        config = self._config
        beat_bits = (config.bus_bytes - 1).bit_length()
        block_bits = (config.burst_beats * config.bus_bytes - 1).bit_length()
        entry = self.entry.payload
        place = run.address[:block_bits]  # within a block of burst_beats beats
        room = Signal(block_bits + 1)
        end = Signal(STRIDE_BITS + 1)
        fits = Signal()
        m.d.comb += [
            room.eq((1 << block_bits) - place),
            end.eq(place + run.bytes - 1),
            fits.eq(end[block_bits:] == 0),
            self.entry.valid.eq(run_valid),
            entry.eq(run),
        ]
        final = Signal()
        m.d.comb += final.eq((run.kind != EntryKind.BURST) | fits)
        with m.If(run.kind == EntryKind.BURST):
            last_beat = Mux(fits, end[beat_bits:block_bits], (1 << (block_bits - beat_bits)) - 1)
            m.d.comb += [
                entry.address[:beat_bits].eq(0),
                entry.offset.eq(place[:beat_bits]),
                entry.beats.eq(last_beat - place[beat_bits:]),
                entry.last.eq(run.last & fits),
            ]
            with m.If(~fits):
                m.d.comb += entry.bytes.eq(room)
        taken = self.entry.valid & self.entry.ready
        with m.If(taken & ~final):
            m.d.sync += [
                run.address[:block_bits].eq(0),
                run.address[block_bits:].eq(run.address[block_bits:] + 1),
                run.local.eq(run.local + room),
                run.bytes.eq(run.bytes - room),
            ]
        return taken & final
