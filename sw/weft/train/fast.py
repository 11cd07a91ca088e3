"""The fast engine: a training step in vectorized whole numbers of PyTorch, bit for bit."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import InputError
from weft.train.fast_run import Run
from weft.train.products import check_products
from weft.train.random_bits import RandomBits
from weft.train.rounding import check_rounding
from weft.train.state import Rates, State
from weft.train.step import (
    Add,
    AveragePool,
    BitUpdate,
    Convolution,
    DataGradient,
    Operation,
    TrainingStep,
)

__all__ = ["FastEngine"]

EVALUATION_BATCH = 128
"""Images that are computed at a time: their tensors fit the caches."""


class FastEngine:
    """Executes a step; every instance first compares itself with the formulas.

    Parameters
    ----------
    step : TrainingStep
    device : str or torch.device, optional
        The CPU unless given.
    threads : int
        Of PyTorch while this engine computes. One is the fastest unless the machine is idle and
        the images large: every operation waits for the last thread.

    Raises
    ------
    WeftError
        If this machine's PyTorch does not compute exactly.
    """

    def __init__(self, step: TrainingStep, device: Any = None, *, threads: int = 1) -> None:
        self.step = step
        self.threads = threads
        self.device = torch.device(device or "cpu")
        with _threads(threads):
            check_rounding(self.device)
            for key in {
                (operation.geometry, operation.source.shape, operation.result.shape[2])
                for operation in step.forward
                if isinstance(operation, Convolution)
            }:
                check_products(*key, self.device)
        self._random = RandomBits(_random_sizes(step), self.device)

    def run(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        rates: Rates,
        seed: int,
        number: int,
    ) -> tuple[State, NDArray[np.int8]]:
        """One step; see :meth:`weft.train.state.StepEngine.run`."""
        with _threads(self.threads):
            run = self._passes(state, images, targets, seed, number)
            run.update(rates)
        return run.state, run.logits()

    def values(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        seed: int,
        number: int,
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """Everything that a step computes before its updates, as real numbers.

        Returns
        -------
        tensors : dict of str to array (batch, height, width, channels)
            By image: results and their gradients (descent directions, of the summed loss).
        gradients : dict of str to array
            By parameter, in its shape: descent directions, of the summed loss.
        """
        with _threads(self.threads):
            run = self._passes(state, images, targets, seed, number)
        tensors = {
            image.name: np.ldexp(codes.double().cpu().numpy(), run.exponent(image.exponent))
            for image, codes in run.results()
        }
        gradients = {
            parameter.name: np.ldexp(sums.cpu().numpy(), exponent).reshape(parameter.shape)
            for parameter, sums, exponent in run.gradients
        }
        return tensors, gradients

    def _passes(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        seed: int,
        number: int,
    ) -> "Run":
        """All operations; the updates are left."""
        self._check(images, targets)
        run = Run(self.step, state, self._random.fill(seed, number), self.device)
        run.put(self.step.source, images)
        run.put(self.step.target, targets[:, None, None, :])
        run.execute(self.step.operations)
        return run

    def first_largest(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        rates: Rates,
        seed: int,
        number: int,
    ) -> State:
        """The state with the largest sums of a step with own exponents that updates nothing.

        What a run with delayed exponents starts from; the state itself where there are none.
        """
        if not any(quantizer.delayed for quantizer in self.step.quantizers()):
            return state
        own = copy.copy(self)
        own.step = _with_own_exponents(self.step)
        found, _ = own.run(state, images, targets, rates, seed, number)
        result = state.copy()
        for name, value in found.cells.items():
            if name.endswith(".largest"):
                result.cells[name] = value
        return result

    def evaluate(self, state: State, images: NDArray[np.int8]) -> tuple[NDArray[np.int8], int]:
        """Logits of any number of images, rounded to nearest with the shifts of the last step.

        Returns
        -------
        logits : int8 array (samples, classes)
        exponent : int
        """
        frozen = _frozen(self.step)
        parts, exponent = [], 0
        with _threads(self.threads):
            for start in range(0, len(images), EVALUATION_BATCH):
                run = Run(frozen, state, {}, self.device)
                run.put(frozen.source, images[start : start + EVALUATION_BATCH])
                run.execute(frozen.forward)
                parts.append(run.logits())
                exponent = run.exponent(frozen.logits.exponent)
        return np.concatenate(parts), exponent

    def _check(self, images: NDArray[np.int8], targets: NDArray[np.int8]) -> None:
        expected = (self.step.batch, *self.step.source.shape)
        classes = (self.step.batch, self.step.target.shape[2])
        for name, array, shape in (("images", images, expected), ("targets", targets, classes)):
            if array.shape != shape or array.dtype != np.int8:
                raise InputError(
                    f"{name}: {array.dtype} of shape {array.shape}; the step takes int8 of {shape}"
                )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _random_sizes(step: TrainingStep) -> dict[int, int]:
    """Elements of every tensor that takes random bits, by its number."""
    sizes: dict[int, int] = {}
    for operation in step.operations:
        if isinstance(operation, Convolution | DataGradient | AveragePool | Add):
            if operation.quantizer.stochastic:
                size = step.batch * math.prod(operation.result.shape)
                sizes[operation.quantizer.number] = size
    for parameter in step.parameters():
        used = parameter.numbers[: _streams(step)]
        sizes.update(dict.fromkeys(used, math.prod(parameter.shape)))
    return sizes


def _streams(step: TrainingStep) -> int:
    """How many of a parameter's three random streams the update uses."""
    if isinstance(step.update, BitUpdate):
        return 1
    return 3 if step.update.decays else 2


def _map_quantizers(step: TrainingStep, **changes: Any) -> TrainingStep:
    def changed(operation: Operation) -> Operation:
        quantizer = getattr(operation, "quantizer", None)
        if quantizer is None:
            return operation
        fields: dict[str, Any] = {"quantizer": replace(quantizer, **changes)}
        return replace(operation, **fields)

    return replace(
        step,
        forward=tuple(changed(each) for each in step.forward),
        backward=tuple(changed(each) for each in step.backward),
    )


def _with_own_exponents(step: TrainingStep) -> TrainingStep:
    own = _map_quantizers(step, delayed=False)
    return replace(own, update=BitUpdate()) if isinstance(step.update, BitUpdate) else own


def _frozen(step: TrainingStep) -> TrainingStep:
    """Round to nearest, with the shifts that the state's cells say."""
    return _map_quantizers(step, delayed=True, stochastic=False)
