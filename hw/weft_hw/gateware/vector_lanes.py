"""The vector engine's arithmetic: window reduction, scaling, and the tail."""

from collections.abc import Callable

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import LookupPort, ParameterReadPort
from weft_hw.gateware.random_bits import RandomBits
from weft_hw.gateware.requantizer import Requantizer
from weft_hw.gateware.vector_capture import VectorCapture
from weft_hw.gateware.vector_layouts import (
    INDEX_BITS,
    SLOTS,
    control,
    controls_layout,
    early_control,
    token_layout,
)
from weft_hw.gateware.vector_tail import (
    CLAMP_LATENCY,
    TAIL_LATENCY,
    WAITING_B,
    VectorTail,
)
from weft_hw.gateware.vector_window import VectorWindow, window_latency
from weft_hw.instructions import Rounding

__all__ = ["VectorLanes"]


class VectorLanes(wiring.Component):
    """Computes results from operands, in every lane::

        head   = the window's reduction, see :class:`VectorWindow`
        scaled = (head + bias) << pre_shift, see :class:`Requantizer`
        result = lookup(clamp(tail(scaled, B) + zero_point)), see :class:`VectorTail`

    with all sums modulo 2^32. One window element enters a cycle; for each last one, a vector leaves
    ``latency`` cycles after it, without back-pressure: its groups of ``vector_lanes`` lanes one
    after the other, the lowest first. With more than one group, last elements come at least as
    many cycles apart, and a head passes one more register, from which its groups are shifted out.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    token : In(token)
    a, b : In(signed(32)), arrays of columns
        Valid with ``token.valid``; the tail's B with ``token.last`` only.
    controls : In(array of controls)
    parameter_address, parameter_valid : In, In(1)
        The row to be read in this cycle if there is a single group, for the vector whose head is
        ready ``READ_LATENCY`` cycles later.
    parameters : Out(parameter read port)
    random_seed, random_step : In(32), In(32)
    tables : Out(LookupPort)
    clear, clear_slot : In(1), In(1)
        An instruction starts in that slot: nothing is captured for it yet.
    largest, clamped : Out(32), Out(32), arrays by slot
        See :class:`VectorCapture`.
    o_valid, o_group, result : Out(1), Out(group_bits), Out(signed(32)), an array of lanes
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._window = VectorWindow(config)
        self._requantizer = Requantizer(config.vector_lanes)
        self._tail = VectorTail(config)
        # Operands B wait from the last token on until the tail takes the last group.
        if self.latency - TAIL_LATENCY >= WAITING_B * config.vector_groups:
            raise ValueError(f"`WAITING_B` must exceed the pipeline's depth, not be {WAITING_B}")
        parameters = ParameterReadPort(config)
        super().__init__(
            {
                "token": In(token_layout()),
                "a": In(signed(32)).array(config.columns),
                "b": In(signed(32)).array(config.columns),
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "parameter_address": In(parameters.members["address"].shape),
                "parameter_valid": In(1),
                "parameters": Out(parameters),
                "random_seed": In(32),
                "random_step": In(32),
                "tables": Out(LookupPort(config)),
                "clear": In(1),
                "clear_slot": In(1),
                "largest": Out(32).array(SLOTS),
                "clamped": Out(32).array(SLOTS),
                "o_valid": Out(1),
                "o_group": Out(config.group_bits),
                "result": Out(signed(32)).array(config.vector_lanes),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the last token of a window to the last group of the vector's result."""
        groups = self._config.vector_groups
        shifting = groups if groups > 1 else 0
        return window_latency(self._config) + shifting + self._requantizer.latency + TAIL_LATENCY

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window = self._window
        m.submodules.requantizer = self._requantizer
        window = self._window
        m.d.comb += [
            window.token.eq(self.token),
            window.controls.eq(self.controls),
            *[port.eq(a) for port, a in zip(window.a, self.a)],
            *[port.eq(b) for port, b in zip(window.b, self.b)],
        ]
        last_tile = Signal()
        with m.If(window.closing.valid):
            m.d.sync += last_tile.eq(window.closing.last_tile)
        if self._config.vector_groups == 1:
            entry = self._elaborate_whole(m, last_tile)
        else:
            entry = self._elaborate_groups(m, last_tile)
        entries = [entry]  # by cycles since the requantizer took the vector, or the group
        for k in range(self._requantizer.latency + TAIL_LATENCY):
            later = Signal(entry.shape(), name=f"entry_{k + 1}", reset_less=True)
            m.d.sync += later.eq(entries[-1])
            entries.append(later)
        self._elaborate_tail(m, entries)
        self._elaborate_capture(m, entries)
        return m

    def _entry_layout(self) -> data.StructLayout:
        """What travels with a group of lanes behind the window."""
        return data.StructLayout({"slot": 1, "last_tile": 1, "group": self._config.group_bits})

    def _elaborate_whole(self, m: Module, last_tile: Signal) -> data.View:
        """Heads enter the requantizer as they are ready; returns what travels with them."""
        window, closing = self._window, self._window.closing
        layout = self._entry_layout()
        entry = data.View(layout, Signal(layout, name="entry_0"))
        m.d.comb += [
            entry.slot.eq(window.slot),
            entry.last_tile.eq(last_tile),
            self.parameters.address.eq(self.parameter_address),
            self._requantizer.i_valid.eq(window.ready),
            *[port.eq(head) for port, head in zip(self._requantizer.value, window.head)],
        ]

        def setting(name: str) -> Signal:
            """A field of the instruction whose head is ready."""
            return early_control(m, self.controls, closing.slot, name, "_ready")

        self._elaborate_scaling(m, setting)
        rounding = control(m, self.controls, closing.slot, "rounding", "_closing")
        stochastic = rounding == Rounding.STOCHASTIC
        tensor = control(m, self.controls, closing.slot, "tensor")
        self._elaborate_random_bits(
            m, closing.valid & closing.last & stochastic, closing.index, tensor
        )
        return entry

    def _elaborate_groups(self, m: Module, last_tile: Signal) -> data.View:
        """Heads are shifted into the requantizer by groups of lanes, from the cycle after they are
        ready on; returns what travels with them.
        """
        config, window, closing = self._config, self._window, self._window.closing
        groups, lanes = config.vector_groups, config.vector_lanes
        layout = self._entry_layout()
        entry = data.View(layout, Signal(layout, name="entry_0"))
        shifted = Signal(32 * config.columns, reset_less=True)
        valid = Signal(name="group_valid")
        final = Signal()
        m.d.comb += [
            final.eq(entry.group == groups - 1),
            self._requantizer.i_valid.eq(valid),
            *[
                port.eq(shifted.word_select(lane, 32))
                for lane, port in enumerate(self._requantizer.value)
            ],
        ]
        with m.If(window.ready):
            m.d.sync += [
                valid.eq(1),
                entry.slot.eq(window.slot),
                entry.last_tile.eq(last_tile),
                entry.group.eq(0),
                shifted.eq(Cat(*window.head)),
            ]
        with m.Else():
            m.d.sync += [
                valid.eq(valid & ~final),
                entry.group.eq(entry.group + 1),
                shifted.eq(shifted[32 * lanes :]),
            ]

        def setting(name: str) -> Signal:
            """A field of the instruction whose head is being shifted out."""
            chosen = control(m, self.controls, window.slot, name, "_ready")
            kept = Signal(chosen.shape(), name=f"{name}_group", reset_less=True)
            with m.If(window.ready):
                m.d.sync += kept.eq(chosen)
            return kept

        self._elaborate_scaling(m, setting)
        self._elaborate_parameter_groups(m)

        # Random bits are made from the cycle in which the head is ready on.
        index = Signal(INDEX_BITS, reset_less=True)
        stochastic = Signal(reset_less=True)
        tensor = control(m, self.controls, window.slot, "tensor")
        rounding = control(m, self.controls, closing.slot, "rounding", "_closing")
        tensor_held = Signal.like(tensor, reset_less=True)
        with m.If(closing.valid & closing.last):
            m.d.sync += [index.eq(closing.index), stochastic.eq(rounding == Rounding.STOCHASTIC)]
        with m.Else():
            m.d.sync += index.eq(index + lanes)
        with m.If(window.ready):
            m.d.sync += tensor_held.eq(tensor)
        self._elaborate_random_bits(
            m,
            stochastic & (window.ready | (valid & ~final)),
            index,
            Mux(window.ready, tensor, tensor_held),
        )
        return entry

    def _elaborate_parameter_groups(self, m: Module) -> None:
        """Read the row's groups one after the other, the first for the cycle after its head is
        ready.
        """
        row = Signal.like(self.parameter_address, reset_less=True)
        group = Signal(self._config.group_bits, name="parameter_group", reset_less=True)
        with m.If(self.parameter_valid):
            m.d.sync += [row.eq(self.parameter_address), group.eq(0)]
        with m.Else():
            m.d.sync += group.eq(group + 1)
        m.d.comb += [self.parameters.address.eq(row), self.parameters.group.eq(group)]

    def _elaborate_scaling(self, m: Module, setting: Callable[[str], Signal]) -> None:
        """Feed the requantizer with the settings of the instruction whose lanes enter it."""
        requantizer, row = self._requantizer, self.parameters.data
        use_bias, scale_parameter = setting("use_bias"), setting("scale_parameter")
        multiplier, exponent = setting("multiplier"), setting("exponent")
        for lane in range(self._config.vector_lanes):
            m.d.comb += [
                requantizer.bias[lane].eq(Mux(use_bias, row.bias[lane], 0)),
                requantizer.multiplier[lane].eq(
                    Mux(scale_parameter, row.multiplier[lane], multiplier)
                ),
                requantizer.exponent[lane].eq(Mux(scale_parameter, row.exponent[lane], exponent)),
            ]
        m.d.comb += [
            requantizer.pre_shift.eq(setting("pre_shift")),
            requantizer.rounding.eq(setting("rounding")),
            requantizer.bypass.eq(setting("bypass")),
        ]

    def _elaborate_random_bits(self, m: Module, valid: Value, index: Value, tensor: Value) -> None:
        """Random bits of the lanes that enter the requantizer in the following cycle."""
        requantizer = self._requantizer
        m.submodules.random_bits = random_bits = RandomBits(self._config.vector_lanes)
        assert random_bits.latency == 1 + requantizer.random_delay
        m.d.comb += [
            random_bits.seed.eq(self.random_seed),
            random_bits.step.eq(self.random_step),
            random_bits.i_valid.eq(valid),
            random_bits.index.eq(index),
            random_bits.tensor.eq(tensor),
            *[port.eq(b) for port, b in zip(requantizer.random, random_bits.bits)],
        ]

    def _elaborate_tail(self, m: Module, entries: list[data.View]) -> None:
        """Feed of the tail, and its results."""
        requantizer, tail, token = self._requantizer, self._tail, self.token
        m.submodules.tail = tail
        connect(m, tail.tables, flipped(self.tables))
        arriving = requantizer.latency
        m.d.comb += [
            tail.controls.eq(self.controls),
            tail.b_valid.eq(
                token.valid & token.last & control(m, self.controls, token.slot, "b_used")
            ),
            *[port.eq(b) for port, b in zip(tail.b, self.b)],
            tail.i_soon.eq(requantizer.o_soon),
            tail.i_soon_slot.eq(entries[arriving - 1].slot),
            tail.i_soon_group.eq(entries[arriving - 1].group),
            tail.i_valid.eq(requantizer.o_valid),
            tail.i_slot.eq(entries[arriving].slot),
            *[port.eq(value) for port, value in zip(tail.scaled, requantizer.result)],
            self.o_valid.eq(tail.o_valid),
            self.o_group.eq(entries[arriving + TAIL_LATENCY].group),
            *[port.eq(value) for port, value in zip(self.result, tail.result)],
        ]

    def _elaborate_capture(self, m: Module, entries: list[data.View]) -> None:
        """What is captured: sums with their bias, and results that a bound has changed."""
        requantizer, tail = self._requantizer, self._tail
        m.submodules.capture = capture = VectorCapture(self._config)
        biased = Signal()
        m.d.sync += biased.eq(requantizer.i_valid)
        clamped = entries[requantizer.latency + CLAMP_LATENCY]
        m.d.comb += [
            capture.controls.eq(self.controls),
            capture.clear.eq(self.clear),
            capture.clear_slot.eq(self.clear_slot),
            capture.i_valid.eq(biased),
            capture.i_slot.eq(entries[1].slot),
            capture.i_last_tile.eq(entries[1].last_tile),
            capture.i_group.eq(entries[1].group),
            *[port.eq(value) for port, value in zip(capture.value, requantizer.biased)],
            capture.o_valid.eq(tail.o_clamp),
            capture.o_slot.eq(tail.o_clamp_slot),
            capture.o_last_tile.eq(clamped.last_tile),
            capture.o_group.eq(clamped.group),
            capture.clamped.eq(tail.clamped),
            *[port.eq(value) for port, value in zip(self.largest, capture.largest)],
            *[port.eq(value) for port, value in zip(self.clamped, capture.count)],
        ]
