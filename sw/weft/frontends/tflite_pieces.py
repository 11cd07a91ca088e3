"""What the rules of TFLite's operators share: activations, padding, weights, checks of shapes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.frontends.tflite_file import TfliteTensor
from weft.ir import INT8_RANGE, Tensor

__all__ = [
    "ACTIVATION_BOUNDS",
    "Importer",
    "bias_of",
    "clamp_of",
    "fused_clamp",
    "image_of",
    "option_pair",
    "require_same_quantization",
    "require_shape",
    "weights_of",
    "window_padding",
    "window_sides",
]

Importer = Any
"""The importer of :mod:`weft.frontends.tflite`; its methods are the interface."""

ACTIVATION_BOUNDS: dict[str, tuple[float, float]] = {
    "NONE": (-math.inf, math.inf),
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


def clamp_of(bounds: tuple[float, float], output: Tensor) -> tuple[int, int]:
    """Real bounds in output codes."""
    low, high = (_code(bound, output) for bound in bounds)
    return max(low, INT8_RANGE[0]), min(high, INT8_RANGE[1])


def _code(bound: float, output: Tensor) -> int:
    """A bound as a code: divided in float32, halves away from zero."""
    if math.isinf(bound):
        return INT8_RANGE[bound > 0]
    steps = float(np.float32(bound) / np.float32(output.scale))
    code = output.zero_point + int(math.copysign(math.floor(abs(steps) + 0.5), steps))
    return min(max(code, INT8_RANGE[0]), INT8_RANGE[1])


def fused_clamp(importer: Importer, output: Tensor) -> tuple[int, int]:
    """Bounds of the operator's fused activation, in output codes."""
    name = importer.option("FusedActivationFunction", "NONE")
    if name not in ACTIVATION_BOUNDS:
        importer.refuse(
            f"has the fused activation {name}; weft takes {', '.join(ACTIVATION_BOUNDS)}"
        )
    return clamp_of(ACTIVATION_BOUNDS[name], output)


def window_padding(
    importer: Importer,
    source: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[tuple[int, int], tuple[int, int]]:
    """SAME or VALID as numbers; SAME puts the odd element behind."""
    for what, values in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        if min(values) < 1:
            importer.refuse(f"has the {what} {values}")
    scheme = importer.option("Padding")
    if scheme == "VALID":
        return (0, 0), (0, 0)
    if scheme != "SAME":
        importer.refuse(f"has {scheme}; weft takes SAME and VALID")
    pairs = []
    for axis in range(2):
        size, step = source.shape[axis], stride[axis]
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        total = max((-(-size // step) - 1) * step + extent - size, 0)
        pairs.append((total // 2, total - total // 2))
    return pairs[0], pairs[1]


def image_of(importer: Importer, position: int) -> Tensor:
    tensor: Tensor = importer.activation(position)
    if len(tensor.shape) != 3:
        importer.refuse(
            "must be (batch, height, width, channels): reshape it before",
            importer.operand(position),
        )
    return tensor


def weights_of(
    importer: Importer, axis: int, rank: int, kinds: tuple[str, ...] = ("INT8", "INT4")
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Codes, and one scale a filter; ``kinds`` are the types that TFLite's own kernel takes."""
    record: TfliteTensor = importer.operand(1)
    codes = importer.constant(1, kinds)
    if codes.ndim != rank:
        importer.refuse(f"has {codes.ndim} axes, not {rank}", record)
    filters = codes.shape[axis]
    if record.zero_points.any():
        importer.refuse(
            "has zero points other than 0; weft takes symmetric weights: convert the model again "
            "with int8 weights",
            record,
        )
    if len(record.scales) not in (1, filters) or len(record.scales) > 1 and record.axis != axis:
        importer.refuse(
            f"has {len(record.scales)} scales along axis {record.axis}; weft takes one, or "
            f"{filters} along axis {axis}",
            record,
        )
    if not np.all(np.isfinite(record.scales) & (record.scales > 0)):
        importer.refuse("has a scale that is not positive", record)
    scales = np.ascontiguousarray(np.broadcast_to(record.scales, (filters,)))
    return codes, scales


def bias_of(importer: Importer, filters: int, position: int = 2) -> NDArray[np.int32] | None:
    if not importer.has(position):
        return None
    bias = importer.constant(position, ("INT32",))
    if bias.size != filters:
        importer.refuse(f"has {bias.size} values for {filters} filters", importer.operand(position))
    return np.ascontiguousarray(bias.reshape(-1).astype(np.int32))


def require_same_quantization(
    importer: Importer, tensors: tuple[Tensor, ...], output: Tensor
) -> None:
    for tensor in tensors:
        if (tensor.scale, tensor.zero_point) != (output.scale, output.zero_point):
            importer.refuse(
                f"input {tensor.name} and output {output.name} differ in scale or zero point; "
                "quantize them alike, or put a QUANTIZE in between"
            )


def require_shape(importer: Importer, output: Tensor, expected: tuple[int, ...]) -> None:
    if output.shape != expected:
        importer.refuse(f"gives the shape {expected}, but the file says {output.shape}")


def option_pair(
    importer: Importer, height: str, width: str, default: int | None = None
) -> tuple[int, int]:
    return int(importer.option(height, default)), int(importer.option(width, default))


def window_sides(
    importer: Importer,
    source: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    sizes = []
    for axis in range(2):
        room = source.shape[axis] + sum(padding[axis]) - (kernel[axis] - 1) * dilation[axis] - 1
        if room < 0:
            importer.refuse(f"its window {kernel} is larger than the image {source.shape[:2]}")
        sizes.append(room // stride[axis] + 1)
    return sizes[0], sizes[1]
