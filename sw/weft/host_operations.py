"""Operations that the host computes on the accelerator's outputs; the program names each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.host import dequantize as dequantize_codes
from weft.program import HostStep, Port, Program

__all__ = ["dequantize", "run_host_steps", "softmax"]

Array = NDArray[Any]
Value = Port | HostStep


def run_host_steps(program: Program, values: dict[str, Array]) -> None:
    """Compute a program's host steps; ``values`` by name, with a batch axis, grows by theirs."""
    for step in program.host_steps:
        sources = [program.result(name) for name in step.inputs]
        values[step.name] = _KINDS[step.kind](
            step, *sources, *(values[each] for each in step.inputs)
        )


def softmax(step: HostStep, source: Value, codes: Array) -> Array:
    """Softmax over the last axis: ``clamp(rint(256 f) - 128)``, f in float64.

    Equal to TFLite's int8 reference kernel.
    """
    values = codes.astype(np.float64) * (source.scale * step.parameters["beta"])
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    result: Array = np.clip(np.rint(256 * shares) - 128, -128, 127).astype(np.int8)
    return result


def dequantize(step: HostStep, source: Value, codes: Array) -> Array:
    """float32 values of codes."""
    return dequantize_codes(codes, source.scale, source.zero_point)


_KINDS: dict[str, Callable[..., Array]] = {"Softmax": softmax, "Dequantize": dequantize}
"""By the operation's class name in :mod:`weft.ir`."""
