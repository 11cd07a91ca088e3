"""Exact integer evaluation of a converted PyTorch graph: what the accelerator must answer.

It walks the graph that `convert_pt2e` returns and takes every scale, weight and parameter from it;
it shares no code with the compiler, the simulators or the front end. It states, independently of
them, the arithmetic that a weft machine is to have:

* A float input x becomes the code ``clamp(rint(x * float32(1 / s)) + z)``, in float32, as PyTorch
  computes it.
* Scales are the float64 values of what the graph stores. A ratio r of scales, a float64, acts as
  ``M * 2^(e - 31)``: its `frexp` mantissa rounded to 31 bits, halves away from zero.
  ``scaled(a, r)`` below is ``a * M / 2^(31 - e)``, rounded once, halves to even.
* Convolution and linear: ``scaled(sum of (q - z) * w + bias, s * s_w[c] / s_out)``. Padding is
  real zero.
* Addition: with the larger input scale S and the smaller one s, ``scaled((q_s - z_s) << 22, s / S)
  + ((q_S - z_S) << 22)``, and of this, ``scaled(sum, S / (2^22 * s_out))``. With two equal scales
  the first step is exact.
* Average pooling and the mean over an image: ``scaled(sum of (q - z), s / (s_out * n))``, with n
  the number of elements that count.
* Max pooling and moving data: the codes as they are, or ``scaled(q - z, s / s_out)`` where the
  graph gives the result another scale.
* Then ``+ z_out``, and the clamp to -128 .. 127. A ReLU or clamp in front of the quantization
  clamps to the codes of its bounds: ``rint(bound / s_out) + z_out`` in float64, halves to even.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError, UnsupportedModel
from weft.quantize.integer_rules import QUANTIZE, RULES, Codes

__all__ = ["IntegerReference", "evaluate_integer", "layer_name"]


def evaluate_integer(converted: Any, *inputs: NDArray[np.float32]) -> Any:
    """The int8 codes of the outputs of a converted graph: one array, or a tuple of several.

    Parameters
    ----------
    converted : torch.fx.GraphModule
        What `convert_pt2e`, `weft.quantize` or `load_pt2` returned.
    inputs
        One float32 array for each input, in PyTorch's layout, with any number of samples.
    """
    return IntegerReference(converted)(*inputs)


class IntegerReference:
    """A converted graph, ready to be evaluated in integers.

    Parameters
    ----------
    converted : torch.fx.GraphModule

    Members
    -------
    reference(*inputs)
        The int8 codes of the outputs: one array, or a tuple of several.
    layers(*inputs)
        The int8 codes of every quantized value, by the name of the graph's node that computes it
        (of the clamp, where one is fused). A value that is quantized twice goes by the names of
        the two quantize nodes.
    """

    def __init__(self, converted: Any) -> None:
        self._model = converted
        self._nodes = list(converted.graph.nodes)
        self._live = _live(self._nodes)

    def __call__(self, *inputs: NDArray[np.float32]) -> Any:
        values = self._evaluate(inputs)
        (returned,) = next(node for node in self._nodes if node.op == "output").args
        if not isinstance(returned, list | tuple):
            returned = (returned,)
        results = []
        for node in returned:
            value = values.get(node)
            if not isinstance(value, Codes):
                raise UnsupportedModel(f"output {node} is not quantized")
            results.append(value.values.astype(np.int8))
        return results[0] if len(results) == 1 else tuple(results)

    def layers(self, *inputs: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
        """The int8 codes of every quantized value by name."""
        found = {}
        for node, value in self._evaluate(inputs).items():
            if _name(node) == QUANTIZE:
                found[layer_name(node)] = value.values.astype(np.int8)
        return found

    def _evaluate(self, inputs: Sequence[NDArray[np.float32]]) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        waiting = iter(inputs)
        expected = sum(node.op == "placeholder" for node in self._nodes)
        if len(inputs) != expected:
            raise InputError(f"the model has {expected} inputs, not {len(inputs)}")
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = _checked(next(waiting), node)
            elif node not in self._live or node.op == "output":
                continue
            elif _name(node) == "aten.sym_size.int":
                values[node] = None  # the number of samples, which is kept whatever it is
            elif node.op == "get_attr":
                tensor = reduce(getattr, str(node.target).split("."), self._model)
                values[node] = tensor.detach().numpy()
            else:
                values[node] = _compute(node, values)
        return values


def layer_name(quantize: Any) -> str:
    """The name under which `layers` gives the codes of a quantize node."""
    (source,) = quantize.all_input_nodes
    readers = [user for user in source.users if _name(user) == QUANTIZE]
    return str(source.name if len(readers) == 1 else quantize.name)


def _live(nodes: Sequence[Any]) -> set[Any]:
    found: set[Any] = set()
    for node in reversed(nodes):
        if node.op == "output" or node in found:
            found.update(node.all_input_nodes)
    return found


def _checked(array: Any, node: Any) -> NDArray[np.float32]:
    array = np.asarray(array)
    if array.dtype != np.float32:
        raise InputError(f"input {node.name} must be float32, not {array.dtype}")
    if np.isnan(array).any():
        raise InputError(f"input {node.name} holds values that are no numbers (NaN)")
    shape = node.meta["val"].shape if "val" in node.meta else array.shape
    if array.ndim != len(shape) or any(
        isinstance(size, int) and size != given
        for size, given in zip(shape[1:], array.shape[1:], strict=True)
    ):
        raise InputError(f"input {node.name} must be {tuple(shape)}, not {array.shape}")
    return array


def _name(node: Any) -> str:
    return str(node.target)


def _arguments(node: Any, values: dict[Any, Any]) -> dict[str, Any]:
    """Arguments by their names in the operator's schema, defaults filled in, nodes evaluated."""
    schema = node.target._schema.arguments
    found = {argument.name: argument.default_value for argument in schema}
    found.update(zip((argument.name for argument in schema), node.args, strict=False))
    found.update(node.kwargs)
    return {key: values[value] if _is_node(value) else value for key, value in found.items()}


def _is_node(value: Any) -> bool:
    return hasattr(value, "all_input_nodes")


def _compute(node: Any, values: dict[Any, Any]) -> Any:
    rule = RULES.get(_name(node))
    if node.op != "call_function" or rule is None:
        raise UnsupportedModel(f"{node.name} ({_name(node)}): the integer reference has no rule")
    try:
        return rule(**_arguments(node, values))
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{node.name} ({_name(node)}): {error}") from None
