"""The vector engine's heads: each window's elements reduced to one value a lane."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.vector_layouts import (
    SLOTS,
    WINDOW_ROWS,
    WINDOW_TAPS,
    control,
    controls_layout,
    early_control,
    token_layout,
)
from weft_hw.instructions import COUNT_BITS

__all__ = ["VectorWindow", "window_latency"]

NUMBER_BITS = 2 * COUNT_BITS  # of an element in its window
FACTOR_BITS = 9  # of an int8 element less its zero point


def window_latency(config: AcceleratorConfig) -> int:
    """Cycles from the last token of a window to its head."""
    return 3 if config.depthwise_taps == 1 else 5


class VectorWindow(wiring.Component):
    """Reduces a window, in every lane::

        head = sum or maximum of A, number of the first A that is the maximum, or sum of A * B

    with sums modulo 2^32. One window element enters a cycle, a head is ready for each last one,
    :func:`window_latency` cycles after it, without back-pressure::

        operands | product | window                                    without window registers
        operands | factors | products | sum of products | window       with them

    Window registers: where the windows of a dot product slide (see :class:`VectorSliding`), the
    last two elements of each of its rows and the three taps of each row are kept. An element that
    is the last of its row makes the products of the whole row; the others enter the registers and
    do nothing else. An A that does not exist enters as zero.

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
        self._config = config
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

    def elaborate(self, platform: object) -> Module:
        m = Module()
        columns, token = range(self._config.columns), self.token
        # What is in the registers of element, products, sum and window; the head's are apart.
        stages = [
            Signal(token_layout(), name=f"stage_{i + 1}")
            for i in range(window_latency(self._config) - 1)
        ]
        m.d.sync += stages[0].valid.eq(token.valid)
        with m.If(token.valid):
            m.d.sync += stages[0].eq(token)
        for earlier, later in zip(stages, stages[1:]):
            m.d.sync += later.valid.eq(earlier.valid)
            with m.If(earlier.valid):
                m.d.sync += later.eq(earlier)

        elements = [Signal(signed(32), name=f"element_{c}", reset_less=True) for c in columns]
        taps = [Signal(signed(FACTOR_BITS), name=f"tap_{c}", reset_less=True) for c in columns]
        with m.If(token.valid):
            m.d.sync += [element.eq(a) for element, a in zip(elements, self.a)]
            with m.If(control(m, self.controls, token.slot, "head_dot", "_0")):
                m.d.sync += [tap.eq(b) for tap, b in zip(taps, self.b)]

        if self._config.depthwise_taps == 1:
            terms = self._elaborate_products(m, stages[0], elements, taps)
        else:
            # Elements that only enter the window registers go no further.
            window = stages[0].window
            m.d.sync += stages[1].valid.eq(stages[0].valid & (~window.slides | window.last_tap))
            terms = self._elaborate_sliding(m, stages, elements, taps)
        self._elaborate_reduction(m, stages[-2], stages[-1], terms)
        return m

    def _elaborate_products(
        self, m: Module, stage: data.View, elements: list[Signal], taps: list[Signal]
    ) -> list[Signal]:
        """The register of terms: elements, or their products with their taps."""
        terms = [
            Signal(signed(32), name=f"term_{i}", reset_less=True) for i in range(len(elements))
        ]
        dot = control(m, self.controls, stage.slot, "head_dot", "_1")
        with m.If(stage.valid):
            for term, element, tap in zip(terms, elements, taps):
                with m.If(dot):
                    m.d.sync += term.eq(element[:FACTOR_BITS].as_signed() * tap)
                with m.Else():
                    m.d.sync += term.eq(element)
        return terms

    def _elaborate_sliding(
        self,
        m: Module,
        stages: list[data.View],
        elements: list[Signal],
        taps: list[Signal],
    ) -> list[Signal]:
        """Window registers, up to three products, their sum."""
        stage_1, stage_2, stage_3 = stages[:3]
        lanes, window = range(len(elements)), stage_1.window
        factors = [element[:FACTOR_BITS].as_signed() for element in elements]
        enters = Signal()
        m.d.comb += enters.eq(stage_1.valid & window.slides)
        kept = []  # by distance: 0 the last element of the row, 1 the one before
        value: Value = Cat(*factors)
        for distance in range(WINDOW_TAPS - 1):
            value = self._registers(m, f"elements_{distance}", window.row, value, enters)
            kept.append(value)
        loads = stage_1.valid & window.loads
        at_tap = (window.first_tap, ~window.first_tap & ~window.last_tap, window.last_tap)
        weights = [
            self._registers(m, f"taps_{tap}", window.row, Cat(*taps), loads & here)
            for tap, here in enumerate(at_tap)
        ]

        dot_2 = early_control(m, self.controls, stage_1.slot, "head_dot", "_2")
        dot_3 = early_control(m, self.controls, stage_2.slot, "head_dot", "_3")
        # A tap that is just being loaded is not in its register yet.
        is_kept = window.slides & ~window.loads
        terms = []
        for lane in lanes:
            place = slice(FACTOR_BITS * lane, FACTOR_BITS * (lane + 1))
            element = Signal(signed(32), name=f"newest_{lane}", reset_less=True)
            newest = Signal(signed(FACTOR_BITS), name=f"newest_tap_{lane}", reset_less=True)
            term = Signal(signed(32), name=f"term_{lane}", reset_less=True)
            total = Signal(signed(32), name=f"total_{lane}", reset_less=True)
            with m.If(stage_1.valid):
                m.d.sync += element.eq(elements[lane])
                m.d.sync += newest.eq(Mux(is_kept, weights[-1][place], taps[lane]))
            products = []
            for i in range(WINDOW_TAPS - 1):
                old = Signal(signed(FACTOR_BITS), name=f"old_{i}_{lane}", reset_less=True)
                tap = Signal(signed(FACTOR_BITS), name=f"old_tap_{i}_{lane}", reset_less=True)
                product = Signal(
                    signed(2 * FACTOR_BITS), name=f"product_{i}_{lane}", reset_less=True
                )
                with m.If(enters):
                    m.d.sync += [old.eq(kept[i][place]), tap.eq(weights[-2 - i][place])]
                with m.If(stage_2.valid & dot_2):
                    m.d.sync += product.eq(Mux(stage_2.window.slides, old * tap, 0))
                products.append(product)
            with m.If(stage_2.valid):
                with m.If(dot_2):
                    m.d.sync += term.eq(element[:FACTOR_BITS].as_signed() * newest)
                with m.Else():
                    m.d.sync += term.eq(element)
            with m.If(stage_3.valid):
                # One addition after the other: the choice goes into the second one's gates.
                m.d.sync += total.eq(Mux(dot_3, products[0] + products[1], 0) + term)
            terms.append(total)
        return terms

    def _registers(self, m: Module, name: str, row: Value, value: Value, enters: Value) -> Value:
        """One vector of factors for each row of a window; returns that of ``row``.

        They are a memory without latency rather than flip-flops and multiplexers.
        """
        registers: Memory = Memory(shape=len(value), depth=WINDOW_ROWS, init=[])
        m.submodules[name] = registers
        write, read = registers.write_port(), registers.read_port(domain="comb")
        m.d.comb += [
            write.addr.eq(row),
            write.data.eq(value),
            write.en.eq(enters),
            read.addr.eq(row),
        ]
        return read.data

    def _elaborate_reduction(
        self, m: Module, before: data.View, stage: data.View, terms: list[Signal]
    ) -> None:
        """The last register: the window's sum, maximum, or number of its maximum."""
        ready = Signal()  # it holds a finished head
        slot = Signal(reset_less=True)
        m.d.sync += ready.eq(stage.valid & stage.last)
        with m.If(stage.valid):
            m.d.sync += slot.eq(stage.slot)
        m.d.comb += [self.closing.eq(stage), self.ready.eq(ready), self.slot.eq(slot)]
        maximum = early_control(m, self.controls, before.slot, "head_maximum", "_last")
        index = early_control(m, self.controls, before.slot, "head_index", "_last")
        coming_maximum = control(m, self.controls, before.slot, "head_maximum", "_coming")
        coming_index = control(m, self.controls, before.slot, "head_index", "_coming")
        number = Signal(NUMBER_BITS, reset_less=True)  # of the element in its window
        found = Signal(reset_less=True)  # an element that exists
        following_found = Signal()
        # In registers, for comparisons take long: a term is taken in any case, or if it is larger.
        always, if_larger = Signal(reset_less=True), Signal(reset_less=True)
        with m.If(before.valid):
            m.d.sync += number.eq(Mux(before.first, 0, number + 1))
        m.d.comb += following_found.eq(
            Mux(stage.valid, stage.exists | (found & ~stage.first), found)
        )
        newer = coming_index & before.exists  # the first maximum counts, of those that exist
        m.d.sync += [
            found.eq(following_found),
            always.eq(before.first | (newer & ~following_found) | ~(coming_index | coming_maximum)),
            if_larger.eq(newer | coming_maximum),
        ]
        for lane, term in enumerate(terms):
            head = Signal(signed(32), name=f"head_{lane}", reset_less=True)
            largest = Signal(signed(32), name=f"largest_{lane}", reset_less=True)
            larger = Signal(name=f"larger_{lane}")
            m.d.comb += [self.head[lane].eq(head), larger.eq(term > largest)]
            # The number of a window's first element is 0.
            total = Mux(stage.first | maximum, 0, head) + term
            takes = always | (if_larger & larger)
            with m.If(stage.valid & takes):
                m.d.sync += head[:NUMBER_BITS].eq(Mux(index, number, total))
                m.d.sync += largest.eq(term)  # of a sum it has no meaning
            with m.If(stage.valid & (index | takes)):
                m.d.sync += head[NUMBER_BITS:].eq(Mux(index, 0, total[NUMBER_BITS:]))
