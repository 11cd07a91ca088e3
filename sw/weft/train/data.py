"""Labelled pictures to train on: scikit-learn's digits, and a seeded generator of harder ones.

Both give int8 codes (picture, height, width, channel) with exponent -7, as the machine takes them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import InputError
from weft_hw.training import CODE_LIMIT

__all__ = [
    "CLASSES",
    "INPUT_EXPONENT",
    "SIDE",
    "DataSet",
    "digits",
    "input_codes",
    "pictures",
    "target_codes",
]

INPUT_EXPONENT = -7
CLASSES = 10
SIDE = 32
"""Height and width of a generated picture."""

NOISE = 45
CLUTTER = 4
CONTRAST = (20, 100)

Int8Array = NDArray[np.int8]
Int64Array = NDArray[np.int64]


def input_codes(values: ArrayLike) -> Int8Array:
    """Real inputs as codes of exponent -7: ``clamp(rint(128 x))`` to [-127, 127]."""
    scaled = np.rint(np.asarray(values, np.float64) * 2.0**-INPUT_EXPONENT)
    return np.clip(scaled, -CODE_LIMIT, CODE_LIMIT).astype(np.int8)


def target_codes(labels: ArrayLike, classes: int) -> Int8Array:
    """Labels (N,) as codes (N, classes): 127 at the label, else 0."""
    return np.eye(classes, dtype=np.int8)[np.asarray(labels)] * np.int8(CODE_LIMIT)


@dataclass(frozen=True)
class DataSet:
    """Pictures to train on, to choose by and to report.

    Parameters
    ----------
    name : str
    train_images, validation_images, test_images : int8 array (N, height, width, channels)
        Codes, exponent -7.
    train_labels, validation_labels, test_labels : int64 array (N,)
    """

    name: str
    train_images: Int8Array
    train_labels: Int64Array
    validation_images: Int8Array
    validation_labels: Int64Array
    test_images: Int8Array
    test_labels: Int64Array

    @classmethod
    def split(
        cls, name: str, images: Int8Array, labels: Int64Array, validation: int, test: int
    ) -> "DataSet":
        """The last ``test`` to report, ``validation`` before them to choose by, the rest to train.

        Raises
        ------
        InputError
            If nothing is left to train on.
        """
        train = len(images) - validation - test
        if train < 1:
            raise InputError(
                f"{len(images)} pictures are too few: {validation} to choose by and {test} to "
                "report leave none to train on"
            )
        first, second = train, train + validation
        return cls(
            name,
            images[:first],
            labels[:first],
            images[first:second],
            labels[first:second],
            images[second:],
            labels[second:],
        )


def digits(validation: int = 240) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels, one channel; 360 are held out.

    Raises
    ------
    MissingExtra
        If scikit-learn is not installed.
    """
    from weft.demo.data import load_digits

    bundled = load_digits()
    images = np.concatenate([bundled.train_images, bundled.test_images]).transpose(0, 2, 3, 1)
    labels = np.concatenate([bundled.train_labels, bundled.test_labels])
    return DataSet.split(
        "digits", input_codes(images), labels, validation, len(bundled.test_labels)
    )


def pictures(count: int = 4200, seed: int = 0, validation: int = 600, test: int = 1200) -> DataSet:
    """Generated pictures, 32x32 pixels, three channels, ten classes in equal shares.

    Each shows one figure (see :data:`FIGURES`) of random colour, size, place and tilt, over a
    background of two colours and before clutter, in strong noise. Integer arithmetic on raw
    numbers of PCG64 makes the same bytes everywhere.

    ``weft.train.networks.ResidualNetwork`` in float32 (SGD, rate 0.03 with warm-up, momentum 0.9,
    ten epochs of batches of 32) knew 85 % of the validation pictures after one run; such float
    runs alone fixed their difficulty.

    Parameters
    ----------
    count : int
        A multiple of 10.
    seed : int
    validation, test : int
        How many of them are held out.

    Raises
    ------
    InputError
        If ``count`` is no multiple of 10 or too small.
    """
    if count < 1 or count % CLASSES:
        raise InputError(f"{count} pictures: give a positive multiple of {CLASSES}")
    raw = np.random.PCG64(seed)
    labels = np.repeat(np.arange(CLASSES), count // CLASSES)
    labels = labels[np.argsort(raw.random_raw(count), kind="stable")]
    images = _draw(raw, labels)
    return DataSet.split("pictures", images, labels, validation, test)


def _draw(raw: np.random.PCG64, labels: Int64Array) -> Int8Array:
    count = len(labels)

    def between(low: int, high: int, *shape: int) -> Int64Array:
        """Whole numbers of [low, high], from the upper halves of raw numbers."""
        wanted = (count, *shape)
        upper = (raw.random_raw(int(np.prod(wanted))) >> np.uint64(32)).astype(np.int64)
        spread: Int64Array = (low + ((upper * (high - low + 1)) >> 32)).reshape(wanted)
        return spread

    y, x = (axis[None] for axis in np.mgrid[:SIDE, :SIDE])
    first, second = between(70, 150, 3), between(70, 150, 3)
    slope = (x * between(-4, 4, 1, 1) + y * between(-4, 4, 1, 1) + between(0, 127, 1, 1)) % 128
    share = np.minimum(slope, 127 - slope)[..., None]
    image = first[:, None, None] + (((second - first)[:, None, None] * share) >> 7)
    _clutter(image, x, y, between, CLUTTER)

    # In the figure's own frame, in sixteenths of a pixel; the tilt shears a little, too.
    tilt = between(-5, 5, 1, 1)
    across, down = x - between(10, 21, 1, 1), y - between(10, 21, 1, 1)
    u, v = 16 * across + tilt * down, 16 * down - tilt * across
    radius = 16 * between(6, 9, 1, 1)
    inside = np.zeros(image.shape[:3], bool)
    for label, figure in enumerate(FIGURES.values()):
        of_class = labels == label
        inside[of_class] = figure(u[of_class], v[of_class], radius[of_class])
    contrast = between(*CONTRAST, 3)
    image += np.where(inside[..., None], contrast[:, None, None], 0)
    _clutter(image, x, y, between, 1)

    noise = between(-NOISE, NOISE, SIDE, SIDE, 3) + between(-NOISE, NOISE, SIDE, SIDE, 3)
    codes: Int8Array = np.clip(image + noise // 2 - 128, -CODE_LIMIT, CODE_LIMIT).astype(np.int8)
    return codes


def _clutter(
    image: Int64Array,
    x: Int64Array,
    y: Int64Array,
    between: Callable[..., Int64Array],
    pieces: int,
) -> None:
    """Add slanted strokes of random place, length and colour."""
    for _ in range(pieces):
        across, down = x - between(0, SIDE - 1, 1, 1), y - between(0, SIDE - 1, 1, 1)
        rise, run = between(-4, 4, 1, 1), between(1, 4, 1, 1)
        along, aside = run * across + rise * down, run * down - rise * across
        norm = run * run + rise * rise
        length = between(2, 6, 1, 1)
        stroke = (along * along <= length * length * norm) & (aside * aside <= norm)
        image += np.where(stroke[..., None], between(-70, 70, 3)[:, None, None], 0)


Figure = Callable[[Int64Array, Int64Array, Int64Array], NDArray[np.bool_]]


def _square(u: Int64Array, v: Int64Array, half: Int64Array) -> NDArray[np.bool_]:
    return np.maximum(abs(u), abs(v)) <= half


def _ring(u: Int64Array, v: Int64Array, r: Int64Array) -> NDArray[np.bool_]:
    square = u * u + v * v
    return (square <= r * r) & (3 * square >= r * r)


def _triangle(u: Int64Array, v: Int64Array, r: Int64Array) -> NDArray[np.bool_]:
    return (abs(v) <= r) & (2 * abs(u) <= v + r)


def _stripes(along: Int64Array, u: Int64Array, v: Int64Array, r: Int64Array) -> NDArray[np.bool_]:
    return _square(u, v, r) & ((along + 512) % 64 < 32)


FIGURES: dict[str, Figure] = {
    "disc": lambda u, v, r: u * u + v * v <= r * r,
    "ring": _ring,
    "square": lambda u, v, r: _square(u, v, r - r // 8),
    "frame": lambda u, v, r: _square(u, v, r) & ~_square(u, v, r // 2),
    "diamond": lambda u, v, r: abs(u) + abs(v) <= r + r // 4,
    "triangle": _triangle,
    "plus": lambda u, v, r: (np.minimum(abs(u), abs(v)) <= r // 4) & _square(u, v, r),
    "cross": lambda u, v, r: (np.abs(abs(u) - abs(v)) <= r // 3) & _square(u, v, r - r // 8),
    "bars": lambda u, v, r: _stripes(u, u, v, r),
    "steps": lambda u, v, r: _stripes(v, u, v, r),
}
"""The ten classes: which pixels belong to a figure of radius r, u to the right and v downwards, all
in sixteenths of a pixel."""
