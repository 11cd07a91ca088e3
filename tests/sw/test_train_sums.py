"""The fast engine's products by PyTorch's float32 are those of whole numbers, for any shape."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
from torch.nn import functional

from weft.train.products import data_gradient, forward_sums, weight_gradient
from weft.train.step import Geometry

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

CASES = 400
Codes = NDArray[np.int8]


def draw_geometry(rng: np.random.Generator) -> Geometry:
    kernel, dilation, stride = rng.integers(1, 4, 2), rng.integers(1, 3, 2), rng.integers(1, 4, 2)
    padding = [
        int(rng.integers(0, max(1, (k - 1) * d) + 1)) for k, d in zip(kernel, dilation, strict=True)
    ]
    pairs = (tuple(int(each) for each in pair) for pair in (kernel, stride, padding, dilation))
    return Geometry(*pairs)


def draw_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> Codes:
    limit = int(rng.choice([1, 9, 127]))
    return rng.integers(-limit, limit + 1, shape).astype(np.int8)


def exact_products(
    source: Codes, weights: Codes, gradient: Codes, geometry: Geometry
) -> tuple[Any, Any, Any]:
    """By autograd in float64 on plain layouts, exact below 2^53."""
    x, w, dy = (
        torch.from_numpy(np.ascontiguousarray(each)).double()
        for each in (source.transpose(0, 3, 1, 2), weights, gradient.transpose(0, 3, 1, 2))
    )
    x.requires_grad_()
    w.requires_grad_()
    y = functional.conv2d(x, w, None, geometry.stride, geometry.padding, geometry.dilation)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    return y.detach().permute(0, 2, 3, 1), dx.permute(0, 2, 3, 1), dw


def test_products_of_any_shape(rng: np.random.Generator) -> None:
    """One channel, one pixel, one column: layouts are ambiguous there."""
    done = 0
    while done < CASES:
        geometry = draw_geometry(rng)
        batch, height, width, inputs, outputs = (
            int(rng.choice(sizes))
            for sizes in ([1, 2, 5], *[[1, 1, 2, 3, 8]] * 2, *[[1, 1, 3, 17]] * 2)
        )
        rows, columns = geometry.result(height, width)
        if min(rows, columns) < 1:
            continue
        done += 1
        source = draw_codes(rng, (batch, height, width, inputs))
        weights = draw_codes(rng, (outputs, inputs, *geometry.kernel))
        gradient = draw_codes(rng, (batch, rows, columns, outputs))
        x, w, dy = (torch.from_numpy(each).float() for each in (source, weights, gradient))
        w = w.contiguous(memory_format=torch.channels_last)
        found = (
            forward_sums(x, w, geometry)[0],
            data_gradient(dy, w, geometry, (height, width)),
            weight_gradient(x, dy, w, geometry),
        )
        for mine, right in zip(
            found, exact_products(source, weights, gradient, geometry), strict=True
        ):
            assert torch.equal(mine.double(), right), (geometry, source.shape, weights.shape)
