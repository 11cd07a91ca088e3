"""The three products of a convolution in whole numbers, by a library's floating point.

A sum of whole numbers is exact in floating point while the sum of their absolute values stays
within the significand: below 2^24 in float32, in whatever order a library adds. Every product
below is cut into parts for which that bound is proved from the operands' values. A library that
does not merely multiply and add (Winograd's or Fourier's algorithms, reduced precision) would not
be exact: :func:`check_products` finds that out with extreme operands. Accelerators choose such
algorithms freely in float32; there, all is float64.

Kernels of one tap are products of matrices here: what remains of a convolution is which pixels.
(oneDNN's own way for their weight gradient writes behind its buffer where a processor has AVX2 and
no AVX-512: version 3.12, ``jit_avx2_1x1_convolution_bwd_weights``, with strides.)
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from weft.errors import WeftError
from weft.train.step import Geometry
from weft_hw.training import CODE_LIMIT

__all__ = ["EXACT", "check_products", "data_gradient", "forward_sums", "weight_gradient"]

EXACT = 1 << 24
"""float32 holds all whole numbers up to here."""


def _parts(costs: Any) -> Iterator[tuple[int, int]]:
    """Ranges of an axis, each of whose summed costs is below :data:`EXACT` (or of one element)."""
    total, cuts = 0.0, [0]
    for place, cost in enumerate(costs.tolist()):
        total += cost
        if total >= EXACT and place > cuts[-1]:
            cuts.append(place)
            total = cost
    return pairwise([*cuts, len(costs)])


def _taken(source: Any, geometry: Geometry) -> Any:
    """The pixels (N, rows, columns, C) of images (N, H, W, C) that a kernel of one tap meets."""
    top, left = geometry.padding
    padded = functional.pad(source, (0, 0, left, left, top, top))
    return padded[:, :: geometry.stride[0], :: geometry.stride[1]]


def _convolve(source: Any, weights: Any, geometry: Geometry) -> Any:
    """Of images (N, H, W, C) and weights (out, in, y, x): sums (N, H, W, C)."""
    if geometry.kernel == (1, 1):
        return _taken(source, geometry) @ weights[:, :, 0, 0].T
    images = source.permute(0, 3, 1, 2)
    if images.shape[1] == 1:
        # Of one channel, strides may stand for either layout, and results of one column were wrong
        # (PyTorch 2.13 with oneDNN): only copies have the strides of the plain layout.
        images, weights = (
            each.clone(memory_format=torch.contiguous_format) for each in (images, weights)
        )
    result = functional.conv2d(
        images,
        weights,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
    )
    return result.permute(0, 2, 3, 1)


def forward_sums(source: Any, weights: Any, geometry: Geometry) -> tuple[Any, float]:
    """Sums of products of codes with weights.

    Parameters
    ----------
    source : float32 tensor (N, H, W, C) of codes
    weights : float32 tensor (out, in, y, x) of codes
    geometry : Geometry

    Returns
    -------
    sums : float32 tensor (N, H, W, C) where every sum is below 2^24, else float64
    bound : float
        No absolute sum is above it.
    """
    costs = CODE_LIMIT * weights.abs().sum((2, 3)).amax(0)
    bound = float(costs.sum())
    if source.device.type != "cpu":
        return _convolve(source.double(), weights.double(), geometry), bound
    if bound < EXACT:
        return _convolve(source, weights, geometry), bound
    total = None
    for start, stop in _parts(costs):
        x, w = source[..., start:stop], weights[:, start:stop]
        if stop - start == 1 and float(costs[start]) >= EXACT:
            x, w = x.double(), w.double()
        part = _convolve(x, w, geometry).double()
        total = part if total is None else total + part
    return total, bound


def data_gradient(gradient: Any, weights: Any, geometry: Geometry, shape: tuple[int, int]) -> Any:
    """Sums of products of a gradient's codes with weights, by the source's pixels.

    Parameters
    ----------
    gradient : float32 tensor (N, H, W, C) of codes
    weights : float32 tensor (out, in, y, x) of codes
    geometry : Geometry
    shape : (height, width)
        Of the source.

    Returns
    -------
    float32 tensor (N, H, W, C) where every sum is below 2^24, else float64
    """
    costs = CODE_LIMIT * weights.abs().sum((2, 3)).amax(1)
    if gradient.device.type != "cpu":
        return _scatter(gradient.double(), weights.double(), geometry, shape)
    if float(costs.sum()) < EXACT:
        return _scatter(gradient, weights, geometry, shape)
    total = None
    for start, stop in _parts(costs):
        dy, w = gradient[..., start:stop], weights[start:stop]
        if stop - start == 1 and float(costs[start]) >= EXACT:
            dy, w = dy.double(), w.double()
        part = _scatter(dy, w, geometry, shape).double()
        total = part if total is None else total + part
    return total


def _scatter(gradient: Any, weights: Any, geometry: Geometry, shape: tuple[int, int]) -> Any:
    if geometry.kernel == (1, 1):
        (top, left), (height, width) = geometry.padding, shape
        result = gradient.new_zeros(
            (len(gradient), height + 2 * top, width + 2 * left, weights.shape[1])
        )
        result[:, :: geometry.stride[0], :: geometry.stride[1]] = gradient @ weights[:, :, 0, 0]
        return result[:, top : top + height, left : left + width]
    spare = [
        size - ((out - 1) * stride - 2 * padding + (kernel - 1) * dilation + 1)
        for size, out, stride, padding, kernel, dilation in zip(
            shape,
            gradient.shape[1:3],
            geometry.stride,
            geometry.padding,
            geometry.kernel,
            geometry.dilation,
            strict=True,
        )
    ]
    result = functional.conv_transpose2d(
        gradient.permute(0, 3, 1, 2),
        weights,
        stride=geometry.stride,
        padding=geometry.padding,
        output_padding=spare,
        dilation=geometry.dilation,
    )
    return result.permute(0, 2, 3, 1)


def weight_gradient(source: Any, gradient: Any, weights: Any, geometry: Geometry) -> Any:
    """Sums of products of codes with a gradient's codes, over batch and pixels.

    Parameters
    ----------
    source, gradient : float32 tensor (N, H, W, C) of codes
    weights : float32 tensor (out, in, y, x)
        For its shape.
    geometry : Geometry

    Returns
    -------
    float64 tensor (out, in, y, x)
    """
    if source.device.type != "cpu":
        source, gradient = source.double(), gradient.double()
    costs = CODE_LIMIT * gradient.abs().sum((1, 2)).amax(1)
    parts = _parts(costs) if source.dtype == torch.float32 else [(0, len(source))]
    total = None
    for start, stop in parts:
        x, dy = source[start:stop], gradient[start:stop]
        if stop - start == 1 and float(costs[start]) >= EXACT:
            x, dy = x.double(), dy.double()
        part = _correlate(x, dy, weights, geometry).double()
        total = part if total is None else total + part
    return total


def _correlate(source: Any, gradient: Any, weights: Any, geometry: Geometry) -> Any:
    if geometry.kernel == (1, 1):
        x = _taken(source, geometry).flatten(0, 2)
        return (gradient.flatten(0, 2).T @ x)[:, :, None, None]
    images, gradients = (each.permute(0, 3, 1, 2) for each in (source, gradient))
    if len(images) == 1:  # PyTorch's own routine for this takes no other layout
        images, gradients = (
            each.clone(memory_format=torch.contiguous_format) for each in (images, gradients)
        )
    return torch.ops.aten.convolution_backward(
        gradients,
        images,
        weights.to(images.dtype).contiguous(),
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        (0, 0),
        1,
        (False, True, False),
    )[1]


def check_products(
    geometry: Geometry, shape: tuple[int, int, int], channels: int, device: Any
) -> None:
    """Compare the three products with sums of NumPy's int64, on extreme codes and on small ones.

    Raises
    ------
    WeftError
        If a sum differs: this machine's library cannot train exactly.
    """
    random = np.random.default_rng(channels)
    height, width, inputs = shape
    rows, columns = geometry.result(height, width)
    for bound in (CODE_LIMIT, 9):
        source, weights, gradient = (
            np.where(random.random(size) < 0.7, bound, random.integers(0, bound, size))
            * random.choice([-1, 1], size)
            for size in (
                (2, height, width, inputs),
                (channels, inputs, *geometry.kernel),
                (2, rows, columns, channels),
            )
        )
        expected = _integer_products(source, weights, gradient, geometry)
        x, w, dy = (
            torch.from_numpy(each).to(device, torch.float32) for each in (source, weights, gradient)
        )
        found = {
            "convolution": forward_sums(x, w, geometry)[0],
            "data gradient": data_gradient(dy, w, geometry, (height, width)),
            "weight gradient": weight_gradient(x, dy, w, geometry),
        }
        for (name, sums), right in zip(found.items(), expected, strict=True):
            if not np.array_equal(sums.double().cpu().numpy(), right):
                raise WeftError(
                    f"PyTorch's {name} is not exact on this machine ({geometry}, {inputs} to "
                    f"{channels} channels, on {device}), so the fast engine would not train what "
                    "the machine does: use another device or the functional engine"
                )


def _integer_products(
    source: NDArray[np.int64],
    weights: NDArray[np.int64],
    gradient: NDArray[np.int64],
    geometry: Geometry,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Forward sums, data gradient and weight gradient, kernel tap by kernel tap."""
    rows, columns = gradient.shape[1:3]
    (top, left), (height, width) = geometry.padding, source.shape[1:3]
    padded = np.pad(source, ((0, 0), (top, top), (left, left), (0, 0)))
    sums, scattered = np.zeros_like(gradient), np.zeros_like(padded)
    of_weights = np.zeros_like(weights)
    for y, x in np.ndindex(*geometry.kernel):
        place = (
            slice(None),
            *(
                slice(tap * dilation, tap * dilation + (count - 1) * stride + 1, stride)
                for tap, dilation, count, stride in zip(
                    (y, x), geometry.dilation, (rows, columns), geometry.stride, strict=True
                )
            ),
        )
        sums += padded[place] @ weights[:, :, y, x].T
        scattered[place] += gradient @ weights[:, :, y, x]
        of_weights[:, :, y, x] = np.tensordot(gradient, padded[place], ((0, 1, 2), (0, 1, 2)))
    return sums, scattered[:, top : top + height, left : left + width], of_weights
