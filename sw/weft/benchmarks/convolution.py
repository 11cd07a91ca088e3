"""One compiled convolution on the machine, checked against NumPy: `weft bench conv`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.benchmarks.gemm import measurement
from weft.compiler import compile_graph
from weft.compiler.weights import check_weight_bits, weight_range
from weft.errors import InputError
from weft.ir import Conv2d, Graph, Tensor
from weft.session import Session
from weft_hw import AcceleratorConfig
from weft_sim.device import RunResult

__all__ = ["bench_convolution"]

SOURCE_ZERO, RESULT_ZERO = -5, 3


def bench_convolution(
    config: AcceleratorConfig,
    shape: tuple[int, int, int, int],
    kernel: int,
    *,
    engine: str,
    stride: int = 1,
    weight_bits: int = 8,
    seed: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """Compile and run one convolution, padded by half its kernel, and compare every element.

    Input and output are int8 and lie in DRAM before and after; the sum plus a bias is scaled by a
    power of two and rounded half to even.

    Parameters
    ----------
    config : AcceleratorConfig
    shape : (H, W, C, K)
        Height, width and channels of the input, channels of the output.
    kernel : int
        Side of the kernel.
    engine : {"rtl", "functional"}
    stride : int
    weight_bits : int
        Width of the weights; see :func:`weft.compiler.weights.check_weight_bits`.
    seed : int
        Of input and weights.
    **options
        Of the engine, see :func:`weft_sim.device.open_device`.

    Returns
    -------
    list of dict
        One :func:`weft.benchmarks.gemm.measurement`, of the product ``Y``.

    Raises
    ------
    InputError
        If a size is not positive or the machine does not have the weights' width.
    RuntimeError
        If an element is wrong.
    """
    if min(*shape, kernel, stride) < 1:
        raise InputError("sizes, kernel and stride must be positive")
    check_weight_bits(config, weight_bits)
    low, high = weight_range(weight_bits)
    height, width, channels, filters = shape
    rng = np.random.default_rng(seed)
    image = rng.integers(-128, 128, (height, width, channels)).astype(np.int8)
    weights = rng.integers(
        low + (weight_bits == 8), high + 1, (filters, kernel, kernel, channels)
    ).astype(np.int8)
    bias = rng.integers(-5000, 5001, filters).astype(np.int32)
    deviation = 73 * 2.0 ** (weight_bits - 8)  # of uniform values of that width
    shift = max(1, int(np.log2(73 * deviation * np.sqrt(kernel * kernel * channels) / 50)))
    expected = _reference(image, weights, bias, shift, stride)
    graph = Graph(
        name="convolution",
        tensors=(
            Tensor(name="input", shape=image.shape, scale=1.0, zero_point=SOURCE_ZERO),
            Tensor(name="output", shape=expected.shape, scale=1.0, zero_point=RESULT_ZERO),
        ),
        inputs=("input",),
        outputs=("output",),
        operations=(
            Conv2d(
                name="convolution",
                inputs=("input",),
                output="output",
                weights=weights,
                weight_bits=weight_bits,
                weight_scales=np.full(filters, 2.0**-shift),
                bias=bias,
                stride=(stride, stride),
                padding=((kernel // 2, kernel // 2), (kernel // 2, kernel // 2)),
            ),
        ),
        layout="HWC",
    )
    program = compile_graph(graph, config)
    with Session(program, engine, **options) as session:
        result: NDArray[np.int8] = session.run(image)
        report = session.report
    wrong = int(np.count_nonzero(result != expected))
    if wrong:
        raise RuntimeError(f"{wrong} of {result.size} elements of the convolution are wrong")
    run = RunResult(report["cycles"], report["wall_s"], report["counters"])
    return [measurement("Y", config, program.macs, run, weight_bits)]


def _reference(
    image: NDArray[np.int8],
    weights: NDArray[np.int8],
    bias: NDArray[np.int32],
    shift: int,
    stride: int,
) -> NDArray[np.int8]:
    """The result by floating point, which is exact here: all sums are below 2^53."""
    filters, kernel, _, channels = weights.shape
    half = kernel // 2
    values = np.pad(image.astype(np.float64) - SOURCE_ZERO, ((half, half), (half, half), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(values, (kernel, kernel), axis=(0, 1))
    windows = windows[::stride, ::stride].transpose(0, 1, 3, 4, 2)
    columns = windows.reshape(-1, kernel * kernel * channels)
    sums = columns @ weights.reshape(filters, -1).astype(np.float64).T + bias
    scaled = np.clip(np.rint(sums / 2.0**shift) + RESULT_ZERO, -128, 127)
    result: NDArray[np.int8] = scaled.reshape(*windows.shape[:2], filters).astype(np.int8)
    return result
