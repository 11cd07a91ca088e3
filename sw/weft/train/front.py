"""An unedited PyTorch module as layers of the training step.

The module is exported with ``torch.export``, which leaves one graph of ATen operators however it
was written (modules, functions, methods, operators, in place or not). Nothing is approximated:
what the step does not have is refused, by the layer's name and with the nearest form that it has.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from weft.errors import UnsupportedModel
from weft.frontends.pytorch_nodes import arguments, display_name, operator, refuse
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
from weft.train.relu import fuse_relu
from weft.train.step import Geometry

__all__ = ["network_of"]

LARGEST_MAX_WINDOW = 128

ADVICE = {
    "batch_norm": "batch normalization is not trained in integers: leave it out and give the "
    "convolution in front of it a bias (or fold it into that convolution)",
    "group_norm": "normalization is not trained in integers: leave it out",
    "layer_norm": "normalization is not trained in integers: leave it out",
    "softmax": "leave it out: the loss contains the softmax, the module returns logits",
    "cross_entropy": "leave the loss out: the module returns logits",
    "sigmoid": "the activation function is ReLU",
    "tanh": "the activation function is ReLU",
    "gelu": "the activation function is ReLU",
    "silu": "the activation function is ReLU",
    "leaky_relu": "the activation function is ReLU",
    "hardtanh": "the activation function is ReLU (without an upper bound)",
    "relu6": "the activation function is ReLU (without an upper bound)",
    "matmul": "use a Linear layer",
    "cat": "tensors are joined by residual addition only",
    "conv1d": "use Conv2d with a kernel of height 1",
    "sub": "the only arithmetic between tensors is the residual addition",
    "mul": "the only arithmetic between tensors is the residual addition",
}


def network_of(module: Any, example: Any) -> Network:
    """The layers of a module, with ReLU part of the layer in front of it.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    example : float tensor (N, C, H, W) or (N, F)

    Raises
    ------
    UnsupportedModel
        If it holds what the training step does not have; the message names the layer.
    """
    if example.ndim not in (2, 4):
        raise UnsupportedModel(
            f"inputs of shape {tuple(example.shape)}: give (N, C, H, W) or (N, features)"
        )
    try:
        exported = torch.export.export(copy.deepcopy(module).train(), (example,))
    except Exception as error:  # whatever torch.export meets in foreign code
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModel(
            f"{type(module).__name__}: torch.export cannot read the module for an input of shape "
            f"{tuple(example.shape)}: {first}"
        ) from error
    network = _Reader(exported).network()
    fuse_relu(network)
    return network


@dataclass(frozen=True)
class _Operand:
    """A value as a node sees it: an image, or ``flat``, a vector in PyTorch's order C, H, W."""

    value: Value
    flat: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.value.shape


class _Reader:
    """One walk over the exported graph; ``values`` holds what each node stands for."""

    def __init__(self, exported: Any) -> None:
        self.nodes = list(exported.graph.nodes)
        self.parameters: dict[str, str] = exported.graph_signature.inputs_to_parameters
        self.buffers: dict[str, str] = exported.graph_signature.inputs_to_buffers
        self.values: dict[Any, _Operand | str] = {}
        self.layers: list[Layer] = []
        self.names: set[str] = {"input", "target", "loss"}

    def network(self) -> Network:
        """The whole graph's."""
        needed = self._needed()
        source = None
        for node in self.nodes:
            if node.op == "placeholder":
                if node.name in self.parameters:
                    self.values[node] = self.parameters[node.name]
                elif node.name not in self.buffers:
                    source = self.values[node] = _input(node)
            elif node.op == "call_function" and node in needed:
                self._visit(node)
        (output,) = (node for node in self.nodes if node.op == "output")
        results = output.args[0]
        if len(results) != 1:
            raise UnsupportedModel(
                f"the module returns {len(results)} tensors: return the logits alone"
            )
        result = self.values.get(results[0])
        if not isinstance(result, _Operand) or not result.flat or source is None:
            refuse(results[0], "the module must return logits of shape (batch, classes)")
        if result.shape[:2] != (1, 1):
            refuse(results[0], "ends in a flattened image: end in a Linear layer or a mean")
        if not 2 <= result.shape[2] <= 256:
            refuse(results[0], f"{result.shape[2]} classes: the loss takes 2 to 256")
        return Network(source.value, result.value, self.layers)

    def _needed(self) -> set[Any]:
        needed: set[Any] = set()
        for node in reversed(self.nodes):
            mutates = node.op == "call_function" and node.target._schema.is_mutable
            if mutates and node.args[0].name in self.buffers:
                continue  # counters of normalization, which is refused for itself
            if node.op == "output" or mutates or node in needed:
                needed.update({node, *node.all_input_nodes})
        return needed

    def _visit(self, node: Any) -> None:
        packet = operator(node).removeprefix("aten.").split(".")[0]
        rule = RULES.get(packet.removesuffix("_"))
        if rule is None:
            advice = next((text for word, text in ADVICE.items() if word in packet), None)
            refuse(node, advice or "the training step has no such operator")
        result = rule(self, node, arguments(node))
        self.values[node] = result
        if node.target._schema.is_mutable:  # in place: later readers see the new value
            old = self.value(node, node.args[0]).value
            for other, seen in self.values.items():
                if isinstance(seen, _Operand) and seen.value is old:
                    self.values[other] = _Operand(result.value, seen.flat)

    def name(self, node: Any) -> str:
        """A new name for a layer."""
        wanted = name = display_name(node)
        count = 1
        while name in self.names:
            count += 1
            name = f"{wanted}.{count}"
        self.names.add(name)
        return name

    def value(self, node: Any, operand: Any) -> _Operand:
        """What an operand stands for; it must depend on the module's input."""
        found = self.values.get(operand) if hasattr(operand, "op") else None
        if not isinstance(found, _Operand):
            refuse(node, "an operand is a constant, a parameter or a buffer: only layers use those")
        return found

    def parameter(self, node: Any, operand: Any) -> str:
        """The name of a parameter that only this node uses."""
        found = self.values.get(operand)
        if not isinstance(found, str):
            refuse(node, "its weights must be parameters of the module")
        if len(operand.users) > 1 or list(self.parameters.values()).count(found) > 1:
            refuse(node, f"shares {found} with another layer: give each its own parameters")
        return found

    def add(self, layer: Layer, *, flat: bool) -> _Operand:
        """Append a layer; returns its result."""
        self.layers.append(layer)
        return _Operand(layer.result, flat)


def _input(node: Any) -> _Operand:
    shape = tuple(node.meta["val"].shape)
    if len(shape) == 4:
        _, channels, height, width = shape
        return _Operand(Value("input", (height, width, channels)), flat=False)
    return _Operand(Value("input", (1, 1, shape[1])), flat=True)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return (values[0], values[-1])


def _image(reader: _Reader, node: Any, operand: Any) -> Value:
    seen = reader.value(node, operand)
    if seen.flat:
        refuse(node, "its input is a vector, not an image")
    return seen.value


def _convolution(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    source = _image(reader, node, found["input"])
    if found["groups"] != 1:
        refuse(node, f"groups={found['groups']}: use an ungrouped convolution (groups=1)")
    kernel = _pair(list(found["weight"].meta["val"].shape[2:]))
    stride, dilation = _pair(found["stride"]), _pair(found["dilation"])
    padding = found["padding"]
    if padding == "same":
        spare = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        if any(each % 2 for each in spare):
            refuse(node, "padding='same' pads one side more than the other: use an odd kernel")
        padding = [each // 2 for each in spare]
    elif padding == "valid":
        padding = [0, 0]
    geometry = Geometry(kernel, stride, _pair(padding), dilation)
    rows, columns = geometry.result(*source.shape[:2])
    return _with_weights(reader, node, found, source, geometry, (rows, columns))


def _with_weights(
    reader: _Reader,
    node: Any,
    found: dict[str, Any],
    source: Value,
    geometry: Geometry,
    pixels: tuple[int, int],
    *,
    flat: bool = False,
) -> _Operand:
    weight = reader.parameter(node, found["weight"])
    bias = None if found["bias"] is None else reader.parameter(node, found["bias"])
    name = reader.name(node)
    result = Value(name, (*pixels, found["weight"].meta["val"].shape[0]))
    layer = ConvolutionLayer(name, source, result, weight, bias, geometry)
    return reader.add(layer, flat=flat)


def _linear(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    source = reader.value(node, found["input"])
    if not source.flat:
        refuse(node, "its input is an image: flatten it first (torch.flatten(x, 1))")
    geometry = Geometry(kernel=source.shape[:2])
    return _with_weights(reader, node, found, source.value, geometry, (1, 1), flat=True)


def _relu(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    source = reader.value(node, found["self"])
    name = reader.name(node)
    layer = ReluLayer(name, source.value, Value(name, source.shape))
    return reader.add(layer, flat=source.flat)


def _windows(node: Any, found: dict[str, Any]) -> tuple[int, int]:
    window = _pair(found["kernel_size"])
    stride = _pair(found["stride"]) if found["stride"] else window
    if stride != window:
        refuse(node, f"overlapping pooling (window {window}, stride {stride}): use stride = kernel")
    if any(_pair(found["padding"])):
        refuse(node, "pooling with padding: use padding=0")
    if any(each != 1 for each in _pair(found.get("dilation", 1))):
        refuse(node, "pooling with dilation: use dilation=1")
    if found["ceil_mode"]:
        refuse(node, "pooling with ceil_mode: use ceil_mode=False")
    return window


def _max_pool(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    source = _image(reader, node, found["self"])
    window = _windows(node, found)
    if window[0] * window[1] > LARGEST_MAX_WINDOW:
        refuse(node, f"a window of more than {LARGEST_MAX_WINDOW} elements: pool in two steps")
    name = reader.name(node)
    result = Value(name, _pooled(source, window))
    return reader.add(MaxPoolLayer(name, source, result, window), flat=False)


def _pooled(source: Value, window: tuple[int, int]) -> tuple[int, int, int]:
    height, width, channels = source.shape
    return height // window[0], width // window[1], channels


def _average_pool(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    if found["divisor_override"] is not None:
        refuse(node, "divisor_override: leave it out")
    return _average(reader, node, _image(reader, node, found["self"]), _windows(node, found))


def _average(
    reader: _Reader, node: Any, source: Value, window: tuple[int, int], *, flat: bool = False
) -> _Operand:
    name = reader.name(node)
    result = Value(name, _pooled(source, window))
    return reader.add(AveragePoolLayer(name, source, result, window), flat=flat)


def _adaptive(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    source = _image(reader, node, found["self"])
    wanted = _pair(found["output_size"])
    sizes = source.shape[:2]
    if any(size % count for size, count in zip(sizes, wanted, strict=True)):
        refuse(node, f"an output of {wanted} does not divide the image's {sizes}: use (1, 1)")
    return _average(reader, node, source, (sizes[0] // wanted[0], sizes[1] // wanted[1]))


def _mean(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    source = _image(reader, node, found["self"])
    axes = sorted(axis % 4 for axis in found["dim"] or (0,))
    if axes != [2, 3]:
        refuse(node, "a mean is taken over height and width, (2, 3)")
    return _average(reader, node, source, source.shape[:2], flat=not found["keepdim"])


def _add(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    first, second = reader.value(node, found["self"]), reader.value(node, found["other"])
    if found["alpha"] != 1:
        refuse(node, "alpha: use a plain sum")
    if first.shape != second.shape or first.flat != second.flat:
        refuse(node, f"adds shapes {first.shape} and {second.shape}: they must be equal")
    name = reader.name(node)
    layer = AddLayer(name, first.value, second.value, Value(name, first.shape))
    return reader.add(layer, flat=first.flat)


def _reshape(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    """A vector from an image, or nothing at all."""
    source = reader.value(node, found.get("self", found.get("input")))
    shape = tuple(node.meta["val"].shape)[1:]
    height, width, channels = source.shape
    if shape == (source.value.size,):
        return _Operand(source.value, flat=True)
    if shape == (channels, height, width) and (not source.flat or (height, width) == (1, 1)):
        return _Operand(source.value, flat=False)
    refuse(node, "reshapes other than flattening to (batch, features) are not there")


def _dropout(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    source = reader.value(node, found["input"])
    if found["p"]:
        refuse(node, f"dropout with p={found['p']}: set p=0 or leave it out")
    return source


def _same(reader: _Reader, node: Any, found: dict[str, Any]) -> _Operand:
    return reader.value(node, found["self"])


Rule = Callable[[_Reader, Any, dict[str, Any]], _Operand]

RULES: dict[str, Rule] = {
    "conv2d": _convolution,
    "linear": _linear,
    "relu": _relu,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "add": _add,
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "contiguous": _same,
    "to": _same,
    "clone": _same,
    "alias": _same,
}
