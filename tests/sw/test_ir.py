"""The graph's rules and the passes over it."""

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
import pytest

from network_reference import GraphBuilder, evaluate
from weft.errors import UnsupportedModel
from weft.ir import (
    Add,
    Conv2d,
    Flatten,
    Graph,
    GraphError,
    Linear,
    Lookup,
    MaxPool2d,
    Operation,
    Rescale,
    Slice,
    Table,
    Tensor,
    Transpose,
)
from weft.passes import CheckLimits, ImagesOnly, Pass, RemoveDead, run_passes
from weft_hw.instructions import Rounding


def small_graph() -> Graph:
    """conv -> max pool -> flatten -> linear."""
    build = GraphBuilder(np.random.default_rng(0))
    source = build.tensor((6, 5, 3))
    pooled = build.pool(MaxPool2d, build.conv(source, 4, (3, 3)), (2, 2), (1, 1))
    return build.graph([source], [build.linear(build.flatten(pooled), 7)], "small")


def with_operation(graph: Graph, index: int, **changes) -> Graph:
    operations = list(graph.operations)
    operations[index] = dataclasses.replace(operations[index], **changes)
    return dataclasses.replace(graph, operations=tuple(operations))


def with_tensor(graph: Graph, name: str, **changes) -> Graph:
    tensors = tuple(
        dataclasses.replace(tensor, **changes) if tensor.name == name else tensor
        for tensor in graph.tensors
    )
    return dataclasses.replace(graph, tensors=tensors)


def test_repr_is_readable_and_stable() -> None:
    text = repr(small_graph())
    assert text.splitlines()[0] == "graph small (CHW)"
    assert "in   t0: int8[6x5x3] scale=" in text
    assert "conv2d0: t1 = Conv2d(t0) weights=int8[4x3x3x3]" in text
    assert "# node conv2d0" in text
    assert text == repr(small_graph())


BROKEN = [
    (lambda g: dataclasses.replace(g, inputs=()), "the graph: there is no input"),
    (lambda g: dataclasses.replace(g, outputs=("t9",)), "output t9: is never computed"),
    (lambda g: with_tensor(g, "t0", scale=0.0), "tensor t0: scale 0.0 is not a positive float"),
    (lambda g: with_tensor(g, "t0", scale=1), "tensor t0: scale 1 is not a positive float"),
    (lambda g: with_tensor(g, "t1", zero_point=128), "tensor t1: zero point 128 is not an int8"),
    (lambda g: with_tensor(g, "t0", shape=(6, 5)), "is neither (H, W, C) nor (C,)"),
    (
        lambda g: with_tensor(g, "t1", shape=(3, 3, 4)),
        "operation conv2d0 (Conv2d): axis 0 of the output must be 4, not 3",
    ),
    (lambda g: with_tensor(g, "t2", scale=0.5), "maxpool2d1 (MaxPool2d): input and output differ"),
    (lambda g: with_operation(g, 0, stride=(0, 1)), "stride and dilation must be positive"),
    (lambda g: with_operation(g, 0, groups=3), "of depth 3 with 3 groups on 3 channels"),
    (lambda g: with_operation(g, 0, clamp=(5, -5)), "clamp (5, -5) is not a range of int8"),
    (lambda g: with_operation(g, 0, bias=np.zeros(4)), "bias is float64, not int32"),
    (lambda g: with_operation(g, 0, weight_scales=np.ones(3)), "weight scales have shape (3,)"),
    (lambda g: with_operation(g, 1, padding=((2, 0), (0, 0))), "leaves windows empty"),
    (lambda g: with_operation(g, 2, order="WHC"), "order 'WHC' is not known"),
    (lambda g: with_operation(g, 3, inputs=("t0",)), "linear3 (Linear): works on vectors"),
    (lambda g: with_operation(g, 0, inputs=("t2",)), "reads t2 before it is computed"),
    (lambda g: with_operation(g, 1, name="conv2d0"), "two operations have one name"),
    (lambda g: with_operation(g, 1, output="t1"), "t1 has two producers"),
]


def one_operation(kind: type[Operation], shape: tuple[int, ...], **fields) -> Graph:
    """A graph of one operation on a 5x4x3 image."""
    source = Tensor(name="x", shape=(5, 4, 3), scale=0.5, zero_point=0)
    result = Tensor(name="y", shape=shape, scale=0.5, zero_point=0)
    return Graph(
        name="one",
        tensors=(source, result),
        inputs=("x",),
        outputs=("y",),
        operations=(kind(name="it", inputs=("x",), output="y", **fields),),
        layout="HWC",
    )


CODES = np.zeros(256, np.int8)

BROKEN_FIELDS = [
    (Lookup, (5, 4, 3), {"codes": CODES[:255]}, "a table of shape (255,), not (256,)"),
    (Lookup, (5, 4, 3), {"codes": np.zeros(256)}, "a table of float64, not int8"),
    (Lookup, (5, 4, 1), {"codes": CODES}, "input and output differ in shape"),
    (
        Rescale,
        (5, 4, 3),
        {"table": Table(codes=CODES[:1], scale=1.0, zero_point=0)},
        "a table of shape (1,), not (256,)",
    ),
    (
        Rescale,
        (5, 4, 3),
        {"table": Table(codes=CODES, scale=0.0, zero_point=0)},
        "looks up scale 0.0",
    ),
    (
        Rescale,
        (5, 4, 3),
        {"table": Table(codes=CODES, scale=1.0, zero_point=128)},
        "looks up zero point 128",
    ),
    (Slice, (5, 4, 2), {"start": (0, 0, 2), "step": (1, 1, 1)}, "axis 2 of x ends before"),
    (Slice, (3, 4, 3), {"start": (1, 0, 0), "step": (2, 1, 1)}, "axis 0 of x ends before"),
    (Slice, (5, 4, 2), {"start": (0, 0, 0), "step": (1, 1, 2)}, "neighbouring channels only"),
    (Slice, (5, 4, 3), {"start": (0, 0, 0), "step": (0, 1, 1)}, "must be positive"),
    (Slice, (5, 4, 3), {"start": (0, 0), "step": (1, 1, 1)}, "have (2, 3, 3) axes, not 3"),
    (Transpose, (5, 4, 3), {"permutation": (1, 0, 2)}, "gives (4, 5, 3), not (5, 4, 3)"),
    (Transpose, (5, 4, 3), {"permutation": (1, 1, 2)}, "is no permutation of three axes"),
]


@pytest.mark.parametrize(("kind", "shape", "fields", "text"), BROKEN_FIELDS)
def test_broken_fields_are_named(kind, shape, fields, text: str) -> None:
    with pytest.raises(GraphError, match=re.escape(text)) as caught:
        one_operation(kind, shape, **fields).verify()
    assert f"operation it ({kind.__name__}): " in str(caught.value)


@pytest.mark.parametrize(("change", "text"), BROKEN, ids=[text for _, text in BROKEN])
def test_broken_rules_are_named(change, text: str) -> None:
    small_graph().verify()
    with pytest.raises(GraphError) as caught:
        change(small_graph()).verify(after="pass Something")
    assert str(caught.value).startswith("after pass Something: ")
    assert text in str(caught.value)


def test_the_pass_that_breaks_the_graph_is_named() -> None:
    @dataclass(frozen=True)
    class Vandal(Pass):
        def apply(self, graph: Graph) -> Graph:
            return with_tensor(graph, "t1", scale=-1.0)

    with pytest.raises(GraphError, match="after pass Vandal: tensor t1"):
        run_passes(small_graph(), [ImagesOnly(), Vandal(), CheckLimits()])


def test_images_only_leaves_images_and_convolutions(rng: np.random.Generator) -> None:
    graph = run_passes(small_graph(), [ImagesOnly()])
    assert all(len(tensor.shape) == 3 for tensor in graph.tensors)
    assert [operation.kind for operation in graph.operations] == ["Conv2d", "MaxPool2d", "Conv2d"]
    head = graph.operations[-1]
    assert isinstance(head, Conv2d)
    assert head.weights.shape == (7, 3, 2, 4)
    image = rng.integers(-128, 128, (3, 6, 5)).astype(np.int8)
    before = evaluate(small_graph(), {"t0": image})["t4"]
    after = evaluate(graph, {"t0": image})["t4"]
    np.testing.assert_array_equal(after[:, 0, 0], before)


def test_images_only_passes_elementwise_operations_between_flatten_and_linear() -> None:
    build = GraphBuilder(np.random.default_rng(0))
    source = build.tensor((2, 3, 4))
    flat = build.flatten(build.flatten(source))
    out = build.linear(build.add(build.rescale(flat), flat), 5)
    graph = build.graph([source], [out])
    image = np.arange(24, dtype=np.int8).reshape(4, 2, 3)
    rewritten = run_passes(graph, [ImagesOnly()])
    np.testing.assert_array_equal(
        evaluate(rewritten, {"t0": image})[out.name][:, 0, 0],
        evaluate(graph, {"t0": image})[out.name],
    )


def test_images_only_refuses_to_mix_arrangements() -> None:
    build = GraphBuilder(np.random.default_rng(0))
    source = build.tensor((2, 3, 4))
    flat = build.flatten(source)
    out = build.add(flat, build.linear(flat, 24))
    with pytest.raises(UnsupportedModel, match=r"add2 \(node add2\): adds a flattened image"):
        run_passes(build.graph([source], [out]), [ImagesOnly()])


def test_images_only_refuses_an_output_flattened_in_a_foreign_order() -> None:
    source = Tensor(name="x", shape=(2, 3, 4), scale=1.0, zero_point=0)
    flat = Tensor(name="y", shape=(24,), scale=1.0, zero_point=0)
    graph = Graph(
        name="g",
        tensors=(source, flat),
        inputs=("x",),
        outputs=("y",),
        operations=(Flatten(name="f", inputs=("x",), output="y", order="HWC"),),
    )
    with pytest.raises(UnsupportedModel, match="output y is an image flattened in the order HWC"):
        run_passes(graph, [ImagesOnly()])


def test_dead_operations_are_removed() -> None:
    build = GraphBuilder(np.random.default_rng(0))
    source, unused = build.tensor((4, 4, 2)), build.tensor((4, 4, 2))
    out = build.rescale(source)
    build.add(out, build.constant((4, 4, 2)))
    graph = run_passes(build.graph([source, unused], [out]), [RemoveDead()])
    assert [operation.output for operation in graph.operations] == [out.name]
    assert [tensor.name for tensor in graph.tensors] == ["t0", "t1", out.name]


def unlimited(**changes) -> Graph:
    weights = np.ones((2, 3, 3, 2), np.int8)
    fields = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding": ((0, 0), (0, 0))}
    fields |= changes
    sides = fields.pop("sides", 9)
    height = (sides - fields["dilation"][0] * 2 - 1) // fields["stride"][0] + 1
    channels = 2 * fields["groups"]
    return Graph(
        name="g",
        tensors=(
            Tensor(name="x", shape=(sides, sides, channels), scale=1.0, zero_point=0),
            Tensor(name="y", shape=(height, height, 2), scale=1.0, zero_point=0),
        ),
        inputs=("x",),
        outputs=("y",),
        operations=(
            Conv2d(
                name="c",
                source="model.py:3",
                inputs=("x",),
                output="y",
                weights=fields.pop("weights", weights),
                weight_scales=np.ones(2),
                **fields,
            ),
        ),
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"dilation": (128, 128), "sides": 300},
            "c (model.py:3): dilation (128, 128): at most 127",
        ),
        ({"stride": (200, 200)}, "c (model.py:3): stride (200, 200): at most 127"),
        ({"rounding": Rounding.STOCHASTIC}, "c (model.py:3): stochastic rounding"),
        (
            {"bias": np.full(2, 2**31 - 1, np.int32)},
            "c (model.py:3): the sum of channel 0 could leave 32 bits",
        ),
    ],
)
def test_limits_name_the_layer(changes, text: str) -> None:
    run_passes(unlimited(), [CheckLimits()])
    with pytest.raises(UnsupportedModel) as caught:
        run_passes(unlimited(**changes), [CheckLimits()])
    assert text in str(caught.value)


def test_kinds_have_the_fields_that_front_ends_use() -> None:
    for kind, fields in {
        Conv2d: {"weights", "weight_scales", "bias", "stride", "padding", "clamp", "rounding"},
        Linear: {"weights", "weight_scales", "bias", "clamp", "rounding"},
        Add: {"clamp", "rounding"},
    }.items():
        assert fields <= {field.name for field in dataclasses.fields(kind)}
