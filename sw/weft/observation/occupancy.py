"""What lies in the on-chip memories from cycle to cycle, followed from the instructions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weft.observation.timeline import Slice, Timeline
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import (
    LOOPS_VECTOR_OUTER,
    TILE_LOOPS_MATRIX,
    Dataflow,
    Element,
    Head,
    Instruction,
    Load,
    Matrix,
    Memory,
    OperandSource,
    Store,
    Vector,
)

__all__ = ["Access", "Piece", "accesses", "occupancy"]


@dataclass(frozen=True)
class Access:
    """A range [low, high) of a memory that an instruction reads or writes.

    The range encloses every address that the loops can reach, whether or not coordinates bound the
    access. In rows of the accumulator memory, otherwise in bytes.
    """

    memory: Memory
    low: int
    high: int
    write: bool


@dataclass
class Piece:
    """Contents of a range [low, high), from the instruction that writes them to their last use."""

    memory: Memory
    low: int
    high: int
    start: int
    end: int
    layer: int
    tile: int
    purpose: str


def occupancy(timeline: Timeline) -> list[Piece]:
    """Everything that was written on chip, in stream order.

    A piece ends with the last instruction that reads it before it is overwritten as a whole, or
    with the one that wrote it if none reads it.
    """
    live: dict[Memory, list[Piece]] = {memory: [] for memory in Memory}
    pieces: list[Piece] = []
    for each in timeline.slices:
        for access in accesses(each.instruction, timeline.program.config):
            if access.write:
                _write(live[access.memory], pieces, access, each)
            else:
                _read(live[access.memory], access, each)
    return pieces


def _read(live: list[Piece], access: Access, by: Slice) -> None:
    """Each address was last written by the newest piece that has it: only that one is in use."""
    left = [(access.low, access.high)]
    for piece in reversed(live):
        if any(piece.low < high and low < piece.high for low, high in left):
            piece.end = max(piece.end, by.retire)
            parts = [
                part
                for low, high in left
                for part in ((low, min(high, piece.low)), (max(low, piece.high), high))
            ]
            left = [(low, high) for low, high in parts if low < high]


def _write(live: list[Piece], pieces: list[Piece], access: Access, by: Slice) -> None:
    for piece in live:
        if (piece.low, piece.high, piece.layer, piece.tile) == (
            access.low,
            access.high,
            by.layer,
            by.tile,
        ):  # sums that go on, or another part of the same tile
            piece.end = max(piece.end, by.retire)
            return
    live[:] = [piece for piece in live if piece.low < access.low or access.high < piece.high]
    piece = Piece(
        memory=access.memory,
        low=access.low,
        high=access.high,
        start=by.begin,
        end=by.retire,
        layer=by.layer,
        tile=by.tile,
        purpose=by.purpose,
    )
    live.append(piece)
    pieces.append(piece)


def accesses(instruction: Instruction, config: AcceleratorConfig) -> Iterator[Access]:
    """The on-chip ranges that an instruction reads, then those that it writes."""
    if isinstance(instruction, Load | Store):
        yield _transfer(instruction, config)
    elif isinstance(instruction, Matrix):
        yield from _matrix(instruction, config)
    elif isinstance(instruction, Vector):
        yield from _vector(instruction, config)


def _enclosed(
    address: int, counts: Sequence[int], strides: Sequence[int], size: int
) -> tuple[int, int]:
    reach = [(count - 1) * stride for count, stride in zip(counts, strides, strict=False)]
    low = address + sum(min(0, each) for each in reach)
    return low, address + sum(max(0, each) for each in reach) + size


def _transfer(instruction: Load | Store, config: AcceleratorConfig) -> Access:
    size = instruction.run_bytes
    if instruction.memory == Memory.ACCUMULATOR:
        row = (
            config.columns
            * {Element.INT8: 1, Element.INT16: 2, Element.INT32: 4}[Element(instruction.element)]
        )
        size = -(-size // row)
    span = _enclosed(instruction.address, instruction.counts, instruction.strides, size)
    return Access(instruction.memory, *span, write=isinstance(instruction, Load))


def _matrix(instruction: Matrix, config: AcceleratorConfig) -> Iterator[Access]:
    counts = instruction.counts
    packed = 1 << instruction.weight_bits  # weights a byte
    left = _enclosed(
        instruction.left_address, counts, instruction.left_strides, config.rows * packed
    )
    yield Access(instruction.left_memory, *left, write=False)
    tiles = counts
    rows: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if instruction.dataflow == Dataflow.WEIGHT_STATIONARY:
        tiles = counts[:TILE_LOOPS_MATRIX]
        rows = (config.rows,), (instruction.tile_stride,)
    top = _enclosed(
        instruction.top_address,
        (*tiles, *rows[0]),
        (*instruction.top_strides[: len(tiles)], *rows[1]),
        config.columns,
    )
    yield Access(instruction.top_memory, *top, write=False)
    sums, strides = counts, instruction.accumulator_strides
    if instruction.dataflow == Dataflow.OUTPUT_STATIONARY:
        sums = (*counts[:TILE_LOOPS_MATRIX], config.rows)
        strides = (*strides[:TILE_LOOPS_MATRIX], instruction.tile_stride)
    target = _enclosed(instruction.accumulator_address, sums, strides, 1)
    yield Access(Memory.ACCUMULATOR, *target, write=True)


def _vector(instruction: Vector, config: AcceleratorConfig) -> Iterator[Access]:
    counts = instruction.counts
    of_b = counts if instruction.head == Head.DOT else counts[:LOOPS_VECTOR_OUTER]
    for source, address, loops, strides in (
        (instruction.a_source, instruction.a_address, counts, instruction.a_strides),
        (instruction.b_source, instruction.b_address, of_b, instruction.b_strides),
    ):
        if source != OperandSource.NONE:
            memory = Memory[source.name]
            size = 1 if memory == Memory.ACCUMULATOR else config.columns
            yield Access(memory, *_enclosed(address, loops, strides, size), write=False)
    size = 1 if instruction.destination == Memory.ACCUMULATOR else config.columns
    span = _enclosed(instruction.address, instruction.counts, instruction.strides, size)
    yield Access(instruction.destination, *span, write=True)
