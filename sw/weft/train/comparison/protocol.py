"""The comparison itself: tune each method alike on validation data, then run all test seeds.

Everything about a run but the method is a function of its seed: the network's start and the order
of the data. Tuning has seeds of its own. No run is stopped or chosen by its test accuracy: what
counts is the accuracy behind the last epoch.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import nn

from weft.errors import InputError
from weft.train.comparison.contenders import CONTENDERS, QUESTIONS, Contender
from weft.train.comparison.diagnosis import diagnosis
from weft.train.comparison.learners import (
    Images,
    Labels,
    Learner,
    RateSchedule,
    Schedule,
    one_thread,
)
from weft.train.data import DataSet, digits, pictures
from weft.train.networks import DigitsNetwork, ResidualNetwork

__all__ = ["TASKS", "Task", "answers", "compare", "run_once", "runs_of"]

FIRST_TUNING_SEED = 1000


@dataclass(frozen=True)
class Task:
    """Data, a network and how long it is trained.

    Parameters
    ----------
    name, text : str
    data : callable
    network : callable
    contenders : tuple of str
        Names of methods.
    seeds, tuning_seeds : int
    epochs, tuning_epochs : int
    rates : tuple of float
        Learning rates that are tried.
    warm_up : float
        Share of the steps in which they rise.
    batch : int
    """

    name: str
    text: str
    data: Callable[[], DataSet]
    network: Callable[[], nn.Module]
    contenders: tuple[str, ...]
    seeds: int
    tuning_seeds: int
    epochs: int
    tuning_epochs: int
    rates: tuple[float, ...]
    warm_up: float = 0.0
    batch: int = 32

    def schedules(self, contender: Contender) -> tuple[Schedule, ...]:
        """What is tried of a method."""
        return contender.schedules or tuple(RateSchedule(rate, self.warm_up) for rate in self.rates)


TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            "scikit-learn's digits, a CNN of three convolutions and two dense layers",
            digits,
            DigitsNetwork,
            tuple(CONTENDERS),
            seeds=5,
            tuning_seeds=2,
            epochs=15,
            tuning_epochs=15,
            rates=(0.05, 0.1, 0.2),
        ),
        Task(
            "pictures",
            "generated pictures of ten figures, a ResNet-8-class network",
            pictures,
            ResidualNetwork,
            ("FP32", "INT8", "Octo", "Shared exponents"),
            seeds=3,
            tuning_seeds=2,
            epochs=8,
            tuning_epochs=8,
            rates=(0.015, 0.025, 0.04),
            warm_up=0.1,
        ),
    )
}


def run_once(
    task: Task,
    data: DataSet,
    contender: Contender,
    schedule: Schedule,
    seed: int,
    epochs: int,
    after_epoch: Callable[[Learner], None] = lambda learner: None,
) -> Learner:
    """Train from the start of a seed, in the order of a seed; whole batches only."""
    torch.manual_seed(seed)
    network = task.network()
    shape = data.train_images.shape
    example = torch.zeros(task.batch, shape[3], *shape[1:3])
    learner = contender.make(network, example, seed)
    for number, (images, labels) in enumerate(_batches(task, data, seed, epochs)):
        steps = len(data.train_images) // task.batch
        learner.step(images, labels, schedule, number / (epochs * steps))
        if (number + 1) % steps == 0:
            after_epoch(learner)
    return learner


def _batches(task: Task, data: DataSet, seed: int, epochs: int) -> Iterator[tuple[Images, Labels]]:
    count = len(data.train_images)
    if count < task.batch:
        raise InputError(f"{count} pictures to train on: fewer than a batch of {task.batch}")
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for start in range(0, count - task.batch + 1, task.batch):
            chosen = order[start : start + task.batch]
            yield data.train_images[chosen], data.train_labels[chosen]


def _accuracy(learner: Learner, images: Images, labels: Labels) -> float:
    return float((learner.predict(images) == labels).mean())


def runs_of(task: Task) -> int:
    """How often a network is trained."""
    return sum(
        len(task.schedules(CONTENDERS[name])) * task.tuning_seeds + task.seeds
        for name in task.contenders
    )


def compare(
    task: Task,
    finished: Callable[[int], None] = lambda runs: None,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """All methods of a task.

    Parameters
    ----------
    task : Task
    finished : callable
        Told how many runs are done.
    save : callable
        Given the result so far behind each method.

    Returns
    -------
    dict
        Of plain values; ``methods`` holds an entry for each, accuracies in [0, 1], with the
        :func:`~weft.train.comparison.diagnosis.diagnosis` of the first seed.
    """
    data = task.data()
    network = task.network()
    result: dict[str, Any] = {
        "task": task.name,
        "text": task.text,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "batch": task.batch,
        "epochs": task.epochs,
        "pictures": [len(data.train_images), len(data.validation_images), len(data.test_images)],
        "methods": [],
    }
    done = 0
    with one_thread():
        for name in task.contenders:
            contender = CONTENDERS[name]
            trials = []
            for schedule in task.schedules(contender):
                accuracies = []
                for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + task.tuning_seeds):
                    learner = run_once(task, data, contender, schedule, seed, task.tuning_epochs)
                    accuracies.append(
                        _accuracy(learner, data.validation_images, data.validation_labels)
                    )
                    finished(done := done + 1)
                trials.append((mean(accuracies), schedule))
            best = max(trials, key=lambda trial: trial[0])[1]
            runs, started, last = [], time.perf_counter(), None
            for seed in range(task.seeds):
                run, learner = _tested(task, data, contender, best, seed)
                last = last or learner
                runs.append(run)
                finished(done := done + 1)
            seconds = (time.perf_counter() - started) / task.seeds
            first = run_once(task, data, contender, best, 0, epochs=0)
            batches = list(_batches(task, data, FIRST_TUNING_SEED, 1))
            accuracies = [run["curve"][-1] for run in runs]
            result["methods"].append(
                {
                    "name": name,
                    "text": contender.text,
                    "schedule": best.text,
                    "trials": [[schedule.text, accuracy] for accuracy, schedule in trials],
                    "runs": runs,
                    "mean": mean(accuracies),
                    "spread": stdev(accuracies) if len(accuracies) > 1 else 0.0,
                    "seconds": seconds,
                    **(diagnosis(first, last, batches) if last else {}),
                }
            )
            save(result)
    return result


def _tested(
    task: Task, data: DataSet, contender: Contender, schedule: Schedule, seed: int
) -> tuple[dict[str, Any], Learner]:
    curve: list[float] = []
    learner = run_once(
        task,
        data,
        contender,
        schedule,
        seed,
        task.epochs,
        lambda learner: curve.append(_accuracy(learner, data.test_images, data.test_labels)),
    )
    return {"seed": seed, "curve": curve}, learner


def answers(methods: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each part adds, in points: differences paired by seed, and in words.

    Parameters
    ----------
    methods : sequence of dict
        Of a result of :func:`compare`.

    Returns
    -------
    list of dict
        ``question``, ``difference`` and its standard ``error`` in points, ``answer``.
    """
    by_name = {method["name"]: method for method in methods}
    found = []
    for question, first, second in QUESTIONS:
        if first not in by_name or second not in by_name:
            continue
        ends = [[run["curve"][-1] for run in by_name[name]["runs"]] for name in (first, second)]
        differences = [100 * (one - other) for one, other in zip(*ends, strict=True)]
        count = len(differences)
        difference = mean(differences)
        error = stdev(differences) / math.sqrt(count) if count > 1 else math.inf
        found.append(
            {
                "question": question,
                "first": first,
                "second": second,
                "difference": difference,
                "error": error if count > 1 else None,
                "answer": _in_words(difference, error, count),
            }
        )
    return found


def _in_words(difference: float, error: float, seeds: int) -> str:
    if abs(difference) <= 2 * error:
        return f"Nothing that {seeds} seeds can show."
    points = f"{abs(difference):.2f} points"
    return f"{points} more accurate." if difference > 0 else f"{points} less accurate."
