"""The demonstration's network: a small residual CNN for scikit-learn's 8x8 digits."""

import numpy as np
import torch
from torch import nn

from weft.demo.data import Digits

__all__ = ["DigitsNetwork", "accuracy", "train"]

EPOCHS = 40
BATCH = 64


class DigitsNetwork(nn.Module):
    """Three convolutions (one with stride 2, one in a residual block), pooling, one dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(32)
        self.block = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.block_norm = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2)
        self.classify = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (N, 10) of images (N, 1, 8, 8)."""
        x = torch.relu(self.stem_norm(self.stem(images)))
        x = torch.relu(self.down_norm(self.down(x)))
        x = torch.relu(x + self.block_norm(self.block(x)))
        return self.classify(torch.flatten(self.pool(x), 1))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest score is at the label."""
    return float((scores.argmax(axis=1) == labels).mean())


def train(digits: Digits, seed: int = 0) -> nn.Module:
    """The network, trained on the training images (Adam, cosine schedule, fixed seed)."""
    torch.manual_seed(seed)
    network = DigitsNetwork()
    images = torch.from_numpy(digits.train_images)
    labels = torch.from_numpy(digits.train_labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            optimizer.zero_grad()
            loss_function(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        schedule.step()
    return network.eval()
