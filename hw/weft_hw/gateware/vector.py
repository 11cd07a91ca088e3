"""The vector engine: accepts instructions, keeps their order, reports their faults."""

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.checks import unsupported_field, zero_count
from weft_hw.gateware.interfaces import (
    AccumulatorReadPort,
    AccumulatorWritePort,
    EnginePort,
    LookupPort,
    ParameterReadPort,
    ReadPort,
    WritePort,
    instruction_layout,
)
from weft_hw.gateware.scalar_unit import ScalarUnit
from weft_hw.gateware.vector_capture import absolute_value
from weft_hw.gateware.vector_lanes import VectorLanes
from weft_hw.gateware.vector_layouts import SLOTS, control, controls_layout
from weft_hw.gateware.vector_operands import VectorOperands
from weft_hw.gateware.vector_results import VectorResults
from weft_hw.gateware.vector_steps import VectorSteps
from weft_hw.instruction_values import SCALAR_REGISTER_BITS
from weft_hw.instructions import (
    Head,
    Memory,
    OperandSource,
    Scalar,
    ScaleSource,
    Tail,
    Vector,
)
from weft_hw.registers import FaultCause

__all__ = ["VectorEngine"]


class State(enum.Enum, shape=3):
    """Where the instruction in the register is."""

    EMPTY = 0
    CHECK = 1  # what its fields say goes into registers
    READY = 2  # it starts once what it needs is there
    RUN = 3
    FETCH = 4  # scalar registers
    SCALAR = 5
    HALT = 6


class VectorEngine(wiring.Component):
    """Executes VECTOR instructions as ``docs/machine.md`` defines them::

        instruction -> steps -> operands -> lanes -> results
                       (addresses) (reads)  (arithmetic) (writes, retirement)

    One window element a cycle, so one vector a cycle for windows of one element, while the memories
    accept every request. From the acceptance of an instruction to its first request 8 cycles pass;
    4 cycles without a request lie between two instructions.

    A SCALAR instruction executes alone, once every earlier one has retired and what it captured is
    in the registers; so does the start of a VECTOR instruction that takes scalar registers.

    The next instruction starts while its predecessor drains, unless it reads the memory to which
    the predecessor writes: then it waits until that one has retired. An instruction with a fault in
    its fields reports it once all earlier ones have retired. An address outside its memory is
    reported once every vector before it has been written; nothing follows a fault.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    engine : In(EnginePort)
    a, b, a_banks, b_banks : Out(ReadPort), Out(activation_banks)
        Activation scratchpad, and the banks that the addresses need.
    result : Out(WritePort)
        Activation scratchpad.
    weight_b, weight_b_banks : Out(ReadPort), Out(weight_banks)
        Weight scratchpad.
    accumulator_a, accumulator_b : Out(AccumulatorReadPort)
    accumulator_result : Out(AccumulatorWritePort)
    parameters : Out(ParameterReadPort)
    tables : Out(LookupPort)
    scalar_index, scalar_value : In(4), Out(32)
        A scalar register to look at while no instruction is inside; two cycles later.
    random_seed, random_step : In(32), In(32)
        Held while an instruction is inside and for some cycles before.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        activation = ReadPort(config.activation_address_bits, config.line_bytes)
        super().__init__(
            {
                "engine": In(EnginePort(Vector)),
                "a": Out(activation),
                "b": Out(activation),
                "a_banks": Out(config.activation_banks),
                "b_banks": Out(config.activation_banks),
                "weight_b_banks": Out(config.weight_banks),
                "weight_b": Out(ReadPort(config.weight_address_bits, config.line_bytes)),
                "result": Out(WritePort(config.activation_address_bits, config.line_bytes)),
                "accumulator_a": Out(AccumulatorReadPort(config)),
                "accumulator_b": Out(AccumulatorReadPort(config)),
                "accumulator_result": Out(AccumulatorWritePort(config)),
                "parameters": Out(ParameterReadPort(config)),
                "tables": Out(LookupPort(config)),
                "scalar_index": In(SCALAR_REGISTER_BITS),
                "scalar_value": Out(32),
                "random_seed": In(32),
                "random_step": In(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, engine = self._config, self.engine
        m.submodules.steps = steps = VectorSteps(config)
        m.submodules.operands = operands = VectorOperands(config)
        m.submodules.lanes = lanes = VectorLanes(config)
        m.submodules.results = results = VectorResults(config)
        m.submodules.scalars = scalars = ScalarUnit()

        current = Signal(engine.instruction.payload.shape(), reset_less=True)
        controls = Signal(data.ArrayLayout(controls_layout(config), SLOTS), reset_less=True)
        self._connect(m, steps, operands, lanes, results, controls)
        m.d.comb += steps.fields.eq(current.fields)

        state = Signal(State)
        slot = Signal()  # of the next instruction
        inside = Signal(range(SLOTS + 1))  # instructions started and not finished
        offsets = [Signal(32, name=f"offset_{i}", reset_less=True) for i in range(SLOTS)]
        starts = Signal()
        # The pipeline needs to know of a start some cycles later.
        started, started_slot = Signal(), Signal(reset_less=True)
        m.d.sync += [started.eq(starts), started_slot.eq(slot)]
        fields = current.fields
        flags = self._check(m, fields, scalars.fetched, controls, slot, inside)
        fetched = Signal()  # the scalar registers that the instruction uses are there
        m.d.comb += [
            engine.instruction.ready.eq((state == State.EMPTY) & ~engine.stop),
            steps.start.eq(starts),
            steps.slot.eq(slot),
            lanes.clear.eq(started),
            lanes.clear_slot.eq(started_slot),
        ]
        step_bad = Signal()
        alone = Signal()
        m.d.comb += [
            step_bad.eq(steps.valid & steps.step.bad),
            alone.eq((inside == 0) & ~engine.stop),
            starts.eq(
                (state == State.READY)
                & ~engine.stop
                & ~(flags.wrong | flags.scalar | flags.conflict | step_bad)
                & (inside != SLOTS)
                & (~flags.takes_scalars | fetched)
            ),
        ]
        finishes = self._elaborate_merge(m, scalars, lanes, controls, results.retire)
        m.d.sync += inside.eq(inside + starts - finishes)
        # Captures may enter the registers after their instruction has retired.
        unretired = Signal(range(SLOTS + 1))
        m.d.sync += unretired.eq(unretired + starts - results.retire)

        fault = engine.fault
        m.d.sync += fault.valid.eq(0)
        with m.Switch(state):
            with m.Case(State.EMPTY):
                m.d.sync += fetched.eq(0)
                with m.If(engine.instruction.valid & engine.instruction.ready):
                    m.d.sync += [current.eq(engine.instruction.payload), state.eq(State.CHECK)]
            with m.Case(State.CHECK):
                m.d.sync += state.eq(State.READY)
            with m.Case(State.READY):
                with m.If(starts):
                    m.d.sync += [slot.eq(~slot), state.eq(State.RUN)]
                with m.Elif(alone & flags.wrong):
                    m.d.sync += [
                        fault.valid.eq(1),
                        fault.cause.eq(
                            Mux(
                                flags.unsupported,
                                FaultCause.UNSUPPORTED_FIELD,
                                FaultCause.ZERO_COUNT,
                            )
                        ),
                        fault.instruction.eq(current.offset),
                        fault.address.eq(0),
                        state.eq(State.HALT),
                    ]
                with m.Elif(alone & flags.scalar):
                    m.d.sync += state.eq(State.SCALAR)
                with m.Elif(alone & flags.takes_scalars & ~fetched):
                    m.d.sync += state.eq(State.FETCH)
            with m.Case(State.FETCH):
                with m.If(scalars.done):
                    m.d.sync += [fetched.eq(1), state.eq(State.READY)]
            with m.Case(State.SCALAR):
                with m.If(scalars.done):
                    m.d.sync += state.eq(State.EMPTY)
            with m.Case(State.RUN):
                with m.If(steps.finished):
                    m.d.sync += state.eq(State.EMPTY)
        with m.If(step_bad & results.empty & (state != State.HALT) & ~engine.stop):
            m.d.sync += [
                fault.valid.eq(1),
                fault.cause.eq(FaultCause.LOCAL_ADDRESS),
                fault.instruction.eq(Mux(steps.step.tag.slot, offsets[1], offsets[0])),
                fault.address.eq(steps.bad_address),
                state.eq(State.HALT),
            ]
        for i in range(SLOTS):
            with m.If(started & (started_slot == i)):
                m.d.sync += offsets[i].eq(current.offset)
                self._set_controls(m, controls[i], fields, scalars.fetched, flags.crossed)

        scalar_retires = Signal()
        m.d.sync += scalar_retires.eq((state == State.SCALAR) & scalars.done)
        m.d.comb += [
            scalars.start.eq(state == State.SCALAR),
            scalars.fields.eq(Value.cast(fields)[: 8 * Scalar.size]),
            scalars.fetch.eq(state == State.FETCH),
            *[port.eq(n) for port, n in zip(scalars.numbers, fields.scalar_registers)],
            scalars.inhibit.eq(engine.stop),
            scalars.index.eq(self.scalar_index),
            self.scalar_value.eq(scalars.value),
        ]
        m.d.comb += [
            engine.retire.eq((results.retire | scalar_retires) & ~engine.stop),
            engine.busy.eq(
                (state != State.EMPTY) | (unretired != 0) | scalar_retires | scalars.merge
            ),
            engine.stall.eq(operands.stalled | results.stalled),
            engine.bus_busy.eq(0),
        ]
        return m

    def _connect(
        self,
        m: Module,
        steps: VectorSteps,
        operands: VectorOperands,
        lanes: VectorLanes,
        results: VectorResults,
        controls: Signal,
    ) -> None:
        for inner, outer in (
            (operands.activation_a, self.a),
            (operands.activation_b, self.b),
            (operands.weight_b, self.weight_b),
            (operands.accumulator_a, self.accumulator_a),
            (operands.accumulator_b, self.accumulator_b),
            (lanes.parameters, self.parameters),
            (lanes.tables, self.tables),
            (results.activation, self.result),
            (results.accumulator, self.accumulator_result),
        ):
            connect(m, inner, flipped(outer))
        m.d.comb += [
            steps.stop.eq(self.engine.stop),
            steps.leaves.eq(operands.leaves),
            steps.a_taken.eq(operands.a_taken),
            steps.b_taken.eq(operands.b_taken),
            operands.asks.eq(steps.asks),
            operands.step.eq(steps.step),
            self.a_banks.eq(steps.step.a_banks),
            self.b_banks.eq(steps.step.b_banks),
            self.weight_b_banks.eq(steps.step.b_weight_banks),
            steps.room.eq(results.room),
            operands.controls.eq(controls),
            lanes.random_seed.eq(self.random_seed),
            lanes.random_step.eq(self.random_step),
            lanes.token.eq(operands.token),
            lanes.controls.eq(controls),
            lanes.parameter_address.eq(operands.parameter_address),
            lanes.parameter_valid.eq(operands.parameter_valid),
            results.issued.eq(operands.issued),
            results.tag.eq(operands.tag),
            results.i_valid.eq(lanes.o_valid),
            results.i_group.eq(lanes.o_group),
            results.controls.eq(controls),
            results.stop.eq(self.engine.stop),
        ]
        for source, target in (
            (operands.a, lanes.a),
            (operands.b, lanes.b),
            (lanes.result, results.value),
        ):
            m.d.comb += [port.eq(signal) for signal, port in zip(source, target)]

    def _check(
        self,
        m: Module,
        fields: data.View,
        fetched: Sequence[Value],
        controls: Signal,
        slot: Signal,
        inside: Signal,
    ) -> data.View:
        """Registers that say what the instruction needs, one cycle after it has come."""
        names = ("scalar", "unsupported", "wrong", "conflict", "takes_scalars", "crossed")
        layout = data.StructLayout(dict.fromkeys(names, 1))
        flags = data.View(layout, Signal(len(names), name="flags", reset_less=True))
        scalar = Signal()
        unsupported = Signal()
        scalar_fields = data.View(instruction_layout(Scalar), Value.cast(fields)[: 8 * Scalar.size])
        m.d.comb += scalar.eq(fields.opcode == Scalar.opcode)
        with m.If(scalar):
            m.d.comb += unsupported.eq(unsupported_field(None, Scalar, scalar_fields))
        with m.Else():
            m.d.comb += unsupported.eq(
                (fields.opcode != Vector.opcode)
                | unsupported_field(m, Vector, fields)
                | self._mismatched(fields)
            )
        low, high = _clamp_bounds(fields, fetched)
        m.d.sync += [
            flags.crossed.eq(low > high),
            flags.scalar.eq(scalar),
            flags.unsupported.eq(unsupported),
            flags.wrong.eq(unsupported | (~scalar & zero_count(Vector, fields))),
            flags.conflict.eq(self._conflict(m, fields, controls, slot, inside)),
            flags.takes_scalars.eq(
                (fields.scale_source == ScaleSource.SCALAR) | fields.clamp_from_scalar
            ),
        ]
        return flags

    def _elaborate_merge(
        self,
        m: Module,
        scalars: ScalarUnit,
        lanes: VectorLanes,
        controls: Signal,
        retires: Signal,
    ) -> Signal:
        """Enter into the scalar registers what retired instructions captured, in their order.

        The result is high when the oldest one has nothing, or nothing more, to enter.
        """
        retired = Signal(range(SLOTS + 1))  # and not yet finished
        oldest = Signal()  # its slot
        finishes = Signal()
        following = Signal()  # the oldest one's slot in the next cycle
        captures = Signal()
        # In registers, as of ``oldest``: an instruction's controls are set long before it retires.
        largest = control(m, controls, following, "capture_largest", "_merged")
        clamped = control(m, controls, following, "capture_clamped", "_merged")
        m.d.comb += [
            scalars.merge.eq((retired != 0) & captures),
            finishes.eq((retired != 0) & (~captures | scalars.done)),
            following.eq(oldest ^ finishes),
        ]
        m.d.sync += [
            retired.eq(retired + retires - finishes),
            oldest.eq(following),
            captures.eq(largest | clamped),
            scalars.merge_largest.eq(largest),
            scalars.merge_clamped.eq(clamped),
            scalars.merge_register.eq(control(m, controls, following, "capture_register")),
            # Looked at from the cycle after the request on.
            scalars.largest.eq(absolute_value(Mux(oldest, lanes.largest[1], lanes.largest[0]))),
            scalars.clamped.eq(Mux(oldest, lanes.clamped[1], lanes.clamped[0])),
        ]
        return finishes

    def _mismatched(self, fields: data.View) -> Value:
        """What :meth:`Vector.unsupported` checks besides single fields."""
        dot = fields.head == Head.DOT
        int8_only = dot | (fields.tail == Tail.PRODUCT) | (fields.tail == Tail.SELECT)
        int8_b = (fields.b_source == OperandSource.ACTIVATION) | (
            fields.b_source == OperandSource.WEIGHT
        )
        return (
            (dot & ((fields.a_source != OperandSource.ACTIVATION) | (fields.tail != Tail.NONE)))
            | ((fields.tail != Tail.NONE) & (fields.b_source == OperandSource.NONE))
            | (int8_only & ~int8_b)
        )

    def _conflict(
        self, m: Module, fields: data.View, controls: Signal, slot: Signal, inside: Signal
    ) -> Signal:
        """Whether the instruction may read what its predecessor has not yet written."""
        conflict = Signal()
        written = Signal()  # the predecessor's destination; of two, the older retires before
        m.d.comb += written.eq(Mux(slot, controls[0].wide, controls[1].wide))
        reads_wide = (fields.a_source == OperandSource.ACCUMULATOR) | (
            (fields.tail != Tail.NONE) & (fields.b_source == OperandSource.ACCUMULATOR)
        )
        # A dot product reads A from activations, wherever B lies.
        reads_narrow = (fields.a_source == OperandSource.ACTIVATION) | (
            (fields.tail != Tail.NONE) & (fields.b_source == OperandSource.ACTIVATION)
        )
        m.d.comb += conflict.eq((inside != 0) & Mux(written, reads_wide, reads_narrow))
        return conflict

    def _set_controls(
        self,
        m: Module,
        controls: data.View,
        fields: data.View,
        scalars: Sequence[Value],
        crossed: Value,
    ) -> None:
        columns = self._config.columns
        given_multiplier, given_exponent, *_ = scalars
        low, high = _clamp_bounds(fields, scalars)
        scaled = fields.scale_source == ScaleSource.SCALAR
        lanes = [(fields.last_lanes == 0) | (fields.last_lanes > lane) for lane in range(columns)]
        m.d.sync += [
            controls.head_maximum.eq(fields.head == Head.MAXIMUM),
            controls.head_index.eq(fields.head == Head.INDEX_OF_MAXIMUM),
            controls.head_dot.eq(fields.head == Head.DOT),
            controls.a_wide.eq(fields.a_source == OperandSource.ACCUMULATOR),
            controls.a_zero_point.eq(fields.a_zero_point),
            controls.b_used.eq(fields.tail != Tail.NONE),
            controls.b_wide.eq(fields.b_source == OperandSource.ACCUMULATOR),
            controls.b_weight.eq(fields.b_source == OperandSource.WEIGHT),
            controls.b_zero_point.eq(fields.b_zero_point),
            controls.use_bias.eq(fields.use_bias),
            controls.pre_shift.eq(fields.pre_shift),
            controls.bypass.eq(fields.scale_source == ScaleSource.NONE),
            controls.scale_parameter.eq(fields.scale_source == ScaleSource.PARAMETER),
            controls.multiplier.eq(Mux(scaled, given_multiplier[:31], fields.multiplier)),
            controls.exponent.eq(Mux(scaled, given_exponent[:8].as_signed(), fields.exponent)),
            controls.rounding.eq(fields.rounding),
            controls.tensor.eq(fields.tensor),
            controls.tail_add.eq(fields.tail == Tail.ADD),
            controls.tail_maximum.eq(fields.tail == Tail.MAXIMUM),
            controls.tail_product.eq(fields.tail == Tail.PRODUCT),
            controls.tail_select.eq(fields.tail == Tail.SELECT),
            controls.select_low.eq(fields.select_low),
            controls.select_high.eq(fields.select_high),
            controls.zero_point.eq(fields.zero_point),
            # The upper bound wins where they cross, whichever is compared first.
            controls.clamp_low.eq(Mux(crossed, high, low)),
            controls.clamp_high.eq(high),
            controls.lookup.eq(fields.lookup != 0),
            controls.table.eq(fields.lookup - 1),
            controls.wide.eq(fields.destination == Memory.ACCUMULATOR),
            controls.capture_largest.eq(fields.capture[0]),
            controls.capture_clamped.eq(fields.capture[1]),
            controls.capture_register.eq(fields.capture_register),
            *[controls.last_strobe[lane].eq(bit) for lane, bit in enumerate(lanes)],
        ]


def _clamp_bounds(fields: data.View, scalars: Sequence[Value]) -> tuple[Value, Value]:
    """The lower and the upper bound of the result, from the instruction or its registers."""
    *_, low, high = scalars
    chosen = fields.clamp_from_scalar
    return Mux(chosen, low, fields.clamp_low), Mux(chosen, high, fields.clamp_high)
