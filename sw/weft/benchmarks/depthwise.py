"""Depthwise convolutions on the machine, checked against NumPy: `weft bench depthwise`."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.benchmarks.blocks import MULTIPLIER
from weft.benchmarks.depthwise_schedule import (
    KERNEL,
    SOURCE_ZERO,
    SUMS_ZERO,
    Layers,
    Places,
    depthwise_program,
)
from weft.benchmarks.gemm import PAGE, measurement
from weft.errors import InputError
from weft_hw import AcceleratorConfig
from weft_sim.device import open_device

__all__ = ["bench_depthwise"]

Image = NDArray[np.int8]


def bench_depthwise(
    config: AcceleratorConfig,
    shape: tuple[int, int, int],
    *,
    engine: str,
    stride: int = 1,
    filters: int = 0,
    seed: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """Run a depthwise 3x3 convolution padded by 1, and compare every element.

    With ``filters``, a 1x1 convolution follows; each is run alone as well, so that their overlap
    shows. Input and output are int8 and lie in DRAM before and after; sums plus a bias are scaled
    by a power of two and rounded half to even.

    Parameters
    ----------
    config : AcceleratorConfig
    shape : (H, W, C)
        Of the input.
    engine : {"rtl", "functional"}
    stride : int
        1 or 2.
    filters : int
        Outputs of the 1x1 convolution; 0 for none.
    seed : int
        Of the operands.
    **options
        Of the engine, see :func:`weft_sim.device.open_device`.

    Returns
    -------
    list of dict
        :func:`weft.benchmarks.gemm.measurement` of ``depthwise``, and with ``filters`` of
        ``pointwise`` and ``both``. ``utilization`` is the share of the busier engine's products
        over all cycles from the start to the interrupt: of the vector engine's lanes times
        ``depthwise_taps``, or of the array's elements. ``both`` also has ``over_longer``: its
        cycles by those of the longer of the two alone.

    Raises
    ------
    InputError
        If a size is not positive, or images or weights do not fit on chip.
    RuntimeError
        If an element is wrong.
    """
    if min(shape) < 1 or filters < 0 or stride not in (1, 2):
        raise InputError("sizes must be positive, the stride 1 or 2")
    whole = Layers(config, *shape, stride=stride, filters=filters)
    operands = _Operands(whole, np.random.default_rng(seed))
    first = dataclasses.replace(whole, filters=0)
    results = [_run("depthwise", first, operands, engine, options)]
    if filters:
        size = whole.out_height, whole.out_width, whole.channels
        second = Layers(config, *size, filters=filters, depthwise=False)
        results.append(_run("pointwise", second, operands, engine, options))
        results.append(_run("both", whole, operands, engine, options))
        if results[-1]["cycles"]:
            longer = max(entry["cycles"] for entry in results[:-1])
            results[-1]["over_longer"] = results[-1]["cycles"] / longer
    return results


class _Operands:
    """Random operands of both layers, and what they give."""

    def __init__(self, layers: Layers, rng: np.random.Generator) -> None:
        channels, filters = layers.channels, layers.filters
        size = layers.height, layers.width, channels
        self.source: Image = rng.integers(-128, 128, size).astype(np.int8)
        self.taps: Image = rng.integers(-127, 128, (KERNEL, KERNEL, channels)).astype(np.int8)
        self.tap_bias = rng.integers(-5000, 5001, channels).astype(np.int32)
        self.tap_shift = _shift(KERNEL * KERNEL)
        self.weights: Image = rng.integers(-127, 128, (channels, filters)).astype(np.int8)
        self.bias = rng.integers(-5000, 5001, filters).astype(np.int32)
        self.shift = _shift(channels)
        self.sums = self._depthwise(layers.stride)

    def _depthwise(self, stride: int) -> Image:
        """By floating point, which is exact here: all sums are below 2^53."""
        values = np.pad(self.source.astype(np.float64) - SOURCE_ZERO, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(values, (KERNEL, KERNEL), axis=(0, 1))
        sums = np.einsum("yxcij,ijc->yxc", windows[::stride, ::stride], self.taps)
        return _scaled(sums + self.tap_bias, self.tap_shift, SUMS_ZERO)

    def pointwise(self) -> Image:
        """The second layer's output."""
        values = self.sums.astype(np.float64) - SUMS_ZERO
        return _scaled(values @ self.weights + self.bias, self.shift, 0)


def _shift(terms: int) -> int:
    """So that few results saturate and most bits matter."""
    return max(1, int(np.log2(73 * 73 * np.sqrt(terms) / 50)))


def _scaled(sums: NDArray[np.float64], shift: int, zero_point: int) -> Image:
    result: Image = np.clip(np.rint(sums / 2.0**shift) + zero_point, -128, 127).astype(np.int8)
    return result


def _padded(values: NDArray[Any], length: int) -> NDArray[Any]:
    """With zeros behind the last axis' elements."""
    widths = [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]
    return np.pad(values, widths)


def _parameter_rows(config: AcceleratorConfig, bias: NDArray[np.int32], shift: int) -> bytes:
    columns = config.columns
    multiplier = np.full(columns, MULTIPLIER, np.int32).tobytes()
    exponent = np.full(columns, 1 - shift, np.int8).tobytes()
    return b"".join(
        (row.tobytes() + multiplier + exponent).ljust(config.parameter_row_bytes, b"\0")
        for row in bias.reshape(-1, columns)
    )


def _weight_tiles(layers: Layers, weights: Image) -> bytes:
    """Array tiles of the pointwise weights: those of a column tile behind one another."""
    product, config = layers.product, layers.config
    padded = np.zeros((layers.pitch, product.result_pitch), np.int8)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    tiles = padded.reshape(product.depth_tiles, config.rows, product.width_tiles, -1)
    return tiles.transpose(2, 0, 1, 3).tobytes()


def _run(
    name: str, layers: Layers, operands: _Operands, engine: str, options: dict[str, Any]
) -> dict[str, Any]:
    """One program: its operands into DRAM, the run, every element compared."""
    config = layers.config
    source = operands.source if layers.depthwise else operands.sums
    expected = operands.pointwise() if layers.filters else operands.sums
    parameters = b""
    if layers.depthwise:
        bias = _padded(operands.tap_bias, layers.pitch)
        parameters += _parameter_rows(config, bias, operands.tap_shift)
    if layers.filters:
        bias = _padded(operands.bias, layers.out_pitch)
        parameters += _parameter_rows(config, bias, operands.shift)
    images = {
        "source": _padded(source, layers.pitch).tobytes(),
        "taps": _padded(operands.taps, layers.pitch).tobytes(),
        "weights": _weight_tiles(layers, operands.weights) if layers.filters else b"",
        "parameters": parameters,
        "result": bytes(layers.result_bytes),
    }
    starts, end = {}, 0
    for what, content in images.items():
        starts[what] = end
        end += -(-len(content) // PAGE) * PAGE
    program = depthwise_program(layers, Places(**starts))
    memory_bytes = -(-(end + len(program)) // PAGE) * PAGE
    device = open_device(engine, config, memory_bytes=memory_bytes, **options)
    try:
        for what, content in images.items():
            device.write_memory(starts[what], content)
        device.write_memory(end, program)
        result = device.run(end)
        image = device.read_memory(starts["result"], layers.result_bytes).view(np.int8)
    finally:
        device.close()
    got = image.reshape(layers.out_height, layers.out_width, -1)[..., : expected.shape[-1]]
    wrong = int(np.count_nonzero(got != expected))
    if wrong:
        raise RuntimeError(f"{name}: {wrong} of {got.size} elements are wrong")
    macs = layers.depthwise_macs + layers.pointwise_macs
    entry = measurement(name, config, macs, result)
    if result.cycles:
        shares = (
            layers.depthwise_macs / (config.columns * config.depthwise_taps),
            layers.pointwise_macs / (config.rows * config.columns),
        )
        entry["utilization"] = max(shares) / result.cycles
    return entry
