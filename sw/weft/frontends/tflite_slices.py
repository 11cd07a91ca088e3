"""TFLite's operators that take boxes out of a tensor: SLICE, STRIDED_SLICE, SPLIT and SPLIT_V."""

from weft.frontends.tflite_file import TfliteOperator
from weft.frontends.tflite_pieces import Importer, require_same_quantization, require_shape
from weft.ir import Slice, Tensor

__all__ = ["slice_", "split", "split_v", "strided_slice"]

WHOLE_NUMBERS = ("INT32", "INT64")


def slice_(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((3,))
    source, output = importer.activation(0), importer.result()
    shape = (1, *source.shape)
    first, counts = (_numbers(importer, position, len(shape)) for position in (1, 2))
    sizes = [
        size - begin if count == -1 else count
        for size, begin, count in zip(shape, first, counts, strict=True)
    ]
    _emit(importer, source, output, first, [1] * len(shape), sizes)


def strided_slice(importer: Importer, operator: TfliteOperator) -> None:
    """Of the masks all but the ellipsis and new axes; an image of one pixel may shrink."""
    importer.expect((4,))
    source, output = importer.activation(0), importer.result()
    for option in ("EllipsisMask", "NewAxisMask"):
        if importer.option(option, 0):
            importer.refuse(f"has the option {option}; write the slice of every axis instead")
    shape = (1, *source.shape)
    begin, end, steps = (_numbers(importer, position, len(shape)) for position in (1, 2, 3))
    if min(steps) < 1:
        importer.refuse(f"has the strides {steps}; weft takes positive ones")
    masks = [importer.option(name, 0) for name in ("BeginMask", "EndMask", "ShrinkAxisMask")]
    if importer.option("Offset", False):
        end = [low + length for low, length in zip(begin, end, strict=True)]
    first, sizes = [], []
    for axis, size in enumerate(shape):
        free_begin, free_end, single = (bool(mask >> axis & 1) for mask in masks)
        low = 0 if free_begin else _inside(begin[axis], size)
        high = size if free_end else _inside(end[axis], size)
        if single:
            high = low + 1
        first.append(low)
        sizes.append(-(-(high - low) // steps[axis]))
    _emit(importer, source, output, first, steps, sizes)


def split(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((2,), len(operator.outputs))
    axis = importer.constant(0, WHOLE_NUMBERS)
    source = importer.activation(1)
    count = len(operator.outputs)
    number = _axis(importer, int(axis.reshape(-1)[0]), source)
    size = (1, *source.shape)[number]
    if size % count:
        importer.refuse(f"cuts {size} elements into {count} equal parts")
    _emit_parts(importer, source, number, [size // count] * count)


def split_v(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((3,), len(operator.outputs))
    source = importer.activation(0)
    axis = importer.constant(2, WHOLE_NUMBERS)
    number = _axis(importer, int(axis.reshape(-1)[0]), source)
    sizes = _numbers(importer, 1, len(operator.outputs))
    rest = (1, *source.shape)[number] - sum(size for size in sizes if size >= 0)
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = rest
        rest = 0
    if rest or min(sizes) < 1:
        importer.refuse(f"cuts {(1, *source.shape)[number]} elements into parts of {sizes}")
    _emit_parts(importer, source, number, sizes)


def _numbers(importer: Importer, position: int, count: int) -> list[int]:
    values = importer.constant(position, WHOLE_NUMBERS).reshape(-1)
    if len(values) != count:
        importer.refuse(f"has {len(values)} values, not {count}", importer.operand(position))
    return [int(value) for value in values]


def _inside(position: int, size: int) -> int:
    """A position that may count from behind, clamped to the axis."""
    return min(max(position + size if position < 0 else position, 0), size)


def _axis(importer: Importer, axis: int, source: Tensor) -> int:
    rank = len(source.shape) + 1
    if not -rank <= axis < rank or axis % rank == 0:
        importer.refuse(f"cuts along axis {axis}; weft cuts samples, not batches")
    return axis % rank


def _emit_parts(importer: Importer, source: Tensor, axis: int, sizes: list[int]) -> None:
    shape = [1, *source.shape]
    begin = 0
    for position, size in enumerate(sizes):
        first = [0] * len(shape)
        first[axis], shape[axis] = begin, size
        output = importer.result(position)
        _emit(importer, source, output, first, [1] * len(shape), shape, f".{position}")
        begin += size


def _emit(
    importer: Importer,
    source: Tensor,
    output: Tensor,
    first: list[int],
    steps: list[int],
    sizes: list[int],
    suffix: str = "",
) -> None:
    """A slice; all lists begin with the batch axis."""
    require_same_quantization(importer, (source,), output)
    if first[0] != 0 or sizes[0] != 1 or steps[0] != 1:
        importer.refuse("takes a part of the batch; weft takes parts of samples")
    if steps[-1] != 1:
        importer.refuse(f"takes every channel of {steps[-1]}; weft takes neighbouring channels")
    inside = all(
        begin >= 0 and count >= 1 and begin + (count - 1) * step < size
        for begin, step, count, size in zip(
            first[1:], steps[1:], sizes[1:], source.shape, strict=True
        )
    )
    if not inside:
        importer.refuse(f"takes {sizes[1:]} elements from {first[1:]} of {source.shape}")
    shape = tuple(sizes[1:])
    fields = {"start": tuple(first[1:]), "step": tuple(steps[1:])}
    if len(shape) == 3 and output.shape == shape[2:] and shape[:2] == (1, 1):
        pixel = importer.between(output, "image", shape=shape)
        importer.emit(Slice, (source,), pixel, suffix, **fields)
        importer.reshape(pixel, output, f"{suffix}.flatten")
        return
    require_shape(importer, output, shape)
    importer.emit(Slice, (source,), output, suffix, **fields)
