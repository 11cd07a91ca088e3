"""Every layer, on equal inputs, equals the converted PyTorch graph, but where floats round.

Each layer of the converted graph is evaluated in float32 on the codes that the integer reference
has for its inputs. Where the codes of its result differ, the exact rational value must be so near
to a tie, or its sum so large, that float32 cannot tell; see `float_rounding` for the bound. The
integer code must be the correctly rounded one there. The reference takes its scales from the graph,
never from a Program.

The compiled program, on the functional engine, must equal the integer reference in every code.
"""

import dataclasses
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import weft  # noqa: E402
from float_rounding import ForcedCodes, explain, read_layer  # noqa: E402
from weft.frontends.pytorch import graph_from_torch  # noqa: E402
from weft.quantize import quantize  # noqa: E402
from weft.quantize.integer_reference import IntegerReference, layer_name  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    # PyTorch's advice on speed, at the even kernel below.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]

SAMPLES = 32


class Convolutions(nn.Module):
    """Kernels, strides, paddings and channels, one behind the other and side by side."""

    shape = (3, 11, 13)

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(3, 17, 3, padding=1)
        self.stride = nn.Conv2d(17, 16, 3, stride=2, padding=1, bias=False)
        self.point = nn.Conv2d(16, 5, 1)
        self.wide = nn.Conv2d(17, 4, (1, 5), stride=(2, 1), padding=(0, 2))
        self.same = nn.Conv2d(5, 6, (4, 3), padding="same")
        self.valid = nn.Conv2d(6, 33, 2, padding="valid")

    def forward(self, x):
        x = functional.relu(self.square(x))
        y = functional.relu6(self.point(functional.hardtanh(self.stride(x), -0.3, 0.4)))
        return self.wide(x), self.valid(self.same(y))


class Groups(nn.Module):
    """Depthwise, several filters a channel, several channels a group, and dilation."""

    shape = (6, 11, 12)

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.stride = nn.Conv2d(6, 6, (3, 5), stride=(2, 1), padding=(0, 2), groups=6, dilation=2)
        self.filters = nn.Conv2d(6, 24, 3, groups=6, bias=False)
        self.groups = nn.Conv2d(24, 12, 3, padding="same", groups=4, dilation=(1, 2))
        self.wide = nn.Conv2d(24, 5, 3, dilation=2, padding=3)

    def forward(self, x):
        x = functional.relu(self.depthwise(x))
        y = self.filters(x)
        return self.stride(x), self.groups(y), functional.relu6(self.wide(y))


class Residual(nn.Module):
    """Additions of unequal scales, with or without ReLU, of a value to itself, of a constant."""

    shape = (4, 9, 9)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.third = nn.Conv2d(12, 12, 1)
        self.offset = nn.Parameter(torch.linspace(-2, 1, 12 * 9 * 9).reshape(1, 12, 9, 9))

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        y = functional.relu(x + self.second(x))
        z = self.third(y) + y
        return z + z, torch.clamp(z + x, -0.5, 0.75), x + self.offset


class Pools(nn.Module):
    """Every pool, whole and with borders, and clamps of their own."""

    shape = (7, 10, 12)

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(7, 7, 1)

    def forward(self, x):
        y = functional.relu(functional.max_pool2d(self.convolution(x), 3, 2, 1))
        counted = functional.avg_pool2d(x, (2, 3), (2, 3))
        border = functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        padded = functional.avg_pool2d(x, 3, 2, 1)
        return y, counted, border, padded, x.mean((2, 3)), functional.adaptive_avg_pool2d(y, 1)


class Dense(nn.Module):
    """A flattened image into dense layers."""

    shape = (6, 5, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(120, 33)
        self.second = nn.Linear(33, 10, bias=False)

    def forward(self, x):
        x = functional.relu(self.first(torch.flatten(x, 1)))
        return self.second(functional.dropout(x, training=self.training))


class LargeSums(nn.Module):
    """Sums beyond 2^24, where float32 does not hold every integer."""

    shape = (4000,)

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4000, 300)
        with torch.no_grad():
            self.dense.weight.copy_(self.dense.weight.abs() + 0.05)

    def forward(self, x):
        return self.dense(x)


MODELS = (Convolutions, Groups, Residual, Pools, Dense, LargeSums)


def prepared(kind: type, seed: int):
    """A quantized model with random weights, and samples (N, ...) to run."""
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_()
    draw = torch.rand if kind is LargeSums else torch.randn
    batches = [draw(SAMPLES, *kind.shape) for _ in range(4)]
    return quantize(model, (batches[0],), batches[1:]), batches[0].numpy()


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_every_layer_equals_pytorch_but_for_float_rounding(kind, seed, capsys) -> None:
    model, samples = prepared(kind, seed)
    codes = IntegerReference(model).layers(samples)
    forced = ForcedCodes(model, codes, layer_name)
    with torch.no_grad():
        forced.run(torch.from_numpy(samples))
    by_node = {node: codes[layer_name(node)] for node in forced.own}
    assert len(by_node) == len(codes) > 1
    lines, kinds = [], Counter()
    for node, own in forced.own.items():
        layer = read_layer(model, node, by_node)
        ours = by_node[node]
        if layer is None:  # inputs are quantized in float32 by both
            np.testing.assert_array_equal(ours, own)
            continue
        found = list(explain(layer, ours, own, layer_name(node)))
        kinds.update(each.kind for each in found)
        # A bound of half a step and more would explain anything.
        assert all(each.error < 0.5 for each in found if each.kind == "near tie")
        assert len(np.unique(ours)) > 10
        farthest = float(max((each.distance for each in found), default=0))
        lines.append(
            f"  {layer_name(node):24}{len(found):6} of {ours.size:6} codes differ "
            f"({len(found) / ours.size:.4%}), at most {farthest:.2e} steps from a tie"
        )
    if kind is LargeSums:
        assert np.abs(layer.terms[0][0]).max() > 2**24
    with capsys.disabled():
        print(f"\n{kind.__name__}: {dict(kinds)}", *lines, sep="\n")


def test_a_wrong_code_is_not_explained(seed) -> None:
    model, samples = prepared(Dense, seed)
    codes = IntegerReference(model).layers(samples)
    forced = ForcedCodes(model, codes, layer_name)
    with torch.no_grad():
        forced.run(torch.from_numpy(samples))
    by_node = {node: codes[layer_name(node)] for node in forced.own}
    node = next(node for node in by_node if node.args[0].target is torch.ops.aten.linear.default)
    layer, own = read_layer(model, node, by_node), forced.own[node]
    inside = np.argwhere((own == by_node[node]) & (np.abs(own.astype(int)) < 100))
    for index in map(tuple, inside[:20]):
        value, error, _ = layer.value(index)
        if abs(value - np.floor(float(value)) - 0.5) <= 2 * error:
            continue
        for change in (-1, 1):
            wrong = own.copy()
            wrong[index] += change
            with pytest.raises(AssertionError, match="beyond the float error"):
                list(explain(layer, by_node[node], wrong, "layer"))
            with pytest.raises(AssertionError, match="not the rounded exact value"):
                list(explain(layer, wrong, own, "layer"))


@pytest.mark.parametrize("config", ["base16", "edge8"])
@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_every_compiled_layer_equals_the_integer_reference(kind, config, seed) -> None:
    model, samples = prepared(kind, seed)
    samples = samples[:2]
    codes = IntegerReference(model).layers(samples)
    graph = graph_from_torch(model, name=kind.__name__)
    # Every value that the reference has becomes an output of the program.
    shown = tuple(tensor.name for tensor in graph.tensors if tensor.name in codes)
    assert set(graph.outputs) <= set(shown)
    # (A flattening of its own is no value of its own on the machine.)
    computed = {operation.output for operation in graph.operations if operation.kind != "Flatten"}
    outputs = tuple(name for name in shown if name in {*computed, *graph.outputs})
    graph = dataclasses.replace(graph, outputs=outputs)
    with weft.Session(weft.compile(graph, config), engine="functional") as session:
        results = session.run(samples)
    if len(graph.outputs) == 1:
        results = {graph.outputs[0]: results}
    assert set(results) == set(graph.outputs)
    for name, result in results.items():
        np.testing.assert_array_equal(result, codes[name], err_msg=name)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_a_compiled_network_answers_as_the_integer_reference(kind, seed) -> None:
    model, samples = prepared(kind, seed)
    expected = IntegerReference(model)(samples[:3])
    with weft.Session(weft.compile(model, "base16"), engine="functional") as session:
        results = session.run(samples[:3])
    if not isinstance(expected, tuple):
        expected, results = (expected,), {"": results}
    for result, codes in zip(results.values(), expected, strict=True):
        np.testing.assert_array_equal(result, codes)
