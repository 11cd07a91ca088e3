"""Quantized PyTorch models as `.pt2` files."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

__all__ = ["load_pt2", "save_pt2"]


def save_pt2(
    converted: "GraphModule",
    path: str | os.PathLike[str],
    example_inputs: "Sequence[torch.Tensor]",
    *,
    dynamic_shapes: Any = None,
) -> None:
    """Write a quantized model so that `load_pt2` and `weft run` can read it.

    The file appears under its name only when it is complete.

    Parameters
    ----------
    converted
        What `convert_pt2e` or `weft.quantize` returned.
    path
        Where to write; an existing file is replaced.
    example_inputs
        One tensor for each input. Their shapes, batch included, are those of the saved model.
    dynamic_shapes
        As for `torch.export.export`, if the model was exported with dynamic shapes.
    """
    from weft.quantize.pt2e import torch

    if isinstance(example_inputs, torch.Tensor):
        raise InputError(
            "`example_inputs` must be a tuple with a tensor for each input: (x,), not x"
        )
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    # What convert_pt2e returns is a graph module; only an exported program can be saved.
    slim = _without_unused_tensors(converted)
    program = torch.export.export(slim, tuple(example_inputs), dynamic_shapes=dynamic_shapes)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".pt2")
    os.close(handle)
    try:
        torch.export.save(program, temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_pt2(path: str | os.PathLike[str]) -> "GraphModule":
    """Read a model that `save_pt2` or `torch.export.save` wrote, quantized operators included."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no model file {path}")
    from weft.quantize.pt2e import torch  # registers the quantized operators

    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many kinds for a file that is not what it expects
        raise InputError(
            f"{path} is not a model that this PyTorch ({torch.__version__}) can load: "
            f"write it again with weft.save_pt2 ({type(error).__name__}: {_first_line(error)})"
        ) from error
    module: GraphModule = program.module(check_guards=False)
    return module


def _without_unused_tensors(converted: "GraphModule") -> "GraphModule":
    """The graph over the tensors it reads, without the float weights that conversion leaves."""
    from torch.fx import GraphModule

    slim = GraphModule(converted, converted.graph)
    converted.graph.owning_module = converted  # as it was: the graph is only lent
    return slim


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
