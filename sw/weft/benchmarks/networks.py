"""Synthetic networks of known size; their weights come from a fixed seed."""

import numpy as np

from weft.ir import Add, AveragePool2d, Conv2d, Flatten, Graph, Linear, Operation, Tensor

__all__ = ["residual_network"]

SCALE = 0.05


class _Builder:
    """Appends operations to a chain and keeps the list of tensors."""

    def __init__(self, height: int, width: int, channels: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.origin = f"residual network of seed {seed}"
        self.tensors = [
            Tensor(name="image", shape=(height, width, channels), scale=SCALE, zero_point=-5)
        ]
        self.operations: list[Operation] = []

    @property
    def last(self) -> Tensor:
        """The most recent result."""
        return self.tensors[-1]

    def result(self, name: str, shape: tuple[int, ...]) -> str:
        """Declare the next result."""
        self.tensors.append(Tensor(name=name, shape=shape, scale=SCALE, zero_point=-5))
        return name

    def convolution(self, name: str, channels: int, stride: int = 1, relu: bool = True) -> None:
        """A 3x3 convolution whose outputs keep about the variance of its inputs."""
        source = self.last
        height, width, depth = source.shape
        shape = ((height - 1) // stride + 1, (width - 1) // stride + 1, channels)
        weights = self.rng.integers(-127, 128, (channels, 3, 3, depth)).astype(np.int8)
        self.operations.append(
            Conv2d(
                name=name,
                source=f"{self.origin}, {name}",
                inputs=(source.name,),
                output=self.result(f"{name}.output", shape),
                weights=weights,
                weight_scales=np.full(channels, 1 / (73 * np.sqrt(9 * depth))),
                bias=self.rng.integers(-2000, 2000, channels).astype(np.int32),
                stride=(stride, stride),
                padding=((1, 1), (1, 1)),
                clamp=(-5 if relu else -128, 127),
            )
        )

    def add(self, name: str, other: str) -> None:
        """Residual sum with a ReLU."""
        source = self.last
        self.operations.append(
            Add(
                name=name,
                source=f"{self.origin}, {name}",
                inputs=(source.name, other),
                output=self.result(f"{name}.output", source.shape),
                clamp=(-5, 127),
            )
        )

    def classify(self, classes: int) -> None:
        """Global average pool and a dense layer."""
        height, width, depth = self.last.shape
        self.operations.append(
            AveragePool2d(
                name="pool",
                source=f"{self.origin}, pool",
                inputs=(self.last.name,),
                output=self.result("pool.output", (1, 1, depth)),
                kernel=(height, width),
                stride=(height, width),
            )
        )
        self.operations.append(
            Flatten(
                name="flatten",
                source=f"{self.origin}, flatten",
                inputs=("pool.output",),
                output=self.result("flatten.output", (depth,)),
            )
        )
        self.operations.append(
            Linear(
                name="dense",
                source=f"{self.origin}, dense",
                inputs=("flatten.output",),
                output=self.result("dense.output", (classes,)),
                weights=self.rng.integers(-127, 128, (classes, depth)).astype(np.int8),
                weight_scales=np.full(classes, 0.01 / np.sqrt(depth)),
            )
        )


def residual_network(
    side: int, widths: tuple[int, ...], *, channels: int = 3, seed: int = 0
) -> Graph:
    """A residual network in the manner of ResNet-8: a stem, one block a width, a dense layer.

    Parameters
    ----------
    side : int
        Height and width of the input image.
    widths : tuple of int
        Channels of each block; every block but the first halves the image.
    channels : int
        Channels of the input image.
    seed : int
        Seed of the weights.
    """
    builder = _Builder(side, side, channels, seed)
    builder.convolution("stem", widths[0])
    for number, width in enumerate(widths):
        if number:
            builder.convolution(f"block{number}.down", width, stride=2)
        shortcut = builder.last.name
        builder.convolution(f"block{number}.first", width)
        builder.convolution(f"block{number}.second", width, relu=False)
        builder.add(f"block{number}.add", shortcut)
    builder.classify(10)
    return Graph(
        name=f"residual{side}",
        tensors=tuple(builder.tensors),
        inputs=("image",),
        outputs=("dense.output",),
        operations=tuple(builder.operations),
    )
