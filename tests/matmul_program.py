"""A program written by hand: matrix product, bias, requantization; its answer in plain Python."""

from dataclasses import dataclass

import numpy as np

from weft_hw import AcceleratorConfig
from weft_hw.instructions import (
    End,
    Instruction,
    Load,
    Matrix,
    Memory,
    Rounding,
    ScaleSource,
    Store,
    Vector,
)

PROGRAM, LEFT, WEIGHTS, PARAMETERS, OUTPUT = 0x0, 0x1000, 0x2000, 0x3000, 0x4000
MEMORY_BYTES = 0x10000
LOADED, PARAMETERS_LOADED, MULTIPLIED, SCALED = (1 << i for i in range(4))  # semaphores


@dataclass(frozen=True)
class MatmulCase:
    """``output = requantize((left - zero_point) @ weights + bias)``, two tiles each way."""

    config: AcceleratorConfig
    left: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    exponent: np.ndarray
    left_zero_point: int
    output_zero_point: int

    @classmethod
    def random(cls, config: AcceleratorConfig, rows: int, rng: np.random.Generator) -> "MatmulCase":
        depth, width = 2 * config.rows, 2 * config.columns
        return cls(
            config=config,
            left=rng.integers(-128, 128, (rows, depth)).astype(np.int8),
            weights=rng.integers(-128, 128, (depth, width)).astype(np.int8),
            bias=rng.integers(-(1 << 15), 1 << 15, width).astype(np.int32),
            multiplier=rng.integers(1 << 30, 1 << 31, width).astype(np.int32),
            exponent=rng.integers(-12, -7, width).astype(np.int8),
            left_zero_point=int(rng.integers(-128, 128)),
            output_zero_point=int(rng.integers(-20, 20)),
        )

    @property
    def output_size(self) -> int:
        return len(self.left) * self.weights.shape[1]

    def instructions(self) -> list[Instruction]:
        config, rows = self.config, len(self.left)
        depth, width = self.weights.shape
        result_address = config.activation_bytes // 2
        return [
            Load(dram_address=LEFT, run_bytes=rows * depth, memory=Memory.ACTIVATION, extent=1),
            Load(
                dram_address=WEIGHTS,
                run_bytes=depth * width,
                memory=Memory.WEIGHT,
                extent=1,
                signal=LOADED,
            ),
            Load(
                dram_address=PARAMETERS,
                counts=(1, 1, 2),
                dram_strides=(0, 0, config.parameter_row_bytes),
                run_bytes=config.parameter_row_bytes,
                memory=Memory.PARAMETER,
                extent=1,
                strides=(0, 0, config.parameter_row_pitch),
                signal=PARAMETERS_LOADED,
            ),
            Matrix(
                wait=LOADED,
                signal=MULTIPLIED,
                left_zero_point=self.left_zero_point,
                counts=(2, 1, 1, 2, 1, 1, rows),
                left_strides=(0, 0, 0, config.rows, 0, 0, depth),
                top_strides=(config.columns, 0, 0, config.rows * width, 0, 0, 0),
                tile_stride=width,
                accumulator_strides=(rows, 0, 0, 0, 0, 0, 1),
            ),
            Vector(
                wait=PARAMETERS_LOADED | MULTIPLIED,
                signal=SCALED,
                counts=(2, 1, 1, rows, 1, 1),
                a_strides=(rows, 0, 0, 1, 0, 0),
                destination=Memory.ACTIVATION,
                address=result_address,
                strides=(config.columns, 0, 0, width),
                parameter_strides=(1, 0, 0, 0),
                use_bias=1,
                scale_source=ScaleSource.PARAMETER,
                rounding=Rounding.TWO_STEP,
                zero_point=self.output_zero_point,
                clamp_low=-128,
                clamp_high=127,
            ),
            Store(
                wait=SCALED,
                dram_address=OUTPUT,
                run_bytes=self.output_size,
                memory=Memory.ACTIVATION,
                address=result_address,
                extent=1,
            ),
            End(),
        ]

    def program(self) -> bytes:
        return b"".join(instruction.encode() for instruction in self.instructions())

    def image(self) -> dict[int, bytes]:
        """What DRAM holds before the program runs."""
        return {
            PROGRAM: self.program(),
            LEFT: self.left.tobytes(),
            WEIGHTS: self.weights.tobytes(),
            PARAMETERS: self._parameter_rows(),
        }

    def _parameter_rows(self) -> bytes:
        columns = self.config.columns
        rows = []
        for first in range(0, len(self.bias), columns):
            tile = slice(first, first + columns)
            row = self.bias[tile].tobytes() + self.multiplier[tile].tobytes()
            row += self.exponent[tile].tobytes()
            rows.append(row.ljust(self.config.parameter_row_bytes, b"\0"))
        return b"".join(rows)

    def expected(self) -> np.ndarray:
        """The output, by Python's integers."""
        left = self.left.astype(object) - self.left_zero_point
        sums = left @ self.weights.astype(object) + self.bias.astype(object)
        output = np.empty(sums.shape, dtype=np.int8)
        for (row, column), value in np.ndenumerate(sums):
            scaled = multiply_by_quantized_multiplier(
                int(value), int(self.multiplier[column]), int(self.exponent[column])
            )
            output[row, column] = min(max(scaled + self.output_zero_point, -128), 127)
        return output


def multiply_by_quantized_multiplier(value: int, multiplier: int, exponent: int) -> int:
    """gemmlowp's two fixed-point steps, as its reference code writes them, for exponents <= 0."""
    product = value * multiplier
    nudge = (1 << 30) if product >= 0 else 1 - (1 << 30)
    total = product + nudge
    high = abs(total) // (1 << 31) * (1 if total >= 0 else -1)  # C's division truncates
    mask = (1 << -exponent) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> -exponent) + (1 if (high & mask) > threshold else 0)
