"""Results of the vector engine: places for them, writes, retirement."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import AccumulatorWritePort, WritePort
from weft_hw.gateware.vector_layouts import (
    RESULT_ENTRIES,
    SLOTS,
    control,
    controls_layout,
    tag_layout,
)

__all__ = ["VectorResults"]


class VectorResults(wiring.Component):
    """Takes every result that the pipeline sends and writes it when the memory is ready.

    The pipeline cannot be held, so each vector is given its place before its last operand is
    requested: ``room`` tells whether enough are left. Its tag is kept there from then on, its
    result joins it when it comes, and the place is free again once the write is accepted. Results
    leave in order, one a cycle while the memory is ready; a result can leave two cycles after it
    came.

    While ``stop`` is high, writes go on with no strobe set, so that the pipeline drains without
    effect, and nothing retires.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    issued, tag : In(1), In(tag)
        Occupy a place; at most twice after ``room`` was high for the last time.
    room, empty : Out(1), Out(1)
        Two places are free behind those that are occupied in this cycle; all are.
    i_valid, i_group, value : In(1), In(group_bits), In(signed(32)), an array of lanes
        Results in the order of their tags, each by groups of lanes from the lowest on.
    controls : In(array of controls)
    stop : In(1)
    retire : Out(1)
        An instruction's last result was accepted in the cycle before.
    stalled : Out(1)
        A write is not accepted.
    activation, accumulator : Out(write ports)
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "issued": In(1),
                "tag": In(tag_layout(config)),
                "room": Out(1),
                "empty": Out(1),
                "i_valid": In(1),
                "i_group": In(config.group_bits),
                "value": In(signed(32)).array(config.vector_lanes),
                "controls": In(data.ArrayLayout(controls_layout(config), SLOTS)),
                "stop": In(1),
                "retire": Out(1),
                "stalled": Out(1),
                "activation": Out(WritePort(config.activation_address_bits, config.line_bytes)),
                "accumulator": Out(AccumulatorWritePort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        columns, groups = self._config.columns, self._config.vector_groups
        tags: Memory = Memory(shape=tag_layout(self._config), depth=RESULT_ENTRIES, init=[])
        values: Memory = Memory(shape=32 * columns, depth=RESULT_ENTRIES, init=[])
        m.submodules.tags, m.submodules.values = tags, values
        tag_write, tag_read = tags.write_port(), tags.read_port(domain="comb")
        value_write = values.write_port(granularity=32 * self._config.vector_lanes)
        value_read = values.read_port(domain="comb")

        tagged, filled, drained = (
            Signal(range(RESULT_ENTRIES), name=name) for name in ("tagged", "filled", "drained")
        )
        occupied = Signal(range(RESULT_ENTRIES + 1))
        waiting = Signal(range(RESULT_ENTRIES + 1))
        accepted, loads = Signal(), Signal()
        some = Signal()  # waiting is not 0
        fills = Signal()  # the output register, whose content matters only with `valid`
        whole = Signal()  # a result's last group comes
        value = Signal(32 * columns, reset_less=True)
        # A group of lanes comes late, from lookup tables: it is written in the next cycle, in which
        # a vector's last group may be read already.
        arrived = Signal(32 * self._config.vector_lanes, reset_less=True)
        arrived_at = Signal.like(filled, reset_less=True)
        arrived_group = Signal(groups)  # one-hot
        newest = Signal()
        m.d.sync += [
            arrived.eq(Cat(*self.value)),
            arrived_at.eq(filled),
            arrived_group.eq(
                Cat(self.i_valid & (self.i_group == group) for group in range(groups))
            ),
        ]
        others = value_read.data[: 32 * columns - len(arrived)]
        last_group = Mux(newest, arrived, value_read.data[len(others) :])
        m.d.comb += [
            newest.eq(arrived_group[-1] & (arrived_at == drained)),
            tag_write.addr.eq(tagged),
            tag_write.data.eq(self.tag),
            tag_write.en.eq(self.issued),
            value_write.addr.eq(arrived_at),
            value_write.data.eq(arrived.replicate(groups)),
            value_write.en.eq(arrived_group),
            whole.eq(self.i_valid & (self.i_group == groups - 1)),
            tag_read.addr.eq(drained),
            value_read.addr.eq(drained),
            self.empty.eq(occupied == 0),
        ]
        following = Signal.like(occupied)
        freed = Signal()  # a place, in the cycle before
        m.d.sync += freed.eq(accepted)
        m.d.comb += [
            following.eq(occupied + self.issued - freed),
            # Whether a place comes free in this cycle is not asked: that is known late.
            self.room.eq(occupied + self.issued < RESULT_ENTRIES - 1),
        ]
        m.d.sync += [
            occupied.eq(following),
            waiting.eq(waiting + whole - loads),
            some.eq(whole | Mux(fills, waiting > 1, some)),
        ]
        for pointer, step in ((tagged, self.issued), (filled, whole), (drained, loads)):
            with m.If(step):
                m.d.sync += pointer.eq(pointer + 1)

        # The output register.
        valid, narrow_valid, wide_valid = Signal(), Signal(), Signal()
        wide = control(m, self.controls, tag_read.data.slot, "wide", "_next")
        final = Signal(reset_less=True)
        address = Signal(tag_read.data.address.shape(), reset_less=True)
        strobe = Signal(columns, reset_less=True)
        last_strobe = control(m, self.controls, tag_read.data.slot, "last_strobe")
        m.d.comb += [fills.eq(~valid | accepted), loads.eq(some & fills)]
        with m.If(fills):
            m.d.sync += [
                valid.eq(some),
                narrow_valid.eq(some & ~wide),
                wide_valid.eq(some & wide),
                value.eq(Cat(others, last_group)),
                final.eq(tag_read.data.final),
                address.eq(tag_read.data.address),
                strobe.eq(Mux(tag_read.data.last_tile, last_strobe, (1 << columns) - 1)),
            ]

        effective = Signal(columns)
        m.d.comb += [
            effective.eq(Mux(self.stop, 0, strobe)),
            accepted.eq(
                (narrow_valid & self.activation.ready) | (wide_valid & self.accumulator.ready)
            ),
            self.stalled.eq(valid & ~accepted),
            self.activation.valid.eq(narrow_valid),
            self.activation.address.eq(address),
            self.activation.data.eq(
                Cat(value[32 * lane : 32 * lane + 8] for lane in range(columns))
            ),
            self.activation.strobe.eq(effective),
            self.accumulator.valid.eq(wide_valid),
            self.accumulator.address.eq(address),
            self.accumulator.data.eq(value),
            self.accumulator.strobe.eq(effective),
        ]
        m.d.sync += self.retire.eq(accepted & final & ~self.stop)
        return m
