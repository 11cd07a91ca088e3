"""Small PyTorch models with every layer, and each layer's codes beside PyTorch's own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from float_rounding import CLAMPS, DEQUANTIZE, ExactLayer, ForcedCodes, read_layer
from weft.quantize import quantize
from weft.quantize.integer_reference import IntegerReference, layer_name
from weft.quantize.pt2e import torch  # registers the quantized operators

__all__ = ["MODELS", "Dense", "LargeSums", "LayerCodes", "layers_beside_pytorch", "prepared"]

nn, functional = torch.nn, torch.nn.functional

SAMPLES = 32


class Convolutions(nn.Module):
    """Kernels, strides, paddings and channels, one behind the other and side by side."""

    shape = (3, 11, 13)

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(3, 17, 3, padding=1)
        self.stride = nn.Conv2d(17, 16, 3, stride=2, padding=1, bias=False)
        self.point = nn.Conv2d(16, 5, 1)
        self.wide = nn.Conv2d(17, 4, (1, 5), stride=(2, 1), padding=(0, 2))
        self.same = nn.Conv2d(5, 6, (4, 3), padding="same")
        self.valid = nn.Conv2d(6, 33, 2, padding="valid")

    def forward(self, x):
        x = functional.relu(self.square(x))
        y = functional.relu6(self.point(functional.hardtanh(self.stride(x), -0.3, 0.4)))
        return self.wide(x), self.valid(self.same(y))


class Groups(nn.Module):
    """Depthwise, several filters a channel, several channels a group, and dilation."""

    shape = (6, 11, 12)

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.stride = nn.Conv2d(6, 6, (3, 5), stride=(2, 1), padding=(0, 2), groups=6, dilation=2)
        self.filters = nn.Conv2d(6, 24, 3, groups=6, bias=False)
        self.groups = nn.Conv2d(24, 12, 3, padding="same", groups=4, dilation=(1, 2))
        self.wide = nn.Conv2d(24, 5, 3, dilation=2, padding=3)

    def forward(self, x):
        x = functional.relu(self.depthwise(x))
        y = self.filters(x)
        return self.stride(x), self.groups(y), functional.relu6(self.wide(y))


class Residual(nn.Module):
    """Additions of unequal scales, with or without ReLU, of a value to itself, of a constant."""

    shape = (4, 9, 9)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.third = nn.Conv2d(12, 12, 1)
        self.offset = nn.Parameter(torch.linspace(-2, 1, 12 * 9 * 9).reshape(1, 12, 9, 9))

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        y = functional.relu(x + self.second(x))
        z = self.third(y) + y
        return z + z, torch.clamp(z + x, -0.5, 0.75), x + self.offset


class Pools(nn.Module):
    """Every pool, whole and with borders, and clamps of their own."""

    shape = (7, 10, 12)

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(7, 7, 1)

    def forward(self, x):
        y = functional.relu(functional.max_pool2d(self.convolution(x), 3, 2, 1))
        counted = functional.avg_pool2d(x, (2, 3), (2, 3))
        border = functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        padded = functional.avg_pool2d(x, 3, 2, 1)
        return y, counted, border, padded, x.mean((2, 3)), functional.adaptive_avg_pool2d(y, 1)


class Dense(nn.Module):
    """A flattened image into dense layers."""

    shape = (6, 5, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(120, 33)
        self.second = nn.Linear(33, 10, bias=False)

    def forward(self, x):
        x = functional.relu(self.first(torch.flatten(x, 1)))
        return self.second(functional.dropout(x, training=self.training))


class LargeSums(nn.Module):
    """Sums beyond 2^24, where float32 does not hold every integer."""

    shape = (4000,)

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4000, 300)
        with torch.no_grad():
            self.dense.weight.copy_(self.dense.weight.abs() + 0.05)

    def forward(self, x):
        return self.dense(x)


MODELS = (Convolutions, Groups, Residual, Pools, Dense, LargeSums)


def prepared(kind: type, seed: int):
    """A quantized model with random weights, and samples (N, ...) to run."""
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_()
    draw = torch.rand if kind is LargeSums else torch.randn
    batches = [draw(SAMPLES, *kind.shape) for _ in range(4)]
    return quantize(model, (batches[0],), batches[1:]), batches[0].numpy()


@dataclass(frozen=True)
class LayerCodes:
    """A layer's codes by the integer rules and by PyTorch's float32 graph, on the same inputs.

    ``exact`` is None for an input of the model.
    """

    name: str
    operator: str
    exact: ExactLayer | None
    integer: np.ndarray
    floating: np.ndarray


def layers_beside_pytorch(model: Any, samples: np.ndarray) -> Iterator[LayerCodes]:
    """Every layer of a converted graph, each on the integer reference's codes of its inputs."""
    codes = IntegerReference(model).layers(samples)
    forced = ForcedCodes(model, codes, layer_name)
    with torch.no_grad():
        forced.run(torch.from_numpy(samples))
    by_node = {node: codes[layer_name(node)] for node in forced.own}
    assert len(by_node) == len(codes) > 1
    for node, own in forced.own.items():
        layer = read_layer(model, node, by_node)
        yield LayerCodes(layer_name(node), _operator(node), layer, by_node[node], own)


def _operator(quantize: Any) -> str:
    """PyTorch's name of what a quantize node's value is computed by, clamps behind it aside."""
    node = quantize.args[0]
    while node.target in CLAMPS and node.args[0].target is not DEQUANTIZE:
        node = node.args[0]
    return str(node.target).split(".")[1] if node.op == "call_function" else "quantize"
