"""Single TFLite operators, random in every way, equal to the interpreter's reference kernels."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

from ai_edge_litert import schema_py_generated as schema

from tflite_writer import FUNCTIONS, OF_POSITIVE_VALUES, Record, TfliteWriter, reference
from weft.compiler import compile_graph
from weft.errors import UnsupportedModel
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.program import Program
from weft.session import Session
from weft_hw.config import PRESETS

pytestmark = pytest.mark.tflite

CONFIGS = ("base16", "edge8", "tiny")
CASES = 5
CHANNELS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 40)

Random = np.random.Generator
Build = Callable[[TfliteWriter, Random, Record], Record | list[Record]]


def run(
    writer: TfliteWriter, outputs: list[Record], config: str, force_tiles: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs of the interpreter and of the machine on the writer's inputs."""
    data = writer.model(*outputs)
    given = [record.values for record in writer.inputs]
    program = compile_graph(graph_from_tflite_bytes(data), PRESETS[config], force_tiles=force_tiles)
    with Session(program, engine="functional") as session:
        made = session.run(tuple(given) if len(given) > 1 else given[0])
    made = list(made.values()) if isinstance(made, dict) else [made]
    return reference(data, given), made


def check(writer: TfliteWriter, outputs: list[Record], case: int) -> None:
    """Equality, on a configuration and with tiles that depend on the case."""
    force_tiles = case if case % 2 else None
    expected, made = run(writer, outputs, CONFIGS[case % len(CONFIGS)], force_tiles)
    for one, other in zip(expected, made, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(other, one)


def pair(rng: Random, low: int, high: int) -> tuple[int, int]:
    y, x = rng.integers(low, high, 2)
    return int(y), int(x)


def padding(rng: Random) -> str:
    return str(rng.choice(["SAME", "VALID"]))


def convolution(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    shape = pair(rng, 1, 5)
    return writer.conv(source, int(rng.integers(1, 40)), shape, pair(rng, 1, 4), padding(rng))


def dilated(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    dilation = pair(rng, 1, 4)
    filters = int(rng.integers(1, 40))
    return writer.conv(source, filters, pair(rng, 1, 3), (1, 1), padding(rng), dilation)


def grouped(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    channels = source.shape[3]
    groups = int(rng.choice(divisors(channels)))
    filters = groups * int(rng.integers(1, 4))
    return writer.conv(source, filters, pair(rng, 1, 4), (1, 1), padding(rng), groups=groups)


def depthwise(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    multiplier = int(rng.choice([1, 1, 1, 2, 3]))
    return writer.depthwise(
        source, pair(rng, 1, 5), pair(rng, 1, 4), padding(rng), multiplier=multiplier
    )


def dilated_depthwise(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    return writer.depthwise(source, pair(rng, 1, 3), (1, 1), padding(rng), pair(rng, 1, 4))


def transposed(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    shape, stride = pair(rng, 1, 6), pair(rng, 1, 4)
    return writer.transposed(source, int(rng.integers(1, 20)), shape, stride, padding(rng))


def dense(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    image = writer.pool("MAX_POOL_2D", source, (3, 3), (3, 3), "SAME")
    return writer.dense(image, int(rng.integers(1, 60)))


def dense_by_pixel(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    return writer.dense(source, int(rng.integers(1, 60)), keep=True)


def pool(kind: str) -> Build:
    def build(writer: TfliteWriter, rng: Random, source: Record) -> Record:
        return writer.pool(kind, source, pair(rng, 1, 6), pair(rng, 1, 4), padding(rng))

    return build


def elementwise(kind: str) -> Build:
    def build(writer: TfliteWriter, rng: Random, source: Record) -> Record:
        other = writer.input(source.shape)
        if rng.random() < 0.3:
            shapes = [(1,), (source.shape[3],), source.shape, (1, 1, 1, 1)]
            shape = shapes[rng.integers(len(shapes))]
            writer.inputs.pop()
            data = rng.integers(-128, 128, shape).astype(np.int8)
            other = writer.constant(data, **writer.quantization())
        operands = (source, other) if rng.random() < 0.7 else (other, source)
        return writer.elementwise(kind, *operands)

    return build


def unary(kind: str) -> Build:
    return lambda writer, rng, source: writer.unary(kind, source)


def function(kind: str) -> Build:
    """Behind a sigmoid, whose codes are positive, where the function needs that."""

    def build(writer: TfliteWriter, rng: Random, source: Record) -> Record:
        if kind in OF_POSITIVE_VALUES:
            source = writer.function("LOGISTIC", source)
        return writer.function(kind, source)

    return build


def concatenation(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    same = {"scales": source.scales, "zero_points": source.zero_points}
    others = [
        writer.input((*source.shape[:3], int(rng.integers(1, 40))), **same)
        for _ in range(int(rng.integers(1, 4)))
    ]
    return writer.concatenate(*others, source)


def box(rng: Random, source: Record) -> list[slice]:
    """A part of each axis but the batch."""
    parts = [slice(None)]
    for size in source.shape[1:]:
        first = int(rng.integers(0, size))
        parts.append(slice(first, int(rng.integers(first + 1, size + 1))))
    return parts


def sliced(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    parts = box(rng, source)
    first = [part.start or 0 for part in parts]
    rest = [bool(rng.random() < 0.3) for _ in parts]
    sizes = [
        -1 if all_ or part.stop is None else part.stop - part.start
        for part, all_ in zip(parts, rest, strict=True)
    ]
    return writer.slice(source, first, sizes)


def strided_slice(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    """With strides, ends counted from behind, and ends left open."""
    parts = box(rng, source)
    steps = [1, *(int(step) for step in rng.integers(1, 4, 2)), 1]
    slices = []
    for axis, (part, step) in enumerate(zip(parts, steps, strict=True)):
        first, end = part.start, part.stop
        if end is not None and rng.random() < 0.4:
            end = None if rng.random() < 0.5 else end - source.shape[axis] or None
        if rng.random() < 0.2:
            first = None
        slices.append(slice(first, end, step))
    return writer.strided_slice(source, slices)


def one_pixel(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    """An image's pixel as a vector."""
    y, x = (int(rng.integers(0, size)) for size in source.shape[1:3])
    slices = [slice(None), slice(y, y + 1), slice(x, x + 1), slice(None)]
    return writer.strided_slice(source, slices, shrink=(1, 2))


def columns_to_rows(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    """In the middle of a network: on the machine."""
    image = writer.pool("MAX_POOL_2D", source, (1, 1), (1, 1))
    return writer.conv(writer.transpose(image, (0, 2, 1, 3)), 5, (2, 3), (1, 1))


def channels_first_vector(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    """A dense layer that reads its image channel by channel."""
    image = writer.pool("MAX_POOL_2D", source, (3, 3), (2, 2), "SAME")
    vector = writer.transpose(image, (0, 3, 1, 2))
    if rng.random() < 0.5:
        vector = writer.reshape(vector, (1, int(np.prod(vector.shape))))
    return writer.dense(vector, 9)


def divisors(count: int) -> list[int]:
    return [each for each in range(1, count + 1) if count % each == 0]


def split(writer: TfliteWriter, rng: Random, source: Record) -> list[Record]:
    axis = int(rng.integers(1, 4))
    return writer.split(source, axis, int(rng.choice(divisors(source.shape[axis]))))


def split_v(writer: TfliteWriter, rng: Random, source: Record) -> list[Record]:
    axis = int(rng.integers(1, 4))
    size = source.shape[axis]
    cuts = sorted({0, size, *(int(cut) for cut in rng.integers(0, size + 1, 3))})
    sizes = [int(part) for part in np.diff(cuts)]
    if rng.random() < 0.5:
        sizes[int(rng.integers(len(sizes)))] = -1
    return writer.split(source, axis, sizes)


def softmax(writer: TfliteWriter, rng: Random, source: Record) -> Record:
    """Over a flattened image; the interpreter gives up beyond 4,096 values."""
    image = writer.pool("MAX_POOL_2D", source, (2, 2), (2, 2), "SAME")
    return writer.softmax(writer.reshape(image, (1, int(np.prod(image.shape)))))


BUILDS: dict[str, Build] = {
    "CONV_2D": convolution,
    "CONV_2D dilated": dilated,
    "CONV_2D grouped": grouped,
    "DEPTHWISE_CONV_2D": depthwise,
    "DEPTHWISE_CONV_2D dilated": dilated_depthwise,
    "TRANSPOSE_CONV": transposed,
    "FULLY_CONNECTED": dense,
    "FULLY_CONNECTED by pixel": dense_by_pixel,
    "AVERAGE_POOL_2D": pool("AVERAGE_POOL_2D"),
    "MAX_POOL_2D": pool("MAX_POOL_2D"),
    "MEAN": lambda writer, rng, source: writer.mean(source, keep=True),
    "MEAN to a vector": lambda writer, rng, source: writer.mean(source, keep=False),
    "PAD": lambda writer, rng, source: writer.pad(source, [pair(rng, 0, 4), pair(rng, 0, 4)]),
    "ADD": elementwise("ADD"),
    "SUB": elementwise("SUB"),
    "MUL": elementwise("MUL"),
    "RELU": unary("RELU"),
    "RELU6": unary("RELU6"),
    "RELU_0_TO_1": unary("RELU_0_TO_1"),
    "RELU_N1_TO_1": unary("RELU_N1_TO_1"),
    "QUANTIZE": unary("QUANTIZE"),
    "CONCATENATION": concatenation,
    "SLICE": sliced,
    "TRANSPOSE of rows and columns": columns_to_rows,
    "TRANSPOSE in front of a vector": channels_first_vector,
    "STRIDED_SLICE": strided_slice,
    "STRIDED_SLICE of a pixel": one_pixel,
    "SPLIT": split,
    "SPLIT_V": split_v,
    "SOFTMAX": softmax,
    **{kind: function(kind) for kind in FUNCTIONS},
    "DEQUANTIZE": lambda writer, rng, source: writer.dequantize(source),
}


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("name", BUILDS)
def test_operator_equals_the_interpreter(name: str, case: int, rng: Random) -> None:
    writer = TfliteWriter(rng)
    height, width = pair(rng, 1, 13) if case % 2 else pair(rng, 5, 13)
    channels = int(rng.choice(CHANNELS))
    if case == 0:
        height = width = 5
    source = writer.input((1, max(height, 5), max(width, 5), channels))
    made = BUILDS[name](writer, rng, source)
    check(writer, made if isinstance(made, list) else [made], case)


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
