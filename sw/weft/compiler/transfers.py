"""LOAD and STORE instructions that copy boxes of images, fill padding and fetch constants."""

from typing import TypeVar

from weft.compiler.layout import PixelLayout, Region
from weft.compiler.stream import Space, Stream, reads, writes
from weft_hw.config import AcceleratorConfig
from weft_hw.instruction_values import LOOKUP_ENTRIES
from weft_hw.instructions import COUNT_BITS, STRIDE_BITS, Load, Memory, Store

__all__ = [
    "fill_gap",
    "fill_weights",
    "load_box",
    "load_parameters",
    "load_table",
    "load_weights",
    "store_box",
]

LONGEST_RUN = (1 << STRIDE_BITS) - 1
MOST_TRIPS = (1 << COUNT_BITS) - 1

Transfer = TypeVar("Transfer", Load, Store)


def _box(kind: type[Transfer], dram: PixelLayout, chip: PixelLayout, part: Region) -> Transfer:
    """The transfer of a box that both layouts hold: as few and as long runs as they allow."""
    rows, columns, run = part.y1 - part.y0, part.x1 - part.x0, part.c1 - part.c0
    if run == dram.pitch == chip.pitch or columns == 1:
        run, columns = run * columns, 1
        whole_rows = run == dram.row_pitch == chip.row_pitch
        if (whole_rows or rows == 1) and run * rows <= LONGEST_RUN:
            run, rows = run * rows, 1
    return kind(
        dram_address=dram.at(part.y0, part.x0, part.c0),
        address=chip.at(part.y0, part.x0, part.c0),
        counts=(rows, columns, 1),
        dram_strides=(dram.row_pitch * (rows > 1), dram.pitch * (columns > 1), 0),
        strides=(chip.row_pitch * (rows > 1), chip.pitch * (columns > 1), 0),
        run_bytes=run,
        extent=1,  # every run exists: the coordinate is 0 throughout
    )


def load_box(
    stream: Stream, dram: PixelLayout, chip: PixelLayout, part: Region, purpose: str
) -> None:
    """Copy a box of an image from DRAM to the activation scratchpad."""
    stream.emit(
        _box(Load, dram, chip, part),
        purpose,
        reads(Space.DRAM, dram.span(part)),
        writes(Space.ACTIVATION, chip.span(part)),
    )


def store_box(
    stream: Stream, dram: PixelLayout, chip: PixelLayout, part: Region, purpose: str
) -> None:
    """Copy a box of an image from the activation scratchpad to DRAM."""
    stream.emit(
        _box(Store, dram, chip, part),
        purpose,
        reads(Space.ACTIVATION, chip.span(part)),
        writes(Space.DRAM, dram.span(part)),
    )


def fill_gap(stream: Stream, chip: PixelLayout, value: int, purpose: str) -> None:
    """Write the padding before the first row and behind every row of an image on chip."""
    if not chip.gap:
        return
    rows = chip.region.y1 - chip.region.y0
    for start in range(0, rows + 1, MOST_TRIPS):
        trips = min(rows + 1 - start, MOST_TRIPS)
        first = chip.address + start * chip.row_pitch
        span = first, first + (trips - 1) * chip.row_pitch + chip.gap * chip.pitch
        stream.emit(
            Load(
                dram_address=0,
                address=first,
                counts=(trips, 1, 1),
                strides=(chip.row_pitch if trips > 1 else 0, 0, 0),
                run_bytes=chip.gap * chip.pitch,
                extent=0,  # no run exists: all are filled, nothing is read
                fill=value,
            ),
            purpose,
            writes(Space.ACTIVATION, span),
        )


def load_weights(stream: Stream, dram_address: int, address: int, size: int) -> None:
    """Copy weight tiles to the weight scratchpad."""
    _load_run(stream, Memory.WEIGHT, Space.WEIGHT, dram_address, address, size, "load weights")


def load_table(stream: Stream, dram_address: int, address: int) -> None:
    """Copy a lookup table to its place."""
    _load_run(
        stream, Memory.LOOKUP, Space.LOOKUP, dram_address, address, LOOKUP_ENTRIES, "load table"
    )


def _load_run(
    stream: Stream,
    memory: Memory,
    space: Space,
    dram_address: int,
    address: int,
    size: int,
    purpose: str,
) -> None:
    stream.emit(
        Load(
            dram_address=dram_address,
            address=address,
            run_bytes=size,
            memory=memory,
            extent=1,
        ),
        purpose,
        reads(Space.DRAM, (dram_address, dram_address + size)),
        writes(space, (address, address + size)),
    )


def fill_weights(stream: Stream, address: int, size: int, value: int) -> None:
    """Write one value into a range of the weight scratchpad."""
    stream.emit(
        Load(
            dram_address=0,
            address=address,
            run_bytes=size,
            memory=Memory.WEIGHT,
            extent=0,  # the run does not exist: it is filled, nothing is read
            fill=value,
        ),
        "fill weights",
        writes(Space.WEIGHT, (address, address + size)),
    )


def load_parameters(
    stream: Stream, dram_address: int, row: int, rows: int, config: AcceleratorConfig
) -> None:
    """Copy parameter rows to the parameter memory."""
    size = config.parameter_row_bytes
    stream.emit(
        Load(
            dram_address=dram_address,
            address=row * config.parameter_row_pitch,
            counts=(rows, 1, 1),
            dram_strides=(size, 0, 0),
            strides=(config.parameter_row_pitch, 0, 0),
            run_bytes=size,
            memory=Memory.PARAMETER,
            extent=1,
        ),
        "load parameters",
        reads(Space.DRAM, (dram_address, dram_address + rows * size)),
        writes(Space.PARAMETER, (row, row + rows)),
    )
