"""What each TFLite operator is in weft's graph, one function an operator; see the table `RULES`.

Sources of the arithmetic: TFLite's reference kernels (``kernels/internal/reference``), measured
through the interpreter with ``BUILTIN_REF``.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.frontends.tflite_file import TfliteOperator, TfliteTensor
from weft.ir import (
    INT8_RANGE,
    Add,
    AveragePool2d,
    Concatenate,
    Conv2d,
    Dequantize,
    Interleave,
    Linear,
    MaxPool2d,
    Multiply,
    Operation,
    Pad,
    Rescale,
    Softmax,
    Subtract,
    Tensor,
)
from weft_hw.instructions import Rounding

__all__ = ["RULES"]

Importer = Any
"""The importer of :mod:`weft.frontends.tflite`; its methods are the interface."""

ACTIVATION_BOUNDS: dict[str, tuple[float, float]] = {
    "NONE": (-math.inf, math.inf),
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


# Pieces ------------------------------------------------------------------------------------------


def _clamp(importer: Importer, name: str, output: Tensor) -> tuple[int, int]:
    """Bounds of a fused activation, in output codes."""
    if name not in ACTIVATION_BOUNDS:
        importer.refuse(
            f"has the fused activation {name}; weft takes {', '.join(ACTIVATION_BOUNDS)}"
        )
    low, high = (_code(bound, output) for bound in ACTIVATION_BOUNDS[name])
    return max(low, INT8_RANGE[0]), min(high, INT8_RANGE[1])


def _code(bound: float, output: Tensor) -> int:
    """A bound as a code: divided in float32, halves away from zero."""
    if math.isinf(bound):
        return INT8_RANGE[bound > 0]
    steps = float(np.float32(bound) / np.float32(output.scale))
    code = output.zero_point + int(math.copysign(math.floor(abs(steps) + 0.5), steps))
    return min(max(code, INT8_RANGE[0]), INT8_RANGE[1])


def _fused(importer: Importer, output: Tensor) -> tuple[int, int]:
    return _clamp(importer, importer.option("FusedActivationFunction", "NONE"), output)


def _padding(
    importer: Importer,
    source: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[tuple[int, int], tuple[int, int]]:
    """SAME or VALID as numbers; SAME puts the odd element behind."""
    for what, values in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        if min(values) < 1:
            importer.refuse(f"has the {what} {values}")
    scheme = importer.option("Padding")
    if scheme == "VALID":
        return (0, 0), (0, 0)
    if scheme != "SAME":
        importer.refuse(f"has {scheme}; weft takes SAME and VALID")
    pairs = []
    for axis in range(2):
        size, step = source.shape[axis], stride[axis]
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        total = max((-(-size // step) - 1) * step + extent - size, 0)
        pairs.append((total // 2, total - total // 2))
    return pairs[0], pairs[1]


def _image(importer: Importer, position: int) -> Tensor:
    tensor: Tensor = importer.activation(position)
    if len(tensor.shape) != 3:
        importer.refuse(
            "must be (batch, height, width, channels): reshape it before",
            importer.operand(position),
        )
    return tensor


def _weights(
    importer: Importer, axis: int, rank: int
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Codes, and one scale a filter."""
    record: TfliteTensor = importer.operand(1)
    codes = importer.constant(1, ("INT8", "INT4"))
    if codes.ndim != rank:
        importer.refuse(f"has {codes.ndim} axes, not {rank}", record)
    filters = codes.shape[axis]
    if record.zero_points.any():
        importer.refuse(
            "has zero points other than 0; weft takes symmetric weights: convert the model again "
            "with int8 weights",
            record,
        )
    if len(record.scales) not in (1, filters) or len(record.scales) > 1 and record.axis != axis:
        importer.refuse(
            f"has {len(record.scales)} scales along axis {record.axis}; weft takes one, or "
            f"{filters} along axis {axis}",
            record,
        )
    if not np.all(np.isfinite(record.scales) & (record.scales > 0)):
        importer.refuse("has a scale that is not positive", record)
    scales = np.ascontiguousarray(np.broadcast_to(record.scales, (filters,)))
    return codes, scales


def _bias(importer: Importer, filters: int, position: int = 2) -> NDArray[np.int32] | None:
    if not importer.has(position):
        return None
    bias = importer.constant(position, ("INT32",))
    if bias.size != filters:
        importer.refuse(f"has {bias.size} values for {filters} filters", importer.operand(position))
    return np.ascontiguousarray(bias.reshape(-1).astype(np.int32))


def _same_quantization(importer: Importer, tensors: tuple[Tensor, ...], output: Tensor) -> None:
    for tensor in tensors:
        if (tensor.scale, tensor.zero_point) != (output.scale, output.zero_point):
            importer.refuse(
                f"input {tensor.name} and output {output.name} differ in scale or zero point; "
                "quantize them alike, or put a QUANTIZE in between"
            )


def _shape(importer: Importer, output: Tensor, expected: tuple[int, ...]) -> None:
    if output.shape != expected:
        importer.refuse(f"gives the shape {expected}, but the file says {output.shape}")


def _pair(
    importer: Importer, height: str, width: str, default: int | None = None
) -> tuple[int, int]:
    return int(importer.option(height, default)), int(importer.option(width, default))


def _window_shape(
    importer: Importer,
    source: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    sizes = []
    for axis in range(2):
        room = source.shape[axis] + sum(padding[axis]) - (kernel[axis] - 1) * dilation[axis] - 1
        if room < 0:
            importer.refuse(f"its window {kernel} is larger than the image {source.shape[:2]}")
        sizes.append(room // stride[axis] + 1)
    return sizes[0], sizes[1]


# Operators with weights --------------------------------------------------------------------------


def _conv_2d(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = _image(importer, 0), importer.result()
    weights, scales = _weights(importer, 0, 4)
    filters, height, width, depth = weights.shape
    channels = source.shape[2]
    if depth == 0 or channels % depth or filters % (channels // depth):
        importer.refuse(f"has filters of depth {depth} for {channels} channels")
    _emit_convolution(importer, source, output, weights, scales, channels // depth)


def _depthwise_conv_2d(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = _image(importer, 0), importer.result()
    weights, scales = _weights(importer, 3, 4)
    channels = source.shape[2]
    if weights.shape[0] != 1 or weights.shape[3] % channels:
        importer.refuse(f"has filters of shape {weights.shape} for {channels} channels")
    by_filter = np.ascontiguousarray(weights.transpose(3, 1, 2, 0))
    _emit_convolution(importer, source, output, by_filter, scales, channels)


def _emit_convolution(
    importer: Importer,
    source: Tensor,
    output: Tensor,
    weights: NDArray[np.int8],
    scales: NDArray[np.float64],
    groups: int,
) -> None:
    filters, *kernel, _ = weights.shape
    stride = _pair(importer, "StrideH", "StrideW")
    dilation = _pair(importer, "DilationHFactor", "DilationWFactor", 1)
    padding = _padding(importer, source, (kernel[0], kernel[1]), stride, dilation)
    sides = _window_shape(importer, source, (kernel[0], kernel[1]), stride, padding, dilation)
    if len(output.shape) != 3:
        importer.refuse(f"gives an image, but the file says {output.shape}")
    _shape(importer, output, (*sides, filters))
    importer.emit(
        Conv2d,
        (source,),
        output,
        weights=weights,
        weight_scales=scales,
        bias=_bias(importer, filters),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        clamp=_fused(importer, output),
        rounding=Rounding.TWO_STEP,
    )


def _fully_connected(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = importer.activation(0), importer.result()
    weights, scales = _weights(importer, 0, 2)
    if importer.option("WeightsFormat", 0) != 0:
        importer.refuse("has shuffled weights; convert the model with the default weights format")
    filters, features = weights.shape
    fields: dict[str, Any] = {
        "weight_scales": scales,
        "bias": _bias(importer, filters),
        "clamp": _fused(importer, output),
        "rounding": Rounding.HALF_UP,
    }
    if len(output.shape) == 3:  # keep_num_dims: each pixel is a vector of its own
        if len(source.shape) != 3 or source.shape[2] != features:
            importer.refuse(f"multiplies {source.shape} by weights for {features} values")
        _shape(importer, output, (*source.shape[:2], filters))
        by_tap = np.ascontiguousarray(weights.reshape(filters, 1, 1, features))
        importer.emit(Conv2d, (source,), output, weights=by_tap, **fields)
        return
    if source.elements != features:
        importer.refuse(
            f"multiplies {source.elements} values a sample by weights for {features}; only one "
            "product a sample is supported"
        )
    _shape(importer, output, (filters,))
    if len(source.shape) == 3:
        vector = importer.between(source, "flat", shape=(features,), data=None)
        importer.reshape(source, vector, ".flatten")
        source = vector
    importer.emit(Linear, (source,), output, weights=weights, **fields)


def _transpose_conv(importer: Importer, operator: TfliteOperator) -> None:
    """A gather: output rows and columns of one phase (modulo the stride) are a convolution each.

    Output row ``o`` gets input row ``y`` through tap ``k`` where ``o = y * stride - padding + k``.
    For ``o = stride * t + phase`` these are the taps ``k = first + stride * j`` and the rows
    ``y = t + shift - j``, with ``phase + padding = first + stride * shift``.
    """
    importer.expect((3, 4))
    output = importer.result()
    if len(importer.operand(2).shape) != 4 or len(output.shape) != 3:
        importer.refuse("works on (batch, height, width, channels)")
    source = importer.activation(2)
    weights, scales = _weights(importer, 0, 4)
    filters, *kernel, depth = weights.shape
    if depth != source.shape[2] or filters != output.shape[2]:
        importer.refuse(f"has {filters} filters of depth {depth} for {source.shape[2]} channels")
    stride = _pair(importer, "StrideH", "StrideW")
    # The padding is that of the convolution which this one transposes.
    forward = _padding(importer, output, (kernel[0], kernel[1]), stride)
    bias = _bias(importer, filters, 3)
    clamp = _fused(importer, output)
    phases = []
    for phase_y in range(min(stride[0], output.shape[0])):
        for phase_x in range(min(stride[1], output.shape[1])):
            taps, around, sides = weights, [], []
            for axis, phase in enumerate((phase_y, phase_x)):
                taps, edges, size = _phase(
                    taps,
                    axis + 1,
                    phase,
                    stride[axis],
                    forward[axis][0],
                    source.shape[axis],
                    output.shape[axis],
                )
                around.append(edges)
                sides.append(size)
            phases.append((taps, (around[0], around[1]), (*sides, filters)))
    if len(phases) != stride[0] * stride[1]:
        importer.refuse(f"has the stride {stride} for an output of {output.shape[:2]} pixels")
    parts = []
    for number, (taps, padding, shape) in enumerate(phases):
        part = (
            output if len(phases) == 1 else importer.between(output, f"phase{number}", shape=shape)
        )
        importer.emit(
            Conv2d,
            (source,),
            part,
            "" if len(phases) == 1 else f".phase{number}",
            weights=np.ascontiguousarray(taps),
            weight_scales=scales,
            bias=bias,
            padding=padding,
            clamp=clamp,
            rounding=Rounding.TWO_STEP,
        )
        parts.append(part)
    if len(parts) > 1:
        importer.emit(Interleave, tuple(parts), output, stride=stride)


def _phase(
    weights: NDArray[np.int8],
    axis: int,
    phase: int,
    stride: int,
    padding: int,
    size: int,
    result: int,
) -> tuple[NDArray[np.int8], tuple[int, int], int]:
    """Kernel along an axis, padding and output size of one phase of a transposed convolution."""
    shift, first = divmod(phase + padding, stride)
    count = -(-(result - phase) // stride)
    taps = np.moveaxis(weights, axis, 0)[first::stride][::-1]
    # Zeros in front of the kernel where it would begin inside the image, behind where it would end.
    before = len(taps) - 1 - shift
    taps = np.concatenate([np.zeros((max(-before, 0), *taps.shape[1:]), np.int8), taps])
    before = max(before, 0)
    behind = count - size - before + len(taps) - 1
    taps = np.concatenate([taps, np.zeros((max(-behind, 0), *taps.shape[1:]), np.int8)])
    return np.moveaxis(taps, 0, axis), (before, max(behind, 0)), count


# Element by element ------------------------------------------------------------------------------


def _elementwise(kind: type[Operation]) -> Callable[[Importer, TfliteOperator], None]:
    def rule(importer: Importer, operator: TfliteOperator) -> None:
        importer.expect((2,))
        output = importer.result()
        inputs = tuple(_broadcast(importer, position, output) for position in range(2))
        if all(tensor.data is not None for tensor in inputs):
            importer.refuse("combines two constants; fold them before")
        importer.emit(
            kind,
            inputs,
            output,
            clamp=_fused(importer, output),
            rounding=Rounding.TWO_STEP,
        )

    return rule


def _broadcast(importer: Importer, position: int, output: Tensor) -> Tensor:
    """An operand of the output's shape; constants are repeated to it."""
    record: TfliteTensor = importer.operand(position)
    if record.data is None or record.index in importer.tensors:
        tensor: Tensor = importer.activation(position)
        if tensor.shape != output.shape:
            importer.refuse(
                f"has the shape {tensor.shape}, the output {output.shape}; only constants are "
                "broadcast",
                record,
            )
        return tensor
    try:
        values = np.broadcast_to(record.data, (1, *output.shape))[0]
    except ValueError:
        importer.refuse(f"of shape {record.shape} does not fit {output.shape}", record)
    whole = replace(record, shape=(1, *output.shape), data=np.ascontiguousarray(values)[None])
    tensor = importer.declare(whole)
    if record.shape != whole.shape:  # others may read it in its own shape
        tensor = replace(tensor, name=importer.fresh(f"{record.name}.whole"))
    return tensor


def _relu(name: str) -> Callable[[Importer, TfliteOperator], None]:
    def rule(importer: Importer, operator: TfliteOperator) -> None:
        importer.expect((1,))
        source, output = importer.activation(0), importer.result()
        _shape(importer, output, source.shape)
        clamp = _clamp(importer, name, output)
        importer.emit(Rescale, (source,), output, clamp=clamp, rounding=Rounding.TWO_STEP)

    return rule


def _quantize(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((1,))
    output = importer.result()
    if importer.quantized_input(output):
        return
    source = importer.activation(0)
    _shape(importer, output, source.shape)
    importer.emit(Rescale, (source,), output, rounding=Rounding.TWO_STEP)


# Windows -----------------------------------------------------------------------------------------


def _pool(
    kind: type[MaxPool2d] | type[AveragePool2d],
) -> Callable[[Importer, TfliteOperator], None]:
    def rule(importer: Importer, operator: TfliteOperator) -> None:
        importer.expect((1,))
        source, output = _image(importer, 0), importer.result()
        _same_quantization(importer, (source,), output)
        kernel = _pair(importer, "FilterHeight", "FilterWidth")
        stride = _pair(importer, "StrideH", "StrideW")
        padding = _padding(importer, source, kernel, stride)
        sides = _window_shape(importer, source, kernel, stride, padding)
        _shape(importer, output, (*sides, source.shape[2]))
        fields: dict[str, Any] = {}
        if kind is AveragePool2d:
            fields = {"division": "codes", "count_include_pad": False}
        importer.emit(
            kind,
            (source,),
            output,
            kernel=kernel,
            stride=stride,
            padding=padding,
            clamp=_fused(importer, output),
            **fields,
        )

    return rule


def _mean(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2,))
    source, output = _image(importer, 0), importer.result()
    axes = {int(axis) % 4 for axis in importer.constant(1, ("INT32",)).reshape(-1)}
    if axes != {1, 2}:
        importer.refuse(f"averages over the axes {sorted(axes)}; weft takes height and width")
    sides = source.shape[:2]
    channels = source.shape[2]
    keep = len(output.shape) == 3
    _shape(importer, output, (1, 1, channels) if keep else (channels,))
    target = output if keep else importer.between(output, "image", shape=(1, 1, channels))
    importer.emit(
        AveragePool2d,
        (source,),
        target,
        kernel=sides,
        stride=sides,
        division="mean",
        rounding=Rounding.TWO_STEP,
    )
    if not keep:
        importer.reshape(target, output, ".flatten")


# Moves -------------------------------------------------------------------------------------------


def _reshape(importer: Importer, operator: TfliteOperator) -> None:
    source, output = importer.activation(0), importer.result()
    _same_quantization(importer, (source,), output)
    if source.elements != output.elements:
        importer.refuse(f"reshapes {source.shape} to {output.shape}")
    importer.reshape(source, output)


def _shape_arithmetic(importer: Importer, operator: TfliteOperator) -> None:
    """Integers that a RESHAPE reads as its target: the file has every shape already."""
    for index in operator.outputs:
        record = importer.model.tensors[index]
        if record.kind not in ("INT32", "INT64"):
            importer.refuse(f"weft computes {operator.kind} on shapes only, not on {record.kind}")


def _pad(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = _image(importer, 0), importer.result()
    _same_quantization(importer, (source,), output)
    amounts = importer.constant(1, ("INT32", "INT64"))
    if amounts.shape != (4, 2) or amounts.min() < 0:
        importer.refuse(f"has paddings of shape {amounts.shape}", importer.operand(1))
    if amounts[0].any() or amounts[3].any():
        importer.refuse("pads the batch or the channels; weft pads height and width")
    if operator.kind == "PADV2" and importer.has(2):
        value = importer.constant(2, ("INT8",))
        if value.size != 1 or int(value.reshape(-1)[0]) != output.zero_point:
            importer.refuse("pads with another value than the zero point")
    top, bottom, left, right = (int(each) for each in amounts[1:3].reshape(-1))
    _shape(
        importer,
        output,
        (source.shape[0] + top + bottom, source.shape[1] + left + right, source.shape[2]),
    )
    importer.emit(Pad, (source,), output, padding=((top, bottom), (left, right)))


def _concatenation(importer: Importer, operator: TfliteOperator) -> None:
    if len(operator.inputs) < 2 or len(operator.outputs) != 1:
        importer.refuse(f"has {len(operator.inputs)} inputs; weft takes two or more")
    output = importer.result()
    inputs = tuple(importer.activation(position) for position in range(len(operator.inputs)))
    if importer.option("FusedActivationFunction", "NONE") != "NONE":
        importer.refuse("has a fused activation")
    axis = int(importer.option("Axis")) % (len(output.shape) + 1)
    if axis != len(output.shape):
        importer.refuse(f"joins along axis {axis}; weft joins channels (the last axis)")
    _same_quantization(importer, inputs, output)
    channels = sum(tensor.shape[-1] for tensor in inputs)
    for tensor in inputs:
        if tensor.shape[:-1] != output.shape[:-1]:
            importer.refuse(f"joins {tensor.name} of shape {tensor.shape} to {output.shape}")
    _shape(importer, output, (*output.shape[:-1], channels))
    importer.emit(Concatenate, inputs, output)


# On the host -------------------------------------------------------------------------------------


def _softmax(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((1,))
    source, output = importer.from_host(0), importer.result()
    if source.dtype != "int8" or (output.scale, output.zero_point) != (1 / 256, -128):
        importer.refuse("weft takes int8 codes to int8 codes of scale 1/256 and zero point -128")
    _shape(importer, output, source.shape)
    importer.emit(Softmax, (source,), output, beta=float(importer.option("Beta", 1.0)))


def _dequantize(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((1,))
    source = importer.from_host(0)
    record = importer.model.tensors[operator.outputs[0]]
    if record.kind != "FLOAT32" or source.dtype != "int8":
        importer.refuse(f"gives {record.kind}; weft dequantizes int8 to float32")
    output = replace(source, name=record.name, data=None, scale=1.0, zero_point=0, dtype="float32")
    importer.emit(Dequantize, (source,), output)


RULES: dict[str, Callable[[Importer, TfliteOperator], None]] = {
    "ADD": _elementwise(Add),
    "AVERAGE_POOL_2D": _pool(AveragePool2d),
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEQUANTIZE": _dequantize,
    "EXPAND_DIMS": _reshape,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _pool(MaxPool2d),
    "MEAN": _mean,
    "MUL": _elementwise(Multiply),
    "PAD": _pad,
    "PACK": _shape_arithmetic,
    "PADV2": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu("RELU"),
    "RELU6": _relu("RELU6"),
    "RELU_N1_TO_1": _relu("RELU_N1_TO_1"),
    "RESHAPE": _reshape,
    "SHAPE": _shape_arithmetic,
    "SOFTMAX": _softmax,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _shape_arithmetic,
    "SUB": _elementwise(Subtract),
    "TRANSPOSE_CONV": _transpose_conv,
}
"""By the operator's name in the schema."""
