"""Opening what a user calls a model: a compiled Program, or a quantized network to compile."""

import os
from pathlib import Path

from weft.errors import InputError, UnsupportedModel
from weft.frontends.tflite_file import FILE_IDENTIFIER
from weft.program import MAGIC, Program
from weft_hw import AcceleratorConfig, load_config

__all__ = ["DEFAULT_CONFIG", "load_model"]

DEFAULT_CONFIG = "base16"
TFLITE_AT = 4  # where a flatbuffer has its identifier
ZIP_MAGIC = b"PK\x03\x04"  # torch.export writes zip archives


def load_model(path: str | os.PathLike[str], config: AcceleratorConfig | None = None) -> Program:
    """The Program in that file, or the one compiled from the quantized model in it.

    Parameters
    ----------
    path : path
        A file written by :meth:`Program.save` or by ``weft.save_pt2``, or a .tflite file.
    config : AcceleratorConfig, optional
        What to compile for (default: the preset ``base16``). A Program must have been compiled for
        this configuration, if one is given.

    Raises
    ------
    InputError
        If there is no such file.
    UnsupportedModel
        If the file is no model that weft reads, or the model cannot be compiled.
    ProgramFormatError
        If a Program file is damaged, or was compiled for another configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such model file")
    with open(path, "rb") as file:
        start = file.read(len(MAGIC))
    if start.startswith(MAGIC):
        program = Program.load(path)
        if config is not None:
            program.require_config(config)
        return program
    if start.startswith(ZIP_MAGIC):
        import weft.quantize.pt2e  # noqa: F401  (names the missing extra if there is no PyTorch)
        from weft.compiler import compile_graph
        from weft.frontends.pt2_file import load_pt2
        from weft.frontends.pytorch import graph_from_torch

        model = load_pt2(path)
        return compile_graph(
            graph_from_torch(model, name=path.stem), config or load_config(DEFAULT_CONFIG)
        )
    if start[TFLITE_AT:] == FILE_IDENTIFIER:
        from weft.compiler import compile_graph
        from weft.frontends.tflite import graph_from_tflite

        return compile_graph(graph_from_tflite(path), config or load_config(DEFAULT_CONFIG))
    raise UnsupportedModel(
        f"{path}: neither a Program, nor a .tflite file, nor a .pt2 model; "
        "write one with weft.save_pt2 or `weft compile`"
    )
