"""The graph: a short list of integer operations with explicit quantization.

A front end builds a :class:`Graph` from a model; passes rewrite it; the compiler lowers it.

What a front end owes the compiler
----------------------------------
* Every number is exact, as the model has it: scales are Python floats (float64 values of whatever
  the model stores), zero points Python ints, weights int8 arrays, bias an int32 array at the scale
  ``input scale * weight scale[channel]`` and zero point 0. Nothing is pre-multiplied or rounded.
* Shapes carry no batch axis. Images are ``(height, width, channels)``, vectors ``(channels,)``. A
  model that itself has channels first (PyTorch) says so by ``Graph.layout = "CHW"``: its inputs and
  outputs are then handed over by the user as (C, H, W), while every shape *here* stays (H, W, C).
* Conv2d weights are ``[out, kernel row, kernel column, in]``; Linear weights ``[out, in]``, with
  columns in the order of the vector that the Linear reads. After a ``Flatten`` with ``order="CHW"``
  that is the model's own order: a pass, not the front end, permutes columns.
* A fused ReLU or clamp is the operation's ``clamp``, in output codes: ReLU is
  ``(output zero point, 127)``, no activation is ``(-128, 127)``. One that the model quantizes
  separately from its producer is a :class:`Rescale`.
* ``name`` of an operation is unique and short (it names the layer in reports); ``source`` is where
  it comes from in the model, for people (node name, module path, or file and line).
* Operations are in topological order; each tensor has one producer.

What each operation computes (``q`` codes, ``s`` scales, ``z`` zero points)::

    Conv2d, Linear   q_out = clamp(z_out + round((bias[c] + sum w * (q - z)) * s * s_w[c] / s_out))
    Add              q_out = clamp(z_out + round((s_1 (q_1 - z_1) + s_2 (q_2 - z_2)) / s_out))
    MaxPool2d        q_out = max over the window's existing elements (same scale and zero point)
    AveragePool2d    q_out = clamp(z_out + round(sum (q - z) * s / (s_out * n)))
                     (or as its ``division`` has it)
    Rescale          q_out = clamp(z_out + round((q - z) * s / s_out))
    Multiply         q_out = clamp(z_out + round((q_1 - z_1) (q_2 - z_2) * s_1 * s_2 / s_out))
    Subtract         like Add, with s_1 (q_1 - z_1) - s_2 (q_2 - z_2)
    Lookup           q_out = codes[q + 128]
    Pad, Concatenate, Interleave, Slice, Transpose, Flatten, Reshape move codes and change none

``round`` is the operation's ``rounding``, by a 31-bit multiplier (:mod:`weft_hw.arithmetic`). What
TFLite's reference kernels compute is, besides their rounding: Add and Subtract with TWO_STEP, and
``AveragePool2d.division`` ``"codes"`` and ``"mean"``.

An operation with a ``clamp`` may have a :class:`Table` behind it: ``s_out`` and ``z_out`` above are
then the table's, and its entry for the clamped code is the result.

A :class:`HostOperation` is computed by the host after the accelerator's run. Nothing but other
host operations and the graph's outputs may read its result.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weft_hw.instructions import Rounding

__all__ = [
    "INT8_RANGE",
    "Add",
    "AveragePool2d",
    "Concatenate",
    "Conv2d",
    "Dequantize",
    "Flatten",
    "Graph",
    "GraphError",
    "HostOperation",
    "Interleave",
    "Linear",
    "Lookup",
    "MaxPool2d",
    "Multiply",
    "Operation",
    "Pad",
    "Rescale",
    "Reshape",
    "Slice",
    "Softmax",
    "Subtract",
    "Table",
    "Tensor",
    "Transpose",
    "pool_output_size",
]

INT8_RANGE = (-128, 127)

FloatRule = Literal["reciprocal", "divide"]
Layout = Literal["CHW", "HWC"]
Division = Literal["scale", "codes", "mean"]
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


class GraphError(Exception):
    """The graph breaks a rule of this module: a mistake in the front end or pass that is named."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tensor:
    """One tensor of int8 codes (or of a host operation's float32 values), without batch axis.

    Parameters
    ----------
    name : str
    shape : tuple of int
        (height, width, channels) or (channels,).
    scale : float
    zero_point : int
    data : int8 array or None
        The value of a constant, in the order of ``shape``; None for what is computed or given.
    dtype : {"int8", "float32"}
        float32 (of scale 1 and zero point 0) only for results of host operations.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    data: NDArray[np.int8] | None = None
    dtype: str = "int8"

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        kind = "const " if self.data is not None else ""
        return (
            f"{kind}{self.name}: {self.dtype}[{size}] scale={self.scale!r} zero={self.zero_point}"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """A function of one code, applied to what an operation computes.

    Parameters
    ----------
    codes : int8 array [256]
        Results for the codes -128 to 127, in this order.
    scale : float
    zero_point : int
        Of the codes that are looked up: what the operation brings its sums to.
    """

    codes: NDArray[np.int8]
    scale: float
    zero_point: int

    def __repr__(self) -> str:
        return f"Table(scale={self.scale!r}, zero_point={self.zero_point})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """What all operations have.

    Parameters
    ----------
    name : str
        Unique in the graph; names the layer in reports and errors.
    inputs : tuple of str
        Names of the input tensors.
    output : str
        Name of the output tensor.
    source : str
        Where the model has it.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    source: str = ""

    @property
    def kind(self) -> str:
        """The operation's name for people."""
        return type(self).__name__

    def attributes(self) -> str:
        """Parameters in one line; arrays as shapes only."""
        shown = []
        for key in self.__dataclass_fields__:
            if key in ("name", "inputs", "output", "source"):
                continue
            value = getattr(self, key)
            if isinstance(value, np.ndarray):
                text = f"{value.dtype}[{'x'.join(map(str, value.shape))}]"
            elif isinstance(value, Rounding):
                text = value.name
            else:
                text = repr(value).replace(" ", "")
            shown.append(f"{key}={text}")
        return " ".join(shown)

    def __str__(self) -> str:
        source = f"  # {self.source}" if self.source else ""
        text = f"{self.output} = {self.kind}({', '.join(self.inputs)}) {self.attributes()}"
        return f"{self.name}: {text.rstrip()}{source}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Operation):
    """Two-dimensional convolution with bias, requantization and clamp.

    Parameters
    ----------
    weights : int8 array [out, kernel row, kernel column, in / groups]
    weight_scales : float64 array [out]
        One a channel; a model with one scale a tensor repeats it.
    bias : int32 array [out] or None
    stride : (y, x)
    padding : ((top, bottom), (left, right))
        Padded positions count as real 0.
    dilation : (y, x)
    groups : int
        Output channel c reads input channels of group ``c // (out / groups)``; as many groups as
        input channels make a depthwise convolution.
    clamp : (low, high), in output codes
    table : Table or None
        As in every operation with a clamp: applied last.
    rounding : Rounding
    weight_bits : int
        8, 4 or 2: all weights are numbers of that width in two's complement.
    """

    weights: NDArray[np.int8]
    weight_scales: NDArray[np.float64]
    bias: NDArray[np.int32] | None = None
    weight_bits: int = 8
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    clamp: Pair = INT8_RANGE
    table: Table | None = None
    rounding: Rounding = Rounding.HALF_EVEN


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Operation):
    """Matrix times vector, with bias, requantization and clamp; parameters as in :class:`Conv2d`.

    ``weights`` is [out, in]; the input and the output are vectors.
    """

    weights: NDArray[np.int8]
    weight_scales: NDArray[np.float64]
    bias: NDArray[np.int32] | None = None
    clamp: Pair = INT8_RANGE
    table: Table | None = None
    rounding: Rounding = Rounding.HALF_EVEN


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Operation):
    """Sum of two tensors of one shape, each with its own scale and zero point."""

    clamp: Pair = INT8_RANGE
    table: Table | None = None
    rounding: Rounding = Rounding.HALF_EVEN


@dataclass(frozen=True, eq=False, kw_only=True)
class Subtract(Operation):
    """The first tensor minus the second; only as TFLite computes it (rounding TWO_STEP)."""

    clamp: Pair = INT8_RANGE
    table: Table | None = None
    rounding: Rounding = Rounding.TWO_STEP


@dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Operation):
    """Product, element by element, of two tensors of one shape."""

    clamp: Pair = INT8_RANGE
    table: Table | None = None
    rounding: Rounding = Rounding.HALF_EVEN


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool2d(Operation):
    """Largest element of each window; padded positions never win.

    Parameters
    ----------
    kernel, stride : (y, x)
    padding : ((top, bottom), (left, right))
        Less than the kernel on each side, so that no window is empty.
    clamp : (low, high), in output codes
    """

    kernel: Pair
    stride: Pair
    padding: Padding = ((0, 0), (0, 0))
    clamp: Pair = INT8_RANGE
    table: Table | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool2d(Operation):
    """Mean of each window.

    Parameters
    ----------
    kernel, stride : (y, x)
    padding : ((top, bottom), (left, right))
        Less than the kernel on each side, so that no window is empty.
    count_include_pad : bool
        Whether padded positions count in the divisor (they are real 0 in the sum).
    division : {"scale", "codes", "mean"}
        * ``"scale"``: by one multiplier of ``s / (s_out n)``, with ``rounding``.
        * ``"codes"``: ``clamp(sum q / n)`` exactly, halves away from zero; input and output have
          the same scale and zero point (TFLite's AVERAGE_POOL_2D).
        * ``"mean"``: by the multiplier of ``s / s_out`` divided by n as TFLite's MEAN divides it,
          with rounding TWO_STEP.
    clamp : (low, high), in output codes
    rounding : Rounding
    """

    kernel: Pair
    stride: Pair
    padding: Padding = ((0, 0), (0, 0))
    count_include_pad: bool = True
    clamp: Pair = INT8_RANGE
    table: Table | None = None
    rounding: Rounding = Rounding.HALF_EVEN
    division: Division = "scale"


@dataclass(frozen=True, eq=False, kw_only=True)
class Rescale(Operation):
    """The same values in another scale, zero point or clamp: a ReLU or clamp of its own."""

    clamp: Pair = INT8_RANGE
    table: Table | None = None
    rounding: Rounding = Rounding.HALF_EVEN


@dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Operation):
    """Any function of one code.

    Parameters
    ----------
    codes : int8 array [256]
        Results for the codes -128 to 127, in this order.
    """

    codes: NDArray[np.int8]


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Operation):
    """An image as a vector.

    Parameters
    ----------
    order : {"CHW", "HWC"}
        The order in which the *model* reads the image's elements into the vector.
    """

    order: Layout = "CHW"


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Operation):
    """The same elements in the same order (height, width, channels innermost) in another shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(Operation):
    """An image with a border of real 0 (the zero point's code).

    Parameters
    ----------
    padding : ((top, bottom), (left, right))
    """

    padding: Padding


@dataclass(frozen=True, eq=False, kw_only=True)
class Concatenate(Operation):
    """Two or more images (or vectors) behind one another in their channels, of one quantization."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(Operation):
    """A box of a tensor, or every ``step``-th row and column of it.

    Parameters
    ----------
    start : tuple of int
        First element, one number an axis; the output's shape says how many there are.
    step : tuple of int
        One an axis, positive; that of the channels is 1.
    """

    start: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Transpose(Operation):
    """An image with its axes in another order; in graphs of the layout HWC.

    The machine swaps rows and columns. Other orders are the host's, of a graph's inputs and
    outputs; or the order in which a Flatten reads.

    Parameters
    ----------
    permutation : (int, int, int)
        Axis i of the output is axis ``permutation[i]`` of the input.
    """

    permutation: tuple[int, int, int]

    @property
    def order(self) -> str:
        """The axes of the output by their names in the input: (2, 0, 1) gives "CHW"."""
        return "".join("HWC"[axis] for axis in self.permutation)


@dataclass(frozen=True, eq=False, kw_only=True)
class Interleave(Operation):
    """Images as every ``stride``-th row and column of one: what a transposed convolution ends with.

    Input ``y * stride[1] + x`` holds the pixels of rows ``y, y + stride[0], ...`` and columns
    ``x, x + stride[1], ...``.

    Parameters
    ----------
    stride : (y, x)
    """

    stride: Pair


@dataclass(frozen=True, eq=False, kw_only=True)
class HostOperation(Operation):
    """What the host computes after the accelerator's run; see :mod:`weft.host_operations`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(HostOperation):
    """Softmax over the last axis, to codes of scale 1/256 and zero point -128.

    ``q_out = clamp(rint(256 f) - 128)``, f the softmax of ``beta * s * q`` in float64.

    Parameters
    ----------
    beta : float
    """

    beta: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Dequantize(HostOperation):
    """float32 values of codes: ``s * (q - z)``."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Graph:
    """A model: tensors by name and operations in topological order.

    Parameters
    ----------
    name : str
    tensors : tuple of Tensor
        Every tensor of the graph: inputs, constants and results.
    inputs, outputs : tuple of str
        Names, in the order in which the user gives and gets them.
    operations : tuple of Operation
    layout : {"CHW", "HWC"}
        How the model, and so the user, orders the axes of the images it takes and gives.
    float_rule : {"reciprocal", "divide"}
        How float32 inputs become codes: PyTorch's or TFLite's way, see
        :func:`weft.host.quantize`.
    """

    name: str
    tensors: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    layout: Layout = "CHW"
    float_rule: FloatRule = "reciprocal"

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self.by_name[name]

    @property
    def by_name(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    def scaled(self, operation: Operation) -> Tensor:
        """An operation's output in the quantization that its sums are brought to.

        That of the output, unless the operation has a table behind it.
        """
        output = self.tensor(operation.output)
        table: Table | None = getattr(operation, "table", None)
        if table is None:
            return output
        return dataclasses.replace(output, scale=table.scale, zero_point=table.zero_point)

    def consumers(self, name: str) -> Iterator[Operation]:
        """The operations that read a tensor."""
        return (operation for operation in self.operations if name in operation.inputs)

    def __repr__(self) -> str:
        lines = [f"graph {self.name} ({self.layout})"]
        lines += [f"  in   {self.tensor(name)}" for name in self.inputs]
        lines += [f"  {tensor}" for tensor in self.tensors if tensor.data is not None]
        for operation in self.operations:
            lines += [f"  {operation}", f"       -> {self.tensor(operation.output)}"]
        lines += [f"  out  {name}" for name in self.outputs]
        return "\n".join(lines)

    def verify(self, after: str = "the front end") -> None:
        """Check every rule of this module.

        Parameters
        ----------
        after : str
            Who made the graph, for the error's text.

        Raises
        ------
        GraphError
            At the first broken rule, naming the operation or tensor and ``after``.
        """
        from weft.ir_verify import verify_graph

        verify_graph(self, after)


def pool_output_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int = 1) -> int:
    """Output height (or width) of a convolution or pool."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
