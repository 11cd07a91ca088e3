"""The float emulation of Octo, piece by piece, against PyTorch and formulas written out here."""

import numpy as np
import pytest
import torch
from torch import nn

from weft.train.networks import DigitsNetwork
from weft.train.octo_reference import (
    Compensation,
    OctoConvolution,
    OctoSettings,
    ZeroPoints,
    backward_codes,
    clipped,
    compensation_penalty,
    forward_codes,
    octo_network,
)

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

EXACT, DEMONSTRATION = ZeroPoints.EXACT, ZeroPoints.DEMONSTRATION


def tensor(rng: np.random.Generator, *shape: int, low: float = -1.0, high: float = 1.0):
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def test_exact_codes_are_int8_and_within_a_step(rng: np.random.Generator) -> None:
    for low, high in ((-1, 1), (0, 3), (-3, 0), (2, 5), (-0.1, 7)):
        x = tensor(rng, 1000, low=low, high=high)
        for noise in (None, tensor(rng, 1000, low=0)):
            coded = forward_codes(x, EXACT, noise)
            assert coded.codes.min() >= 0 and coded.codes.max() <= 255
            assert torch.equal(coded.codes, coded.codes.round())
            assert coded.zero_point == coded.zero_point.round()
            step = float(coded.scale) * (0.5 if noise is None else 1.0)
            # One code is lost at an end where the zero point was rounded.
            assert float((coded.values() - x).abs().max()) <= step + 0.5 * float(coded.scale) + 1e-5


def test_stochastic_codes_are_right_on_average(rng: np.random.Generator) -> None:
    x = torch.cat([tensor(rng, 20), torch.tensor([-1.2, 1.2])])
    draws = torch.stack(
        [forward_codes(x, EXACT, tensor(rng, 22, low=0)).values() for _ in range(4000)]
    )
    scale = float(forward_codes(x, EXACT, None).scale)
    inner = x.abs() < 1.1  # the ends are clamped
    assert float((draws.mean(0) - x)[inner].abs().max()) < 0.05 * scale


def test_demonstration_codes_as_written_in_numpy(rng: np.random.Generator) -> None:
    x, noise = tensor(rng, 300, low=-0.3, high=0.9), tensor(rng, 300, low=0)
    values = x.numpy()
    scale = (values.max() - values.min()) / 510
    zero_point = 255 - values.max() / scale
    coded = forward_codes(x, DEMONSTRATION, noise)
    np.testing.assert_array_equal(
        coded.codes.numpy(), np.floor(values / scale + zero_point + noise.numpy())
    )
    back = backward_codes(x, DEMONSTRATION)
    symmetric = (values.max() - values.min()) / 254
    np.testing.assert_array_equal(back.codes.numpy(), np.around(values / symmetric))
    positive = tensor(rng, 300, low=0, high=1)
    assert backward_codes(positive, DEMONSTRATION).codes.max() > 200, "not 8 bits with a sign"


def test_zero_tensor_has_a_scale() -> None:
    for zero_points in ZeroPoints:
        for coded in (
            forward_codes(torch.zeros(4), zero_points, None),
            backward_codes(torch.zeros(4), zero_points),
        ):
            assert torch.equal(coded.values(), torch.zeros(4))


def test_clipping(rng: np.random.Generator) -> None:
    x = tensor(rng, 100, low=-2, high=5)
    expected = np.clip(x.numpy(), np.float32(0.95) * x.numpy().min(), 0.95 * x.numpy().max())
    np.testing.assert_allclose(clipped(x, 0.95).numpy(), expected, rtol=1e-6)
    assert torch.equal(clipped(x, 1.0), x)


def test_compensation_and_its_gradients(rng: np.random.Generator) -> None:
    layer = Compensation((2, 3, 4), torch.Generator().manual_seed(1))
    assert torch.equal(layer.alpha, torch.ones(2, 3, 4))
    assert 1e-4 < float(layer.mu.detach().std()) < 1e-2
    x, dy = tensor(rng, 5, 2, 3, 4), tensor(rng, 5, 2, 3, 4)
    out = layer(x)
    torch.testing.assert_close(out, x + layer.mu + layer.offset)
    (out * dy).sum().backward()
    torch.testing.assert_close(layer.offset.grad, dy.sum(0))
    torch.testing.assert_close(layer.mu.grad, dy.sum(0))
    torch.testing.assert_close(layer.alpha.grad, (dy * layer.mu.detach()).sum(0))
    penalty = compensation_penalty(nn.Sequential(layer), 0.1)
    layer.mu.grad = None
    penalty.backward()
    torch.testing.assert_close(layer.mu.grad, 0.1 * layer.mu.detach())


def test_its_gradient_vanishes_before_batch_normalization(rng: np.random.Generator) -> None:
    """Why a compensation never stands before a normalization by batch statistics."""
    layer = Compensation((2, 3, 4)).double()
    normalize = nn.BatchNorm1d(24).double()
    dy = tensor(rng, 8, 24).double()
    (normalize(layer(tensor(rng, 8, 2, 3, 4).double()).flatten(1)) * dy).sum().backward()
    assert float(layer.offset.grad.abs().max()) < 1e-12


def coarse(x: torch.Tensor, range_kept: float) -> torch.Tensor:
    """Nearest 8-bit affine values of a clipped tensor, written out."""
    x = x.double()
    x = x.clamp(x.min() * range_kept, x.max() * range_kept)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("stride,padding", [(1, 1), (2, 0)])
def test_convolution_exact(rng: np.random.Generator, stride: int, padding: int) -> None:
    layer = nn.Conv2d(3, 5, 3, stride=stride, padding=padding)
    settings = OctoSettings(EXACT, compensated=False, range_kept=0.95)
    octo = OctoConvolution(layer, settings, torch.Generator()).eval()
    x = tensor(rng, 2, 3, 7, 7, low=0).requires_grad_()
    out = octo(x)
    weight = layer.weight.detach()
    expected = torch.conv2d(
        coarse(x.detach(), 1.0),
        coarse(weight, 1.0),
        layer.bias.detach().double(),
        stride=stride,
        padding=padding,
    )
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-4)
    dy = tensor(rng, *out.shape)
    out.backward(dy)
    reference_x = coarse(x.detach(), 0.95).requires_grad_()
    reference_w = coarse(weight, 0.95).requires_grad_()
    torch.conv2d(reference_x, reference_w, stride=stride, padding=padding).backward(
        coarse(dy, 0.95)
    )
    torch.testing.assert_close(x.grad.double(), reference_x.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.weight.grad.double(), reference_w.grad, atol=1e-3, rtol=1e-3)


def test_demonstration_leaves_zero_points_in_the_product(rng: np.random.Generator) -> None:
    layer = nn.Conv2d(2, 3, 1, bias=False)
    x = tensor(rng, 2, 2, 4, 4, low=0)
    out = {
        zero_points: OctoConvolution(
            layer, OctoSettings(zero_points, False, 1.0), torch.Generator()
        )
        .eval()(x)
        .detach()
        for zero_points in ZeroPoints
    }
    true = layer(x).detach()
    assert float((out[EXACT] - true).abs().max()) < 0.02
    assert float((out[DEMONSTRATION] - true).abs().max()) > 0.1
    first, second = (forward_codes(t, DEMONSTRATION, None) for t in (x, layer.weight))
    shifted = torch.conv2d(
        first.values() + first.scale * first.zero_point,
        second.values() + second.scale * second.zero_point,
    ).detach()
    torch.testing.assert_close(out[DEMONSTRATION], shifted, atol=1e-4, rtol=1e-4)


def test_dense_layer_is_the_convolution_of_one_pixel(rng: np.random.Generator) -> None:
    layer = nn.Linear(6, 4)
    octo = OctoConvolution(layer, OctoSettings(EXACT, False, 1.0), torch.Generator()).eval()
    x = tensor(rng, 3, 6)
    expected = coarse(x, 1.0) @ coarse(layer.weight.detach(), 1.0).T + layer.bias.detach().double()
    torch.testing.assert_close(octo(x).double(), expected, atol=1e-5, rtol=1e-4)


def test_network_learns_and_is_reproducible(rng: np.random.Generator) -> None:
    torch.manual_seed(3)
    network = DigitsNetwork()
    y = torch.from_numpy(rng.integers(0, 8, 32))
    x = tensor(rng, 32, 1, 8, 8, low=0, high=0.3)
    x[torch.arange(32), 0, y] += 0.7  # a bright row is the label
    ends = []
    for _ in range(2):
        octo = octo_network(network, x[:1], OctoSettings(), seed=7)
        assert sum(isinstance(m, Compensation) for m in octo.modules()) == 3
        optimizer = torch.optim.SGD(octo.parameters(), 0.05, momentum=0.9)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(octo(x), y) + compensation_penalty(octo)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        ends.append(losses)
    assert ends[0] == ends[1]
    assert ends[0][-1] < 0.7 * ends[0][0]
