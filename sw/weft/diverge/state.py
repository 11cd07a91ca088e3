"""The memories of both engines as flat arrays of the same elements, place by place."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_sim.functional.memories import FILL_BYTES, Memories
from weft_sim.race_check import Access, Space
from weft_sim.rtl import RtlDevice

__all__ = ["ON_CHIP", "describe_place", "functional_state", "places", "rtl_state", "value_at"]

Flat = NDArray[Any]

ON_CHIP = (Space.PARAMETER, Space.LOOKUP, Space.WEIGHT, Space.ACTIVATION, Space.ACCUMULATOR)


def functional_state(memories: Memories, space: Space, config: AcceleratorConfig) -> Flat:
    """A memory of the functional engine: int8, int32 (accumulators) or uint8 (parameters, DRAM)."""
    match space:
        case Space.DRAM:
            return memories.dram
        case Space.ACTIVATION:
            return memories.activation[: len(memories.activation) - FILL_BYTES]
        case Space.WEIGHT:
            return memories.weight
        case Space.ACCUMULATOR:
            return memories.accumulator[:-1].reshape(-1)
        case Space.LOOKUP:
            return memories.lookup.reshape(-1)
        case Space.PARAMETER:
            rows = memories.parameter[: config.parameter_bytes].reshape(config.parameter_rows, -1)
            kept = np.zeros_like(rows)  # a machine drops what lies behind a row's last channel
            kept[:, : 9 * config.columns] = rows[:, : 9 * config.columns]
            return kept.reshape(-1)


def rtl_state(device: RtlDevice, space: Space) -> Flat:
    """A memory of the rtl engine, place by place as :func:`functional_state` has it."""
    match space:
        case Space.DRAM:
            return device.memory
        case Space.ACTIVATION:
            return device.on_chip.activation
        case Space.WEIGHT:
            return device.on_chip.weight
        case Space.ACCUMULATOR:
            return device.on_chip.accumulator.reshape(-1)
        case Space.LOOKUP:
            return device.on_chip.lookup
        case Space.PARAMETER:
            config, rows = device.config, device.on_chip.parameter
            kept = np.zeros((config.parameter_rows, config.parameter_row_pitch), np.uint8)
            kept[:, : rows.shape[1]] = rows
            return kept.reshape(-1)


def places(accesses: Iterable[Access], space: Space, config: AcceleratorConfig) -> Flat:
    """The places of a memory that these accesses write, ascending."""
    pieces = [
        np.arange(start, end)
        for access in accesses
        if access.write and access.space is space
        for start, end in zip(access.starts.tolist(), access.ends.tolist(), strict=True)
    ]
    if not pieces:
        return np.zeros(0, np.int64)
    found: Flat = np.unique(np.concatenate(pieces))
    if space is Space.ACCUMULATOR:
        lanes = np.arange(config.columns)
        found = (found[:, np.newaxis] * config.columns + lanes).reshape(-1)
    return found


def describe_place(space: Space, place: int, config: AcceleratorConfig) -> str:
    """A place of a memory in words."""
    match space:
        case Space.ACCUMULATOR:
            row, lane = divmod(place, config.columns)
            return f"accumulator memory, row {row}, lane {lane}"
        case Space.PARAMETER:
            row, name, channel, _ = _parameter(place, config)
            return f"parameter memory, row {row}, {name} of lane {channel}"
        case Space.DRAM:
            return f"DRAM, byte {place:#x}"
        case _:
            return f"{space.value.removesuffix(' byte')}, byte {place:#x}"


def value_at(state: Flat, space: Space, place: int, config: AcceleratorConfig) -> int:
    """The element at a place: int8 in DRAM and scratchpads, else as wide as it is."""
    if space is Space.PARAMETER:
        row, _, channel, (offset, kind) = _parameter(place, config)
        first = row * config.parameter_row_pitch + offset + channel * np.dtype(kind).itemsize
        return int(state[first : first + np.dtype(kind).itemsize].view(kind)[0])
    if space is Space.DRAM:
        return int(state[place : place + 1].view(np.int8)[0])
    return int(state[place])


def _parameter(
    place: int, config: AcceleratorConfig
) -> tuple[int, str, int, tuple[int, type[np.generic]]]:
    """Row, name, lane and (first byte of the kind in the row, dtype) of a parameter's byte."""
    row, byte = divmod(place, config.parameter_row_pitch)
    columns = config.columns
    if byte < 4 * columns:
        return row, "bias", byte // 4, (0, np.int32)
    if byte < 8 * columns:
        return row, "multiplier", (byte - 4 * columns) // 4, (4 * columns, np.uint32)
    return row, "exponent", byte - 8 * columns, (8 * columns, np.int8)
