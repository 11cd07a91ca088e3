"""Operations that VECTOR does alone: pooling, sums of two images, masks, and their gradients."""

from collections.abc import Iterator
from typing import Any

from weft.compiler.stream import Access, Space, reads, writes
from weft.compiler.vectors import trim
from weft.train.machine.builder import Box, Builder, ImageTile, Slab
from weft.train.machine.fields import (
    EVEN,
    from_slab,
    positive,
    scalar_scale,
    tile_strides,
    to_slab,
    to_tile,
)
from weft.train.machine.homes import ImageHome
from weft.train.machine.scalars import Register, Scalars
from weft.train.step import (
    Add,
    AveragePool,
    AveragePoolGradient,
    Exponent,
    Image,
    Mask,
    MaxPool,
    MaxPoolGradient,
)
from weft_hw.instructions import (
    Head,
    Load,
    Memory,
    OperandSource,
    ScaleSource,
    Tail,
    Vector,
)
from weft_hw.training import LARGEST_RESIDUAL_SHIFT, ONE

__all__ = [
    "average_pool_gradient",
    "average_pool_sums",
    "boxes",
    "mask",
    "max_pool",
    "max_pool_gradient",
    "residual_exponents",
    "residual_sums",
]


def boxes(home: ImageHome, vectors: int) -> Iterator[Box]:
    """Boxes of at most so many vectors that cover a batch of images, as compact as can be."""
    height, width, _ = home.image.shape
    tiles = min(home.tiles, max(1, vectors))
    columns = min(width, max(1, vectors // tiles))
    rows = min(height, max(1, vectors // (tiles * columns))) if columns == width else 1
    images = 1
    if rows == height:
        images = min(home.batch, max(1, vectors // (tiles * columns * rows)))
    for n in range(0, home.batch, images):
        for t in range(0, home.tiles, tiles):
            for y in range(0, height, rows):
                for x in range(0, width, columns):
                    yield Box(
                        (n, min(n + images, home.batch)),
                        (y, min(y + rows, height)),
                        (x, min(x + columns, width)),
                        (t, min(t + tiles, home.tiles)),
                    )


def _windows(box: Box, window: tuple[int, int]) -> Box:
    """The pixels whose windows make a box of results."""
    (y0, y1), (x0, x1), (i, j) = box.rows, box.columns, window
    return Box(box.images, (y0 * i, y1 * i), (x0 * j, x1 * j), box.tiles)


def _result_vectors(builder: Builder, window: tuple[int, int]) -> int:
    """Results of a pooling tile, so that its windows are no larger than a tile."""
    return max(1, builder.limit_rows // (window[0] * window[1]))


def _load(builder: Builder, image: Image, box: Box) -> Slab:
    home = builder.images[image.name]
    return builder.load_box(home, box, Memory.ACTIVATION, builder.staging, f"load {image.name}")


def _window_fields(
    source: Slab, box: Box, window: tuple[int, int]
) -> tuple[dict[str, Any], Access]:
    """Operand A: the windows of a box of results, over the window loops."""
    i, j = window
    counts = (*box.counts, i, j)
    strides = (
        *(source.side, source.image_pitch, i * source.row_pitch, j * source.pitch),
        *(source.row_pitch, source.pitch),
    )
    fields: dict[str, Any] = {
        "counts": counts,
        "a_source": OperandSource.ACTIVATION,
        "a_address": source.address,
        "a_strides": trim(strides, counts),
    }
    return fields, reads(Space.ACTIVATION, source.span)


def average_pool_sums(builder: Builder, operation: AveragePool) -> Iterator[ImageTile]:
    """Sums over windows."""
    home = builder.images[operation.result.name]
    for box in boxes(home, _result_vectors(builder, operation.window)):
        source = _load(builder, operation.source, _windows(box, operation.window))
        tile = ImageTile(builder.accumulators(box.vectors), box)
        fields, read = _window_fields(source, box, operation.window)
        target, written = to_tile(tile)
        builder.stream.emit(Vector(**fields, **target), "sum windows", read, written)
        yield tile


def max_pool(builder: Builder, operation: MaxPool) -> None:
    """Largest codes, and their places."""
    home = builder.images[operation.result.name]
    index_home = builder.images[operation.index.name]
    for box in boxes(home, _result_vectors(builder, operation.window)):
        source = _load(builder, operation.source, _windows(box, operation.window))
        for head, into in ((Head.MAXIMUM, home), (Head.INDEX_OF_MAXIMUM, index_home)):
            slab = builder.place(builder.staging, box)
            fields, read = _window_fields(source, box, operation.window)
            target, written = to_slab(slab)
            builder.stream.emit(Vector(**fields, **target, head=head), "pool", read, written)
            builder.store_slab(into, slab, f"store {into.image.name}")


def _zeros(builder: Builder, slab: Slab) -> None:
    """Clear a slab."""
    builder.stream.emit(
        Load(address=slab.address, run_bytes=slab.size, memory=Memory.ACTIVATION, extent=0),
        "clear",
        writes(Space.ACTIVATION, slab.span),
    )


def _spread_boxes(
    builder: Builder, gradient: Image, result: Image, window: tuple[int, int]
) -> Iterator[tuple[Box, Box]]:
    """Boxes of a pool's result, and those of its source that belong to them.

    What lies outside all windows belongs to the last row and column of results.
    """
    home = builder.images[gradient.name]
    height, width, _ = result.shape
    rows, columns, _ = gradient.shape
    reach = (height - (rows - 1) * window[0], width - (columns - 1) * window[1])
    for box in boxes(home, _result_vectors(builder, reach)):
        wide = _windows(box, window)
        y1 = height if box.rows[1] == rows else wide.rows[1]
        x1 = width if box.columns[1] == columns else wide.columns[1]
        yield box, Box(box.images, (wide.rows[0], y1), (wide.columns[0], x1), box.tiles)


def _at_place(slab: Slab, box: Box, window: tuple[int, int], place: int) -> tuple[int, ...]:
    """Address of a place of the first window, then byte strides from window to window."""
    y, x = divmod(place, window[1])
    strides = (
        *(slab.side, slab.image_pitch),
        *(window[0] * slab.row_pitch, window[1] * slab.pitch),
    )
    return slab.address + y * slab.row_pitch + x * slab.pitch, *trim(strides, box.counts)


def max_pool_gradient(builder: Builder, operation: MaxPoolGradient) -> None:
    """The gradient at each place of the windows, where the index names it."""
    window, home = operation.window, builder.images[operation.result.name]
    for box, wide in _spread_boxes(builder, operation.gradient, operation.result, window):
        gradient = _load(builder, operation.gradient, box)
        index = _load(builder, operation.index, box)
        slab = builder.place(builder.staging, wide)
        if wide.vectors != box.vectors * window[0] * window[1]:
            _zeros(builder, slab)
        a, a_read = from_slab(gradient)
        b, b_read = from_slab(index, "b")
        for place in range(window[0] * window[1]):
            address, *strides = _at_place(slab, box, window, place)
            builder.stream.emit(
                Vector(
                    **a,
                    **b,
                    tail=Tail.SELECT,
                    select_low=place - 1,
                    select_high=place + 1,
                    destination=Memory.ACTIVATION,
                    address=address,
                    strides=tuple(strides),
                ),
                "spread",
                a_read,
                b_read,
                writes(Space.ACTIVATION, slab.span),
            )
        builder.store_slab(home, slab, f"store {operation.result.name}")


def average_pool_gradient(builder: Builder, operation: AveragePoolGradient) -> None:
    """The gradient, scaled, at every place of the windows."""
    window, home = operation.window, builder.images[operation.result.name]
    for box, wide in _spread_boxes(builder, operation.gradient, operation.result, window):
        gradient = _load(builder, operation.gradient, box)
        mask = _load(builder, operation.mask, wide) if operation.mask is not None else None
        slab = builder.place(builder.staging, wide)
        if wide.vectors != box.vectors * window[0] * window[1]:
            _zeros(builder, slab)
        fields, a_read = from_slab(gradient)
        accesses = [a_read]
        if operation.multiplier != ONE:
            fields |= {
                "scale_source": ScaleSource.INSTRUCTION,
                "multiplier": operation.multiplier,
                "exponent": 1,
                "rounding": EVEN,
            }
        if mask is not None:
            passing, mask_read = positive(mask)
            fields |= passing
            accesses.append(mask_read)
        for first in _spread(fields, box, window, slab):
            if mask is not None:
                shift = first["address"] - slab.address
                first |= {
                    "b_address": mask.address + shift,
                    "b_strides": (*first["strides"], 0, 0),
                }
            builder.stream.emit(
                Vector(**first, destination=Memory.ACTIVATION),
                "spread",
                *accesses,
                writes(Space.ACTIVATION, slab.span),
            )
        builder.store_slab(home, slab, f"store {operation.result.name}")


def _spread(
    fields: dict[str, Any], box: Box, window: tuple[int, int], slab: Slab
) -> Iterator[dict[str, Any]]:
    """Instructions' fields that write a gradient to all places: by place, or by window."""
    tiles, images, rows, columns = box.counts
    if rows * columns >= window[0] * window[1]:
        for place in range(window[0] * window[1]):
            address, *steps = _at_place(slab, box, window, place)
            yield fields | {"address": address, "strides": tuple(steps)}
        return
    counts = (tiles, images, *window, 1, 1)
    a_tile, a_image, a_row, a_column, *_ = fields["a_strides"]
    for y in range(rows):
        for x in range(columns):
            address = slab.address + y * window[0] * slab.row_pitch + x * window[1] * slab.pitch
            strides = slab.side, slab.image_pitch, slab.row_pitch, slab.pitch
            yield fields | {
                "counts": counts,
                "a_address": fields["a_address"] + y * a_row + x * a_column,
                "a_strides": (a_tile, a_image, 0, 0, 0, 0),
                "address": address,
                "strides": trim(strides, counts),
            }


def mask(builder: Builder, operation: Mask) -> None:
    """Codes where the mask is positive."""
    home = builder.images[operation.result.name]
    for box in boxes(home, builder.limit_rows):
        gradient = _load(builder, operation.gradient, box)
        other = _load(builder, operation.mask, box)
        slab = builder.place(builder.staging, box)
        a, a_read = from_slab(gradient)
        b, b_read = positive(other)
        target, written = to_slab(slab)
        builder.stream.emit(Vector(**a, **b, **target), "mask", a_read, b_read, written)
        builder.store_slab(home, slab, f"store {operation.result.name}")


def residual_exponents(scalars: Scalars, first: Exponent, second: Exponent) -> None:
    """SUMS: the exponent of a sum; FIRST and SECOND: the scales of its operands."""
    scalars.exponent(Register.FIRST, first)
    scalars.exponent(Register.SECOND, second)
    scalars.larger(Register.OTHER, Register.FIRST, Register.SECOND)
    scalars.add(Register.OTHER, Register.OTHER, -LARGEST_RESIDUAL_SHIFT)
    scalars.smaller(Register.SUMS, Register.FIRST, Register.SECOND)
    scalars.larger(Register.SUMS, Register.SUMS, Register.OTHER)
    for operand in (Register.FIRST, Register.SECOND):
        scalars.subtract(operand, operand, Register.SUMS)
        scalars.scale_exponent(operand, operand)


def residual_sums(builder: Builder, operation: Add) -> Iterator[ImageTile]:
    """Sums of two images in their common exponent.

    Call :func:`residual_exponents` first; the registers FIRST and SECOND must stay until the end.
    """
    home = builder.images[operation.result.name]
    for box in boxes(home, builder.limit_rows):
        tile = ImageTile(builder.accumulators(box.vectors), box)
        target, written = to_tile(tile)
        rows = reads(Space.ACCUMULATOR, tile.access)
        for number, (image, register) in enumerate(
            ((operation.first, Register.FIRST), (operation.second, Register.SECOND))
        ):
            slab = _load(builder, image, box)
            fields, read = from_slab(slab)
            fields |= target | scalar_scale(Register.ONE, register)
            accesses = [read]
            if number:
                fields |= {
                    "tail": Tail.ADD,
                    "b_source": OperandSource.ACCUMULATOR,
                    "b_address": tile.address,
                    "b_strides": tile_strides(box),
                }
                accesses.append(rows)
            builder.stream.emit(Vector(**fields), "add", *accesses, written)
        yield tile
