"""What a VECTOR instruction captures: the largest absolute value, and how many results clamp."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import group_of
from weft_hw.gateware.vector_layouts import SLOTS, control, controls_layout

__all__ = ["VectorCapture", "absolute_value"]


class VectorCapture(wiring.Component):
    """Keeps a running maximum and a running count for the instruction in each slot.

    Timing: a group of lanes counts ``2 + log2(vector_lanes)`` cycles after ``i_valid`` (largest
    value) and 2 cycles after ``o_valid`` (clamped results): both before its instruction can retire.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    controls : In(array of controls)
    clear, clear_slot : In(1), In(1)
        An instruction starts in that slot.
    i_valid, i_slot, i_last_tile, i_group : In(1), In(1), In(1), In(group_bits)
    value : In(signed(32)), an array of lanes
        Values of a group before their scaling.
    o_valid, o_slot, o_last_tile, o_group, clamped : In(1), In(1), In(1), In(group_bits), In(lanes)
        Which lanes' results a bound has changed.
    largest, count : Out(32), Out(32), arrays by slot
        The largest value as :func:`absolute_value` takes it.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config, self._lanes = config, config.vector_lanes
        super().__init__(
            {
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "clear": In(1),
                "clear_slot": In(1),
                "i_valid": In(1),
                "i_slot": In(1),
                "i_last_tile": In(1),
                "i_group": In(config.group_bits),
                "value": In(signed(32)).array(config.vector_lanes),
                "o_valid": In(1),
                "o_slot": In(1),
                "o_last_tile": In(1),
                "o_group": In(config.group_bits),
                "clamped": In(config.vector_lanes),
                "largest": Out(32).array(SLOTS),
                "count": Out(32).array(SLOTS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._elaborate_largest(m)
        self._elaborate_count(m)
        return m

    def _strobe(
        self, m: Module, slot: Signal, last_tile: Signal, group: Signal, name: str
    ) -> Signal:
        """The lanes that are written."""
        last = control(m, self.controls, slot, "last_strobe", f"_{name}")
        strobe = Signal(self._lanes, name=f"strobe_{name}")
        of_group = group_of(self._config, last, group)
        m.d.comb += strobe.eq(Mux(last_tile, of_group, (1 << self._lanes) - 1))
        return strobe

    def _elaborate_largest(self, m: Module) -> None:
        strobe = self._strobe(m, self.i_slot, self.i_last_tile, self.i_group, "largest")
        takes = Signal()
        m.d.comb += takes.eq(
            self.i_valid & control(m, self.controls, self.i_slot, "capture_largest")
        )
        valid, slot = Signal(name="valid_0"), Signal(name="slot_0", reset_less=True)
        m.d.sync += [valid.eq(takes), slot.eq(self.i_slot)]
        level = [Signal(32, name=f"magnitude_{c}", reset_less=True) for c in range(self._lanes)]
        with m.If(takes):
            for magnitude, value, counts in zip(level, self.value, strobe):
                sign = value[-1]
                pair = Cat(sign, value[:-1] ^ sign.replicate(31))
                m.d.sync += magnitude.eq(Mux(counts, pair, 0))
        depth = 0
        while len(level) > 1:
            depth += 1
            above = [
                Signal(32, name=f"largest_{depth}_{i}", reset_less=True)
                for i in range(len(level) // 2)
            ]
            with m.If(valid):
                for target, one, other in zip(above, level[0::2], level[1::2]):
                    m.d.sync += target.eq(Mux(one > other, one, other))
            following = Signal(name=f"valid_{depth}")
            following_slot = Signal(name=f"slot_{depth}", reset_less=True)
            m.d.sync += [following.eq(valid), following_slot.eq(slot)]
            level, valid, slot = above, following, following_slot

        (largest,) = level
        for i, running in enumerate(self.largest):
            with m.If(self.clear & (self.clear_slot == i)):
                m.d.sync += running.eq(0)
            with m.Elif(valid & (slot == i) & (largest > running)):
                m.d.sync += running.eq(largest)

    def _elaborate_count(self, m: Module) -> None:
        strobe = self._strobe(m, self.o_slot, self.o_last_tile, self.o_group, "clamped")
        takes = Signal()
        m.d.comb += takes.eq(
            self.o_valid & control(m, self.controls, self.o_slot, "capture_clamped")
        )
        flags = Signal(self._lanes, reset_less=True)
        valid, slot = Signal(name="counts"), Signal(name="count_slot", reset_less=True)
        m.d.sync += [valid.eq(takes), slot.eq(self.o_slot)]
        with m.If(takes):
            m.d.sync += flags.eq(self.clamped & strobe)
        added = Signal(range(self._lanes + 1))
        m.d.comb += added.eq(sum(Cat(flag) for flag in flags))
        for i, running in enumerate(self.count):
            with m.If(self.clear & (self.clear_slot == i)):
                m.d.sync += running.eq(0)
            with m.Elif(valid & (slot == i)):
                m.d.sync += running.eq(running + added)


def absolute_value(pair: Value) -> Value:
    """The absolute value, at most 2^31 - 1, of the value that a pair of 32 bits stands for.

    Its lowest bit is the value's sign, the others are the value's, complemented if it is negative.
    The absolute value is the sum of both, and pairs have the order of these sums, so that only the
    largest needs an adder.
    """
    sign, magnitude = pair[0], pair[1:]
    return (magnitude + (sign & ~magnitude.all()))[:31]  # 2^31 has no int32
