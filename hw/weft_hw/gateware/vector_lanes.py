"""The vector engine's arithmetic: window reduction, scaling, operand B, zero point and clamp."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import ParameterReadPort
from weft_hw.gateware.random_bits import RandomBits
from weft_hw.gateware.requantizer import Requantizer
from weft_hw.gateware.vector_layouts import SLOTS, control, controls_layout, token_layout
from weft_hw.gateware.vector_window import VectorWindow, window_latency
from weft_hw.instructions import Rounding

__all__ = ["VectorLanes"]

WAITING_B = 16
"""Places for operands B between their arrival and the tail; more than the pipeline's depth."""


class VectorLanes(wiring.Component):
    """Computes results from operands, in every lane::

        head   = the window's reduction, see :class:`VectorWindow`
        scaled = (head + bias) << pre_shift, requantized
        result = clamp(tail(scaled, B) + zero_point, clamp_low, clamp_high)

    with all sums modulo 2^32. One window element enters a cycle, a vector leaves for each last one,
    ``latency`` cycles after it, without back-pressure::

        window | requantizer | tail | zero point | clamp

    The tail's product of 32 by 9 bits has two halves, of 16 bits of the value each; the upper one
    is added together with the zero point.

    Operands B wait in a small memory until their vector reaches the tail. A stage without a vector
    does not switch.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    token : In(token)
    a, b : In(signed(32)), arrays of columns
        Valid with ``token.valid``; the tail's B with ``token.last`` only.
    controls : In(array of controls)
    parameter_address : In
        The row to be read in this cycle, for the vector whose last token is valid in it.
    parameters : Out(parameter read port)
    random_seed, random_step : In(32), In(32)
    o_valid, result : Out(1), Out(signed(32)), an array of columns
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._window = VectorWindow(config)
        self._requantizer = Requantizer(config.columns)
        if window_latency(self._config) + self._requantizer.latency >= WAITING_B:
            raise ValueError(f"`WAITING_B` must exceed the pipeline's depth, not be {WAITING_B}")
        parameters = ParameterReadPort(config)
        super().__init__(
            {
                "token": In(token_layout()),
                "a": In(signed(32)).array(config.columns),
                "b": In(signed(32)).array(config.columns),
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "parameter_address": In(parameters.members["address"].shape),
                "parameters": Out(parameters),
                "random_seed": In(32),
                "random_step": In(32),
                "o_valid": Out(1),
                "result": Out(signed(32)).array(config.columns),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the last token of a window to the vector's result."""
        return window_latency(self._config) + self._requantizer.latency + 2

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window = self._window
        m.submodules.requantizer = self._requantizer
        m.submodules.random_bits = random_bits = RandomBits(self._config.columns)
        m.d.comb += [
            random_bits.seed.eq(self.random_seed),
            random_bits.step.eq(self.random_step),
            *[port.eq(b) for port, b in zip(self._requantizer.random, random_bits.bits)],
        ]
        # The vector enters one of them a cycle after the other.
        assert random_bits.latency == 1 + self._requantizer.random_delay
        slot = self._elaborate_scaling(m, random_bits)
        for _ in range(self._requantizer.latency):
            following = Signal(name="slot", reset_less=True)
            m.d.sync += following.eq(slot)
            slot = following
        self._elaborate_tail(m, slot, self._elaborate_waiting_b(m, slot))
        return m

    def _elaborate_scaling(self, m: Module, random_bits: RandomBits) -> Signal:
        """Window reduction and feed of the requantizer; returns its slot."""
        requantizer, window = self._requantizer, self._window
        closing, slot = window.closing, window.slot
        m.d.comb += [
            window.token.eq(self.token),
            window.controls.eq(self.controls),
            *[port.eq(a) for port, a in zip(window.a, self.a)],
            *[port.eq(b) for port, b in zip(window.b, self.b)],
        ]
        use_bias = control(m, self.controls, slot, "use_bias")
        scale_parameter = control(m, self.controls, slot, "scale_parameter")
        multiplier = control(m, self.controls, slot, "multiplier")
        exponent = control(m, self.controls, slot, "exponent")
        row = self.parameters.data
        for lane, head in enumerate(window.head):
            m.d.comb += [
                requantizer.value[lane].eq(head),
                requantizer.bias[lane].eq(Mux(use_bias, row.bias[lane], 0)),
                requantizer.multiplier[lane].eq(
                    Mux(scale_parameter, row.multiplier[lane], multiplier)
                ),
                requantizer.exponent[lane].eq(Mux(scale_parameter, row.exponent[lane], exponent)),
            ]
        rounding = control(m, self.controls, closing.slot, "rounding", "_closing")
        m.d.comb += [
            random_bits.i_valid.eq(
                closing.valid & closing.last & (rounding == Rounding.STOCHASTIC)
            ),
            random_bits.index.eq(closing.index),
            random_bits.tensor.eq(control(m, self.controls, closing.slot, "tensor")),
            self.parameters.address.eq(self.parameter_address),
            requantizer.i_valid.eq(window.ready),
            requantizer.pre_shift.eq(control(m, self.controls, slot, "pre_shift")),
            requantizer.rounding.eq(control(m, self.controls, slot, "rounding")),
            requantizer.bypass.eq(control(m, self.controls, slot, "bypass")),
        ]
        return slot

    def _elaborate_waiting_b(self, m: Module, slot: Signal) -> data.View:
        """Queue of operands B from token to tail; returns the one at its head."""
        layout = data.ArrayLayout(signed(32), self._config.columns)
        memory: Memory = Memory(shape=layout, depth=WAITING_B, init=[])
        m.submodules.waiting_b = memory
        write, read = memory.write_port(), memory.read_port(domain="comb")
        arrives = control(m, self.controls, self.token.slot, "b_used", "_arriving")
        leaves = control(m, self.controls, slot, "b_used", "_leaving")
        filled, drained = Signal(range(WAITING_B)), Signal(range(WAITING_B))
        m.d.comb += [
            write.addr.eq(filled),
            write.data.eq(Cat(*self.b)),
            write.en.eq(self.token.valid & self.token.last & arrives),
            read.addr.eq(drained),
        ]
        with m.If(write.en):
            m.d.sync += filled.eq(filled + 1)
        with m.If(self._requantizer.o_valid & leaves):
            m.d.sync += drained.eq(drained + 1)
        return read.data

    def _elaborate_tail(self, m: Module, slot: Signal, waiting_b: data.View) -> None:
        valid = [self._requantizer.o_valid, Signal(name="valid_1"), Signal(name="valid_2")]
        slots = [slot, Signal(name="slot_1"), Signal(name="slot_2")]
        for stage in range(2):
            m.d.sync += [valid[stage + 1].eq(valid[stage]), slots[stage + 1].eq(slots[stage])]
        add = control(m, self.controls, slots[0], "tail_add")
        maximum = control(m, self.controls, slots[0], "tail_maximum")
        product = control(m, self.controls, slots[0], "tail_product")
        product_1 = control(m, self.controls, slots[1], "tail_product", "_1")
        select = control(m, self.controls, slots[0], "tail_select")
        select_low = control(m, self.controls, slots[0], "select_low")
        select_high = control(m, self.controls, slots[0], "select_high")
        zero_point = control(m, self.controls, slots[1], "zero_point")
        low = control(m, self.controls, slots[2], "clamp_low")
        high = control(m, self.controls, slots[2], "clamp_high")
        m.d.comb += self.o_valid.eq(valid[2])
        for lane, scaled in enumerate(self._requantizer.result):
            combined = Signal(signed(32), name=f"combined_{lane}", reset_less=True)
            offset = Signal(signed(32), name=f"offset_{lane}", reset_less=True)
            b = Signal(signed(32), name=f"tail_b_{lane}")
            upper = Signal(16, name=f"upper_{lane}", reset_less=True)  # of a product
            narrow = Signal(signed(9), name=f"tail_narrow_{lane}")
            m.d.comb += [b.eq(waiting_b[lane]), narrow.eq(b)]
            with m.If(valid[0]):
                with m.If(add):
                    m.d.sync += combined.eq(scaled + b)
                with m.Elif(product):
                    m.d.sync += [
                        combined.eq(scaled[:16] * narrow),
                        upper.eq(scaled[16:].as_signed() * narrow),
                    ]
                with m.Elif(maximum & (b > scaled)):
                    m.d.sync += combined.eq(b)
                with m.Elif(select & ~((narrow > select_low) & (narrow < select_high))):
                    m.d.sync += combined.eq(0)
                with m.Else():
                    m.d.sync += combined.eq(scaled)
            with m.If(valid[1]):
                with m.If(product_1):
                    m.d.sync += offset.eq(combined + zero_point + Cat(Const(0, 16), upper))
                with m.Else():
                    m.d.sync += offset.eq(combined + zero_point)
            with m.If(offset > high):
                m.d.comb += self.result[lane].eq(high)
            with m.Elif(offset < low):
                m.d.comb += self.result[lane].eq(low)
            with m.Else():
                m.d.comb += self.result[lane].eq(offset)
