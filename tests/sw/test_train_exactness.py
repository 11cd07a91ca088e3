"""The fast engine's whole state after ten steps is that of an independent reference."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from training_reference import Memory, Reference, Settings
from weft.train.data import target_codes
from weft.train.fast import FastEngine
from weft.train.methods import choose_method
from weft.train.module import training_step
from weft.train.parameters import ParameterSet
from weft.train.state import Rates, State
from weft.train.step import MomentumUpdate, TrainingStep, Update

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

STEPS = 10


class Family(nn.Module):
    """What tests/training_reference.py computes, as a user writes it."""

    def __init__(self, sizes: "Sizes") -> None:
        super().__init__()
        channels = sizes.channels
        self.stem = nn.Conv2d(
            sizes.inputs, channels, sizes.kernel, stride=sizes.stride, padding=sizes.padding
        )
        self.block = nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.AvgPool2d(sizes.window) if sizes.average else nn.MaxPool2d(sizes.window)
        height, width = (size // sizes.window for size in sizes.pixels)
        features = channels * height * width
        self.hidden = nn.Linear(features, sizes.hidden) if sizes.hidden else None
        self.classify = nn.Linear(sizes.hidden or features, sizes.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).relu()
        x = nn.functional.relu(x + self.block(x))
        x = self.pool(x).flatten(1)
        if self.hidden is not None:
            x = self.hidden(x).relu()
        return self.classify(x)


@dataclass(frozen=True)
class Sizes:
    batch: int
    height: int
    width: int
    inputs: int
    channels: int
    kernel: int
    stride: int
    padding: int
    window: int
    average: bool
    classes: int
    hidden: int = 0

    @property
    def pixels(self) -> tuple[int, int]:
        """Of the stem's result."""
        height, width = (
            (size + 2 * self.padding - self.kernel) // self.stride + 1
            for size in (self.height, self.width)
        )
        return height, width


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


def settings_of(step: TrainingStep, sizes: Sizes, method: str, **options: str) -> Settings:
    chosen = choose_method(method, update=step.update, **options)
    momentum = step.update if isinstance(step.update, MomentumUpdate) else None
    return Settings(
        stride=sizes.stride,
        padding=sizes.padding,
        window=sizes.window,
        average=sizes.average,
        forward_stochastic=chosen.forward_stochastic,
        backward_stochastic=chosen.backward_stochastic,
        clipped=chosen.clipped,
        delayed=chosen.delayed,
        compensation=chosen.compensation,
        state_bits=momentum.state_bits if momentum else 0,
        momentum=momentum.momentum if momentum else 0.0,
        decays=momentum is not None and momentum.decays,
        exponents={parameter.name: parameter.exponent for parameter in step.parameters()},
        numbers={quantizer.name: quantizer.number for quantizer in step.quantizers()},
        parameter_numbers={each.name: each.numbers for each in step.parameters()},
    )


def memory_of(state: State) -> Memory:
    groups = (
        {name: torch.from_numpy(values.astype(np.int64)) for name, values in group.items()}
        for group in (state.codes, state.master, state.velocity)
    )
    return Memory(*groups, dict(state.cells))


def state_of(memory: Memory, like: State) -> State:
    return State(
        *(
            {name: mine[name].numpy().astype(its[name].dtype) for name in its}
            for mine, its in (
                (memory.codes, like.codes),
                (memory.master, like.master),
                (memory.velocity, like.velocity),
            )
        ),
        {name: memory.cells[name] for name in like.cells},
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


def first_state(step: TrainingStep, parameters: ParameterSet, rng: np.random.Generator) -> State:
    """The module's, with compensations that are not 0."""
    state = parameters.state(step)
    for parameter in step.parameters():
        if parameter.group == "compensation":
            values = rng.normal(size=parameter.shape)
            parameters.assign(state, parameter.name, values)
    return state
