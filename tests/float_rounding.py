"""Explains where a float32 evaluation of a quantized layer may differ from exact integers.

A layer's exact real result, in steps of its output, is v: a rational number, since all scales are
floats. PyTorch computes it in float32, where each operation multiplies by (1 + d), |d| <= u, with
u = 2^-24. With gamma(k) = k u / (1 - k u), k roundings on the way of each of n summed terms give a
result within

    E = gamma(k) * sum of |term| / s_out

of v, whatever the order of the sum. Counted here, each generously: one rounding for the dequantized
value, one for the weight, n for n products and their sum, four for the bias (its conversion, its
scale, its product, its addition), three for the division by s_out (the float64 reciprocal, its
conversion, the product), one for the division of an average and one for a clamp's bound.

A float result may then have any code that a number of [v - E, v + E] rounds to, and no other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from weft.quantize.pt2e import torch  # registers the quantized operators

__all__ = ["Difference", "ExactLayer", "ForcedCodes", "explain", "read_layer"]

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
QUANTIZE = decomposed.quantize_per_tensor.default
DEQUANTIZE = decomposed.dequantize_per_tensor.default

UNIT = Fraction(1, 2**24)
MULTIPLIER_ERROR = Fraction(1, 2**31)
"""Largest relative error of a 31-bit multiplier with a mantissa in [2^30, 2^31], rounded (2^-32),
twice: the float64 ratio of scales has errors of 2^-52 beside it."""

CLAMPS = {
    aten.relu.default: (0.0, None),
    aten.relu6.default: (0.0, 6.0),
    aten.hardtanh.default: None,
    aten.clamp.default: None,
    aten.clamp_min.default: None,
}


def gamma(roundings: int) -> Fraction:
    """Bound of the relative error after so many roundings."""
    return roundings * UNIT / (1 - roundings * UNIT)


class ForcedCodes(torch.fx.Interpreter):
    """The float graph, in which every quantized value is replaced by given codes once it is known.

    So each layer sees the given codes of its inputs; `own` keeps what the graph itself answered.
    """

    def __init__(self, model: Any, codes: dict[str, np.ndarray], name_of: Any) -> None:
        super().__init__(model)
        self.codes, self.name_of = codes, name_of
        self.own: dict[Any, np.ndarray] = {}

    def run_node(self, node: Any) -> Any:
        result = super().run_node(node)
        if node.target is QUANTIZE:
            self.own[node] = result.numpy()
            return torch.from_numpy(self.codes[self.name_of(node)])
        return result


@dataclass(frozen=True)
class ExactLayer:
    """``sum of amount * ratio`` over terms is v; ``sum of size * ratio`` is what E is relative to.

    ``terms`` holds (amount, size, ratio) with int64 arrays of the output's shape and an object
    array of Fractions that broadcasts to it; ``clamps`` are pairs of bounds in output steps.
    """

    terms: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    roundings: int
    clamps: tuple[tuple[Fraction | None, Fraction | None], ...]
    zero_point: int
    is_add: bool

    def value(self, index: tuple[int, ...]) -> tuple[Fraction, Fraction, int]:
        """v, E and the largest partial sum that float32 may have to hold, of one element."""
        value = scale = Fraction(0)
        largest = 0
        for amount, size, ratio in self.terms:
            here = np.broadcast_to(ratio, amount.shape)[index]
            value += int(amount[index]) * here
            scale += int(size[index]) * here
            largest = max(largest, int(size[index]))
        error = gamma(self.roundings) * scale
        for low, high in self.clamps:
            value = value if low is None else max(value, low)
            value = value if high is None else min(value, high)
            error += gamma(1) * max(abs(bound or 0) for bound in (low, high))
        return value, error, largest


@dataclass(frozen=True)
class Difference:
    """One element whose float code is not the integer one.

    ``distance`` is that of the exact value from the nearest tie, ``error`` the float bound E.
    """

    kind: str
    distance: Fraction
    error: Fraction


def explain(
    layer: ExactLayer, integer: np.ndarray, floating: np.ndarray, where: str
) -> Iterator[Difference]:
    """Explain every element in which the codes differ; an AssertionError where nothing does.

    Also asserts that the integer code is the correctly rounded exact value there, but for values
    that lie nearer to a tie than the 31-bit multipliers can tell.
    """
    assert integer.shape == floating.shape
    for index in zip(*np.nonzero(integer != floating), strict=True):
        value, error, largest = layer.value(index)
        ours, theirs = int(integer[index]), int(floating[index])
        text = (
            f"{where}{list(map(int, index))}: exact {float(value)}, integer {ours}, float {theirs}"
        )
        low, high = _codes(value - error, value + error, layer.zero_point)
        assert low <= theirs <= high, f"{text}: beyond the float error {float(error)}"
        slack = MULTIPLIER_ERROR * abs(value)
        if layer.is_add:  # the finer input is scaled to 2^-22 steps of the coarser one
            coarse = max(abs(ratio.flat[0]) for _, _, ratio in layer.terms)
            slack = Fraction(63, 100) * coarse / 2**22 + Fraction(1, 2**23)
        low, high = _codes(value - slack, value + slack, layer.zero_point)
        assert low <= ours <= high, f"{text}: the integer code is not the rounded exact value"
        kind = "sum beyond 2^24" if largest > 2**24 else "near tie"
        yield Difference(kind, abs(value - math.floor(value) - Fraction(1, 2)), error)


def _codes(low: Fraction, high: Fraction, zero_point: int) -> tuple[int, int]:
    """Smallest and largest code of the numbers of an interval; at a tie, both neighbours."""
    half = Fraction(1, 2)
    first, last = math.ceil(low - half) + zero_point, math.floor(high + half) + zero_point
    return max(-128, min(127, first)), max(-128, min(127, last))


# Layers ------------------------------------------------------------------------------------------


def read_layer(model: Any, quantize: Any, codes: dict[Any, np.ndarray]) -> ExactLayer | None:
    """The exact layer in front of a quantize node, from the codes of each quantize node.

    None for an input of the model. Sums are made by PyTorch in float64, exact below 2^53.
    """
    node, scale, zero_point = quantize.args[0], quantize.args[1], quantize.args[2]
    if node.op == "placeholder":
        return None
    step = Fraction(scale)
    clamps: list[Any] = []
    while node.target in CLAMPS and node.args[0].target is not DEQUANTIZE:
        clamps.insert(0, _clamp(node, step))
        node = node.args[0]
    reader = _Reader(model, codes, step)
    terms, roundings, own = reader.read(node)
    return ExactLayer(
        terms=tuple(terms),
        roundings=roundings,
        clamps=(*own, *clamps),
        zero_point=zero_point,
        is_add=node.target is aten.add.Tensor,
    )


def _clamp(node: Any, step: Fraction) -> tuple[Fraction | None, Fraction | None]:
    bounds = CLAMPS[node.target] or (*node.args[1:], None, None)[:2]
    low, high = (None if bound is None else Fraction(bound) / step for bound in bounds)
    return low, high


@dataclass
class _Reader:
    model: Any
    codes: dict[Any, np.ndarray]
    step: Fraction

    def read(self, node: Any) -> tuple[list[Any], int, list[Any]]:
        """Terms, roundings a term and clamps of the operator."""
        data, scale = self._operand(node.args[0])
        if node.target is aten.add.Tensor:
            other, other_scale = self._operand(node.args[1])
            data, other = torch.broadcast_tensors(data, other)
            pairs = ((data, scale), (other, other_scale))
            return [self._term(x, x.abs(), s / self.step) for x, s in pairs], 6, []
        if node.target in (aten.conv2d.default, aten.conv2d.padding, aten.linear.default):
            return self._layer(node, data, scale)
        if node.target in CLAMPS:
            return [self._term(data, data.abs(), scale / self.step)], 5, [_clamp(node, self.step)]
        if node.target in (
            aten.avg_pool2d.default,
            aten.adaptive_avg_pool2d.default,
            aten.mean.dim,
        ):
            return self._average(node, data, scale)
        moved = node.target(data, *node.args[1:])  # maximum and moves select exactly
        return [self._term(moved, moved.abs(), scale / self.step)], 5, []

    def _layer(self, node: Any, data: Any, scale: Fraction) -> tuple[list[Any], int, list[Any]]:
        weight, scales = self._constant(node.args[1])
        bias, rest = torch.zeros(len(weight), dtype=torch.float64), node.args[3:]
        if len(node.args) > 2 and node.args[2] is not None:
            bias, _ = self._constant(node.args[2])
        sums = node.target(data, weight, bias, *rest)
        sizes = node.target(data.abs(), weight.abs(), bias.abs(), *rest)
        ratios = [scale * Fraction(value) / self.step for value in scales.tolist()]
        shape = (-1,) if sums.ndim == 2 else (-1, 1, 1)
        ratio = np.array(ratios, dtype=object).reshape(shape)
        return [self._term(sums, sizes, ratio)], math.prod(weight.shape[1:]) + 10, []

    def _average(self, node: Any, data: Any, scale: Fraction) -> tuple[list[Any], int, list[Any]]:
        if node.target is aten.avg_pool2d.default:
            kernel, *rest = node.args[1:]
            stride, padding, ceil, include = (*rest, *([kernel], [0, 0], False, True)[len(rest) :])
            stride = kernel if stride == [kernel] or not stride else stride
            geometry = (kernel, stride, padding, ceil, True, 1)
            sums, sizes = (aten.avg_pool2d.default(x, *geometry) for x in (data, data.abs()))
            if include:
                count = torch.full_like(sums[:1, :1], math.prod(kernel))
            else:
                count = aten.avg_pool2d.default(torch.ones_like(data[:1, :1]), *geometry)
        else:
            keep = node.target is not aten.mean.dim or (*node.args, False)[2]
            sums, sizes = (x.sum((2, 3), keepdim=keep) for x in (data, data.abs()))
            count = torch.full_like(sums, data.shape[2] * data.shape[3])
        ratio = np.vectorize(lambda n: scale / (self.step * int(n)), otypes=[object])(count.numpy())
        return [self._term(sums, sizes, ratio)], int(count.max()) + 6, []

    def _term(self, amount: Any, size: Any, ratio: Any) -> tuple[Any, Any, Any]:
        ratio = ratio if isinstance(ratio, np.ndarray) else np.array(ratio, dtype=object)
        return amount.numpy().astype(np.int64), size.numpy().astype(np.int64), ratio

    def _operand(self, node: Any) -> tuple[Any, Fraction]:
        """(q - z) in float64, and the scale, of a dequantize node."""
        assert node.target is DEQUANTIZE
        source, scale, zero_point = node.args[:3]
        codes = self.codes[source] if source in self.codes else self._attribute(source).numpy()
        return torch.from_numpy(codes.astype(np.float64)) - zero_point, Fraction(scale)

    def _constant(self, node: Any) -> tuple[Any, Any]:
        values, scales = (self._attribute(operand) for operand in node.args[:2])
        return values.double(), scales.double()

    def _attribute(self, node: Any) -> Any:
        return reduce(getattr, node.target.split("."), self.model)
