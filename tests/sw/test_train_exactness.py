"""The fast engine's whole state after ten steps is that of an independent reference."""

import numpy as np
import pytest
import torch

from training_family import Family, Sizes, first_state, memory_of, settings_of, state_of
from training_reference import Reference
from weft.train.data import target_codes
from weft.train.fast import FastEngine
from weft.train.module import training_step
from weft.train.state import Rates
from weft.train.step import MomentumUpdate, Update

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

STEPS = 10


def draw(rng: np.random.Generator) -> Sizes:
    """Sizes whose pool has a result."""
    while True:
        sizes = draw_any(rng)
        if min(sizes.pixels) >= sizes.window:
            return sizes


def draw_any(rng: np.random.Generator) -> Sizes:
    kernel = int(rng.choice([1, 2, 3, 5]))
    return Sizes(
        batch=int(rng.integers(1, 8)),
        height=int(rng.integers(6, 14)),
        width=int(rng.integers(6, 14)),
        inputs=int(rng.integers(1, 5)),
        channels=int(rng.integers(1, 14)),
        kernel=kernel,
        stride=int(rng.integers(1, 3)),
        padding=int(rng.integers(0, kernel)),
        window=int(rng.integers(1, 3)),
        average=bool(rng.integers(2)),
        classes=int(rng.integers(2, 12)),
        hidden=int(rng.choice([0, 1, 7, 20])),
    )


CASES = [
    ("octo", "own", "channel", MomentumUpdate(16, 0.9)),
    ("octo", "delayed", "pixel", MomentumUpdate(16, 0.9, decays=True)),
    ("octo", "delayed", "channel", MomentumUpdate(32, 0.0, decays=True)),
    ("int8", "own", "none", MomentumUpdate(32, 0.97)),
    ("compensated", "own", "pixel", MomentumUpdate(16, 0.0)),
    ("shared", "own", "none", None),
    ("shared", "delayed", "none", None),
    ("shared", "delayed", "pixel", None),
]


@pytest.mark.parametrize(("method", "exponents", "compensation", "update"), CASES)
def test_ten_steps_are_those_of_the_reference(
    rng: np.random.Generator, method: str, exponents: str, compensation: str, update: Update | None
) -> None:
    """Every weight, master, velocity, exponent and counter, and all logits."""
    for _ in range(3):
        compare_steps(draw(rng), rng, method, exponents, compensation, update)


@pytest.mark.parametrize("method", ["octo", "shared"])
def test_extreme_sizes(rng: np.random.Generator, method: str) -> None:
    """One channel and pixel; sums beyond float32's significand; logits of 256 classes."""
    smallest = Sizes(1, 1, 1, 1, 1, 1, 1, 0, 1, False, 2)
    deep = Sizes(2, 5, 3, 3, 300, 3, 1, 1, 1, True, 256)
    wide = Sizes(3, 37, 41, 1, 2, 5, 1, 2, 3, False, 3)
    for sizes in (smallest, deep, wide):
        compare_steps(sizes, rng, method, "own", "none", None, steps=3)


def compare_steps(
    sizes: Sizes,
    rng: np.random.Generator,
    method: str,
    exponents: str,
    compensation: str,
    update: Update | None,
    steps: int = STEPS,
) -> None:
    print(sizes)
    torch.manual_seed(int(rng.integers(1 << 31)))
    example = torch.zeros(sizes.batch, sizes.inputs, sizes.height, sizes.width)
    options = {"exponents": exponents, "compensation": compensation}
    step, parameters = training_step(Family(sizes), example, method, update=update, **options)
    reference = Reference(settings_of(step, sizes, method, **options))
    engine, state = FastEngine(step), first_state(step, parameters, rng)
    memory = memory_of(state)
    seed = int(rng.integers(1 << 32))
    for number in range(steps):
        shape = (sizes.batch, sizes.height, sizes.width, sizes.inputs)
        images = rng.integers(-127, 128, shape).astype(np.int8)
        if number == 1:  # a batch of zeros, then one of extremes: delayed exponents are far off
            images[:] = 0
        if number == 2:
            images = (rng.choice([-127, 127], shape)).astype(np.int8)
        labels = rng.integers(0, sizes.classes, sizes.batch)
        bits = int(rng.integers(1, 5))
        rates = Rates.of(
            sizes.batch,
            float(rng.choice([0.01, 0.3, 4.0])),
            decay=0.02,
            compensation_rate=0.05,
            bits=bits,
        )
        x, y = torch.from_numpy(images.astype(np.int64)), torch.from_numpy(labels)
        targets = target_codes(labels, sizes.classes)
        if number == 0:
            state = engine.first_largest(state, images, targets, rates, seed, number)
            reference.first_largest(memory, x, y, seed)
        state, logits = engine.run(state, images, targets, rates, seed, number)
        expected = reference.step(memory, x, y, rates.rate, rates.keep, bits, seed, number)
        assert np.array_equal(logits, expected.numpy())
        difference = state.difference(state_of(memory, state))
        assert difference is None, f"step {number}: {difference}"
