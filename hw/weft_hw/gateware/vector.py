"""The vector engine: accepts instructions, keeps their order, reports their faults."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.checks import unsupported_field, zero_count
from weft_hw.gateware.interfaces import (
    AccumulatorReadPort,
    AccumulatorWritePort,
    EnginePort,
    ParameterReadPort,
    ReadPort,
    WritePort,
)
from weft_hw.gateware.vector_lanes import VectorLanes
from weft_hw.gateware.vector_layouts import SLOTS, controls_layout
from weft_hw.gateware.vector_operands import VectorOperands
from weft_hw.gateware.vector_results import VectorResults
from weft_hw.gateware.vector_steps import VectorSteps
from weft_hw.instructions import (
    Head,
    Memory,
    OperandSource,
    ScaleSource,
    Tail,
    Vector,
)
from weft_hw.registers import FaultCause

__all__ = ["VectorEngine"]


class State(enum.Enum, shape=2):
    """Where the instruction in the register is."""

    EMPTY = 0
    CHECK = 1
    RUN = 2
    HALT = 3


class VectorEngine(wiring.Component):
    """Executes VECTOR instructions as ``docs/machine.md`` defines them::

        instruction -> steps -> operands -> lanes -> results
                       (addresses) (reads)  (arithmetic) (writes, retirement)

    One window element a cycle, so one vector a cycle for windows of one element, while the memories
    accept every request. From the acceptance of an instruction to its first request 7 cycles pass;
    3 cycles without a request lie between two instructions.

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
    a, b : Out(ReadPort)
        Activation scratchpad.
    result : Out(WritePort)
        Activation scratchpad.
    weight_b : Out(ReadPort)
        Weight scratchpad.
    accumulator_a, accumulator_b : Out(AccumulatorReadPort)
    accumulator_result : Out(AccumulatorWritePort)
    parameters : Out(ParameterReadPort)
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
                "weight_b": Out(ReadPort(config.weight_address_bits, config.line_bytes)),
                "result": Out(WritePort(config.activation_address_bits, config.line_bytes)),
                "accumulator_a": Out(AccumulatorReadPort(config)),
                "accumulator_b": Out(AccumulatorReadPort(config)),
                "accumulator_result": Out(AccumulatorWritePort(config)),
                "parameters": Out(ParameterReadPort(config)),
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

        current = Signal(engine.instruction.payload.shape(), reset_less=True)
        controls = Signal(data.ArrayLayout(controls_layout(config), SLOTS), reset_less=True)
        self._connect(m, steps, operands, lanes, results, controls)
        m.d.comb += steps.fields.eq(current.fields)

        state = Signal(State)
        slot = Signal()  # of the next instruction
        inside = Signal(range(SLOTS + 1))  # instructions started and not retired
        offsets = [Signal(32, name=f"offset_{i}", reset_less=True) for i in range(SLOTS)]
        starts = Signal()
        wrong = Signal()
        m.d.comb += [
            engine.instruction.ready.eq((state == State.EMPTY) & ~engine.stop),
            steps.start.eq(starts),
            steps.slot.eq(slot),
        ]

        fields = current.fields
        unsupported = Signal()
        m.d.comb += [
            unsupported.eq(
                (fields.opcode != Vector.opcode)
                | unsupported_field(m, Vector, fields)
                | self._mismatched(fields)
            ),
            wrong.eq(unsupported | zero_count(Vector, fields)),
        ]
        step_bad = Signal()
        m.d.comb += step_bad.eq(steps.valid & steps.step.bad)
        may_start = (
            (inside != SLOTS) & ~step_bad & ~self._conflict(m, fields, controls, slot, inside)
        )
        m.d.comb += starts.eq((state == State.CHECK) & ~engine.stop & ~wrong & may_start)
        m.d.sync += inside.eq(inside + starts - results.retire)

        fault = engine.fault
        m.d.sync += fault.valid.eq(0)
        with m.Switch(state):
            with m.Case(State.EMPTY):
                with m.If(engine.instruction.valid & engine.instruction.ready):
                    m.d.sync += [current.eq(engine.instruction.payload), state.eq(State.CHECK)]
            with m.Case(State.CHECK):
                with m.If(starts):
                    m.d.sync += [
                        slot.eq(~slot),
                        state.eq(State.RUN),
                    ]
                with m.Elif(wrong & (inside == 0) & ~engine.stop):
                    m.d.sync += [
                        fault.valid.eq(1),
                        fault.cause.eq(
                            Mux(unsupported, FaultCause.UNSUPPORTED_FIELD, FaultCause.ZERO_COUNT)
                        ),
                        fault.instruction.eq(current.offset),
                        fault.address.eq(0),
                        state.eq(State.HALT),
                    ]
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
            with m.If(starts & (slot == i)):
                m.d.sync += offsets[i].eq(current.offset)
                self._set_controls(m, controls[i], fields)

        m.d.comb += [
            engine.retire.eq(results.retire & ~engine.stop),
            engine.busy.eq((state != State.EMPTY) | (inside != 0)),
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
            (results.activation, self.result),
            (results.accumulator, self.accumulator_result),
        ):
            connect(m, inner, flipped(outer))
        m.d.comb += [
            steps.stop.eq(self.engine.stop),
            steps.leaves.eq(operands.leaves),
            operands.valid.eq(steps.valid),
            operands.step.eq(steps.step),
            operands.room.eq(results.room),
            operands.controls.eq(controls),
            lanes.random_seed.eq(self.random_seed),
            lanes.random_step.eq(self.random_step),
            lanes.token.eq(operands.token),
            lanes.controls.eq(controls),
            lanes.parameter_address.eq(operands.parameter_address),
            results.issued.eq(operands.issued),
            results.tag.eq(operands.tag),
            results.i_valid.eq(lanes.o_valid),
            results.controls.eq(controls),
            results.stop.eq(self.engine.stop),
        ]
        for source, target in (
            (operands.a, lanes.a),
            (operands.b, lanes.b),
            (lanes.result, results.value),
        ):
            m.d.comb += [port.eq(signal) for signal, port in zip(source, target)]

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

    def _set_controls(self, m: Module, controls: data.View, fields: data.View) -> None:
        columns = self._config.columns
        high, low = fields.clamp_high, fields.clamp_low
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
            controls.multiplier.eq(fields.multiplier),
            controls.exponent.eq(fields.exponent),
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
            controls.clamp_low.eq(Mux(low > high, high, low)),
            controls.clamp_high.eq(high),
            controls.wide.eq(fields.destination == Memory.ACCUMULATOR),
            *[controls.last_strobe[lane].eq(bit) for lane, bit in enumerate(lanes)],
        ]
