"""Reading single nodes of an exported PyTorch graph: arguments, names, constants, refusals."""

from functools import reduce
from typing import Any, NoReturn

from weft.errors import UnsupportedModel

__all__ = [
    "arguments",
    "constant",
    "display_name",
    "operator",
    "refuse",
    "sample_shape",
    "source_text",
]


def operator(node: Any) -> str:
    """The operator's full name, as ``aten.conv2d.default``; empty for what is no operator."""
    return str(node.target) if node.op == "call_function" else ""


def arguments(node: Any) -> dict[str, Any]:
    """All arguments by their name in the operator's schema, defaults filled in."""
    schema = node.target._schema.arguments
    found = {argument.name: argument.default_value for argument in schema}
    found.update(zip((argument.name for argument in schema), node.args, strict=False))
    found.update(node.kwargs)
    return found


def constant(model: Any, node: Any) -> Any:
    """The array of a parameter or buffer, or None if the node is none."""
    if getattr(node, "op", "") != "get_attr":
        return None
    return reduce(getattr, str(node.target).split("."), model).detach().cpu().numpy()


def display_name(node: Any) -> str:
    """What people call the layer: its module's path, or the node's name below that path."""
    modules = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(modules.values()), ("", ""))  # the innermost
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    path = path.removeprefix("L['self']").removeprefix(".")
    is_layer = kind.startswith("torch.nn.modules.") and "container" not in kind
    if path and is_layer:
        return str(path)
    return f"{path}.{node.name}" if path else str(node.name)


def source_text(node: Any) -> str:
    """Where the model has it: the node and its operator."""
    return f"{node.name} = {operator(node) or node.op}"


def refuse(node: Any, text: str) -> NoReturn:
    """Raise the error that names the layer and its operator.

    For a quantize or dequantize node that is the layer in front of it; for that of a weight, the
    layer that reads it.
    """
    node = _layer(node)
    name = display_name(node)
    place = operator(node) or f"{node.op} {node.target}"
    known = name if name == node.name else f"{name}, node {node.name}"
    raise UnsupportedModel(f"{known} ({place}): {text}")


def _layer(node: Any) -> Any:
    found = node
    while operator(found).startswith("quantized_decomposed.") and hasattr(found.args[0], "op"):
        found = found.args[0]
    return next(iter(node.users), node) if found.op == "get_attr" else found


def sample_shape(node: Any) -> tuple[int, ...]:
    """The shape of a node's float value without its first axis, in PyTorch's order."""
    value = node.meta.get("val")
    if value is None:
        refuse(node, "its shape is not recorded; export the model with torch.export.export")
    if value.ndim == 0:
        refuse(node, "has no axis of samples: the first axis of every tensor counts samples")
    shape = value.shape[1:]
    if not all(isinstance(size, int) for size in shape):
        refuse(
            node,
            f"has the dynamic shape {tuple(value.shape)}: export with fixed sizes (only the first "
            "axis, the samples, may be dynamic)",
        )
    return tuple(shape)
