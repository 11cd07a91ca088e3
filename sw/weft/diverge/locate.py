"""Which element of which tensor a place in a memory stands for, followed through the program."""

from dataclasses import dataclass

import numpy as np

from weft.program import Program, ProgramRegion
from weft_hw.instructions import (
    LOOPS_VECTOR_OUTER,
    Head,
    Load,
    Memory,
    OperandSource,
    Store,
    Vector,
)
from weft_sim.functional.nests import affine
from weft_sim.race_check import Space

__all__ = ["Logical", "locate", "region_coordinates", "stored_from"]

MEMORIES = {
    Memory.ACTIVATION: Space.ACTIVATION,
    Memory.WEIGHT: Space.WEIGHT,
    Memory.PARAMETER: Space.PARAMETER,
    Memory.LOOKUP: Space.LOOKUP,
    Memory.ACCUMULATOR: Space.ACCUMULATOR,
}
SOURCES = {
    OperandSource.ACTIVATION: Space.ACTIVATION,
    OperandSource.ACCUMULATOR: Space.ACCUMULATOR,
    OperandSource.WEIGHT: Space.WEIGHT,
}
REGIONS = {Space.ACTIVATION: "activation", Space.DRAM: "dram"}
ELEMENT_BYTES = (1, 2, 4)
FURTHEST = 64  # instructions behind the one in question among which a reader is looked for


@dataclass(frozen=True)
class Logical:
    """A tensor's element.

    Parameters
    ----------
    tensor : str
        Its name, or a description of constants.
    coordinates : (y, x, channel) or None
        None where the place is padding, or a constant that is no image.
    detail : str
        How it was found, if not by its address alone.
    """

    tensor: str
    coordinates: tuple[int, int, int] | None
    detail: str = ""


def locate(program: Program, index: int, space: Space, place: int) -> Logical | None:
    """The tensor element that a place holds after instruction ``index`` has written it.

    A place in a tensor's home says so itself. What LOAD brought is followed back to DRAM; what is
    under way in a tile is followed through the instructions that read it, element by element, up
    to a home. None if there is no such way.
    """
    symbol = program.symbols[index]
    found = _at_home(program, symbol.layer, space, place)
    if found is not None:
        return found
    instruction = program.decoded[index][1]
    if isinstance(instruction, Load):
        source = _moved(program, instruction, space, place)
        if source is None:
            return None
        return _at_home(program, symbol.layer, Space.DRAM, source) or _constant(
            program, index, source
        )
    return _forward(program, index, space, place)


def _forward(program: Program, index: int, space: Space, place: int) -> Logical | None:
    """Through the next readers of the place to the home of what they compute from it."""
    reader = ""
    for later in range(index + 1, min(index + 1 + FURTHEST, len(program.symbols))):
        instruction = program.decoded[later][1]
        if isinstance(instruction, Vector):
            moved = _through_vector(program, instruction, space, place)
        elif isinstance(instruction, Store):
            target = _moved(program, instruction, space, place)
            moved = None if target is None else (Space.DRAM, target)
        else:
            continue
        if moved is None:
            continue
        reader = reader or f"what {program.symbols[later].purpose} makes of it"
        space, place = moved
        found = _at_home(program, program.symbols[later].layer, space, place)
        if found is not None:
            return Logical(found.tensor, found.coordinates, reader)
    return None


def region_coordinates(region: ProgramRegion, place: int) -> tuple[int, int, int] | None:
    """(y, x, channel) of a byte of a region; None for padding."""
    pixel, channel = divmod(place - region.address, region.pitch)
    y, x = divmod(pixel - region.gap, region.width + region.gap)
    if not (0 <= y < region.height and x < region.width and channel < region.channels):
        return None
    return y, x, channel


def _at_home(program: Program, layer: int, space: Space, place: int) -> Logical | None:
    for region in program.regions:
        if (
            region.memory == REGIONS.get(space)
            and region.pitch
            and region.first_layer <= layer <= region.last_layer
            and region.address <= place < region.address + region.size
        ):
            return Logical(region.name, region_coordinates(region, place))
    return None


def _constant(program: Program, index: int, address: int) -> Logical | None:
    offset = address - program.constants_address
    if not 0 <= offset < len(program.constants):
        return None
    symbol = program.symbols[index]
    purpose = symbol.purpose.removeprefix("load ")
    return Logical(
        f"{purpose} of {program.layers[symbol.layer].name}", None, f"byte {offset} of the constants"
    )


def _moved(program: Program, instruction: Load | Store, space: Space, place: int) -> int | None:
    """DRAM address that a transfer moves a place of an on-chip memory from or to; last run wins."""
    if MEMORIES[Memory(instruction.memory)] is not space:
        return None
    wide = space is Space.ACCUMULATOR
    size = ELEMENT_BYTES[instruction.element] if wide else 1
    pitch = program.config.columns if wide else 1
    counts = instruction.counts
    local = affine(instruction.address, instruction.strides, counts) * pitch
    coordinate = affine(instruction.origin, instruction.steps, counts)
    exists = (coordinate >= 0) & (coordinate < instruction.extent)
    behind = np.broadcast_to(place - local, counts)
    inside = (behind >= 0) & (behind < instruction.run_bytes // size) & exists
    hits = np.argwhere(inside)
    if not len(hits):
        return None
    hit = tuple(hits[-1])
    dram = affine(instruction.dram_address, instruction.dram_strides, counts)
    return int(np.broadcast_to(dram, counts)[hit]) + int(behind[hit]) * size


def stored_from(program: Program, instruction: Store, address: int) -> tuple[Space, int] | None:
    """The on-chip place whose element a STORE of bytes moves to a DRAM address."""
    space = MEMORIES[Memory(instruction.memory)]
    if space is Space.ACCUMULATOR:
        return None
    counts = instruction.counts
    dram = affine(instruction.dram_address, instruction.dram_strides, counts)
    coordinate = affine(instruction.origin, instruction.steps, counts)
    behind = np.broadcast_to(address - dram, counts)
    exists = (coordinate >= 0) & (coordinate < instruction.extent)
    hits = np.argwhere((behind >= 0) & (behind < instruction.run_bytes) & exists)
    if not len(hits):
        return None
    hit = tuple(hits[-1])
    local = affine(instruction.address, instruction.strides, counts)
    return space, int(np.broadcast_to(local, counts)[hit]) + int(behind[hit])


def _through_vector(
    program: Program, instruction: Vector, space: Space, place: int
) -> tuple[Space, int] | None:
    """The first result that VECTOR computes from a place, lane by lane."""
    columns = program.config.columns
    counts = instruction.counts
    outer = counts[:LOOPS_VECTOR_OUTER]
    operands = [(instruction.a_source, instruction.a_address, instruction.a_strides, counts)]
    if instruction.tail or instruction.head is Head.DOT:
        loops = counts if instruction.head is Head.DOT else outer
        strides = instruction.b_strides[: len(loops)]
        operands.append((instruction.b_source, instruction.b_address, strides, loops))
    for source, address, strides, loops in operands:
        if SOURCES.get(OperandSource(source)) is not space:
            continue
        first = affine(address, strides, loops) * (columns if space is Space.ACCUMULATOR else 1)
        lane = np.broadcast_to(place - first, loops)
        inside = (lane >= 0) & (lane < columns)
        if instruction.last_lanes:
            inside[-1] &= lane[-1] < instruction.last_lanes
        hits = np.argwhere(inside)
        if not len(hits):
            continue
        hit = tuple(int(each) for each in hits[0])
        result = affine(instruction.address, instruction.strides, outer)
        start = int(np.broadcast_to(result, outer)[hit[:LOOPS_VECTOR_OUTER]])
        target = MEMORIES[Memory(instruction.destination)]
        if target is Space.ACCUMULATOR:
            start *= columns
        return target, start + int(lane[hit])
    return None
