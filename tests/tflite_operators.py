"""Single TFLite operators, random in every way, and their results on the machine.

`BUILDS` has one function an operator, or a kind of it, that appends it to a source image.
"""

from collections.abc import Callable

import numpy as np
from ai_edge_litert.interpreter import OpResolverType

from tflite_writer import FUNCTIONS, OF_POSITIVE_VALUES, Record, TfliteWriter, reference
from weft.compiler import compile_graph
from weft.errors import UnsupportedModel
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.ir import Lookup
from weft.session import Session
from weft_hw.config import PRESETS

__all__ = ["BUILDS", "CHANNELS", "CONFIGS", "drawn_operator", "drawn_table", "pair", "run"]

CONFIGS = ("base16", "edge8", "tiny")
CODES = np.arange(-128, 128).astype(np.int8)
CHANNELS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 40)

Random = np.random.Generator
Build = Callable[[TfliteWriter, Random, Record], Record | list[Record]]


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
    """Over a flattened image; the interpreter aborts on 512 values that are equal."""
    image = writer.pool("MAX_POOL_2D", source, (4, 4), (4, 4), "SAME")
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
    "PADV2": lambda writer, rng, source: writer.pad(
        source, [pair(rng, 0, 4), pair(rng, 0, 4)], "PADV2"
    ),
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


def drawn_operator(name: str, case: int, rng: Random) -> tuple[TfliteWriter, list[Record]]:
    """An operator behind an input, and its outputs; in odd cases of any size."""
    writer = TfliteWriter(rng)
    height, width = pair(rng, 1, 13) if case % 2 else pair(rng, 5, 13)
    channels = int(rng.choice(CHANNELS))
    if case == 0:
        height = width = 5
    source = writer.input((1, max(height, 5), max(width, 5), channels))
    made = BUILDS[name](writer, rng, source)
    return writer, made if isinstance(made, list) else [made]


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


def drawn_table(kind: str, rng: Random) -> tuple[np.ndarray, np.ndarray, str] | str:
    """A function's kernel on every code, the front end's table, and the quantizations in words.

    Where weft refuses the quantizations drawn, its error.
    """
    resolver = OpResolverType.BUILTIN_REF
    if kind == "ELU":  # has no reference kernel
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    writer = TfliteWriter(rng)
    zero = -128 if kind in OF_POSITIVE_VALUES else None
    source = writer.input((1, 256), CODES[None], **_quantized(rng, zero=zero))
    fields = _quantized(rng, source.scales[0])
    made = writer.function(kind, source, values=CODES[None], **fields)
    data = writer.model(made)
    (expected,) = reference(data, [source.values], resolver)
    try:
        (operation,) = graph_from_tflite_bytes(data).operations
    except UnsupportedModel as error:
        return str(error)
    assert isinstance(operation, Lookup)
    told = f"{kind} {source.scales} {source.zero_points} to {made.scales} {made.zero_points}"
    return expected[0], operation.codes, told


def _quantized(rng: Random, near: float | None = None, zero: int | None = None) -> dict:
    """A scale over many powers of two (``near``: within 1/16 to 16 of it, equal, or far above)."""
    if near is None:
        scale = 2.0 ** rng.choice([rng.uniform(-10, 3), rng.integers(-8, 3)])
    else:
        scale = near * 2.0 ** rng.choice(
            [*rng.uniform(-4, 4, 3), *rng.integers(-2, 3, 2), 0, rng.uniform(4, 20)]
        )
    if zero is None:
        zero = int(rng.choice([-128, 127, 0, *rng.integers(-128, 128, 4)]))
    return {"scales": (float(np.float32(scale)),), "zero_points": (zero,)}
