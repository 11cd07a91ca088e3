"""The float32 memory figure, on networks whose bytes can be counted by hand."""

import pytest
import torch
from torch import nn

from weft.train.float_memory import float_memory

pytestmark = pytest.mark.torch


def test_two_dense_layers() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    batch = 4
    memory = float_memory(network, torch.rand(batch, 6), torch.tensor([0, 1, 2, 0]))
    parameters = 4 * (6 * 5 + 5 + 5 * 3 + 3)
    assert memory.parameters == memory.gradients == memory.momentum == parameters
    # The input, ReLU's result (saved by it and by the second layer), log-softmax's result, labels,
    # and the loss's total weight.
    assert memory.kept == 4 * batch * (6 + 5 + 3) + 8 * batch + 4
    # The second layer takes (4, 3) and gives (4, 5); ReLU takes and gives (4, 5).
    assert memory.transient == 4 * batch * (5 + 5)
    assert memory.total == 3 * parameters + memory.kept + memory.transient


def test_a_pool_keeps_its_indices() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten())
    memory = float_memory(network, torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 7]))
    images, convolved, pooled = 3 * 16, 3 * 2 * 16, 3 * 2 * 4
    assert memory.kept == 4 * (images + convolved + pooled) + 8 * pooled + 8 * 3 + 4
    assert memory.transient == 4 * (convolved + pooled)
