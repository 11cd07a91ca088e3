"""Functions of one element: tables of all 256 codes, equal to TFLite's kernels."""

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

from tflite_operators import drawn_table
from tflite_writer import (
    FUNCTIONS,
    TfliteWriter,
    interpreter_tensors,
    open_interpreter,
    reference,
)
from weft.compiler import compile_graph
from weft.errors import UnsupportedModel
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.observation.disassembly import disassembly
from weft.session import Session
from weft_hw.config import PRESETS

pytestmark = pytest.mark.tflite

QUANTIZATIONS = 60

Random = np.random.Generator


@pytest.mark.parametrize("kind", [*FUNCTIONS, "ELU"])
def test_table_of_every_code_equals_the_kernel(kind: str, rng: Random) -> None:
    """All codes, zero points at both ends, scales from fine to coarse."""
    distinct = compared = 0
    for _ in range(QUANTIZATIONS):
        drawn = drawn_table(kind, rng)
        if isinstance(drawn, str):
            assert kind == "RSQRT" and "leave 32 bits" in drawn
            continue
        expected, made, told = drawn
        np.testing.assert_array_equal(made, expected, err_msg=told)
        compared += 1
        distinct = max(distinct, len(np.unique(expected)))
    assert distinct > 32 and compared > QUANTIZATIONS / 2


def run(data: bytes, given: np.ndarray, config: str) -> tuple[dict, tuple[str, ...], list]:
    """The machine's results by name, kinds of its layers, and its instructions' purposes."""
    program = compile_graph(graph_from_tflite_bytes(data), PRESETS[config])
    with Session(program, engine="functional") as session:
        made = session.run(given)
    made = made if isinstance(made, dict) else {program.results[0]: made}
    purposes = [symbol.purpose for symbol in program.symbols]
    return made, tuple(layer.op for layer in program.layers), purposes


@pytest.mark.parametrize("config", ["tiny", "base16"])
def test_tables_follow_every_kind_of_producer(config: str, rng: Random) -> None:
    """Behind the producer, in its own instruction; alone where another reads the codes too."""
    for also_read in (False, True):
        writer = TfliteWriter(rng)
        source = writer.input((1, 6, 5, 9))
        image = writer.function("LEAKY_RELU", source)
        layers = [
            writer.conv(image, 9, (3, 3)),
            writer.depthwise(image, (3, 3)),
            writer.elementwise("ADD", source, image),
            writer.elementwise("SUB", source, image),
            writer.elementwise("MUL", source, image),
            writer.pool("AVERAGE_POOL_2D", image, (2, 2), (1, 1)),
            writer.pool("MAX_POOL_2D", image, (2, 2), (1, 1)),
            writer.unary("QUANTIZE", image),
            writer.unary("RELU6", image),
            writer.mean(image, keep=True),
        ]
        outputs = [writer.function("TANH", layer) for layer in layers]
        outputs += layers if also_read else []
        data = writer.model(*outputs)
        expected = interpreter_tensors(open_interpreter(data), [source.values])
        made, kinds, _ = run(data, source.values, config)
        assert kinds.count("Lookup") == (11 if also_read else 1)
        assert set(made) == {record.name for record in outputs}
        for name, values in made.items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_more_tables_than_the_machine_has(rng: Random) -> None:
    """Six different tables, each used twice: those that made way are loaded again."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 4, 4, 5))
    outputs = []
    for _ in range(2):
        for alpha in range(6):
            writer.rng = np.random.default_rng(alpha)  # the same quantization and slope again
            made = writer.function("LEAKY_RELU", source, scales=(0.1 + alpha,), zero_points=(3,))
            outputs.append(made)
    data = writer.model(*outputs)
    expected = reference(data, [source.values])
    made, _, purposes = run(data, source.values, "tiny")
    assert purposes.count("load table") == 12
    for one, record in zip(expected, outputs, strict=True):
        np.testing.assert_array_equal(made[record.name], one)


def test_one_table_for_alike_layers(rng: Random) -> None:
    """The same function of the same quantization is loaded once."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 4, 4, 5))
    outputs = [writer.function("LOGISTIC", source) for _ in range(3)]
    data = writer.model(*outputs)
    made, _, purposes = run(data, source.values, "tiny")
    assert purposes.count("load table") == 1
    program = compile_graph(graph_from_tflite_bytes(data), PRESETS["tiny"])
    assert "; load table, tile 0: logistic_0.table -> lookup 0x0\n" in disassembly(program)
    for one, record in zip(reference(data, [source.values]), outputs, strict=True):
        np.testing.assert_array_equal(made[record.name], one)


def test_tables_at_the_ends_of_a_network(rng: Random) -> None:
    """Of an input, of a vector, behind a dense layer, and through a table twice."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 5, 6, 4))
    image = writer.function("HARD_SWISH", writer.function("ABS", source))
    vector = writer.dense(image, 21)
    outputs = [writer.function("LOGISTIC", vector)]
    data = writer.model(*outputs)
    made, _, _ = run(data, source.values, "base16")
    np.testing.assert_array_equal(made[outputs[0].name], reference(data, [source.values])[0])


@pytest.mark.parametrize(
    ("kind", "zero", "output", "part"),
    [
        ("LOG", 3, {"scales": (0.5,), "zero_points": (0,)}, "zero point 3"),
        ("RSQRT", -127, {"scales": (0.5,), "zero_points": (0,)}, "zero point -127"),
        ("HARD_SWISH", 0, {"scales": (1e-4,), "zero_points": (0,)}, "128 times"),
        ("TANH", 0, {"scales": (0.5,), "zero_points": (0,)}, "scale 0.5 and zero point 0"),
        ("ABS", 0, {"scales": (2.0**-33,), "zero_points": (0,)}, "2\\^30"),
    ],
)
def test_refusals(kind: str, zero: int, output: dict, part: str, rng: Random) -> None:
    """With operator, index and tensor; the interpreter gives up on the first three, too."""
    writer = TfliteWriter(rng)
    source = writer.input((1, 8), scales=(0.5,), zero_points=(zero,))
    made = writer.node(kind, [source], source.shape, values=source.values, **output)
    data = writer.model(made)
    where = rf"operator 0 \({kind}, computes {made.name}\)"
    with pytest.raises(UnsupportedModel, match=f"{where}.*{part}"):
        graph_from_tflite_bytes(data)
