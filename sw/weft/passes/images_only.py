"""Vectors become images, so that one mapping serves convolutions and dense layers alike."""

import dataclasses
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from weft.errors import UnsupportedModel
from weft.ir import (
    Concatenate,
    Conv2d,
    Flatten,
    Graph,
    Linear,
    Operation,
    Reshape,
    Slice,
    Tensor,
    Transpose,
)
from weft.passes.base import Pass

__all__ = ["ImagesOnly"]


@dataclass(frozen=True)
class ImagesOnly(Pass):
    """Afterwards every tensor is (height, width, channels) and no Linear or Flatten is left.

    * A vector of n values becomes an image of one pixel with n channels, and a Linear a 1x1
      convolution of it.
    * A Flatten disappears: its result is the image itself. A Linear on it becomes a convolution
      whose kernel covers the whole image, so that no element has to move; its weight columns are
      permuted from the model's order into [kernel row, kernel column, channel].
    * A Reshape disappears where elements need not move: between one-pixel images and vectors,
      back to the image that was flattened, and of a graph input that nothing else reads.
    * A Transpose of rows and columns stays. Others disappear: what follows must be the Transpose
      back, or a Flatten, which then reads the image in another order.
    * A flattened image that is a graph output stays an image too; who hands the output over puts
      its elements into the model's order (``Program`` records it as a host operation).

    Only what works element by element (Add, Rescale...) may stand between a Flatten and its Linear.

    Raises
    ------
    UnsupportedModel
        If an operation mixes a flattened image with a vector of another arrangement, a Reshape
        would move elements, or an output is flattened in another order than the model's images.
    """

    def apply(self, graph: Graph) -> Graph:
        state = _State(graph)
        operations = [state.rewrite(operation) for operation in graph.operations]
        for name in graph.outputs:
            if state.order.get(name, graph.layout) != graph.layout:
                raise UnsupportedModel(
                    f"output {name} is an image flattened in the order {state.order[name]}, but "
                    f"the model's images are {graph.layout}"
                )
        return dataclasses.replace(
            graph,
            tensors=tuple(state.images.values()),
            inputs=tuple(state.alias(name) for name in graph.inputs),
            outputs=tuple(state.alias(name) for name in graph.outputs),
            operations=tuple(operation for operation in operations if operation is not None),
        )


class _State:
    """The rewriting of one graph: images so far, and for each vector how it lies in its image."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.aliases: dict[str, str] = {}
        self.order: dict[str, str] = {}  # of vectors that are images of more than one pixel
        self.transposed: dict[str, Transpose] = {}  # what stands for images in another order
        self.images: dict[str, Tensor] = {}
        for tensor in graph.tensors:
            if tensor.data is not None or tensor.name in graph.inputs:
                self.images[tensor.name] = _as_image(tensor)

    def alias(self, name: str) -> str:
        return self.aliases.get(name, name)

    def rewrite(self, operation: Operation) -> Operation | None:
        output = self.graph.tensor(operation.output)
        if isinstance(operation, Transpose):
            return self._transpose(operation, output)
        if operation.inputs[0] in self.transposed:
            before = self.transposed[operation.inputs[0]]
            if not isinstance(operation, Flatten) or before.order != "CHW":
                _refuse(
                    before,
                    f"moves the channels of {before.inputs[0]}, which {operation.name} reads; weft "
                    "does so only for inputs, outputs and a reshape to vectors in the order "
                    "channels, height, width",
                )
            operation = dataclasses.replace(operation, inputs=before.inputs, order="CHW")
        for name in operation.inputs[1:]:
            if name in self.transposed:
                _refuse(self.transposed[name], f"moves channels for {operation.name}")
        if isinstance(operation, Flatten):
            image = self.alias(operation.inputs[0])
            self.aliases[operation.output] = image
            height, width, channels = self.images[image].shape
            already = operation.inputs[0] in self.order  # flattening a vector changes nothing
            if already:
                self.order[operation.output] = self.order[operation.inputs[0]]
            elif height * width > 1 and channels > 1:
                self.order[operation.output] = operation.order
            return None
        if isinstance(operation, Reshape):
            self._reshape(operation, output)
            return None
        inputs = tuple(self.alias(name) for name in operation.inputs)
        if isinstance(operation, Concatenate) and len(output.shape) == 1:
            for name in operation.inputs:
                if name in self.order:
                    _refuse(
                        operation, "joins a flattened image to a vector; join before flattening"
                    )
            self.images[output.name] = _as_image(output)
            return dataclasses.replace(operation, inputs=inputs)
        source = self.images[inputs[0]].shape
        if isinstance(operation, Linear):
            self.images[output.name] = _as_image(output)
            order = self.order.get(operation.inputs[0], "HWC")
            return _as_convolution(operation, inputs, source, order)
        if isinstance(operation, Slice) and len(output.shape) == 1:
            if source[:2] != (1, 1):
                _refuse(operation, "takes a part of a flattened image; take it before flattening")
            self.images[output.name] = _as_image(output)
            start, step = (0, 0, *operation.start), (1, 1, *operation.step)
            return dataclasses.replace(operation, inputs=inputs, start=start, step=step)
        if len(output.shape) == 1:  # element by element: the result lies as its operands do
            orders = {self.order.get(name, "HWC") for name in operation.inputs}
            shapes = {self.images[name].shape for name in inputs}
            if len(orders) > 1 or len(shapes) > 1:
                _refuse(
                    operation,
                    "adds a flattened image to a vector of another origin; add before flattening "
                    "instead",
                )
            if operation.inputs[0] in self.order:
                self.order[output.name] = self.order[operation.inputs[0]]
            output = dataclasses.replace(output, shape=source)
        self.images[output.name] = output
        return dataclasses.replace(operation, inputs=inputs)

    def _transpose(self, operation: Transpose, output: Tensor) -> Operation | None:
        name, axes = operation.inputs[0], operation.permutation
        if name in self.transposed:
            first = self.transposed[name]
            name, axes = first.inputs[0], _composed(first.permutation, axes)
        operation = dataclasses.replace(operation, inputs=(self.alias(name),), permutation=axes)
        if axes == (0, 1, 2):
            self.aliases[output.name] = operation.inputs[0]
            return None
        if axes == (1, 0, 2):
            self.images[output.name] = output
            return operation
        if output.name in self.graph.outputs:
            _refuse(operation, "moves channels for an output that others read, too")
        self.transposed[output.name] = operation
        return None

    def _reshape(self, operation: Reshape, output: Tensor) -> None:
        name = operation.inputs[0]
        image = self.alias(name)
        if self.order.get(name, "HWC") != "HWC":
            _refuse(operation, "reshapes a vector that is not in the order height, width, channels")
        if self.images[image].shape != output.shape:
            alone = image in self.graph.inputs and image not in self.graph.outputs
            if not alone or [*self.graph.consumers(image)] != [operation]:
                _refuse(
                    operation,
                    f"reshapes {self.images[image].shape} to {output.shape}; weft reshapes only "
                    "inputs and what lies alike in memory",
                )
            self.images[image] = dataclasses.replace(self.images[image], shape=output.shape)
        self.aliases[output.name] = image


def _composed(first: tuple[int, int, int], second: tuple[int, int, int]) -> tuple[int, int, int]:
    """One permutation for two, one behind the other."""
    x, y, z = (first[axis] for axis in second)
    return x, y, z


def _refuse(operation: Operation, text: str) -> NoReturn:
    raise UnsupportedModel(f"{operation.name} ({operation.source or operation.kind}): {text}")


def _as_image(tensor: Tensor) -> Tensor:
    if len(tensor.shape) == 3:
        return tensor
    shape = (1, 1, *tensor.shape)
    data = None if tensor.data is None else tensor.data.reshape(shape)
    return dataclasses.replace(tensor, shape=shape, data=data)


def _as_convolution(
    linear: Linear, inputs: tuple[str, ...], source: tuple[int, ...], order: str
) -> Conv2d:
    height, width, channels = source
    filters = linear.weights.shape[0]
    if order == "CHW":
        weights = linear.weights.reshape(filters, channels, height, width).transpose(0, 2, 3, 1)
    else:
        weights = linear.weights.reshape(filters, height, width, channels)
    return Conv2d(
        name=linear.name,
        inputs=inputs,
        output=linear.output,
        source=linear.source,
        weights=np.ascontiguousarray(weights),
        weight_scales=linear.weight_scales,
        bias=linear.bias,
        clamp=linear.clamp,
        rounding=linear.rounding,
    )
