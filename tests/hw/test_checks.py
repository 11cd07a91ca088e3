"""The field checks against the instructions' own Python check, one field value at a time."""

import dataclasses
import random

import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from weft_hw.config import PRESETS
from weft_hw.gateware.checks import unsupported_field, zero_count
from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.instructions import Instruction, Load, Matrix, Scalar, Store, Vector


@pytest.mark.parametrize("kind", [Load, Matrix, Vector, Scalar, Store])
def test_every_value_of_every_restricted_field(kind: type[Instruction]) -> None:
    rng = random.Random(kind.opcode)
    candidates = [kind()]
    for field in kind.bit_fields():
        low, high = field.limits
        values = {low, high, 0, 1} | set(range(max(low, -8), min(high, 8) + 1))
        for value in sorted(v for v in values if low <= v <= high):
            elements = [getattr(kind(), field.name)]
            if field.length:
                elements = list(elements[0])
            elements[rng.randrange(len(elements))] = value
            new = tuple(elements) if field.length else elements[0]
            candidates.append(dataclasses.replace(kind(), **{field.name: new}))

    m = Module()
    view = Signal(instruction_layout(kind))
    unsupported, expression, zero = Signal(), Signal(), Signal()
    m.d.comb += [
        unsupported.eq(unsupported_field(m, kind, view)),
        expression.eq(unsupported_field(None, kind, view)),
        zero.eq(zero_count(kind, view)),
    ]
    seen = set()

    async def bench(ctx):
        for instruction in candidates:
            ctx.set(view.as_value(), int.from_bytes(instruction.encode(), "little"))
            expected = Instruction.unsupported(instruction, PRESETS["tiny"]) is not None
            assert ctx.get(unsupported) == ctx.get(expression) == expected, instruction
            empty = 0 in getattr(instruction, "counts", ()) or (
                getattr(instruction, "run_bytes", 1) == 0
            )
            assert ctx.get(zero) == empty, instruction
            seen.update({("unsupported", expected), ("zero", empty)})

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
    if kind is not Scalar:  # which has no counts
        assert len(seen) == 4
