"""Integer training by the fast engine learns the digits, with every method."""

import math

import numpy as np
import pytest
import torch

from training_networks import DigitsNetwork, digit_codes, one_hot
from weft.demo.data import load_digits
from weft.train.fast import FastEngine
from weft.train.module import training_step
from weft.train.state import Rates

pytestmark = pytest.mark.torch

BATCH, EPOCHS = 32, 3


@pytest.mark.parametrize(
    ("method", "exponents", "least"),
    [("octo", "delayed", 0.93), ("int8", "own", 0.93), ("shared", "own", 0.40)],
)
def test_learns_the_digits(method: str, exponents: str, least: float) -> None:
    """After three epochs accuracy is far above chance (10 %)."""
    digits = load_digits()
    train, test = digit_codes(digits)
    targets = one_hot(digits.train_labels)
    torch.manual_seed(0)
    step, parameters = training_step(
        DigitsNetwork(), torch.zeros(BATCH, 1, 8, 8), method, exponents=exponents
    )
    engine, state = FastEngine(step), parameters.state(step)
    steps = len(train) // BATCH
    for number in range(EPOCHS * steps):
        epoch, place = divmod(number, steps)
        order = np.random.default_rng([0, epoch]).permutation(len(train))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        done = number / (EPOCHS * steps)
        rates = Rates.of(BATCH, 0.05 * (1 + math.cos(math.pi * done)), bits=2 if done < 0.5 else 1)
        batch = (train[chosen], targets[chosen], rates, 0, number)
        if number == 0:
            state = engine.first_largest(state, *batch)
        state, _ = engine.run(state, *batch)
    logits, _ = engine.evaluate(state, test)
    assert (logits.argmax(axis=1) == digits.test_labels).mean() > least
