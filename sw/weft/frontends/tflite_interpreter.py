"""TFLite's own interpreter with its reference kernels: what a .tflite model computes."""

from typing import Any

from weft.errors import missing_extra

__all__ = ["open_interpreter"]


def open_interpreter(data: bytes, *, purpose: str, every_tensor: bool = False) -> Any:
    """An interpreter of a .tflite file's content, ready for inputs.

    Parameters
    ----------
    data : bytes
    purpose : str
        What it is needed for, should it be missing.
    every_tensor : bool
        Keep intermediate tensors readable.

    Raises
    ------
    MissingExtra
        If the interpreter is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "tflite", purpose=purpose) from error
    interpreter = Interpreter(
        model_content=data,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=every_tensor,
    )
    interpreter.allocate_tensors()
    return interpreter
