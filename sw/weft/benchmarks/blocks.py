"""Blocks of matrices moved between DRAM and the chip, and blocks of sums made int8 results."""

from dataclasses import dataclass
from typing import Any

from weft.compiler.stream import Space, Stream, reads, writes
from weft.compiler.vectors import trim
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import (
    Load,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Store,
    Vector,
)

__all__ = ["Block", "load_block", "requantize_block", "scale_of", "store_block"]

SPACES = {Memory.ACTIVATION: Space.ACTIVATION, Memory.WEIGHT: Space.WEIGHT}
MULTIPLIER = 1 << 30  # with the exponent alone: a scale that is a power of two


@dataclass(frozen=True)
class Block:
    """``rows`` runs of ``run`` bytes, the first of each ``pitch`` behind the one before."""

    address: int
    rows: int
    run: int
    pitch: int

    @property
    def span(self) -> tuple[int, int]:
        """First byte, and the one behind the last."""
        return self.address, self.address + (self.rows - 1) * self.pitch + self.run


def _transfer(dram: Block, chip: Block, memory: Memory) -> dict[str, Any]:
    """Fields of a transfer: one run, if both sides are contiguous."""
    whole = dram.run == dram.pitch == chip.pitch or dram.rows == 1
    return {
        "dram_address": dram.address,
        "address": chip.address,
        "counts": (1 if whole else dram.rows, 1, 1),
        "dram_strides": (0 if whole else dram.pitch, 0, 0),
        "strides": (0 if whole else chip.pitch, 0, 0),
        "run_bytes": dram.rows * dram.run if whole else dram.run,
        "memory": memory,
        "extent": 1,
    }


def load_block(stream: Stream, dram: Block, chip: Block, memory: Memory, purpose: str) -> None:
    """Copy a block from DRAM to a scratchpad."""
    stream.emit(
        Load(**_transfer(dram, chip, memory)),
        purpose,
        reads(Space.DRAM, dram.span),
        writes(SPACES[memory], chip.span),
    )


def store_block(stream: Stream, dram: Block, chip: Block, purpose: str) -> None:
    """Copy a block from the activation scratchpad to DRAM."""
    stream.emit(
        Store(**_transfer(dram, chip, Memory.ACTIVATION)),
        purpose,
        reads(Space.ACTIVATION, chip.span),
        writes(Space.DRAM, dram.span),
    )


def scale_of(parameters: int | None, shift: int) -> dict[str, Any]:
    """VECTOR's fields: bias and scale of parameter rows from that one on, or 2**-shift for all."""
    if parameters is None:
        return {
            "scale_source": ScaleSource.INSTRUCTION,
            "multiplier": MULTIPLIER,
            "exponent": 1 - shift,
        }
    return {
        "use_bias": 1,
        "scale_source": ScaleSource.PARAMETER,
        "parameter_address": parameters,
    }


def requantize_block(
    stream: Stream, config: AcceleratorConfig, sums: int, result: Block, scale: dict[str, Any]
) -> None:
    """Scale a block of accumulators, column tile by column tile, round half to even, to int8.

    ``sums`` is the first row of the first column tile, ``scale`` comes from :func:`scale_of`.
    """
    columns, rows = config.columns, result.rows
    width = result.run // columns
    counts = (width, 1, 1, rows, 1, 1)
    accesses = [
        reads(Space.ACCUMULATOR, (sums, sums + rows * width)),
        writes(Space.ACTIVATION, result.span),
    ]
    if "parameter_address" in scale:
        first = scale["parameter_address"]
        accesses.append(reads(Space.PARAMETER, (first, first + width)))
    stream.emit(
        Vector(
            counts=counts,
            a_source=OperandSource.ACCUMULATOR,
            a_address=sums,
            a_strides=trim((rows, 0, 0, 1, 0, 0), counts),
            parameter_strides=trim((1, 0, 0, 0), counts),
            rounding=Rounding.HALF_EVEN,
            clamp_low=-128,
            clamp_high=127,
            destination=Memory.ACTIVATION,
            address=result.address,
            strides=trim((columns, 0, 0, result.pitch), counts),
            **scale,
        ),
        "requantize",
        *accesses,
    )
