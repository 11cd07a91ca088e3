"""Address generation of the vector engine: one checked step for each trip of the loop nest."""

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.gateware.loops import LoopNest
from weft_hw.gateware.vector_layouts import COORDINATE_BITS, INDEX_BITS, LOCAL_BITS, step_layout
from weft_hw.gateware.vector_sliding import VectorSliding
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


class VectorSteps(wiring.Component):
    """Turns an instruction into one *step* a window element, its addresses checked.

    A is read if it exists; B with it in a dot product, otherwise with the last element of a window
    if the tail uses it. With ``depthwise_taps`` above 1, steps of a dot product whose window slides
    leave out what the window registers hold, see :class:`VectorSliding`. Every address
    that the step will use, the result's and the parameter row's with the last element included, is
    compared with the size of its memory; if one lies outside, the step is ``bad`` and
    ``bad_address`` is the first such of A, B, result, parameter row.

    One step a cycle. The first is valid three cycles after ``start``; it stays until ``leaves``.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    fields : In(encoded VECTOR instruction)
        Held from ``start`` until ``finished``.
    start, slot : In(1), In(1)
        Take the instruction, whose controls lie in that slot; only when no other is inside.
    finished : Out(1)
        The last trip leaves the nest in this cycle.
    stop : In(1)
        Take no further trips.
    valid, step : Out(1), Out(step)
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
                "step": Out(step_layout(config)),
                "leaves": In(1),
                "bad_address": Out(signed(LOCAL_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.nest = nest = self._nest(m)
        sliding = self._elaborate_sliding(m, nest)
        running = Signal()
        take = Signal()
        slot = Signal()
        m.d.comb += [
            take.eq(running & nest.ready & ~self.stop & (~self.valid | self.leaves)),
            nest.load.eq(self.start),
            nest.advance.eq(take & ~nest.finished),
            self.finished.eq(take & nest.finished),
        ]
        with m.If(self.start):
            m.d.sync += [running.eq(1), slot.eq(self.slot)]
        with m.Elif(self.finished):
            m.d.sync += running.eq(0)
        with m.If(take):
            m.d.sync += self.valid.eq(1)
        with m.Elif(self.leaves):
            m.d.sync += self.valid.eq(0)
        if sliding is not None:
            m.d.comb += [sliding.take.eq(take), sliding.advance.eq(nest.advance)]
        self._elaborate_check(m, nest, take, slot, sliding)
        return m

    def _elaborate_sliding(self, m: Module, nest: LoopNest) -> VectorSliding | None:
        """What changes the nest's trips where windows slide."""
        if self._config.depthwise_taps == 1:
            return None
        m.submodules.sliding = sliding = VectorSliding()
        loop = LOOPS_VECTOR_OUTER - 1
        m.d.comb += [
            sliding.fields.eq(self.fields),
            sliding.start.eq(self.start),
            sliding.first.eq(nest.first),
            sliding.last.eq(nest.last),
            nest.counts[LOOPS_VECTOR - 1].eq(sliding.taps),
            nest.a_strides[loop].eq(sliding.a_stride),
            nest.b_strides[loop].eq(sliding.b_stride),
            nest.y_strides[loop].eq(sliding.y_stride),
            nest.x_strides[loop].eq(sliding.x_stride),
        ]
        return sliding

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

    def _elaborate_check(
        self,
        m: Module,
        nest: LoopNest,
        take: Signal,
        slot: Signal,
        sliding: VectorSliding | None,
    ) -> None:
        config, fields = self._config, self.fields
        exists = Signal()
        first = Signal()  # of what the window's reduction takes
        last = Signal()
        last_tile = Signal()
        b_used = Signal()  # for a result
        b_read = Signal()
        b_outside = Signal()
        lanes = Signal(range(config.columns + 1))
        m.d.comb += [
            exists.eq(
                ~fields.bounded
                | (
                    (nest.y >= 0)
                    & (nest.y < fields.y_extent)
                    & (nest.x >= 0)
                    & (nest.x < fields.x_extent)
                )
            ),
            first.eq(nest.first[LOOPS_VECTOR_OUTER:].all()),
            last.eq(nest.last[LOOPS_VECTOR_OUTER:].all()),
            last_tile.eq(nest.last[0]),
            b_used.eq(
                Mux(fields.head == Head.DOT, exists, last & (fields.tail != Tail.NONE)),
            ),
            b_read.eq(b_used),
            lanes.eq(config.columns),
        ]
        if sliding is not None:
            m.d.comb += sliding.b_outside.eq(b_outside)
            with m.If(sliding.window.slides):
                m.d.comb += [
                    b_read.eq(sliding.window.loads & ~b_outside),
                    first.eq(nest.first[LOOPS_VECTOR_OUTER]),
                ]
        with m.If(last_tile & (fields.last_lanes != 0) & (fields.last_lanes < config.columns)):
            m.d.comb += lanes.eq(fields.last_lanes)

        a_wide = fields.a_source == OperandSource.ACCUMULATOR
        b_wide = fields.b_source == OperandSource.ACCUMULATOR
        b_weight = fields.b_source == OperandSource.WEIGHT
        wide = fields.destination == Memory.ACCUMULATOR
        parameter = nest.parameter.as_unsigned()
        parameter_used = fields.use_bias | (fields.scale_source == ScaleSource.PARAMETER)
        a_bad, b_bad, result_bad, parameter_bad = (
            Signal(name=f"{name}_bad") for name in ("a", "b", "result", "parameter")
        )
        m.d.comb += [
            a_bad.eq(exists & self._outside(nest.a, a_wide, config.columns)),
            b_outside.eq(
                Mux(
                    b_weight,
                    self._run_outside(nest.b, config.weight_bytes, config.columns),
                    self._outside(nest.b, b_wide, config.columns),
                )
            ),
            b_bad.eq(b_used & b_outside),
            result_bad.eq(last & self._outside(nest.result, wide, lanes)),
            parameter_bad.eq(last & parameter_used & (parameter >= config.parameter_rows)),
        ]

        step = Signal(step_layout(config), reset_less=True)
        bad_address = Signal(signed(LOCAL_BITS), reset_less=True)
        m.d.comb += [self.step.eq(step), self.bad_address.eq(bad_address)]
        with m.If(take):
            m.d.sync += [
                step.a_address.eq(nest.a),
                step.a_narrow.eq(exists & ~a_wide),
                step.a_wide.eq(exists & a_wide),
                step.b_address.eq(nest.b),
                step.b_narrow.eq(b_read & ~b_wide & ~b_weight),
                step.b_wide.eq(b_read & b_wide),
                step.b_weight.eq(b_read & b_weight),
                step.parameter.eq(parameter),
                step.index.eq(nest.index),
                step.exists.eq(exists),
                step.first.eq(first),
                step.last.eq(last),
                *([] if sliding is None else [step.window.eq(sliding.window)]),
                step.tag.address.eq(nest.result),
                step.tag.last_tile.eq(last_tile),
                step.tag.slot.eq(slot),
                step.tag.final.eq(nest.finished),
                step.bad.eq(a_bad | b_bad | result_bad | parameter_bad),
            ]
            with m.If(a_bad):
                m.d.sync += bad_address.eq(nest.a)
            with m.Elif(b_bad):
                m.d.sync += bad_address.eq(nest.b)
            with m.Elif(result_bad):
                m.d.sync += bad_address.eq(nest.result)
            with m.Elif(parameter_bad):
                m.d.sync += bad_address.eq(parameter)

    def _outside(self, address: Value, wide: Value, lanes: Value | int) -> Value:
        """Whether a row (``wide``), or a run of that many activations, leaves its memory."""
        config = self._config
        row_outside = address[config.accumulator_address_bits :].any()
        return Mux(wide, row_outside, self._run_outside(address, config.activation_bytes, lanes))

    @staticmethod
    def _run_outside(address: Value, size: int, lanes: Value | int) -> Value:
        """Whether a run of that many bytes leaves a scratchpad; ``size`` is a power of two."""
        bits = (size - 1).bit_length()
        return address[bits:].any() | (address[:bits] > size - lanes)
