"""What the PyTorch front end refuses, and the text of every refusal."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional

from weft.errors import UnsupportedModel
from weft.frontends.pytorch import graph_from_torch
from weft.quantize import WeftQuantizer, quantize
from weft.quantize.pt2e import convert_pt2e, prepare_pt2e

pytestmark = pytest.mark.torch

decomposed = torch.ops.quantized_decomposed
QUANTIZE = decomposed.quantize_per_tensor.default


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


IMAGE = (4, 6, 6)

REFUSALS = {
    "pool dilation": (nn.MaxPool2d(2, dilation=2), IMAGE, "has dilation .* pools with dilation 1"),
    "ceil": (nn.MaxPool2d(4, ceil_mode=True), IMAGE, "use ceil_mode=False"),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE, "has a divisor of its own"),
    "adaptive": (nn.AdaptiveAvgPool2d(4), IMAGE, r"makes \(4, 4\) of \(6, 6\) pixels"),
    "unknown": (
        nn.Sequential(nn.ReLU(), nn.Sigmoid()),
        IMAGE,
        r"^0\.1, node sigmoid \(aten\.sigmoid\.default\): weft has no such operation; it knows",
    ),
    "linear on images": (nn.Linear(6, 3), IMAGE, "works on vectors .* flatten the image"),
    "pool of vectors": (
        Function(lambda self, x: functional.max_pool2d(x.flatten(1)[:, None, None], 1)),
        IMAGE,
        r"max_pool2d.*sees \(144,\) as \(1, 1, 144\)",
    ),
    "one-dimensional": (
        nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU()),
        (4, 6),
        r"conv1d\.default\): weft has no such operation",
    ),
    "two-dimensional": (nn.ReLU(), (4, 6), r"has the shape \(4, 6\) for each sample; weft takes"),
    "reshaped output": (
        Function(lambda self, x: self.c(x).squeeze()),
        (4, 6, 1),
        r"sees \(4, 6, 1\) as \(4, 6\)",
    ),
    "number": (
        Function(lambda self, x: self.c(x) + 1.0),
        IMAGE,
        "reads conv2d in floating point|works on tensors only",
    ),
    "alpha": (Function(lambda self, x: torch.add(x, self.c(x), alpha=2)), IMAGE, "has alpha 2"),
    "broadcast": (
        Function(lambda self, x: x + functional.adaptive_avg_pool2d(x, 1)),
        IMAGE,
        "different shapes",
    ),
    "mean": (Function(lambda self, x: x.mean(1)), IMAGE, r"is over the axes \[1\]"),
    "permuted": (
        Function(lambda self, x: self.c(x).permute(0, 2, 3, 1)),
        IMAGE,
        r"permute\.default\): weft has no such operation",
    ),
    "reshaped": (
        Function(lambda self, x: self.c(x).view(2, 2, 12, 6)),
        IMAGE,
        r"sees \(4, 6, 6\) as \(2, 12, 6\) for each sample; weft only flattens",
    ),
    "mixed samples": (Function(lambda self, x: self.c(x).view(4, -1)), IMAGE, "mixes samples"),
    "twice": (Function(lambda self, x: (lambda y: (y, y))(self.c(x))), IMAGE, "returned twice"),
    "computed weight": (
        Function(lambda self, x: functional.linear(x.flatten(1), x.flatten(1))),
        IMAGE,
        "its weight is not a frozen int8 constant",
    ),
    "input as output": (
        Function(lambda self, x: (x, self.c(x))),
        IMAGE,
        "this input is returned as it is; leave it out",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case) -> None:
    model, shape, text = REFUSALS[case]
    model = model if isinstance(model, Function) else nn.Sequential(model)
    converted = quantized(model, shape)
    with pytest.raises(UnsupportedModel, match=text) as caught:
        graph_from_torch(converted)
    assert "\n" not in str(caught.value)


def test_models_that_are_not_quantized() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1)).eval()
    with pytest.raises(UnsupportedModel, match="cannot read a Sequential: quantize it with"):
        graph_from_torch(model)
    exported = torch.export.export(model, (torch.zeros(1, 4, 6, 6),))
    for each in (exported, exported.module(check_guards=False)):
        with pytest.raises(UnsupportedModel, match="the model is not quantized: give what"):
            graph_from_torch(each)


def test_an_input_that_is_not_used() -> None:
    with pytest.raises(UnsupportedModel, match="this input is not used; remove it"):
        graph_from_torch(quantized(Function(lambda self, x, y: self.c(x)), IMAGE, IMAGE))


def changed(target, change):
    """A quantized convolution in which the arguments of nodes of one operator are changed."""
    model = quantized(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), IMAGE)
    for node in model.graph.nodes:
        if node.target is target:
            change(model, node)
    return model


def set_arguments(start: int, *values):
    def change(model, node):
        node.args = (*node.args[:start], *values, *node.args[start + len(values) :])

    return change


def float_bias(model, node):
    model.register_buffer("plain", torch.zeros(4))
    with model.graph.inserting_before(node):
        node.args = (*node.args[:2], model.graph.get_attr("plain"))


def asymmetric(model, node):
    getattr(model, node.args[2].target).fill_(1)


@pytest.mark.parametrize(
    "target, change, text",
    [
        (
            QUANTIZE,
            set_arguments(3, 0, 255, torch.uint8),
            "is quantized to uint8 from 0 to 255; weft takes int8",
        ),
        (QUANTIZE, set_arguments(3, -127), "is quantized to int8 from -127 to 127"),
        (
            decomposed.dequantize_per_tensor.default,
            set_arguments(1, 0.125),
            "another scale or zero point",
        ),
        (
            decomposed.dequantize_per_channel.default,
            set_arguments(3, 1),
            "has a scale for each index of axis 1",
        ),
        (decomposed.dequantize_per_channel.default, asymmetric, "has zero points other than 0"),
        (
            torch.ops.aten.conv2d.default,
            float_bias,
            "its bias is not a frozen int32 constant by channel; quantize",
        ),
    ],
)
def test_quantizations_of_another_kind(target, change, text) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        graph_from_torch(changed(target, change))


def test_a_value_left_in_floating_point() -> None:
    model = quantized(nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)), IMAGE)
    (pool,) = (node for node in model.graph.nodes if "max_pool2d" in str(node.target))
    pool.args = (pool.args[0].args[0].args[0], *pool.args[1:])  # past its quantization
    with pytest.raises(UnsupportedModel, match=r"^1, node max_pool2d .* reads conv2d in floating"):
        graph_from_torch(model)
    model = quantized(nn.Sequential(nn.Conv2d(4, 4, 1)), IMAGE)
    (output,) = (node for node in model.graph.nodes if node.op == "output")
    output.args = ((output.args[0][0].args[0].args[0],),)
    with pytest.raises(UnsupportedModel, match=r"^0, node conv2d .* is returned in floating point"):
        graph_from_torch(model)


def test_a_bias_of_another_scale() -> None:
    model = quantized(nn.Sequential(nn.Linear(6, 3)), (6,))
    (layer,) = (node for node in model.graph.nodes if "linear" in str(node.target))
    getattr(model, layer.args[2].args[1].target).mul_(2)
    with pytest.raises(UnsupportedModel, match="its bias must be int32 with the scale"):
        graph_from_torch(model)


def test_sizes_that_are_not_fixed() -> None:
    dynamic = ({2: torch.export.Dim("height", min=2, max=64)},)
    exported = torch.export.export(
        nn.Conv2d(4, 4, 1), (torch.zeros(2, 4, 6, 6),), dynamic_shapes=dynamic
    )
    prepared = prepare_pt2e(exported.module(check_guards=False), WeftQuantizer())
    prepared(torch.randn(2, 4, 6, 6))
    with pytest.raises(UnsupportedModel, match="has the dynamic shape .* export with fixed sizes"):
        graph_from_torch(convert_pt2e(prepared))
