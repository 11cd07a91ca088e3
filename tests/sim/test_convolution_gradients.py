"""Gradients of convolutions of any stride, padding and dilation, against PyTorch's autograd."""

import dataclasses

import numpy as np
import pytest

from sim.convolution_gradients import (
    GRADIENT,
    MEMORY_BYTES,
    PROGRAM,
    RESULT,
    WEIGHTS,
    Case,
    X,
    data_gradient_gather,
    data_gradient_scatter,
    weight_gradient,
    weights_image,
)
from sim.programs import encode, serialized
from weft_hw import PRESETS
from weft_sim.device import Device

torch = pytest.importorskip("torch")

ROOMY = dataclasses.replace(
    PRESETS["tiny"],
    name="roomy",
    activation_bytes=4096,
    weight_bytes=4096,
    accumulator_rows=128,
)
WATCHDOG = 20_000


def autograd(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """dX (H, W, C) and dW (taps, C, K); float64 is exact for such sums, below 2**53."""
    source = torch.tensor(x.transpose(2, 0, 1)[None], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor(w.transpose(3, 2, 0, 1), dtype=torch.float64, requires_grad=True)
    result = torch.nn.functional.conv2d(
        source, weights, stride=case.stride, padding=case.padding, dilation=case.dilation
    )
    assert tuple(result.shape[2:]) == case.result
    result.backward(torch.tensor(dy.transpose(2, 0, 1)[None], dtype=torch.float64))
    return (
        source.grad[0].numpy().transpose(1, 2, 0),
        weights.grad.numpy().transpose(2, 3, 1, 0),
    )


def wrapped(values: np.ndarray) -> np.ndarray:
    """Modulo 2**32, as accumulators are."""
    return values.astype(np.int64).astype(np.int32)


def check(device: Device, case: Case, rng: np.random.Generator) -> None:
    operands = case.operands(rng)
    data_gradient, filter_gradient = autograd(case, operands["x"], operands["w"], operands["dy"])
    device.write_memory(X, operands["x"])
    device.write_memory(WEIGHTS, weights_image(case, operands["w"]))
    device.write_memory(GRADIENT, operands["dy"])

    def run(instructions, shape: tuple[int, ...]) -> np.ndarray:
        device.write_memory(RESULT, bytes([0xA5]) * 4 * int(np.prod(shape)))
        device.write_memory(PROGRAM, encode(serialized(instructions)))
        device.run(PROGRAM, watchdog=WATCHDOG)
        return device.read_memory(RESULT, 4 * int(np.prod(shape))).view("<i4").reshape(shape)

    side = case.side
    pixels = (case.inputs, *case.size, side)  # channel tiles are outermost in the accumulators
    expected = wrapped(data_gradient).reshape(*case.size, case.inputs, side).transpose(2, 0, 1, 3)
    assert np.array_equal(run(data_gradient_scatter(case), pixels), expected), case
    if case.stride == (1, 1):
        assert np.array_equal(run(data_gradient_gather(case), pixels), expected), case
    found = run(weight_gradient(case), (*case.kernel, case.inputs, case.outputs, side, side))
    assert np.array_equal(found, weights_image(case, wrapped(filter_gradient))), case


EDGES = {
    "one pixel": Case(ROOMY, (1, 1), 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    "all taps but one in the padding": Case(ROOMY, (1, 1), 2, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "first tap never exists": Case(ROOMY, (2, 2), 1, 2, (4, 4), (1, 1), (3, 3), (5, 5)),
    "stride beyond the kernel": Case(ROOMY, (7, 7), 1, 1, (1, 2), (3, 3), (1, 1), (0, 0)),
    "dilation and stride": Case(ROOMY, (7, 5), 1, 1, (3, 2), (2, 3), (2, 3), (2, 1)),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, open_engine, rng: np.random.Generator) -> None:
    check(open_engine(ROOMY, MEMORY_BYTES), EDGES[name], rng)


def test_random_convolutions(open_engine, engine: str, rng: np.random.Generator) -> None:
    device = open_engine(ROOMY, MEMORY_BYTES, stall_probability=0.1)
    for _ in range(4 if engine == "rtl" else 60):
        check(device, Case.random(ROOMY, rng), rng)


def test_random_convolutions_of_stride_1(open_engine, engine: str, rng: np.random.Generator):
    device = open_engine(ROOMY, MEMORY_BYTES)
    for _ in range(2 if engine == "rtl" else 30):
        case = dataclasses.replace(Case.random(ROOMY, rng), stride=(1, 1))
        if case.fits and min(case.result) >= 1:
            check(device, case, rng)


@pytest.mark.parametrize("preset", ["edge8", "base16"])
def test_larger_arrays(preset: str, rng: np.random.Generator) -> None:
    from weft_sim.functional import FunctionalDevice

    device = FunctionalDevice(PRESETS[preset], memory_bytes=MEMORY_BYTES)
    for _ in range(6):
        check(device, Case.random(PRESETS[preset], rng), rng)
