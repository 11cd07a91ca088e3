"""Integer gradients point where float64 autograd's do, on the same quantized forward pass."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from weft.train import compile as compile_training
from weft.train.data import digits, target_codes
from weft.train.networks import DigitsNetwork
from weft.train.parameters import from_torch_layout
from weft.train.trainer import Trainer

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

BATCH, BATCHES, LEAST = 64, 10, 0.99
EPOCHS = {"start": 0, "on the way": 2, "trained": 13}


def replaced(value: torch.Tensor, quantized: np.ndarray) -> torch.Tensor:
    """The quantized value, with the gradient of the float one, and ReLU's where it is 0."""
    codes = torch.from_numpy(quantized).permute(0, 3, 1, 2)
    return value + (codes - value).detach()


def rectified(value: torch.Tensor, quantized: np.ndarray) -> torch.Tensor:
    positive = torch.from_numpy(quantized).permute(0, 3, 1, 2) > 0
    return replaced(value * positive, quantized)


def autograd_gradients(
    trainer: Trainer, images: np.ndarray, labels: np.ndarray, found: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Of the summed loss, by parameter; every layer starts from the engine's codes."""
    state, step = trainer.state, trainer.training_step
    leaves: dict[str, Any] = {}
    for name, values in trainer.state_dict().items():
        leaves[name] = values.double().requires_grad_()
    for parameter in step.parameters():
        if parameter.name.endswith("weight"):  # codes, where state_dict has the finer masters
            shape = leaves[parameter.name].shape
            codes = torch.from_numpy(state.codes[parameter.name].astype(np.float64))
            codes = codes.permute(3, 2, 0, 1).reshape(shape) * 2.0**parameter.exponent
            leaves[parameter.name] = codes.clone().requires_grad_()

    def convolution(name: str, x: torch.Tensor, **geometry: int) -> torch.Tensor:
        return functional.conv2d(x, leaves[f"{name}.weight"], leaves[f"{name}.bias"], **geometry)

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        flat = functional.linear(x.flatten(1), leaves[f"{name}.weight"], leaves[f"{name}.bias"])
        return flat[:, :, None, None]

    x = torch.from_numpy(images / 128.0).permute(0, 3, 1, 2)
    x = rectified(convolution("stem", x, padding=1), found["stem"])
    x = rectified(convolution("down", x, padding=1, stride=2), found["down"])
    block = replaced(convolution("block", x, padding=1), found["block"])
    x = functional.max_pool2d(rectified(x + block, found["add"]), 2)
    x = rectified(dense("hidden", x), found["hidden"])
    logits = replaced(dense("classify", x), found["classify"])
    loss = functional.cross_entropy(logits[:, :, 0, 0], torch.from_numpy(labels), reduction="sum")
    loss.backward()
    return {
        parameter.name: from_torch_layout(leaves[parameter.name].grad, parameter.shape)
        for parameter in step.parameters()
        if not parameter.name.endswith("compensation")
    }


@pytest.mark.parametrize("method", ["int8", "octo", "shared"])
def test_gradients_agree_with_autograd(method: str) -> None:
    """Cosine of every layer's gradient, mean of ten batches, at the start and later."""
    data = digits()
    torch.manual_seed(0)
    trainer = compile_training(
        DigitsNetwork(), torch.zeros(BATCH, 1, 8, 8), "tiny", method=method, schedule=0.05
    )
    x = data.train_images.transpose(0, 3, 1, 2)
    for phase, epochs in EPOCHS.items():
        for _ in range(epochs):
            for _ in trainer.epoch(x, data.train_labels):
                pass
        cosines = defaultdict(list)
        for number in range(BATCHES):
            place = slice(number * BATCH, (number + 1) * BATCH)
            images, labels = data.train_images[place], data.train_labels[place]
            tensors, gradients = trainer.fast.values(
                trainer.state, images, target_codes(labels, 10), 7, number
            )
            expected = autograd_gradients(trainer, images, labels, tensors)
            layers = defaultdict(list)
            for name in expected:
                layers[name.rsplit(".", 1)[0]].append(name)
                layers[name].append(name)
            for layer, names in layers.items():
                ours, right = (
                    np.concatenate([each[name].ravel() for name in names])
                    for each in (gradients, expected)
                )
                norms = np.linalg.norm(ours) * np.linalg.norm(right)
                cosines[layer].append(-float(ours @ right) / norms)
        means = {name: float(np.mean(values)) for name, values in cosines.items()}
        print(method, phase, {name: round(mean, 4) for name, mean in means.items()})
        # Of layers and their weights; a bias gradient alone is a sum of much that cancels.
        whole = {name: mean for name, mean in means.items() if not name.endswith("bias")}
        assert min(whole.values()) >= LEAST, (phase, means)
