"""The loss gradient on the machine: samples in lanes, classes in rows, table lookups.

Logits lie sample by sample; a product with the identity, the logits entering the array from the
left, turns them so that each lane holds a sample. The gradients of all samples are found first, as
int32; their largest gives the exponent of the codes, which go back in the same way.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Space, reads, writes
from weft.train.machine.builder import Box, Builder, Slab
from weft.train.machine.fields import ABOVE_CODES, EVEN, added, scalar_scale
from weft.train.machine.homes import ImageHome
from weft.train.machine.quantization import SUM_BYTES, ImageQuantizer, Result, Spill
from weft.train.machine.scalars import Register, Scalars
from weft.train.machine.tables import (
    LOGARITHM,
    LOWER_EXPONENTIAL,
    TABLE_OFFSET,
    TABLES_ACCESS,
    UPPER_EXPONENTIAL,
)
from weft.train.step import LossGradient
from weft_hw.arithmetic import quantize_multiplier
from weft_hw.instructions import (
    Capture,
    Head,
    Load,
    LoadSide,
    Matrix,
    Memory,
    OperandSource,
    ScaleSource,
    Store,
    Tail,
    Vector,
)
from weft_hw.training import CODE_LIMIT, DIGIT_BITS, LOSS_EXPONENT, TABLE_STEPS, sum_scale

__all__ = [
    "LossHomes",
    "identity_bytes",
    "loss_sums_bytes",
    "lower_loss",
    "target_bytes",
    "target_size",
    "turned_bytes",
]


INDICES = {"clamp_low": -128, "clamp_high": 127}
TO_INDEX = {"zero_point": TABLE_OFFSET} | INDICES
"""What is looked up has eight bits."""


@dataclass(frozen=True)
class LossHomes:
    """DRAM of the loss gradient: the identity, targets by class, and a gradient's turned block.

    Parameters
    ----------
    identity, targets, turned : int
        Addresses, of :func:`identity_bytes`, :func:`target_bytes` and :func:`turned_bytes`.
    """

    identity: int
    targets: int
    turned: int


def identity_bytes(side: int) -> bytes:
    """The identity matrix, and a line of zeros behind it."""
    return np.eye(side + 1, side, dtype=np.int8).tobytes()


def turned_bytes(classes: int, side: int) -> int:
    """Bytes of a block's gradient by class: whole tiles; those of no class stay zero."""
    return ceil_div(classes, side) * side * side


def target_size(home: ImageHome) -> int:
    """Bytes of the targets of a batch of logits, by class."""
    return ceil_div(home.batch, home.side) * home.image.shape[2] * home.side


def target_bytes(targets: np.ndarray, side: int) -> bytes:
    """Target codes (samples, classes) as [block of samples][class][sample]."""
    samples, classes = targets.shape
    blocks = ceil_div(samples, side)
    padded = np.zeros((blocks * side, classes), np.int8)
    padded[:samples] = targets
    return np.ascontiguousarray(padded.reshape(blocks, side, classes).transpose(0, 2, 1)).tobytes()


def loss_sums_bytes(home: ImageHome) -> int:
    """Bytes of the int32 gradients of a batch of logits, unless one block of samples has all."""
    return SUM_BYTES * target_size(home) if home.batch > home.side else 0


def lower_loss(
    builder: Builder, scalars: Scalars, operation: LossGradient, homes: LossHomes, spill: Spill
) -> None:
    """Append the loss gradient; ``spill`` has room for :func:`loss_sums_bytes`."""
    work = _Loss(builder, operation, homes, spill)
    quantizer = ImageQuantizer(
        builder, scalars, Result(operation.result, operation.quantizer), spill
    )
    largest, _, saturated = operation.quantizer.cells
    scalars.exponent(Register.EXPONENT, operation.logits.exponent)
    multiplier, own = quantize_multiplier(TABLE_STEPS / float(np.log(2)))
    scalars.add(Register.EXPONENT, Register.EXPONENT, own)
    scalars.limit(Register.EXPONENT, -31, 31)
    scalars.move(Register.MULTIPLIER, multiplier)
    quantizer.begin_captures()
    for block in range(work.blocks):
        work.gradient(block)
    scalars.write(largest, Register.LARGEST)
    scalars.move(Register.SUMS, LOSS_EXPONENT)
    quantizer.scale(Register.LARGEST)
    for block in range(work.blocks):
        work.codes(block)
    scalars.write(saturated, Register.CLAMPED)


def _add(row: int) -> dict[str, Any]:
    """Operand B: one accumulator row, added to every vector."""
    return added(OperandSource.ACCUMULATOR, row, (0, 0, 0, 0, 0, 0))


class _Loss:
    def __init__(
        self, builder: Builder, operation: LossGradient, homes: LossHomes, spill: Spill
    ) -> None:
        self.builder, self.stream, self.homes, self.spill = builder, builder.stream, homes, spill
        self.side = builder.side
        self.logits = builder.images[operation.logits.name]
        self.result = builder.images[operation.result.name]
        self.classes = operation.logits.shape[2]
        self.blocks = ceil_div(self.logits.batch, self.side)
        size = (self.side + 1) * self.side
        self.identity = builder.operands.place(None, size)
        self._load(homes.identity, self.identity, size, Memory.ACTIVATION, "load identity")
        self.zeros = self.identity + self.side * self.side
        self.waiting = 0
        """Rows of the gradients of the last block."""

    def _load(self, dram: int, address: int, size: int, memory: Memory, purpose: str) -> None:
        self.builder.copy_bytes(Load, dram, address, size, memory, purpose)

    def _samples(self, block: int) -> tuple[int, int]:
        """First sample of a block, and the one behind its last."""
        first = block * self.side
        return first, min(first + self.side, self.logits.batch)

    def _lanes(self, block: int) -> dict[str, Any]:
        """Lanes of samples that do not exist hold whatever lay there: they are not noted."""
        first, last = self._samples(block)
        return {"last_lanes": (last - first) % self.side}

    def gradient(self, block: int) -> None:
        """The gradients of up to ``side`` samples, as int32 rows by class; notes the largest."""
        side, classes, builder = self.side, self.classes, self.builder
        first, last = self._samples(block)
        tiles = self.logits.tiles
        tile = builder.weights.place(None, tiles * side * side)
        self._load(
            self.logits.at(first, 0),
            tile,
            (last - first) * self.logits.pitch,
            Memory.WEIGHT,
            "load logits",
        )
        rows = builder.accumulators(tiles * side + 2)
        powers = builder.accumulators(classes)
        self._turn(tile, self.logits.pitch, side, rows, tiles)
        largest = rows + tiles * side
        total, logarithm = largest, largest + 1
        self._sum("negate the largest", rows, largest, {"head": Head.MAXIMUM} | self._negated())
        self._each_class("subtract the largest", rows, rows, _add(largest))
        self._each_class(
            "to binary logarithms",
            rows,
            rows,
            scalar_scale(Register.MULTIPLIER, Register.EXPONENT) | TO_INDEX,
        )
        # Rows hold the index of u from here.
        self._each_class("upper exponentials", rows, powers, {"lookup": UPPER_EXPONENTIAL})
        self._sum("sum of upper ones", powers, total, {"pre_shift": DIGIT_BITS})
        self._each_class("lower exponentials", rows, powers, {"lookup": LOWER_EXPONENTIAL})
        self._sum("sum of exponentials", powers, total, _add(total))
        multiplier, exponent = sum_scale(classes)
        self._vector(
            "logarithm of their sum",
            (total, 1),
            (logarithm, 1),
            {
                "scale_source": ScaleSource.INSTRUCTION,
                "multiplier": multiplier,
                "exponent": exponent,
                "rounding": EVEN,
                "lookup": LOGARITHM,
            }
            | TO_INDEX,
        )
        self._each_class(
            "logarithms of probabilities",
            rows,
            rows,
            _add(logarithm) | INDICES,
        )
        self._each_class("upper probabilities", rows, powers, {"lookup": UPPER_EXPONENTIAL})
        self._each_class("lower probabilities", rows, rows, {"lookup": LOWER_EXPONENTIAL})
        self._each_class(
            "probabilities", powers, powers, {"pre_shift": DIGIT_BITS} | self._add_rows(rows)
        )
        self._to_gradients(block, powers, rows, total)

    def _to_gradients(self, block: int, powers: int, rows: int, total: int) -> None:
        """From negated probabilities; the other rows are free to use."""
        size = self.classes * self.side
        targets = self.builder.staging.place(None, size)
        at = self.homes.targets + block * size
        self._load(at, targets, size, Memory.ACTIVATION, "load targets")
        self._each_class("of other classes", powers, powers, self._where(targets, -1, 1))
        self._sum(
            "sum of other classes",
            powers,
            total,
            {"capture": Capture.LARGEST, "capture_register": Register.LARGEST}
            | self._lanes(block)
            | self._negated(),
        )
        self._each_class("of the label", total, rows, self._where(targets, 0, ABOVE_CODES), step=0)
        self._each_class("gradients", powers, powers, self._add_rows(rows))
        self.waiting = powers
        if self.blocks > 1:
            self._spill(block, powers, Store)

    def _spill(self, block: int, rows: int, kind: type[Load | Store]) -> None:
        size = self.classes * self.side * SUM_BYTES
        self.builder.copy_rows(
            kind,
            self.spill.address + block * size,
            rows,
            self.classes,
            SUM_BYTES,
            f"{kind.__name__.lower()} gradients",
        )

    def codes(self, block: int) -> None:
        """The codes of a block's gradients, to their home; counts what is clamped."""
        rows, classes, side = self.waiting, self.classes, self.side
        if self.blocks > 1:
            rows = self.builder.accumulators(classes)
            self._spill(block, rows, Load)
        size = classes * side
        codes = self.builder.staging.place(None, size)
        self.stream.emit(
            Vector(
                a_address=rows,
                destination=Memory.ACTIVATION,
                address=codes,
                clamp_low=-CODE_LIMIT,
                clamp_high=CODE_LIMIT,
                capture=Capture.CLAMPED,
                capture_register=Register.LARGEST,
                **self._each(target=side),
                **self._lanes(block),
                **scalar_scale(Register.ONE, Register.EXPONENT),
            ),
            "quantize",
            reads(Space.ACCUMULATOR, (rows, rows + classes)),
            writes(Space.ACTIVATION, (codes, codes + size)),
        )
        self.builder.copy_bytes(
            Store, self.homes.turned, codes, size, Memory.ACTIVATION, "store gradient by class"
        )
        self._back(Box(self._samples(block), (0, 1), (0, 1), (0, self.result.tiles)))

    # Vectors of samples ----------------------------------------------------------------------

    def _each(self, source: int = 1, target: int = 1) -> dict[str, Any]:
        """Loops over the classes; strides of A and of the result."""
        return {
            "counts": (1, 1, 1, self.classes, 1, 1),
            "a_strides": (0, 0, 0, source, 0, 0),
            "strides": (0, 0, 0, target),
        }

    def _each_class(
        self, purpose: str, source: int, target: int, fields: dict[str, Any], step: int = 1
    ) -> None:
        """From a row a class (one for all with ``step`` 0) to a row a class."""
        rows = self.classes if step else 1
        self._vector(purpose, (source, rows), (target, self.classes), self._each(step) | fields)

    def _sum(self, purpose: str, source: int, target: int, fields: dict[str, Any]) -> None:
        """From a row a class to one, by the head."""
        loops = {
            "counts": (1, 1, 1, 1, 1, self.classes),
            "a_strides": (0, 0, 0, 0, 0, 1),
        }
        self._vector(purpose, (source, self.classes), (target, 1), loops | fields)

    def _vector(
        self,
        purpose: str,
        source: tuple[int, int],
        target: tuple[int, int],
        fields: dict[str, Any],
    ) -> None:
        """Between accumulator rows (first, number); operand B's accesses follow from its fields."""
        accesses = [reads(Space.ACCUMULATOR, (source[0], sum(source)))]
        if "lookup" in fields:
            accesses.append(TABLES_ACCESS)
        at = fields.get("b_address", 0)
        rows = self.classes if any(fields.get("b_strides", ())) else 1
        match fields.get("b_source"):
            case OperandSource.ACCUMULATOR:
                accesses.append(reads(Space.ACCUMULATOR, (at, at + rows)))
            case OperandSource.ACTIVATION:
                accesses.append(reads(Space.ACTIVATION, (at, at + rows * self.side)))
        self.stream.emit(
            Vector(
                **{
                    "a_address": source[0],
                    "destination": Memory.ACCUMULATOR,
                    "address": target[0],
                }
                | fields
            ),
            purpose,
            *accesses,
            writes(Space.ACCUMULATOR, (target[0], sum(target))),
        )

    def _negated(self) -> dict[str, Any]:
        """Operand B: -1."""
        return {
            "tail": Tail.PRODUCT,
            "b_source": OperandSource.ACTIVATION,
            "b_address": self.zeros,
            "b_zero_point": 1,
        }

    def _where(self, targets: int, above: int, below: int) -> dict[str, Any]:
        """Operand B: lets values pass where the target's code lies between two bounds."""
        return {
            "tail": Tail.SELECT,
            "b_source": OperandSource.ACTIVATION,
            "b_address": targets,
            "b_strides": (0, 0, 0, self.side, 0, 0),
            "select_low": above,
            "select_high": below,
        }

    def _add_rows(self, rows: int) -> dict[str, Any]:
        """Operand B: a row a class."""
        return added(OperandSource.ACCUMULATOR, rows, (0, 0, 0, 1, 0, 0))

    def _turn(self, tile: int, pitch: int, step: int, rows: int, tiles: int) -> None:
        """Rows of sums that are the columns of some array tiles: the identity times each."""
        side = self.side
        for number in range(tiles):
            address = tile + number * step
            target = rows + number * side
            self.stream.emit(
                Matrix(
                    load_side=LoadSide.LEFT,
                    counts=(1, 1, 1, 1, 1, 1, side),
                    left_address=self.identity,
                    left_strides=(0, 0, 0, 0, 0, 0, side),
                    top_address=address,
                    tile_stride=pitch,
                    accumulator_address=target,
                    accumulator_strides=(0, 0, 0, 0, 0, 0, 1),
                ),
                "turn",
                reads(Space.ACTIVATION, (self.identity, self.identity + side * side)),
                reads(Space.WEIGHT, (address, address + (side - 1) * pitch + side)),
                writes(Space.ACCUMULATOR, (target, target + side)),
            )

    def _back(self, box: Box) -> None:
        """The gradient by sample, to its home."""
        side, builder, result = self.side, self.builder, self.result
        tiles = result.tiles
        size = turned_bytes(self.classes, side)
        tile = builder.weights.place(None, size)
        self._load(self.homes.turned, tile, size, Memory.WEIGHT, "load gradient by class")
        rows = builder.accumulators(tiles * side)
        self._turn(tile, side, side * side, rows, tiles)
        slab: Slab = builder.place(builder.staging, box)
        images = box.counts[1]
        self.stream.emit(
            Vector(
                counts=(tiles, 1, 1, images, 1, 1),
                a_address=rows,
                a_strides=(side if tiles > 1 else 0, 0, 0, 1 if images > 1 else 0, 0, 0),
                destination=Memory.ACTIVATION,
                address=slab.address,
                strides=(side if tiles > 1 else 0, 0, 0, slab.pitch if images > 1 else 0),
            ),
            "write the gradient",
            reads(Space.ACCUMULATOR, (rows, rows + tiles * side)),
            writes(Space.ACTIVATION, slab.span),
        )
        builder.store_slab(result, slab, f"store {result.image.name}")
