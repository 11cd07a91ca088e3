"""One rule an operator of :class:`weft.quantize.integer_reference.IntegerReference`.

The arithmetic is stated there. A rule takes the operator's arguments by the names in its schema,
with :class:`Codes` for activations; what it gives is exact, and is rounded by the quantization
behind it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from weft.errors import UnsupportedModel

__all__ = ["QUANTIZE", "RULES", "Codes", "scaled"]

Integers = NDArray[np.int64]

QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"

CHUNK_ELEMENTS = 1 << 23
"""Window elements that a convolution lays out at once (64 MiB of float64)."""


@dataclass(frozen=True)
class Codes:
    """Integers with their scale; its dequantization stands for the exact real values."""

    values: Integers
    scale: float
    zero_point: int

    @property
    def differences(self) -> Integers:
        return self.values - self.zero_point


@dataclass(frozen=True)
class Constant:
    """Integer weights or biases with one scale for each output channel."""

    values: Integers
    scales: NDArray[np.float64]


@dataclass(frozen=True)
class Unrounded:
    """An exact result; `rounded(s_out)` gives it in units of s_out, `clamps` follow in order."""

    rounded: Callable[[float], Integers]
    clamps: tuple[tuple[float | None, float | None], ...] = ()


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise UnsupportedModel(text)


# Scaling -----------------------------------------------------------------------------------------


def _multiplier(ratio: float) -> tuple[int, int]:
    """M and 31 - e of a ratio of scales."""
    mantissa, exponent = math.frexp(ratio)
    multiplier = math.floor(Fraction(mantissa) * 2**31 + Fraction(1, 2))
    return multiplier, 31 - exponent


def scaled(amount: Integers, ratios: float | NDArray[np.float64]) -> Integers:
    """``amount * ratio`` by the 31-bit multiplier, halves to even; ratios broadcast."""
    if amount.size and int(np.abs(amount).max()) >= 2**31:
        raise UnsupportedModel("a sum leaves 32 bits")
    ratios = np.asarray(ratios, np.float64)
    pairs = np.array([_multiplier(ratio) for ratio in ratios.ravel().tolist()], np.int64)
    multiplier, shift = (column.reshape(ratios.shape) for column in pairs.T)
    _need(bool((shift >= 1).all()), "a ratio of scales is 2^30 or more")
    bounded = np.minimum(shift, 62)
    product = amount * multiplier
    below = product >> bounded
    twice_rest = 2 * (product - (below << bounded))
    whole = np.left_shift(np.int64(1), bounded)
    above = (twice_rest > whole) | ((twice_rest == whole) & (below % 2 == 1))
    return np.where(shift > 62, 0, below + above)  # beyond, even 2^31 scales to less than a half


# Quantization ------------------------------------------------------------------------------------


def _quantize(
    input: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, **rest: Any
) -> Codes:
    if isinstance(input, Codes):
        input = _moved(input)
    low, high = quant_min, quant_max
    if isinstance(input, Unrounded):
        codes = input.rounded(scale)
        for least, most in input.clamps:
            codes = codes if least is None else np.maximum(codes, _bound(least, scale))
            codes = codes if most is None else np.minimum(codes, _bound(most, scale))
    else:
        _need(isinstance(input, np.ndarray), "reads a value that is not an activation")
        with np.errstate(over="ignore"):
            steps = np.rint(input * np.float32(1.0 / scale))
        codes = np.clip(steps, -(2.0**40), 2.0**40).astype(np.int64)
    return Codes(np.clip(codes + zero_point, low, high), scale, zero_point)


def _bound(bound: float, scale: float) -> int:
    """A clamp's bound in steps of the output; Python's `round` takes halves to even."""
    return round(bound / scale) if math.isfinite(bound) else int(math.copysign(2**40, bound))


def _dequantize(input: Any, scale: float, zero_point: int, **rest: Any) -> Codes:
    if isinstance(input, np.ndarray):  # a constant
        return Codes(input.astype(np.int64), scale, zero_point)
    _need(isinstance(input, Codes), "reads a value that is not quantized")
    _need(
        (input.scale, input.zero_point) == (scale, zero_point),
        "reads codes of another scale or zero point",
    )
    return input


def _dequantize_channels(
    input: Any, scales: Any, zero_points: Any, axis: int, **rest: Any
) -> Constant:
    _need(isinstance(input, np.ndarray), "only constants have a scale for each channel")
    _need(axis == 0 and not np.any(zero_points), "must be symmetric, by output channel")
    return Constant(input.astype(np.int64), np.asarray(scales, np.float64))


# Layers ------------------------------------------------------------------------------------------


def _weights(weight: Any) -> Constant:
    if isinstance(weight, Codes):
        _need(weight.zero_point == 0, "weights must be symmetric")
        return Constant(weight.values, np.full(len(weight.values), weight.scale))
    _need(isinstance(weight, Constant), "weights are not quantized")
    return weight


def _bias(bias: Any, channels: int) -> Integers:
    if bias is None:
        return np.zeros(channels, np.int64)
    _need(isinstance(bias, Constant), "the bias is not quantized")
    return bias.values


def _layer(sums: Integers, data: Codes, weight: Constant, axes: tuple[int, ...]) -> Unrounded:
    def rounded(scale: float) -> Integers:
        return scaled(sums, np.reshape(data.scale * weight.scales / scale, axes))

    return Unrounded(rounded)


def _linear(input: Any, weight: Any, bias: Any) -> Unrounded:
    data, weight = _codes(input), _weights(weight)
    # Below 2^53 float64 sums of integers are exact in any order, and BLAS computes them.
    sums = data.differences.astype(np.float64) @ weight.values.T.astype(np.float64)
    return _layer(sums.astype(np.int64) + _bias(bias, len(weight.values)), data, weight, (-1,))


def _conv2d(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Unrounded:
    data, weight = _codes(input), _weights(weight)
    spread = _pair(dilation)
    kernel = [(size - 1) * spread[axis] + 1 for axis, size in enumerate(weight.values.shape[2:])]
    if padding == "same":
        before = [(size - 1) // 2 for size in kernel]
        edges = [(first, size - 1 - first) for first, size in zip(before, kernel, strict=True)]
    elif padding == "valid":
        edges = [(0, 0), (0, 0)]
    else:
        edges = [(size, size) for size in _pair(padding)]
    windows = _windows(data.differences.astype(np.float64), kernel, stride, edges, 0.0)
    windows = windows[..., :: spread[0], :: spread[1]]
    factor = weight.values.astype(np.float64)
    step = max(1, CHUNK_ELEMENTS // math.prod(windows.shape[1:]))
    parts = []
    for first in range(0, len(windows), step):
        images = np.split(windows[first : first + step], groups, axis=1)
        by_group = [
            np.tensordot(image, filters, axes=((1, 4, 5), (1, 2, 3)))
            for image, filters in zip(images, np.split(factor, groups), strict=True)
        ]
        parts.append(np.concatenate(by_group, axis=3))
    sums = np.concatenate(parts).transpose(0, 3, 1, 2).astype(np.int64)
    sums = sums + _bias(bias, len(factor)).reshape(-1, 1, 1)
    return _layer(sums, data, weight, (-1, 1, 1))


def _add(self: Any, other: Any, alpha: Any) -> Unrounded:
    _need(alpha == 1, "only the plain sum of two tensors is supported")
    fine, coarse = sorted((_codes(self), _codes(other)), key=lambda codes: codes.scale)
    total = scaled(fine.differences << 22, fine.scale / coarse.scale) + (coarse.differences << 22)

    def rounded(scale: float) -> Integers:
        return scaled(total, coarse.scale / (2.0**22 * scale))

    return Unrounded(rounded)


def _codes(value: Any) -> Codes:
    _need(isinstance(value, Codes), "reads a value that is not quantized")
    return value


# Pools -------------------------------------------------------------------------------------------


def _pair(value: Any) -> tuple[int, int]:
    first, last = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    return (first[0], last[0]) if isinstance(first, list | tuple) else (first, last)


def _windows(values: Any, kernel: Any, stride: Any, edges: Any, fill: Any) -> Any:
    """Views of the windows of images: [sample, channel, row, column, kernel row, kernel column]."""
    y, x = _pair(stride)
    padded = np.pad(values, ((0, 0), (0, 0), *edges), constant_values=fill)
    return sliding_window_view(padded, tuple(kernel), axis=(2, 3))[:, :, ::y, ::x]


def _max_pool2d(
    self: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Unrounded:
    data = _codes(self)
    _need(_pair(dilation) == (1, 1) and not ceil_mode, "dilation and ceil_mode are not supported")
    edges = [(size, size) for size in _pair(padding)]
    least = np.iinfo(np.int64).min
    windows = _windows(data.values, _pair(kernel_size), stride or kernel_size, edges, least)
    return _moved(replace(data, values=windows.max((4, 5))))


def _avg_pool2d(
    self: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: Any,
) -> Unrounded:
    data = _codes(self)
    _need(not ceil_mode and divisor_override is None, "ceil_mode and divisors are not supported")
    kernel, edges = _pair(kernel_size), [(size, size) for size in _pair(padding)]
    stride = stride or kernel_size
    counted = np.ones((1, 1, *data.values.shape[2:]), np.int64)
    count = _windows(counted, kernel, stride, edges, int(count_include_pad)).sum((4, 5))
    return _average(data, _windows(data.differences, kernel, stride, edges, 0).sum((4, 5)), count)


def _adaptive_avg_pool2d(self: Any, output_size: Any) -> Unrounded:
    _need(_pair(output_size) == (1, 1), "only a pool to one pixel is supported")
    return _mean(self, [2, 3], True, None)


def _mean(self: Any, dim: Any, keepdim: bool, dtype: Any) -> Unrounded:
    data = _codes(self)
    _need(
        data.values.ndim == 4 and sorted(axis % 4 for axis in dim or ()) == [2, 3],
        "only the mean over height and width is supported",
    )
    count = data.values.shape[2] * data.values.shape[3]
    return _average(data, data.differences.sum((2, 3), keepdims=keepdim), np.array(count))


def _average(data: Codes, sums: Integers, count: Integers) -> Unrounded:
    divisor = count.astype(np.float64)
    return Unrounded(lambda scale: scaled(sums, data.scale / (scale * divisor)))


# Clamps and moves --------------------------------------------------------------------------------


def _moved(data: Codes) -> Unrounded:
    return Unrounded(lambda scale: scaled(data.differences, data.scale / scale))


def _clamp(self: Any, min: float | None = None, max: float | None = None) -> Unrounded:
    value = _moved(self) if isinstance(self, Codes) else self
    _need(isinstance(value, Unrounded), "reads a value that is not quantized")
    return replace(value, clamps=(*value.clamps, (min, max)))


def _reshape(input: Codes, shape: Sequence[Any]) -> Codes:
    """Another shape of each sample; the number of samples, exported as a constant, is kept."""
    codes = _codes(input)
    return replace(codes, values=codes.values.reshape(len(codes.values), *shape[1:]))


def _flatten(self: Any, start_dim: int, end_dim: int) -> Codes:
    codes = _codes(self)
    shape = codes.values.shape
    first, last = start_dim % len(shape), end_dim % len(shape)
    _need(first >= 1, "the axis of samples cannot be flattened")
    return _reshape(codes, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


def _squeeze(self: Any, dim: Any = None) -> Codes:
    codes = _codes(self)
    shape = codes.values.shape
    axes = range(1, len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {axis % len(shape) for axis in axes}
    return _reshape(codes, [n for axis, n in enumerate(shape) if axis not in gone or n != 1])


def _unsqueeze(self: Any, dim: int) -> Codes:
    codes = _codes(self)
    shape = list(codes.values.shape)
    position = dim % (len(shape) + 1)
    _need(position >= 1, "the axis of samples must stay the first")
    return _reshape(codes, [*shape[:position], 1, *shape[position:]])


def _dropout(input: Any, p: float, train: bool) -> Any:
    _need(not train, "dropout is in training mode")
    return input


RULES: dict[str, Callable[..., Any]] = {
    QUANTIZE: _quantize,
    "quantized_decomposed.dequantize_per_tensor.default": _dequantize,
    "quantized_decomposed.dequantize_per_channel.default": _dequantize_channels,
    "aten.linear.default": _linear,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.add.Tensor": _add,
    "aten.max_pool2d.default": _max_pool2d,
    "aten.avg_pool2d.default": _avg_pool2d,
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "aten.mean.dim": _mean,
    "aten.relu.default": lambda self: _clamp(self, 0.0),
    "aten.relu6.default": lambda self: _clamp(self, 0.0, 6.0),
    "aten.hardtanh.default": lambda self, min_val, max_val: _clamp(self, min_val, max_val),
    "aten.clamp.default": _clamp,
    "aten.clamp_min.default": _clamp,
    "aten.clamp_max.default": _clamp,
    "aten.view.default": lambda self, size: _reshape(self, size),
    "aten.reshape.default": lambda self, shape: _reshape(self, shape),
    "aten.flatten.using_ints": _flatten,
    "aten.squeeze.default": _squeeze,
    "aten.squeeze.dim": _squeeze,
    "aten.squeeze.dims": _squeeze,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.contiguous.default": lambda self, memory_format: self,
    "aten.dropout.default": _dropout,
}
