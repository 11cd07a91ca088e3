"""Whole programs by hand: order by semaphores, and ways to see all of a machine's state in DRAM."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import (
    End,
    Instruction,
    Load,
    Memory,
    OperandSource,
    Queue,
    Rounding,
    ScaleSource,
    Store,
    Vector,
)

__all__ = ["dump_state", "encode", "fill_state", "serialized"]


def encode(instructions: Sequence[Instruction]) -> bytes:
    """The program's bytes, END included."""
    return b"".join(instruction.encode() for instruction in [*instructions, End()])


def serialized(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The same with a semaphore a pair of queues, so that each waits for the one before it."""
    result = [dataclasses.replace(instruction, wait=0, signal=0) for instruction in instructions]
    for position in range(1, len(result)):
        before, after = result[position - 1].queue, result[position].queue
        if before != after:
            semaphore = 1 << (before * len(Queue) + after)
            result[position - 1] = dataclasses.replace(result[position - 1], signal=semaphore)
            result[position] = dataclasses.replace(result[position], wait=semaphore)
    return result


def fill_state(config: AcceleratorConfig, address: int) -> tuple[list[Instruction], int]:
    """Load all on-chip memories from DRAM; and how many bytes that takes.

    The accumulators get what the activation scratchpad holds first, the parameter memory is loaded
    in whole rows.
    """
    rows, columns = config.accumulator_total_rows, config.columns
    pitch = config.parameter_row_pitch
    sizes = [config.activation_bytes, config.weight_bytes, config.parameter_bytes]
    starts = [address + int(start) for start in np.cumsum([0, *sizes])]
    instructions: list[Instruction] = [
        Load(dram_address=starts[0], run_bytes=sizes[0], extent=1),
        Load(dram_address=starts[1], run_bytes=sizes[1], memory=Memory.WEIGHT, extent=1),
        Load(
            dram_address=starts[2],
            counts=(config.parameter_rows, 1, 1),
            dram_strides=(pitch, 0, 0),
            strides=(pitch, 0, 0),
            run_bytes=config.parameter_row_bytes,
            memory=Memory.PARAMETER,
            extent=1,
        ),
        Vector(
            counts=(1, 1, 1, rows, 1, 1),
            a_source=OperandSource.ACTIVATION,
            a_strides=(0, 0, 0, columns, 0, 0),
            scale_source=ScaleSource.INSTRUCTION,
            multiplier=(1 << 31) - 1,
            exponent=23,
            rounding=Rounding.HALF_UP,
            destination=Memory.ACCUMULATOR,
            strides=(0, 0, 0, 1),
        ),
    ]
    return instructions, starts[-1] - address


def dump_state(config: AcceleratorConfig, address: int) -> tuple[list[Instruction], int]:
    """Store the activation scratchpad, then the accumulators at four scales; and the bytes."""
    rows, columns = config.accumulator_total_rows, config.columns
    size = config.activation_bytes
    instructions: list[Instruction] = [Store(dram_address=address, run_bytes=size, extent=1)]
    for shift in (0, 8, 16, 24):
        address += size
        size = rows * columns
        instructions += [
            Vector(
                counts=(1, 1, 1, rows, 1, 1),
                a_strides=(0, 0, 0, 1, 0, 0),
                scale_source=ScaleSource.INSTRUCTION,
                multiplier=1 << 30,
                exponent=1 - shift,
                rounding=Rounding.HALF_UP,
                strides=(0, 0, 0, columns),
            ),
            Store(dram_address=address, run_bytes=size, extent=1),
        ]
    return instructions, config.activation_bytes + 4 * size
