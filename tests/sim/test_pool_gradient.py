"""The gradient of max pooling, made of VECTOR instructions, against PyTorch's autograd."""

import numpy as np
import pytest

from sim.programs import encode, serialized
from weft_hw import PRESETS
from weft_hw.instructions import (
    Head,
    Instruction,
    Load,
    Memory,
    OperandSource,
    Store,
    Tail,
    Vector,
)

TINY = PRESETS["tiny"]
COLUMNS = TINY.columns
IMAGE, GRADIENT, NUMBERS, RESULT = 0, 256, 512, 1024  # activation scratchpad


def pool_gradient(size: int, kernel: int, stride: int, padding: int, out: int) -> list[Instruction]:
    """Image and gradient of the output in the activation scratchpad; that of the image there too.

    For each window element, SELECT passes the gradient where that element is the first maximum,
    and a second instruction adds it to the accumulators of the padded image.
    """
    pitch, padded = COLUMNS, size + 2 * padding
    sums, passed = 0, padded * padded
    outputs = (1, 1, out, out)
    out_strides = (0, 0, out * pitch, pitch)
    program: list[Instruction] = [
        Vector(
            counts=(*outputs, kernel, kernel),
            head=Head.INDEX_OF_MAXIMUM,
            a_source=OperandSource.ACTIVATION,
            a_address=IMAGE - padding * (size + 1) * pitch,
            a_strides=(0, 0, stride * size * pitch, stride * pitch, size * pitch, pitch),
            bounded=1,
            y_origin=-padding,
            y_extent=size,
            y_steps=(0, 0, stride, 0, 1, 0),
            x_origin=-padding,
            x_extent=size,
            x_steps=(0, 0, 0, stride, 0, 1),
            address=NUMBERS,
            strides=out_strides,
        ),
        Vector(  # zeros
            counts=(1, 1, 1, padded * padded, 1, 1),
            clamp_low=0,
            clamp_high=0,
            destination=Memory.ACCUMULATOR,
            strides=(0, 0, 0, 1),
        ),
    ]
    for number in range(kernel * kernel):
        y, x = divmod(number, kernel)
        place = {
            "address": sums + y * padded + x,
            "strides": (0, 0, stride * padded, stride),
        }
        program += [
            Vector(
                counts=(*outputs, 1, 1),
                a_source=OperandSource.ACTIVATION,
                a_address=GRADIENT,
                a_strides=(*out_strides, 0, 0),
                tail=Tail.SELECT,
                b_source=OperandSource.ACTIVATION,
                b_address=NUMBERS,
                b_strides=(*out_strides, 0, 0),
                select_low=number - 1,
                select_high=number + 1,
                destination=Memory.ACCUMULATOR,
                address=passed,
                strides=(0, 0, out, 1),
            ),
            Vector(
                counts=(*outputs, 1, 1),
                a_address=passed,
                a_strides=(0, 0, out, 1, 0, 0),
                tail=Tail.ADD,
                b_source=OperandSource.ACCUMULATOR,
                b_address=place["address"],
                b_strides=(*place["strides"], 0, 0),
                destination=Memory.ACCUMULATOR,
                **place,
            ),
        ]
    program.append(
        Vector(
            counts=(1, 1, size, size, 1, 1),
            a_address=sums + padding * (padded + 1),
            a_strides=(0, 0, padded, 1, 0, 0),
            address=RESULT,
            strides=(0, 0, size * pitch, pitch),
        )
    )
    return program


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(6, 2, 2, 0), (5, 3, 2, 1), (4, 3, 1, 1), (4, 3, 1, 0)],
)
def test_gradient_of_max_pooling(size, kernel, stride, padding, open_engine, rng):
    torch = pytest.importorskip("torch")
    image = rng.integers(-2, 2, (size, size, COLUMNS))  # four values: ties everywhere
    image[..., 0] = -128  # the least value: padding must not win
    pool = torch.nn.MaxPool2d(kernel, stride, padding)
    tensor = torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float64, requires_grad=True)
    pooled = pool(tensor)
    out = pooled.shape[2]
    gradient = rng.integers(-12, 13, (out, out, COLUMNS))
    pooled.backward(torch.tensor(gradient.transpose(2, 0, 1)[None], dtype=torch.float64))
    expected = tensor.grad.numpy()[0].transpose(1, 2, 0)

    program = serialized(
        [
            Load(run_bytes=image.size, address=IMAGE, extent=1),
            Load(run_bytes=gradient.size, dram_address=256, address=GRADIENT, extent=1),
            *pool_gradient(size, kernel, stride, padding, out),
            Store(run_bytes=image.size, dram_address=512, address=RESULT, extent=1),
        ]
    )
    device = open_engine(TINY, 8192)
    device.write_memory(0, image.astype(np.int8).tobytes())
    device.write_memory(256, gradient.astype(np.int8).tobytes())
    device.write_memory(1024, encode(program))
    device.run(1024)
    found = device.read_memory(512, image.size).view(np.int8).reshape(image.shape)
    assert np.array_equal(found, expected)
    assert np.abs(expected).max() < 128 and np.count_nonzero(expected) > out
