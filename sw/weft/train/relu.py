"""ReLU made part of the convolution or sum in front of it."""

from weft.errors import UnsupportedModel
from weft.train.layers import (
    AddLayer,
    AveragePoolLayer,
    ConvolutionLayer,
    Layer,
    MaxPoolLayer,
    Network,
    ReluLayer,
    Value,
)

__all__ = ["fuse_relu"]


def fuse_relu(network: Network) -> None:
    """Make every ReLU part of what computes its input; changes the network.

    Raises
    ------
    UnsupportedModel
        If that is average pooling or the network's input, or also used without ReLU.
    """
    for layer in list(network.layers):
        if isinstance(layer, ReluLayer):
            if not _positive(network, layer.source):
                _rectify(network, layer, layer.source, layer)
            _replace(network, layer.result, layer.source)
            network.layers.remove(layer)


def _positive(network: Network, value: Value) -> bool:
    """Whether no element can be negative."""
    layer = network.producer(value)
    if isinstance(layer, MaxPoolLayer | AveragePoolLayer):
        return _positive(network, layer.source)
    return isinstance(layer, ReluLayer) or getattr(layer, "rectified", False)


def _rectify(network: Network, relu: ReluLayer, value: Value, reader: Layer) -> None:
    """Give ReLU to what computes a value; behind max pooling that is the layer before it."""
    layer = network.producer(value)
    uses = [each for each in network.uses(value) if each is not reader]
    others = value is network.result or not all(isinstance(each, ReluLayer) for each in uses)
    if layer is None:
        raise UnsupportedModel(f"{relu.name}: ReLU of the input: leave it out or scale the input")
    if others:
        raise UnsupportedModel(
            f"{relu.name}: {value.name} is also used without ReLU (pre-activation): apply ReLU to "
            "the result before every use"
        )
    if isinstance(layer, MaxPoolLayer):
        _rectify(network, relu, layer.source, layer)
    elif isinstance(layer, ConvolutionLayer | AddLayer):
        layer.rectified = True
    else:
        raise UnsupportedModel(
            f"{relu.name}: ReLU behind average pooling: put it in front of the pooling"
        )


def _replace(network: Network, old: Value, new: Value) -> None:
    for layer in network.layers:
        if layer.source is old:
            layer.source = new
        if isinstance(layer, AddLayer) and layer.second is old:
            layer.second = new
    if network.result is old:
        network.result = new
