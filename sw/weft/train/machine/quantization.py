"""From tiles of int32 sums to an image of codes in DRAM, with the exponent found on the machine."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from weft.compiler.stream import Access, Space, reads
from weft.train.machine.builder import Box, Builder, ImageTile
from weft.train.machine.fields import (
    element_index,
    from_slab,
    from_tile,
    positive,
    scalar_scale,
    to_slab,
    to_tile,
)
from weft.train.machine.homes import ImageHome
from weft.train.machine.scalars import Register, Scalars
from weft.train.machine.tables import RECTIFIER, TABLES_ACCESS
from weft.train.step import Image, Quantizer
from weft_hw.instructions import (
    Capture,
    Load,
    Memory,
    Rounding,
    Store,
    Tail,
    Vector,
)
from weft_hw.training import CODE_BITS, CODE_LIMIT, ONE

__all__ = [
    "SUM_BYTES",
    "Biases",
    "ImageQuantizer",
    "Result",
    "Spill",
    "behind",
    "quantize_image",
]

SUM_BYTES = 4


@dataclass(frozen=True)
class Spill:
    """DRAM for int32 sums that wait for their largest: ``size`` bytes from ``address``."""

    address: int
    size: int


@dataclass(frozen=True)
class Biases:
    """Rows of parameter memory that hold the biases of an operation's channel tiles."""

    row: int
    rows: int


@dataclass(frozen=True)
class Result:
    """What becomes of the sums.

    Parameters
    ----------
    image : Image
    quantizer : Quantizer
    rectified : bool
    mask : Image, optional
        Codes are 0 where it is not positive.
    biases : Biases, optional
    compensation : ImageHome, optional
        Of one image: codes that are added; they are written by ``prepare_compensation`` once the
        result's exponent is known.
    """

    image: Image
    quantizer: Quantizer
    rectified: bool = False
    mask: Image | None = None
    biases: Biases | None = None
    compensation: ImageHome | None = None


class ImageQuantizer:
    """The quantization of one image; the exponent of its sums is in the register SUMS."""

    def __init__(self, builder: Builder, scalars: Scalars, result: Result, spill: Spill) -> None:
        self.builder, self.scalars, self.result, self.spill = builder, scalars, result, spill
        self.stream = builder.stream
        self.home = builder.images[result.image.name]
        self._largest, self._exponent, self._saturated = result.quantizer.cells
        self._prepare_compensation: Any = None

    # Scalars ---------------------------------------------------------------------------------

    def scale(self, largest: Register) -> None:
        """Shift, clamp and exponent of the result from the largest sum (which this changes)."""
        scalars, quantizer = self.scalars, self.result.quantizer
        if quantizer.clipped:
            scalars.clip(largest)
        scalars.shift(Register.SHIFT, largest, CODE_BITS)
        scalars.scale_exponent(Register.EXPONENT, Register.SHIFT, -1)
        if quantizer.clipped:
            scalars.subtract(Register.OTHER, 0, Register.SHIFT)
            scalars.move(Register.HIGH, largest)
            scalars.shift_by(Register.HIGH, Register.OTHER)
            scalars.subtract(Register.LOW, 0, Register.HIGH)
        if quantizer.multiplier != ONE:
            scalars.move(Register.MULTIPLIER, quantizer.multiplier)
        scalars.add(Register.SUMS, Register.SUMS, Register.SHIFT)
        if quantizer.offset:
            scalars.add(Register.SUMS, Register.SUMS, quantizer.offset)
        scalars.write_exponent(self._exponent, Register.SUMS)

    def begin_captures(self) -> None:
        """Clear what VECTOR notes."""
        self.scalars.move(Register.LARGEST, 0)
        self.scalars.move(Register.CLAMPED, 0)

    # Tiles -----------------------------------------------------------------------------------

    def _bias_fields(self, box: Box) -> tuple[dict[str, Any], list[Access]]:
        biases = self.result.biases
        if biases is None:
            return {}, []
        first, end = biases.row + box.tiles[0], biases.row + box.tiles[1]
        fields = {
            "use_bias": 1,
            "parameter_address": first,
            "parameter_strides": (1 if end - first > 1 else 0, 0, 0, 0),
        }
        return fields, [reads(Space.PARAMETER, (first, end))]

    def measure(self, tile: ImageTile) -> None:
        """Add the biases and note the largest sum, in place."""
        fields, source = from_tile(tile)
        target, written = to_tile(tile)
        biases, parameters = self._bias_fields(tile.box)
        self.stream.emit(
            Vector(
                **fields,
                **target,
                **biases,
                capture=Capture.LARGEST,
                capture_register=Register.LARGEST,
            ),
            "find the largest sum",
            source,
            *parameters,
            written,
        )

    def codes(self, tile: ImageTile, *, measured: bool) -> None:
        """Quantize a tile and store it; sums that were measured have their biases."""
        result, builder, box = self.result, self.builder, tile.box
        quantizer, image = result.quantizer, result.image
        fields, source = from_tile(tile)
        accesses = [source]
        slab = builder.place(builder.staging, box)
        target, written = to_slab(slab)
        multiplier = Register.ONE if quantizer.multiplier == ONE else Register.MULTIPLIER
        fields |= target | scalar_scale(multiplier, Register.EXPONENT)
        if quantizer.stochastic:
            fields["rounding"] = Rounding.STOCHASTIC
            fields |= element_index(image, box, quantizer.number, builder.side)
        if not measured:
            biases, parameters = self._bias_fields(box)
            fields |= biases
            accesses += parameters
        if result.compensation is not None:
            home = result.compensation
            one = Box((0, 1), box.rows, box.columns, box.tiles)
            other = builder.load_box(
                home, one, Memory.ACTIVATION, builder.staging, f"load {home.image.name}"
            )
            operand, access = from_slab(other, "b")
            tiles, _, rows, columns = operand["b_strides"][:4]
            operand["b_strides"] = (tiles, 0, rows, columns, 0, 0)
            fields |= operand | {"tail": Tail.ADD}
            accesses.append(access)
        if result.mask is not None:
            home = builder.images[result.mask.name]
            other = builder.load_box(
                home, box, Memory.ACTIVATION, builder.staging, f"load {result.mask.name}"
            )
            operand, access = positive(other)
            fields |= operand
            accesses.append(access)
        if result.rectified:
            fields["lookup"] = RECTIFIER
            accesses.append(TABLES_ACCESS)
        capture = Capture.CLAMPED if measured else Capture.BOTH
        if quantizer.clipped:
            fields["clamp_from_scalar"] = 1
        self.stream.emit(
            Vector(
                **fields,
                clamp_low=-CODE_LIMIT,
                clamp_high=CODE_LIMIT,
                capture=capture,
                capture_register=Register.LARGEST,
            ),
            "quantize",
            *accesses,
            written,
        )
        builder.store_slab(self.home, slab, f"store {image.name}")

    # Sums that wait --------------------------------------------------------------------------

    def _spill(self, tile: ImageTile, offset: int, kind: type[Load | Store]) -> None:
        self.builder.copy_rows(
            kind,
            self.spill.address + offset,
            tile.address,
            tile.box.vectors,
            SUM_BYTES,
            f"{kind.__name__.lower()} sums",
        )

    def own(self, tiles: Iterable[ImageTile]) -> None:
        """All sums first, through DRAM unless one tile holds them; then all codes."""
        self.begin_captures()
        whole = self.home.batch * self.home.image_pitch // self.builder.side
        waiting: list[tuple[Box, int]] = []
        offset, last = 0, None
        for tile in tiles:
            self.measure(tile)
            last = tile
            if tile.box.vectors != whole:
                self._spill(tile, offset, Store)
                waiting.append((tile.box, offset))
                offset += tile.box.vectors * self.builder.side * SUM_BYTES
        self.scalars.write(self._largest, Register.LARGEST)
        self.scale(Register.LARGEST)
        self.prepare_added()
        if not waiting:
            assert last is not None
            self.codes(last, measured=True)
        for box, start in waiting:
            tile = ImageTile(self.builder.accumulators(box.vectors), box)
            self._spill(tile, start, Load)
            self.codes(tile, measured=True)

    def delayed(self, tiles: Iterable[ImageTile]) -> None:
        """Codes at once, with the last step's largest sum."""
        self.scalars.read(self._largest, Register.LARGEST)
        self.scale(Register.LARGEST)
        self.prepare_added()
        self.begin_captures()
        for tile in behind(tiles):
            self.codes(tile, measured=False)
        self.scalars.write(self._largest, Register.LARGEST)

    def prepare_added(self) -> None:
        """Bring the compensation into the exponent of the result (in SUMS)."""
        if self._prepare_compensation is not None:
            self._prepare_compensation()

    def run(self, tiles: Iterable[ImageTile], prepare_compensation: Any = None) -> None:
        """All of it."""
        self._prepare_compensation = prepare_compensation
        if self.result.quantizer.delayed:
            self.delayed(tiles)
        else:
            self.own(tiles)
        self.scalars.write(self._saturated, Register.CLAMPED)


Tile = TypeVar("Tile")


def behind(tiles: Iterable[Tile]) -> Iterator[Tile]:
    """The tiles, each after the next one has been asked for."""
    held = None
    for tile in tiles:
        if held is not None:
            yield held
        held = tile
    if held is not None:
        yield held


def quantize_image(
    builder: Builder,
    scalars: Scalars,
    result: Result,
    spill: Spill,
    tiles: Iterable[ImageTile],
    prepare_compensation: Any = None,
) -> None:
    """Quantize sums, whose exponent is in the register SUMS, tile by tile.

    Parameters
    ----------
    builder : Builder
    scalars : Scalars
    result : Result
    spill : Spill
        For all sums of the image.
    tiles : iterable of ImageTile
        Each is dealt with before the one after the next is asked for.
    prepare_compensation : callable, optional
        Called once SUMS holds the result's exponent.
    """
    ImageQuantizer(builder, scalars, result, spill).run(tiles, prepare_compensation)
