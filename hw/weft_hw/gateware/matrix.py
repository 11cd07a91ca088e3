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
from weft_hw.gateware.loops import LoopNest
from weft_hw.gateware.tile_loader import TileLoader
from weft_hw.instructions import (
    LOOPS_MATRIX,
    ROW_BITS,
    STRIDE_BITS,
    TILE_LOOPS_MATRIX,
    Accumulate,
    Bounds,
    Matrix,
)
from weft_hw.registers import FaultCause

__all__ = ["MatrixEngine"]

REDUCTION_LOOPS = slice(1, TILE_LOOPS_MATRIX)
ROW_LOOPS = slice(TILE_LOOPS_MATRIX, LOOPS_MATRIX)

# One step beyond a valid address never wraps; a coordinate never does at all.
LEFT_ADDRESS_BITS = STRIDE_BITS + 1
ACCUMULATOR_BITS = ROW_BITS + 2
COORDINATE_BITS = 24


class MatrixEngine(wiring.Component):
    """Executes MATRIX instructions (``docs/machine.md``) on a :class:`SystolicArray`.

    A :class:`TileLoader` requests weight tiles; the row nest requests activation rows, which pass

        nest -> request register -> left memory -> zero point -> array -> accumulator memory

    without back-pressure once the left memory has accepted them. A row that lies out of bounds
    takes its turn without a request. The order of the two streams is decided by the requests: see
    :class:`TileLoader` for the rule and why it holds. A tile takes max(``rows``, its activation
    rows) cycles if neither memory stalls, also from one instruction to the next: an accepted
    instruction waits in a register, from which loader and row nest each take it when they have
    finished with the one before.

    An instruction retires once its last row is readable. A fault is reported when every row before
    it has been written and every earlier instruction has retired; after it nothing more happens.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    engine : In(EnginePort(Matrix))
    left, top : Out(ReadPort)
        Activation and weight scratchpad.
    update : Out(AccumulatorUpdatePort)
        ``pause`` is followed by one row's time without a request, at most once in the time that a
        row takes from its request to the accumulator memory.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "engine": In(EnginePort(Matrix)),
                "left": Out(ReadPort(config.activation_address_bits, config.line_bytes)),
                "top": Out(ReadPort(config.weight_address_bits, config.line_bytes)),
                "update": Out(AccumulatorUpdatePort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.array = self._array = SystolicArray(self._config)
        m.submodules.loader = self._loader = TileLoader(self._config)
        self._halted = Signal()

        front = self._accept(m)
        row = self._row_nest(m, front)
        issued = self._request(m, row)
        self._feed_array(m, row, issued)
        drained = self._write_back(m, row, issued)
        self._report(m, front, row, drained)
        return m

    def _accept(self, m: Module) -> SimpleNamespace:
        """The next instruction, held until the loader and the row nest have both taken it."""
        port = self.engine.instruction
        loader = self._loader
        fields = Signal(instruction_layout(Matrix), name="front", reset_less=True)
        offset = Signal(32, name="front_offset", reset_less=True)
        valid = Signal(name="front_valid")
        unsupported, zero, sound = _bits("unsupported", "zero", "sound")
        loader_took, nest_took = _bits("loader_took", "nest_took")
        nest_free, nest_start = _bits("nest_free", "nest_start")
        m.d.comb += [
            port.ready.eq(~valid & ~self._halted),
            unsupported.eq(unsupported_field(None, Matrix, fields)),
            zero.eq(zero_count(Matrix, fields)),
            sound.eq(valid & ~unsupported & ~zero & ~self._halted),
            loader.start.eq(sound & ~loader_took & loader.free),
            nest_start.eq(sound & ~nest_took & nest_free),
            loader.address.eq(fields.top_address),
            loader.tile_stride.eq(fields.tile_stride),
            loader.halt.eq(self._halted),
        ]
        for i in range(TILE_LOOPS_MATRIX):
            m.d.comb += [
                loader.counts[i].eq(fields.counts[i]),
                loader.strides[i].eq(fields.top_strides[i]),
            ]
        loader_offset = Signal.like(offset, name="loader_offset")
        with m.If(loader.start):
            m.d.sync += [loader_took.eq(1), loader_offset.eq(offset)]
        with m.If(nest_start):
            m.d.sync += nest_took.eq(1)
        with m.If((loader_took | loader.start) & (nest_took | nest_start)):
            m.d.sync += [valid.eq(0), loader_took.eq(0), nest_took.eq(0)]
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
            loader_offset=loader_offset,
        )

    def _row_nest(self, m: Module, front: SimpleNamespace) -> SimpleNamespace:
        """All seven loops, one activation row a step; the current row is checked here."""
        config = self._config
        streams = {
            "left": LEFT_ADDRESS_BITS,
            "accumulator": ACCUMULATOR_BITS,
            "y": COORDINATE_BITS,
            "x": COORDINATE_BITS,
        }
        m.submodules.nest = nest = LoopNest(loops=LOOPS_MATRIX, streams=streams)
        held = Signal(instruction_layout(Matrix), name="held", reset_less=True)
        offset = Signal.like(front.offset, name="nest_offset")
        active, step = _bits("nest_active", "nest_step")
        with m.If(front.nest_start):
            m.d.sync += [active.eq(1), held.eq(front.fields), offset.eq(front.offset)]
        with m.Elif(step & nest.finished):
            m.d.sync += active.eq(0)
        m.d.comb += [
            front.nest_free.eq(~active | (step & nest.finished)),
            nest.load.eq(front.nest_start),
            nest.advance.eq(step & ~nest.finished),
            nest.left_base.eq(front.fields.left_address),
            nest.accumulator_base.eq(front.fields.accumulator_address),
            nest.y_base.eq(front.fields.y_origin),
            nest.x_base.eq(front.fields.x_origin),
        ]
        for i in range(LOOPS_MATRIX):
            m.d.comb += [
                nest.counts[i].eq(Mux(nest.load, front.fields.counts[i], held.counts[i])),
                nest.left_strides[i].eq(held.left_strides[i]),
                nest.accumulator_strides[i].eq(held.accumulator_strides[i]),
                nest.y_strides[i].eq(held.y_steps[i]),
                nest.x_strides[i].eq(held.x_steps[i]),
            ]

        # Compared as unsigned numbers, negative ones are too large as well.
        exists, left_bad, accumulator_bad, bad = _bits(
            "exists", "left_bad", "accumulator_bad", "bad"
        )
        inside = (nest.y.as_unsigned() < held.y_extent) & (nest.x.as_unsigned() < held.x_extent)
        last_left = config.activation_bytes - config.rows
        m.d.comb += [
            exists.eq((held.bounds != Bounds.LEFT) | inside),
            left_bad.eq(exists & (nest.left.as_unsigned() > last_left)),
            accumulator_bad.eq(nest.accumulator.as_unsigned() >= config.accumulator_total_rows),
            bad.eq(left_bad | accumulator_bad),
        ]

        # The request register.
        valid, issued = _bits("row_valid", "row_issued")
        current = Signal(
            data.StructLayout(
                {
                    "address": config.activation_address_bits,
                    "zero_point": signed(8),
                    "exists": 1,
                    "swap": 1,
                    "accumulator": config.accumulator_address_bits,
                    "add": 1,
                    "last": 1,
                }
            ),
            name="row",
            reset_less=True,
        )
        opens_tile = Signal()
        m.d.comb += [
            opens_tile.eq(nest.first[ROW_LOOPS].all()),
            step.eq(active & ~bad & (~valid | issued)),
        ]
        with m.If(step):
            m.d.sync += [
                valid.eq(1),
                current.address.eq(nest.left),
                current.zero_point.eq(held.left_zero_point),
                current.exists.eq(exists),
                current.swap.eq(opens_tile),
                current.accumulator.eq(nest.accumulator),
                current.add.eq(
                    (held.accumulate == Accumulate.ALWAYS_ADD) | ~nest.first[REDUCTION_LOOPS].all()
                ),
                current.last.eq(nest.finished),
            ]
        with m.Elif(issued):
            m.d.sync += valid.eq(0)
        return SimpleNamespace(
            active=active,
            bad=active & bad,
            bad_address=Mux(left_bad, nest.left, nest.accumulator),
            opens_tile=opens_tile,
            offset=offset,
            valid=valid,
            issued=issued,
            current=current,
        )

    @property
    def _row_latency(self) -> int:
        """Cycles from a row's request to its update of the accumulator memory."""
        return READ_LATENCY + 1 + self._array.latency

    def _request(self, m: Module, row: SimpleNamespace) -> Signal:
        """Requests the row from the left memory as soon as its tile will be in the array."""
        loader, current = self._loader, row.current
        recharge = Signal(range(self._config.rows))  # cycles until the next tile may start
        patience = Signal(range(self._row_latency + 4))
        waiting, allowed = _bits("waiting", "allowed")
        tile_ready = ~current.swap | (loader.loaded & (recharge == 0))
        pause = self.update.pause & (patience == 0)
        m.d.comb += [
            allowed.eq(row.valid & tile_ready & (waiting | ~(pause | self._halted))),
            self.left.valid.eq(allowed & current.exists),
            self.left.address.eq(current.address),
            row.issued.eq(allowed & (self.left.ready | ~current.exists)),
            loader.swap_issued.eq(row.issued & current.swap),
        ]
        m.d.sync += waiting.eq(self.left.valid & ~self.left.ready)
        with m.If(loader.swap_issued):
            m.d.sync += recharge.eq(self._config.rows - 1)
        with m.Elif(recharge != 0):
            m.d.sync += recharge.eq(recharge - 1)
        # Until the gap has reached the accumulator memory, the same wish is not granted twice.
        with m.If(pause & ~waiting):
            m.d.sync += patience.eq(self._row_latency + 3)
        with m.Elif(patience != 0):
            m.d.sync += patience.eq(patience - 1)
        left_waits = self.left.valid & ~self.left.ready
        top_waits = self.top.valid & ~self.top.ready & ~row.issued
        m.d.comb += self.engine.stall.eq(left_waits | top_waits)
        return row.issued

    def _feed_array(self, m: Module, row: SimpleNamespace, issued: Signal) -> None:
        """Subtracts the zero point of the row that arrives; connects the array's inputs."""
        rows, columns = self._config.rows, self._config.columns
        array, loader = self._array, self._loader
        valid = Signal(READ_LATENCY + 1)  # bit k: k + 1 cycles after the request
        swap = Signal(READ_LATENCY + 1)
        exists = Signal(READ_LATENCY, reset_less=True)
        zero_point: Value = row.current.zero_point
        m.d.sync += [
            valid.eq(Cat(issued, valid)),
            swap.eq(Cat(loader.swap_issued, swap)),
            exists.eq(Cat(row.current.exists, exists)),
        ]
        for k in range(READ_LATENCY):
            later = Signal(signed(8), name=f"zero_point_{k + 1}", reset_less=True)
            m.d.sync += later.eq(zero_point)
            zero_point = later

        left = Signal(LEFT_BITS * rows, reset_less=True)
        bytes_in = [self.left.data[8 * r : 8 * r + 8].as_signed() for r in range(rows)]
        differences = Cat((x - zero_point)[:LEFT_BITS] for x in bytes_in)
        with m.If(valid[-2]):
            m.d.sync += left.eq(Mux(exists[-1], differences, 0))
        m.d.comb += [
            array.left_valid.eq(valid[-1]),
            array.left_swap.eq(swap[-1]),
            array.left.as_value().eq(left),
            array.top_valid.eq(loader.tile_valid),
            array.top_tag.eq(loader.tile_tag),
            array.top.as_value().eq(loader.tile_row[: 8 * columns]),
            loader.swap.eq(swap[-1]),
        ]
        wiring.connect(m, wiring.flipped(self.top), loader.top)

    def _write_back(self, m: Module, row: SimpleNamespace, issued: Signal) -> Signal:
        """Joins sums with their accumulator rows, which wait in order; retires instructions."""
        array, update, current = self._array, self.update, row.current
        shape = data.StructLayout({"address": update.address.shape(), "add": 1, "last": 1})
        depth = 1 << (self._row_latency - 1).bit_length()
        tokens: memory.Memory = memory.Memory(shape=shape, depth=depth, init=[])
        m.submodules.tokens = tokens
        write, read = tokens.write_port(), tokens.read_port(domain="comb")
        pushed = Signal(range(2 * depth))
        popped = Signal(range(2 * depth))
        retiring = Signal(UPDATE_LATENCY)
        settling = Signal(UPDATE_LATENCY)
        drained = Signal()
        m.d.comb += [
            write.en.eq(issued),
            write.addr.eq(pushed[:-1]),
            write.data.address.eq(current.accumulator),
            write.data.add.eq(current.add),
            write.data.last.eq(current.last),
            read.addr.eq(popped[:-1]),
            update.valid.eq(array.output_valid),
            update.address.eq(read.data.address),
            update.add.eq(read.data.add),
            update.data.eq(array.sums.as_value()),
            self.engine.retire.eq(retiring[-1] & ~self._halted),
            drained.eq((pushed == popped) & ~settling.any()),
        ]
        m.d.sync += [
            pushed.eq(pushed + issued),
            popped.eq(popped + update.valid),
            retiring.eq(Cat(update.valid & read.data.last, retiring)),
            settling.eq(Cat(update.valid, settling)),
        ]
        return drained

    def _report(
        self, m: Module, front: SimpleNamespace, row: SimpleNamespace, drained: Signal
    ) -> None:
        """Faults, in the order of serial execution: a tile's rows come before its activations."""
        engine, loader = self.engine, self._loader
        reported = Signal()
        fault = engine.fault
        tile_missing = ~loader.loaded & Mux(row.valid, row.current.swap, row.bad & row.opens_tile)
        row_reached = row.bad & ~row.valid & (loader.loaded | ~row.opens_tile)
        with m.If(loader.bad & tile_missing):
            m.d.comb += [
                fault.valid.eq(1),
                fault.cause.eq(FaultCause.LOCAL_ADDRESS),
                fault.instruction.eq(front.loader_offset),
                fault.address.eq(loader.bad_address),
            ]
        with m.Elif(row_reached):
            m.d.comb += [
                fault.valid.eq(1),
                fault.cause.eq(FaultCause.LOCAL_ADDRESS),
                fault.instruction.eq(row.offset),
                fault.address.eq(row.bad_address),
            ]
        with m.Elif(front.valid & (front.unsupported | front.zero) & ~row.active & ~row.valid):
            m.d.comb += [
                fault.valid.eq(1),
                fault.cause.eq(
                    Mux(front.unsupported, FaultCause.UNSUPPORTED_FIELD, FaultCause.ZERO_COUNT)
                ),
                fault.instruction.eq(front.offset),
            ]
        with m.If(~drained | self._halted):
            m.d.comb += fault.valid.eq(0)
        with m.If(fault.valid):
            m.d.sync += reported.eq(1)
        m.d.comb += [
            self._halted.eq(reported | engine.stop),
            engine.busy.eq(front.valid | row.active | row.valid | ~drained),
            engine.bus_busy.eq(Const(0)),
        ]


def _bits(*names: str) -> list[Signal]:
    """Control bits: Amaranth finds a signal's name only where it is assigned alone."""
    return [Signal(name=name) for name in names]
