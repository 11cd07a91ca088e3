"""Single TFLite operators, random in every way, equal to the interpreter's reference kernels."""

import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

from ai_edge_litert import schema_py_generated as schema

from tflite_operators import BUILDS, CHANNELS, CONFIGS, drawn_operator, run
from tflite_writer import Record, TfliteWriter
from weft.compiler import compile_graph
from weft.errors import UnsupportedModel
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.program import Program
from weft_hw.config import PRESETS

pytestmark = pytest.mark.tflite

CASES = 5

Random = np.random.Generator


def check(writer: TfliteWriter, outputs: list[Record], case: int) -> None:
    """Equality, on a configuration and with tiles that depend on the case."""
    force_tiles = case if case % 2 else None
    expected, made = run(writer, outputs, CONFIGS[case % len(CONFIGS)], force_tiles)
    for one, other in zip(expected, made, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("name", BUILDS)
def test_operator_equals_the_interpreter(name: str, case: int, rng: Random) -> None:
    check(*drawn_operator(name, case, rng), case)


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("name", ["ADD", "SUB", "MUL", "RELU", "CONV_2D", "DEPTHWISE_CONV_2D"])
def test_one_pixel(name: str, case: int, rng: Random) -> None:
    """1x1 images, and windows that see only padding."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 1, 1, int(rng.choice(CHANNELS))))
    if name == "CONV_2D":
        made = writer.conv(source, 7, (3, 3), (2, 2))
    elif name == "DEPTHWISE_CONV_2D":
        made = writer.depthwise(source, (3, 5), (1, 2))
    else:
        made = BUILDS[name](writer, rng, source)
    check(writer, [made], case)


@pytest.mark.parametrize("zero", [-128, 127])
@pytest.mark.parametrize("value", [-128, 127])
def test_extremes(zero: int, value: int, rng: Random) -> None:
    """Inputs at one end of the range, zero points at either."""
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "AVERAGE_POOL_2D", "MEAN"):
        writer = TfliteWriter(rng)
        values = np.full((1, 5, 6, 17), value, np.int8)
        source = writer.input(values.shape, values, scales=(0.5,), zero_points=(zero,))
        made = BUILDS[name](writer, rng, source)
        check(writer, [made], 0)


def test_average_pool_divides_every_sum_exactly(rng: Random) -> None:
    """Each sum that a window of 2 to 9 elements can have, halves on both sides of zero included."""
    for elements in range(2, 10):
        sums = np.arange(-128 * elements, 127 * elements + 1)
        rows = np.stack([(sums + place) // elements for place in range(elements)], axis=1)
        assert (rows.sum(axis=1) == sums).all()
        writer = TfliteWriter(rng)
        values = rows.astype(np.int8)[None, :, :, None]
        source = writer.input(values.shape, values)
        made = writer.pool("AVERAGE_POOL_2D", source, (1, elements), (1, 1))
        check(writer, [made], 0)


@pytest.mark.parametrize("sides", [(1, 7), (16, 16), (23, 13), (40, 40)])
def test_large_average_windows(sides: tuple[int, int], rng: Random) -> None:
    for kind in ("AVERAGE_POOL_2D", "MEAN"):
        writer = TfliteWriter(rng)
        source = writer.input((1, *sides, 40))
        made = (
            writer.mean(source, keep=True)
            if kind == "MEAN"
            else writer.pool(kind, source, sides, sides)
        )
        check(writer, [made], 0)


def test_float_input_is_quantized_as_the_model_does(rng: Random) -> None:
    """QUANTIZE of a float32 input happens on the host, halves away from zero."""
    writer = TfliteWriter(rng)
    values = rng.uniform(-40, 40, (1, 8, 8, 3)).astype(np.float32)
    values.reshape(-1)[:60] = np.arange(-30, 30) * 0.25 + 0.125  # ties at this scale
    source = writer.input(values.shape, values, kind="float32", scales=(), zero_points=())
    codes = writer.unary("QUANTIZE", source, scales=(0.25,), zero_points=(3,))
    out = writer.conv(codes, 4, (3, 3))
    check(writer, [out], 0)


def test_padding_is_fused_into_convolutions_alone(rng: Random) -> None:
    """A border that a pool reads too stays an operation of its own; either way the bits agree."""
    for also_pooled in (False, True):
        writer = TfliteWriter(rng)
        source = writer.input((1, 6, 7, 9))
        border = writer.pad(source, [(1, 2), (0, 3)])
        outputs = [writer.conv(border, 5, (3, 3), (2, 2), "VALID")]
        if also_pooled:
            outputs.append(writer.pool("AVERAGE_POOL_2D", border, (2, 2), (1, 1)))
        data = writer.model(*outputs)
        program = compile_graph(graph_from_tflite_bytes(data), PRESETS["base16"])
        assert ("Pad" in [layer.op for layer in program.layers]) == also_pooled
        check(writer, outputs, 0)


def test_reshapes_that_move_nothing(rng: Random) -> None:
    """An input vector as an image, and one pixel as a vector and back."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 7 * 5 * 2))
    image = writer.reshape(source, (1, 7, 5, 2))
    pixel = writer.mean(writer.conv(image, 20, (3, 3)), keep=True)
    vector = writer.reshape(pixel, (1, 20))
    back = writer.reshape(writer.dense(vector, 24), (1, 1, 1, 24))
    check(writer, [writer.conv(back, 9, (1, 1))], 0)


def test_shape_arithmetic_in_front_of_a_reshape(rng: Random) -> None:
    """What Keras' Flatten writes for an open batch: SHAPE, STRIDED_SLICE and PACK."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 5, 4, 3))
    image = writer.conv(source, 6, (3, 3))
    read = schema.ShapeOptionsT()
    read.outType = schema.TensorType.INT32
    shape = writer.node("SHAPE", [image], (4,), read, kind="int32")
    numbers = [writer.constant(np.array([number], np.int32)) for number in (0, 1, 1)]
    cut = schema.StridedSliceOptionsT()
    cut.shrinkAxisMask = 1
    batch = writer.node("STRIDED_SLICE", [shape, *numbers], (), cut, kind="int32")
    pack = schema.PackOptionsT()
    pack.valuesCount = 2
    rest = writer.constant(np.array(120, np.int32))
    target = writer.node("PACK", [batch, rest], (2,), pack, kind="int32")
    options = schema.ReshapeOptionsT()
    flat = writer.node("RESHAPE", [image, target], (1, 120), options, like=image)
    check(writer, [writer.dense(flat, 9)], 0)


def test_batches_in_the_file(rng: Random) -> None:
    """A model of batch 3 runs as three samples."""
    writer = TfliteWriter(rng)
    source = writer.input((3, 6, 5, 4))
    image = writer.depthwise(writer.conv(source, 6, (3, 3)), (3, 3))
    check(writer, [writer.softmax(writer.dense(writer.mean(image, keep=False), 7))], 0)


def test_several_inputs_and_outputs(rng: Random) -> None:
    writer = TfliteWriter(rng)
    first, second = writer.input((1, 6, 6, 8)), writer.input((1, 6, 6, 8))
    total = writer.elementwise("ADD", first, second)
    product = writer.elementwise("MUL", total, second)
    scores = writer.softmax(writer.mean(product, keep=False))
    check(writer, [scores, total, product, writer.dequantize(total)], 0)


@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
def test_transposed_inputs_and_outputs(axes: tuple[int, ...], rng: Random) -> None:
    """The host puts the axes of an input and of an output in any order, and says so."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 5, 6, 7))
    image = writer.transpose(source, (0, *axes))
    result = writer.conv(image, 9, (3, 3))
    moved = writer.transpose(result, (0, *axes))
    outputs = [moved, result, writer.dequantize(moved)]
    check(writer, outputs, 1)
    program = compile_graph(graph_from_tflite_bytes(writer.model(*outputs)), PRESETS["tiny"])
    told = [each for each in program.host_ops if each.startswith("transpose")]
    if axes == (1, 2, 3):
        assert not told
        return
    assert len(told) == 2
    assert "input t0 (operator 0 TRANSPOSE, " in told[0]
    assert f"output {moved.name} (operator 2 TRANSPOSE, " in told[1]
    with pytest.raises(UnsupportedModel, match=r"Transpose \(operator 0 TRANSPOSE, .* on the host"):
        dataclasses.replace(program, host_steps=()).require_no_host_steps()
    restored = Program.from_bytes(program.to_bytes())
    assert restored == program


def test_transpositions_that_cancel(rng: Random) -> None:
    """There and back in two steps: no layer of its own."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 5, 6, 7))
    image = writer.conv(source, 8, (3, 3))
    there = writer.transpose(image, (0, 3, 1, 2))
    back = writer.transpose(writer.transpose(there, (0, 1, 3, 2)), (0, 3, 2, 1))
    made = writer.conv(back, 5, (1, 1))
    program = compile_graph(graph_from_tflite_bytes(writer.model(made)), PRESETS["tiny"])
    assert [layer.op for layer in program.layers] == ["Conv2d", "Conv2d"]
    check(writer, [made], 0)


def test_channels_that_move_in_the_middle_are_refused(rng: Random) -> None:
    """By operator, index and tensor."""
    writer = TfliteWriter(rng)
    image = writer.conv(writer.input((1, 4, 4, 4)), 4, (3, 3))
    moved = writer.transpose(image, (0, 3, 1, 2))
    outputs = [writer.unary("RELU", moved), moved]
    graph = graph_from_tflite_bytes(writer.model(*outputs))
    with pytest.raises(UnsupportedModel, match=rf"operator 1 TRANSPOSE, {moved.name}\): moves cha"):
        compile_graph(graph, PRESETS["tiny"])
    graph = graph_from_tflite_bytes(writer.model(outputs[0]))
    with pytest.raises(
        UnsupportedModel, match=rf"TRANSPOSE, {moved.name}\): moves .* relu_2 reads"
    ):
        compile_graph(graph, PRESETS["tiny"])
