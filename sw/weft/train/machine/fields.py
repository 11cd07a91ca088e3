"""Fields of VECTOR instructions over boxes: operands, results, scales, random bits."""

from typing import Any

from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.vectors import trim
from weft.train.machine.builder import Box, ImageTile, Slab
from weft.train.machine.scalars import Register
from weft.train.step import Image
from weft_hw.instructions import (
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Tail,
)
from weft_hw.training import ONE

__all__ = [
    "ABOVE_CODES",
    "EVEN",
    "added",
    "box_counts",
    "element_index",
    "from_slab",
    "from_tile",
    "positive",
    "power_of_two",
    "scalar_scale",
    "slab_strides",
    "tile_strides",
    "to_slab",
    "to_tile",
]

ABOVE_CODES = 256
"""More than any code: no upper bound of SELECT."""

EVEN = Rounding.HALF_EVEN


def box_counts(box: Box) -> tuple[int, ...]:
    """A VECTOR's loops over a box: channel tiles, images, rows, columns, no window."""
    return (*box.counts, 1, 1)


def tile_strides(box: Box) -> tuple[int, ...]:
    """Row strides of a tile of sums."""
    _, images, rows, columns = box.counts
    return trim((images * rows * columns, rows * columns, columns, 1, 0, 0), box_counts(box))


def slab_strides(slab: Slab, box: Box) -> tuple[int, ...]:
    """Byte strides of a slab, for a box in it."""
    return trim((slab.side, slab.image_pitch, slab.row_pitch, slab.pitch, 0, 0), box_counts(box))


def from_tile(tile: ImageTile) -> tuple[dict[str, Any], Access]:
    """Operand A: sums."""
    fields = {
        "counts": box_counts(tile.box),
        "a_source": OperandSource.ACCUMULATOR,
        "a_address": tile.address,
        "a_strides": tile_strides(tile.box),
    }
    return fields, reads(Space.ACCUMULATOR, tile.access)


def from_slab(slab: Slab, operand: str = "a") -> tuple[dict[str, Any], Access]:
    """Operand A (with the loops' counts) or B: the codes of a slab."""
    fields: dict[str, Any] = {
        f"{operand}_source": OperandSource.ACTIVATION,
        f"{operand}_address": slab.address,
        f"{operand}_strides": slab_strides(slab, slab.box),
    }
    if operand == "a":
        fields["counts"] = box_counts(slab.box)
    return fields, reads(Space.ACTIVATION, slab.span)


def to_tile(tile: ImageTile) -> tuple[dict[str, Any], Access]:
    """Result: int32 rows."""
    fields = {
        "destination": Memory.ACCUMULATOR,
        "address": tile.address,
        "strides": tile_strides(tile.box)[:4],
    }
    return fields, writes(Space.ACCUMULATOR, tile.access)


def to_slab(slab: Slab) -> tuple[dict[str, Any], Access]:
    """Result: codes; all lanes are written, the padding's zeros too."""
    fields = {
        "destination": Memory.ACTIVATION,
        "address": slab.address,
        "strides": slab_strides(slab, slab.box)[:4],
    }
    return fields, writes(Space.ACTIVATION, slab.span)


def power_of_two(power: int, rounding: Rounding = EVEN) -> dict[str, Any]:
    """A constant scale ``2**power``."""
    return {
        "scale_source": ScaleSource.INSTRUCTION,
        "multiplier": ONE,
        "exponent": 1 + power,
        "rounding": rounding,
    }


def scalar_scale(
    multiplier: Register, exponent: Register, rounding: Rounding = EVEN
) -> dict[str, Any]:
    """A scale from two registers."""
    return {
        "scale_source": ScaleSource.SCALAR,
        "scalar_registers": (multiplier, exponent, Register.LOW, Register.HIGH),
        "rounding": rounding,
    }


def element_index(image: Image, box: Box, number: int, side: int) -> dict[str, Any]:
    """Logical indices of a box's elements, for random bits."""
    height, width, channels = image.shape
    first = (
        (box.images[0] * height + box.rows[0]) * width + box.columns[0]
    ) * channels + box.tiles[0] * side
    strides = (side, height * width * channels, width * channels, channels)
    return {
        "index_address": first,
        "index_strides": trim(strides, box_counts(box)[:4]),
        "tensor": number,
    }


def positive(slab: Slab) -> tuple[dict[str, Any], Access]:
    """Operand B that lets values pass where its codes are positive: ReLU's gradient."""
    fields, access = from_slab(slab, "b")
    return fields | {"tail": Tail.SELECT, "select_low": 0, "select_high": ABOVE_CODES}, access


def added(source: OperandSource, address: int, strides: tuple[int, ...]) -> dict[str, Any]:
    """Operand B, added."""
    return {"tail": Tail.ADD, "b_source": source, "b_address": address, "b_strides": strides}
