"""Rewrites of an exported graph that make it plain to annotate; none changes what it computes."""

from functools import reduce

import torch
from torch.fx import GraphModule, Node

__all__ = ["constant", "functionalize", "is_float", "unshare_constants"]

aten = torch.ops.aten

_FUNCTIONAL = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.clamp_.default: aten.clamp.default,
    aten.clamp_max_.default: aten.clamp_max.default,
    aten.clamp_min_.default: aten.clamp_min.default,
    aten.dropout_.default: aten.dropout.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.relu6_.default: aten.relu6.default,
    aten.relu_.default: aten.relu.default,
}


def constant(model: GraphModule, node: Node) -> torch.Tensor:
    """Return the parameter or buffer that a `get_attr` node names."""
    tensor: torch.Tensor = reduce(getattr, str(node.target).split("."), model)
    return tensor


def functionalize(model: GraphModule) -> None:
    """Replace operators that overwrite their input by those that return a new tensor.

    Everything after `relu_(x)` that reads x reads the result instead. (A view of x taken before the
    overwrite would keep the old value; no layer that weft knows makes one.)
    """
    position = {node: index for index, node in enumerate(model.graph.nodes)}
    for node in model.graph.nodes:
        if node.target not in _FUNCTIONAL:
            continue
        node.target = _FUNCTIONAL[node.target]
        overwritten = node.args[0]
        for user in list(overwritten.users):
            if position[user] > position[node]:
                user.replace_input_with(overwritten, node)


def unshare_constants(model: GraphModule, users: set[object]) -> None:
    """Give each operator among `users` a `get_attr` node of its own for every constant it reads.

    A layer applied twice has one weight and bias but two input scales, and so two integer biases.
    """
    for node in list(model.graph.nodes):
        if node.op != "get_attr":
            continue
        for user in list(node.users)[1:]:
            if user.target not in users:
                continue
            with model.graph.inserting_after(node):
                copy = model.graph.get_attr(node.target)
            copy.meta = dict(node.meta)
            user.replace_input_with(node, copy)


def is_float(node: object) -> bool:
    """Whether `node` is a node that yields a floating-point tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()
