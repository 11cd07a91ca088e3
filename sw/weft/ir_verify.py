"""The graph's rules, one function a kind of operation; see :mod:`weft.ir`."""

import math

import numpy as np
from numpy.typing import NDArray

from weft.ir import (
    Add,
    AveragePool2d,
    Concatenate,
    Conv2d,
    Dequantize,
    Flatten,
    Graph,
    GraphError,
    HostOperation,
    Interleave,
    Linear,
    Lookup,
    MaxPool2d,
    Multiply,
    Operation,
    Pad,
    Rescale,
    Reshape,
    Slice,
    Softmax,
    Subtract,
    Table,
    Tensor,
    Transpose,
    pool_output_size,
)
from weft_hw.instructions import Rounding

__all__ = ["verify_graph"]


class _Rule(Exception):
    """A broken rule, without its place."""


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise _Rule(text)


def verify_graph(graph: Graph, after: str) -> None:
    """Raise `GraphError` at the first broken rule."""
    where = "the graph"
    try:
        _require(len(graph.by_name) == len(graph.tensors), "two tensors have one name")
        _require(graph.layout in ("CHW", "HWC"), f"layout {graph.layout!r} is not known")
        _require(bool(graph.inputs), "there is no input")
        _require(bool(graph.outputs), "there is no output")
        names = [operation.name for operation in graph.operations]
        _require(len(set(names)) == len(names), "two operations have one name")
        for tensor in graph.tensors:
            where = f"tensor {tensor.name}"
            _check_tensor(tensor)
        defined = {tensor.name for tensor in graph.tensors if tensor.data is not None}
        for name in graph.inputs:
            where = f"input {name}"
            _require(name in graph.by_name, "there is no such tensor")
            _require(name not in defined, "is given twice or is constant")
            defined.add(name)
        of_host: set[str] = set()
        for operation in graph.operations:
            where = f"operation {operation.name} ({operation.kind})"
            for name in operation.inputs:
                _require(name in defined, f"reads {name} before it is computed")
                if not isinstance(operation, HostOperation):
                    _require(name not in of_host, f"reads {name}, which the host computes later")
            _require(operation.output in graph.by_name, f"writes unknown tensor {operation.output}")
            _require(operation.output not in defined, f"{operation.output} has two producers")
            _check_operation(operation, graph)
            defined.add(operation.output)
            if isinstance(operation, HostOperation):
                of_host.add(operation.output)
        for name in graph.outputs:
            where = f"output {name}"
            _require(name in defined, "is never computed")
    except _Rule as broken:
        raise GraphError(f"after {after}: {where}: {broken}") from None


def _check_tensor(tensor: Tensor) -> None:
    _require(len(tensor.shape) in (1, 3), f"shape {tensor.shape} is neither (H, W, C) nor (C,)")
    _require(all(size > 0 for size in tensor.shape), f"shape {tensor.shape} is empty")
    _require(
        isinstance(tensor.scale, float) and math.isfinite(tensor.scale) and tensor.scale > 0,
        f"scale {tensor.scale!r} is not a positive float",
    )
    _require(tensor.dtype in ("int8", "float32"), f"dtype {tensor.dtype!r} is not known")
    _require(-128 <= tensor.zero_point <= 127, f"zero point {tensor.zero_point} is not an int8")
    if tensor.data is not None:
        _require(tensor.data.dtype == np.int8, f"data are {tensor.data.dtype}, not int8")
        _require(tensor.data.shape == tensor.shape, f"data have shape {tensor.data.shape}")


def _check_operation(operation: Operation, graph: Graph) -> None:
    inputs = [graph.tensor(name) for name in operation.inputs]
    output = graph.scaled(operation)
    if isinstance(operation, Concatenate):
        _require(len(inputs) >= 2, f"has {len(inputs)} inputs, not two or more")
    elif isinstance(operation, Interleave):
        count = operation.stride[0] * operation.stride[1]
        _require(len(inputs) == count, f"has {len(inputs)} inputs, not {count}")
    else:
        expected = 2 if isinstance(operation, Add | Subtract | Multiply) else 1
        _require(len(inputs) == expected, f"has {len(inputs)} inputs, not {expected}")
    if not isinstance(operation, HostOperation):
        _require(output.dtype == "int8", f"gives {output.dtype}, which only the host computes")
    clamp = getattr(operation, "clamp", (-128, 127))
    _require(-128 <= clamp[0] <= clamp[1] <= 127, f"clamp {clamp} is not a range of int8")
    table = getattr(operation, "table", None)
    if table is not None:
        _check_table(table)
    match operation:
        case Conv2d():
            _check_conv(operation, inputs[0], output)
        case Linear():
            _check_linear(operation, inputs[0], output)
        case MaxPool2d() | AveragePool2d():
            _check_pool(operation, inputs[0], output)
        case Add() | Multiply() | Subtract():
            if isinstance(operation, Subtract):
                _require(operation.rounding == Rounding.TWO_STEP, "rounds TWO_STEP only")
            for tensor in inputs:
                _require(tensor.shape == output.shape, f"{tensor.name} and {output.name} differ")
        case Lookup():
            _check_codes(operation.codes)
            _require(inputs[0].shape == output.shape, "input and output differ in shape")
        case Rescale():
            _require(inputs[0].shape == output.shape, "input and output differ in shape")
        case Flatten():
            _require(operation.order in ("CHW", "HWC"), f"order {operation.order!r} is not known")
            _require(output.shape == (inputs[0].elements,), f"gives a vector, not {output.shape}")
            _check_same_quantization(inputs[0], output)
        case Reshape():
            _require(output.elements == inputs[0].elements, "changes the number of elements")
            _check_same_quantization(inputs[0], output)
        case Pad():
            _check_pad(operation, inputs[0], output)
        case Concatenate():
            _check_concatenate(inputs, output)
        case Interleave():
            _check_interleave(operation, inputs, output)
        case Slice():
            _check_slice(operation, inputs[0], output)
        case Transpose():
            _check_transpose(operation, inputs[0], output)
            _require(graph.layout == "HWC", f"does not go with the layout {graph.layout}")
        case Softmax():
            _require(inputs[0].shape == output.shape, "input and output differ in shape")
            _require((output.scale, output.zero_point) == (1 / 256, -128), "gives another scale")
        case Dequantize():
            _require(inputs[0].shape == output.shape, "input and output differ in shape")
            _require(output.dtype == "float32", f"gives {output.dtype}, not float32")
        case _:
            raise _Rule("is of no known kind")


def _check_table(table: Table) -> None:
    _check_codes(table.codes)
    _require(math.isfinite(table.scale) and table.scale > 0, f"looks up scale {table.scale!r}")
    _require(-128 <= table.zero_point <= 127, f"looks up zero point {table.zero_point}")


def _check_codes(codes: NDArray[np.int8]) -> None:
    _require(codes.dtype == np.int8, f"a table of {codes.dtype}, not int8")
    _require(codes.shape == (256,), f"a table of shape {codes.shape}, not (256,)")


def _check_same_quantization(first: Tensor, second: Tensor) -> None:
    _require(
        (first.scale, first.zero_point) == (second.scale, second.zero_point),
        "input and output differ in scale or zero point",
    )


def _check_pad(operation: Pad, source: Tensor, output: Tensor) -> None:
    _require(len(source.shape) == 3, "works on images")
    _require(min(min(axis) for axis in operation.padding) >= 0, "padding is negative")
    sides = zip(source.shape, (*operation.padding, (0, 0)), strict=True)
    expected = tuple(size + sum(axis) for size, axis in sides)
    _require(output.shape == expected, f"gives {expected}, not {output.shape}")
    _check_same_quantization(source, output)


def _check_concatenate(inputs: list[Tensor], output: Tensor) -> None:
    for tensor in inputs:
        _require(tensor.shape[:-1] == output.shape[:-1], f"{tensor.name} differs in its sides")
        _check_same_quantization(tensor, output)
    channels = sum(tensor.shape[-1] for tensor in inputs)
    _require(output.shape[-1] == channels, f"gives {channels} channels, not {output.shape[-1]}")


def _check_interleave(operation: Interleave, inputs: list[Tensor], output: Tensor) -> None:
    height, width, channels = output.shape
    stride_y, stride_x = operation.stride
    for number, tensor in enumerate(inputs):
        y, x = divmod(number, stride_x)
        expected = (-(-(height - y) // stride_y), -(-(width - x) // stride_x), channels)
        _require(tensor.shape == expected, f"input {number} must be {expected}")
        _check_same_quantization(tensor, output)


def _check_slice(operation: Slice, source: Tensor, output: Tensor) -> None:
    axes = len(source.shape)
    given = (len(operation.start), len(operation.step), len(output.shape))
    _require(given == (axes,) * 3, f"start, step and output have {given} axes, not {axes}")
    _require(operation.step[-1] == 1, "takes neighbouring channels only")
    for axis, (first, step, count) in enumerate(
        zip(operation.start, operation.step, output.shape, strict=True)
    ):
        _require(step >= 1, f"step {operation.step} must be positive")
        _require(
            0 <= first and first + (count - 1) * step < source.shape[axis],
            f"axis {axis} of {source.name} ends before element {first + (count - 1) * step}",
        )
    _check_same_quantization(source, output)


def _check_transpose(operation: Transpose, source: Tensor, output: Tensor) -> None:
    axes = operation.permutation
    _require(len(source.shape) == 3, "works on images")
    _require(sorted(axes) == [0, 1, 2], f"{axes} is no permutation of three axes")
    expected = tuple(source.shape[axis] for axis in axes)
    _require(output.shape == expected, f"gives {expected}, not {output.shape}")
    _check_same_quantization(source, output)


def _check_weights(operation: Conv2d | Linear, channels: int) -> None:
    weights, scales, bias = operation.weights, operation.weight_scales, operation.bias
    _require(weights.dtype == np.int8, f"weights are {weights.dtype}, not int8")
    _require(weights.shape[0] == channels, f"{weights.shape[0]} filters for {channels} channels")
    _require(scales.dtype == np.float64, f"weight scales are {scales.dtype}, not float64")
    _require(scales.shape == (channels,), f"weight scales have shape {scales.shape}")
    _require(bool(np.all(np.isfinite(scales) & (scales > 0))), "weight scales must be positive")
    if bias is not None:
        _require(bias.dtype == np.int32, f"bias is {bias.dtype}, not int32")
        _require(bias.shape == (channels,), f"bias has shape {bias.shape}")


def _check_conv(operation: Conv2d, source: Tensor, output: Tensor) -> None:
    _require(len(source.shape) == 3 and len(output.shape) == 3, "works on images")
    _require(operation.weights.ndim == 4, "weights must have four axes")
    bits = operation.weight_bits
    _require(bits in (8, 4, 2), f"weights of {bits} bits, not 8, 4 or 2")
    half = 1 << (bits - 1)
    fits = bool(((operation.weights >= -half) & (operation.weights < half)).all())
    _require(fits, f"weights outside [{-half}, {half - 1}], the range of {bits} bits")
    _check_weights(operation, output.shape[2])
    _, height, width, depth = operation.weights.shape
    _require(operation.groups >= 1, f"{operation.groups} groups")
    _require(
        depth * operation.groups == source.shape[2],
        f"weights of depth {depth} with {operation.groups} groups on {source.shape[2]} channels",
    )
    filters = output.shape[2]
    _require(filters % operation.groups == 0, f"{filters} filters in {operation.groups} groups")
    _check_window(operation, (height, width), operation.dilation, source, output)


def _check_linear(operation: Linear, source: Tensor, output: Tensor) -> None:
    _require(len(source.shape) == 1 and len(output.shape) == 1, "works on vectors")
    _require(operation.weights.ndim == 2, "weights must have two axes")
    _check_weights(operation, output.shape[0])
    _require(
        operation.weights.shape[1] == source.shape[0],
        f"weights take {operation.weights.shape[1]} values, the input has {source.shape[0]}",
    )


def _check_pool(operation: MaxPool2d | AveragePool2d, source: Tensor, output: Tensor) -> None:
    _require(len(source.shape) == 3 and len(output.shape) == 3, "works on images")
    _require(source.shape[2] == output.shape[2], "input and output differ in channels")
    if isinstance(operation, MaxPool2d) or operation.division == "codes":
        _check_same_quantization(source, output)
    if isinstance(operation, AveragePool2d) and operation.division == "codes":
        _require(not operation.count_include_pad, "averages of codes do not count padding")
    if isinstance(operation, AveragePool2d) and operation.division == "mean":
        _require(operation.rounding == Rounding.TWO_STEP, "a mean rounds TWO_STEP only")
    for axis, kernel in zip(operation.padding, operation.kernel, strict=True):
        _require(max(axis) < kernel, f"padding {axis} of a window of {kernel} leaves windows empty")
    _check_window(operation, operation.kernel, (1, 1), source, output)


def _check_window(
    operation: Conv2d | MaxPool2d | AveragePool2d,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    source: Tensor,
    output: Tensor,
) -> None:
    for axis in range(2):
        padding, stride = operation.padding[axis], operation.stride[axis]
        _require(min(padding) >= 0, f"padding {padding} is negative")
        _require(kernel[axis] >= 1, f"kernel {kernel} is empty")
        _require(stride >= 1 and dilation[axis] >= 1, "stride and dilation must be positive")
        size = pool_output_size(source.shape[axis], kernel[axis], stride, padding, dilation[axis])
        _require(
            size == output.shape[axis],
            f"axis {axis} of the output must be {size}, not {output.shape[axis]}",
        )
