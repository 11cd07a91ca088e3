"""Affine address generation for a whole loop nest at once, as arrays and as strided views."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.errors import WeftError
from weft_hw.instructions import Bounds, Matrix
from weft_sim.race_check import Access, Space

__all__ = [
    "Addresses",
    "ByteGather",
    "IndexPool",
    "access",
    "affine",
    "disjoint",
    "existing",
    "first_trip",
    "inside",
    "merged",
    "strided",
    "trips",
]

Addresses = NDArray[np.int64]

IndexPool = dict[bytes, NDArray[np.intp]]

MOST_TRIPS = 1 << 26
"""Trips of one nest that are expanded into arrays; more would not fit the host's memory."""


def trips(counts: Sequence[int], what: str) -> int:
    """The product of the counts.

    Raises
    ------
    WeftError
        If the nest is too large to be expanded.
    """
    product = int(np.prod(np.array(counts, dtype=object)))
    if product > MOST_TRIPS:
        raise WeftError(
            f"{what} has a loop nest of {product} trips; the functional engine executes up to "
            f"{MOST_TRIPS} an instruction"
        )
    return product


def affine(base: int, strides: Sequence[int], counts: Sequence[int]) -> Addresses:
    """``base + sum(index[i] * strides[i])`` for every index.

    One axis a loop; an axis along which nothing changes has length 1, to be broadcast.
    """
    result = np.full((1,) * len(counts), base, np.int64)
    for axis, (stride, count) in enumerate(zip(strides, counts)):
        if stride and count > 1:
            shape = [1] * len(counts)
            shape[axis] = count
            result = result + (np.arange(count) * stride).reshape(shape)
    return result


def first_trip(where: NDArray[np.bool_], counts: Sequence[int]) -> int:
    """Number, in loop order, of the first trip for which a broadcast condition holds."""
    return int(np.argmax(np.broadcast_to(where, counts)))


def inside(instruction: Matrix, stream: Bounds) -> NDArray[np.bool_] | None:
    """Which trips exist, by index, for the stream that a MATRIX bounds; None: all."""
    if instruction.bounds is not stream:
        return None
    counts = instruction.counts
    y = affine(instruction.y_origin, instruction.y_steps, counts)
    x = affine(instruction.x_origin, instruction.x_steps, counts)
    exists = (y >= 0) & (y < instruction.y_extent) & (x >= 0) & (x < instruction.x_extent)
    return None if exists.all() else exists


def existing(addresses: Addresses, exists: NDArray[np.bool_] | None) -> Addresses:
    """The addresses of the accesses that take place."""
    if exists is None:
        return addresses
    addresses, exists = np.broadcast_arrays(addresses, exists)
    return addresses[exists]


def merged(addresses: Addresses, width: int) -> tuple[Addresses, Addresses]:
    """The union of ``[address, address + width)`` as ascending, disjoint intervals."""
    starts = np.unique(addresses)
    if not len(starts):
        return starts, starts
    breaks = np.flatnonzero(starts[1:] > starts[:-1] + width)
    first = np.concatenate(([0], breaks + 1))
    last = np.concatenate((breaks, [len(starts) - 1]))
    return starts[first], starts[last] + width


def access(space: Space, addresses: Addresses, width: int, *, write: bool) -> Access:
    """The access of ``width`` places from each address."""
    return Access(space, *merged(addresses, width), write)


def disjoint(addresses: Addresses, widths: int | Addresses) -> bool:
    """Whether no two ranges ``[address, address + width)`` meet, widths by address."""
    flat = addresses.ravel()
    order = np.argsort(flat, kind="stable")
    ends = (flat + np.broadcast_to(widths, addresses.shape).ravel())[order]
    return bool((flat[order][1:] >= ends[:-1]).all())


def strided(
    memory: NDArray[Any], base: int, strides: Sequence[int], counts: Sequence[int], width: int
) -> NDArray[Any]:
    """A view of ``width`` elements of a flat memory from each address of a nest.

    The addresses have been checked; where a loop has one trip its stride does not matter.
    """
    size = memory.itemsize
    steps = [stride * size if count > 1 else 0 for stride, count in zip(strides, counts)]
    return np.ndarray(
        (*counts, width), memory.dtype, buffer=memory, offset=base * size, strides=(*steps, size)
    )


class ByteGather:
    """Reads ``width`` bytes from each of many addresses into one contiguous array.

    Whole units are copied, of as many bytes as the distances between all addresses allow: mostly
    of ``width`` bytes, which is many times faster than single ones.

    Parameters
    ----------
    memory : int8 array
        With ``fill_bytes`` of the simulator's own behind the last address.
    addresses : int64 array
    exists : bool array of the same shape, or None for all
        Where it is false the bytes come from the fill.
    width : int
        A power of two.
    fill_bytes : int
        At least twice the width, unless all exist.
    pool : dict
        Index arrays, which gathers of the same pattern share whatever address they begin at.
    """

    def __init__(
        self,
        memory: NDArray[np.int8],
        addresses: Addresses,
        exists: NDArray[np.bool_] | None,
        width: int,
        *,
        fill_bytes: int = 0,
        pool: IndexPool,
    ) -> None:
        self.size = addresses.size * width
        self._fill = memory[len(memory) - fill_bytes :] if exists is not None else None
        read = addresses if exists is None else addresses[exists]
        first = int(read.min()) if read.size else 0
        varying = int(np.bitwise_or.reduce(read - first, axis=None)) if read.size else 0
        self._unit = unit = min(width, varying & -varying or width)
        index = (addresses - first) // unit
        if unit < width:
            index = index[..., np.newaxis] + np.arange(width // unit)
        if exists is not None:
            absent = ~exists if unit == width else ~exists[..., np.newaxis]
            index = np.where(absent, -1, index)  # the last unit: it lies in the fill
        index = np.ascontiguousarray(index, np.intp).ravel()
        self._index = pool.setdefault(index.tobytes(), index)
        end = first + (len(memory) - first) // unit * unit
        self._units = memory[first:end].reshape(-1, unit)

    def target(self, out: NDArray[np.int8]) -> NDArray[np.int8]:
        """The view of a flat array of ``size`` bytes that :meth:`read` wants."""
        return out.reshape(-1, self._unit)

    def read(self, target: NDArray[np.int8], fill: int = 0) -> None:
        """Copy everything; reads that do not exist give ``fill``."""
        if self._fill is not None:
            self._fill.fill(fill)
        # "wrap" because "raise" would copy through another buffer; of the indexes only -1 wraps.
        self._units.take(self._index, axis=0, out=target, mode="wrap")
