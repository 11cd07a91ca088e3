"""Networks without normalization layers, as ordinary PyTorch modules.

They hold only what integer training supports: convolutions, dense layers, ReLU, pooling whose
stride is its window, residual adds and flattening.
"""

import torch
from torch import Tensor, nn

__all__ = ["DigitsNetwork", "ResidualNetwork"]


class DigitsNetwork(nn.Module):
    """Three convolutions (one of stride 2, one in a residual block), max pooling, two dense layers.

    Takes (N, 1, 8, 8), gives (N, 10); 12,282 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.block = nn.Conv2d(24, 24, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(24 * 2 * 2, 32)
        self.classify = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (N, 1, 8, 8) in [0, 1]."""
        x = torch.relu(self.stem(images))
        x = torch.relu(self.down(x))
        x = torch.relu(x + self.block(x))
        x = torch.flatten(self.pool(x), 1)
        return self.classify(torch.relu(self.hidden(x)))


class _Block(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.shortcut is None else self.shortcut(x)
        return torch.relu(beside + self.second(torch.relu(self.first(x))))


class ResidualNetwork(nn.Module):
    """A residual network of eight weighted layers, with 16, 32 and 64 channels.

    The stem, three blocks of two 3x3 convolutions, average pooling over 8x8 and a dense layer (its
    two 1x1 shortcuts not counted). Takes (N, 3, 32, 32), gives (N, 10); 77,706 parameters.

    It trains without normalization because the last convolution of each block starts small, so
    that a block starts near its shortcut (after Zhang et al., "Fixup Initialization: Residual
    Learning Without Normalization", ICLR 2019; there it starts at zero, which leaves integers
    without a scale).

    Parameters
    ----------
    channels : (int, int, int)
        Of the three blocks.
    """

    START_OF_BRANCH = 0.25
    START_OF_CLASSIFIER = 2.0
    """Of PyTorch's own: means over 64 pixels differ little between pictures."""

    def __init__(self, channels: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        narrow, middle, wide = channels
        self.stem = nn.Conv2d(3, narrow, 3, padding=1)
        self.narrow = _Block(narrow, narrow, 1)
        self.middle = _Block(narrow, middle, 2)
        self.wide = _Block(middle, wide, 2)
        self.pool = nn.AvgPool2d(8)
        self.classify = nn.Linear(wide, 10)
        self._start()

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for block in (self.narrow, self.middle, self.wide):
                block.second.weight.mul_(self.START_OF_BRANCH)
            self.classify.weight.mul_(self.START_OF_CLASSIFIER)
            self.classify.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (N, 3, 32, 32) in [-1, 1]."""
        x = torch.relu(self.stem(images))
        x = self.wide(self.middle(self.narrow(x)))
        return self.classify(torch.flatten(self.pool(x), 1))
