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

    Timing: an instruction's first entry is valid four cycles after its acceptance: the loop nest
    takes two, then its trip is measured, checked, and split. From then on one entry a cycle, across
    runs; the next instruction is taken when the last trip has left the nest.

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
        entry = entry_layout(config)
        kept = ("bytes", "memory", "element", "fill", "last", "instruction", "cause")
        self._trip = data.StructLayout(
            {
                "exists": unsigned(1),
                "local": signed(LOCAL_STREAM_BITS),
                "last_local": signed(LOCAL_STREAM_BITS + 1),
                "dram": signed(DRAM_STREAM_BITS),
                "last_dram": signed(DRAM_STREAM_BITS + 1),
                "packed": entry["local"].shape,
                **{name: entry[name].shape for name in kept},
            }
        )
        super().__init__(
            {
                "instruction": In(stream.Signature(self._payload)),
                "entry": Out(stream.Signature(entry_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        accept = Signal()
        take = Signal()  # the nest's trip goes on to be checked
        active = Signal()  # the held instruction has a trip that was not taken yet
        dead = Signal()  # after a fault
        held = Signal(self._payload, reset_less=True)
        nest = self._elaborate_nest(m, held, accept, take)

        m.d.comb += accept.eq(self.instruction.valid & self.instruction.ready)
        m.d.comb += self.instruction.ready.eq(~active & ~dead)
        with m.If(accept):
            m.d.sync += [held.eq(self.instruction.payload), active.eq(1)]
        with m.Elif(take & nest.finished):
            m.d.sync += active.eq(0)

        trip = Signal(self._trip, reset_less=True)
        trip_valid = Signal()
        # A trip that is not checked at once waits here, so that no nest depends on the entries.
        spare = Signal(self._trip, name="spare_trip", reset_less=True)
        spare_valid = Signal(name="spare_trip_valid")
        check = Signal()  # the trip's run goes on to be split
        free = Signal(name="trip_free")
        measured = Signal(self._trip, name="measured_trip")
        m.d.comb += [
            *[measured[name].eq(value) for name, value in self._measured(m, held, nest).items()],
            take.eq(active & nest.ready & ~spare_valid),
            free.eq(~trip_valid | check),
        ]
        with m.If(free):
            m.d.sync += [
                trip.eq(Mux(spare_valid, spare.as_value(), measured.as_value())),
                trip_valid.eq(spare_valid | take),
            ]
        with m.If(~spare_valid):
            m.d.sync += spare.eq(measured)
        m.d.sync += spare_valid.eq((spare_valid | take) & ~free)

        run = Signal(entry_layout(self._config), reset_less=True)  # what is left of it
        run_valid = Signal()
        last_byte = Signal(STRIDE_BITS + 1, reset_less=True)  # from the block in which it begins
        final = Signal(reset_less=True)  # the next entry is the run's last
        done = self._elaborate_split(m, run, run_valid, last_byte, final)
        cause, address = self._elaborate_checks(m, trip)
        m.d.comb += check.eq(trip_valid & ~dead & (~run_valid | done))
        end = Signal.like(last_byte, name="run_end")
        m.d.comb += end.eq(trip.dram[: self._block_bits] + trip.bytes - 1)
        with m.If(check):
            dropped = ~trip.exists & ~trip.last if self._kind is Store else Const(0)
            m.d.sync += [
                run_valid.eq((cause != FaultCause.NONE) | ~dropped),
                dead.eq(cause != FaultCause.NONE),
                run.kind.eq(Mux(trip.exists, EntryKind.BURST, EntryKind.ABSENT)),
                run.address.eq(address),
                run.local.eq(trip.packed),
                run.cause.eq(cause),
                last_byte.eq(end),
                final.eq(
                    ~trip.exists | (cause != FaultCause.NONE) | (end[self._block_bits :] == 0)
                ),
            ]
            for name in ("bytes", "memory", "element", "fill", "last", "instruction"):
                m.d.sync += run[name].eq(trip[name])
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
            handover=True,
        )
        arriving = self.instruction.payload.fields
        m.d.comb += [
            nest.load.eq(accept),
            nest.advance.eq(take),
            nest.first_counts.eq(arriving.counts),
            nest.counts.eq(held.fields.counts),
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

    def _measured(self, m: Module, held: data.View, nest: LoopNest) -> dict[str, Value]:
        """The nest's trip, with the ends of its run."""
        config, fields = self._config, held.fields
        rows = fields.memory == Memory.ACCUMULATOR
        # Bytes of the run but one, in DRAM and in units of the on-chip address.
        reach = Signal(STRIDE_BITS)
        further = Signal(STRIDE_BITS)
        shifts = Array(packed_row_bits(config, element) for element in Element)
        m.d.sync += reach.eq(fields.run_bytes - 1)  # valid when the nest is
        m.d.sync += further.eq(
            Mux(rows, (fields.run_bytes - 1) >> shifts[fields.element], fields.run_bytes - 1)
        )
        packed = Array(nest.local << packed_row_bits(config, element) for element in Element)
        static = self._static_cause(m, fields)
        return {
            "exists": (nest.coordinate >= 0) & (nest.coordinate < fields.extent),
            "local": nest.local,
            "last_local": nest.local + further,
            "dram": nest.dram,
            "last_dram": nest.dram + reach,
            "packed": Mux(rows, packed[fields.element], nest.local),
            "bytes": fields.run_bytes,
            "memory": fields.memory,
            "element": fields.element,
            "fill": fields.fill,
            "last": nest.finished,
            "instruction": held.offset,
            "cause": static,
        }

    def _static_cause(self, m: Module, fields: data.View) -> Signal:
        """The fault that the instruction's fields are, or NONE; registered, valid when the nest
        is.
        """
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

        cause = Signal(FaultCause, name="static_cause")
        with m.If(unsupported):
            m.d.sync += cause.eq(FaultCause.UNSUPPORTED_FIELD)
        with m.Elif(zero_count(self._kind, fields)):
            m.d.sync += cause.eq(FaultCause.ZERO_COUNT)
        with m.Elif(misplaced):
            m.d.sync += cause.eq(FaultCause.ALIGNMENT)
        with m.Else():
            m.d.sync += cause.eq(FaultCause.NONE)
        return cause

    def _elaborate_checks(self, m: Module, trip: data.View) -> tuple[Signal, Signal]:
        """The cause of the trip's fault, or NONE, and the address to report or start at."""
        config = self._config
        local_outside = Signal()
        dram_outside = Signal()
        # Sizes are powers of two: a byte is inside if no bit above, the sign included, is set.
        with m.Switch(trip.memory):
            for memory, size in (
                (Memory.ACTIVATION, config.activation_bytes),
                (Memory.WEIGHT, config.weight_bytes),
                (Memory.PARAMETER, config.parameter_bytes),
                (Memory.LOOKUP, LOOKUP_TABLES * LOOKUP_ENTRIES),
                (Memory.ACCUMULATOR, config.accumulator_total_rows),
            ):
                with m.Case(memory):
                    bits = (size - 1).bit_length()
                    m.d.comb += local_outside.eq((trip.local | trip.last_local)[bits:].any())
        width = config.address_width
        m.d.comb += dram_outside.eq((trip.dram | trip.last_dram)[width:].any())

        cause = Signal(FaultCause)
        address = Signal(DRAM_BITS)
        with m.If(trip.cause != FaultCause.NONE):
            m.d.comb += cause.eq(trip.cause)
        with m.Elif(local_outside & (trip.exists | (self._kind is Load))):
            m.d.comb += [cause.eq(FaultCause.LOCAL_ADDRESS), address.eq(trip.local)]
        with m.Elif(dram_outside & trip.exists):
            m.d.comb += [cause.eq(FaultCause.LOCAL_ADDRESS), address.eq(trip.dram)]
        with m.Else():
            m.d.comb += address.eq(trip.dram)
        return cause, address

    @property
    def _block_bits(self) -> int:
        return (self._config.burst_beats * self._config.bus_bytes - 1).bit_length()

    def _elaborate_split(
        self, m: Module, run: data.View, run_valid: Signal, last_byte: Signal, final: Signal
    ) -> Value:
        """Offer the run's next burst; the result is high when its last entry is taken."""
        config = self._config
        beat_bits = (config.bus_bytes - 1).bit_length()
        block_bits = self._block_bits
        entry = self.entry.payload
        place = run.address[:block_bits]  # within a block of burst_beats beats
        room = Signal(block_bits + 1)
        m.d.comb += [
            room.eq((1 << block_bits) - place),
            self.entry.valid.eq(run_valid),
            entry.eq(run),
        ]
        with m.If(run.kind == EntryKind.BURST):
            whole = (1 << (block_bits - beat_bits)) - 1
            last_beat = Mux(final, last_byte[beat_bits:block_bits], whole)
            m.d.comb += [
                entry.address[:beat_bits].eq(0),
                entry.offset.eq(place[:beat_bits]),
                entry.beats.eq(last_beat - place[beat_bits:]),
                entry.last.eq(run.last & final),
            ]
            with m.If(~final):
                m.d.comb += entry.bytes.eq(room)
        taken = self.entry.valid & self.entry.ready
        with m.If(taken & ~final):
            m.d.sync += [
                run.address[:block_bits].eq(0),
                run.address[block_bits:].eq(run.address[block_bits:] + 1),
                run.local.eq(run.local + room),
                run.bytes.eq(run.bytes - room),
                last_byte[block_bits:].eq(last_byte[block_bits:] - 1),
                final.eq(last_byte[block_bits:] == 1),
            ]
        return taken & final
