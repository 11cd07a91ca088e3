"""The integer softmax's gradient: close to the real one, and the same on the machine."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from weft_hw.config import load_config
from weft_hw.training import LOSS_EXPONENT, loss_gradient

torch = pytest.importorskip("torch")
from torch import nn

import weft.train
from weft.train.data import target_codes
from weft.train.machine.engine import MachineEngine
from weft.train.state import Rates

pytestmark = pytest.mark.torch

CLASSES = (2, 3, 10, 17, 100, 256)


def float_gradient(
    logits: NDArray[np.int64], exponent: int, labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """By autograd of PyTorch's cross-entropy."""
    values = torch.from_numpy(np.ldexp(logits.astype(np.float64), exponent)).requires_grad_()
    nn.functional.cross_entropy(values, torch.from_numpy(labels), reduction="sum").backward()
    assert values.grad is not None
    found: NDArray[np.float64] = -values.grad.numpy()
    return found


def cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("classes", CLASSES)
def test_close_to_cross_entropy(rng: np.random.Generator, classes: int) -> None:
    """In direction over a batch, and for every sample alone, sure ones and wrong ones."""
    for exponent in range(-8, 0):
        logits = rng.integers(-127, 128, (50, classes))
        labels = np.where(rng.random(50) < 0.7, logits.argmax(1), rng.integers(0, classes, 50))
        found = loss_gradient(logits, exponent, target_codes(labels, classes))
        assert np.array_equal(found.sum(axis=1), np.zeros(50))
        assert (found[np.arange(50), labels] >= 0).all()
        real = float_gradient(logits, exponent, labels)
        ours = np.ldexp(found.astype(np.float64), LOSS_EXPONENT)
        assert cosine(ours, real) > (0.995 if classes <= 100 else 0.985)
        for mine, right in zip(ours, real, strict=True):
            if right.max() > 2.0**-9:  # else rounding to the unit is what one sees
                assert cosine(mine, right) > 0.998


@pytest.mark.parametrize(("exponent", "largest"), [(-31, 0.5), (0, 1.0), (20, 1.0)])
def test_extreme_exponents(exponent: int, largest: float) -> None:
    """Logits that are all alike, or infinitely far apart."""
    logits = np.array([[127, -127], [-127, 127]])
    found = loss_gradient(logits, exponent, target_codes([1, 1], 2))
    expected = np.ldexp(float_gradient(logits, exponent, np.array([1, 1])), -LOSS_EXPONENT)
    assert np.abs(found).max() == largest * 2**-LOSS_EXPONENT
    assert np.allclose(found, expected, atol=1)


@pytest.mark.parametrize("config", ["tiny", "edge8", "base16"])
@pytest.mark.parametrize("classes", CLASSES)
def test_the_same_on_the_machine(rng: np.random.Generator, classes: int, config: str) -> None:
    """Batches of less than a block of samples, of exactly one, of several and a rest."""
    # Banks into which a row a class fits.
    rows = max(load_config(config).accumulator_rows, 512)
    machine = dataclasses.replace(load_config(config), accumulator_rows=rows)
    for batch in (1, machine.rows, 2 * machine.rows + 3):
        seed = int(rng.integers(1 << 30))
        print(f"seed {seed}, batch {batch}")
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(9, classes, bias=False))
        with torch.no_grad():
            module[1].weight *= 2.0 ** float(rng.integers(-2, 5))
        trainer = weft.train.compile(module, torch.zeros(batch, 1, 3, 3), machine, method="int8")
        images = rng.integers(-127, 128, (batch, 3, 3, 1)).astype(np.int8)
        labels = rng.integers(0, classes, batch)
        given = images, target_codes(labels, classes), Rates.of(batch, 0.1), seed, 0
        step, state = trainer.training_step, trainer.state
        expected, _ = trainer.fast.run(state, *given)
        with MachineEngine(step, machine) as engine:
            found, _ = engine.run(state, *given)
        assert expected.difference(found) is None
