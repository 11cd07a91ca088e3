"""Modules as users write them become training steps; the rest is refused by name."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from weft.errors import UnsupportedModel
from weft.train.data import input_codes, target_codes
from weft.train.fast import FastEngine
from weft.train.module import training_step
from weft.train.step import (
    Add,
    AveragePoolGradient,
    Convolution,
    DataGradient,
    Mask,
    MaxPoolGradient,
    TrainingStep,
    WeightGradient,
)

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


class Written(nn.Module):
    """Layers, and a forward pass given as a function of the module and its input."""

    def __init__(
        self, forward: Callable[["Written", torch.Tensor], torch.Tensor], **layers: nn.Module
    ) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def residual(m: Written, x: torch.Tensor) -> torch.Tensor:
    x = functional.relu(m.first(x), inplace=True)
    y = m.second(x)
    y += m.shortcut(x)
    x = y.relu_()
    return m.dense(x.mean([2, 3]))


def pre_pooled(m: Written, x: torch.Tensor) -> torch.Tensor:
    x = functional.relu(m.pool(m.first(x)))  # ReLU behind max pooling is ReLU in front of it
    return m.dense(m.average(x).view(x.shape[0], -1))


def twice(m: Written, x: torch.Tensor) -> torch.Tensor:
    x = torch.relu(m.first(x))
    return m.dense(torch.flatten(functional.max_pool2d(x + x, 2), 1))


SUPPORTED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "odd geometry": (
        nn.Sequential(
            nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 3)),
            nn.ReLU(),
            nn.Identity(),
            nn.Dropout(0.0),
            nn.Flatten(),
            nn.Linear(5 * 5 * 7, 6, bias=False),
            nn.ReLU(),
            nn.Linear(6, 4),
        ),
        (9, 10),
    ),
    "residual": (
        Written(
            residual,
            first=nn.Conv2d(3, 4, 3, padding="same", bias=False),
            second=nn.Conv2d(4, 6, 3, stride=2, padding=1),
            shortcut=nn.Conv2d(4, 6, 1, stride=2),
            dense=nn.Linear(6, 4),
        ),
        (8, 6),
    ),
    "pooling": (
        Written(
            pre_pooled,
            first=nn.Conv2d(3, 4, 3, padding=1),
            pool=nn.MaxPool2d((3, 2)),
            average=nn.AvgPool2d(2),
            dense=nn.Linear(4 * 2 * 1, 4),
        ),
        (13, 7),
    ),
    "one value twice": (
        Written(twice, first=nn.Conv2d(3, 4, 1), dense=nn.Linear(4 * 9, 4)),
        (7, 6),
    ),
    "convolutions only": (
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        (6, 6),
    ),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_trains_what_it_supports(name: str) -> None:
    """Forward as the module's own (to int8); trained weights have less loss in the module too."""
    module, (height, width) = SUPPORTED[name]
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.4, 0.4)
    generator = np.random.default_rng(5)
    images = generator.uniform(-1, 1, (16, 3, height, width)).astype(np.float32)
    before = copy.deepcopy(module.state_dict())
    step, parameters = training_step(module, torch.zeros(16, 3, height, width), "int8")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    state = parameters.state(step)
    assert {key: value.shape for key, value in parameters.to_torch(state).items()} == {
        key: tuple(value.shape) for key, value in before.items()
    }
    engine = FastEngine(step)
    codes = input_codes(images).transpose(0, 2, 3, 1)
    labels = generator.integers(0, 4, 16)
    tensors, _ = engine.values(state, codes, target_codes(labels, 4), 0, 0)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    logits = tensors[step.logits.name][:, 0, 0]
    assert np.abs(logits - expected).max() < 0.06 * np.abs(expected).max()

    from weft.train.state import Rates

    for number in range(30):
        rates = Rates.of(16, 0.02)
        state, _ = engine.run(state, codes, target_codes(labels, 4), rates, 3, number)

    def loss() -> float:
        with torch.no_grad():
            result = module(torch.from_numpy(images))
            return float(functional.cross_entropy(result, torch.from_numpy(labels)))

    first = loss()
    trained = {key: torch.from_numpy(v) for key, v in parameters.to_torch(state).items()}
    module.load_state_dict(trained)
    assert loss() < first - 0.02


def operations(step: TrainingStep, *kinds: type) -> list[object]:
    return [operation for operation in step.operations if isinstance(operation, kinds)]


def test_the_backward_pass_has_what_is_needed_and_no_more() -> None:
    """Sums for two uses, masks by ReLU, no data gradient of the first layer, unique numbers."""
    module, (height, width) = SUPPORTED["residual"]
    step, _ = training_step(module, torch.zeros(2, 3, height, width), "octo", exponents="delayed")
    assert len(operations(step, WeightGradient)) == 4
    gradients = [each.result.name for each in operations(step, DataGradient)]
    assert gradients == ["mean.gradient", "first.gradient.1", "first.gradient.2"]
    forward, backward = operations(step, Add)
    assert forward.rectified and backward.mask is not None and backward.mask.name == "first"
    (spread,) = operations(step, AveragePoolGradient)
    assert spread.mask is not None and spread.mask.name == forward.result.name
    assert not operations(step, Mask)
    # The loss gradient has an exponent of its own, always.
    assert [each.name for each in step.quantizers() if not each.delayed] == ["loss"]
    assert [each.name for each in step.quantizers() if each.clipped] == [
        each.quantizer.name for each in operations(step, DataGradient, Add) if each is not forward
    ]
    numbers = [each.number for each in step.quantizers()]
    numbers += [number for parameter in step.parameters() for number in parameter.numbers]
    assert sorted(numbers) == list(range(len(numbers)))
    names = [operation.result.name for operation in operations(step, Convolution, Add)]
    assert len(set(names)) == len(names)


def test_relu_before_max_pooling_is_taken_from_the_pool() -> None:
    module, (height, width) = SUPPORTED["pooling"]
    step, _ = training_step(module, torch.zeros(2, 3, height, width), "int8")
    (convolution, _) = operations(step, Convolution)
    assert convolution.rectified
    (spread,) = operations(step, AveragePoolGradient)
    assert spread.mask is not None and spread.mask.name == "pool"
    (scattered,) = operations(step, MaxPoolGradient)
    assert scattered.gradient.exponent.offset == math.log2(1 / 4)


def linear(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return layer(x.flatten(1))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "batch normalization": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 4)),
        r"^1\b.*batch normalization.*bias",
    ),
    "overlapping pooling": (
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(27, 4)),
        r"^0\b.*overlapping.*stride = kernel",
    ),
    "padded pooling": (
        nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(75, 4)),
        r"^0\b.*padding=0",
    ),
    "softmax": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Softmax(1)),
        r"^2\b.*leave it out",
    ),
    "groups": (
        nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten(), nn.Linear(192, 4)),
        r"^0\b.*groups=1",
    ),
    "dropout": (
        nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4)),
        r"^1\b.*p=0",
    ),
    "another activation": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.GELU(), nn.Linear(4, 4)),
        r"^2\b.*ReLU",
    ),
    "shared weights": (
        Written(
            lambda m, x: m.dense(m.first(m.first(x)).flatten(1)),
            first=nn.Conv2d(3, 3, 1),
            dense=nn.Linear(192, 4),
        ),
        r"shares first\.weight",
    ),
    "pre-activation": (
        Written(
            lambda m, x: m.dense((lambda y: m.second(y.relu()) + y)(m.first(x)).flatten(1)),
            first=nn.Conv2d(3, 3, 1),
            second=nn.Conv2d(3, 3, 1),
            dense=nn.Linear(192, 4),
        ),
        r"first is also used without ReLU",
    ),
    "ReLU behind average pooling": (
        Written(
            lambda m, x: m.dense(functional.avg_pool2d(m.first(x), 2).relu().flatten(1)),
            first=nn.Conv2d(3, 3, 1),
            dense=nn.Linear(48, 4),
        ),
        r"in front of the pooling",
    ),
    "joined tensors": (
        Written(
            lambda m, x: m.dense(torch.cat([m.first(x), x], 1).flatten(1)),
            first=nn.Conv2d(3, 3, 1),
            dense=nn.Linear(384, 4),
        ),
        r"aten\.cat.*residual addition",
    ),
    "broadcast": (
        Written(
            lambda m, x: m.dense((m.first(x) + x.mean((2, 3), keepdim=True)).flatten(1)),
            first=nn.Conv2d(3, 3, 1),
            dense=nn.Linear(192, 4),
        ),
        r"adds shapes",
    ),
    "images as logits": (nn.Conv2d(3, 4, 1), r"logits of shape"),
    "two results": (
        Written(lambda m, x: (m.dense(x.flatten(1)), x), dense=nn.Linear(192, 4)),
        r"returns 2 tensors",
    ),
    "nothing to train": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"nothing to train"),
    "control flow": (
        Written(
            lambda m, x: m.dense(x.flatten(1)) if x.sum() > 0 else m.dense(-x.flatten(1)),
            dense=nn.Linear(192, 4),
        ),
        r"torch\.export cannot read",
    ),
    "overflow": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 140_000), nn.Linear(140_000, 4)),
        r"^2: sums of 140,000 products",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name(name: str) -> None:
    module, text = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=text):
        training_step(module, torch.zeros(2, 3, 8, 8), "int8")


def test_batches_whose_weight_gradients_overflow() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    training_step(module, torch.zeros(133_144 // 64, 1, 8, 8), "int8")
    with pytest.raises(UnsupportedModel, match="smaller batch"):
        training_step(module, torch.zeros(133_144 // 64 + 1, 1, 8, 8), "int8")
    with pytest.raises(UnsupportedModel, match="30 bits.*smaller batch|smaller batch"):
        training_step(module, torch.zeros(133_144 // 64 + 1, 1, 8, 8), "octo")


@pytest.mark.parametrize("shape", [(8,), (8, 3, 4), (1, 8, 3, 4, 4)])
def test_inputs_are_images_or_vectors(shape: tuple[int, ...]) -> None:
    """Told before the module is run on what it was not made for."""
    with pytest.raises(UnsupportedModel, match=r"give \(N, C, H, W\) or \(N, features\)"):
        training_step(SUPPORTED["residual"][0], torch.zeros(shape), "int8")
