"""The integer reference against sums in Python integers and PyTorch's own quantize operators."""

import ast
import inspect
import itertools
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional

from weft.errors import InputError, UnsupportedModel
from weft.frontends.pt2_file import load_pt2, save_pt2
from weft.quantize import integer_reference, integer_rules, quantize
from weft.quantize.integer_reference import IntegerReference, evaluate_integer

pytestmark = pytest.mark.torch

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default


def draws(seed: int, *shape: int, count: int = 3) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def build(model: nn.Module, seed: int, *shape: int, inputs: int = 1):
    """The quantized model and float32 samples (another batch size than it was exported with)."""
    torch.manual_seed(seed)
    data = [tuple(draws(seed + 10 * i, 2, *shape, count=inputs)) for i in range(3)]
    graph = quantize(model.eval(), data[0], data)
    return graph, [each.numpy() for each in draws(seed + 99, 5, *shape, count=inputs)]


def parameters(graph) -> list[tuple[float, int]]:
    """Scale and zero point of each quantize node, in order."""
    return [node.args[1:3] for node in graph.graph.nodes if node.target is QUANTIZE]


def frozen(graph, suffix: int, node) -> np.ndarray:
    """A constant that a dequantize node of a layer reads."""
    return getattr(graph, node.args[suffix].target).numpy()


def scaled(amount: int, ratio: float) -> int:
    """The contract, in Python integers: 31-bit multiplier, one rounding, halves to even."""
    exponent = 0
    mantissa = Fraction(ratio)
    while mantissa >= 1:
        mantissa, exponent = mantissa / 2, exponent + 1
    while mantissa < Fraction(1, 2):
        mantissa, exponent = mantissa * 2, exponent - 1
    multiplier = int(mantissa * 2**31 + Fraction(1, 2))
    return round(amount * multiplier * Fraction(2) ** (exponent - 31))


def clip(value: int, low: int = -128, high: int = 127) -> int:
    return max(low, min(high, value))


@pytest.mark.parametrize("exponent", [-62, -31, -9, -1, 0, 1, 20])
def test_scaling_is_rounded_once(exponent, rng) -> None:
    ratios = [2.0**exponent * factor for factor in (0.5, 0.75, 1 - 2**-40, *rng.random(20))]
    amounts = [0, 1, -1, 3, -3, 2**31 - 1, 1 - 2**31, *rng.integers(-(2**31) + 1, 2**31, 40)]
    amounts += [int(sign * 2**shift) for sign in (1, -1) for shift in range(31)]
    found = integer_rules.scaled(np.array(amounts)[:, None], np.array(ratios))
    expected = [[scaled(int(amount), ratio) for ratio in ratios] for amount in amounts]
    np.testing.assert_array_equal(found, expected)


def test_halves_go_to_the_even_neighbour() -> None:
    found = integer_rules.scaled(np.arange(-7, 8, 2), 0.5)
    assert found.tolist() == [-4, -2, -2, 0, 0, 2, 2, 4]


def test_inputs_are_quantized_as_pytorch_does(seed) -> None:
    graph, _ = build(nn.Sequential(nn.ReLU()), seed, 6)
    scale, zero_point = parameters(graph)[0]
    # Every tie and its neighbours, and values beyond the range.
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(scale)
    values = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    wide = np.array([0, -0.0, 1e30, -1e30, 3e38, np.inf, -np.inf, 1e-45], np.float32)
    values = np.concatenate([ties, *values, *[wide] * 3]).reshape(-1, 6)
    own = QUANTIZE(torch.from_numpy(values), scale, zero_point, -128, 127, torch.int8)
    np.testing.assert_array_equal(IntegerReference(graph).layers(values)["input_1"], own)


def test_a_convolution_by_hand(seed) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), nn.ReLU6())
    graph, (samples,) = build(model, seed, 3, 6, 5)
    found = IntegerReference(graph).layers(samples)
    codes, result = found.values()
    (s_in, z_in), (s_out, z_out) = parameters(graph)
    node = next(node for node in graph.graph.nodes if "conv2d" in str(node.target))
    weight, scales = (frozen(graph, suffix, node.args[1]) for suffix in (0, 1))
    bias = frozen(graph, 0, node.args[2])
    assert result.shape == (5, 4, 3, 4)
    for n, c, y, x in itertools.product(*map(range, result.shape)):
        total = int(bias[c])
        for k, i, j in itertools.product(range(3), range(3), range(2)):
            row, column = 2 * y - 1 + i, x + j
            if 0 <= row < 6:
                total += int(weight[c, k, i, j]) * (int(codes[n, k, row, column]) - z_in)
        value = scaled(total, s_in * float(scales[c]) / s_out) + z_out
        value = clip(value, high=round(6 / s_out) + z_out)
        assert result[n, c, y, x] == clip(max(value, z_out))


def test_a_dense_layer_by_hand(seed) -> None:
    graph, (samples,) = build(nn.Sequential(nn.Linear(9, 4, bias=False)), seed, 9)
    codes, result = IntegerReference(graph).layers(samples).values()
    (s_in, z_in), (s_out, z_out) = parameters(graph)
    node = next(node for node in graph.graph.nodes if "linear" in str(node.target))
    weight, scales = (frozen(graph, suffix, node.args[1]) for suffix in (0, 1))
    for n, c in itertools.product(range(5), range(4)):
        total = sum(int(w) * (int(q) - z_in) for w, q in zip(weight[c], codes[n], strict=True))
        assert result[n, c] == clip(scaled(total, s_in * float(scales[c]) / s_out) + z_out)


@pytest.mark.parametrize("order", [1, -1])
def test_an_addition_by_hand(order, seed) -> None:
    class Sum(nn.Module):
        def forward(self, x, y):
            return x + y

    first, second = draws(seed, 2, 40, count=2)
    data = (first, 7 * second + 3)[::order]
    graph = quantize(Sum(), data, [data])
    samples = [each.numpy() for each in data]
    left, right, result = IntegerReference(graph).layers(*samples).values()
    (s1, z1), (s2, z2), (s_out, z_out) = parameters(graph)
    assert s1 != s2
    coarse = max(s1, s2)
    for index in np.ndindex(result.shape):
        parts = [
            scaled((int(q[index]) - z) << 22, s / coarse)
            if s != coarse
            else (int(q[index]) - z) << 22
            for q, s, z in ((left, s1, z1), (right, s2, z2))
        ]
        assert result[index] == clip(scaled(sum(parts), coarse / (2.0**22 * s_out)) + z_out)


@pytest.mark.parametrize("counted", [True, False])
def test_an_average_pool_by_hand(counted, seed) -> None:
    model = nn.Sequential(nn.AvgPool2d((3, 2), (2, 2), (1, 1), count_include_pad=counted))
    graph, (samples,) = build(model, seed, 2, 6, 5)
    codes, result = IntegerReference(graph).layers(samples).values()
    (s_in, z_in), (s_out, z_out) = parameters(graph)
    for n, c, y, x in itertools.product(*map(range, result.shape)):
        window = [
            int(codes[n, c, row, column]) - z_in
            for row in range(2 * y - 1, 2 * y + 2)
            for column in range(2 * x - 1, 2 * x + 1)
            if 0 <= row < 6 and 0 <= column < 5
        ]
        ratio = s_in / (s_out * (6 if counted else len(window)))
        assert result[n, c, y, x] == clip(scaled(sum(window), ratio) + z_out)


def test_what_selects_and_moves_keeps_codes(seed) -> None:
    class Moves(nn.Module):
        def forward(self, x):
            y = functional.max_pool2d(x, 3, 2, 1)
            z = functional.adaptive_avg_pool2d(y, 1)
            return y.flatten(1), z.squeeze(3).squeeze(2).unsqueeze(1), x.view(x.shape[0], -1)

    graph, (samples,) = build(Moves(), seed, 3, 6, 6)
    pooled, image, flat = evaluate_integer(graph, samples)
    codes = IntegerReference(graph).layers(samples)["x"]
    expected = functional.max_pool2d(torch.from_numpy(codes.astype(np.float32)), 3, 2, 1)
    np.testing.assert_array_equal(pooled, expected.flatten(1).numpy())
    np.testing.assert_array_equal(flat, codes.reshape(5, -1))
    assert image.shape == (5, 1, 3)


@pytest.mark.parametrize("low, high", [(-0.5, 0.75), (0.5, None), (None, -0.25), (2.0, 1.0)])
def test_clamps_are_those_of_pytorch(low, high, seed) -> None:
    class Clamp(nn.Module):
        def forward(self, x):
            return torch.clamp(functional.max_pool2d(x, 1), low, high)

    graph, (samples,) = build(Clamp(), seed, 1, 8, 8)
    *_, before, after = IntegerReference(graph).layers(samples).values()
    scale, zero_point = parameters(graph)[-1]
    real = torch.clamp((torch.from_numpy(before).float() - zero_point) * scale, low, high)
    np.testing.assert_array_equal(after, QUANTIZE(real, scale, zero_point, -128, 127, torch.int8))


def test_a_saved_model_answers_the_same_and_samples_are_independent(seed, tmp_path) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)
    )
    graph, (samples,) = build(model, seed, 2, 6, 6)
    save_pt2(graph, tmp_path / "model.pt2", (torch.from_numpy(samples[:2]),))
    expected = evaluate_integer(graph, samples)
    assert expected.dtype == np.int8 and expected.shape == (5, 3)
    np.testing.assert_array_equal(
        evaluate_integer(load_pt2(tmp_path / "model.pt2"), samples), expected
    )
    single = [evaluate_integer(graph, samples[i : i + 1]) for i in range(5)]
    np.testing.assert_array_equal(np.concatenate(single), expected)


def test_large_batches_are_computed_in_parts(seed, monkeypatch) -> None:
    graph, (samples,) = build(nn.Sequential(nn.Conv2d(2, 4, 3)), seed, 2, 6, 6)
    expected = evaluate_integer(graph, samples)
    monkeypatch.setattr(integer_rules, "CHUNK_ELEMENTS", 600)
    np.testing.assert_array_equal(evaluate_integer(graph, samples), expected)


def test_inputs_that_cannot_be_used(seed) -> None:
    graph, (samples,) = build(nn.Sequential(nn.ReLU()), seed, 6)
    with pytest.raises(InputError, match="1 inputs, not 2"):
        evaluate_integer(graph, samples, samples)
    with pytest.raises(InputError, match="must be float32, not float64"):
        evaluate_integer(graph, samples.astype(np.float64))
    with pytest.raises(InputError, match=r"not \(5, 5\)"):
        evaluate_integer(graph, samples[:, :5])
    with pytest.raises(InputError, match="NaN"):
        evaluate_integer(graph, samples * np.float32(np.nan))


@pytest.mark.parametrize(
    "model, text",
    [
        (nn.MaxPool2d(3, ceil_mode=True), "ceil_mode"),
        (nn.Sigmoid(), "aten.sigmoid.default.: the integer reference has no rule"),
    ],
)
def test_what_it_does_not_know_is_refused(model, text, seed) -> None:
    graph, (samples,) = build(nn.Sequential(model), seed, 4, 8, 8)
    with pytest.raises(UnsupportedModel, match=text):
        evaluate_integer(graph, samples)


def test_it_shares_no_code_with_what_it_judges() -> None:
    for module in (integer_reference, integer_rules):
        nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        ours = {name for name in imported if name.startswith("weft")}
        assert ours <= {"weft.errors", "weft.quantize.integer_rules"}
