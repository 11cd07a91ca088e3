"""The family of networks of tests/training_reference.py, and the way to its settings and memory."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from training_reference import Memory, Settings
from weft.train.methods import choose_method
from weft.train.parameters import ParameterSet
from weft.train.state import State
from weft.train.step import MomentumUpdate, TrainingStep


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


def first_state(step: TrainingStep, parameters: ParameterSet, rng: np.random.Generator) -> State:
    """The module's, with compensations that are not 0."""
    state = parameters.state(step)
    for parameter in step.parameters():
        if parameter.group == "compensation":
            values = rng.normal(size=parameter.shape)
            parameters.assign(state, parameter.name, values)
    return state
