"""A tensor's home, as a program's instructions leave it, against reference codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weft.diverge.engines import Written
from weft.diverge.locate import region_coordinates, stored_from
from weft.diverge.reference import Expected
from weft.diverge.report import Difference, Element, instruction_facts
from weft.diverge.state import describe_place
from weft.program import Program, ProgramRegion
from weft_hw.instructions import Store
from weft_sim.race_check import Space

__all__ = ["WrongTensor", "compare_tensor"]

NOBODY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class WrongTensor:
    """The first wrong element of a tensor: which instruction made it, where, and both values.

    ``home`` is the element's byte in the tensor's region; ``space`` and ``place`` are where the
    instruction put it, which for a tensor that is stored tile by tile is elsewhere.
    """

    index: int
    space: Space
    place: int
    region: ProgramRegion
    home: int
    values: tuple[int, int]
    elements: int

    def difference(self, program: Program) -> Difference:
        """As the report has it; the reference's value first."""
        memory = describe_place(self.space, self.place, program.config)
        if self.space is Space.ACTIVATION and self.region.memory == "dram":
            memory += f", stored to DRAM byte {self.home:#x}"
        element = Element(
            memory=memory,
            place=self.place,
            tensor=self.region.name,
            coordinates=region_coordinates(self.region, self.home),
        )
        values = dict(zip(("reference", "functional"), self.values, strict=True))
        facts = instruction_facts(program, self.index)
        return Difference(**facts, element=element, values=values, elements=self.elements)


def compare_tensor(
    program: Program, written: Sequence[Sequence[Written]], expected: Expected
) -> tuple[WrongTensor | None, int]:
    """The element that the earliest instruction got wrong, and how many elements were compared.

    What counts is the last write to each byte of the home while the tensor is alive.
    """
    region = expected.region
    writer = np.full(region.size, NOBODY)
    codes = np.zeros(region.size, np.int8)
    for index, each in _writes(program, written, expected):
        inside = (each.places >= region.address) & (each.places < region.address + region.size)
        at = each.places[inside] - region.address
        writer[at] = index
        codes[at] = each.values[inside].view(np.int8)
    compared = expected.known & (writer != NOBODY)
    wrong = np.flatnonzero(compared & (codes != expected.codes))
    if not len(wrong):
        return None, int(compared.sum())
    origins = [_origin(program, written, int(writer[at]), expected, int(at)) for at in wrong]
    first = min(range(len(wrong)), key=lambda number: origins[number][0])
    byte = int(wrong[first])
    index, space, place = origins[first]
    count = sum(origin[0] == index for origin in origins)
    values = int(expected.codes[byte]), int(codes[byte])
    found = WrongTensor(index, space, place, region, region.address + byte, values, count)
    return found, int(compared.sum())


def _writes(
    program: Program, written: Sequence[Sequence[Written]], expected: Expected
) -> list[tuple[int, Written]]:
    region = expected.region
    return [
        (index, each)
        for index, parts in enumerate(written)
        if region.first_layer <= program.symbols[index].layer <= region.last_layer
        for each in parts
        if each.space is expected.space
    ]


def _origin(
    program: Program,
    written: Sequence[Sequence[Written]],
    index: int,
    expected: Expected,
    at: int,
) -> tuple[int, Space, int]:
    """The instruction that computed an element, and where: behind a STORE, what it moved."""
    home = expected.region.address + at
    instruction = program.decoded[index][1]
    source = stored_from(program, instruction, home) if isinstance(instruction, Store) else None
    if source is not None:
        space, place = source
        for earlier in range(index - 1, -1, -1):
            for each in written[earlier]:
                if each.space is space and _holds(each.places, place):
                    return earlier, space, place
    return index, expected.space, home


def _holds(places: np.ndarray, place: int) -> bool:
    at = int(np.searchsorted(places, place))
    return at < len(places) and int(places[at]) == place
