"""`weft bench gemm`, `conv`, `depthwise`: right results, figures, and that an error is noticed."""

import dataclasses
import json

import numpy as np
import pytest

from weft.benchmarks.convolution import bench_convolution
from weft.benchmarks.convolution_gradients import bench_gradients
from weft.benchmarks.depthwise import bench_depthwise
from weft.benchmarks.gemm import bench_gemm, kinds_of
from weft.benchmarks.gradient_schedule import GradientSizes
from weft.benchmarks.product import Addresses, Product, ProductKind
from weft.benchmarks.product_schedule import product_program
from weft.cli import main
from weft.errors import InputError
from weft_hw import AcceleratorConfig
from weft_hw.config import PRESETS
from weft_hw.instructions import Matrix, Store, decode_stream
from weft_sim.functional import FunctionalDevice

WIDE = dataclasses.replace(
    PRESETS["tiny"], name="wide", rows=4, columns=8, vector_lanes=8, weight_bytes=2048
)
TALL = dataclasses.replace(
    PRESETS["tiny"], name="tall", rows=8, columns=4, vector_lanes=4, activation_bytes=4096
)
FLEXIBLE = dataclasses.replace(PRESETS["tiny"], name="flexible", weight_modes=(8, 4, 2))
CONFIGS = [PRESETS["tiny"], PRESETS["base16"], PRESETS["edge8"], WIDE, TALL]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(6))
def test_random_products_are_exact(config: AcceleratorConfig, seed: int) -> None:
    rng = np.random.default_rng(seed)
    largest = 60 if config.weight_bytes <= 2048 else 600  # both need several tiles of each kind
    longest = min(largest, (1, 8, 20, 60, 100, 200)[seed] * config.rows // 4)
    rows, depth, width = (int(size) for size in rng.integers(1, longest + 1, 3))
    repeat = int(rng.integers(1, 4))
    shape = rows, depth, width
    kinds = kinds_of(config, "all")
    results = bench_gemm(config, shape, engine="functional", products=kinds, repeat=repeat)
    square = config.rows == config.columns
    assert [result["product"] for result in results] == (
        ["Y", "dX", "dW"] if square else ["Y", "dW"]
    )
    for result in results:
        assert result["macs"] == rows * depth * width * repeat
        assert result["cycles"] is result["utilization"] is result["stalls"] is None


@pytest.mark.parametrize("config", [PRESETS["tiny"], WIDE, TALL], ids=lambda config: config.name)
def test_long_reductions_of_weight_gradients_come_in_pieces(config: AcceleratorConfig) -> None:
    product = Product(config, ProductKind.DW, (1500, 9, 17))
    code = product_program(product, [Addresses(0, 1 << 16, 1 << 20, 1 << 21)])
    pieces = [entry for _, entry in decode_stream(code) if isinstance(entry, Matrix)]
    assert len({piece.accumulate for piece in pieces}) == 2
    bench_gemm(config, product.shape, engine="functional", products=[ProductKind.DW])


@pytest.mark.parametrize("weight_bits", [8, 4, 2])
@pytest.mark.parametrize("config", [FLEXIBLE, PRESETS["flex16"]], ids=lambda config: config.name)
def test_narrow_weights_are_exact(
    config: AcceleratorConfig, weight_bits: int, rng: np.random.Generator
) -> None:
    for _ in range(3):
        shape = tuple(int(size) for size in rng.integers(1, 4 * config.rows, 3))
        bench_gemm(config, shape, engine="functional", repeat=2, weight_bits=weight_bits)
    # Channels that fill whole left rows of this mode, of wider ones only, or of none.
    for channels in (3, config.rows, 3 * config.rows, 4 * config.rows, 8 * config.rows):
        kernel, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        bench_convolution(
            config,
            (6, 5, channels, 9),
            kernel,
            engine="functional",
            stride=stride,
            weight_bits=weight_bits,
        )


@pytest.mark.rtl
def test_narrow_weights_take_fewer_cycles() -> None:
    """Of the array: the bus of so small a machine cannot keep up."""
    busy = {}
    for bits in (8, 4, 2):
        results = [
            *bench_gemm(FLEXIBLE, (64, 64, 8), engine="rtl", weight_bits=bits, latency=1),
            *bench_convolution(
                FLEXIBLE, (6, 6, 16, 8), 3, engine="rtl", weight_bits=bits, latency=1
            ),
        ]
        busy[bits] = [result["stalls"]["matrix"]["busy"] for result in results]
    for number, macs in enumerate((64 * 64 * 8, 36 * 9 * 16 * 8)):
        for bits in (8, 4, 2):
            assert busy[bits][number] >= macs / (16 * 8 / bits)
        assert busy[4][number] < 0.65 * busy[8][number]
        assert busy[2][number] < 0.65 * busy[4][number]


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("shape", "repeat"), [((1, 1, 1), 1), ((5, 9, 6), 3), ((16, 4, 8), 2), ((37, 30, 21), 1)]
)
def test_rtl_products_are_exact_and_counted(shape: tuple[int, int, int], repeat: int) -> None:
    config = PRESETS["tiny"]
    kinds = list(ProductKind)
    results = bench_gemm(config, shape, engine="rtl", products=kinds, repeat=repeat, latency=7)
    for result in results:
        assert 0 < result["utilization"] <= 1
        assert result["utilization"] == result["macs"] / (16 * result["cycles"])
        for engine in ("load", "matrix", "vector", "store"):
            assert 0 < result["stalls"][engine]["busy"] <= result["cycles"]
    slower = bench_gemm(config, shape, engine="rtl", products=kinds, repeat=repeat, latency=60)
    for result, other in zip(results, slower, strict=True):
        assert other["cycles"] > result["cycles"]


@pytest.mark.rtl
@pytest.mark.parametrize("kind", ProductKind)
def test_engines_work_at_the_same_time(kind: ProductKind) -> None:
    """Together they are busy for much longer than the program takes."""
    config = PRESETS["tiny"]
    (result,) = bench_gemm(config, (96, 96, 96), engine="rtl", products=[kind], latency=7)
    busy = {engine: stalls["busy"] for engine, stalls in result["stalls"].items()}
    assert all(cycles < result["cycles"] for cycles in busy.values())
    assert sum(busy.values()) > 1.3 * result["cycles"]


@pytest.mark.parametrize("kind", [ProductKind.Y, ProductKind.DX])
@pytest.mark.parametrize("shape", [(64, 64, 64), (64, 512, 512)])
def test_every_array_pass_of_a_product_runs_once(
    kind: ProductKind, shape: tuple[int, int, int]
) -> None:
    config = PRESETS["base16"]
    product = Product(config, kind, shape)
    code = product_program(product, [Addresses(0, 1 << 16, 1 << 20, 1 << 21)])
    instructions = [instruction for _, instruction in decode_stream(code)]
    passes = sum(int(np.prod(entry.counts)) for entry in instructions if isinstance(entry, Matrix))
    assert passes == product.rows * product.depth_tiles * product.width_tiles
    stored = sum(
        int(np.prod(entry.counts)) * entry.run_bytes
        for entry in instructions
        if isinstance(entry, Store)
    )
    assert stored == product.result_bytes


def test_a_wrong_element_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = FunctionalDevice.read_memory

    def flawed(self: FunctionalDevice, address: int, size: int) -> np.ndarray:
        image = read(self, address, size)
        image[-1] ^= 1
        return image

    monkeypatch.setattr(FunctionalDevice, "read_memory", flawed)
    with pytest.raises(RuntimeError, match="1 of 16 elements"):
        bench_gemm(PRESETS["tiny"], (4, 4, 4), engine="functional")
    with pytest.raises(RuntimeError, match="1 of 100 elements"):
        bench_convolution(PRESETS["tiny"], (5, 5, 4, 4), 3, engine="functional")


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_exact(kernel: int, stride: int) -> None:
    for config in (PRESETS["tiny"], PRESETS["base16"]):
        shape = (7, 6, 5, 9)
        (result,) = bench_convolution(config, shape, kernel, engine="functional", stride=stride)
        assert result["macs"] > 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_random_gradients_of_convolutions_are_exact(
    config: AcceleratorConfig, rng: np.random.Generator
) -> None:
    kinds = kinds_of(config, "all")
    measured: set[str] = set()
    for _ in range(12):
        height, width, channels, filters = (int(size) for size in rng.integers(1, 9, 4))
        sizes = GradientSizes(
            config,
            (height, width, channels, filters),
            kernel=int(rng.integers(1, 6)),
            stride=int(rng.integers(1, 4)),
        )
        results, left_out = bench_gradients(sizes, kinds, engine="functional", required=False)
        measured |= {result["product"] for result in results}
        assert len(results) + len(left_out) == len(kinds) - 1
    one = GradientSizes(config, (1, 1, 1, 1), kernel=1, stride=1)
    assert bench_gradients(one, kinds, engine="functional", required=True)[1] == {}
    assert measured


@pytest.mark.rtl
def test_conv_command_on_rtl(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench conv --config tiny --shape 5 5 4 4 --kernel 3 --latency 9 --json"
    assert main(words.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert [result["product"] for result in report["results"]] == ["Y", "dX", "dW"]
    for result in report["results"]:
        assert result["macs"] == 25 * 9 * 16
        assert 0 < result["utilization"] < 1
    assert report["left_out"] == {}


def test_a_gradient_that_is_not_measured_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench conv --config tiny --shape 5 5 4 4 --stride 2 --engine functional"
    assert main(words.split()) == 0
    assert "dX is left out: dX is measured at stride 1, not 2" in capsys.readouterr().out
    assert main([*words.split(), "--product", "dX"]) == 1
    assert "dX is measured at stride 1" in capsys.readouterr().err
    words = "bench conv --config tiny --shape 40 40 4 4 --engine functional --product dW"
    assert main(words.split()) == 1
    assert "X takes 6400 bytes of activations, of which there are 1536" in capsys.readouterr().err


def test_gemm_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench gemm --config tiny --shape 5 6 7 --repeat 2 --engine functional --json"
    assert main(words.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["shape"] == [5, 6, 7]
    assert [entry["product"] for entry in report["results"]] == ["Y", "dX", "dW"]
    assert [entry["macs"] for entry in report["results"]] == [2 * 5 * 6 * 7] * 3
    assert main([*words.split(), "--product", "dW"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["product"] == "dW"


def test_a_data_gradient_needs_a_square_array() -> None:
    with pytest.raises(InputError, match="square array; wide has 4 rows and 8 columns"):
        kinds_of(WIDE, "dX")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "bench gemm --weight-bits 4 --engine functional",
            "weights of 4 bits are not a mode of base16",
        ),
        (
            "bench gemm --config flex16 --weight-bits 4 --product dX --engine functional",
            "dX has operands of 8 bits",
        ),
        ("bench gemm --product dZ --engine functional", "must be Y, dX, dW or all, not 'dZ'"),
        ("bench gemm --engine fpga", "is not an engine"),
        ("bench gemm --shape 0 4 4 --engine functional", "must be positive"),
        ("bench conv --shape 4 4 0 4 --engine functional", "must be positive"),
        ("bench gemm --config tin --engine functional", "tiny"),
    ],
)
def test_mistakes_are_named(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 1
    assert message in capsys.readouterr().err


def test_operands_beyond_the_address_space_are_refused() -> None:
    small = dataclasses.replace(PRESETS["tiny"], name="small", address_width=16)
    with pytest.raises(InputError, match="address"):
        bench_gemm(small, (300, 300, 300), engine="functional")


# Depthwise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_random_depthwise_layers_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = (PRESETS["base16"], PRESETS["edge8"])[seed % 2]
    shape = tuple(int(size) for size in rng.integers(1, 14, 3)) if seed else (1, 1, 1)
    stride, filters = int(rng.integers(1, 3)), int(rng.integers(1, 40))
    results = bench_depthwise(
        config, shape, engine="functional", stride=stride, filters=filters, seed=seed
    )
    assert [entry["product"] for entry in results] == ["depthwise", "pointwise", "both"]
    pixels = ((shape[0] - 1) // stride + 1) * ((shape[1] - 1) // stride + 1)
    macs = [entry["macs"] for entry in results]
    assert macs[:2] == [pixels * shape[2] * 9, pixels * shape[2] * filters]
    assert macs[2] == macs[0] + macs[1]


@pytest.mark.rtl
def test_rtl_depthwise_layers_overlap() -> None:
    config = dataclasses.replace(
        PRESETS["tiny"], name="taps_3", depthwise_taps=3, activation_bytes=4096
    )
    results = bench_depthwise(config, (9, 12, 4), engine="rtl", filters=8, latency=7)
    assert results[2]["cycles"] < results[0]["cycles"] + results[1]["cycles"]
    assert results[2]["over_longer"] == results[2]["cycles"] / max(
        entry["cycles"] for entry in results[:2]
    )
    # One product a lane and cycle could not be as fast.
    assert results[0]["macs"] > config.columns * results[0]["cycles"]


def test_depthwise_layers_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"bytes of images are more than the 2048 of tiny"):
        bench_depthwise(PRESETS["tiny"], (24, 24, 64), engine="functional")
    with pytest.raises(InputError, match="stride 1 or 2"):
        bench_depthwise(PRESETS["tiny"], (4, 4, 4), engine="functional", stride=3)


def test_a_wrong_element_of_a_depthwise_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = FunctionalDevice.read_memory

    def spoiled(device: FunctionalDevice, address: int, length: int) -> np.ndarray:
        data = read(device, address, length).copy()
        data[length // 2] ^= 1
        return data

    monkeypatch.setattr(FunctionalDevice, "read_memory", spoiled)
    with pytest.raises(RuntimeError, match="depthwise: 1 of 64 elements are wrong"):
        bench_depthwise(PRESETS["tiny"], (4, 4, 4), engine="functional")
