"""Reads of the vector engine: address generation, bounds, range checks, operands A and B."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import (
    READ_LATENCY,
    AccumulatorReadPort,
    ReadPort,
    instruction_layout,
)
from weft_hw.gateware.loops import LoopNest
from weft_hw.gateware.vector_layouts import (
    LOCAL_BITS,
    SLOTS,
    controls_layout,
    tag_layout,
    token_layout,
)
from weft_hw.instructions import (
    COUNT_BITS,
    LOOPS_VECTOR,
    LOOPS_VECTOR_OUTER,
    Memory,
    OperandSource,
    ScaleSource,
    Tail,
    Vector,
)

__all__ = ["VectorOperands"]

COORDINATE_BITS = 8 + COUNT_BITS + LOOPS_VECTOR.bit_length()
PARAMETER_BITS = 8
PARAMETER_DELAY = 2  # a row is needed two cycles after the operands (register, window)


class VectorOperands(wiring.Component):
    """Turns an instruction into a stream of operands, one window element a cycle.

    Each trip of the loop nest becomes a *step*: its addresses are checked in one cycle and requested
    in the next. A step leaves once A (if it exists) and B (with the last element of the window) have
    both been accepted, in whichever cycles; ``READ_LATENCY`` cycles later ``token`` is valid and
    ``a`` and ``b`` belong to it. An operand that was accepted earlier than its partner waits in a
    register: as the next step requests nothing before, one such register an operand is enough::

        cycle        t-1      t                  t+READ_LATENCY   t+READ_LATENCY+2
        nest trip -> step -> last request accepted ... token, a, b ... parameter row

    A step that would touch an address outside its memory raises ``fault`` and stays.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    fields : In(encoded VECTOR instruction)
        Held from ``start`` until ``finished``.
    start : In(1)
        Take the instruction; only when no earlier one is in the nest.
    slot : In(1)
        Where its controls lie from the next cycle on.
    finished : Out(1)
        The last trip leaves the nest.
    controls : In(array of controls)
    stop : In(1)
        Take no further trips; the step inside still finishes.
    room : In(1)
        One more result has a place; stays high until ``issued``.
    issued, tag : Out(1), Out(tag)
        The last reads of a vector are accepted; where its result goes.
    token : Out(token)
    a, b : Out(signed(32)), arrays of columns
        Zero points subtracted; an A that does not exist is the identity of the window's reduction.
    parameter_address : Out
        Row of the vector, to be read in this cycle.
    fault, fault_address : Out(1), Out(signed)
    stalled : Out(1)
        A request is not accepted.
    activation_a, activation_b, accumulator_a, accumulator_b : Out(read ports)
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        activation = ReadPort(config.activation_address_bits, config.line_bytes)
        super().__init__(
            {
                "fields": In(instruction_layout(Vector)),
                "start": In(1),
                "slot": In(1),
                "finished": Out(1),
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "stop": In(1),
                "room": In(1),
                "issued": Out(1),
                "tag": Out(tag_layout(config)),
                "token": Out(token_layout()),
                "a": Out(signed(32)).array(config.columns),
                "b": Out(signed(32)).array(config.columns),
                "parameter_address": Out(max(1, (config.parameter_rows - 1).bit_length())),
                "fault": Out(1),
                "fault_address": Out(signed(LOCAL_BITS)),
                "stalled": Out(1),
                "activation_a": Out(activation),
                "activation_b": Out(activation),
                "accumulator_a": Out(AccumulatorReadPort(config)),
                "accumulator_b": Out(AccumulatorReadPort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._elaborate_steps(m)
        self._elaborate_requests(m)
        self._elaborate_operands(m)
        return m

    # Trips of the nest, checked into a register ---------------------------------------------------

    def _elaborate_steps(self, m: Module) -> None:
        fields = self.fields
        m.submodules.nest = nest = LoopNest(
            loops=LOOPS_VECTOR,
            streams={
                "a": LOCAL_BITS,
                "b": LOCAL_BITS,
                "result": LOCAL_BITS,
                "parameter": PARAMETER_BITS,
                "y": COORDINATE_BITS,
                "x": COORDINATE_BITS,
            },
        )
        m.d.comb += [
            nest.a_base.eq(fields.a_address),
            nest.b_base.eq(fields.b_address),
            nest.result_base.eq(fields.address),
            nest.parameter_base.eq(fields.parameter_address),
            nest.y_base.eq(fields.y_origin),
            nest.x_base.eq(fields.x_origin),
        ]
        for i in range(LOOPS_VECTOR):
            m.d.comb += [
                nest.counts[i].eq(fields.counts[i]),
                nest.a_strides[i].eq(fields.a_strides[i]),
                nest.y_strides[i].eq(fields.y_steps[i]),
                nest.x_strides[i].eq(fields.x_steps[i]),
            ]
        for i in range(LOOPS_VECTOR_OUTER):  # what the window does not move keeps strides of zero
            m.d.comb += [
                nest.b_strides[i].eq(fields.b_strides[i]),
                nest.result_strides[i].eq(fields.strides[i]),
                nest.parameter_strides[i].eq(fields.parameter_strides[i]),
            ]

        running = Signal()
        take = Signal()
        self._step_valid = Signal()
        self._step_leaves = Signal()
        m.d.comb += [
            take.eq(running & ~self.stop & (~self._step_valid | self._step_leaves)),
            nest.load.eq(self.start),
            nest.advance.eq(take & ~nest.finished),
            self.finished.eq(take & nest.finished),
        ]
        with m.If(self.start):
            m.d.sync += running.eq(1)
        with m.Elif(self.finished):
            m.d.sync += running.eq(0)
        with m.If(take):
            m.d.sync += self._step_valid.eq(1)
        with m.Elif(self._step_leaves):
            m.d.sync += self._step_valid.eq(0)
        self._elaborate_check(m, nest, take)

    def _elaborate_check(self, m: Module, nest: LoopNest, take: Signal) -> None:
        config, fields = self._config, self.fields
        exists = Signal()
        last = Signal()
        last_tile = Signal()
        b_used = Signal()
        m.d.comb += [
            exists.eq(
                ~fields.bounded
                | (
                    (nest.y >= 0)
                    & (nest.y < fields.y_extent)
                    & (nest.x >= 0)
                    & (nest.x < fields.x_extent)
                )
            ),
            last.eq(nest.last[LOOPS_VECTOR_OUTER:].all()),
            last_tile.eq(nest.last[0]),
            b_used.eq(last & (fields.tail != Tail.NONE)),
        ]

        a_wide = fields.a_source == OperandSource.ACCUMULATOR
        b_wide = fields.b_source == OperandSource.ACCUMULATOR
        wide = fields.destination == Memory.ACCUMULATOR
        full = config.columns
        some = last_tile & (fields.last_lanes != 0) & (fields.last_lanes < full)
        parameter_used = last & (
            fields.use_bias | (fields.scale_source == ScaleSource.PARAMETER)
        )
        a_bad, b_bad, result_bad, parameter_bad = (
            Signal(name=f"{name}_bad") for name in ("a", "b", "result", "parameter")
        )
        m.d.comb += [
            a_bad.eq(exists & self._outside(nest.a, a_wide, full)),
            b_bad.eq(b_used & self._outside(nest.b, b_wide, full)),
            result_bad.eq(
                last & self._outside(nest.result, wide, Mux(some, fields.last_lanes, full))
            ),
            parameter_bad.eq(
                parameter_used & (nest.parameter.as_unsigned() >= config.parameter_rows)
            ),
        ]

        step = {
            "a_address": Signal(LOCAL_BITS, reset_less=True),
            "b_address": Signal(LOCAL_BITS, reset_less=True),
        }
        address_bits = self.tag.address.shape().width
        self._step_a, self._step_b = (
            Signal(address_bits, name=f"step_{name}_address", reset_less=True) for name in "ab"
        )
        del step
        self._step_a_narrow, self._step_a_wide, self._step_b_narrow, self._step_b_wide = (
            Signal(name=f"step_{name}", reset_less=True)
            for name in ("a_narrow", "a_wide", "b_narrow", "b_wide")
        )
        self._step_exists = Signal(name="step_exists", reset_less=True)
        self._step_first = Signal(name="step_first", reset_less=True)
        self._step_last = Signal(name="step_last", reset_less=True)
        self._step_parameter = Signal(
            self.parameter_address.shape(), name="step_parameter", reset_less=True
        )
        self._step_tag = Signal(self.tag.shape(), name="step_tag", reset_less=True)
        self._step_bad = Signal(name="step_bad")
        slot = Signal()
        fault_address = Signal(signed(LOCAL_BITS), reset_less=True)
        with m.If(self.start):
            m.d.sync += slot.eq(self.slot)
        with m.If(take):
            m.d.sync += [
                self._step_a.eq(nest.a),
                self._step_b.eq(nest.b),
                self._step_a_narrow.eq(exists & ~a_wide),
                self._step_a_wide.eq(exists & a_wide),
                self._step_b_narrow.eq(b_used & ~b_wide),
                self._step_b_wide.eq(b_used & b_wide),
                self._step_exists.eq(exists),
                self._step_first.eq(nest.first[LOOPS_VECTOR_OUTER:].all()),
                self._step_last.eq(last),
                self._step_parameter.eq(nest.parameter.as_unsigned()),
                self._step_tag.address.eq(nest.result),
                self._step_tag.last_tile.eq(last_tile),
                self._step_tag.final.eq(nest.finished),
                self._step_tag.slot.eq(slot),
                self._step_bad.eq(a_bad | b_bad | result_bad | parameter_bad),
            ]
            with m.If(a_bad):
                m.d.sync += fault_address.eq(nest.a)
            with m.Elif(b_bad):
                m.d.sync += fault_address.eq(nest.b)
            with m.Elif(result_bad):
                m.d.sync += fault_address.eq(nest.result)
            with m.Elif(parameter_bad):
                m.d.sync += fault_address.eq(nest.parameter.as_unsigned())
        m.d.comb += [
            self.fault.eq(self._step_valid & self._step_bad),
            self.fault_address.eq(fault_address),
        ]

    def _outside(self, address: Value, wide: Value, lanes: Value | int) -> Value:
        """Whether a row (wide) or a run of bytes leaves its memory."""
        config = self._config
        beyond = address[config.activation_address_bits :].any() | (
            address[: config.activation_address_bits] > config.activation_bytes - lanes
        )
        return Mux(wide, address[config.accumulator_address_bits :].any(), beyond)

    # Requests -------------------------------------------------------------------------------------

    def _elaborate_requests(self, m: Module) -> None:
        ports = (
            (self.activation_a, self._step_a_narrow, self._step_a),
            (self.accumulator_a, self._step_a_wide, self._step_a),
            (self.activation_b, self._step_b_narrow, self._step_b),
            (self.accumulator_b, self._step_b_wide, self._step_b),
        )
        a_done, b_done = Signal(), Signal()  # accepted in an earlier cycle
        a_taken, b_taken = Signal(), Signal()  # accepted in this one
        asks = Signal()
        m.d.comb += asks.eq(self._step_valid & ~self._step_bad & self.room)
        for (port, needed, address), done in zip(ports, (a_done, a_done, b_done, b_done)):
            m.d.comb += [port.valid.eq(asks & needed & ~done), port.address.eq(address)]
        a_ready = (self._step_a_narrow & self.activation_a.ready) | (
            self._step_a_wide & self.accumulator_a.ready
        )
        b_ready = (self._step_b_narrow & self.activation_b.ready) | (
            self._step_b_wide & self.accumulator_b.ready
        )
        a_needed = self._step_a_narrow | self._step_a_wide
        b_needed = self._step_b_narrow | self._step_b_wide
        leaves = self._step_leaves
        m.d.comb += [
            a_taken.eq(asks & a_ready & ~a_done),
            b_taken.eq(asks & b_ready & ~b_done),
            leaves.eq(asks & (~a_needed | a_done | a_taken) & (~b_needed | b_done | b_taken)),
            self.stalled.eq(asks & ~leaves),
            self.issued.eq(leaves & self._step_last),
            self.tag.eq(self._step_tag),
        ]
        for done, taken in ((a_done, a_taken), (b_done, b_taken)):
            with m.If(leaves):
                m.d.sync += done.eq(0)
            with m.Elif(taken):
                m.d.sync += done.eq(1)

        # Tokens and marks of early operands travel beside the memories' reads.
        a_early = Signal(READ_LATENCY)
        b_early = Signal(READ_LATENCY)
        m.d.sync += [
            a_early.eq(Cat(a_taken & ~leaves, a_early)),
            b_early.eq(Cat(b_taken & ~leaves, b_early)),
        ]
        self._a_early, self._b_early = a_early[-1], b_early[-1]
        token = self.token
        for delay in range(READ_LATENCY):
            source = token if delay == 0 else following
            following = Signal(token_layout(), name=f"token_{delay}") if False else source
        del token, following

        stages = [Signal(token_layout(), name=f"token_{i}") for i in range(READ_LATENCY)]
        m.d.sync += stages[0].valid.eq(leaves)
        with m.If(leaves):
            m.d.sync += [
                stages[0].slot.eq(self._step_tag.slot),
                stages[0].exists.eq(self._step_exists),
                stages[0].first.eq(self._step_first),
                stages[0].last.eq(self._step_last),
                stages[0].a_held.eq(a_done),
                stages[0].b_held.eq(b_done),
            ]
        for earlier, later in zip(stages, stages[1:]):
            m.d.sync += later.eq(earlier)
        m.d.comb += self.token.eq(stages[-1])

        rows = [
            Signal(self.parameter_address.shape(), name=f"parameter_{i}", reset_less=True)
            for i in range(PARAMETER_DELAY)
        ]
        with m.If(self.issued):
            m.d.sync += rows[0].eq(self._step_parameter)
        for earlier, later in zip(rows, rows[1:]):
            m.d.sync += later.eq(earlier)
        m.d.comb += self.parameter_address.eq(rows[-1])

    # Operands -------------------------------------------------------------------------------------

    def _elaborate_operands(self, m: Module) -> None:
        columns, token, controls = self._config.columns, self.token, self.controls

        def control(name: str) -> Signal:
            """The field of the token's instruction, under a name of its own."""
            choices = [getattr(controls[slot], name) for slot in range(SLOTS)]
            chosen = Signal.like(choices[0], name=name)
            m.d.comb += chosen.eq(Mux(token.slot, choices[1], choices[0]))
            return chosen

        held = {}
        for name, early, narrow, wide in (
            ("a", self._a_early, self.activation_a, self.accumulator_a),
            ("b", self._b_early, self.activation_b, self.accumulator_b),
        ):
            held[name] = Signal(32 * columns, name=f"{name}_waiting", reset_less=True)
            with m.If(early & wide.data_valid):
                m.d.sync += held[name].eq(wide.data)
            with m.Elif(early):
                m.d.sync += held[name][: 8 * columns].eq(narrow.data)

        for name, is_held, narrow, wide, outputs in (
            ("a", token.a_held, self.activation_a, self.accumulator_a, self.a),
            ("b", token.b_held, self.activation_b, self.accumulator_b, self.b),
        ):
            is_wide, zero_point = control(f"{name}_wide"), control(f"{name}_zero_point")
            for lane, output in enumerate(outputs):
                byte = Signal(signed(8), name=f"{name}_byte_{lane}")
                word = Signal(signed(32), name=f"{name}_word_{lane}")
                at_byte, at_word = slice(8 * lane, 8 * lane + 8), slice(32 * lane, 32 * lane + 32)
                m.d.comb += [
                    byte.eq(Mux(is_held, held[name][at_byte], narrow.data[at_byte])),
                    word.eq(Mux(is_held, held[name][at_word], wide.data[at_word])),
                    output.eq(Mux(is_wide, word, byte - zero_point)),
                ]
        identity = Signal(signed(32))
        m.d.comb += identity.eq(Mux(control("head_maximum"), Const(1 << 31, 32), 0))
        with m.If(~token.exists):
            for output in self.a:
                m.d.comb += output.eq(identity)
