"""The TFLite front end: names and sources, and every refusal with its words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

from ai_edge_litert import schema_py_generated as schema

import weft
from tflite_writer import Node, Record, TfliteWriter
from weft.compiler import compile_graph
from weft.errors import UnsupportedModel
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.frontends.tflite_reference import operators_page
from weft.session import Session
from weft_hw.config import PRESETS

pytestmark = pytest.mark.tflite


def raw(writer: TfliteWriter, operator: str, inputs, shape, options=None, **fields) -> Record:
    """An operator that the interpreter never sees."""
    quantization = {"scales": (0.5,), "zero_points": (0,)}
    output = writer.record(shape, **(quantization | fields))
    writer.nodes.append(Node(operator, inputs, [output], options))
    return output


def tables(writer: TfliteWriter, *values) -> list[Record]:
    return [writer.constant(np.array(each, np.int32)) for each in values]


def strided(writer: TfliteWriter, shape, steps=(1, 1, 1, 1), **options) -> Record:
    """The whole image through a STRIDED_SLICE with something wrong."""
    made = schema.StridedSliceOptionsT()
    made.beginMask = made.endMask = 15
    for name, value in options.items():
        setattr(made, name, value)
    inputs = [image(writer), *tables(writer, (0,) * 4, (0,) * 4, steps)]
    return raw(writer, "STRIDED_SLICE", inputs, shape, made)


def image(writer: TfliteWriter, shape=(1, 6, 6, 4), **fields) -> Record:
    return writer.input(shape, **({"scales": (0.5,), "zero_points": (0,)} | fields))


def convolution(writer: TfliteWriter, source: Record, **changes) -> Record:
    """A convolution with something wrong."""
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    options.padding = schema.Padding.SAME
    for name in ("fusedActivationFunction", "strideH", "padding"):
        if name in changes:
            setattr(options, name, changes.pop(name))
    shape = changes.pop("shape", (1, 6, 6, 5))
    filters = changes.pop("filters", (5, 3, 3, 4))
    bias = changes.pop("bias", None)
    fields = {"scales": (0.01,), "zero_points": (0,), "name": "w"} | changes
    weights = writer.record(filters, data=np.ones(filters, np.int8), **fields)
    inputs = [source, weights] if bias is None else [source, weights, bias]
    return raw(writer, "CONV_2D", inputs, shape, options)


def dense(writer: TfliteWriter, source: Record, features: int, **options) -> Record:
    weights = writer.constant(np.ones((3, features), np.int8), scales=(0.1,), zero_points=(0,))
    record = schema.FullyConnectedOptionsT()
    for name, value in options.items():
        setattr(record, name, value)
    return raw(writer, "FULLY_CONNECTED", [source, weights], (1, 3), record)


def pool(writer: TfliteWriter, source: Record, size: int = 2, **fields) -> Record:
    options = schema.Pool2DOptionsT()
    options.filterHeight = options.filterWidth = size
    options.strideH = options.strideW = 1
    options.padding = schema.Padding.VALID
    return raw(writer, "AVERAGE_POOL_2D", [source], (1, 5, 5, 4), options, **fields)


def wide(writer: TfliteWriter, source: Record, data: np.ndarray) -> Record:
    return writer.constant(data, scales=(0.5,), zero_points=(0,), name="k")


REFUSALS: dict[str, tuple[Callable[[TfliteWriter], Record], str]] = {
    "operator": (
        lambda w: raw(w, "PRELU", [image(w)], (1, 6, 6, 4)),
        r"operator 0 \(PRELU, computes t1\): weft has no such operator; it knows ABS, ",
    ),
    "float activations": (
        lambda w: raw(w, "RELU", [image(w, kind="float32")], (1, 6, 6, 4)),
        r"operator 0 \(RELU, computes t1\): tensor t0: is read before it is computed",
    ),
    "float input that stays float": (
        lambda w: raw(
            w, "QUANTIZE", [image(w, kind="float32")], (1, 6, 6, 4), scales=(), zero_points=()
        ),
        r"tensor t1: has 0 scales; weft takes activations of one scale",
    ),
    "int16 activations": (
        lambda w: raw(w, "RELU", [image(w, kind="int16")], (1, 6, 6, 4), kind="int16"),
        r"tensor t0: is INT16; weft takes int8 activations: convert the model with full integer",
    ),
    "uint8 activations": (
        lambda w: raw(w, "RELU", [image(w, kind="uint8")], (1, 6, 6, 4), kind="uint8"),
        r"tensor t0: is UINT8",
    ),
    "activations by channel": (
        lambda w: raw(
            w, "RELU", [image(w)], (1, 6, 6, 4), scales=(1.0,) * 4, zero_points=(0,) * 4, axis=3
        ),
        r"operator 0 \(RELU, computes t1\): tensor t1: has 4 scales; weft takes activations of one",
    ),
    "three axes": (
        lambda w: raw(w, "RELU", [image(w, (1, 6, 4))], (1, 6, 4)),
        r"tensor t0: has the shape 1x6x4; weft takes \(batch, height, width, channels\) and",
    ),
    "open shape": (
        lambda w: raw(w, "RELU", [image(w, signature=(1, -1, 6, 4))], (1, 6, 6, 4)),
        r"tensor t0: has the shape 1x\?x6x4; every size but the batch's must be fixed",
    ),
    "batch that changes": (
        lambda w: raw(w, "RELU", [image(w)], (2, 6, 6, 4)),
        r"tensor t1: has the shape 2x6x6x4, but the model's batch is 1",
    ),
    "weights with zero points": (
        lambda w: convolution(w, image(w), zero_points=(3,)),
        r"\(CONV_2D, computes t2\): tensor w: has zero points other than 0; weft takes symmetric",
    ),
    "weights by another axis": (
        lambda w: convolution(w, image(w), scales=(0.1,) * 4, zero_points=(0,) * 4, axis=3),
        r"tensor w: has 4 scales along axis 3; weft takes one, or 5 along axis 0",
    ),
    "weights without scale": (
        lambda w: convolution(w, image(w), scales=(), zero_points=()),
        r"tensor w: has 0 scales along axis 0",
    ),
    "computed weights": (
        lambda w: raw(w, "FULLY_CONNECTED", [image(w, (1, 9)), image(w, (1, 9))], (1, 1)),
        r"tensor t1: must be a constant: weft compiles models whose weights are frozen",
    ),
    "float weights": (
        lambda w: raw(
            w,
            "FULLY_CONNECTED",
            [image(w, (1, 9)), w.constant(np.ones((3, 9), np.float32))],
            (1, 3),
        ),
        r"tensor t1: is FLOAT32; weft takes INT8 or INT4",
    ),
    "transposed by int4 weights": (
        lambda w: raw(
            w,
            "TRANSPOSE_CONV",
            [
                w.constant(np.array([1, 6, 6, 4], np.int32)),
                w.constant(
                    np.ones((4, 1, 1, 4), np.int8),
                    scales=(0.1,),
                    zero_points=(0,),
                    packed=bytes([0x11] * 8),
                ),
                image(w),
            ],
            (1, 6, 6, 4),
            schema.TransposeConvOptionsT(),
        ),
        r"tensor t1: is INT4; weft takes INT8",
    ),
    "float bias": (
        lambda w: convolution(w, image(w), bias=w.constant(np.ones(5, np.float32))),
        r"tensor t1: is FLOAT32; weft takes INT32",
    ),
    "bias of another length": (
        lambda w: convolution(w, image(w), bias=w.constant(np.ones(4, np.int32))),
        r"tensor t1: has 4 values for 5 filters",
    ),
    "fused activation": (
        lambda w: convolution(
            w, image(w), fusedActivationFunction=schema.ActivationFunctionType.TANH
        ),
        r"has the fused activation TANH; weft takes NONE, RELU, RELU6, RELU_N1_TO_1",
    ),
    "filters of another depth": (
        lambda w: convolution(w, image(w), filters=(5, 3, 3, 3)),
        r"has filters of depth 3 for 4 channels",
    ),
    "stride 0": (
        lambda w: convolution(w, image(w), strideH=0),
        r"has the stride \(0, 1\)",
    ),
    "output shape": (
        lambda w: convolution(w, image(w), shape=(1, 5, 6, 5)),
        r"gives the shape \(6, 6, 5\), but the file says \(5, 6, 5\)",
    ),
    "kernel beyond the image": (
        lambda w: convolution(w, image(w), filters=(5, 7, 7, 4), padding=schema.Padding.VALID),
        r"its window \(7, 7\) is larger than the image \(6, 6\)",
    ),
    "vector for a convolution": (
        lambda w: convolution(w, image(w, (1, 9))),
        r"tensor t0: must be \(batch, height, width, channels\): reshape it before",
    ),
    "several products a sample": (
        lambda w: dense(w, image(w), 4),
        r"multiplies 144 values a sample by weights for 4; only one product a sample is supported",
    ),
    "shuffled weights": (
        lambda w: dense(w, image(w, (1, 9)), 9, weightsFormat=1),
        r"has shuffled weights; convert the model with the default weights format",
    ),
    "pool with a change of scale": (
        lambda w: pool(w, image(w), scales=(0.25,)),
        r"input t0 and output t1 differ in scale or zero point; quantize them alike",
    ),
    "broadcast of activations": (
        lambda w: raw(w, "ADD", [image(w), image(w, (1, 1, 1, 4))], (1, 6, 6, 4)),
        r"tensor t1: has the shape \(1, 1, 4\), the output \(6, 6, 4\); only constants are",
    ),
    "constant that does not fit": (
        lambda w: raw(w, "MUL", [image(w), wide(w, image, np.ones((3,), np.int8))], (1, 6, 6, 4)),
        r"tensor k: of shape \(3,\) does not fit \(6, 6, 4\)",
    ),
    "two constants": (
        lambda w: raw(
            w,
            "ADD",
            [
                wide(w, image(w), np.ones((1, 4), np.int8)),
                w.constant(np.ones((1, 4), np.int8), scales=(1.0,), zero_points=(0,)),
            ],
            (1, 4),
        ),
        r"combines two constants; fold them before",
    ),
    "mean over channels": (
        lambda w: raw(w, "MEAN", [image(w), w.constant(np.array([3], np.int32))], (1, 6, 6, 1)),
        r"averages over the axes \[3\]; weft takes height and width",
    ),
    "pad of channels": (
        lambda w: raw(
            w,
            "PAD",
            [image(w), w.constant(np.array([[0, 0], [0, 0], [0, 0], [0, 2]], np.int32))],
            (1, 6, 6, 6),
        ),
        r"pads the batch or the channels; weft pads height and width",
    ),
    "concatenation of rows": (
        lambda w: raw(w, "CONCATENATION", [image(w), image(w)], (1, 12, 6, 4), joined(1)),
        r"joins along axis 1; weft joins channels \(the last axis\)",
    ),
    "concatenation of unequal scales": (
        lambda w: raw(
            w, "CONCATENATION", [image(w), image(w, scales=(0.25,))], (1, 6, 6, 8), joined(3)
        ),
        r"input t1 and output t2 differ in scale or zero point",
    ),
    "softmax to another scale": (
        lambda w: raw(w, "SOFTMAX", [image(w, (1, 9))], (1, 9), schema.SoftmaxOptionsT()),
        r"weft takes int8 codes to int8 codes of scale 1/256 and zero point -128",
    ),
    "machine operator behind a host operator": (
        lambda w: raw(
            w,
            "RELU",
            [
                raw(
                    w,
                    "SOFTMAX",
                    [image(w, (1, 9))],
                    (1, 9),
                    schema.SoftmaxOptionsT(),
                    scales=(1 / 256,),
                    zero_points=(-128,),
                )
            ],
            (1, 9),
        ),
        r"tensor t1: reads what the host computes after the accelerator's run",
    ),
    "every other channel": (
        lambda w: strided(w, (1, 6, 6, 2), steps=(1, 1, 1, 2)),
        r"operator 0 \(STRIDED_SLICE, computes t4\): takes every channel of 2; weft takes",
    ),
    "rows from behind": (
        lambda w: strided(w, (1, 6, 6, 4), steps=(1, -1, 1, 1)),
        r"has the strides \[1, -1, 1, 1\]; weft takes positive ones",
    ),
    "slice with an ellipsis": (
        lambda w: strided(w, (1, 6, 6, 4), ellipsisMask=1),
        r"has the option EllipsisMask; write the slice of every axis instead",
    ),
    "slice that changes the rank": (
        lambda w: strided(w, (6, 4), shrinkAxisMask=2),
        r"tensor t4: has the shape 6x4, but the model's batch is 1",
    ),
    "box outside the image": (
        lambda w: raw(w, "SLICE", [image(w), *tables(w, (0, 3, 0, 0), (1, 4, 6, 4))], (1, 4, 6, 4)),
        r"\(SLICE, computes t3\): takes \[4, 6, 4\] elements from \[3, 0, 0\] of \(6, 6, 4\)",
    ),
    "box of three axes": (
        lambda w: raw(w, "SLICE", [image(w), *tables(w, (0, 3, 0), (1, 3, 6, 4))], (1, 3, 6, 4)),
        r"tensor t1: has 3 values, not 4",
    ),
    "transposition of the batch": (
        lambda w: raw(w, "TRANSPOSE", [image(w), *tables(w, (1, 0, 2, 3))], (6, 1, 6, 4)),
        r"tensor t2: has the shape 6x1x6x4, but the model's batch is 1",
    ),
    "axes that are no permutation": (
        lambda w: raw(w, "TRANSPOSE", [image(w), *tables(w, (0, 1, 1, 3))], (1, 6, 6, 4)),
        r"\(TRANSPOSE, computes t2\): puts the axes in the order \[0, 1, 1, 3\]; weft leaves",
    ),
    "split of the batch": (
        lambda w: raw(w, "SPLIT", [*tables(w, (0,)), image(w)], (1, 6, 6, 4)),
        r"\(SPLIT, computes t2\): cuts along axis 0; weft cuts samples, not batches",
    ),
    "parts that leave something": (
        lambda w: raw(w, "SPLIT_V", [image(w), *tables(w, (3,), (3,))], (1, 6, 6, 3)),
        r"\(SPLIT_V, computes t3\): cuts 4 elements into parts of \[3\]",
    ),
    "parts of another scale": (
        lambda w: raw(w, "SPLIT", [*tables(w, (3,)), image(w)], (1, 6, 6, 4), scales=(0.25,)),
        r"input t1 and output t2 differ in scale or zero point",
    ),
    "shape arithmetic on activations": (
        lambda w: raw(w, "PACK", [image(w), image(w)], (2, 6, 6, 4)),
        r"weft computes PACK on shapes only, not on INT8",
    ),
    "missing input": (
        lambda w: raw(w, "FULLY_CONNECTED", [image(w, (1, 9)), None], (1, 3)),
        r"its input 1 is missing",
    ),
    "too many inputs": (
        lambda w: raw(w, "RELU", [image(w), image(w)], (1, 6, 6, 4)),
        r"has 2 inputs and 1 outputs",
    ),
}


def joined(axis: int):
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    return options


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_what_and_where(name: str, rng: np.random.Generator) -> None:
    build, words = REFUSALS[name]
    writer = TfliteWriter(rng)
    data = writer.model(build(writer))
    with pytest.raises(UnsupportedModel, match=words) as caught:
        graph_from_tflite_bytes(data, name="net")
    text = str(caught.value)
    assert text.startswith(("net: operator ", "net: tensor t0: "))
    assert "\n" not in text


def test_reshape_that_moves_elements_is_refused(rng: np.random.Generator) -> None:
    writer = TfliteWriter(rng)
    made = raw(writer, "RELU", [image(writer)], (1, 6, 6, 4))
    out = raw(writer, "RESHAPE", [made], (1, 9, 4, 4))
    graph = graph_from_tflite_bytes(writer.model(out))
    with pytest.raises(UnsupportedModel, match=r"reshape_1 \(operator 1 RESHAPE, t2\): reshapes"):
        compile_graph(graph, PRESETS["base16"])


def test_part_of_a_flattened_image_is_refused(rng: np.random.Generator) -> None:
    writer = TfliteWriter(rng)
    made = raw(writer, "RELU", [image(writer)], (1, 6, 6, 4))
    vector = raw(writer, "RESHAPE", [made], (1, 144))
    out = raw(writer, "SLICE", [vector, *tables(writer, (0, 7), (1, 9))], (1, 9))
    graph = graph_from_tflite_bytes(writer.model(out))
    with pytest.raises(
        UnsupportedModel, match=r"slice_2 \(operator 2 SLICE, t5\): takes a part of"
    ):
        compile_graph(graph, PRESETS["base16"])


def test_shift_beyond_32_bits_is_refused(rng: np.random.Generator) -> None:
    """TFLite's kernels leave it undefined; just below the limit they agree."""
    for exponent, fits in ((-23, False), (-20, True)):
        writer = TfliteWriter(rng)
        source = image(writer, scales=(1.0,), zero_points=(-128,))
        fields = {"scales": (2.0**exponent,), "zero_points": (0,)}
        out = writer.unary("QUANTIZE", source, **fields)
        graph = graph_from_tflite_bytes(writer.model(out))
        if fits:
            with Session(compile_graph(graph, PRESETS["tiny"]), engine="functional") as session:
                np.testing.assert_array_equal(session.run(source.values), out.values)
            continue
        with pytest.raises(UnsupportedModel, match=r"quantize_0 \(.*could leave 32 bits; quantize"):
            compile_graph(graph, PRESETS["tiny"])


def test_names_and_sources(rng: np.random.Generator) -> None:
    """Operations are named by operator and index, tensors as in the file; repeated names differ."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 4, 4, 3), name="picture")
    first = writer.unary("RELU", source, name="same", **writer.quantization())
    second = writer.unary("RELU6", first, name="same", **writer.quantization())
    graph = graph_from_tflite_bytes(writer.model(second), name="net")
    assert graph.inputs == ("picture",)
    assert [each.name for each in graph.operations] == ["relu_0", "relu6_1"]
    assert [each.output for each in graph.operations] == ["same", "same_2"]
    assert graph.operations[1].source == "operator 1 RELU6, same_2"
    assert graph.layout == "HWC"


def test_committed_page_is_up_to_date() -> None:
    docs = Path(__file__).parents[2] / "docs"
    stale = "docs/tflite.md is out of date: run `python -m weft.frontends.tflite_reference docs`"
    assert (docs / "tflite.md").read_text() == operators_page(), stale


def small_file(rng: np.random.Generator) -> bytes:
    writer = TfliteWriter(rng)
    source = writer.input((1, 5, 5, 3))
    return writer.model(writer.dense(writer.conv(source, 4, (3, 3)), 5))


def test_truncated_files_are_refused(rng: np.random.Generator) -> None:
    data = small_file(rng)
    for size in (0, 3, 7, 8, 20, len(data) // 3, len(data) // 2):
        with pytest.raises(UnsupportedModel, match=r"not a \.tflite file|damaged or cut short"):
            graph_from_tflite_bytes(data[:size])


def test_damaged_files_give_clear_errors(rng: np.random.Generator) -> None:
    """Random bytes changed: read as some model, or refused; nothing else ever comes out."""
    data = small_file(rng)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(8, len(data), int(rng.integers(1, 6))):
            damaged[place] = int(rng.integers(256))
        try:
            compile_graph(graph_from_tflite_bytes(bytes(damaged)), PRESETS["base16"])
        except UnsupportedModel:
            refused += 1
    assert 20 < refused < 300


def test_files_are_told_apart_by_their_content(tmp_path, rng: np.random.Generator) -> None:
    path = tmp_path / "net.any"
    path.write_bytes(small_file(rng))
    assert weft.compile(path, config="tiny").name == "net"
    assert weft.compile(str(path)).config.name == "base16"
    path.write_bytes(b"\0\0\0\0TFL4 and more")
    with pytest.raises(UnsupportedModel, match=r"neither a Program, nor a \.tflite file, nor a"):
        weft.compile(path)
    with pytest.raises(weft.InputError, match="there is no such model file"):
        weft.compile(tmp_path / "missing.tflite")
