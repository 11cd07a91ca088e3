"""A convolution's gradients on the machine, checked against NumPy: `weft bench conv`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.benchmarks.gemm import PAGE, measurement
from weft.benchmarks.gradient_schedule import (
    GradientSizes,
    data_gradient_program,
    weight_gradient_program,
)
from weft.benchmarks.product import ProductKind
from weft.errors import InputError
from weft_sim.device import open_device

__all__ = ["bench_gradient", "bench_gradients"]

SOURCE_ZERO = -5
Floats = NDArray[np.float64]


def bench_gradients(
    sizes: GradientSizes,
    kinds: Sequence[ProductKind],
    *,
    engine: str,
    required: bool,
    **options: Any,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """:func:`bench_gradient` of each gradient among ``kinds``, and why some are left out.

    Raises
    ------
    InputError
        If a size is not positive; and if one would be left out, but is ``required``.
    RuntimeError
        If an element is wrong.
    """
    if min(*sizes.shape, *sizes.result, sizes.kernel) < 1:
        raise InputError("sizes, kernel and stride must be positive, and the result not empty")
    results, left_out = [], {}
    for kind in kinds:
        if kind is ProductKind.Y:
            continue
        try:
            results.append(bench_gradient(sizes, kind, engine=engine, **options))
        except InputError as error:
            if required:
                raise
            left_out[kind.value] = str(error)
    return results, left_out


def bench_gradient(
    sizes: GradientSizes, kind: ProductKind, *, engine: str, seed: int = 1, **options: Any
) -> dict[str, Any]:
    """Run dX or dW of a convolution and compare every element.

    Operands and result are int8 and lie in DRAM; the result is scaled by a power of two and rounded
    half to even.

    Returns
    -------
    dict
        A :func:`weft.benchmarks.gemm.measurement`.

    Raises
    ------
    InputError
        If the schedule does not cover the convolution; the message says why.
    RuntimeError
        If an element is wrong.
    """
    config, kernel = sizes.config, sizes.kernel
    height, width, channels, filters = sizes.shape
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (height, width, channels)).astype(np.int8)
    w = rng.integers(-127, 128, (kernel, kernel, channels, filters)).astype(np.int8)
    dy = rng.integers(-128, 128, (*sizes.result, filters)).astype(np.int8)
    data = kind is ProductKind.DX
    depth = kernel * kernel * filters if data else int(np.prod(sizes.result))
    shift = max(1, int(np.log2(73 * 73 * np.sqrt(depth) / 50)))  # few results saturate

    if data:
        operands = [_channels(dy, sizes.result_pitch), _tiles(w, sizes)]
        expected, size = _data_gradient(sizes, w, dy), sizes.source_bytes
    else:
        operands = [_channels(x, sizes.source_pitch), _channels(dy, sizes.result_pitch)]
        expected, size = _weight_gradient(sizes, x, dy), sizes.weight_bytes
    second = -(-operands[0].size // PAGE) * PAGE
    result = second + -(-operands[1].size // PAGE) * PAGE
    end = result + -(-size // PAGE) * PAGE
    if data:
        program = data_gradient_program(sizes, 0, second, result, shift)
    else:
        program = weight_gradient_program(sizes, 0, second, result, shift, SOURCE_ZERO)
    memory_bytes = -(-(end + len(program)) // PAGE) * PAGE
    device = open_device(engine, config, memory_bytes=memory_bytes, **options)
    try:
        device.write_memory(0, operands[0].tobytes())
        device.write_memory(second, operands[1].tobytes())
        device.write_memory(end, program)
        run = device.run(end)
        found = device.read_memory(result, size).view(np.int8)
    finally:
        device.close()
    shape = (height, width, -1) if data else (kernel, kernel, sizes.source_pitch, -1)
    got = found.reshape(shape)[tuple(slice(n) for n in expected.shape)]
    scaled = np.clip(np.rint(expected / 2.0**shift), -128, 127)
    wrong = int(np.count_nonzero(got != scaled))
    if wrong:
        raise RuntimeError(f"{wrong} of {got.size} elements of {kind.value} are wrong")
    macs = int(np.prod(sizes.result)) * kernel * kernel * channels * filters
    return measurement(kind.value, config, macs, run)


def _channels(image: NDArray[np.int8], pitch: int) -> NDArray[np.int8]:
    """The image with zeros behind each pixel's channels."""
    padded = np.zeros((*image.shape[:2], pitch), np.int8)
    padded[:, :, : image.shape[2]] = image
    return padded


def _tiles(w: NDArray[np.int8], sizes: GradientSizes) -> NDArray[np.int8]:
    """Array tiles by output tile, tap, input tile."""
    config, taps = sizes.config, sizes.kernel**2
    padded = np.zeros((taps, sizes.source_pitch, sizes.result_pitch), np.int8)
    padded[:, : w.shape[2], : w.shape[3]] = w.reshape(taps, *w.shape[2:])
    tiles = padded.reshape(taps, sizes.inputs, config.rows, sizes.outputs, config.columns)
    return np.ascontiguousarray(tiles.transpose(3, 0, 1, 2, 4))


def _taps(sizes: GradientSizes) -> list[tuple[int, int, tuple[slice, slice]]]:
    """Each tap, and the pixels of the padded image that it meets."""
    rows, columns = sizes.result
    step = sizes.stride
    return [
        (i, j, (slice(i, i + step * rows, step), slice(j, j + step * columns, step)))
        for i in range(sizes.kernel)
        for j in range(sizes.kernel)
    ]


def _data_gradient(sizes: GradientSizes, w: NDArray[np.int8], dy: NDArray[np.int8]) -> Floats:
    """By floating point, exact here, as a scatter (the machine gathers)."""
    height, width, channels, _ = sizes.shape
    padding = sizes.padding
    # One stride more than the taps reach: slices end behind their last pixel.
    room = 2 * padding + sizes.stride
    total: Floats = np.zeros((height + room, width + room, channels))
    for i, j, place in _taps(sizes):
        total[place] += dy.astype(np.float64) @ w[i, j].astype(np.float64).T
    return total[padding : padding + height, padding : padding + width]


def _weight_gradient(sizes: GradientSizes, x: NDArray[np.int8], dy: NDArray[np.int8]) -> Floats:
    """By floating point, exact here."""
    padding, (_, _, channels, filters) = sizes.padding, sizes.shape
    room = ((padding, padding + sizes.stride),) * 2
    values = np.pad(x.astype(np.float64) - SOURCE_ZERO, (*room, (0, 0)))
    total: Floats = np.zeros((sizes.kernel, sizes.kernel, channels, filters))
    for i, j, place in _taps(sizes):
        total[i, j] = np.einsum("yxc,yxk->ck", values[place], dy.astype(np.float64), optimize=True)
    return total
