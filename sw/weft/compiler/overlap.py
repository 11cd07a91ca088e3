"""Reordering of the stream: work of VECTOR alone moves between the tiles of the layers before it.

Layers are emitted one behind the other. A residual add, a pool, a depthwise convolution or a
rescale of tensors on chip uses VECTOR alone, which idles most of the time while a convolution
runs. So each tile of such a layer, with the LOADs of its constants, moves forward to just behind
the last tile that it conflicts with (that writes what it reads, or touches what it overwrites): the
serial order of all conflicting accesses stays, and so do all results.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from weft.compiler.stream import Access, Space, Step
from weft_hw.instructions import Queue

__all__ = ["overlap_layers"]

NOTHING = -1


@dataclass
class _Segment:
    """A stretch of memory: the latest places, in the new order, that wrote and read it."""

    end: int
    written: int = NOTHING
    read: int = NOTHING


@dataclass
class _Places:
    """The segments of one memory, sorted by start, without holes."""

    starts: list[int] = field(default_factory=lambda: [0])
    segments: list[_Segment] = field(default_factory=lambda: [_Segment(end=1 << 62)])

    def covering(self, access: Access) -> list[_Segment]:
        """The segments of a range, after splitting those that reach beyond it."""
        first, behind = self._split(access.start), self._split(access.end)
        return self.segments[first:behind]

    def _split(self, at: int) -> int:
        index = bisect.bisect_right(self.starts, at) - 1
        if self.starts[index] != at:
            old = self.segments[index]
            index += 1
            self.starts.insert(index, at)
            self.segments.insert(index, _Segment(old.end, old.written, old.read))
            old.end = at
        return index


def overlap_layers(steps: Sequence[Step]) -> list[Step]:
    """The steps in an order that lets VECTOR's own layers run beside the others."""
    tiles: list[list[Step]] = []
    for step in steps:
        if tiles and (tiles[-1][0].layer, tiles[-1][0].tile) == (step.layer, step.tile):
            tiles[-1].append(step)
        else:
            tiles.append([step])
    memories = {space: _Places() for space in Space}
    places: list[int] = []
    for index, tile in enumerate(tiles):
        place = index
        if _movable(tile):
            place = max((_latest(memories, step) for step in tile), default=NOTHING)
        places.append(place)
        for step in tile:
            _record(memories, step, place)
    # The sort is stable: tiles that moved to one place keep their order, behind that place's own.
    order = sorted(range(len(tiles)), key=places.__getitem__)
    return [step for index in order for step in tiles[index]]


def _movable(tile: Sequence[Step]) -> bool:
    """Whether a tile is VECTOR's own work, with the constants that LOAD brings for it."""
    constants = (Space.WEIGHT, Space.PARAMETER, Space.DRAM)
    others = [step for step in tile if step.instruction.queue is not Queue.VECTOR]
    return len(others) < len(tile) and all(
        step.instruction.queue is Queue.LOAD
        and all(access.space in constants for access in step.accesses)
        for step in others
    )


def _latest(memories: dict[Space, _Places], step: Step) -> int:
    """The last place that a step conflicts with."""
    latest = NOTHING
    for access in step.accesses:
        for segment in memories[access.space].covering(access):
            latest = max(latest, segment.written, segment.read if access.write else NOTHING)
    return latest


def _record(memories: dict[Space, _Places], step: Step, place: int) -> None:
    for access in step.accesses:
        for segment in memories[access.space].covering(access):
            if access.write:
                segment.written = max(segment.written, place)
            else:
                segment.read = max(segment.read, place)
