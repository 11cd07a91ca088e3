"""Address generation of the vector engine: one checked step for each trip of the loop nest."""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.gateware.loops import LoopNest
from weft_hw.gateware.scratchpad import activation_banks_read, weight_banks_read
from weft_hw.gateware.vector_layouts import (
    COORDINATE_BITS,
    INDEX_BITS,
    LOCAL_BITS,
    STEP_ENTRIES,
    step_layout,
    window_layout,
)
from weft_hw.gateware.vector_sliding import LEAPING, OVERLAP, VectorSliding
from weft_hw.instructions import (
    LOOPS_VECTOR,
    LOOPS_VECTOR_OUTER,
    Head,
    Memory,
    OperandSource,
    ScaleSource,
    Tail,
    Vector,
)

__all__ = ["VectorSteps"]

PARAMETER_BITS = 8

READ_FIELDS = (
    *("a_address", "a_banks", "a_narrow", "a_wide"),
    *("b_address", "b_banks", "b_weight_banks", "b_narrow", "b_wide", "b_weight"),
    *("last", "bad"),
)
"""Of a step, what decides on its reads."""


class VectorSteps(wiring.Component):
    """Turns an instruction into one *step* a window element, its addresses checked.

    A is read if it exists; B with it in a dot product, otherwise with the last element of a window
    if the tail uses it. With ``depthwise_taps`` above 1, steps of a dot product whose window slides
    leave out what the window registers hold, see :class:`VectorSliding`. Every address that the
    step will use, in a dot product that of each B, and with the last element the result's and the
    parameter row's, is compared with the size of its memory; if one lies outside, the step is
    ``bad`` and ``bad_address`` is the first such of A, B, result, parameter row.

    One step a cycle. The first is valid six cycles after ``start``; it stays until ``leaves``::

        nest | comparisons with limits | what is read, what is bad | queue | output

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    fields : In(encoded VECTOR instruction)
        Held from ``start`` until ``finished``.
    start, slot : In(1), In(1)
        Take the instruction, whose controls lie in that slot; only when the nest has finished.
    finished : Out(1)
        The last trip leaves the nest in this cycle.
    stop : In(1)
        Take no further trips.
    valid, asks, step : Out(1), Out(1), Out(step)
        There is a step; it is to be performed, as it is not bad and its result has a place. The
        last one of a window is at the earliest ``vector_groups`` cycles after that of the window
        before, as the lanes take the heads.
    room : In(1)
        Results have places left that a step of the next cycle may take.
    a_taken, b_taken : In(1), In(1)
        That operand's read is accepted: the step needs it no more.
    leaves : In(1)
        The step is done with; only while ``valid``.
    bad_address : Out(signed)
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "fields": In(instruction_layout(Vector)),
                "start": In(1),
                "slot": In(1),
                "finished": Out(1),
                "stop": In(1),
                "valid": Out(1),
                "asks": Out(1),
                "room": In(1),
                "step": Out(step_layout(config)),
                "a_taken": In(1),
                "b_taken": In(1),
                "leaves": In(1),
                "bad_address": Out(signed(LOCAL_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.nest = nest = self._nest(m)
        running = Signal()
        take = Signal()
        room = Signal()
        slot = Signal()
        m.d.comb += [
            take.eq(running & nest.ready & ~self.stop & room),
            nest.load.eq(self.start),
            nest.advance.eq(take & ~nest.finished),
            self.finished.eq(take & nest.finished),
        ]
        with m.If(self.start):
            m.d.sync += [running.eq(1), slot.eq(self.slot)]
        with m.Elif(self.finished):
            m.d.sync += running.eq(0)
        window = self._elaborate_sliding(m, nest) if self._config.depthwise_taps > 1 else None
        valid = [take, Signal(name="compared_valid"), Signal(name="checked_valid")]
        for earlier, later in zip(valid, valid[1:]):
            m.d.sync += later.eq(earlier)
        compared = self._elaborate_comparisons(m, nest, take, slot, window)
        checked = self._elaborate_check(m, valid[1], compared)
        self._elaborate_queue(m, take, room, valid[2], checked)
        return m

    def _elaborate_sliding(self, m: Module, nest: LoopNest) -> data.View:
        """Leave out trips where windows slide; returns how the nest's trip meets the registers."""
        m.submodules.sliding = sliding = VectorSliding()
        m.d.comb += [
            sliding.fields.eq(self.fields),
            sliding.start.eq(self.start),
            sliding.advance.eq(nest.advance),
            sliding.first.eq(nest.first),
            sliding.last.eq(nest.last),
            nest.overlaps.eq(sliding.overlaps),
            nest.short_count.eq(sliding.short_count),
            *[
                getattr(nest, f"{name}_leap").eq(getattr(sliding, f"{name}_leap"))
                for name in LEAPING
            ],
        ]
        return sliding.window

    def _nest(self, m: Module) -> LoopNest:
        fields = self.fields
        nest = LoopNest(
            loops=LOOPS_VECTOR,
            streams={
                "a": LOCAL_BITS,
                "b": LOCAL_BITS,
                "result": LOCAL_BITS,
                "parameter": PARAMETER_BITS,
                "index": INDEX_BITS,
                "y": COORDINATE_BITS,
                "x": COORDINATE_BITS,
            },
            **(
                {} if self._config.depthwise_taps == 1 else {"overlap": OVERLAP, "leaping": LEAPING}
            ),
        )
        m.d.comb += [
            nest.a_base.eq(fields.a_address),
            nest.b_base.eq(fields.b_address),
            nest.result_base.eq(fields.address),
            nest.parameter_base.eq(fields.parameter_address),
            nest.index_base.eq(fields.index_address),
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
        with m.If(fields.head == Head.DOT):
            for i in range(LOOPS_VECTOR_OUTER, LOOPS_VECTOR):
                m.d.comb += nest.b_strides[i].eq(fields.b_strides[i])
        for i in range(LOOPS_VECTOR_OUTER):  # what the window does not move keeps strides of zero
            m.d.comb += [
                nest.b_strides[i].eq(fields.b_strides[i]),
                nest.result_strides[i].eq(fields.strides[i]),
                nest.parameter_strides[i].eq(fields.parameter_strides[i]),
                nest.index_strides[i].eq(fields.index_strides[i]),
            ]
        return nest

    def _elaborate_comparisons(
        self, m: Module, nest: LoopNest, take: Signal, slot: Signal, window: data.View | None
    ) -> Any:
        """The first register behind the nest: each address and coordinate against its limits."""
        config, fields = self._config, self.fields
        last_limit = Signal(config.activation_address_bits, reset_less=True)
        lanes = fields.last_lanes
        with m.If(self.start):
            m.d.sync += last_limit.eq(config.activation_bytes - config.columns)
            with m.If((lanes != 0) & (lanes < config.columns)):
                m.d.sync += last_limit.eq(config.activation_bytes - lanes)
        whole_limit = config.activation_bytes - config.columns
        compared = Signal(_compared_layout(), reset_less=True)
        dot = fields.head == Head.DOT
        a_wide = fields.a_source == OperandSource.ACCUMULATOR
        b_wide = fields.b_source == OperandSource.ACCUMULATOR
        b_weight = fields.b_source == OperandSource.WEIGHT
        wide = fields.destination == Memory.ACCUMULATOR
        first, last = nest.first, nest.last
        window_last = last[LOOPS_VECTOR_OUTER:].all()
        with m.If(take):
            m.d.sync += [
                compared.a.eq(nest.a),
                compared.b.eq(nest.b),
                compared.result.eq(nest.result),
                compared.parameter.eq(nest.parameter),
                compared.index.eq(nest.index),
                compared.a_far.eq(self._row_outside(nest.a)),
                compared.a_outside.eq(_run_outside(nest.a, config.activation_bytes, whole_limit)),
                compared.b_far.eq(self._row_outside(nest.b)),
                compared.b_outside.eq(
                    Mux(
                        b_weight,
                        _run_outside(
                            nest.b, config.weight_bytes, config.weight_bytes - config.columns
                        ),
                        _run_outside(nest.b, config.activation_bytes, whole_limit),
                    )
                ),
                compared.result_far.eq(self._row_outside(nest.result)),
                compared.result_outside.eq(
                    _run_outside(
                        nest.result, config.activation_bytes, Mux(last[0], last_limit, whole_limit)
                    )
                ),
                compared.y_inside.eq(~fields.bounded | _inside(nest.y, fields.y_extent)),
                compared.x_inside.eq(~fields.bounded | _inside(nest.x, fields.x_extent)),
                compared.a_wide.eq(a_wide),
                compared.b_wide.eq(b_wide),
                compared.b_weight.eq(b_weight),
                compared.wide.eq(wide),
                compared.dot.eq(dot),
                compared.b_for_tail.eq(window_last & (fields.tail != Tail.NONE)),
                compared.parameter_used.eq(
                    window_last & (fields.use_bias | (fields.scale_source == ScaleSource.PARAMETER))
                ),
                compared.first.eq(first[LOOPS_VECTOR_OUTER:].all()),
                compared.last.eq(window_last),
                compared.last_tile.eq(last[0]),
                compared.slot.eq(slot),
                compared.final.eq(nest.finished),
            ]
            if window is not None:
                m.d.sync += compared.window.eq(window)
                with m.If(window.slides):  # the reduction takes each row with its last tap
                    m.d.sync += compared.first.eq(first[LOOPS_VECTOR_OUTER])
        return compared

    def _elaborate_check(self, m: Module, valid: Signal, compared: data.View) -> Any:
        """The second register: what is read, and whether an address that is used is bad."""
        checked = Signal(_checked_layout(self._config), reset_less=True)
        exists = Signal()
        b_checked, b_read = Signal(), Signal()
        m.d.comb += [
            exists.eq(compared.y_inside & compared.x_inside),
            b_checked.eq(compared.dot | compared.b_for_tail),
            b_read.eq((compared.dot & exists) | compared.b_for_tail),
        ]
        with m.If(compared.window.slides):
            m.d.comb += b_read.eq(compared.window.loads)
        step = checked.step
        with m.If(valid):
            m.d.sync += [
                checked.a.eq(compared.a),
                checked.b.eq(compared.b),
                checked.result.eq(compared.result),
                checked.a_bad.eq(exists & Mux(compared.a_wide, compared.a_far, compared.a_outside)),
                checked.b_bad.eq(
                    b_checked & Mux(compared.b_wide, compared.b_far, compared.b_outside)
                ),
                checked.result_bad.eq(
                    compared.last & Mux(compared.wide, compared.result_far, compared.result_outside)
                ),
                checked.parameter_bad.eq(
                    compared.parameter_used & (compared.parameter >= self._config.parameter_rows)
                ),
                checked.parameter.eq(compared.parameter),
                step.a_address.eq(compared.a),
                step.a_banks.eq(self._banks(m, "a", compared.a)),
                step.a_narrow.eq(exists & ~compared.a_wide),
                step.a_wide.eq(exists & compared.a_wide),
                step.b_address.eq(compared.b),
                step.b_banks.eq(self._banks(m, "b", compared.b)),
                step.b_weight_banks.eq(
                    weight_banks_read(m, "b_weight_place", self._config, compared.b)
                ),
                step.b_narrow.eq(b_read & ~compared.b_wide & ~compared.b_weight),
                step.b_wide.eq(b_read & compared.b_wide),
                step.b_weight.eq(b_read & compared.b_weight),
                step.parameter.eq(compared.parameter),
                step.index.eq(compared.index),
                step.exists.eq(exists),
                step.first.eq(compared.first),
                step.last.eq(compared.last),
                step.window.eq(compared.window),
                step.tag.address.eq(compared.result),
                step.tag.last_tile.eq(compared.last_tile),
                step.tag.slot.eq(compared.slot),
                step.tag.final.eq(compared.final),
            ]
        return checked

    def _elaborate_queue(
        self, m: Module, take: Signal, room: Signal, arrives: Signal, checked: data.View
    ) -> None:
        """Steps that wait for the output register, which is all that their reads hold up.

        A trip is taken only if there will be room for it, so that the stages between need not stop.
        """
        arriving = Signal(step_layout(self._config))
        places = self._elaborate_places(m, arriving)
        step, output, write, read = places.step, places.output, places.write, places.read
        waiting = Signal(range(STEP_ENTRIES + 1))
        occupied = Signal(range(STEP_ENTRIES + 1))
        some = Signal()  # waiting is not 0
        loads, loaded = Signal(), Signal()
        fills = Signal()  # the output register, whose content matters only with ``valid``
        bad = checked.a_bad | checked.b_bad | checked.result_bad | checked.parameter_bad
        m.d.comb += [
            arriving.eq(checked.step),
            arriving.bad.eq(bad),
            write.en.eq(arrives),
            fills.eq(~self.valid | self.leaves),
            loads.eq(some & fills),
        ]
        m.d.sync += [
            waiting.eq(waiting + arrives - loads),
            some.eq(arrives | Mux(fills, waiting > 1, some)),
            loaded.eq(loads),
            room.eq(occupied < STEP_ENTRIES - 1),  # one may be taken meanwhile
            occupied.eq(occupied + take - loaded),
        ]
        with m.If(arrives):
            m.d.sync += write.addr.eq(write.addr + 1)
        for taken, needed in (
            (self.a_taken, (output.a_narrow, output.a_wide)),
            (self.b_taken, (output.b_narrow, output.b_wide, output.b_weight)),
        ):
            with m.If(taken):
                m.d.sync += [read_it.eq(0) for read_it in needed]
        # Whether a read is accepted is known late in a cycle: as little as possible depends on it.
        groups = self._config.vector_groups
        left = Signal(range(max(groups, 2)))  # cycles until a window's last step may be performed
        with m.If(self.leaves & step.last):
            m.d.sync += left.eq(groups - 1)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        sound = Signal()  # the step is not bad, and it is not too early for it
        follows = Signal()  # so in the next cycle, if the step stays
        m.d.comb += follows.eq(Mux(left <= 1, ~step.bad, sound))
        early = Const(0, 1) if groups == 1 else (self.valid & step.last) | (left > 1)
        with m.If(fills):
            starts = some & ~read.data.bad & ~(read.data.last & early)
            m.d.sync += [
                self.valid.eq(some),
                sound.eq(starts),
                self.asks.eq(starts & self.room),
                output.eq(read.data),
                places.current.eq(read.addr),
            ]
        with m.Else():
            # One that has asked has its place.
            m.d.sync += [sound.eq(follows), self.asks.eq(follows & (self.room | self.asks))]
        with m.If(loads):
            m.d.sync += read.addr.eq(read.addr + 1)
        self._elaborate_bad_address(m, arrives, bad, checked)

    def _elaborate_places(self, m: Module, arriving: data.View) -> SimpleNamespace:
        """Memories of the steps that wait, and the output register.

        ``step`` is the one at the output, ``current`` its place, ``output`` the register with those
        of its fields that decide on reads; these come by ``write`` and go by ``read``.
        """
        layout = step_layout(self._config)
        step = Signal(layout)
        reads = data.StructLayout({name: layout[name].shape for name in READ_FIELDS})
        others = data.StructLayout(
            {name: field.shape for name, field in layout if name not in READ_FIELDS}
        )
        # What does not decide on reads stays in its place while the step is there. Hence twice the
        # places: no step that comes meanwhile lies in this one.
        depth = 2 * STEP_ENTRIES
        queue: memory.Memory = memory.Memory(shape=reads, depth=depth, init=[])
        places: memory.Memory = memory.Memory(shape=others, depth=depth, init=[])
        m.submodules.queue, m.submodules.places = queue, places
        write, read = queue.write_port(), queue.read_port(domain="comb")
        place_write, place_read = places.write_port(), places.read_port(domain="comb")
        current = Signal(range(depth), reset_less=True)
        output = Signal(reads, name="read_step", reset_less=True)
        m.d.comb += [
            *[write.data[name].eq(arriving[name]) for name, _ in reads],
            *[place_write.data[name].eq(arriving[name]) for name, _ in others],
            place_write.addr.eq(write.addr),
            place_write.en.eq(write.en),
            place_read.addr.eq(current),
            *[step[name].eq(output[name]) for name, _ in reads],
            *[step[name].eq(place_read.data[name]) for name, _ in others],
            self.step.eq(step),
        ]
        return SimpleNamespace(step=step, current=current, output=output, write=write, read=read)

    def _elaborate_bad_address(
        self, m: Module, arrives: Signal, bad: Value, checked: data.View
    ) -> None:
        """Keep the address of the first bad step; no later one matters."""
        found = Signal()
        bad_address = Signal(signed(LOCAL_BITS), reset_less=True)
        m.d.comb += self.bad_address.eq(bad_address)
        with m.If(arrives & ~found):
            m.d.sync += found.eq(bad)
            with m.If(checked.a_bad):
                m.d.sync += bad_address.eq(checked.a)
            with m.Elif(checked.b_bad):
                m.d.sync += bad_address.eq(checked.b)
            with m.Elif(checked.result_bad):
                m.d.sync += bad_address.eq(checked.result)
            with m.Else():
                m.d.sync += bad_address.eq(checked.parameter)

    def _banks(self, m: Module, name: str, address: Value) -> Value:
        config = self._config
        return activation_banks_read(m, f"{name}_place", config, address, config.line_bytes)

    def _row_outside(self, address: Value) -> Value:
        """Whether an accumulator row does not exist."""
        return address[self._config.accumulator_address_bits :].any()


def _run_outside(address: Value, size: int, limit: Value | int) -> Value:
    """Whether a run that may begin at ``limit`` at most leaves a memory of that many bytes."""
    bits = (size - 1).bit_length()
    return address[bits:].any() | (address[:bits] > limit)


def _inside(coordinate: Value, extent: Value) -> Value:
    """Whether a coordinate lies in [0, extent)."""
    width = len(extent)
    return ~coordinate[width:].any() & (coordinate[:width] < extent)


def _compared_layout() -> data.StructLayout:
    """A trip's addresses, and how they compare."""
    address = signed(LOCAL_BITS)
    flags = (
        *("y_inside", "x_inside", "a_far", "a_outside", "b_far", "b_outside"),
        *("result_far", "result_outside", "a_wide", "b_wide", "b_weight", "wide", "dot"),
        *("b_for_tail", "parameter_used", "first", "last", "last_tile", "slot", "final"),
    )
    return data.StructLayout(
        {
            "a": address,
            "b": address,
            "result": address,
            "parameter": PARAMETER_BITS,
            "index": INDEX_BITS,
            "window": window_layout(),
            **dict.fromkeys(flags, 1),
        }
    )


def _checked_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A step, and which of its addresses is bad."""
    address = signed(LOCAL_BITS)
    return data.StructLayout(
        {
            "step": step_layout(config),
            "a": address,
            "b": address,
            "result": address,
            "parameter": PARAMETER_BITS,
            "a_bad": 1,
            "b_bad": 1,
            "result_bad": 1,
            "parameter_bad": 1,
        }
    )
