"""Reads of the vector engine: requests for operands A and B, and their alignment."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import READ_LATENCY, AccumulatorReadPort, ReadPort
from weft_hw.gateware.vector_layouts import (
    SLOTS,
    controls_layout,
    early_control,
    step_layout,
    tag_layout,
    token_layout,
)
from weft_hw.gateware.vector_window import window_latency

__all__ = ["VectorOperands"]


class VectorOperands(wiring.Component):
    """Requests what each step reads and delivers both operands together.

    A step leaves once A and B, as far as it reads them, have been accepted, in whichever cycles.
    ``READ_LATENCY`` cycles later ``token`` is valid and ``a`` and ``b`` belong to it. An operand
    that was accepted before its partner waits in a register; as the next step requests nothing
    before the step has left, one register an operand is enough::

        cycle t                t+READ_LATENCY            t+window_latency
        last request accepted ... token, a and b valid ... parameter_address

    A parameter row takes READ_LATENCY too, so that it comes with the head of its window.

    One step a cycle while every request is accepted at once.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    asks, step, leaves : In(1), In(step), Out(1)
        There is a step, to be performed; it is.
    a_taken, b_taken : Out(1), Out(1)
        The operand's read is accepted: from the next cycle on the step asks for it no more.
    issued, tag : Out(1), Out(tag)
        All reads of a vector were accepted in the cycle before; where its result goes.
    controls : In(array of controls)
    token : Out(token)
    a, b : Out(signed(32)), arrays of columns
        Zero points subtracted; an A that does not exist is the identity of the window's reduction.
    parameter_address, parameter_valid : Out, Out(1)
        The second tells that the row is that of a vector.
    stalled : Out(1)
        A request is not accepted.
    activation_a, activation_b, weight_b, accumulator_a, accumulator_b : Out(read ports)
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        activation = ReadPort(config.activation_address_bits, config.line_bytes)
        super().__init__(
            {
                "asks": In(1),
                "step": In(step_layout(config)),
                "leaves": Out(1),
                "a_taken": Out(1),
                "b_taken": Out(1),
                "issued": Out(1),
                "tag": Out(tag_layout(config)),
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "token": Out(token_layout()),
                "a": Out(signed(32)).array(config.columns),
                "b": Out(signed(32)).array(config.columns),
                "parameter_address": Out(max(1, (config.parameter_rows - 1).bit_length())),
                "parameter_valid": Out(1),
                "stalled": Out(1),
                "activation_a": Out(activation),
                "activation_b": Out(activation),
                "weight_b": Out(ReadPort(config.weight_address_bits, config.line_bytes)),
                "accumulator_a": Out(AccumulatorReadPort(config)),
                "accumulator_b": Out(AccumulatorReadPort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        step = self.step
        self._coming_slot = Signal()  # of the token of the following cycle
        a_done, a_taken, a_satisfied = self._elaborate_request(
            m, "a", (self.activation_a, step.a_narrow), (self.accumulator_a, step.a_wide)
        )
        b_done, b_taken, b_satisfied = self._elaborate_request(
            m,
            "b",
            (self.activation_b, step.b_narrow),
            (self.accumulator_b, step.b_wide),
            (self.weight_b, step.b_weight),
        )
        m.d.comb += [
            self.leaves.eq(self.asks & a_satisfied & b_satisfied),
            self.stalled.eq(self.asks & ~self.leaves),
            self.a_taken.eq(a_taken),
            self.b_taken.eq(b_taken),
        ]
        self._elaborate_token(m, a_done, b_done)
        self._elaborate_operand(m, "a", a_taken)
        self._elaborate_operand(m, "b", b_taken)
        identity = Signal(signed(32))
        m.d.comb += identity.eq(Mux(self._setting(m, "head_maximum"), Const(1 << 31, 32), 0))
        with m.If(~self.token.exists):
            for output in self.a:
                m.d.comb += output.eq(identity)
        return m

    def _setting(self, m: Module, name: str) -> Signal:
        """A field of the token's instruction, from a register of its own."""
        return early_control(m, self.controls, self._coming_slot, name, "_token")

    def _elaborate_request(
        self, m: Module, name: str, *choices: tuple[object, Signal]
    ) -> tuple[Signal, Signal, Signal]:
        """Drive the ports of one operand.

        Returns whether it has been accepted in an earlier cycle, is accepted in this one, and is
        not, or no longer, missing.
        """
        done, taken, satisfied = (
            Signal(name=f"{name}_{what}") for what in ("done", "taken", "satisfied")
        )
        address = getattr(self.step, f"{name}_address")
        for port, needed in choices:
            m.d.comb += [port.valid.eq(self.asks & needed), port.address.eq(address)]
        m.d.comb += [
            taken.eq(reduce(or_, (port.valid & port.ready for port, _ in choices))),
            satisfied.eq(~reduce(or_, (needed for _, needed in choices)) | taken),
        ]
        with m.If(self.leaves):
            m.d.sync += done.eq(0)
        with m.Elif(taken):
            m.d.sync += done.eq(1)
        return done, taken, satisfied

    def _elaborate_token(self, m: Module, a_done: Signal, b_done: Signal) -> None:
        """Delay what is known of a step until its data arrive."""
        step = self.step
        tokens = [Signal(token_layout(), name=f"token_{i}") for i in range(READ_LATENCY)]
        tag = Signal(tag_layout(self._config), reset_less=True)
        m.d.sync += [
            # Acceptance is known late in a cycle: it decides on the valid bit only.
            tokens[0].valid.eq(self.leaves),
            tokens[0].slot.eq(step.tag.slot),
            tokens[0].exists.eq(step.exists),
            tokens[0].first.eq(step.first),
            tokens[0].last.eq(step.last),
            tokens[0].last_tile.eq(step.tag.last_tile),
            tokens[0].index.eq(step.index),
            tokens[0].window.eq(step.window),
            tokens[0].a_held.eq(a_done),
            tokens[0].b_held.eq(b_done),
            tag.eq(step.tag),
        ]
        m.d.comb += [self.issued.eq(tokens[0].valid & tokens[0].last), self.tag.eq(tag)]
        for earlier, later in zip(tokens, tokens[1:]):
            m.d.sync += later.eq(earlier)
        m.d.comb += [self.token.eq(tokens[-1]), self._coming_slot.eq(tokens[-2].slot)]

        rows = [
            Signal(self.parameter_address.shape(), name=f"parameter_{i}", reset_less=True)
            for i in range(window_latency(self._config))
        ]
        needed = [
            Signal(name=f"parameter_valid_{i}") for i in range(1, window_latency(self._config))
        ]
        m.d.sync += rows[0].eq(step.parameter)
        for chain in (rows, [self.issued, *needed]):
            for earlier, later in zip(chain, chain[1:]):
                m.d.sync += later.eq(earlier)
        m.d.comb += [self.parameter_address.eq(rows[-1]), self.parameter_valid.eq(needed[-1])]

    def _elaborate_operand(self, m: Module, name: str, taken: Signal) -> None:
        """Hold an operand that comes early; select, and subtract the zero point."""
        columns = self._config.columns
        narrow, wide = getattr(self, f"activation_{name}"), getattr(self, f"accumulator_{name}")
        bytes_read = narrow.data[: 8 * columns]
        if name == "b":
            weight = self._setting(m, "b_weight")
            bytes_read = Signal(8 * columns, name="b_bytes")
            m.d.comb += bytes_read.eq(Mux(weight, self.weight_b.data, narrow.data))
        early = Signal(READ_LATENCY, name=f"{name}_early")
        waiting = Signal(32 * columns, name=f"{name}_waiting", reset_less=True)
        m.d.sync += early.eq(Cat(taken & ~self.leaves, early[:-1]))
        with m.If(early[-1]):
            with m.If(wide.data_valid):
                m.d.sync += waiting.eq(wide.data)
            with m.Elif(narrow.data_valid):
                m.d.sync += waiting[: 8 * columns].eq(narrow.data[: 8 * columns])
            if name == "b":
                with m.Elif(self.weight_b.data_valid):
                    m.d.sync += waiting[: 8 * columns].eq(self.weight_b.data[: 8 * columns])

        held = getattr(self.token, f"{name}_held")
        is_wide = self._setting(m, f"{name}_wide")
        zero_point = self._setting(m, f"{name}_zero_point")
        for lane, output in enumerate(getattr(self, name)):
            byte = Signal(signed(8), name=f"{name}_byte_{lane}")
            word = Signal(signed(32), name=f"{name}_word_{lane}")
            bits_8, bits_32 = slice(8 * lane, 8 * lane + 8), slice(32 * lane, 32 * lane + 32)
            m.d.comb += [
                byte.eq(Mux(held, waiting[bits_8], bytes_read[bits_8])),
                word.eq(Mux(held, waiting[bits_32], wide.data[bits_32])),
                output.eq(Mux(is_wide, word, byte - zero_point)),
            ]
