"""What the host does around a run: quantize, repack, and back; the program names all of it."""

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError
from weft.program import Port

__all__ = ["dequantize", "pack", "prepare", "quantize", "unpack"]

Int8Array = NDArray[np.int8]


def prepare(port: Port, values: object) -> tuple[Int8Array, bool]:
    """A user's array as int8 codes (batch, *shape), and whether the batch axis was added.

    Raises
    ------
    InputError
        If shape or type are not the input's.
    """
    array = np.asarray(values)
    shape = "x".join(map(str, port.shape))
    expected = f"input {port.name} must be float32 or int8 of shape {shape} or Nx{shape}"
    if array.dtype not in (np.float32, np.int8):
        raise InputError(f"{expected}, not {array.dtype}")
    single = array.shape == port.shape
    if not single and array.shape[1:] != port.shape:
        raise InputError(f"{expected}, not {'x'.join(map(str, array.shape)) or 'a scalar'}")
    batch = array[None] if single else array
    if len(batch) == 0:
        raise InputError(f"input {port.name} is an empty batch")
    if batch.dtype == np.int8:
        return batch, single
    if np.isnan(batch).any():
        raise InputError(f"input {port.name} holds NaN")
    return quantize(batch, port.scale, port.zero_point, port.float_rule), single


def quantize(
    values: NDArray[np.float32], scale: float, zero_point: int, rule: str = "reciprocal"
) -> Int8Array:
    """Codes of float32 values, all in float32.

    * rule ``"reciprocal"``: as PyTorch's ``quantize_per_tensor`` has them,
      ``clamp(round_half_even(x * float32(1 / scale)) + zero point)``.
    * rule ``"divide"``: as TFLite's QUANTIZE has them,
      ``clamp(round_half_away(x / float32(scale)) + zero point)``.
    """
    if rule == "divide":
        steps = values / np.float32(scale)
        whole = np.trunc(steps)
        scaled = whole + np.sign(steps) * (np.abs(steps - whole) >= np.float32(0.5))
    else:
        scaled = np.rint(values * np.float32(1.0 / scale))
    codes: Int8Array = np.clip(scaled + np.float32(zero_point), -128, 127).astype(np.int8)
    return codes


def dequantize(codes: Int8Array, scale: float, zero_point: int) -> NDArray[np.float32]:
    """Values of codes: ``(q - zero point) * scale`` in float32."""
    return (codes.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def pack(port: Port, sample: Int8Array) -> bytes:
    """One sample as it lies in DRAM: channel-innermost pixels at the port's pitch."""
    height, width, channels = port.image
    axes = _axes(port)
    image = sample.reshape([port.image[axis] for axis in axes]).transpose(np.argsort(axes))
    padded = np.zeros((height, width, port.pitch), np.int8)
    padded[:, :, :channels] = image
    return padded.tobytes()


def unpack(port: Port, data: NDArray[np.uint8]) -> Int8Array:
    """Inverse of :func:`pack`."""
    height, width, channels = port.image
    image = data.view(np.int8).reshape(height, width, port.pitch)[:, :, :channels]
    return np.ascontiguousarray(image.transpose(_axes(port))).reshape(port.shape)


def _axes(port: Port) -> list[int]:
    """The image's axes in the model's order."""
    return ["HWC".index(axis) for axis in port.order]
