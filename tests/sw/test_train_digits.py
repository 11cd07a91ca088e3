"""Integer training learns the digits, with every method."""

import pytest
import torch

from weft.train import Schedule, cosine, falling_bits
from weft.train import compile as compile_training
from weft.train.data import digits
from weft.train.networks import DigitsNetwork

pytestmark = pytest.mark.torch

BATCH, EPOCHS = 32, 4


@pytest.mark.parametrize(
    ("method", "exponents", "least"),
    [("octo", "delayed", 0.9), ("int8", "own", 0.9), ("shared", "own", 0.8)],
)
def test_learns_the_digits(method: str, exponents: str, least: float) -> None:
    """After four epochs accuracy is far above chance (10 %)."""
    data = digits()
    images, test = (each.transpose(0, 3, 1, 2) for each in (data.train_images, data.test_images))
    steps = EPOCHS * (len(images) // BATCH)
    torch.manual_seed(0)
    trainer = compile_training(
        DigitsNetwork(),
        torch.zeros(BATCH, 1, 8, 8),
        method=method,
        exponents=exponents,
        schedule=Schedule(cosine(0.1, steps), bits=falling_bits(steps)),
    )
    reports = [report for _ in range(EPOCHS) for report in trainer.epoch(images, data.train_labels)]
    assert len(reports) == trainer.number == steps
    found = trainer.evaluate(test, data.test_labels)
    print(method, exponents, found)
    assert found.accuracy > least
    assert reports[-1].loss < reports[0].loss
