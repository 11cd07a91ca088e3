"""Batches as users give them, checked and made codes."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import InputError
from weft.train.data import input_codes
from weft_hw.training import CODE_LIMIT

__all__ = ["checked_labels", "cross_entropy", "image_codes"]


def image_codes(x: ArrayLike, shape: tuple[int, int, int]) -> NDArray[np.int8]:
    """Inputs (N, C, H, W) or (N, features) as codes (N, height, width, channels).

    Parameters
    ----------
    x : float array or tensor in [-1, 1], or int8 codes
    shape : (height, width, channels)

    Raises
    ------
    InputError
        If the shape or type is another, or a value is not finite or out of range.
    """
    array = _array(x)
    height, width, channels = shape
    if array.ndim == 2 and (height, width) == (1, 1):
        array = array[:, :, None, None]
    if array.shape[1:] != (channels, height, width):
        raise InputError(
            f"inputs of shape {array.shape}: the module is compiled for "
            f"(N, {channels}, {height}, {width})"
        )
    if array.dtype.kind == "f":
        _check_range(array)
        array = input_codes(array)
    elif array.dtype != np.int8:
        raise InputError(f"inputs of {array.dtype}: give floats from -1 to 1, or int8 codes")
    codes: NDArray[np.int8] = np.maximum(array.transpose(0, 2, 3, 1), -CODE_LIMIT)
    return codes


def _array(values: Any) -> NDArray[Any]:
    """Of a NumPy array, or of a tensor on any device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def checked_labels(y: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Labels (N,) of so many classes.

    Raises
    ------
    InputError
        If they are no integers, or one is no class.
    """
    array = _array(y)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"labels: {array.dtype} of shape {array.shape}; give integers (N,)")
    wrong = np.flatnonzero((array < 0) | (array >= classes))
    if len(wrong):
        raise InputError(
            f"label {array[wrong[0]]} at place {wrong[0]}: the module has {classes} classes, "
            f"0 to {classes - 1}"
        )
    return array.astype(np.int64)


def _check_range(array: NDArray[Any]) -> None:
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(int(n) for n in wrong[0])
        raise InputError(f"the input at {place} is {array[place]}: inputs must be finite")
    largest = float(np.abs(array).max(initial=0.0))
    if largest > 1:
        raise InputError(
            f"inputs reach {largest:.4g}: scale them to [-1, 1] (they are kept as 1/128)"
        )


def cross_entropy(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean over the samples, in floating point."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    normalizer = np.log(np.exp(shifted).sum(axis=1))
    return float((normalizer - shifted[np.arange(len(labels)), labels]).mean())
