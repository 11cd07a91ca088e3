"""Networks that tests of training use, as users would write them, and the digits as codes."""

import numpy as np
import torch
from torch import nn

from weft.demo.data import Digits

__all__ = ["DigitsNetwork", "digit_codes", "one_hot"]


class DigitsNetwork(nn.Module):
    """Three convolutions (one with stride 2, one in a residual block), pooling, one dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.block = nn.Conv2d(32, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.classify = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(images))
        x = torch.relu(self.down(x))
        x = torch.relu(x + self.block(x))
        return self.classify(torch.flatten(self.pool(x), 1))


def digit_codes(digits: Digits) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes (N, 8, 8, 1) of the training and the held-out images, by the doc's rule."""
    train, test = (
        np.clip(np.rint(images * 128), -127, 127).astype(np.int8).transpose(0, 2, 3, 1)
        for images in (digits.train_images, digits.test_images)
    )
    return train, test


def one_hot(labels: np.ndarray, classes: int = 10) -> np.ndarray:
    """int8 targets (N, classes): 127 at the label."""
    return np.eye(classes, dtype=np.int8)[labels] * np.int8(127)
