"""What each PyTorch operator becomes in weft's graph.

A rule takes an operator's node and arguments and gives either a :class:`Real`, a value that exists
as int8 already, or a :class:`Pending` one: an operation that waits for the quantization behind it,
which tells the output's scale.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weft.frontends.pytorch_nodes import operator, refuse, sample_shape
from weft.ir import (
    Add,
    AveragePool2d,
    Conv2d,
    Linear,
    MaxPool2d,
    Operation,
    Rescale,
    Tensor,
    pool_output_size,
)

__all__ = [
    "CLAMPS",
    "RULES",
    "Builder",
    "Constants",
    "Pending",
    "Real",
    "clamp_bounds",
    "clamped_codes",
    "own_shape",
]

Pair = tuple[int, int]
Clamp = tuple[float | None, float | None]


@dataclass(frozen=True)
class Real:
    """The real values of an int8 tensor of the graph: what its quantization stands for.

    ``shape`` is the one in which the model sees a sample at this point, in PyTorch's order, where
    that is not the tensor's own: it may pass through any shape on the way to a vector.
    """

    tensor: Tensor
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Constants:
    """Frozen integers with one scale for each output channel: weights or a bias."""

    values: NDArray[Any]
    scales: NDArray[np.float64]


@dataclass(frozen=True)
class Pending:
    """An operation without output: its kind, operands and parameters.

    ``shape`` is the output's, (height, width, channels) or (channels,); ``flatten`` says that the
    model sees the output, one pixel, as a vector. ``clamps`` are applied in order.
    """

    node: Any
    kind: type[Operation]
    inputs: tuple[Tensor, ...]
    shape: tuple[int, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    clamps: tuple[Clamp, ...] = ()
    flatten: bool = False


class Builder(Protocol):
    """What rules need of the front end."""

    def real(self, node: Any, operand: Any) -> Real:
        """What an operand dequantizes, or a refusal of ``node``."""

    def tensor(self, node: Any, operand: Any) -> Tensor:
        """Likewise, the int8 tensor, seen in its own shape."""

    def constants(self, node: Any, operand: Any, what: str) -> Constants:
        """The frozen integers that an operand dequantizes, or a refusal of ``node``."""

    def flatten(self, node: Any, tensor: Tensor) -> Tensor:
        """The image as a vector, in the model's order."""


Rule = Callable[[Builder, Any, dict[str, Any]], Real | Pending]


def _image(builder: Builder, node: Any, operand: Any) -> Tensor:
    tensor = builder.tensor(node, operand)
    if len(tensor.shape) != 3:
        refuse(node, "works on images of the shape (samples, channels, height, width) only")
    return tensor


def _pair(value: Any) -> Pair:
    first, last = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    return (first[0], last[0]) if isinstance(first, list | tuple) else (first, last)


# Layers ------------------------------------------------------------------------------------------


def _weights(
    builder: Builder, node: Any, given: dict[str, Any], source: Tensor, rank: int
) -> dict[str, Any]:
    """The fields of a layer's weights and bias."""
    weight = builder.constants(node, given["weight"], "weight")
    if weight.values.dtype != np.int8:
        refuse(node, f"its weights are {weight.values.dtype}; weft takes int8 weights")
    if weight.values.ndim != rank:
        refuse(node, f"its weights have {weight.values.ndim} axes, not {rank}")
    fields: dict[str, Any] = {"weights": weight.values, "weight_scales": weight.scales}
    if given["bias"] is not None:
        bias = builder.constants(node, given["bias"], "bias")
        units = source.scale * weight.scales
        if bias.values.dtype != np.int32 or not np.allclose(bias.scales, units, rtol=1e-6, atol=0):
            refuse(
                node,
                "its bias must be int32 with the scale (input scale * weight scale) of each "
                "channel, as weft.quantize makes it",
            )
        fields["bias"] = bias.values
    return fields


def _linear(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    source = builder.tensor(node, given["input"])
    if len(source.shape) != 1:
        refuse(node, "works on vectors (samples, features) only; flatten the image before it")
    fields = _weights(builder, node, given, source, 2)
    return Pending(node, Linear, (source,), (len(fields["weights"]),), fields)


def _conv2d(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    source = _image(builder, node, given["input"])
    fields = _weights(builder, node, given, source, 4)
    fields["weights"] = np.ascontiguousarray(fields["weights"].transpose(0, 2, 3, 1))
    channels, *kernel, _ = fields["weights"].shape
    stride, dilation = _pair(given["stride"]), _pair(given["dilation"])
    extent = [(kernel[axis] - 1) * dilation[axis] + 1 for axis in range(2)]
    padding = _padding(given["padding"], extent)
    fields |= {"stride": stride, "padding": padding, "dilation": dilation}
    fields["groups"] = given["groups"]
    height, width = _sizes(source, extent, stride, padding)
    return Pending(node, Conv2d, (source,), (height, width, channels), fields)


def _padding(padding: Any, kernel: Any) -> tuple[Pair, Pair]:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":  # stride is 1, and the odd element goes behind
        y, x = (((size - 1) // 2, size // 2) for size in kernel)
        return y, x
    y, x = ((size, size) for size in _pair(padding))
    return y, x


def _sizes(source: Tensor, kernel: Any, stride: Pair, padding: tuple[Pair, Pair]) -> Pair:
    height, width = (
        pool_output_size(source.shape[axis], kernel[axis], stride[axis], padding[axis])
        for axis in range(2)
    )
    return height, width


def _add(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    if given["alpha"] != 1:
        refuse(node, f"has alpha {given['alpha']}; weft adds with alpha 1 only")
    inputs = tuple(builder.tensor(node, given[key]) for key in ("self", "other"))
    if inputs[0].shape != inputs[1].shape:
        inputs = _broadcast(node, inputs)
    return Pending(node, Add, inputs, inputs[0].shape)


def _broadcast(node: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    try:
        shape = np.broadcast_shapes(*(tensor.shape for tensor in inputs))
    except ValueError:
        shape = ()
    spread = []
    for tensor in inputs:
        if tensor.shape != shape and (tensor.data is None or not shape):
            refuse(node, "adds tensors of different shapes; weft does not repeat values in an add")
        if tensor.shape != shape and tensor.data is not None:
            name = f"{tensor.name}_{'x'.join(map(str, shape))}"
            data = np.broadcast_to(tensor.data, shape).copy()
            tensor = replace(tensor, name=name, shape=shape, data=data)
        spread.append(tensor)
    return tuple(spread)


# Pools -------------------------------------------------------------------------------------------


def _pool(builder: Builder, node: Any, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any], Any]:
    """Input, fields and output shape that both pools have."""
    source = _image(builder, node, given["self"])
    kernel = _pair(given["kernel_size"])
    stride = _pair(given["stride"]) if given["stride"] else kernel
    y, x = _pair(given["padding"])
    padding = (y, y), (x, x)
    if given["ceil_mode"]:
        for axis in range(2):
            rest = source.shape[axis] + 2 * padding[axis][0] - kernel[axis]
            if rest % stride[axis]:
                refuse(
                    node, "rounds its size up (ceil_mode); weft rounds down: use ceil_mode=False"
                )
    shape = (*_sizes(source, kernel, stride, padding), source.shape[2])
    return source, {"kernel": kernel, "stride": stride, "padding": padding}, shape


def _max_pool2d(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    if _pair(given["dilation"]) != (1, 1):
        refuse(node, f"has dilation {given['dilation']}; weft pools with dilation 1 only")
    source, fields, shape = _pool(builder, node, given)
    return Pending(node, MaxPool2d, (source,), shape, fields)


def _avg_pool2d(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    if given["divisor_override"] is not None:
        refuse(node, "has a divisor of its own; weft divides by the number of elements")
    source, fields, shape = _pool(builder, node, given)
    fields["count_include_pad"] = given["count_include_pad"]
    return Pending(node, AveragePool2d, (source,), shape, fields)


def _adaptive_avg_pool2d(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    source = _image(builder, node, given["self"])
    target = _pair(given["output_size"])
    size = tuple(source.shape[axis] if target[axis] is None else target[axis] for axis in range(2))
    if any(source.shape[axis] % size[axis] for axis in range(2)):
        refuse(
            node,
            f"makes {size} of {source.shape[:2]} pixels with windows of unequal sizes; weft pools "
            "to sizes that divide the input's",
        )
    kernel = tuple(source.shape[axis] // size[axis] for axis in range(2))
    fields = {"kernel": kernel, "stride": kernel}
    return Pending(node, AveragePool2d, (source,), (*size, source.shape[2]), fields)


def _mean(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    source = builder.tensor(node, given["self"])
    axes = given["dim"]
    if len(source.shape) != 3 or sorted(axis % 4 for axis in axes or ()) != [2, 3]:
        refuse(node, f"is over the axes {axes}; weft takes the mean of images over [2, 3] only")
    kernel = source.shape[:2]
    fields = {"kernel": kernel, "stride": kernel}
    shape = (1, 1, source.shape[2])
    return Pending(node, AveragePool2d, (source,), shape, fields, flatten=not given["keepdim"])


# Clamps ------------------------------------------------------------------------------------------


def clamp_bounds(node: Any, given: dict[str, Any]) -> Clamp:
    """The bounds of a clamp of any name."""
    name = operator(node).split(".")[1]
    if name == "relu":
        return 0.0, None
    if name == "relu6":
        return 0.0, 6.0
    if name == "hardtanh":
        low, high = given["min_val"], given["max_val"]
    else:
        low, high = given.get("min"), given.get("max")
    for bound in (low, high):
        if bound is not None and not (isinstance(bound, int | float) and math.isfinite(bound)):
            refuse(node, f"has the bound {bound}; weft clamps to finite constants")
    return low, high


def clamped_codes(low: int, high: int, clamp: Clamp, result: Tensor) -> tuple[int, int]:
    """A range of codes after one more clamp, which sees values first low, then high, as PyTorch."""
    least, most = (
        None if bound is None else round(bound / result.scale) + result.zero_point
        for bound in clamp
    )
    if least is not None:
        low, high = max(low, min(least, 127)), max(high, min(least, 127))
    if most is not None:
        low, high = min(low, max(most, -128)), min(high, max(most, -128))
    return low, high


def _clamp_alone(builder: Builder, node: Any, given: dict[str, Any]) -> Pending:
    source = builder.tensor(node, given["self"])
    clamps = (clamp_bounds(node, given),)
    return Pending(node, Rescale, (source,), source.shape, clamps=clamps)


# Moves -------------------------------------------------------------------------------------------


def _move(builder: Builder, node: Any, given: dict[str, Any]) -> Real:
    """Operators that change only the shape: nothing at all, or an image becomes a vector."""
    value = builder.real(node, given["input" if "input" in given else "self"])
    if given.get("train"):
        refuse(node, "is in training mode; call model.eval() before the export")
    tensor, after = value.tensor, sample_shape(node)
    if math.prod(after) != tensor.elements:
        before = value.shape or own_shape(tensor)
        refuse(node, f"mixes samples: {before} becomes {after} for each sample")
    if after == own_shape(tensor):
        return Real(tensor)
    if len(after) == 1:  # whatever the shapes in between, the order is the image's own
        return Real(builder.flatten(node, tensor))
    return Real(tensor, after)


def own_shape(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape in PyTorch's order."""
    shape = tensor.shape
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape


_COMPUTING: dict[str, Rule] = {
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "aten.add.Tensor": _add,
    "aten.avg_pool2d.default": _avg_pool2d,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.linear.default": _linear,
    "aten.max_pool2d.default": _max_pool2d,
    "aten.mean.dim": _mean,
}

_CLAMPS = ("clamp", "clamp_max", "clamp_min", "hardtanh", "relu", "relu6")

_MOVES = (
    "contiguous.default",
    "dropout.default",
    "flatten.using_ints",
    "reshape.default",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
    "unsqueeze.default",
    "view.default",
)

CLAMPS = frozenset(f"aten.{name}.default" for name in _CLAMPS)
"""Operators that are one with what is before them, or a :class:`weft.ir.Rescale` of their own."""

RULES: dict[str, Rule] = (
    _COMPUTING | dict.fromkeys(CLAMPS, _clamp_alone) | {f"aten.{name}": _move for name in _MOVES}
)
"""Every operator that weft knows, by its full name."""
