"""What trains a network in a comparison: PyTorch in float32, or the integer step's fast engine."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from weft.train.data import CLASSES, INPUT_EXPONENT, target_codes
from weft.train.fast import FastEngine
from weft.train.methods import Method
from weft.train.module import training_step
from weft.train.octo_reference import OctoSettings, compensation_penalty, octo_network
from weft.train.state import Rates
from weft.train.step import BiasGradient, Convolution, MomentumUpdate, TrainingStep

__all__ = [
    "MOMENTUM",
    "PENALTY",
    "BitSchedule",
    "DeviceLearner",
    "FloatLearner",
    "Learner",
    "RateSchedule",
    "Schedule",
    "float_images",
    "one_thread",
]

MOMENTUM = 0.9

PENALTY = 0.1
"""L2 of a compensation in the loss (Octo)."""

Images = NDArray[np.int8]
Labels = NDArray[np.int64]


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: batches this small lose more by waiting for others than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class RateSchedule:
    """A learning rate that falls to zero along half a cosine, behind a linear rise.

    Parameters
    ----------
    start : float
    warm_up : float
        Share of all steps that the rise takes.
    """

    start: float
    warm_up: float = 0.0

    def rate(self, done: float) -> float:
        """When a share ``done`` of all steps is done."""
        if done < self.warm_up:
            return self.start * done / self.warm_up
        done = (done - self.warm_up) / (1 - self.warm_up)
        return self.start * (1 + math.cos(math.pi * done)) / 2

    def bits(self, done: float) -> int:
        """None: these updates have a rate."""
        return 0

    @property
    def text(self) -> str:
        """For people."""
        return f"rate {self.start:g}"


@dataclass(frozen=True)
class BitSchedule:
    """Bits of an update, falling: pairs of the share of all steps and the bits from there on."""

    steps: tuple[tuple[float, int], ...]

    def rate(self, done: float) -> float:
        """Of what has no bits: nothing."""
        return 0.0

    def bits(self, done: float) -> int:
        """When a share ``done`` of all steps is done."""
        return [bits for start, bits in self.steps if start <= done][-1]

    @property
    def text(self) -> str:
        """For people."""
        return "bits " + ", ".join(f"{bits} from {start:.0%}" for start, bits in self.steps)


Schedule = RateSchedule | BitSchedule


class Learner(Protocol):
    """A network that learns from batches of codes."""

    def step(self, images: Images, labels: Labels, schedule: Schedule, done: float) -> None:
        """One batch, when a share ``done`` of all steps is done."""

    def predict(self, images: Images) -> Labels:
        """Classes."""


def float_images(images: Images) -> Tensor:
    """Codes (N, H, W, C) as real numbers (N, C, H, W), float32."""
    values = np.ldexp(images.astype(np.float32), INPUT_EXPONENT).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(values))


class FloatLearner:
    """float32 SGD with momentum, plain or with Octo as published.

    Parameters
    ----------
    network : nn.Module
        Trained in place, unless Octo copies it.
    example : Tensor
    octo : OctoSettings, optional
    seed : int
        Of Octo's rounding.
    """

    def __init__(
        self, network: nn.Module, example: Tensor, octo: OctoSettings | None = None, seed: int = 0
    ) -> None:
        self.octo = octo
        self.network = network if octo is None else octo_network(network, example, octo, seed)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.0, momentum=MOMENTUM)

    def step(self, images: Images, labels: Labels, schedule: Schedule, done: float) -> None:
        """One batch."""
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate(done)
        self.optimizer.zero_grad()
        logits = self.network(float_images(images))
        loss = functional.cross_entropy(logits, torch.from_numpy(labels))
        if self.octo is not None and self.octo.compensated:
            loss = loss + compensation_penalty(self.network, PENALTY)
        loss.backward()
        self.optimizer.step()

    def predict(self, images: Images) -> Labels:
        """Classes."""
        self.network.eval()
        with torch.no_grad():
            found: Labels = self.network(float_images(images)).argmax(1).numpy()
        return found


class DeviceLearner:
    """The integer step, executed by the fast engine.

    An L2 of ``PENALTY`` in the loss acts through momentum; the step's decay acts on the master
    itself, so that it is stronger by ``1 / (1 - MOMENTUM)`` for the same effect.

    Parameters
    ----------
    network : nn.Module
    example : Tensor
        A whole batch.
    method : Method
    seed : int
        Of rounding.
    biases_as_compensation : bool
        The biases take the rate and the decay of a compensation: a control for it.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        method: Method,
        seed: int = 0,
        *,
        biases_as_compensation: bool = False,
    ) -> None:
        self.penalized = method.compensation != "none" or biases_as_compensation
        if self.penalized and isinstance(method.update, MomentumUpdate):
            method = replace(method, update=replace(method.update, decays=True))
        self.training_step, self.parameters = training_step(network, example, method)
        if biases_as_compensation:
            self.training_step = _biases_as_compensation(self.training_step)
        self.engine = FastEngine(self.training_step)
        self.state = self.parameters.state(self.training_step)
        self.seed, self.number = seed, 0

    def step(self, images: Images, labels: Labels, schedule: Schedule, done: float) -> None:
        """One batch."""
        decay = PENALTY / (1 - MOMENTUM) if self.penalized else 0.0
        rates = Rates.of(
            len(images),
            schedule.rate(done),
            compensation_decay=decay,
            bits=schedule.bits(done),
        )
        batch = (images, target_codes(labels, CLASSES), rates, self.seed, self.number)
        if self.number == 0:
            self.state = self.engine.first_largest(self.state, *batch)
        self.state, _ = self.engine.run(self.state, *batch)
        self.number += 1

    def predict(self, images: Images) -> Labels:
        """Classes."""
        logits, _ = self.engine.evaluate(self.state, images)
        found: Labels = logits.argmax(axis=1).astype(np.int64)
        return found


def _biases_as_compensation(step: TrainingStep) -> TrainingStep:
    def changed(operation: Any) -> Any:
        if isinstance(operation, Convolution):
            biases = tuple(replace(bias, group="compensation") for bias in operation.biases)
            return replace(operation, biases=biases)
        if isinstance(operation, BiasGradient):
            parameter = replace(operation.parameter, group="compensation")
            return replace(operation, parameter=parameter)
        return operation

    return replace(
        step,
        forward=tuple(changed(each) for each in step.forward),
        backward=tuple(changed(each) for each in step.backward),
    )
