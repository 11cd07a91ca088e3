"""The MATRIX engine: runs matrix products from the scratchpads into the accumulator memory."""

from types import SimpleNamespace

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.accumulator_memory import UPDATE_LATENCY
from weft_hw.gateware.array import LEFT_BITS, SystolicArray
from weft_hw.gateware.checks import unsupported_field, zero_count
from weft_hw.gateware.interfaces import (
    READ_LATENCY,
    AccumulatorUpdatePort,
    EnginePort,
    ReadPort,
    instruction_layout,
)
from weft_hw.gateware.matrix_rows import row_nest
from weft_hw.gateware.tile_loader import TileLoader
from weft_hw.instructions import Bounds, Dataflow, LoadSide, Matrix, WeightBits
from weft_hw.registers import FaultCause

__all__ = ["MatrixEngine"]


class MatrixEngine(wiring.Component):
    """Executes MATRIX instructions (``docs/machine.md``) on a :class:`SystolicArray`.

    A :class:`TileLoader` requests weight tiles or top rows; the row nest requests left rows, which
    pass

        nest -> checks -> request queue -> left memory -> zero point -> array -> accumulator memory

    without back-pressure once the left memory has accepted them. A row that lies out of bounds
    takes its turn without a request. The order of the two streams is decided by the requests: see
    :class:`TileLoader` for the rule and why it holds. A tile takes max(``rows``, its left rows)
    cycles if neither memory stalls, also from one instruction to the next: an accepted instruction
    waits in a register, from which loader and row nest each take it when they have finished with
    the one before. Output-stationary, an output tile takes its left rows + ``rows`` + 1 cycles: one
    clears the sums, and each row of sums leaves in a cycle of its own, in which nothing is summed.

    An instruction retires once its last row is readable. A fault is reported when every row before
    it has been written and every earlier instruction has retired; after it nothing more happens.
    With ``stop`` nothing retires any more, and requests end a cycle later.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    engine : In(EnginePort(Matrix))
    left, top : Out(ReadPort)
        Activation and weight scratchpad.
    left_banks, top_banks : Out(activation_banks), Out(weight_banks)
        Those that the addresses need.
    update : Out(AccumulatorUpdatePort)
        ``pause`` is followed by one row's time without a request, at most once in the time that a
        row takes from its request to the accumulator memory.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "engine": In(EnginePort(Matrix)),
                "left": Out(ReadPort(config.activation_address_bits, config.left_port_bytes)),
                "left_banks": Out(config.activation_banks),
                "top_banks": Out(config.weight_banks),
                "top": Out(ReadPort(config.weight_address_bits, config.line_bytes)),
                "update": Out(AccumulatorUpdatePort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.array = self._array = SystolicArray(self._config)
        m.submodules.loader = self._loader = TileLoader(self._config)
        self._halted = Signal()
        # Halted in the cycle before: for requests, which other engines' choices follow.
        self._still = Signal()

        front = self._accept(m)
        row = row_nest(m, self._config, front)
        drain = self._request(m, row)
        self._feed_array(m, row, drain)
        drained = self._write_back(m, row, drain)
        self._report(m, front, row, drained)
        return m

    def _accept(self, m: Module) -> SimpleNamespace:
        """The next instruction, held until the loader and the row nest have both taken it."""
        port = self.engine.instruction
        loader = self._loader
        fields = Signal(instruction_layout(Matrix), name="front", reset_less=True)
        offset = Signal(32, name="front_offset", reset_less=True)
        valid = Signal(name="front_valid")
        # Of the held fields, from the second cycle on.
        unsupported, zero, sound = _bits("unsupported", "zero", "sound")
        unsupported_now, zero_now = _bits("unsupported_now", "zero_now")
        loader_took, nest_took = _bits("loader_took", "nest_took")
        nest_free, nest_start = _bits("nest_free", "nest_start")
        m.d.comb += [
            port.ready.eq(~valid & ~self._halted),
            unsupported_now.eq(unsupported_field(None, Matrix, fields) | self._unsupported(fields)),
            zero_now.eq(zero_count(Matrix, fields)),
            loader.start.eq(sound & ~loader_took & loader.free & ~self._halted),
            nest_start.eq(sound & ~nest_took & nest_free & ~self._halted),
            loader.instruction.eq(fields),
            loader.halt.eq(self._still),
        ]
        m.d.sync += self._still.eq(self._halted)
        loader_offset = Signal.like(offset, name="loader_offset")
        # Of the instruction that the loader's rows under check belong to.
        checked_offset = Signal.like(offset, name="loader_checked_offset")
        with m.If(~loader.stops):
            m.d.sync += checked_offset.eq(loader_offset)
        with m.If(loader.start):
            m.d.sync += [loader_took.eq(1), loader_offset.eq(offset)]
        with m.If(nest_start):
            m.d.sync += nest_took.eq(1)
        m.d.sync += [
            unsupported.eq(valid & unsupported_now),
            zero.eq(valid & zero_now),
            sound.eq(valid & ~unsupported_now & ~zero_now),
        ]
        with m.If((loader_took | loader.start) & (nest_took | nest_start)):
            m.d.sync += [valid.eq(0), sound.eq(0), loader_took.eq(0), nest_took.eq(0)]
        with m.If(port.valid & port.ready):
            m.d.sync += [
                valid.eq(1),
                fields.eq(port.payload.fields),
                offset.eq(port.payload.offset),
            ]
        return SimpleNamespace(
            fields=fields,
            offset=offset,
            valid=valid,
            unsupported=unsupported,
            zero=zero,
            nest_free=nest_free,
            nest_start=nest_start,
            loader_offset=checked_offset,
        )

    def _unsupported(self, fields: data.View) -> Value:
        """What :meth:`Matrix.unsupported` checks besides single fields."""
        stationary = fields.dataflow == Dataflow.OUTPUT_STATIONARY
        senseless = Mux(stationary, Bounds.ACCUMULATOR, Bounds.TOP)
        square = self._config.rows == self._config.columns
        sideways = fields.load_side == LoadSide.LEFT
        narrow = fields.weight_bits != WeightBits.EIGHT
        missing = fields.weight_bits >= len(self._config.weight_modes)
        plain = ~stationary & ~sideways & (fields.top_zero_point == 0)
        return (
            (fields.bounds == senseless)
            | (Const(0, 1) if square else sideways)
            | (narrow & (missing | ~plain))
        )

    @property
    def _row_latency(self) -> int:
        """Cycles from a row's request to its update of the accumulator memory."""
        return READ_LATENCY + 1 + self._array.latency

    def _request(self, m: Module, row: SimpleNamespace) -> SimpleNamespace:
        """Requests the row from the left memory as soon as its tile will be in the array.

        Returns what enters the array beside the rows: ``keep``; ``quiet``: zeros instead of a row;
        ``sums``: in this cycle a row of sums leaves, to accumulator row ``address``.
        """
        loader, current = self._loader, row.current
        rows = self._config.rows
        # Counters, and beside each a register that says whether it has run down: the request comes
        # early in its cycle, as arbitration follows.
        recharge = Signal(range(rows))  # cycles until the next whole tile may start
        recharged = Signal(init=1)
        patience = Signal(range(self._row_latency + 4))
        patient = Signal(init=1)
        waiting, allowed, halts = _bits("waiting", "allowed", "halts")
        summing = Signal()  # from the cycle after an output tile's clear to its last row of sums
        remaining = Signal(range(rows + 1))  # rows of sums to be shifted out
        clears, shifts, closes = _bits("clears", "shifts", "closes")
        ready = ~current.swap | (loader.loaded & (recharged | current.streams))
        begun = ~current.streams | summing
        pause = self.update.pause & patient & ~current.streams
        m.d.comb += [
            clears.eq(row.valid & current.streams & ~summing),
            halts.eq(pause | self._still),
            allowed.eq(row.valid & ready & begun & ~shifts & (waiting | ~halts)),
            self.left.valid.eq(allowed & current.reads),
            self.left.address.eq(current.address),
            self.left_banks.eq(current.banks),
            self.top_banks.eq(loader.top_banks),
            row.issued.eq(allowed & (self.left.ready | ~current.reads)),
            loader.swap_issued.eq(row.issued & current.swap),
            closes.eq(row.issued & current.closes),
        ]
        m.d.sync += waiting.eq(self.left.valid & ~self.left.ready)
        with m.If(loader.swap_issued):
            m.d.sync += [recharge.eq(rows - 1), recharged.eq(0)]
        with m.Elif(~recharged):
            m.d.sync += [recharge.eq(recharge - 1), recharged.eq(recharge == 1)]
        # Until the gap has reached the accumulator memory, the same wish is not granted twice.
        with m.If(pause & ~waiting):
            m.d.sync += [patience.eq(self._row_latency + 3), patient.eq(0)]
        with m.Elif(~patient):
            m.d.sync += [patience.eq(patience - 1), patient.eq(patience == 1)]

        address = Signal.like(current.accumulator, name="sums_address", reset_less=True)
        stride = Signal.like(current.row_stride, name="sums_stride", reset_less=True)
        add, last = Signal(name="sums_add", reset_less=True), Signal(name="sums_last")
        with m.If(clears):
            m.d.sync += summing.eq(1)
        with m.Elif(remaining == 1):
            m.d.sync += summing.eq(0)
        with m.If(closes):
            m.d.sync += [
                shifts.eq(1),
                remaining.eq(rows),
                address.eq(current.accumulator),
                stride.eq(current.row_stride),
                add.eq(current.add),
                last.eq(current.last),
            ]
        with m.Elif(shifts):
            m.d.sync += [
                shifts.eq(remaining != 1),
                remaining.eq(remaining - 1),
                address.eq(address - stride),
            ]

        left_waits = self.left.valid & ~self.left.ready
        top_waits = self.top.valid & ~self.top.ready & ~row.issued
        m.d.comb += self.engine.stall.eq(left_waits | top_waits)
        return SimpleNamespace(
            sums=shifts,
            keep=Mux(shifts, remaining, Mux(summing, rows, 0)),
            quiet=(clears | summing) & ~row.issued,
            address=address,
            add=add,
            last=last & (remaining == 1),
        )

    def _feed_array(self, m: Module, row: SimpleNamespace, drain: SimpleNamespace) -> None:
        """Subtracts the zero point of the row that arrives; connects the array's inputs."""
        rows = self._config.rows
        array, loader, issued = self._array, self._loader, row.issued
        # Bit or element k: k + 1 cycles after the request.
        valid = Signal(READ_LATENCY)
        quiet = Signal(READ_LATENCY)
        emits = Signal(READ_LATENCY + 1)
        swap = Signal(READ_LATENCY + 1)
        counts = Signal(READ_LATENCY, reset_less=True)
        m.d.sync += [
            valid.eq(Cat(issued, valid)),
            quiet.eq(Cat(drain.quiet, quiet)),
            emits.eq(Cat((issued & ~row.current.streams) | drain.sums, emits)),
            swap.eq(Cat(loader.swap_issued, swap)),
            counts.eq(Cat(row.current.counts, counts)),
        ]
        zero_point: Value = row.current.zero_point
        for k in range(READ_LATENCY):
            later = Signal(signed(8), name=f"zero_point_{k + 1}", reset_less=True)
            m.d.sync += later.eq(zero_point)
            zero_point = later
        splits: list[Value] = []
        if len(self._config.weight_modes) > 1:
            splits.append(row.current.split)
            for k in range(READ_LATENCY + 1):
                later = Signal.like(row.current.split, name=f"split_{k + 1}", reset_less=True)
                m.d.sync += later.eq(splits[-1])
                splits.append(later)
        keep: Value = drain.keep
        for k in range(READ_LATENCY + 1):
            kept = Signal(range(rows + 1), name=f"keep_{k + 1}")
            m.d.sync += kept.eq(keep)
            keep = kept

        slots = rows * self._config.operands_per_element
        left = Signal(LEFT_BITS * slots, reset_less=True)
        differences = Cat(
            (x.as_signed() - zero_point)[:LEFT_BITS] for x in self._operands(m, splits)
        )
        with m.If(valid[-1]):
            m.d.sync += left.eq(Mux(counts[-1], differences, 0))
        with m.Elif(quiet[-1]):
            m.d.sync += left.eq(0)
        m.d.comb += [
            array.left_valid.eq(emits[-1]),
            array.left_swap.eq(swap[-1]),
            array.left_keep.eq(keep),
            array.left.as_value().eq(left),
            array.top_valid.eq(loader.tile_valid),
            array.top_all.eq(loader.tile_all),
            array.top_tag.eq(loader.tile_tag),
            array.top.eq(loader.tile_row),
            loader.swap.eq(swap[-1]),
        ]
        if splits:
            m.d.comb += array.left_split.eq(splits[-1])
        if rows == self._config.columns:
            m.d.comb += array.top_sideways.eq(loader.tile_sideways)
        wiring.connect(m, wiring.flipped(self.top), loader.top)

    def _operands(self, m: Module, splits: list[Value]) -> list[Value]:
        """The byte of the left row that arrives for each operand slot of the array."""
        slots = self._config.operands_per_element
        modes = range(len(self._config.weight_modes))
        if len(modes) == 1:
            return [self.left.data[8 * r : 8 * r + 8] for r in range(self._config.rows)]
        operands: list[Value] = []
        for r in range(self._config.rows):
            for slot in range(slots):
                operand = Signal(8, name=f"operand_{r}_{slot}")
                with m.Switch(splits[READ_LATENCY]):
                    for mode in modes:
                        byte = (r << mode) + (slot << mode) // slots
                        with m.Case(mode):
                            m.d.comb += operand.eq(self.left.data[8 * byte : 8 * byte + 8])
                operands.append(operand)
        return operands

    def _write_back(self, m: Module, row: SimpleNamespace, drain: SimpleNamespace) -> Signal:
        """Joins sums with their accumulator rows, which wait in order; retires instructions."""
        array, update, current = self._array, self.update, row.current
        shape = data.StructLayout(
            {"address": update.address.shape(), "add": 1, "drop": 1, "last": 1}
        )
        depth = 1 << (self._row_latency - 1).bit_length()
        tokens: memory.Memory = memory.Memory(shape=shape, depth=depth, init=[])
        m.submodules.tokens = tokens
        write, read = tokens.write_port(), tokens.read_port(domain="comb")
        pushed = Signal(range(2 * depth))
        popped = Signal(range(2 * depth))
        retiring = Signal(UPDATE_LATENCY)
        settling = Signal(UPDATE_LATENCY)
        drained = Signal()
        leaves = array.output_valid
        updates = Signal()  # they leave, and are not dropped
        token = Signal(shape, name="token", reset_less=True)  # of the sums that leave
        with m.If(array.output_next):
            m.d.sync += token.eq(read.data)
        m.d.comb += [
            write.en.eq((row.issued & ~current.streams) | drain.sums),
            write.addr.eq(pushed[:-1]),
            write.data.address.eq(Mux(drain.sums, drain.address, current.accumulator)),
            write.data.add.eq(Mux(drain.sums, drain.add, current.add)),
            write.data.drop.eq(~drain.sums & current.drop),
            write.data.last.eq(Mux(drain.sums, drain.last, current.last)),
            read.addr.eq(popped[:-1]),
            update.valid.eq(updates),
            update.address.eq(token.address),
            update.add.eq(token.add),
            update.data.eq(array.sums.as_value()),
            self.engine.retire.eq(retiring[-1] & ~self._halted),
            drained.eq((pushed == popped) & ~leaves & ~settling.any() & ~drain.sums),
        ]
        m.d.sync += [
            pushed.eq(pushed + write.en),
            popped.eq(popped + array.output_next),
            updates.eq(array.output_next & ~read.data.drop),
            retiring.eq(Cat(leaves & token.last, retiring)),
            settling.eq(Cat(leaves, settling)),
        ]
        return drained

    def _report(
        self, m: Module, front: SimpleNamespace, row: SimpleNamespace, drained: Signal
    ) -> None:
        """Faults, in the order of serial execution: a tile's rows come before its activations."""
        engine, loader = self.engine, self._loader
        reported = Signal()
        fault = engine.fault
        tile_missing = ~loader.loaded & Mux(row.valid, row.current.swap, row.bad & row.swap)
        row_reached = row.bad & (loader.loaded | ~row.swap)
        refused = front.valid & (front.unsupported | front.zero) & ~row.active & ~row.pending
        # Each of these stays as it is once it is true, so that it may be looked at a cycle later.
        tile_is_bad, row_is_bad, is_refused, calm = _bits(
            "tile_is_bad", "row_is_bad", "is_refused", "calm"
        )
        found = Signal(name="fault_found")
        m.d.comb += found.eq((tile_is_bad | row_is_bad | is_refused) & calm & ~self._halted)
        m.d.sync += [
            tile_is_bad.eq(loader.bad & tile_missing),
            row_is_bad.eq(row_reached),
            is_refused.eq(refused),
            calm.eq(drained),
            fault.valid.eq(found),
            fault.cause.eq(
                Mux(
                    tile_is_bad | row_is_bad,
                    FaultCause.LOCAL_ADDRESS,
                    Mux(front.unsupported, FaultCause.UNSUPPORTED_FIELD, FaultCause.ZERO_COUNT),
                )
            ),
            fault.instruction.eq(
                Mux(tile_is_bad, front.loader_offset, Mux(row_is_bad, row.offset, front.offset))
            ),
            fault.address.eq(
                Mux(tile_is_bad, loader.bad_address, Mux(row_is_bad, row.bad_address, 0))
            ),
        ]
        with m.If(found):
            m.d.sync += reported.eq(1)
        m.d.comb += [
            self._halted.eq(reported | engine.stop),
            engine.busy.eq(front.valid | row.active | row.pending | ~drained),
            engine.bus_busy.eq(Const(0)),
        ]


def _bits(*names: str) -> list[Signal]:
    """Control bits: Amaranth finds a signal's name only where it is assigned alone."""
    return [Signal(name=name) for name in names]
