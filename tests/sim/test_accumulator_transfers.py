"""Accumulators by way of DRAM: spilled sums, and a momentum kept in 16 bits; on every engine."""

import numpy as np
import pytest

from sim.programs import encode, serialized
from weft_hw import PRESETS
from weft_hw.instructions import (
    Element,
    Instruction,
    Load,
    Matrix,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Store,
    Tail,
    Vector,
)
from weft_sim.device import Device

TINY = PRESETS["tiny"]
ROWS, COLUMNS = TINY.rows, TINY.columns
PROGRAM, WATCHDOG = 0x4000, 2000
LEFT, WEIGHTS, SPILL, DIRECT, AGAIN = 0x0, 0x400, 0x1000, 0x2000, 0x3000
PIXELS, PASSES = 13, 5  # activation rows; array passes of the reduction


def _matrix() -> list[Instruction]:
    """Sums of random products in rows 3 to 15 of the accumulators."""
    return [
        Load(dram_address=LEFT, run_bytes=PIXELS * PASSES * ROWS, extent=1),
        Load(
            dram_address=WEIGHTS,
            run_bytes=PASSES * ROWS * COLUMNS,
            memory=Memory.WEIGHT,
            extent=1,
        ),
        Matrix(
            left_zero_point=-128,
            counts=(1, 1, 1, PASSES, 1, 1, PIXELS),
            left_strides=(0, 0, 0, ROWS, 0, 0, PASSES * ROWS),
            top_strides=(0, 0, 0, ROWS * COLUMNS, 0, 0, 0),
            tile_stride=COLUMNS,
            accumulator_address=3,
            accumulator_strides=(0, 0, 0, 0, 0, 0, 1),
        ),
    ]


def _scaled(row: int, target: int) -> list[Instruction]:
    """The int8 results of the sums from that row on, stored."""
    return [
        Vector(
            counts=(1, 1, 1, PIXELS, 1, 1),
            a_address=row,
            a_strides=(0, 0, 0, 1, 0, 0),
            scale_source=ScaleSource.INSTRUCTION,
            multiplier=1_700_000_001,
            exponent=-9,
            rounding=Rounding.STOCHASTIC,
            index_strides=(0, 0, 0, COLUMNS),
            zero_point=-3,
            clamp_low=-128,
            clamp_high=127,
            address=1024,
            strides=(0, 0, 0, COLUMNS),
        ),
        Store(dram_address=target, run_bytes=PIXELS * COLUMNS, address=1024, extent=1),
    ]


def _run(device: Device, instructions: list[Instruction]) -> None:
    device.write_memory(PROGRAM, encode(serialized(instructions)))
    device.run(PROGRAM, watchdog=WATCHDOG, random_seed=11, random_step=3)


@pytest.mark.parametrize("offset", [0, 4, 12])
def test_spilled_sums_give_the_same_bits(offset: int, open_engine, rng: np.random.Generator):
    device: Device = open_engine(TINY, 0x8000, stall_probability=0.2, seed=offset)
    left = rng.integers(-128, 128, (PIXELS, PASSES * ROWS)).astype(np.int8)
    weights = rng.integers(-128, 128, (PASSES * ROWS, COLUMNS)).astype(np.int8)
    device.write_memory(LEFT, left)
    device.write_memory(WEIGHTS, weights)
    size = 4 * PIXELS * COLUMNS
    rows: dict[str, object] = {"memory": Memory.ACCUMULATOR, "element": Element.INT32, "extent": 1}
    spilled: list[Instruction] = [
        Store(dram_address=SPILL + offset, address=3, run_bytes=size, **rows),
        # Rows 40 and on: the other bank. Fresh values in the rows that are not to be used again.
        Load(dram_address=LEFT, address=3, run_bytes=64, memory=Memory.ACCUMULATOR, extent=1),
        Load(dram_address=SPILL + offset, address=40, run_bytes=size, **rows),
    ]
    _run(device, [*_matrix(), *_scaled(3, DIRECT), *spilled, *_scaled(40, AGAIN)])
    sums = (left.astype(int) + 128) @ weights.astype(int)
    found = device.read_memory(SPILL + offset, size).view("<i4").reshape(PIXELS, COLUMNS)
    assert np.array_equal(found, sums)
    direct = device.read_memory(DIRECT, PIXELS * COLUMNS)
    assert np.array_equal(direct, device.read_memory(AGAIN, PIXELS * COLUMNS))
    assert len(set(direct.tolist())) > 20  # so this is a test


def _half_up(value: np.ndarray, shift: int) -> np.ndarray:
    return (value + (1 << (shift - 1))) >> shift


def test_a_momentum_of_16_bits(open_engine, rng: np.random.Generator):
    """m = 7/8 m + 16 g; w = w - m / 256: both in int16 in DRAM, from step to step."""
    device: Device = open_engine(TINY, 0x8000, latency=7)
    vectors = 11
    count = vectors * COLUMNS
    momentum = rng.integers(-(1 << 15), 1 << 15, count).astype("<i2")
    momentum[:4] = (32767, -32768, 32767, -32768)  # some saturate
    weights = rng.integers(-(1 << 15), 1 << 15, count).astype("<i2")
    weights[4:6] = (32767, -32768)
    device.write_memory(SPILL, momentum)
    device.write_memory(WEIGHTS, weights)

    def moved(kind, address: int, row: int) -> Instruction:
        return kind(
            dram_address=address,
            address=row,
            run_bytes=2 * count,
            memory=Memory.ACCUMULATOR,
            element=Element.INT16,
            extent=1,
        )

    def combined(a: int, exponent: int, b: int, target: int) -> Instruction:
        """Row by row: round(a * 7 / 8 * 2**exponent) + b."""
        return Vector(
            counts=(1, 1, 1, vectors, 1, 1),
            a_address=a,
            a_strides=(0, 0, 0, 1, 0, 0),
            scale_source=ScaleSource.INSTRUCTION,
            multiplier=7 << 28,
            exponent=exponent,
            rounding=Rounding.HALF_UP,
            tail=Tail.ADD,
            b_source=OperandSource.ACCUMULATOR,
            b_address=b,
            b_strides=(0, 0, 0, 1, 0, 0),
            destination=Memory.ACCUMULATOR,
            address=target,
            strides=(0, 0, 0, 1),
        )

    # Rows: 0 momentum, 16 weights, 32 gradient (of int8), 48 results.
    step = [
        moved(Load, SPILL, 0),
        moved(Load, WEIGHTS, 16),
        Load(dram_address=LEFT, address=32, run_bytes=count, memory=Memory.ACCUMULATOR, extent=1),
        Vector(
            counts=(1, 1, 1, vectors, 1, 1),
            a_address=32,
            a_strides=(0, 0, 0, 1, 0, 0),
            pre_shift=4,
            destination=Memory.ACCUMULATOR,
            address=32,
            strides=(0, 0, 0, 1),
        ),
        combined(0, 0, 32, 48),
        moved(Store, SPILL, 48),
        moved(Load, SPILL, 0),  # the narrowed momentum is what is used, now and later
        combined(0, -8, 16, 48),
        moved(Store, WEIGHTS, 48),
    ]
    expected_m, expected_w = momentum.astype(np.int64), weights.astype(np.int64)
    saturated = 0
    for _ in range(4):
        gradient = rng.integers(-128, 128, count).astype(np.int8)
        device.write_memory(LEFT, gradient)
        _run(device, step)
        wide = _half_up(expected_m * 7, 3) + 16 * gradient.astype(np.int64)
        expected_m = np.clip(wide, -(1 << 15), (1 << 15) - 1)
        wide_w = _half_up(expected_m * 7, 11) + expected_w
        expected_w = np.clip(wide_w, -(1 << 15), (1 << 15) - 1)
        saturated += int(
            np.count_nonzero(wide != expected_m) + np.count_nonzero(wide_w != expected_w)
        )
        found = device.read_memory(SPILL, 2 * count).view("<i2")
        assert np.array_equal(found, expected_m)
        assert np.array_equal(device.read_memory(WEIGHTS, 2 * count).view("<i2"), expected_w)
    assert saturated  # so this tests saturation
