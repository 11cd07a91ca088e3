"""The quantizer: what convert_pt2e yields from its annotations, and its way through a file."""

import subprocess
import sys
from functools import reduce

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional

from weft.errors import InputError
from weft.frontends.pt2_file import load_pt2, save_pt2
from weft.quantize import WeftQuantizer, quantize
from weft.quantize.pt2e import HistogramObserver, convert_pt2e, prepare_pt2e

pytestmark = pytest.mark.torch

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
QUANTIZE = decomposed.quantize_per_tensor.default
DEQUANTIZE = decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = decomposed.dequantize_per_channel.default
CLAMPS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default}


class Residual(nn.Module):
    """conv-bn-relu, conv-bn-add-relu in place, both pools, dropout and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.dense = nn.Linear(8 * 2 * 2, 10)

    def forward(self, x):
        x = self.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(x))
        y += x
        y = functional.max_pool2d(self.relu(y), 2)
        y = functional.avg_pool2d(y, 2)
        return self.dense(functional.dropout(torch.flatten(y, 1), training=self.training))


def batches(seed: int, *shape: int, count: int = 3) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def calls(graph) -> list:
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def operators(graph) -> list:
    """All that computes: not the quantize and dequantize nodes in between."""
    return [node for node in calls(graph) if node.target.namespace != "quantized_decomposed"]


def tensor(graph, node):
    return reduce(getattr, node.target.split("."), graph)


def qparams(node) -> tuple:
    return node.args[1:]


def check_structure(graph) -> None:
    """Every operator reads dequantized int8, and it or the clamp behind it is quantized at once."""
    for node in operators(graph):
        clamp = node.target in CLAMPS and node.args[0].target is not DEQUANTIZE
        if not clamp:
            data = node.args[:2] if node.target is aten.add.Tensor else node.args[:1]
            for operand in data:
                assert operand.target is DEQUANTIZE, f"{node} reads {operand}"
                assert operand.args[0].target is QUANTIZE
                assert qparams(operand) == qparams(operand.args[0])
                assert qparams(operand)[2:] == (-128, 127, torch.int8)
        (user,) = node.users
        assert user.target is QUANTIZE or (not clamp and user.target in CLAMPS), f"{node}: {user}"
        if node.target in {aten.conv2d.default, aten.linear.default}:
            check_constants(graph, node)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    assert all(value.target is DEQUANTIZE for value in output.args[0])


def check_constants(graph, layer) -> None:
    data, weight, *rest = layer.args
    assert weight.target is DEQUANTIZE_CHANNELS
    frozen, scale, zero_point, axis, low, high, dtype = weight.args
    assert (axis, low, high, dtype) == (0, -127, 127, torch.int8)
    values, weight_scale = tensor(graph, frozen), tensor(graph, scale)
    assert values.dtype == torch.int8 and values.min() >= -127
    assert not tensor(graph, zero_point).any()
    if rest and rest[0] is not None:
        assert rest[0].target is DEQUANTIZE_CHANNELS
        frozen, scale, zero_point, axis, _, _, dtype = rest[0].args
        assert (axis, dtype) == (0, torch.int32)
        assert tensor(graph, frozen).dtype == torch.int32
        assert not tensor(graph, zero_point).any()
        expected = torch.tensor(qparams(data)[0], dtype=torch.float32) * weight_scale
        torch.testing.assert_close(tensor(graph, scale), expected, rtol=1e-6, atol=0)


def test_every_operator_is_quantized_and_fused(seed) -> None:
    data = batches(seed, 4, 2, 8, 8)
    model = Residual().eval()
    graph = quantize(model, (data[0],), data)
    check_structure(graph)
    assert [node.target for node in operators(graph)] == [
        aten.conv2d.default,
        aten.relu.default,
        aten.conv2d.default,
        aten.add.Tensor,
        aten.relu.default,
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.flatten.using_ints,
        aten.dropout.default,
        aten.linear.default,
    ]
    difference = (graph(data[0]) - model(data[0])).abs().max()
    assert difference < 0.1 * model(data[0]).abs().max()


def test_pools_and_moves_keep_their_scale(seed) -> None:
    data = batches(seed, 1, 2, 8, 8)
    for node in operators(quantize(Residual(), (data[0],), data)):
        if node.target not in CLAMPS | {aten.conv2d.default, aten.linear.default, aten.add.Tensor}:
            (user,) = node.users
            assert qparams(user) == qparams(node.args[0])


def test_the_flow_spelled_out_gives_the_same(seed) -> None:
    data = batches(seed, 1, 2, 8, 8)
    model = Residual().eval()
    prepared = prepare_pt2e(torch.export.export(model, (data[0],)).module(), WeftQuantizer())
    for batch in data:
        prepared(batch)
    short = quantize(model, (data[0],), data)
    assert torch.equal(convert_pt2e(prepared)(data[0]), short(data[0]))


def test_the_model_is_left_alone(seed) -> None:
    data = batches(seed, 1, 2, 8, 8)
    model = Residual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantize(model, (data[0],), data)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "clamp",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.ReLU6(inplace=True),
        nn.Hardtanh(-0.5, 0.75),
        nn.Hardtanh(-0.5, 0.75, inplace=True),
        lambda x: torch.clamp(x, -0.25, 0.5),
        lambda x: x.clamp_(max=0.5),
        lambda x: x.clamp_min(0.0),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "clamp",
)
@pytest.mark.parametrize("kind", ["conv", "linear", "add", "alone"])
def test_clamps_are_one_with_what_is_before_them(kind, clamp, seed) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8) if kind == "linear" else nn.Conv2d(3, 8, 3)

        def forward(self, x):
            if kind == "add":
                return clamp(self.layer(x) + self.layer(x + x))
            if kind == "alone":
                return clamp(functional.max_pool2d(self.layer(x), 2))
            return clamp(self.layer(x))

    data = batches(seed, 2, *((8,) if kind == "linear" else (3, 8, 8)))
    graph = quantize(Model(), (data[0],), data)
    *_, before, last = operators(graph)
    (quantized,) = last.users
    assert quantized.target is QUANTIZE
    assert not str(last.target).split(".")[1].endswith("_")
    if kind == "alone":
        assert last.args[0].target is DEQUANTIZE
        assert qparams(last.args[0]) == qparams(quantized)
    else:
        assert last.args[0] is before


def test_a_value_read_twice_is_not_fused_with_its_clamp(seed) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            y = self.layer(x)
            return functional.relu(y) + y

    data = batches(seed, 2, 8)
    graph = quantize(Model(), (data[0],), data)
    check_structure(graph)
    layer, relu, _ = operators(graph)
    assert next(iter(layer.users)).target is QUANTIZE
    assert relu.args[0].target is DEQUANTIZE


def test_an_overwritten_value_is_read_as_overwritten(seed) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            y = self.layer(x)
            z = functional.relu(y, inplace=True)
            return y + z

    data = batches(seed, 64, 8)
    model = Model().eval()
    graph = quantize(model, (data[0],), data)
    check_structure(graph)
    assert (graph(data[0]) - model(data[0])).abs().max() < 0.1


def test_a_layer_applied_twice_has_a_bias_for_each(seed) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    data = batches(seed, 16, 8)
    model = Model().eval()
    graph = quantize(model, (data[0],), data)
    check_structure(graph)
    first, second = (node for node in operators(graph) if node.target is aten.linear.default)
    assert first.args[2].args[0] is not second.args[2].args[0]
    assert (graph(data[0]) - model(data[0])).abs().max() < 0.1


@pytest.mark.parametrize("weight", [0.0, 1e-12])
def test_the_bias_of_a_dead_channel_fits(weight, seed) -> None:
    model = nn.Conv2d(3, 4, 3).eval()
    with torch.no_grad():
        model.weight[1] = weight
        model.bias[1] = 1e4
    data = batches(seed, 1, 3, 8, 8)
    graph = quantize(model, (data[0],), data)
    check_structure(graph)
    expected, given = model(data[0]), graph(data[0])
    assert (expected - given).abs().max() <= expected.abs().max() / 255
    (layer,) = operators(graph)
    assert tensor(graph, layer.args[2].args[0]).abs().max() <= 2**30


def test_several_inputs_and_global_pools(seed) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Conv2d(3, 8, 3, stride=2, padding="valid")
            self.right = nn.Conv2d(3, 8, 3, stride=2)

        def forward(self, x, y):
            z = self.left(x) + self.right(y)
            pooled = functional.adaptive_avg_pool2d(z, 1)
            return pooled.view(x.shape[0], -1), z.mean((2, 3))

    data = list(zip(batches(seed, 2, 3, 9, 9), batches(seed + 1, 2, 3, 9, 9), strict=True))
    model = Model().eval()
    graph = quantize(model, data[0], data)
    for node in operators(graph):
        assert node.args[0].target is DEQUANTIZE
        assert all(user.target is QUANTIZE for user in node.users)
    for given, expected in zip(graph(*data[0]), model(*data[0]), strict=True):
        assert (given - expected).abs().max() < 0.05


def test_the_observer_can_be_chosen(seed) -> None:
    data = batches(seed, 4, 2, 8, 8)
    data[0][0, 0, 0, 0] = 1000.0
    wide = quantize(Residual(), (data[0],), data)
    narrow = quantize(
        Residual(), (data[0],), data, quantizer=WeftQuantizer(activation_observer=HistogramObserver)
    )
    check_structure(narrow)
    wide_scale, narrow_scale = (
        next(qparams(node)[0] for node in calls(graph) if node.target is QUANTIZE)
        for graph in (wide, narrow)
    )
    assert wide_scale > narrow_scale


def test_conversion_is_deterministic(seed) -> None:
    data = batches(seed, 2, 2, 8, 8)
    model = Residual()
    one, two = (quantize(model, (data[0],), data) for _ in range(2))
    assert [str(node.args) for node in calls(one)] == [str(node.args) for node in calls(two)]
    frozen = {name: value for name, value in one.named_buffers() if "frozen" in name}
    assert frozen
    assert all(
        torch.equal(value, dict(two.named_buffers())[name]) for name, value in frozen.items()
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_a_saved_model_is_the_same_model(batch, seed, tmp_path) -> None:
    data = batches(seed, batch, 2, 8, 8)
    graph = quantize(Residual(), (data[0],), data)
    path = tmp_path / "model.pt2"
    save_pt2(graph, path, (data[0],))
    again = load_pt2(path)
    check_structure(again)
    for x in batches(seed + 1, batch, 2, 8, 8):
        assert torch.equal(again(x), graph(x))
    check_structure(graph)
    assert list(tmp_path.iterdir()) == [path]
    # Only the integer weights are in the file.
    floats = [name for name, value in again.state_dict().items() if value.is_floating_point()]
    assert all("_scale_" in name for name in floats)


def test_files_that_cannot_be_read_or_written(seed, tmp_path) -> None:
    data = batches(seed, 1, 2, 8, 8)
    graph = quantize(Residual(), (data[0],), data)
    with pytest.raises(InputError, match="there is no model file"):
        load_pt2(tmp_path / "absent.pt2")
    wrong = tmp_path / "wrong.pt2"
    wrong.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"wrong\.pt2 is not a model that this PyTorch"):
        load_pt2(wrong)
    with pytest.raises(InputError, match="there is no folder"):
        save_pt2(graph, tmp_path / "absent" / "model.pt2", (data[0],))
    with pytest.raises(InputError, match=r"\(x,\), not x"):
        save_pt2(graph, tmp_path / "model.pt2", data[0])


def test_arguments_that_cannot_be_used(seed) -> None:
    (x,) = batches(seed, 1, 2, 8, 8, count=1)
    with pytest.raises(InputError, match="`calibration` is empty"):
        quantize(Residual(), (x,), [])
    with pytest.raises(InputError, match=r"\(x,\), not x"):
        quantize(Residual(), x, [x])


def test_importing_torchao_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import weft.quantize"], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(("package", "name"), [("torch", "PyTorch"), ("torchao", "torchao")])
def test_a_missing_package_names_its_extra(package, name) -> None:
    code = f"import sys; sys.modules['{package}'] = None; import weft.quantize"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"weft.errors.MissingExtra: {name} is needed for quantizing and loading models: "
        'pip install "weft[torch]"'
    )
