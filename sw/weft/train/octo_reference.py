"""Octo as published, emulated in floating point: what the integer form is compared with.

Zhou et al., *Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for Tiny
On-device Learning*, USENIX ATC 2021, and its public demonstration (github.com/kimihe/Octo, commit
356b797, there NumPy). Codes are whole numbers in float32; only their range of 8 bits counts.

The demonstration differs from int8 arithmetic with zero points in three ways, all kept in
:attr:`ZeroPoints.DEMONSTRATION` and put right in :attr:`ZeroPoints.EXACT`:

* Forward, codes of 8 bits span [-255, 255], with a zero point that is not rounded.
* The product of two tensors of codes is scaled without subtracting their zero points, and pads with
  code 0, which is not the number 0. There, normalization behind it takes part of the error away.
* Backward, codes are ``rint(x / scale)`` with ``scale = (max - min) / 254`` and no zero point: a
  tensor of one sign takes codes up to 254.

Further: the demonstration keeps dense layers in float and has a compensation for each place in the
batch, which cannot be used for other pictures; here dense layers are quantized alike and the batch
axis is left out. Its optimizer is Adam; here it is the caller's. Evaluation rounds to nearest.
"""

import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Codes",
    "Compensation",
    "OctoConvolution",
    "OctoSettings",
    "ZeroPoints",
    "backward_codes",
    "clipped",
    "compensation_penalty",
    "forward_codes",
    "octo_network",
]

SPREAD = 1e-3
"""Standard deviation of mu and offset at first."""


class ZeroPoints(Enum):
    """How zero points are handled: as the public demonstration does, or rightly."""

    DEMONSTRATION = "demonstration"
    EXACT = "exact"


@dataclass(frozen=True)
class OctoSettings:
    """Which parts of Octo are on.

    Parameters
    ----------
    zero_points : ZeroPoints
    compensated : bool
        A compensation behind each convolution.
    range_kept : float
        Backward, ranges are clipped to this share of their ends; 1: not clipped.
    """

    zero_points: ZeroPoints = ZeroPoints.EXACT
    compensated: bool = True
    range_kept: float = 0.95


@dataclass(frozen=True)
class Codes:
    """A tensor of codes with ``value = scale * (code - zero_point)``, and its shape."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def values(self) -> Tensor:
        """What the codes stand for."""
        return self.scale * (self.codes - self.zero_point)


def _scale(span: Tensor) -> Tensor:
    return torch.where(span > 0, span, torch.ones_like(span))


def _affine(x: Tensor, noise: Tensor | None) -> Codes:
    """Codes 0 to 255 over a range that holds 0, with a whole zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = _scale((high - low) / 255)
    zero_point = torch.round(-low / scale)
    steps = x / scale
    rounded = torch.round(steps) if noise is None else torch.floor(steps + noise)
    return Codes((rounded + zero_point).clamp(0, 255), scale, zero_point)


def forward_codes(x: Tensor, zero_points: ZeroPoints, noise: Tensor | None) -> Codes:
    """Codes of activations or weights.

    Parameters
    ----------
    x : Tensor
    zero_points : ZeroPoints
    noise : Tensor, optional
        Uniform in [0, 1), in the shape of x, for stochastic rounding; else to nearest.
    """
    if zero_points is ZeroPoints.EXACT:
        return _affine(x, noise)
    scale = _scale((x.amax() - x.amin()) / 510)
    zero_point = (255 - x.amax() / scale).clamp(-255, 255)
    steps = x / scale + zero_point
    return Codes(
        torch.round(steps) if noise is None else torch.floor(steps + noise), scale, zero_point
    )


def backward_codes(x: Tensor, zero_points: ZeroPoints) -> Codes:
    """Codes of the operands of the backward pass, rounded to nearest."""
    if zero_points is ZeroPoints.EXACT:
        return _affine(x, None)
    scale = _scale((x.amax() - x.amin()) / 254)
    return Codes(torch.round(x / scale), scale, torch.zeros_like(scale))


def clipped(x: Tensor, range_kept: float) -> Tensor:
    """Values within ``range_kept`` of the largest and of the smallest (parameterized range
    clipping, as the demonstration has it)."""
    ends = torch.stack([x.amin(), x.amax()]) * range_kept
    return x.clamp(ends.min(), ends.max())


class _Product(torch.autograd.Function):
    """A convolution of codes, and the gradients that Octo takes for it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        noise: tuple[Tensor, Tensor] | None,
        settings: OctoSettings,
        geometry: dict[str, Any],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.geometry = settings, geometry
        first, second = (
            forward_codes(operand, settings.zero_points, None if noise is None else noise[place])
            for place, operand in enumerate((x, weight))
        )
        if settings.zero_points is ZeroPoints.EXACT:
            return functional.conv2d(first.values(), second.values(), **geometry)
        return functional.conv2d(first.codes, second.codes, **geometry) * first.scale * second.scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gradient = (
            backward_codes(
                clipped(operand, ctx.settings.range_kept), ctx.settings.zero_points
            ).values()
            for operand in (*ctx.saved_tensors, gradients[0])
        )
        geometry = ctx.geometry
        to_x = (
            nn.grad.conv2d_input(x.shape, weight, gradient, **geometry)
            if ctx.needs_input_grad[0]
            else None
        )
        to_weight = nn.grad.conv2d_weight(x, weight.shape, gradient, **geometry)
        return to_x, to_weight, None, None, None


class _Bias(torch.autograd.Function):
    """Adds a bias by channel; its gradient takes codes of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, zero_points: ZeroPoints) -> Tensor:
        ctx.zero_points = zero_points
        return x + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].sum((0, 2, 3))
        return gradients[0], backward_codes(total, ctx.zero_points).values(), None


class Compensation(nn.Module):
    """``x + alpha * mu + offset`` by channel and pixel: Octo's loss-aware compensation.

    Parameters
    ----------
    shape : (channels, height, width)
    generator : torch.Generator, optional
    """

    def __init__(
        self, shape: tuple[int, int, int], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(shape))
        self.mu = nn.Parameter(SPREAD * torch.randn(shape, generator=generator))
        self.offset = nn.Parameter(SPREAD * torch.randn(shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, channels, height, width)."""
        return x + self.alpha * self.mu + self.offset


def compensation_penalty(network: nn.Module, strength: float = 0.1) -> Tensor:
    """``strength / 2 * (|mu|^2 + |offset|^2)`` over all compensations: a term of the loss."""
    total = torch.zeros(())
    for module in network.modules():
        if isinstance(module, Compensation):
            total = total + module.mu.square().sum() + module.offset.square().sum()
    return strength / 2 * total


class OctoConvolution(nn.Module):
    """A convolution or dense layer in Octo's arithmetic, its weights those of the layer given.

    Parameters
    ----------
    layer : nn.Conv2d or nn.Linear
    settings : OctoSettings
    generator : torch.Generator
        Of the stochastic rounding.
    compensation : Compensation, optional
    """

    def __init__(
        self,
        layer: nn.Module,
        settings: OctoSettings,
        generator: torch.Generator,
        compensation: Compensation | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.dense = isinstance(layer, nn.Linear)
        self.geometry = {} if self.dense else _geometry(layer)
        self.settings, self.generator, self.compensation = settings, generator, compensation

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own; random only in training mode."""
        weight = self.weight
        if self.dense:
            x, weight = x[:, :, None, None], weight[:, :, None, None]
        noise = None
        if self.training:
            noise = tuple(
                torch.rand(operand.shape, generator=self.generator) for operand in (x, weight)
            )
        result = _Product.apply(x, weight, noise, self.settings, self.geometry)
        if self.bias is not None:
            result = _Bias.apply(result, self.bias, self.settings.zero_points)
        if self.compensation is not None:
            result = self.compensation(result)
        return result[:, :, 0, 0] if self.dense else result


def _geometry(layer: nn.Conv2d) -> dict[str, Any]:
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise ValueError(f"{layer}: only convolutions of one group, padded with zeros")
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}


def octo_network(
    network: nn.Module, example: Tensor, settings: OctoSettings, seed: int = 0
) -> nn.Module:
    """A copy whose convolutions and dense layers compute as Octo does.

    Parameters
    ----------
    network : nn.Module
        Not changed.
    example : Tensor
        An input, which tells the compensations their shapes.
    settings : OctoSettings
    seed : int
        Of rounding and of the compensations' start.
    """
    result = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: module
        for name, module in result.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    shapes: dict[str, tuple[int, int, int]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:]))
        )
        for name, module in layers.items()
    ]
    with torch.no_grad():
        result(example)
    for hook in hooks:
        hook.remove()
    for name, module in layers.items():
        compensated = settings.compensated and isinstance(module, nn.Conv2d)
        compensation = Compensation(shapes[name], generator) if compensated else None
        parent, _, last = name.rpartition(".")
        replaced = OctoConvolution(module, settings, generator, compensation)
        setattr(result.get_submodule(parent), last, replaced)
    return result
