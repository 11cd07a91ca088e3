"""Quantized PyTorch models as weft graphs.

Reads what `convert_pt2e` returns (see :mod:`weft.quantize`), fresh or through a `.pt2` file:
integer constants, and operators between dequantize and quantize nodes. Everything that is not of
that form, or that the machine does not compute, is refused by name; nothing is approximated.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from torch.export import ExportedProgram
from torch.fx import GraphModule

from weft.errors import UnsupportedModel
from weft.frontends.pytorch_nodes import (
    arguments,
    constant,
    display_name,
    operator,
    refuse,
    sample_shape,
    source_text,
)
from weft.frontends.pytorch_operators import (
    CLAMPS,
    RULES,
    Constants,
    Pending,
    Real,
    clamp_bounds,
    clamped_codes,
    own_shape,
)
from weft.ir import INT8_RANGE, Flatten, Graph, MaxPool2d, Operation, Rescale, Tensor

__all__ = ["graph_from_torch"]

_DECOMPOSED = "quantized_decomposed."
QUANTIZE = f"{_DECOMPOSED}quantize_per_tensor.default"
DEQUANTIZE = f"{_DECOMPOSED}dequantize_per_tensor.default"
DEQUANTIZE_CHANNELS = f"{_DECOMPOSED}dequantize_per_channel.default"
SYMBOLIC_SIZE = "aten.sym_size.int"

ADVICE = "quantize the model with weft.quantize, which places all of this"


def graph_from_torch(model: Any, *, name: str = "model") -> Graph:
    """The graph of a quantized PyTorch model.

    Parameters
    ----------
    model : torch.fx.GraphModule or torch.export.ExportedProgram
        What `convert_pt2e`, `weft.quantize` or `load_pt2` returned, or an export of that. The batch
        size it was exported with plays no role: the graph is that of one sample.
    name : str
        The graph's name.

    Returns
    -------
    Graph
        A tensor has the name of the PyTorch node that computes it (of the clamp, where one is
        fused); an operation has that of its module, or of its node where the module has several.

    Raises
    ------
    UnsupportedModel
        If the model is not quantized, or holds an operator, parameter or constant that weft does
        not compute; the message names it and what to do.
    """
    if isinstance(model, ExportedProgram):
        model = model.module(check_guards=False)
    if not isinstance(model, GraphModule):
        raise UnsupportedModel(
            f"cannot read a {type(model).__name__}: quantize it with weft.quantize(model, "
            "example_inputs, calibration) and give what that returns"
        )
    if not any(operator(node) == QUANTIZE for node in model.graph.nodes):
        raise UnsupportedModel(
            "the model is not quantized: give what weft.quantize(model, example_inputs, "
            "calibration) or convert_pt2e returns"
        )
    graph = _Importer(model).graph(name)
    graph.verify()
    return graph


class _Importer:
    """One walk over the nodes of a model; ``values`` holds what each node stands for.

    A placeholder is None, a quantized or dequantized value a :class:`Real`, frozen weights are
    :class:`Constants`, and an operator in front of its quantization is :class:`Pending`.
    """

    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.values: dict[Any, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[Operation] = []
        self.names: set[str] = set()

    def graph(self, name: str) -> Graph:
        """The graph of the whole model."""
        nodes = list(self.model.graph.nodes)
        needed = _needed(nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        for node in nodes:
            if node in needed:
                self._visit(node)
        for node in inputs:
            if node.name not in self.tensors:
                refuse(node, "this input is not used; remove it from the model")
        (output,) = (node for node in nodes if node.op == "output")
        outputs = self._outputs(output)
        read = {each for operation in self.operations for each in operation.inputs}
        kept = [
            tensor
            for tensor in self.tensors.values()
            if tensor.data is None or tensor.name in read or tensor.name in outputs
        ]
        return Graph(
            name=name,
            tensors=tuple(kept),
            inputs=tuple(node.name for node in inputs),
            outputs=outputs,
            operations=tuple(self.operations),
            layout="CHW",
        )

    def _visit(self, node: Any) -> None:
        kind = operator(node)
        if node.op in ("placeholder", "get_attr") or kind == SYMBOLIC_SIZE:
            self.values[node] = None
        elif kind == QUANTIZE:
            self.values[node] = self._quantize(node, arguments(node))
        elif kind == DEQUANTIZE:
            self.values[node] = self._dequantize(node, arguments(node))
        elif kind == DEQUANTIZE_CHANNELS:
            self.values[node] = self._dequantize_channels(node, arguments(node))
        elif kind.startswith(_DECOMPOSED):
            refuse(
                node,
                "weft reads int8 activations with one constant scale a tensor and constants with "
                f"one a channel; {ADVICE}",
            )
        elif kind in RULES:
            self.values[node] = self._operator(node, kind)
        else:
            refuse(node, f"weft has no such operation; it knows {_known()}")

    def _operator(self, node: Any, kind: str) -> Real | Pending:
        given = arguments(node)
        before = self.values.get(given.get("self")) if kind in CLAMPS else None
        if isinstance(before, Pending):
            return replace(before, clamps=(*before.clamps, clamp_bounds(node, given)))
        return RULES[kind](self, node, given)

    # What the operators' rules ask for

    def tensor(self, node: Any, operand: Any) -> Tensor:
        """The int8 tensor that an operand dequantizes, or a refusal of ``node``."""
        value = self.real(node, operand)
        if value.shape is not None:
            shape = own_shape(value.tensor)
            refuse(
                node,
                f"sees {shape} as {value.shape} for each sample; weft only flattens an image into "
                "a vector",
            )
        return value.tensor

    def real(self, node: Any, operand: Any) -> Real:
        """What an operand dequantizes, or a refusal of ``node``."""
        value = self.values.get(operand) if hasattr(operand, "op") else None
        if isinstance(value, Real) and operator(operand) != QUANTIZE:
            self.tensors.setdefault(value.tensor.name, value.tensor)
            return value
        if isinstance(value, Constants):
            refuse(node, f"reads {operand}, which has a scale for each channel; {ADVICE}")
        if not hasattr(operand, "op"):
            refuse(node, f"takes the number {operand}; weft works on tensors only")
        refuse(node, f"reads {operand} in floating point; {ADVICE}")

    def constants(self, node: Any, operand: Any, what: str) -> Constants:
        """The frozen integers that an operand dequantizes, or a refusal of ``node``."""
        value = self.values.get(operand) if hasattr(operand, "op") else None
        if isinstance(value, Constants):
            return value
        if isinstance(value, Real) and value.tensor.data is not None and what == "weight":
            refuse(node, f"its weight has one scale for the whole tensor; {ADVICE}")
        form = "int8" if what == "weight" else "int32"
        refuse(node, f"its {what} is not a frozen {form} constant by channel; {ADVICE}")

    def flatten(self, node: Any, tensor: Tensor) -> Tensor:
        """The image as a vector, in the model's order."""
        output = replace(tensor, name=node.name, shape=(tensor.elements,), data=None)
        self._emit(node, Flatten, (tensor,), output, {"order": "CHW"})
        return output

    # Quantization

    def _quantize(self, node: Any, given: dict[str, Any]) -> Real:
        source = given["input"]
        scale, zero_point = self._parameters(node, given)
        value = self.values.get(source)
        if source.op == "placeholder":
            return Real(self._input(node, source, scale, zero_point))
        if isinstance(value, Real):
            if (value.tensor.scale, value.tensor.zero_point) == (scale, zero_point):
                return value
            tensor = self.tensor(node, source)
            value = Pending(node, Rescale, (tensor,), tensor.shape)
        if not isinstance(value, Pending):
            refuse(node, f"quantizes {source} at run time; only inputs and results are quantized")
        result = Tensor(
            name=_value_name(node, source), shape=value.shape, scale=scale, zero_point=zero_point
        )
        return Real(self._place(value, result))

    def _input(self, node: Any, source: Any, scale: float, zero_point: int) -> Tensor:
        shape = sample_shape(source)
        if len(shape) not in (1, 3):
            refuse(
                source,
                f"has the shape {shape} for each sample; weft takes (channels, height, width) or "
                "(features,)",
            )
        if len(shape) == 3:
            shape = (*shape[1:], shape[0])
        tensor = Tensor(name=source.name, shape=shape, scale=scale, zero_point=zero_point)
        known = self.tensors.setdefault(source.name, tensor)
        if (known.scale, known.zero_point) != (scale, zero_point):
            refuse(node, "quantizes this input in a second way; weft takes one for each input")
        return known

    def _place(self, value: Pending, result: Tensor) -> Tensor:
        """Emit a pending operation, now that its output's quantization is known."""
        low, high = INT8_RANGE
        for clamp in value.clamps:
            low, high = clamped_codes(low, high, clamp, result)
        fields = value.fields | {"clamp": (low, high)}
        output = result
        if value.flatten:
            channels = (result.shape[-1],)
            output = replace(result, name=self._fresh(f"{result.name}_image"))
            result = replace(result, shape=channels)
        (first, *_) = value.inputs
        same = (first.scale, first.zero_point) == (output.scale, output.zero_point)
        if value.kind is MaxPool2d and not same:
            codes = replace(
                output,
                name=self._fresh(f"{output.name}_codes"),
                scale=first.scale,
                zero_point=first.zero_point,
            )
            self._emit(value.node, MaxPool2d, value.inputs, codes, value.fields)
            self._emit(value.node, Rescale, (codes,), output, {"clamp": (low, high)})
        else:
            self._emit(value.node, value.kind, value.inputs, output, fields)
        if value.flatten:
            self._emit(value.node, Flatten, (output,), result, {"order": "CHW"})
        return result

    def _dequantize(self, node: Any, given: dict[str, Any]) -> Real:
        scale, zero_point = self._parameters(node, given)
        frozen = constant(self.model, given["input"])
        if frozen is not None:
            return Real(self._frozen(node, given["input"], frozen, scale, zero_point))
        value = self.values.get(given["input"])
        if not isinstance(value, Real) or operator(given["input"]) != QUANTIZE:
            refuse(node, f"reads {given['input']}, which is not quantized; {ADVICE}")
        if (value.tensor.scale, value.tensor.zero_point) != (scale, zero_point):
            refuse(node, "reads int8 codes with another scale or zero point than they have")
        return value

    def _frozen(self, node: Any, source: Any, frozen: Any, scale: float, zero_point: int) -> Tensor:
        """A constant tensor, its axis of samples (of size 1) dropped."""
        data = frozen
        if data.ndim in (2, 4) and data.shape[0] == 1:
            data = data[0]
        if data.ndim == 3:
            data = data.transpose(1, 2, 0)
        if data.ndim not in (1, 3) or data.dtype != np.int8:
            refuse(
                node,
                f"the constant is {frozen.dtype} of shape {frozen.shape}; weft takes int8 of shape "
                "(1, channels, height, width) or (1, features)",
            )
        return Tensor(
            name=str(source.target).replace(".", "_").lstrip("_"),
            shape=data.shape,
            scale=scale,
            zero_point=zero_point,
            data=np.ascontiguousarray(data),
        )

    def _dequantize_channels(self, node: Any, given: dict[str, Any]) -> Constants:
        values, scales, zero_points = (
            constant(self.model, given[key]) for key in ("input", "scales", "zero_points")
        )
        if values is None or scales is None:
            refuse(node, "only frozen constants may have one scale for each channel")
        if given["axis"] != 0:
            refuse(node, f"has a scale for each index of axis {given['axis']}; weft takes axis 0")
        if zero_points is not None and zero_points.any():
            refuse(node, "has zero points other than 0; weft takes symmetric weights")
        return Constants(values, scales.astype(np.float64))

    def _parameters(self, node: Any, given: dict[str, Any]) -> tuple[float, int]:
        low, high, kind = given["quant_min"], given["quant_max"], str(given["dtype"])
        if (low, high, kind) != (*INT8_RANGE, "torch.int8"):
            refuse(
                node,
                f"is quantized to {kind.removeprefix('torch.')} from {low} to {high}; weft takes "
                f"int8 from -128 to 127; {ADVICE}",
            )
        return float(given["scale"]), int(given["zero_point"])

    # Results

    def _fresh(self, name: str) -> str:
        """A name that no tensor or node has, for a tensor that the model has no node for."""
        taken = {*self.tensors, *(node.name for node in self.model.graph.nodes)}
        while name in taken:
            name += "_"
        return name

    def _emit(
        self,
        node: Any,
        kind: type[Operation],
        inputs: tuple[Tensor, ...],
        output: Tensor,
        fields: dict[str, Any],
    ) -> None:
        for tensor in (*inputs, output):
            self.tensors[tensor.name] = tensor
        name = wanted = display_name(node)
        count = 1
        while name in self.names:
            count += 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        self.operations.append(
            kind(
                name=name,
                inputs=tuple(tensor.name for tensor in inputs),
                output=output.name,
                source=source_text(node),
                **fields,
            )
        )

    def _outputs(self, output: Any) -> tuple[str, ...]:
        (returned,) = output.args
        if not isinstance(returned, list | tuple):
            returned = (returned,)
        names: list[str] = []
        for node in returned:
            if not hasattr(node, "op"):
                raise UnsupportedModel(
                    f"the model returns {node!r}; weft takes models that return a tensor or a "
                    "tuple of tensors"
                )
            tensor = self._returned(node)
            if tensor.name in names:
                refuse(node, "is returned twice; return it once")
            names.append(tensor.name)
        return tuple(names)

    def _returned(self, node: Any) -> Tensor:
        if node.op == "placeholder":
            refuse(node, "this input is returned as it is; leave it out of what the model returns")
        if not isinstance(self.values.get(node), Real):
            refuse(node, f"is returned in floating point; {ADVICE}")
        return self.tensor(node, node)


def _needed(nodes: list[Any]) -> set[Any]:
    """The nodes that an output depends on."""
    found: set[Any] = set()
    for node in reversed(nodes):
        if node.op == "output" or node in found:
            found.update(node.all_input_nodes)
    return found


def _value_name(quantize: Any, source: Any) -> str:
    """The name of a quantized value: its node's, unless that is quantized more than once."""
    readers = [user for user in source.users if operator(user) == QUANTIZE]
    return str(source.name if len(readers) == 1 else quantize.name)


def _known() -> str:
    return ", ".join(sorted({name.split(".")[1] for name in RULES}))
