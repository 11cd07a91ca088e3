"""The PyTorch front end: what each operator becomes."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional

from weft.frontends.pt2_file import load_pt2, save_pt2
from weft.frontends.pytorch import graph_from_torch
from weft.ir import (
    Add,
    AveragePool2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Rescale,
)
from weft.quantize import quantize
from weft_hw.instructions import Rounding

pytestmark = pytest.mark.torch

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(x + self.norm(self.convolution(x)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.act = nn.ReLU6()
        self.blocks = nn.Sequential(Block(), Block())
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout()
        self.classify = nn.Linear(8 * 3 * 2, 5)

    def forward(self, x):
        x = self.pool(self.blocks(self.act(self.stem(x))))
        return self.classify(self.drop(x.view(x.shape[0], -1)))


class Function(nn.Module):
    """A model of a function of tensors, with one convolution `c` (4 to 4 channels) at hand."""

    def __init__(self, function) -> None:
        super().__init__()
        self.c = nn.Conv2d(4, 4, 1)
        self.k = nn.Parameter(torch.linspace(-1, 1, 4 * 6 * 6).reshape(1, 4, 6, 6))
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def quantized(model: nn.Module, *shapes: tuple[int, ...], batch: int = 2, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    data = tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)
    return quantize(model.eval(), data, [data])


def imported(function, *shapes: tuple[int, ...], batch: int = 2):
    return graph_from_torch(quantized(Function(function), *(shapes or ((4, 6, 6),)), batch=batch))


def constants(model, suffix: str) -> list[np.ndarray]:
    return [value.numpy() for name, value in model.named_buffers() if suffix in name]


def test_a_network(seed) -> None:
    torch.manual_seed(seed)
    model = quantized(Network(), (2, 6, 4))
    graph = graph_from_torch(model, name="small")
    assert (graph.name, graph.layout, graph.inputs) == ("small", "CHW", ("x",))
    assert [(operation.name, operation.kind) for operation in graph.operations] == [
        ("stem", "Conv2d"),
        ("blocks.0.convolution", "Conv2d"),
        ("blocks.0.add", "Add"),
        ("blocks.1.convolution", "Conv2d"),
        ("blocks.1.add_1", "Add"),
        ("pool", "MaxPool2d"),
        ("view", "Flatten"),
        ("classify", "Linear"),
    ]
    stem, block, add, *_, view, classify = graph.operations
    assert stem.source == "conv2d = aten.conv2d.default"
    assert graph.tensor("x").shape == (6, 4, 2)
    assert graph.tensor(view.output).shape == (48,)
    assert graph.outputs == (classify.output,)
    assert (stem.bias, stem.padding, stem.stride) == (None, ((1, 1), (1, 1)), (1, 1))
    assert add.inputs == (stem.output, block.output)
    assert {each.rounding for each in (stem, block, add, classify)} == {Rounding.HALF_EVEN}
    # Numbers are those of the graph, in another order of axes.
    nodes = [node for node in model.graph.nodes if node.target is QUANTIZE]
    for node in nodes:
        tensor = graph.by_name.get(node.args[0].name)
        if tensor is not None:
            assert (tensor.scale, tensor.zero_point) == node.args[1:3]
            assert type(tensor.scale) is float
    weight = next(value for value in constants(model, "frozen") if value.shape == (8, 2, 3, 3))
    np.testing.assert_array_equal(stem.weights, weight.transpose(0, 2, 3, 1))
    weight = next(value for value in constants(model, "frozen") if value.shape == (5, 48))
    np.testing.assert_array_equal(classify.weights, weight)
    assert classify.bias.dtype == np.int32 and classify.weight_scales.dtype == np.float64
    # The fused ReLU6 is observed over its own range, so its codes are all there are.
    zero_point = graph.tensor(stem.output).zero_point
    assert stem.clamp[0] == zero_point


@pytest.mark.parametrize("way", ["batch 1", "batch 5", "saved", "exported"])
def test_every_way_to_the_same_graph(way, seed, tmp_path) -> None:
    def made(batch: int):
        torch.manual_seed(seed)
        torch_model = Network().eval()
        # The same calibration, whatever the batch size of the export.
        data = torch.randn(4, 2, 6, 4, generator=torch.Generator().manual_seed(seed))
        example = torch.zeros(batch, 2, 6, 4)
        return quantize(torch_model, (example,), [(data[:1].expand(batch, -1, -1, -1),)]), example

    expected = repr(graph_from_torch(made(2)[0]))
    model, example = made(int(way.split()[1]) if way.startswith("batch") else 2)
    if way == "saved":
        save_pt2(model, tmp_path / "model.pt2", (example,))
        model = load_pt2(tmp_path / "model.pt2")
    elif way == "exported":
        model = torch.export.export(model, (example,))
    found = repr(graph_from_torch(model))
    if way.startswith("batch"):  # calibration itself, in float32, depends on the batch size
        found, expected = (re.sub(r"scale=\S+ zero=\S+", "", text) for text in (found, expected))
    assert found == expected


def test_a_dynamic_number_of_samples(seed) -> None:
    model, example = quantized(Network(), (2, 6, 4)), torch.zeros(3, 2, 6, 4)
    from weft.quantize import WeftQuantizer
    from weft.quantize.pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(seed)
    dynamic = {"x": {0: torch.export.Dim("samples", min=2, max=64)}}
    exported = torch.export.export(Network().eval(), (example,), dynamic_shapes=dynamic)
    prepared = prepare_pt2e(exported.module(check_guards=False), WeftQuantizer())
    prepared(torch.randn(7, 2, 6, 4))
    graph = graph_from_torch(convert_pt2e(prepared))
    assert [o.name for o in graph.operations] == [
        o.name for o in graph_from_torch(model).operations
    ]


@pytest.mark.parametrize(
    "layer, shape, fields, output",
    [
        (
            nn.Conv2d(4, 5, 3, 2, 1),
            (4, 7, 6),
            {"stride": (2, 2), "padding": ((1, 1), (1, 1))},
            (4, 3, 5),
        ),
        (
            nn.Conv2d(4, 5, (1, 3), (1, 2), (0, 1)),
            (4, 5, 5),
            {"stride": (1, 2), "padding": ((0, 0), (1, 1))},
            (5, 3, 5),
        ),
        (nn.Conv2d(4, 5, 3, padding="same"), (4, 6, 6), {"padding": ((1, 1), (1, 1))}, (6, 6, 5)),
        (nn.Conv2d(4, 5, 3, padding="valid"), (4, 6, 6), {"padding": ((0, 0), (0, 0))}, (4, 4, 5)),
        (nn.Conv2d(4, 1, 1), (4, 1, 1), {"stride": (1, 1), "padding": ((0, 0), (0, 0))}, (1, 1, 1)),
        (
            nn.MaxPool2d(3, 2, 1),
            (4, 7, 7),
            {"kernel": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))},
            (4, 4, 4),
        ),
        (nn.MaxPool2d((2, 3)), (4, 6, 6), {"kernel": (2, 3), "stride": (2, 3)}, (3, 2, 4)),
        (nn.MaxPool2d(2, ceil_mode=True), (4, 6, 6), {"kernel": (2, 2)}, (3, 3, 4)),
        (
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            (4, 6, 6),
            {"padding": ((1, 1), (1, 1)), "count_include_pad": False},
            (6, 6, 4),
        ),
        (
            nn.AvgPool2d(2),
            (4, 6, 6),
            {"kernel": (2, 2), "stride": (2, 2), "count_include_pad": True},
            (3, 3, 4),
        ),
        (nn.AdaptiveAvgPool2d(1), (4, 6, 5), {"kernel": (6, 5), "stride": (6, 5)}, (1, 1, 4)),
        (nn.AdaptiveAvgPool2d((2, 5)), (4, 6, 5), {"kernel": (3, 1), "stride": (3, 1)}, (2, 5, 4)),
        (nn.Linear(6, 3), (6,), {}, (3,)),
    ],
    ids=str,
)
def test_parameters_of_layers(layer, shape, fields, output) -> None:
    graph = graph_from_torch(quantized(nn.Sequential(layer), shape))
    (operation,) = graph.operations
    kinds = {
        nn.Conv2d: Conv2d,
        nn.Linear: Linear,
        nn.MaxPool2d: MaxPool2d,
        nn.AvgPool2d: AveragePool2d,
        nn.AdaptiveAvgPool2d: AveragePool2d,
    }
    assert type(operation) is kinds[type(layer)]
    assert operation.name == "0"
    assert {key: getattr(operation, key) for key in fields} == fields
    assert graph.tensor(operation.output).shape == output


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_the_odd_element_of_same_padding_comes_last() -> None:
    graph = graph_from_torch(quantized(nn.Conv2d(4, 4, (4, 2), padding="same"), (4, 6, 6)))
    assert graph.operations[0].padding == ((1, 2), (0, 1))


@pytest.mark.parametrize(
    "clamp, real",
    [
        (torch.relu, (0.0, 9.0)),
        (functional.relu6, (0.0, 6.0)),
        (lambda x: functional.hardtanh(x, -0.25, 0.5), (-0.25, 0.5)),
        (lambda x: torch.clamp(x, max=0.25), (-9.0, 0.25)),
        (lambda x: torch.clamp_min(x, -0.5), (-0.5, 9.0)),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_clamps_in_codes(clamp, real, alone) -> None:
    def function(self, x):
        return clamp(functional.max_pool2d(x, 1)) if alone else clamp(self.c(x))

    graph = imported(function)
    operation = graph.operations[-1]
    assert type(operation) is (Rescale if alone else Conv2d)
    output = graph.tensor(operation.output)
    expected = [
        max(-128, min(127, round(bound / output.scale) + output.zero_point)) for bound in real
    ]
    assert list(operation.clamp) == expected


def test_additions() -> None:
    graph = imported(lambda self, x, y: x + y + x, (4, 6, 6), (4, 6, 6))
    assert graph.inputs == tuple(tensor.name for tensor in graph.tensors[:2])
    first, second = graph.operations
    assert type(first) is type(second) is Add
    assert first.inputs == graph.inputs
    assert second.inputs == (first.output, graph.inputs[0])


def test_a_constant_operand() -> None:
    graph = imported(lambda self, x: x + self.k)
    (constant,) = (tensor for tensor in graph.tensors if tensor.data is not None)
    real = (constant.data.astype(float) - constant.zero_point) * constant.scale
    expected = torch.linspace(-1, 1, 144).reshape(4, 6, 6).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(real, expected, atol=constant.scale / 2 + 1e-6)
    graph = imported(lambda self, x: x + self.k[:, :, :1, :1] * 1.0)
    (constant,) = (tensor for tensor in graph.tensors if tensor.data is not None)
    assert constant.shape == (6, 6, 4)


def test_flattening_in_all_its_forms() -> None:
    def function(self, x):
        y = functional.max_pool2d(x, 2)
        pooled = functional.adaptive_avg_pool2d(y, 1)
        return (
            y.flatten(1),
            y.contiguous().reshape(2, 36) + y.view(2, -1),
            x.mean((-2, -1)),
            x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2),
            pooled.squeeze(),
        )

    graph = imported(function)
    assert [graph.tensor(name).shape for name in graph.outputs] == [(36,)] * 2 + [(4,)] * 3
    assert graph.operations[-1].name == "squeeze_2"
    flattens = [operation for operation in graph.operations if isinstance(operation, Flatten)]
    assert len(flattens) == 6 and {each.order for each in flattens} == {"CHW"}
    for each in flattens:
        before, after = graph.tensor(each.inputs[0]), graph.tensor(each.output)
        assert (before.scale, before.zero_point) == (after.scale, after.zero_point)


def test_layers_applied_twice_have_two_names() -> None:
    graph = imported(lambda self, x: self.c(self.c(x)))
    assert [operation.name for operation in graph.operations] == ["c", "c_2"]


def test_another_scale_behind_a_pool_is_a_rescale() -> None:
    model = quantized(nn.Sequential(nn.MaxPool2d(2)), (4, 6, 6))
    *_, last = (node for node in model.graph.nodes if node.target is QUANTIZE)
    for node in (last, *last.users):
        node.args = (node.args[0], 0.5, 3, *node.args[3:])
    graph = graph_from_torch(model)
    assert [operation.kind for operation in graph.operations] == ["MaxPool2d", "Rescale"]
    assert graph.tensor(graph.outputs[0]).scale == 0.5


def test_a_number_of_modules_share_no_state() -> None:
    model = quantized(Network(), (2, 6, 4))
    assert repr(graph_from_torch(model)) == repr(graph_from_torch(model))


def test_everything_that_the_quantizer_places_is_known() -> None:
    from weft.frontends.pytorch_operators import RULES
    from weft.quantize import quantizer

    placed = quantizer.LAYERS | quantizer.SAME_SCALE | {torch.ops.aten.add.Tensor}
    assert {str(each) for each in placed} == set(RULES) - {"aten.squeeze.default"}
