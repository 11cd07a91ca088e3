"""Ten steps of a network on the RTL: the state is that of three other engines, bit for bit.

The engines are the functional simulator, the fast engine, and an independent integer implementation
in PyTorch; on two machines, each in two tilings.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training_family import (
    Family,
    Sizes,
    first_state,
    memory_of,
    settings_of,
    state_of,
)
from training_reference import Reference
from weft.train.data import target_codes
from weft.train.fast import FastEngine
from weft.train.machine.engine import MachineEngine
from weft.train.module import training_step
from weft.train.state import Rates
from weft_hw.config import load_config

pytestmark = [pytest.mark.torch, pytest.mark.rtl]

STEPS = 10
SIZES = Sizes(
    batch=32,
    height=8,
    width=8,
    inputs=1,
    channels=12,
    kernel=3,
    stride=2,
    padding=1,
    window=2,
    average=False,
    classes=10,
    hidden=20,
)
"""Two convolutions, one of stride 2, a residual add, pooling, two dense layers."""

TILINGS = (None, 48)
"""Accumulator rows that a tile may take: a bank's, or few."""


@pytest.mark.parametrize("config", ["base16", "edge8"])
@pytest.mark.parametrize(("method", "exponents"), [("octo", "delayed"), ("shared", "own")])
def test_ten_steps(rng: np.random.Generator, method: str, exponents: str, config: str) -> None:
    torch.manual_seed(int(rng.integers(1 << 31)))
    example = torch.zeros(SIZES.batch, SIZES.inputs, SIZES.height, SIZES.width)
    step, parameters = training_step(Family(SIZES), example, method, exponents=exponents)
    reference = Reference(settings_of(step, SIZES, method, exponents=exponents))
    fast, start = FastEngine(step), first_state(step, parameters, rng)
    memory = memory_of(start)
    seed = int(rng.integers(1 << 32))
    machine = load_config(config)
    engines = {
        f"{engine}, tiles of {rows or 'a bank of'} rows": MachineEngine(
            step, machine, engine, tile_rows=rows
        )
        for engine in ("rtl", "functional")
        for rows in TILINGS
    }
    states = {}
    for number in range(STEPS):
        shape = (SIZES.batch, SIZES.height, SIZES.width, SIZES.inputs)
        images = rng.integers(0, 128, shape).astype(np.int8)
        labels = rng.integers(0, SIZES.classes, SIZES.batch)
        targets = target_codes(labels, SIZES.classes)
        rates = Rates.of(SIZES.batch, 0.1, decay=1e-3, bits=4)
        batch = images, targets, rates, seed, number
        x, y = torch.from_numpy(images.astype(np.int64)), torch.from_numpy(labels)
        if number == 0:
            start = fast.first_largest(start, *batch[:3], seed, number)
            reference.first_largest(memory, x, y, seed)
            states = dict.fromkeys([*engines, "fast"], start)
        for name, engine in [*engines.items(), ("fast", fast)]:
            states[name], logits = engine.run(states[name], *batch)
        expected = reference.step(memory, x, y, rates.rate, rates.keep, rates.bits, seed, number)
        assert np.array_equal(logits, expected.numpy())
        for name, state in states.items():
            difference = state_of(memory, state).difference(state)
            assert difference is None, f"{name}, step {number}: {difference}"
    assert states["fast"].difference(start) is not None
    cycles = engines["rtl, tiles of a bank of rows"].last_run
    assert cycles is not None
    print(f"{config}, {method}: {cycles.cycles:,} cycles a step")
    for engine in engines.values():
        engine.close()
