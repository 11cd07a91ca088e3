"""How each kind of tensor is quantized: activations, weights and biases."""

from typing import Any

import torch

from weft.quantize.pt2e import DerivedQuantizationSpec, PerChannelMinMaxObserver, QuantizationSpec

__all__ = ["WeightObserver", "activation_spec", "bias_spec", "weight_spec"]

WEIGHT_MAX = 127
"""Weights use -127..127. With -128 the range would be lopsided: the scale that torchao takes from
it, max|w| / 127.5, maps the largest weight to 127.5, which saturates when it is positive. Without
-128 the scale is max|w| / 127 and both signs reach their bound exactly."""

BIAS_MAX = 2**31 - 128
"""The largest float32 below 2**31: a bias is clamped as float32 before it becomes int32."""

BIAS_HEADROOM = 2.0**30
"""Largest int32 bias that a weight scale may lead to: half the range is left to the products."""


class WeightObserver(PerChannelMinMaxObserver):
    """Symmetric scales by output channel, never so small that the int32 bias overflows.

    The bias of channel c has the scale s_x * s_w[c]. A channel whose weights are (nearly) zero
    would take the smallest possible s_w, and its bias would not fit 32 bits. So

        s_w[c] = max( max|w[c]| / 127,  |b[c]| / (s_x * 2**30) )

    The second term costs such a channel nothing that its output could show: there, all weights
    together weigh less than 2**-30 of the bias for each unit of x / s_x.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._biased: list[tuple[Any, torch.Tensor]] = []

    def limit_bias(self, activation: Any, bias: torch.Tensor) -> None:
        """Keep `bias` in range, where `activation` observes the input that the weight meets."""
        self._biased.append((activation, bias.detach()))

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        scale, zero_point = super().calculate_qparams()
        for activation, bias in self._biased:
            input_scale, _ = activation.calculate_qparams()
            scale = torch.maximum(scale, bias.abs() / (input_scale * BIAS_HEADROOM))
        return scale, zero_point


def activation_spec(observer: Any) -> Any:
    """int8, one affine scale for the tensor: -128 .. 127."""
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observer,
    )


def weight_spec() -> Any:
    """int8, symmetric, one scale for each output channel (axis 0): -127 .. 127."""
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-WEIGHT_MAX,
        quant_max=WEIGHT_MAX,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=WeightObserver,
    )


def _bias_qparams(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    activation, weight = observers
    scale = activation.calculate_qparams()[0] * weight.calculate_qparams()[0]
    return scale, torch.zeros_like(scale, dtype=torch.int32)


def bias_spec(data: Any, weight: Any, node: Any) -> Any:
    """int32 in units of the products, s_x * s_w[c]: the accelerator adds it to the sum as it is.

    A bias left in float is rounded after the sum instead, and some outputs differ (measured: 404 in
    a million).
    """
    return DerivedQuantizationSpec(
        derived_from=[(data, node), (weight, node)],
        derive_qparams_fn=_bias_qparams,
        dtype=torch.int32,
        quant_min=-BIAS_MAX,
        quant_max=BIAS_MAX,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
