"""4-bit and 2-bit weights: the array's narrow modes where it has them, and the interpreter's bits.

What a narrow mode saves is in the cycles of the RTL; that it is right, in equality with the
interpreter's kernels, which unpack int4 weights by themselves.
"""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

from tflite_writer import TfliteWriter, interpreter_tensors, open_interpreter
from weft.compiler import compile_graph
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.frontends.tflite_file import read_tflite
from weft.ir import Conv2d
from weft.passes.narrow_weights import narrowest_bits
from weft.program import Program
from weft.session import Session
from weft_hw.config import PRESETS
from weft_hw.instructions import Matrix

pytestmark = pytest.mark.tflite

CONFIGS = ("flex16", "base16", "edge8")
Network = tuple[bytes, np.ndarray]


def network(seed: int, bits: int) -> Network:
    """Each kind of layer with weights, large enough for narrow modes, and an input."""
    writer = TfliteWriter(np.random.default_rng(seed), weight_bits=bits)
    writer.activation = lambda: 0  # every code of every layer counts
    image = writer.input((1, 16, 16, 32), name="image")
    wide = writer.conv(image, 64, (3, 3))
    deep = writer.conv(writer.depthwise(wide, (3, 3)), 64, (1, 1))
    small = writer.conv(deep, 128, (3, 3), (2, 2))
    return writer.model(writer.dense(small, 10)), image.values


def compiled(data: bytes, config: str, *, every_tensor: bool = True) -> Program:
    """For the model's output, or with every tensor of the file an output."""
    graph = graph_from_tflite_bytes(data)
    if every_tensor:
        named = {each.name for each in read_tflite(data, "model").tensors}
        outputs = tuple(each.output for each in graph.operations if each.output in named)
        graph = dataclasses.replace(graph, outputs=outputs)
    return compile_graph(graph, PRESETS[config])


def modes(program: Program) -> set[int]:
    return {
        8 // each.weight_bits.weights for _, each in program.decoded if isinstance(each, Matrix)
    }


def check(program: Program, network: Network, engine: str = "functional") -> dict:
    """Equality of every tensor; the run's report."""
    data, values = network
    expected = interpreter_tensors(open_interpreter(data), [values])
    with Session(program, engine=engine) as session:
        made = session.run(values)
        report = session.report
    made = made if isinstance(made, dict) else {program.results[0]: made}
    for name, codes in made.items():
        assert len(np.unique(expected[name])) >= min(8, expected[name].size // 2)
        np.testing.assert_array_equal(codes, expected[name], err_msg=name)
    return report


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        ([], 2),
        ([0], 2),
        ([-2, 1], 2),
        ([2], 4),
        ([-3], 4),
        ([-8, 7], 4),
        ([8], 8),
        ([-9], 8),
        ([-128, 127], 8),
    ],
)
def test_the_width_is_the_narrowest_that_holds_the_weights(weights: list[int], bits: int) -> None:
    assert narrowest_bits(np.array(weights, np.int8)) == bits


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("config", CONFIGS)
def test_modes_follow_configuration_and_weights(config: str, bits: int) -> None:
    """An array of whole weights takes them as bytes; flex16 each layer in the mode it fills."""
    made = network(3, bits)
    program = compiled(made[0], config)
    if config == "flex16":
        # 32 channels fill a left row of 4-bit weights, 64 one of 2-bit weights.
        assert modes(program) == {8: {8}, 4: {4}, 2: {4, 2}}[bits]
    else:
        assert modes(program) == {8}
        assert len(program.constants) == len(compiled(network(3, 8)[0], config).constants)
    check(program, made)


@pytest.mark.rtl
def test_narrow_weights_take_fewer_cycles_on_rtl() -> None:
    """Every tensor equal; the cycles are those of `docs/measurements.md`."""
    cycles = {}
    for bits in (8, 4, 2):
        made = network(3, bits)
        check(compiled(made[0], "flex16"), made, "rtl")
        report = check(compiled(made[0], "flex16", every_tensor=False), made, "rtl")
        cycles[bits] = report["cycles"]
        print(bits, report["cycles"], [(each["name"], each["cycles"]) for each in report["layers"]])
    assert cycles[4] < 0.65 * cycles[8]
    assert cycles[2] < 0.85 * cycles[4]


@pytest.mark.rtl
def test_whole_weights_on_rtl() -> None:
    made = network(3, 4)
    check(compiled(made[0], "base16"), made, "rtl")


@pytest.mark.parametrize("case", range(12))
@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise", "dense", "transposed"])
def test_layers(kind: str, case: int, rng: np.random.Generator) -> None:
    """Shapes and channels at random; odd numbers of weights leave half a byte."""
    writer = TfliteWriter(rng, weight_bits=(4, 2)[case % 2])
    channels = int(rng.choice([1, 3, 16, 17, 32, 33, 64, 96]))
    filters = int(rng.choice([1, 5, 16, 17, 40]))
    height, width = (int(size) for size in rng.integers(3, 8, 2))
    kernel = tuple(int(size) for size in rng.integers(1, 4, 2))
    source = writer.input((1, height, width, channels))
    match kind:
        case "conv":
            result = writer.conv(source, filters, kernel)
        case "grouped":
            source = writer.input((1, height, width, 64))
            writer.inputs.pop(0)
            result = writer.conv(source, 2 * filters, kernel, groups=2)
        case "depthwise":
            result = writer.depthwise(source, kernel)
        case "dense":
            result = writer.dense(source, filters)
        case _:
            result = writer.transposed(source, filters, kernel)
    data = writer.model(result)
    graph = graph_from_tflite_bytes(data)
    program = compile_graph(graph, PRESETS[CONFIGS[case % 3]], force_tiles=case or None)
    (expected,) = (
        value
        for name, value in interpreter_tensors(open_interpreter(data), [source.values]).items()
        if name == result.name
    )
    with Session(program, engine="functional") as session:
        np.testing.assert_array_equal(session.run(source.values), expected)


@pytest.mark.parametrize("bits", [4, 2])
def test_extreme_sums(bits: int) -> None:
    """Every weight and input at either end, zero points included."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for zero_point in (-128, 127):
        writer = TfliteWriter(np.random.default_rng(1), weight_bits=bits)
        writer.activation = lambda: 0
        values = np.full((1, 4, 4, 64), -128, np.int8)
        values[:, ::2, :, ::3] = 127
        image = writer.input(values.shape, values, scales=(1.0,), zero_points=(zero_point,))

        def ends(shape, axis, per_channel=True, *, writer=writer, drawn=writer.filters):
            record = drawn(shape, axis, per_channel)
            record.data[record.data >= 0] = high
            record.data[record.data < 0] = low
            record.data[0], record.data[1] = low, high
            record.packed = None  # the same codes as an int8 tensor
            return record

        writer.filters = ends
        data = writer.model(writer.conv(image, 20, (3, 3)))
        graph = graph_from_tflite_bytes(data)
        (layer,) = graph.operations
        assert isinstance(layer, Conv2d) and narrowest_bits(layer.weights) == bits
        program = compile_graph(graph, PRESETS["flex16"])
        assert modes(program) == {bits}
        check(program, (data, values))
