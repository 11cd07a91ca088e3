"""Geometry of the report page's pictures: numbers in, shapes with coordinates out."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.observation.bus import BusActivity
from weft.observation.occupancy import Piece, occupancy
from weft.observation.places import short_name
from weft.observation.timeline import Timeline
from weft.program import Program, ProgramRegion
from weft_hw.instructions import Matrix, Memory, Queue
from weft_sim.device import RunResult

__all__ = ["Roofline", "bus_levels", "engine_lanes", "memory_maps", "roofline", "ticks"]

ROOFLINE_WIDTH, ROOFLINE_HEIGHT = 1000.0, 320.0
MEMORY_WIDTH, MEMORY_HEIGHT = 1000.0, 150.0
BUS_BUCKETS = 400
SHADES = 6
_LEFT, _BOTTOM, _TOP, _RIGHT = 58.0, 42.0, 16.0, 16.0  # margins of the roofline's plot
_CHARACTER = 6.3  # width of one in a label of the memory map


def ticks(end: float, count: int = 8) -> list[int]:
    """About ``count`` round numbers from 0 up to ``end``."""
    if end <= 0:
        return [0]
    rough = max(end / count, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    return list(range(0, int(end) + 1, int(step)))


# Roofline ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roofline:
    """A plot of multiply-accumulates a cycle over multiply-accumulates a byte, both logarithmic.

    ``roofs`` are polylines; ``points`` have x, y, radius, bound, text and label (one for those that
    lie nearly at one place); ``x_ticks`` and ``y_ticks`` are pairs of position and label.
    """

    width: float
    height: float
    plot: tuple[float, float, float, float]
    roofs: list[str]
    roof_text: str
    points: list[dict[str, Any]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def roofline(program: Program, report: dict[str, Any]) -> Roofline | None:
    """Each layer with multiply-accumulates and cycles below the roof of array and bus.

    The bus moves ``bus_bytes`` a cycle in each direction; a layer's bytes are those of its busier
    direction. A layer that moves none is drawn at the right edge.
    """
    config = program.config
    elements = config.rows * config.columns
    packed = {
        1 << each.weight_bits for _, each in program.decoded if isinstance(each, Matrix)
    }  # narrow weights: several multiply-accumulates an element
    peaks = [float(elements * each) for each in sorted(packed | {1})]
    peak = peaks[-1]
    layers = [
        (number, layer)
        for number, layer in enumerate(report["layers"])
        if layer["macs"] and layer["cycles"]
    ]
    if not layers:
        return None
    ridge = peak / config.bus_bytes
    known = [(number, layer, *_position(layer)) for number, layer in layers]
    finite = [x for _, _, x, _ in known if x is not None]
    low_x = 10 ** math.floor(math.log10(min([*finite, ridge]) / 1.5))
    high_x = 10 ** math.ceil(math.log10(max([*finite, ridge]) * 1.5))
    low_y = 10 ** math.floor(math.log10(min(y for *_, y in known)))
    high_y = peak * 1.6
    right, bottom = ROOFLINE_WIDTH - _RIGHT, ROOFLINE_HEIGHT - _BOTTOM

    def place_x(value: float) -> float:
        share = math.log(value / low_x) / math.log(high_x / low_x)
        return round(_LEFT + share * (right - _LEFT), 1)

    def place_y(value: float) -> float:
        share = math.log(max(value, low_y) / low_y) / math.log(high_y / low_y)
        return round(bottom - share * (bottom - _TOP), 1)

    first = max(low_x, low_y / config.bus_bytes)
    slope = [(first, first * config.bus_bytes), (ridge, peak)]
    roofs = [
        [*(slope if each == peak else []), (each / config.bus_bytes, each), (high_x, each)]
        for each in peaks
    ]
    most = max(layer["cycles"] for _, layer in layers)
    points = []
    for number, layer, x, y in known:
        points.append(
            {
                "x": right if x is None else place_x(x),
                "y": place_y(y),
                "radius": round(4 + 10 * math.sqrt(layer["cycles"] / most), 1),
                "number": number,
                "bound": layer["bound"],
                "text": f"{layer['name']}: {y:.1f} multiply-accumulates a cycle, "
                + (f"{x:,.1f} a byte" if x is not None else "no DRAM traffic"),
            }
        )
    points.sort(key=lambda point: -point["radius"])
    clear = [value for value in _decades(low_y, high_y) if all(_apart(value, p) for p in peaks)]
    _label(points)
    return Roofline(
        width=ROOFLINE_WIDTH,
        height=ROOFLINE_HEIGHT,
        plot=(_LEFT, _TOP, right, bottom),
        roofs=[" ".join(f"{place_x(x)},{place_y(y)}" for x, y in each) for each in roofs],
        roof_text=f"peak: {' or '.join(f'{each:,.0f}' for each in peaks)} a cycle; "
        f"bus: {config.bus_bytes} bytes a cycle each way",
        points=points,
        x_ticks=[(place_x(value), f"{value:g}") for value in _decades(low_x, high_x)],
        y_ticks=[(place_y(value), f"{value:g}") for value in (*clear, *peaks)],
    )


def _label(points: list[dict[str, Any]]) -> None:
    """Numbers beside circles; one label for those that cover each other."""
    groups: list[list[dict[str, Any]]] = []
    for point in points:
        for group in groups:
            first = group[0]
            if math.hypot(first["x"] - point["x"], first["y"] - point["y"]) < first["radius"]:
                group.append(point)
                break
        else:
            groups.append([point])
    for group in groups:
        numbers = ", ".join(str(number) for number in sorted(each["number"] for each in group))
        for each in group:
            each["label"] = numbers if each is group[0] else ""


def _position(layer: dict[str, Any]) -> tuple[float | None, float]:
    moved = max(layer["loaded_bytes"], layer["stored_bytes"])
    return (layer["macs"] / moved if moved else None), layer["macs"] / layer["cycles"]


def _apart(one: float, other: float) -> bool:
    """Whether two labels of the roofline's axis have room for both."""
    return not 0.6 < one / other < 1.6


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**power for power in range(first, last + 1)]


# Timeline ----------------------------------------------------------------------------------------


def engine_lanes(timeline: Timeline) -> list[dict[str, Any]]:
    """A lane an engine: name, and slices with start, length, shade (by layer) and text."""
    program = timeline.program
    lanes = []
    for queue in (Queue.MATRIX, Queue.VECTOR, Queue.LOAD, Queue.STORE):
        slices = [
            {
                "start": each.begin,
                "length": each.retire - each.begin,
                "shade": each.layer % 2,
                "text": f"{program.layers[each.layer].name}, tile {each.tile}: {each.purpose}, "
                f"cycles {each.begin:,} to {each.retire:,}",
            }
            for each in timeline.of_queue(queue)
        ]
        lanes.append({"name": queue.name, "slices": slices})
    return lanes


def bus_levels(program: Program, result: RunResult) -> list[dict[str, Any]]:
    """The share of each stretch of cycles in which beats moved: reads and writes."""
    if result.bus is None or not result.cycles:
        return []
    activity = BusActivity(program, result.bus)
    size = max(1, -(-result.cycles // BUS_BUCKETS))
    edges = np.append(np.arange(0, result.cycles, size), result.cycles)
    reads = np.concatenate([activity.load_beats, activity.fetch_beats])
    levels = []
    for name, beats in (("reads", reads), ("writes", activity.write_beats)):
        counts = np.histogram(beats, edges)[0]
        shares = counts / np.diff(edges)
        bars = [
            {"start": int(start), "length": int(length), "share": round(float(share), 3)}
            for start, length, share in zip(edges[:-1], np.diff(edges), shares, strict=True)
            if share
        ]
        levels.append({"name": name, "bars": bars})
    return levels


# Memory ------------------------------------------------------------------------------------------


def memory_maps(program: Program, timeline: Timeline | None) -> list[dict[str, Any]]:
    """Memories with blocks over time (cycles, or layers without a timeline).

    The activation scratchpad and DRAM have the tensors of the static plan. With a timeline the
    scratchpad shows tiles as well, and the weight and accumulator memories what is written there.
    """
    config = program.config
    regions = [each for each in program.regions if each.memory == "activation"]
    blocks = [_planned(program, timeline, each, config.activation_bytes) for each in regions]
    _shade(blocks)
    pieces = occupancy(timeline) if timeline else []
    if timeline:
        tiles = [
            piece
            for piece in pieces
            if piece.memory == Memory.ACTIVATION and not _in_plan(piece, regions)
        ]
        shown = [_piece(timeline, each, config.activation_bytes, "bytes") for each in tiles]
        blocks += [{**block, "shade": "tile"} for block in shown]
    maps = [_map("activation scratchpad", config.activation_bytes, "bytes", blocks)]
    for memory, title, capacity, unit in (
        (Memory.WEIGHT, "weight scratchpad", config.weight_bytes, "bytes"),
        (Memory.ACCUMULATOR, "accumulator memory", config.accumulator_total_rows, "rows"),
    ):
        if timeline:
            mine = [piece for piece in pieces if piece.memory == memory]
            blocks = [
                {**_piece(timeline, each, capacity, unit), "shade": each.layer % SHADES}
                for each in mine
            ]
            maps.append(_map(title, capacity, unit, blocks))
    regions = [each for each in program.regions if each.memory == "dram"]
    regions += _whole_program(program)
    blocks = [_planned(program, timeline, each, program.memory_bytes) for each in regions]
    _shade(blocks)
    maps.append(_map("DRAM", program.memory_bytes, "bytes", blocks))
    for each in maps:
        each["end"] = timeline.cycles if timeline else len(program.layers)
        each["axis"] = "cycles" if timeline else "layers"
    return maps


def _map(title: str, capacity: int, unit: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": title,
        "capacity": capacity,
        "unit": unit,
        "width": MEMORY_WIDTH,
        "height": MEMORY_HEIGHT,
        "blocks": blocks,
    }


def _shade(blocks: list[dict[str, Any]]) -> None:
    for index, block in enumerate(blocks):
        block["shade"] = index % SHADES


def _in_plan(piece: Piece, regions: list[ProgramRegion]) -> bool:
    """Whether a tensor of the plan lies there while the piece's layer runs."""
    return any(
        region.address < piece.high
        and piece.low < region.address + region.size
        and region.first_layer <= piece.layer <= region.last_layer
        for region in regions
    )


def _whole_program(program: Program) -> list[ProgramRegion]:
    """Parts of DRAM that are no tensors."""
    last = len(program.layers)
    parts = {
        "constants": (program.constants_address, len(program.constants)),
        "instructions": (program.instructions_address, len(program.instructions)),
    }
    return [
        ProgramRegion(
            memory="dram", name=name, address=at, size=size, first_layer=0, last_layer=last
        )
        for name, (at, size) in parts.items()
        if size
    ]


def _planned(
    program: Program, timeline: Timeline | None, region: ProgramRegion, capacity: int
) -> dict[str, Any]:
    """A tensor of the plan while it is in use."""
    count = len(program.layers)
    start, end, scale = region.first_layer, min(region.last_layer + 1, count), count
    when = f"layers {region.first_layer} to {min(region.last_layer, count - 1)}"
    if timeline is not None:
        whole = region.first_layer == 0 and region.last_layer >= count
        start, end = timeline.data_span(region.first_layer, region.last_layer)
        scale = timeline.cycles
        if whole:
            start, end = 0, scale
        when = f"cycles {start:,} to {end:,}"
    block = _rectangle(
        (start, end, scale), (region.address, region.address + region.size, capacity)
    )
    label = short_name(region.name)
    fits = block["width"] > _CHARACTER * len(label) + 6 and block["height"] > 12
    text = f"{region.name}: {region.size:,} bytes at {region.address:#x}, {when}"
    return {**block, "label": label if fits else "", "text": text}


def _piece(timeline: Timeline, piece: Piece, capacity: int, unit: str) -> dict[str, Any]:
    low, high = max(piece.low, 0), min(piece.high, capacity)
    layer = timeline.program.layers[piece.layer].name
    return {
        **_rectangle((piece.start, piece.end, timeline.cycles), (low, high, capacity)),
        "label": "",
        "text": f"{layer}, tile {piece.tile}: {piece.purpose}, {unit} {low:#x} to {high:#x}, "
        f"cycles {piece.start:,} to {piece.end:,}",
    }


def _rectangle(time: tuple[int, int, int], place: tuple[int, int, int]) -> dict[str, Any]:
    """From (start, end, whole) of either axis; addresses grow upwards."""
    start, end, whole = time
    low, high, capacity = place
    return {
        "x": round(MEMORY_WIDTH * start / whole, 1),
        "width": round(MEMORY_WIDTH * (end - start) / whole, 1),
        "y": round(MEMORY_HEIGHT * (1 - high / capacity), 1),
        "height": round(max(1.0, MEMORY_HEIGHT * (high - low) / capacity), 1),
    }
