"""The loss gradient on the machine: samples in lanes, classes in rows, three table lookups.

Logits lie sample by sample; a product with the identity, the logits entering the array from the
left, turns them so that each lane holds a sample. The gradient goes back in the same way.
"""

from typing import Any

import numpy as np

from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Access, Space, reads, writes
from weft.train.machine.builder import Box, Builder, Slab
from weft.train.machine.fields import EVEN, scalar_scale
from weft.train.machine.homes import ImageHome
from weft.train.machine.scalars import Register, Scalars
from weft.train.machine.tables import (
    EXPONENTIAL,
    LOGARITHM,
    NEGATED_EXPONENTIAL,
    TABLES_ACCESS,
)
from weft.train.step import LossGradient
from weft_hw.arithmetic import quantize_multiplier
from weft_hw.instructions import (
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
from weft_hw.training import CODE_LIMIT, TABLE_STEPS, sum_scale

__all__ = [
    "LossHomes",
    "identity_bytes",
    "lower_loss",
    "target_bytes",
    "target_size",
    "turned_bytes",
]


class LossHomes:
    """DRAM of the loss gradient: the identity, targets by class, and a gradient's turned block.

    Parameters
    ----------
    identity, targets, turned : int
        Addresses, of :func:`identity_bytes`, :func:`target_bytes` and :func:`turned_bytes`.
    """

    def __init__(self, identity: int, targets: int, turned: int) -> None:
        self.identity, self.targets, self.turned = identity, targets, turned


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


def lower_loss(
    builder: Builder, scalars: Scalars, operation: LossGradient, homes: LossHomes
) -> None:
    """Append the loss gradient."""
    scalars.exponent(Register.EXPONENT, operation.logits.exponent)
    multiplier, own = quantize_multiplier(TABLE_STEPS / float(np.log(2)))
    scalars.add(Register.EXPONENT, Register.EXPONENT, own)
    scalars.limit(Register.EXPONENT, -31, 31)
    scalars.move(Register.MULTIPLIER, multiplier)
    work = _Loss(builder, operation, homes)
    for block in range(ceil_div(builder.images[operation.logits.name].batch, builder.side)):
        work.block(block)


class _Loss:
    def __init__(self, builder: Builder, operation: LossGradient, homes: LossHomes) -> None:
        self.builder, self.stream, self.homes = builder, builder.stream, homes
        self.side = builder.side
        self.logits = builder.images[operation.logits.name]
        self.result = builder.images[operation.result.name]
        self.classes = operation.logits.shape[2]
        size = (self.side + 1) * self.side
        self.identity = builder.operands.place(None, size)
        self._load(homes.identity, self.identity, size, Memory.ACTIVATION, "load identity")
        self.zeros = self.identity + self.side * self.side

    def _load(self, dram: int, address: int, size: int, memory: Memory, purpose: str) -> None:
        self.builder.copy_bytes(Load, dram, address, size, memory, purpose)

    def block(self, block: int) -> None:
        """The gradient of up to ``side`` samples."""
        side, classes, builder = self.side, self.classes, self.builder
        first = block * side
        last = min(first + side, self.logits.batch)
        tiles = self.logits.tiles
        size = tiles * side * side
        # Lanes of samples that do not exist hold whatever lay there: they are not stored.
        tile = builder.weights.place(None, size)
        self._load(
            self.logits.at(first, 0),
            tile,
            (last - first) * self.logits.pitch,
            Memory.WEIGHT,
            "load logits",
        )
        rows = builder.accumulators(tiles * side + 2)
        self._turn(tile, self.logits.pitch, side, rows, tiles)
        largest = rows + tiles * side
        logarithm = largest + 1
        everything = (rows, rows + classes)
        self._vector(
            "negate the largest",
            everything,
            largest,
            1,
            {
                "counts": (1, 1, 1, 1, 1, classes),
                "a_strides": (0, 0, 0, 0, 0, 1 if classes > 1 else 0),
                "head": Head.MAXIMUM,
                "tail": Tail.PRODUCT,
                "b_source": OperandSource.ACTIVATION,
                "b_address": self.zeros,
                "b_zero_point": 1,
            },
            reads(Space.ACTIVATION, (self.zeros, self.zeros + side)),
        )
        each = self._each()
        self._vector("subtract the largest", everything, rows, classes, each | _add(largest))
        self._vector(
            "to binary logarithms",
            everything,
            rows,
            classes,
            each
            | scalar_scale(Register.MULTIPLIER, Register.EXPONENT)
            | {"clamp_low": -128, "clamp_high": 0},
        )
        powers = builder.scratch(0) if classes <= 2 * builder.scratch_rows else None
        powers = builder.accumulators(classes) if powers is None else powers
        self._vector(
            "exponentials",
            everything,
            powers,
            classes,
            each | {"lookup": EXPONENTIAL},
            TABLES_ACCESS,
        )
        scale, exponent = sum_scale(classes)
        self._vector(
            "logarithm of their sum",
            (powers, powers + classes),
            logarithm,
            1,
            {
                "counts": (1, 1, 1, 1, 1, classes),
                "a_strides": (0, 0, 0, 0, 0, 1 if classes > 1 else 0),
                "scale_source": ScaleSource.INSTRUCTION,
                "multiplier": scale,
                "exponent": exponent,
                "rounding": EVEN,
                "zero_point": -128,
                "clamp_low": -128,
                "clamp_high": 127,
                "lookup": LOGARITHM,
            },
            TABLES_ACCESS,
        )
        self._vector(
            "probabilities",
            everything,
            rows,
            classes,
            each
            | _add(logarithm)
            | {"clamp_low": -128, "clamp_high": 0, "lookup": NEGATED_EXPONENTIAL},
            TABLES_ACCESS,
        )
        self._subtract_from_targets(block, rows)
        self._back(Box((first, last), (0, 1), (0, 1), (0, tiles)))

    def _each(self) -> dict[str, Any]:
        """Loops over the rows of all classes."""
        step = 1 if self.classes > 1 else 0
        return {
            "counts": (1, 1, 1, self.classes, 1, 1),
            "a_strides": (0, 0, 0, step, 0, 0),
            "strides": (0, 0, 0, step),
        }

    def _vector(
        self,
        purpose: str,
        source: tuple[int, int],
        target: int,
        rows: int,
        fields: dict[str, Any],
        *accesses: Access,
    ) -> None:
        if "b_source" in fields and fields["b_source"] is OperandSource.ACCUMULATOR:
            row = fields["b_address"]
            accesses = (*accesses, reads(Space.ACCUMULATOR, (row, row + 1)))
        self.stream.emit(
            Vector(
                **{"a_address": source[0], "destination": Memory.ACCUMULATOR, "address": target}
                | fields
            ),
            purpose,
            reads(Space.ACCUMULATOR, source),
            *accesses,
            writes(Space.ACCUMULATOR, (target, target + rows)),
        )

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

    def _subtract_from_targets(self, block: int, rows: int) -> None:
        """Codes by class and sample, to DRAM."""
        side, classes = self.side, self.classes
        size = classes * side
        targets = self.builder.staging.place(None, size)
        codes = self.builder.staging.place(None, size)
        self._load(
            self.homes.targets + block * size, targets, size, Memory.ACTIVATION, "load targets"
        )
        step = side if classes > 1 else 0
        self.stream.emit(
            Vector(
                counts=(1, 1, 1, classes, 1, 1),
                a_source=OperandSource.ACTIVATION,
                a_address=targets,
                a_strides=(0, 0, 0, step, 0, 0),
                tail=Tail.ADD,
                b_source=OperandSource.ACCUMULATOR,
                b_address=rows,
                b_strides=(0, 0, 0, 1 if classes > 1 else 0, 0, 0),
                clamp_low=-CODE_LIMIT,
                clamp_high=CODE_LIMIT,
                destination=Memory.ACTIVATION,
                address=codes,
                strides=(0, 0, 0, step),
            ),
            "subtract from targets",
            reads(Space.ACTIVATION, (targets, targets + size)),
            reads(Space.ACCUMULATOR, (rows, rows + classes)),
            writes(Space.ACTIVATION, (codes, codes + size)),
        )
        turned = self.homes.turned
        self.builder.copy_bytes(
            Store, turned, codes, size, Memory.ACTIVATION, "store gradient by class"
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


def _add(row: int) -> dict[str, Any]:
    """Operand B: one accumulator row, added to every vector."""
    return {
        "tail": Tail.ADD,
        "b_source": OperandSource.ACCUMULATOR,
        "b_address": row,
        "b_strides": (0, 0, 0, 0, 0, 0),
    }
