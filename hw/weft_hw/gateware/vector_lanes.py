"""The vector engine's arithmetic: window reduction, scaling, and the tail."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import LookupPort, ParameterReadPort
from weft_hw.gateware.random_bits import RandomBits
from weft_hw.gateware.requantizer import Requantizer
from weft_hw.gateware.vector_capture import VectorCapture
from weft_hw.gateware.vector_layouts import (
    SLOTS,
    control,
    controls_layout,
    early_control,
    token_layout,
)
from weft_hw.gateware.vector_tail import TAIL_LATENCY, WAITING_B, VectorTail
from weft_hw.gateware.vector_window import VectorWindow, window_latency
from weft_hw.instructions import Rounding

__all__ = ["VectorLanes"]


class VectorLanes(wiring.Component):
    """Computes results from operands, in every lane::

        head   = the window's reduction, see :class:`VectorWindow`
        scaled = (head + bias) << pre_shift, see :class:`Requantizer`
        result = lookup(clamp(tail(scaled, B) + zero_point)), see :class:`VectorTail`

    with all sums modulo 2^32. One window element enters a cycle, a vector leaves for each last one,
    ``latency`` cycles after it, without back-pressure.

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
    tables : Out(LookupPort)
    clear, clear_slot : In(1), In(1)
        An instruction starts in that slot: nothing is captured for it yet.
    largest, clamped : Out(32), Out(32), arrays by slot
        See :class:`VectorCapture`.
    o_valid, result : Out(1), Out(signed(32)), an array of columns
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._window = VectorWindow(config)
        self._requantizer = Requantizer(config.columns)
        self._tail = VectorTail(config)
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
                "tables": Out(LookupPort(config)),
                "clear": In(1),
                "clear_slot": In(1),
                "largest": Out(32).array(SLOTS),
                "clamped": Out(32).array(SLOTS),
                "o_valid": Out(1),
                "result": Out(signed(32)).array(config.columns),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the last token of a window to the vector's result."""
        return window_latency(self._config) + self._requantizer.latency + TAIL_LATENCY

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
        slots, last_tiles = [self._elaborate_scaling(m, random_bits)], [Signal(name="last_tile")]
        with m.If(self._window.closing.valid):
            m.d.sync += last_tiles[0].eq(self._window.closing.last_tile)
        for k in range(self._requantizer.latency):
            for chain, name in ((slots, "slot"), (last_tiles, "last_tile")):
                later = Signal(name=f"{name}_{k + 1}", reset_less=True)
                m.d.sync += later.eq(chain[-1])
                chain.append(later)
        self._elaborate_tail(m, slots, last_tiles)
        self._elaborate_capture(m, slots, last_tiles)
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

        def setting(name: str) -> Signal:
            """A field of the instruction whose head is ready."""
            return early_control(m, self.controls, closing.slot, name, "_ready")

        use_bias, scale_parameter = setting("use_bias"), setting("scale_parameter")
        multiplier, exponent = setting("multiplier"), setting("exponent")
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
            requantizer.pre_shift.eq(setting("pre_shift")),
            requantizer.rounding.eq(setting("rounding")),
            requantizer.bypass.eq(setting("bypass")),
        ]
        return slot

    def _elaborate_tail(self, m: Module, slots: list[Signal], last_tiles: list[Signal]) -> None:
        """Feed of the tail, and its results."""
        requantizer, tail, token = self._requantizer, self._tail, self.token
        m.submodules.tail = tail
        connect(m, tail.tables, flipped(self.tables))
        m.d.comb += [
            tail.controls.eq(self.controls),
            tail.b_valid.eq(
                token.valid & token.last & control(m, self.controls, token.slot, "b_used")
            ),
            *[port.eq(b) for port, b in zip(tail.b, self.b)],
            tail.i_soon.eq(requantizer.o_soon),
            tail.i_soon_slot.eq(slots[-2]),
            tail.i_valid.eq(requantizer.o_valid),
            tail.i_slot.eq(slots[-1]),
            tail.i_last_tile.eq(last_tiles[-1]),
            *[port.eq(value) for port, value in zip(tail.scaled, requantizer.result)],
            self.o_valid.eq(tail.o_valid),
            *[port.eq(value) for port, value in zip(self.result, tail.result)],
        ]

    def _elaborate_capture(self, m: Module, slots: list[Signal], last_tiles: list[Signal]) -> None:
        """What is captured: sums with their bias, and results that a bound has changed."""
        tail = self._tail
        m.submodules.capture = capture = VectorCapture(self._config)
        biased = Signal()
        m.d.sync += biased.eq(self._window.ready)
        m.d.comb += [
            capture.controls.eq(self.controls),
            capture.clear.eq(self.clear),
            capture.clear_slot.eq(self.clear_slot),
            capture.i_valid.eq(biased),
            capture.i_slot.eq(slots[1]),
            capture.i_last_tile.eq(last_tiles[1]),
            *[port.eq(value) for port, value in zip(capture.value, self._requantizer.biased)],
            capture.o_valid.eq(tail.o_clamp),
            capture.o_slot.eq(tail.o_clamp_slot),
            capture.o_last_tile.eq(tail.o_clamp_last_tile),
            capture.clamped.eq(tail.clamped),
            *[port.eq(value) for port, value in zip(self.largest, capture.largest)],
            *[port.eq(value) for port, value in zip(self.clamped, capture.count)],
        ]
