"""Padding, joining, taking apart: VECTOR copies codes from one place on chip to another."""

import dataclasses
from typing import Any

from weft.compiler.context import LayerTask
from weft.compiler.kernels import ceil_div
from weft.compiler.layout import Region, pixel_pitch
from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.vectors import (
    pixel_strides,
    result_fields,
    tile_source,
    trim,
    vector_read,
    window_fields,
)
from weft.ir import Concatenate, Interleave, Pad, Slice, Transpose
from weft_hw.instructions import OperandSource, Vector

__all__ = ["lower_concatenate", "lower_interleave", "lower_pad", "lower_slice", "lower_transpose"]


def lower_pad(task: LayerTask) -> None:
    """Emit a border: a sum over windows of one pixel, empty (so real 0) outside the image."""
    assert isinstance(task.kernel.operation, Pad)
    tensor = task.context.graph.tensor(task.kernel.operation.output)
    whole = task.kernel.whole
    for tile in task.tiles():
        region = tile_source(task, tile, whole)
        layout = task.operand(0, region)
        target = task.destination(tile)
        output = task.output_region(tile)
        window = window_fields(task, tile, whole, layout, region)
        accesses = [] if region.empty else [vector_read(task, tile, layout, region)]
        task.stream.emit(
            Vector(
                **window,
                a_zero_point=tensor.zero_point,
                zero_point=tensor.zero_point,
                clamp_low=-128,
                clamp_high=127,
                **result_fields(target, output, window["counts"], task.config),
            ),
            "pad",
            *accesses,
            writes(Space.ACTIVATION, target.span(output)),
        )
        task.finish(tile, target)


def lower_concatenate(task: LayerTask) -> None:
    """Emit a concatenation of channels: one VECTOR an input and tile.

    Only the model's channels are written: what lies behind them in a pixel meets weights of 0.
    """
    operation = task.kernel.operation
    assert isinstance(operation, Concatenate)
    graph, config = task.context.graph, task.config
    for tile in task.tiles():
        target = task.destination(tile)
        output = task.output_region(tile)
        first = 0
        for position, name in enumerate(operation.inputs):
            channels = graph.tensor(name).shape[2]
            region = Region(
                output.y0, output.y1, output.x0, output.x1, 0, pixel_pitch(channels, config)
            )
            layout = task.operand(position, region)
            counts = (ceil_div(channels, config.columns), 1, tile.rows, tile.columns, 1, 1)
            part = dataclasses.replace(output, c0=first, c1=first + channels)
            read = layout.span(region, slack=config.columns)
            _copy(
                task,
                "concatenate",
                counts,
                layout.at(tile.y, tile.x, 0),
                pixel_strides(layout, counts, config),
                reads(Space.ACTIVATION, read),
                result_fields(target, part, counts, config),
                writes(Space.ACTIVATION, target.span(part)),
            )
            first += channels
        task.finish(tile, target)


def lower_interleave(task: LayerTask) -> None:
    """Emit the copies of every input's pixels to their places: one VECTOR an input and tile."""
    operation = task.kernel.operation
    assert isinstance(operation, Interleave)
    config = task.config
    stride_y, stride_x = operation.stride
    for tile in task.tiles():
        target = task.destination(tile)
        output = task.output_region(tile)
        for position in range(len(operation.inputs)):
            phase_y, phase_x = divmod(position, stride_x)
            y0, y1 = (ceil_div(each - phase_y, stride_y) for each in (output.y0, output.y1))
            x0, x1 = (ceil_div(each - phase_x, stride_x) for each in (output.x0, output.x1))
            region = Region(y0, y1, x0, x1, output.c0, output.c1)
            if region.empty:
                continue
            layout = task.operand(position, region)
            counts = (tile.channels, 1, y1 - y0, x1 - x0, 1, 1)
            part = dataclasses.replace(
                output, y0=y0 * stride_y + phase_y, x0=x0 * stride_x + phase_x
            )
            fields = result_fields(target, part, counts, config)
            fields["strides"] = pixel_strides(target, counts, config, operation.stride)[:4]
            _copy(
                task,
                "interleave",
                counts,
                layout.at(y0, x0, region.c0),
                pixel_strides(layout, counts, config),
                vector_read(task, tile, layout, region),
                fields,
                writes(Space.ACTIVATION, target.span(part)),
            )
        task.finish(tile, target)


def lower_slice(task: LayerTask) -> None:
    """Emit the copies of a box of the image, which may begin at any channel: one VECTOR a tile.

    As in a concatenation, only the model's channels are written.
    """
    operation = task.kernel.operation
    assert isinstance(operation, Slice)
    config = task.config
    channels = task.kernel.result[2]
    start = operation.start
    for tile in task.tiles():
        target = task.destination(tile)
        output = task.output_region(tile)
        end = min(output.c1, channels)
        if output.c0 < end:
            region = task.kernel.source_region(
                tile.y, tile.rows, tile.x, tile.columns, task.kernel.whole
            )
            region = dataclasses.replace(region, c0=start[2] + output.c0, c1=start[2] + end)
            layout = task.operand(0, region)
            y, x = task.kernel.origin(tile.y, tile.x, task.kernel.whole)
            counts = (ceil_div(end - output.c0, config.columns), 1, tile.rows, tile.columns, 1, 1)
            part = dataclasses.replace(output, c1=end)
            _copy(
                task,
                "slice",
                counts,
                layout.at(y, x, region.c0),
                pixel_strides(layout, counts, config, task.kernel.stride),
                reads(Space.ACTIVATION, layout.span(region, slack=config.columns)),
                result_fields(target, part, counts, config),
                writes(Space.ACTIVATION, target.span(part)),
            )
        task.finish(tile, target)


def lower_transpose(task: LayerTask) -> None:
    """Emit the copies of rows into columns: one VECTOR a tile, which steps over the input's rows.

    The kernel's source is the input as if rows and columns had changed places already.
    """
    assert isinstance(task.kernel.operation, Transpose)
    for tile in task.tiles():
        swapped = tile_source(task, tile, task.kernel.whole)
        region = dataclasses.replace(
            swapped, y0=swapped.x0, y1=swapped.x1, x0=swapped.y0, x1=swapped.y1
        )
        layout = task.operand(0, region)
        target = task.destination(tile)
        output = task.output_region(tile)
        counts = (tile.channels, 1, tile.rows, tile.columns, 1, 1)
        steps = (task.config.columns, 0, layout.pitch, layout.row_pitch, 0, 0)
        _copy(
            task,
            "transpose",
            counts,
            layout.at(tile.x, tile.y, region.c0),
            trim(steps, counts),
            vector_read(task, tile, layout, region),
            result_fields(target, output, counts, task.config),
            writes(Space.ACTIVATION, target.span(output)),
        )
        task.finish(tile, target)


def _copy(
    task: LayerTask,
    purpose: str,
    counts: tuple[int, ...],
    address: int,
    strides: tuple[int, ...],
    read: Access,
    result: dict[str, Any],
    write: Access,
) -> None:
    """The VECTOR that takes codes as they are."""
    task.stream.emit(
        Vector(
            counts=counts,
            a_source=OperandSource.ACTIVATION,
            a_address=address,
            a_strides=strides,
            clamp_low=-128,
            clamp_high=127,
            **result,
        ),
        purpose,
        read,
        write,
    )
