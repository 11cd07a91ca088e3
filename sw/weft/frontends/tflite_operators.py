"""What each TFLite operator is in weft's graph, one function an operator; see the table `RULES`.

Sources of the arithmetic: TFLite's reference kernels (``kernels/internal/reference``), measured
through the interpreter with ``BUILTIN_REF``.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weft.frontends.tflite_file import TfliteOperator, TfliteTensor
from weft.frontends.tflite_functions import element_function
from weft.frontends.tflite_layers import (
    conv_2d,
    depthwise_conv_2d,
    fully_connected,
    transpose_conv,
)
from weft.frontends.tflite_pieces import (
    ACTIVATION_BOUNDS,
    Importer,
    clamp_of,
    fused_clamp,
    image_of,
    option_pair,
    require_same_quantization,
    require_shape,
    window_padding,
    window_sides,
)
from weft.frontends.tflite_slices import slice_, split, split_v, strided_slice
from weft.ir import (
    Add,
    AveragePool2d,
    Concatenate,
    Dequantize,
    MaxPool2d,
    Multiply,
    Operation,
    Pad,
    Rescale,
    Softmax,
    Subtract,
    Tensor,
    Transpose,
)
from weft_hw.instructions import Rounding

__all__ = ["RULES", "Place", "Rule"]


class Place(enum.Enum):
    """Who computes an operator."""

    MACHINE = "the accelerator"
    COMPILER = "the compiler"
    HOST = "the host, after the accelerator's run"


@dataclass(frozen=True)
class Rule:
    """How an operator is read.

    Parameters
    ----------
    apply : function of the importer and the operator
    supported : str
        What of it, for people.
    place : Place
    """

    apply: Callable[[Importer, TfliteOperator], None]
    supported: str
    place: Place = Place.MACHINE


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
            clamp=fused_clamp(importer, output),
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


def _relu(bounds: tuple[float, float]) -> Callable[[Importer, TfliteOperator], None]:
    def rule(importer: Importer, operator: TfliteOperator) -> None:
        importer.expect((1,))
        source, output = importer.activation(0), importer.result()
        require_shape(importer, output, source.shape)
        clamp = clamp_of(bounds, output)
        importer.emit(Rescale, (source,), output, clamp=clamp, rounding=Rounding.TWO_STEP)

    return rule


def _quantize(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((1,))
    output = importer.result()
    if importer.quantized_input(output):
        return
    source = importer.activation(0)
    require_shape(importer, output, source.shape)
    importer.emit(Rescale, (source,), output, rounding=Rounding.TWO_STEP)


# Windows -----------------------------------------------------------------------------------------


def _pool(
    kind: type[MaxPool2d] | type[AveragePool2d],
) -> Callable[[Importer, TfliteOperator], None]:
    def rule(importer: Importer, operator: TfliteOperator) -> None:
        importer.expect((1,))
        source, output = image_of(importer, 0), importer.result()
        require_same_quantization(importer, (source,), output)
        kernel = option_pair(importer, "FilterHeight", "FilterWidth")
        stride = option_pair(importer, "StrideH", "StrideW")
        padding = window_padding(importer, source, kernel, stride)
        sides = window_sides(importer, source, kernel, stride, padding)
        require_shape(importer, output, (*sides, source.shape[2]))
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
            clamp=fused_clamp(importer, output),
            **fields,
        )

    return rule


def _mean(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2,))
    source, output = image_of(importer, 0), importer.result()
    axes = {int(axis) % 4 for axis in importer.constant(1, ("INT32",)).reshape(-1)}
    if axes != {1, 2}:
        importer.refuse(f"averages over the axes {sorted(axes)}; weft takes height and width")
    sides = source.shape[:2]
    channels = source.shape[2]
    keep = len(output.shape) == 3
    require_shape(importer, output, (1, 1, channels) if keep else (channels,))
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
    require_same_quantization(importer, (source,), output)
    if source.elements != output.elements:
        importer.refuse(f"reshapes {source.shape} to {output.shape}")
    importer.reshape(source, output)


def _shape_arithmetic(importer: Importer, operator: TfliteOperator) -> None:
    """Integers that a RESHAPE reads as its target: the file has every shape already."""
    for index in operator.outputs:
        record = importer.model.tensors[index]
        if record.kind not in ("INT32", "INT64"):
            importer.refuse(f"weft computes {operator.kind} on shapes only, not on {record.kind}")


def _strided_slice(importer: Importer, operator: TfliteOperator) -> None:
    if importer.model.tensors[operator.outputs[0]].kind == "INT8":
        strided_slice(importer, operator)
    else:
        _shape_arithmetic(importer, operator)


def _pad(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2, 3))
    source, output = image_of(importer, 0), importer.result()
    require_same_quantization(importer, (source,), output)
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
    require_shape(
        importer,
        output,
        (source.shape[0] + top + bottom, source.shape[1] + left + right, source.shape[2]),
    )
    importer.emit(Pad, (source,), output, padding=((top, bottom), (left, right)))


def _transpose(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2,))
    source, output = image_of(importer, 0), importer.result()
    require_same_quantization(importer, (source,), output)
    axes = [int(axis) % 4 for axis in importer.constant(1, ("INT32", "INT64")).reshape(-1)]
    if sorted(axes) != [0, 1, 2, 3] or axes[0] != 0:
        importer.refuse(f"puts the axes in the order {axes}; weft leaves the batch in front")
    permutation = tuple(axis - 1 for axis in axes[1:])
    require_shape(importer, output, tuple(source.shape[axis] for axis in permutation))
    importer.emit(Transpose, (source,), output, permutation=permutation)


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
    require_same_quantization(importer, inputs, output)
    channels = sum(tensor.shape[-1] for tensor in inputs)
    for tensor in inputs:
        if tensor.shape[:-1] != output.shape[:-1]:
            importer.refuse(f"joins {tensor.name} of shape {tensor.shape} to {output.shape}")
    require_shape(importer, output, (*output.shape[:-1], channels))
    importer.emit(Concatenate, inputs, output)


# On the host -------------------------------------------------------------------------------------


def _softmax(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((1,))
    source, output = importer.from_host(0), importer.result()
    if source.dtype != "int8" or (output.scale, output.zero_point) != (1 / 256, -128):
        importer.refuse("weft takes int8 codes to int8 codes of scale 1/256 and zero point -128")
    require_shape(importer, output, source.shape)
    importer.emit(Softmax, (source,), output, beta=float(importer.option("Beta", 1.0)))


def _dequantize(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((1,))
    source = importer.from_host(0)
    record = importer.model.tensors[operator.outputs[0]]
    if record.kind != "FLOAT32" or source.dtype != "int8":
        importer.refuse(f"gives {record.kind}; weft dequantizes int8 to float32")
    output = replace(source, name=record.name, data=None, scale=1.0, zero_point=0, dtype="float32")
    importer.emit(Dequantize, (source,), output)


BOXES = "boxes of rows, columns and neighbouring channels"

RULES: dict[str, Rule] = {
    "ABS": Rule(element_function, "any scales"),
    "ADD": Rule(_elementwise(Add), "equal shapes, or a constant that is broadcast"),
    "AVERAGE_POOL_2D": Rule(_pool(AveragePool2d), "any window"),
    "CONCATENATION": Rule(_concatenation, "channels, equal scales and zero points"),
    "CONV_2D": Rule(conv_2d, "int8 and int4 weights, stride, dilation, groups"),
    "DEPTHWISE_CONV_2D": Rule(depthwise_conv_2d, "int8 and int4 weights, any depth multiplier"),
    "DEQUANTIZE": Rule(_dequantize, "int8 to float32, in front of an output", Place.HOST),
    "ELU": Rule(element_function, "any scales, as TFLite's optimized kernel (there is no other)"),
    "EXP": Rule(element_function, "any scales"),
    "EXPAND_DIMS": Rule(_reshape, "as RESHAPE", Place.COMPILER),
    "FULLY_CONNECTED": Rule(
        fully_connected, "int8 and int4 weights, one product a sample, or one a pixel"
    ),
    "GELU": Rule(element_function, "any scales, exact and approximate"),
    "HARD_SWISH": Rule(element_function, "input scale less than 128 times the output's"),
    "LEAKY_RELU": Rule(element_function, "any scales"),
    "LOG": Rule(element_function, "input of zero point -128"),
    "LOGISTIC": Rule(element_function, "any input scale"),
    "MAX_POOL_2D": Rule(_pool(MaxPool2d), "any window"),
    "MEAN": Rule(_mean, "over height and width"),
    "MUL": Rule(_elementwise(Multiply), "equal shapes, or a constant that is broadcast"),
    "NEG": Rule(element_function, "of codes: -q modulo 256, as TFLite computes it"),
    "PACK": Rule(_shape_arithmetic, "of shapes", Place.COMPILER),
    "PAD": Rule(_pad, "height and width"),
    "PADV2": Rule(_pad, "height and width, with the zero point"),
    "QUANTIZE": Rule(_quantize, "int8 to int8; float32 inputs of the model on the host"),
    "RELU": Rule(_relu(ACTIVATION_BOUNDS["RELU"]), "any scales"),
    "RELU6": Rule(_relu(ACTIVATION_BOUNDS["RELU6"]), "any scales"),
    "RELU_N1_TO_1": Rule(_relu(ACTIVATION_BOUNDS["RELU_N1_TO_1"]), "any scales"),
    "RELU_0_TO_1": Rule(_relu((0.0, 1.0)), "any scales"),
    "RESHAPE": Rule(
        _reshape,
        "images to vectors; vectors of one pixel and inputs to images",
        Place.COMPILER,
    ),
    "RSQRT": Rule(element_function, "input of zero point -128"),
    "SHAPE": Rule(_shape_arithmetic, "in front of a RESHAPE", Place.COMPILER),
    "SLICE": Rule(slice_, BOXES),
    "SOFTMAX": Rule(_softmax, "over channels of a vector, in front of an output", Place.HOST),
    "SPLIT": Rule(split, "rows, columns or channels"),
    "SPLIT_V": Rule(split_v, "rows, columns or channels"),
    "SQRT": Rule(element_function, "input of zero point -128"),
    "SQUEEZE": Rule(_reshape, "as RESHAPE", Place.COMPILER),
    "STRIDED_SLICE": Rule(_strided_slice, f"{BOXES}, positive strides; of shapes by the compiler"),
    "SUB": Rule(_elementwise(Subtract), "equal shapes, or a constant that is broadcast"),
    "TANH": Rule(element_function, "any input scale"),
    "TRANSPOSE": Rule(
        _transpose,
        "rows and columns on the accelerator; any axes of inputs and outputs on the host; channels "
        "in front of a RESHAPE to vectors by the compiler",
    ),
    "TRANSPOSE_CONV": Rule(transpose_conv, "int8 weights"),
}
"""By the operator's name in the schema."""
