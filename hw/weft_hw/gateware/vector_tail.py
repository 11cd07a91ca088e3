"""The vector engine's tail: operand B, zero point, clamp and lookup."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import LookupPort, group_of
from weft_hw.gateware.vector_layouts import SLOTS, control, controls_layout, early_control

__all__ = ["CLAMP_LATENCY", "TAIL_LATENCY", "WAITING_B", "VectorTail"]

TAIL_LATENCY = 6
"""Cycles from a scaled vector to its result."""

CLAMP_LATENCY = 4
"""Cycles from a scaled vector to its comparison with the bounds."""

WAITING_B = 16
"""Places for operands B between their arrival and the tail."""

FACTOR_BITS = 9  # of an int8 less its zero point


class VectorTail(wiring.Component):
    """Computes results from scaled values, in every lane::

        result = lookup(clamp(tail(scaled, B) + zero_point, clamp_low, clamp_high))

    modulo 2^32, one group a cycle, ``TAIL_LATENCY`` cycles after it came, without back-pressure::

        1 sum, products, comparisons | 2 choice | 3 zero point | 4 comparisons | 5 clamp | 6 lookup

    The product of 32 by 9 bits has two halves, of 16 bits of the value each, which join in the
    second stage. Operands B wait in a small memory from their arrival on, at most ``WAITING_B`` of
    them. A stage without a vector does not switch.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    controls : In(array of controls)
    b_valid, b : In(1), In(signed(32)), an array of columns
        An operand of all groups arrives; only for vectors whose tail uses it.
    i_soon, i_soon_slot, i_soon_group : In(1), In(1), In(group_bits)
        ``i_valid``, ``i_slot`` and the number of the group, of the following cycle.
    i_valid, i_slot, scaled : In(1), In(1), In(signed(32)), an array of lanes
    o_clamp, o_clamp_slot, clamped : Out(1), Out(1), Out(lanes)
        A group has been clamped: in which lanes this changed it; ``CLAMP_LATENCY`` cycles after it
        came.
    tables : Out(LookupPort)
    o_valid, result : Out(1), Out(signed(32)), an array of lanes
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "b_valid": In(1),
                "b": In(signed(32)).array(config.columns),
                "i_soon": In(1),
                "i_soon_slot": In(1),
                "i_soon_group": In(config.group_bits),
                "i_valid": In(1),
                "i_slot": In(1),
                "scaled": In(signed(32)).array(config.vector_lanes),
                "o_clamp": Out(1),
                "o_clamp_slot": Out(1),
                "clamped": Out(config.vector_lanes),
                "tables": Out(LookupPort(config)),
                "o_valid": Out(1),
                "result": Out(signed(32)).array(config.vector_lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Element k belongs to stage k: the input is 0.
        valid, slot = [self.i_valid], [self.i_slot]
        for k in range(1, TAIL_LATENCY + 1):
            for chain, name in ((valid, "valid"), (slot, "slot")):
                later = Signal(name=f"{name}_{k}", reset_less=chain is not valid)
                m.d.sync += later.eq(chain[-1])
                chain.append(later)

        def setting(name: str, stage: int) -> Signal:
            """A field of the instruction whose vector is in that stage."""
            before = self.i_soon_slot if stage == 0 else slot[stage - 1]
            return early_control(m, self.controls, before, name, f"_{stage}")

        add, product_0, select_low, select_high = (
            setting(name, 0) for name in ("tail_add", "tail_product", "select_low", "select_high")
        )
        maximum, product, select = (
            setting(name, 1) for name in ("tail_maximum", "tail_product", "tail_select")
        )
        zero_point = setting("zero_point", 2)
        low_3, high_3 = setting("clamp_low", 3), setting("clamp_high", 3)
        low_4, high_4 = setting("clamp_low", 4), setting("clamp_high", 4)
        lookup_5, table = setting("lookup", 5), setting("table", 5)
        lookup_6 = setting("lookup", 6)
        operands = self._elaborate_waiting(m)
        m.d.comb += [
            self.o_clamp.eq(valid[CLAMP_LATENCY]),
            self.o_clamp_slot.eq(slot[CLAMP_LATENCY]),
            self.tables.valid.eq(valid[5] & lookup_5),
            self.o_valid.eq(valid[6]),
        ]
        for lane, (scaled, b) in enumerate(zip(self.scaled, operands)):

            def register(name: str, shape: object = signed(32), lane: int = lane) -> Signal:
                return Signal(shape, name=f"{name}_{lane}", reset_less=True)

            total, b_1, combined, offset = map(register, ("total", "b_1", "combined", "offset"))
            below_product = register("below_product", signed(16 + FACTOR_BITS))
            above_product = register("above_product", 16)
            greater, passes = register("greater", 1), register("passes", 1)
            narrow = b[:FACTOR_BITS].as_signed()
            with m.If(valid[0]):
                m.d.sync += [
                    total.eq(scaled + (b & add.replicate(32))),
                    b_1.eq(b),
                    greater.eq(b > scaled),
                    passes.eq((narrow > select_low) & (narrow < select_high)),
                ]
                with m.If(product_0):
                    m.d.sync += [
                        below_product.eq(scaled[:16] * narrow),
                        above_product.eq(scaled[16:].as_signed() * narrow),
                    ]
            with m.If(valid[1]):
                with m.If(product):
                    m.d.sync += combined.eq(below_product + Cat(Const(0, 16), above_product))
                with m.Elif(maximum & greater):
                    m.d.sync += combined.eq(b_1)
                with m.Elif(select & ~passes):
                    m.d.sync += combined.eq(0)
                with m.Else():
                    m.d.sync += combined.eq(total)
            with m.If(valid[2]):
                m.d.sync += offset.eq(combined + zero_point)

            offset_4, bounded, shown = map(register, ("offset_4", "bounded", "shown"))
            below, above = register("below", 1), register("above", 1)
            with m.If(valid[3]):
                m.d.sync += [
                    offset_4.eq(offset),
                    below.eq(offset < low_3),
                    above.eq(offset > high_3),
                ]
            with m.If(valid[4]):
                m.d.sync += bounded.eq(Mux(above, high_4, Mux(below, low_4, offset_4)))
            with m.If(valid[5]):
                m.d.sync += shown.eq(bounded)
            entry = self.tables.data[lane].as_signed()
            m.d.comb += [
                self.clamped[lane].eq(below | above),
                self.tables.address[lane].eq(Cat(bounded[:8], table)),
                self.result[lane].eq(Mux(lookup_6, entry, shown)),
            ]
        return m

    def _elaborate_waiting(self, m: Module) -> list[Signal]:
        """Queue of operands B; returns registers that hold the one of the vector in stage 0."""
        config = self._config
        memory: Memory = Memory(shape=32 * config.columns, depth=WAITING_B, init=[])
        m.submodules.waiting_b = memory
        write, read = memory.write_port(), memory.read_port(domain="comb")
        leaves = control(m, self.controls, self.i_soon_slot, "b_used")
        filled, drained = Signal(range(WAITING_B)), Signal(range(WAITING_B))
        m.d.comb += [
            write.addr.eq(filled),
            write.data.eq(Cat(*self.b)),
            write.en.eq(self.b_valid),
            read.addr.eq(drained),
        ]
        operands = [
            Signal(signed(32), name=f"b_0_{lane}", reset_less=True)
            for lane in range(config.vector_lanes)
        ]
        with m.If(self.b_valid):
            m.d.sync += filled.eq(filled + 1)
        with m.If(self.i_soon & leaves):
            with m.If(self.i_soon_group == config.vector_groups - 1):
                m.d.sync += drained.eq(drained + 1)
            m.d.sync += Cat(*operands).eq(group_of(config, read.data, self.i_soon_group))
        return operands
