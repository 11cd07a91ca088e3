"""The vector engine's heads: each window's elements reduced to one value a lane."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.vector_layouts import SLOTS, control, controls_layout, token_layout

__all__ = ["VectorWindow"]


class VectorWindow(wiring.Component):
    """Reduces a window, in every lane::

        head = sum or maximum of A, or sum of A * B

    with sums modulo 2^32. One window element enters a cycle, a head is ready for each last one,
    ``latency`` cycles after it, without back-pressure::

        1 operands | 2 product | 3 window

    A stage without an element does not switch.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    token : In(token)
    a, b : In(signed(32)), arrays of columns
        Valid with ``token.valid``.
    controls : In(array of controls)
    closing : Out(token)
        What enters the last register; if it is ``valid`` and ``last``, the head of its window is
        ready in the following cycle.
    ready, slot, head : Out(1), Out(1), Out(signed(32)), an array of columns
        A window's head, and the slot of its instruction's controls.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "token": In(token_layout()),
                "a": In(signed(32)).array(config.columns),
                "b": In(signed(32)).array(config.columns),
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "closing": Out(token_layout()),
                "ready": Out(1),
                "slot": Out(1),
                "head": Out(signed(32)).array(config.columns),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the last token of a window to its head."""
        return 3

    def elaborate(self, platform: object) -> Module:
        m = Module()
        token = self.token
        stage_1, stage_2 = Signal(token_layout()), Signal(token_layout())
        ready = Signal()  # the window register holds a finished head
        slot = Signal(reset_less=True)
        m.d.sync += [
            stage_1.valid.eq(token.valid),
            stage_2.valid.eq(stage_1.valid),
            ready.eq(stage_2.valid & stage_2.last),
        ]
        with m.If(token.valid):
            m.d.sync += stage_1.eq(token)
        with m.If(stage_1.valid):
            m.d.sync += stage_2.eq(stage_1)
        with m.If(stage_2.valid):
            m.d.sync += slot.eq(stage_2.slot)
        m.d.comb += [self.closing.eq(stage_2), self.ready.eq(ready), self.slot.eq(slot)]
        dot = control(m, self.controls, token.slot, "head_dot", "_0")
        dot_1 = control(m, self.controls, stage_1.slot, "head_dot", "_1")
        maximum = control(m, self.controls, stage_2.slot, "head_maximum")
        for lane, (operand, factor) in enumerate(zip(self.a, self.b)):
            element = Signal(signed(32), name=f"element_{lane}", reset_less=True)
            tap = Signal(signed(9), name=f"tap_{lane}", reset_less=True)
            term = Signal(signed(32), name=f"term_{lane}", reset_less=True)
            head = Signal(signed(32), name=f"head_{lane}", reset_less=True)
            m.d.comb += self.head[lane].eq(head)
            with m.If(token.valid):
                m.d.sync += element.eq(operand)
                with m.If(dot):
                    m.d.sync += tap.eq(factor)
            with m.If(stage_1.valid):
                with m.If(dot_1):
                    m.d.sync += term.eq(element[:9].as_signed() * tap)
                with m.Else():
                    m.d.sync += term.eq(element)
            with m.If(stage_2.valid):
                with m.If(stage_2.first):
                    m.d.sync += head.eq(term)
                with m.Elif(maximum):
                    with m.If(term > head):
                        m.d.sync += head.eq(term)
                with m.Else():
                    m.d.sync += head.eq(head + term)
        return m
