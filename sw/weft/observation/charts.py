"""Geometry of the report page's pictures: numbers in, shapes with coordinates out."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.observation.bus import BusActivity
from weft.observation.places import short_name
from weft.observation.timeline import Timeline
from weft.program import Program, ProgramRegion
from weft_hw.instructions import Queue
from weft_sim.device import RunResult

__all__ = ["Roofline", "bus_levels", "engine_lanes", "memory_maps", "roofline", "ticks"]

ROOFLINE_WIDTH, ROOFLINE_HEIGHT = 1000.0, 320.0
MEMORY_WIDTH, MEMORY_HEIGHT = 1000.0, 210.0
BUS_BUCKETS = 400
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

    ``roof`` is a polyline; ``points`` have x, y, radius, number, name and text; ``x_ticks`` and
    ``y_ticks`` pairs of position and label.
    """

    width: float
    height: float
    plot: tuple[float, float, float, float]
    roof: str
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
    peak = float(config.rows * config.columns)
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
    corners = [(first, first * config.bus_bytes), (ridge, peak), (high_x, peak)]
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
    return Roofline(
        width=ROOFLINE_WIDTH,
        height=ROOFLINE_HEIGHT,
        plot=(_LEFT, _TOP, right, bottom),
        roof=" ".join(f"{place_x(x)},{place_y(y)}" for x, y in corners),
        roof_text=f"peak: {peak:,.0f} a cycle; bus: {config.bus_bytes} bytes a cycle each way",
        points=points,
        x_ticks=[(place_x(value), f"{value:g}") for value in _decades(low_x, high_x)],
        y_ticks=[(place_y(value), f"{value:g}") for value in (*_decades(low_y, high_y), peak)],
    )


def _position(layer: dict[str, Any]) -> tuple[float | None, float]:
    moved = max(layer["loaded_bytes"], layer["stored_bytes"])
    return (layer["macs"] / moved if moved else None), layer["macs"] / layer["cycles"]


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
    """The static plan of each memory: blocks over time (cycles, or layers without a timeline)."""
    capacities = {"activation": program.config.activation_bytes, "dram": program.memory_bytes}
    titles = {"activation": "activation scratchpad", "dram": "DRAM"}
    maps = []
    for memory in sorted({region.memory for region in program.regions}):
        regions = [region for region in program.regions if region.memory == memory]
        regions += _whole_program(program) if memory == "dram" else []
        capacity = capacities.get(memory) or max(each.address + each.size for each in regions)
        blocks = [
            {**_block(program, timeline, each, capacity), "shade": index % 6}
            for index, each in enumerate(regions)
        ]
        maps.append(
            {
                "title": titles.get(memory, memory),
                "capacity": capacity,
                "width": MEMORY_WIDTH,
                "height": MEMORY_HEIGHT,
                "blocks": blocks,
                "end": timeline.cycles if timeline else len(program.layers),
                "unit": "cycles" if timeline else "layers",
            }
        )
    return maps


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


def _block(
    program: Program, timeline: Timeline | None, region: ProgramRegion, capacity: int
) -> dict[str, Any]:
    count = len(program.layers)
    start, end = float(region.first_layer), float(min(region.last_layer + 1, count))
    scale = float(count)
    when = f"layers {region.first_layer} to {min(region.last_layer, count - 1)}"
    if timeline is not None:
        scale = float(timeline.cycles)
        whole = region.first_layer == 0 and region.last_layer >= count
        first, last = timeline.data_span(region.first_layer, region.last_layer)
        start, end = (0.0, scale) if whole else (float(first), float(last))
        when = f"cycles {start:,.0f} to {end:,.0f}"
    x, width = MEMORY_WIDTH * start / scale, MEMORY_WIDTH * (end - start) / scale
    height = max(1.0, MEMORY_HEIGHT * region.size / capacity)
    y = MEMORY_HEIGHT * (1 - (region.address + region.size) / capacity)
    label = short_name(region.name)
    fits = width > _CHARACTER * len(label) + 6 and height > 12
    return {
        "x": round(x, 1),
        "y": round(y, 1),
        "width": round(width, 1),
        "height": round(height, 1),
        "label": label if fits else "",
        "text": f"{region.name}: {region.size:,} bytes at {region.address:#x}, {when}",
    }
