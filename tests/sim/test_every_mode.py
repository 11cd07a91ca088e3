"""Every instruction in every mode, by chance, against the reference; counts are in the summary."""

import functools
from collections.abc import Callable

import numpy as np

from sim.instruction_modes import GROUPS, Coverage, existing_modes, mode_fields
from sim.test_functional import CONFIGS, FLEXIBLE, TALL, Pair
from weft_hw import PRESETS, AcceleratorConfig
from weft_hw.instructions import INSTRUCTIONS, Element, End, Memory, Store

Record = Callable[[str, object], None]


def test_every_field_of_modes_is_counted():
    for kind in INSTRUCTIONS.values():
        if kind is not End:
            assert mode_fields(kind).keys() <= {name for group in GROUPS[kind] for name in group}


def test_modes_follow_the_configuration():
    def values(config: AcceleratorConfig, *group: str) -> set[str]:
        return {value for _, names, value in existing_modes(config) if names == group}

    assert values(PRESETS["tiny"], "weight_bits", "bounds") == {
        f"EIGHT {bounds}" for bounds in ("NONE", "LEFT", "TOP", "ACCUMULATOR")
    }
    assert {"FOUR LEFT", "TWO ACCUMULATOR"} <= values(FLEXIBLE, "weight_bits", "bounds")
    assert "FOUR TOP" not in values(FLEXIBLE, "weight_bits", "bounds")
    assert "WEIGHT_STATIONARY LEFT" not in values(TALL, "dataflow", "load_side")


def test_functional(rng: np.random.Generator, record_property: Record):
    coverage = Coverage(CONFIGS)
    for config in CONFIGS:
        for _ in range(2 if config.columns > 8 else 12):
            pair = Pair(config, rng)
            # LOAD of parameters comes last: it may leave exponents that are not defined.
            draws = [functools.partial(coverage.draw, pair.random)] * 40
            for draw in [*draws, *[pair.random.load_parameters] * 4]:
                instruction = draw()
                pair.run([instruction])
                pair.reference.execute(instruction)
                pair.check([instruction])
                coverage.add(instruction)
    total = sum(coverage.instructions.values())
    record_property("modes", coverage.summary(f"functional: {total:,} random instructions"))
    assert total >= 2000
    assert not coverage.missing


def test_a_mode_that_did_not_occur_is_missing():
    coverage = Coverage([PRESETS["tiny"]])
    coverage.add(Store(memory=Memory.ACCUMULATOR, element=Element.INT16))
    assert "STORE memory/element=ACCUMULATOR INT16" not in coverage.missing
    assert "STORE memory/element=ACCUMULATOR INT32" in coverage.missing
    assert len(coverage.missing) == len(existing_modes(PRESETS["tiny"])) - 1
