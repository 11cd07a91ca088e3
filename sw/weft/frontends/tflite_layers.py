"""TFLite's operators with weights: convolutions and dense layers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.frontends.tflite_file import TfliteOperator
from weft.frontends.tflite_pieces import (
    Importer,
    bias_of,
    fused_clamp,
    image_of,
    option_pair,
    require_shape,
    weights_of,
    window_padding,
    window_sides,
)
from weft.ir import Conv2d, Interleave, Linear, Tensor
from weft_hw.instructions import Rounding

__all__ = ["conv_2d", "depthwise_conv_2d", "fully_connected", "transpose_conv"]


def conv_2d(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = image_of(importer, 0), importer.result()
    weights, scales = weights_of(importer, 0, 4)
    filters, height, width, depth = weights.shape
    channels = source.shape[2]
    if depth == 0 or channels % depth or filters % (channels // depth):
        importer.refuse(f"has filters of depth {depth} for {channels} channels")
    _emit_convolution(importer, source, output, weights, scales, channels // depth)


def depthwise_conv_2d(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = image_of(importer, 0), importer.result()
    weights, scales = weights_of(importer, 3, 4)
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
    stride = option_pair(importer, "StrideH", "StrideW")
    dilation = option_pair(importer, "DilationHFactor", "DilationWFactor", 1)
    padding = window_padding(importer, source, (kernel[0], kernel[1]), stride, dilation)
    sides = window_sides(importer, source, (kernel[0], kernel[1]), stride, padding, dilation)
    if len(output.shape) != 3:
        importer.refuse(f"gives an image, but the file says {output.shape}")
    require_shape(importer, output, (*sides, filters))
    importer.emit(
        Conv2d,
        (source,),
        output,
        weights=weights,
        weight_scales=scales,
        bias=bias_of(importer, filters),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        clamp=fused_clamp(importer, output),
        rounding=Rounding.TWO_STEP,
    )


def fully_connected(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = importer.activation(0), importer.result()
    weights, scales = weights_of(importer, 0, 2)
    if importer.option("WeightsFormat", 0) != 0:
        importer.refuse("has shuffled weights; convert the model with the default weights format")
    filters, features = weights.shape
    fields: dict[str, Any] = {
        "weight_scales": scales,
        "bias": bias_of(importer, filters),
        "clamp": fused_clamp(importer, output),
        "rounding": Rounding.HALF_UP,
    }
    if len(output.shape) == 3:  # keep_num_dims: each pixel is a vector of its own
        if len(source.shape) != 3 or source.shape[2] != features:
            importer.refuse(f"multiplies {source.shape} by weights for {features} values")
        require_shape(importer, output, (*source.shape[:2], filters))
        by_tap = np.ascontiguousarray(weights.reshape(filters, 1, 1, features))
        importer.emit(Conv2d, (source,), output, weights=by_tap, **fields)
        return
    if source.elements != features:
        importer.refuse(
            f"multiplies {source.elements} values a sample by weights for {features}; only one "
            "product a sample is supported"
        )
    require_shape(importer, output, (filters,))
    if len(source.shape) == 3:
        vector = importer.between(source, "flat", shape=(features,), data=None)
        importer.reshape(source, vector, ".flatten")
        source = vector
    importer.emit(Linear, (source,), output, weights=weights, **fields)


def transpose_conv(importer: Importer, operator: TfliteOperator) -> None:
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
    weights, scales = weights_of(importer, 0, 4, ("INT8",))
    filters, *kernel, depth = weights.shape
    if depth != source.shape[2] or filters != output.shape[2]:
        importer.refuse(f"has {filters} filters of depth {depth} for {source.shape[2]} channels")
    stride = option_pair(importer, "StrideH", "StrideW")
    # The padding is that of the convolution which this one transposes.
    forward = window_padding(importer, output, (kernel[0], kernel[1]), stride)
    bias = bias_of(importer, filters, 3)
    clamp = fused_clamp(importer, output)
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
