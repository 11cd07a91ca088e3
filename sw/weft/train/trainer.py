"""A PyTorch module in training: steps, evaluation, checkpoints, on any engine."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from weft.errors import InputError
from weft.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from weft.train.data import target_codes
from weft.train.fast import FastEngine
from weft.train.inputs import checked_labels, cross_entropy, image_codes
from weft.train.parameters import ParameterSet
from weft.train.schedule import Schedule
from weft.train.state import State, StepEngine
from weft.train.step import TrainingStep

__all__ = ["EngineMismatch", "Evaluation", "StepReport", "Trainer"]

COMPENSATION = ".compensation"
SATURATED = ".saturated"


class EngineMismatch(Exception):
    """Two engines ended a step in different states: a defect of weft, not of the input."""


@dataclass(frozen=True)
class StepReport:
    """What a step found before it updated the parameters.

    Parameters
    ----------
    number : int
        Of the step, from 0.
    loss : float
        Mean cross-entropy of the batch (computed in floating point from the logits' codes).
    correct : int
        Samples whose largest logit is at the label.
    saturated : dict of str to int
        By tensor: codes that a clamp changed.
    """

    number: int
    loss: float
    correct: int
    saturated: dict[str, int]

    @property
    def saturations(self) -> int:
        """Of all tensors."""
        return sum(self.saturated.values())


@dataclass(frozen=True)
class Evaluation:
    """Of labelled samples: mean cross-entropy, and how many predictions are right."""

    loss: float
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return self.correct / self.samples


class Trainer:
    """A module in training; :func:`compile` makes it.

    Attributes
    ----------
    training_step : TrainingStep
    state : State
    number : int
        Steps done.
    seed : int
    schedule : Schedule
        May be replaced between steps.
    fast : FastEngine
        What evaluates; it computes the steps too unless another engine does.
    engine
        What computes the steps; a machine's has ``memory_plan`` and ``program``.
    """

    def __init__(
        self,
        step: TrainingStep,
        parameters: ParameterSet,
        fast: FastEngine,
        engine: StepEngine,
        verifier: StepEngine | None,
        *,
        verify_every: int,
        schedule: Schedule,
        seed: int,
    ) -> None:
        self.training_step = step
        self.schedule = schedule
        self.seed = seed
        self.engine = engine
        self.state = parameters.state(step)
        self.number = 0
        self._parameters = parameters
        self.fast = fast
        self._verifier = verifier
        self._verify_every = verify_every

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.training_step.batch

    def step(self, x: ArrayLike, y: ArrayLike) -> StepReport:
        """One step of training on one batch.

        Parameters
        ----------
        x : float array or tensor (batch, C, H, W) or (batch, features)
            From -1 to 1; int8 is taken for codes, 1/128 each.
        y : int array or tensor (batch,)
            Labels.

        Raises
        ------
        InputError
            If shapes differ from the compiled ones, an input is not finite or out of range, or
            there is no such label. Nothing has changed then.
        EngineMismatch
            If a verification fails. The state is that before the step.
        """
        images, labels = self._inputs(x), self._labels(y)
        if len(images) != self.batch or len(labels) != self.batch:
            raise InputError(
                f"a batch of {len(images)} inputs and {len(labels)} labels: the step is compiled "
                f"for {self.batch} (the first axis of the example input)"
            )
        targets = target_codes(labels, self.training_step.target.shape[2])
        rates = self.schedule.rates(self.number, self.batch)
        batch = (images, targets, rates, self.seed, self.number)
        before = self.state
        if self.number == 0:
            before = self.fast.first_largest(before, *batch)
        state, logits = self.engine.run(before, *batch)
        if self._verifier is not None and self.number % self._verify_every == 0:
            self._verify(state, logits, before, batch)
        report = self._report(state, logits, labels)
        self.state = state
        self.number += 1
        return report

    def epoch(self, x: ArrayLike, y: ArrayLike) -> Iterator[StepReport]:
        """The rest of the present epoch over a data set, in whole batches.

        The order of the samples depends on the seed and the epoch's number alone, so that a
        resumed run goes on where it stopped.

        Raises
        ------
        InputError
            As :meth:`step`; if there is less than one batch.
        """
        images, labels = self._inputs(x), self._labels(y)
        if len(images) != len(labels):
            raise InputError(f"{len(images)} inputs and {len(labels)} labels")
        steps = self.steps_of_epoch(len(images))
        number, place = divmod(self.number, steps)
        order = np.random.default_rng([self.seed, number]).permutation(len(images))
        for start in range(place * self.batch, steps * self.batch, self.batch):
            chosen = order[start : start + self.batch]
            yield self.step(images[chosen].transpose(0, 3, 1, 2), labels[chosen])

    def steps_of_epoch(self, samples: int) -> int:
        """Whole batches in a data set; the rest of an epoch's order is left out.

        Raises
        ------
        InputError
            If there is none.
        """
        if samples < self.batch:
            raise InputError(f"{samples} samples are less than one batch of {self.batch}")
        return samples // self.batch

    def evaluate(self, x: ArrayLike, y: ArrayLike) -> Evaluation:
        """Loss and accuracy of any number of samples, rounded to nearest, exponents frozen.

        Raises
        ------
        InputError
            As :meth:`step`; if no step has been made, which sets the exponents.
        """
        images, labels = self._inputs(x), self._labels(y)
        if len(images) != len(labels) or not len(labels):
            raise InputError(f"{len(images)} inputs and {len(labels)} labels")
        logits = self._logits(images)
        correct = int((logits.argmax(axis=1) == labels).sum())
        return Evaluation(cross_entropy(logits, labels), correct, len(labels))

    def predict(self, x: ArrayLike) -> NDArray[np.float32]:
        """Logits (samples, classes), computed as in :meth:`evaluate`."""
        return self._logits(self._inputs(x)).astype(np.float32)

    def _logits(self, images: NDArray[np.int8]) -> NDArray[np.float64]:
        if not self.number:
            raise InputError("no step has been made: the first one sets the exponents")
        codes, exponent = self.fast.evaluate(self.state, images)
        return np.ldexp(codes.astype(np.float64), exponent)

    def state_dict(self, *, folded: bool = False) -> dict[str, Any]:
        """Parameters as float tensors with PyTorch's names and shapes.

        Compensations are further entries, ``LAYER.compensation``; ``folded`` adds those by channel
        to the biases instead, so that the module itself can load the result.

        Raises
        ------
        InputError
            If a compensation cannot be folded: by pixel, or of a layer without a bias.
        """
        values = dict(self._parameters.to_torch(self.state))
        for name in [each for each in values if folded and each.endswith(COMPENSATION)]:
            bias = name.removesuffix(COMPENSATION) + ".bias"
            if bias not in values or values[name].ndim != 1:
                raise InputError(f"{name} cannot be folded: it is by pixel, or there is no {bias}")
            values[bias] = values[bias] + values.pop(name)
        return {name: torch.from_numpy(array) for name, array in values.items()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Set all parameters; velocities become 0. Compensations that are not given become 0.

        Raises
        ------
        InputError
            If names or shapes differ, or a value is not finite or outside the range that its
            parameter was compiled with. Nothing has changed then.
        """
        state = self.state.copy()
        known = self._parameters.shapes
        given = dict(values)
        for name in known:
            if name.endswith(COMPENSATION) and name not in given:
                given[name] = np.zeros(known[name])
        if unknown := sorted(given.keys() - known.keys()):
            raise InputError(f"state_dict has {', '.join(unknown)}, which the module has not")
        if missing := sorted(known.keys() - given.keys()):
            raise InputError(f"state_dict lacks {', '.join(missing)}")
        for name, value in given.items():
            self._parameters.assign_torch(state, name, np.asarray(value, np.float64))
        self.state = state

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, completely or not at all.

        Raises
        ------
        CheckpointError
            If the system refuses.
        """
        run = Checkpoint(self.state, self.number, self.seed)
        write_checkpoint(path, self.training_step, run)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint, to the same weights as without a break.

        Raises
        ------
        CheckpointError
            If it is damaged or belongs to other training. Nothing has changed then.
        """
        run = read_checkpoint(path, self.training_step)
        self.state, self.number, self.seed = run.state, run.number, run.seed

    def close(self) -> None:
        """Release the machines; the fast engine needs none."""
        for engine in (self.engine, self._verifier):
            close = getattr(engine, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inside ---------------------------------------------------------------------------------------

    def _verify(
        self, state: State, logits: NDArray[np.int8], before: State, batch: tuple[Any, ...]
    ) -> None:
        assert self._verifier is not None
        other, other_logits = self._verifier.run(before, *batch)
        difference = state.difference(other)
        if difference is None and not np.array_equal(logits, other_logits):
            difference = "logits differ"
        if difference is not None:
            names = [type(each).__name__ for each in (self.engine, self._verifier)]
            raise EngineMismatch(
                f"step {self.number}: {names[0]} and {names[1]} differ: {difference}"
            )

    def _report(
        self, state: State, logits: NDArray[np.int8], labels: NDArray[np.int64]
    ) -> StepReport:
        exponent = self.training_step.logits.exponent
        power = exponent.offset
        if exponent.quantizer is not None:
            power += state.cells[f"{exponent.quantizer}.exponent"]
        real = np.ldexp(logits.astype(np.float64), power)
        saturated = {
            name.removesuffix(SATURATED): count
            for name, count in state.cells.items()
            if name.endswith(SATURATED)
        }
        correct = int((logits.argmax(axis=1) == labels).sum())
        return StepReport(self.number, cross_entropy(real, labels), correct, saturated)

    def _inputs(self, x: ArrayLike) -> NDArray[np.int8]:
        return image_codes(x, self.training_step.source.shape)

    def _labels(self, y: ArrayLike) -> NDArray[np.int64]:
        return checked_labels(y, self.training_step.target.shape[2])
