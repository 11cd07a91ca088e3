"""What the front end reads out of a PyTorch module: layers that the training step knows.

Shapes are (height, width, channels) of one sample; a vector is an image of one pixel.
"""

from dataclasses import dataclass, field

from weft.train.step import Geometry

__all__ = [
    "AddLayer",
    "AveragePoolLayer",
    "ConvolutionLayer",
    "Layer",
    "MaxPoolLayer",
    "Network",
    "ReluLayer",
    "Value",
]


@dataclass(eq=False)
class Value:
    """What a layer computes."""

    name: str
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Elements of one sample."""
        height, width, channels = self.shape
        return height * width * channels


@dataclass(eq=False)
class ConvolutionLayer:
    """A convolution or a dense layer; ``weight`` and ``bias`` are names of the state_dict."""

    name: str
    source: Value
    result: Value
    weight: str
    bias: str | None
    geometry: Geometry
    rectified: bool = False


@dataclass(eq=False)
class MaxPoolLayer:
    """Stride = window, whole windows."""

    name: str
    source: Value
    result: Value
    window: tuple[int, int]


@dataclass(eq=False)
class AveragePoolLayer:
    """Stride = window, whole windows."""

    name: str
    source: Value
    result: Value
    window: tuple[int, int]


@dataclass(eq=False)
class AddLayer:
    """A residual sum."""

    name: str
    source: Value
    second: Value
    result: Value
    rectified: bool = False


@dataclass(eq=False)
class ReluLayer:
    """Gone when the network is complete: part of what computes its source."""

    name: str
    source: Value
    result: Value


Layer = ConvolutionLayer | MaxPoolLayer | AveragePoolLayer | AddLayer | ReluLayer


@dataclass
class Network:
    """Layers in the order of execution."""

    source: Value
    result: Value
    layers: list[Layer] = field(default_factory=list)

    def uses(self, value: Value) -> list[Layer]:
        """The layers that read a value, once for each operand."""
        return [layer for layer in self.layers for operand in operands(layer) if operand is value]

    def producer(self, value: Value) -> Layer | None:
        """The layer that computes a value; None for the network's input."""
        return next((layer for layer in self.layers if layer.result is value), None)


def operands(layer: Layer) -> tuple[Value, ...]:
    """The values that a layer reads."""
    return (layer.source, layer.second) if isinstance(layer, AddLayer) else (layer.source,)
