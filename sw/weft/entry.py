"""The one function that compiles whatever a user has: a file, a graph or a PyTorch model."""

import os
from typing import Any

from weft.compiler import compile_graph
from weft.errors import UnsupportedModel
from weft.ir import Graph
from weft.models import load_model
from weft.program import Program
from weft_hw.config import AcceleratorConfig, load_config

__all__ = ["compile"]


def compile(
    model: Any, config: AcceleratorConfig | str = "base16", *, strict: bool = False
) -> Program:
    """Compile a quantized model for one configuration.

    Parameters
    ----------
    model : path, Graph, torch.fx.GraphModule or torch.export.ExportedProgram
        A path is that of a .tflite or .pt2 file. PyTorch models come from ``convert_pt2e`` (see
        :mod:`weft.quantize`).
    config : AcceleratorConfig or str
        A configuration, the name of a preset or the path of a JSON file.
    strict : bool
        Refuse models of which the host would have to compute a part.

    Returns
    -------
    Program

    Raises
    ------
    UnsupportedModel
        If the model holds what weft cannot compile; the message names the layer.
    ConfigError
        If there is no such configuration.
    InputError
        If there is no such file.
    """
    machine = config if isinstance(config, AcceleratorConfig) else load_config(config)
    program = _compile(model, machine)
    if strict:
        program.require_no_host_steps()
    return program


def _compile(model: Any, machine: AcceleratorConfig) -> Program:
    if isinstance(model, str | os.PathLike):
        return load_model(model, machine)
    if isinstance(model, Graph):
        return compile_graph(model, machine)
    if type(model).__module__.partition(".")[0] == "torch" or hasattr(model, "graph"):
        from weft.frontends.pytorch import graph_from_torch

        return compile_graph(graph_from_torch(model), machine)
    raise UnsupportedModel(
        f"cannot compile a {type(model).__name__}: give a path, a weft.Graph, or a torch "
        "GraphModule or ExportedProgram that convert_pt2e made"
    )
