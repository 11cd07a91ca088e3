"""The instruction stream of a depthwise 3x3 convolution, alone or with a 1x1 one behind it.

All images lie on chip whole, and the work goes band by band of output rows. VECTOR makes a band of
the depthwise convolution, then, while it makes the next one, MATRIX multiplies the band by the
pointwise weights, and VECTOR requantizes those sums after that next band. LOAD and STORE keep ahead
and behind. The first and the last bands are small, because nothing hides their load and their
store.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from weft.benchmarks.product import Product, ProductKind
from weft.compiler.kernels import ceil_div
from weft.compiler.stream import Space, Stream, reads, writes
from weft.compiler.synchronize import synchronize
from weft.compiler.transfers import load_parameters, load_weights
from weft.compiler.vectors import trim
from weft.errors import InputError
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import (
    End,
    Head,
    Load,
    Matrix,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Store,
    Vector,
)

__all__ = ["KERNEL", "SOURCE_ZERO", "SUMS_ZERO", "Layers", "Places", "depthwise_program"]

KERNEL = 3
SOURCE_ZERO, SUMS_ZERO = -5, 3
"""Zero points of the input and of the depthwise convolution's output."""

BAND = 4
"""Rows of a band between the first and the last ones."""


@dataclass(frozen=True)
class Layers:
    """Sizes of the two layers.

    Parameters
    ----------
    config : AcceleratorConfig
    height, width, channels : int
        Of the input.
    stride : int
        Of the depthwise convolution, padded by 1.
    filters : int
        Outputs of the pointwise convolution; 0 for none.
    depthwise : bool
        False: the pointwise convolution alone, of the input.
    """

    config: AcceleratorConfig
    height: int
    width: int
    channels: int
    stride: int = 1
    filters: int = 0
    depthwise: bool = True

    @property
    def pitch(self) -> int:
        """Bytes of a pixel of the input and of the depthwise convolution's output."""
        widest = max(self.config.rows, self.config.columns)
        return ceil_div(self.channels, widest) * widest

    @property
    def tiles(self) -> int:
        """Channel tiles of the depthwise convolution."""
        return self.pitch // self.config.columns

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height - 1) // self.stride + 1 if self.depthwise else self.height

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width - 1) // self.stride + 1 if self.depthwise else self.width

    @property
    def product(self) -> Product:
        """The pointwise convolution as a matrix product."""
        shape = self.out_height * self.out_width, self.pitch, self.filters
        return Product(self.config, ProductKind.Y, shape)

    @property
    def out_pitch(self) -> int:
        """Bytes of a pixel of the output."""
        return self.product.result_pitch if self.filters else self.pitch

    @property
    def depthwise_macs(self) -> int:
        """Multiply-accumulates of the depthwise convolution, those with padding included."""
        return self.out_height * self.out_width * self.channels * KERNEL**2 * self.depthwise

    @property
    def pointwise_macs(self) -> int:
        """Multiply-accumulates of the pointwise convolution."""
        return self.out_height * self.out_width * self.channels * self.filters

    @property
    def source_bytes(self) -> int:
        """Bytes of the input image."""
        return self.height * self.width * self.pitch

    @property
    def sums_bytes(self) -> int:
        """Bytes of the image between the layers; 0 without a depthwise convolution."""
        return self.out_height * self.out_width * self.pitch * self.depthwise

    @property
    def result_bytes(self) -> int:
        """Bytes of the output image."""
        return self.out_height * self.out_width * self.out_pitch

    @property
    def tap_bytes(self) -> int:
        """Bytes of the depthwise weights."""
        return KERNEL**2 * self.pitch


@dataclass(frozen=True)
class Places:
    """DRAM addresses."""

    source: int
    taps: int
    weights: int
    parameters: int  # of the depthwise convolution's tiles, then of the pointwise one's
    result: int


def depthwise_program(layers: Layers, places: Places) -> bytes:
    """Machine code of the layers.

    Raises
    ------
    InputError
        If their images or weights do not fit on chip.
    """
    schedule = _Schedule(layers, places)
    schedule.add()
    instructions = synchronize(schedule.stream.steps, layers.config)
    return b"".join(entry.encode() for entry in [*instructions, End()])


def _bands(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """Bands (first row, rows): small ones first, a single row last."""
    first, size = 0, 1
    while first < rows:
        left = rows - first
        count = min(size, most, max(1, left - 1))
        yield first, count
        first, size = first + count, 2 * size


class _Schedule:
    def __init__(self, layers: Layers, places: Places) -> None:
        self.layers, self.places, self.config = layers, places, layers.config
        self.stream = Stream()
        config = self.config
        self.source = 0
        self.sums = layers.source_bytes if layers.depthwise else 0
        pointwise = layers.filters > 0
        self.result = self.sums + layers.sums_bytes if pointwise else self.sums
        if pointwise and not layers.depthwise:
            self.result = layers.source_bytes
        # Taps lie in the last bank, so that VECTOR does not meet MATRIX's weights.
        self.weights, self.taps = 0, config.weight_bytes - layers.tap_bytes
        self.loaded_rows = 0
        self.band_rows = BAND
        if pointwise:
            rows = config.accumulator_rows // (layers.out_width * layers.product.width_tiles)
            self.band_rows = min(BAND, rows)
        self._check()

    def _check(self) -> None:
        layers, config = self.layers, self.config
        product = layers.product
        images = layers.source_bytes + layers.sums_bytes
        images += layers.result_bytes if layers.filters else 0
        weights = layers.tap_bytes * layers.depthwise + product.top_bytes
        parameters = layers.tiles * layers.depthwise + product.width_tiles
        for what, need, have in (
            ("bytes of images", images, config.activation_bytes),
            ("bytes of weights", weights, config.weight_bytes),
            ("parameter rows", parameters, config.parameter_rows),
            (
                "accumulator rows of a bank for one row of pixels",
                layers.out_width * product.width_tiles,
                config.accumulator_rows,
            ),
        ):
            if need > have:
                raise InputError(f"{need} {what} are more than the {have} of {config.name}")

    def add(self) -> None:
        layers = self.layers
        bands = list(_bands(layers.out_height, self.band_rows))
        behind = None
        for number, band in enumerate(bands):
            self.stream.tile = number
            self._load_source(band)
            if layers.depthwise:
                if number == 0:
                    self._load_taps()
                self._depthwise(band)
            if layers.filters:
                if number == 0:
                    self._load_weights()
                self._multiply(number, band)
            if behind is not None:
                self._finish(number - 1, behind)
            behind = band
        if behind is not None:
            self._finish(len(bands) - 1, behind)

    def _finish(self, number: int, band: tuple[int, int]) -> None:
        if self.layers.filters:
            self._requantize(number, band)
        self._store(band)

    # Transfers ----------------------------------------------------------------------------------

    def _source_rows(self, band: tuple[int, int]) -> tuple[int, int]:
        """Input rows that a band reads."""
        first, rows = band
        layers = self.layers
        if not layers.depthwise:
            return first, first + rows
        last = (first + rows - 1) * layers.stride
        return max(0, first * layers.stride - 1), min(layers.height, last + KERNEL - 1)

    def _load_source(self, band: tuple[int, int]) -> None:
        first, end = self.loaded_rows, self._source_rows(band)[1]
        if end <= first:
            return
        self.loaded_rows = end
        row = self.layers.width * self.layers.pitch
        offset, size = first * row, (end - first) * row
        dram = self.places.source + offset
        self.stream.emit(
            Load(
                dram_address=dram,
                address=self.source + offset,
                run_bytes=size,
                memory=Memory.ACTIVATION,
                extent=1,
            ),
            "load rows",
            reads(Space.DRAM, (dram, dram + size)),
            writes(Space.ACTIVATION, (self.source + offset, self.source + offset + size)),
        )

    def _load_taps(self) -> None:
        load_weights(self.stream, self.places.taps, self.taps, self.layers.tap_bytes)
        load_parameters(self.stream, self.places.parameters, 0, self.layers.tiles, self.config)

    def _load_weights(self) -> None:
        product = self.layers.product
        load_weights(self.stream, self.places.weights, self.weights, product.top_bytes)
        row = self._pointwise_parameters
        dram = self.places.parameters + row * self.config.parameter_row_bytes
        load_parameters(self.stream, dram, row, product.width_tiles, self.config)

    @property
    def _pointwise_parameters(self) -> int:
        return self.layers.tiles if self.layers.depthwise else 0

    def _store(self, band: tuple[int, int]) -> None:
        first, rows = band
        row = self.layers.out_width * self.layers.out_pitch
        dram, address, size = (
            self.places.result + first * row,
            self.result + first * row,
            rows * row,
        )
        self.stream.emit(
            Store(
                dram_address=dram,
                address=address,
                run_bytes=size,
                memory=Memory.ACTIVATION,
                extent=1,
            ),
            "store rows",
            reads(Space.ACTIVATION, (address, address + size)),
            writes(Space.DRAM, (dram, dram + size)),
        )

    # Work ---------------------------------------------------------------------------------------

    def _depthwise(self, band: tuple[int, int]) -> None:
        layers, (first, rows) = self.layers, band
        columns, pitch, stride = self.config.columns, layers.pitch, layers.stride
        row, out_row = layers.width * pitch, layers.out_width * pitch
        counts = (layers.tiles, 1, rows, layers.out_width, KERNEL, KERNEL)
        top = first * stride - 1
        y0, y1 = self._source_rows(band)
        result = self.sums + first * out_row
        self.stream.emit(
            Vector(
                counts=counts,
                head=Head.DOT,
                a_source=OperandSource.ACTIVATION,
                a_address=self.source + top * row - pitch,
                a_strides=trim((columns, 0, stride * row, stride * pitch, row, pitch), counts),
                a_zero_point=SOURCE_ZERO,
                b_source=OperandSource.WEIGHT,
                b_address=self.taps,
                b_strides=trim((columns, 0, 0, 0, KERNEL * pitch, pitch), counts),
                bounded=1,
                y_origin=top,
                y_extent=layers.height,
                y_steps=trim((0, 0, stride, 0, 1, 0), counts),
                x_origin=-1,
                x_extent=layers.width,
                x_steps=trim((0, 0, 0, stride, 0, 1), counts),
                use_bias=1,
                scale_source=ScaleSource.PARAMETER,
                parameter_strides=trim((1, 0, 0, 0), counts),
                rounding=Rounding.HALF_EVEN,
                zero_point=SUMS_ZERO,
                clamp_low=-128,
                clamp_high=127,
                destination=Memory.ACTIVATION,
                address=result,
                strides=trim((columns, 0, out_row, pitch), counts),
            ),
            "depthwise",
            reads(Space.ACTIVATION, (self.source + y0 * row, self.source + y1 * row)),
            reads(Space.WEIGHT, (self.taps, self.taps + layers.tap_bytes)),
            reads(Space.PARAMETER, (0, layers.tiles)),
            writes(Space.ACTIVATION, (result, result + rows * out_row)),
        )

    def _sums_rows(self, number: int, band: tuple[int, int]) -> tuple[int, int]:
        """Accumulator rows of a band: the banks take turns."""
        config = self.config
        start = number % config.accumulator_banks * config.accumulator_rows
        return start, start + self._pixels(band) * self.layers.product.width_tiles

    def _pixels(self, band: tuple[int, int]) -> int:
        return band[1] * self.layers.out_width

    def _multiply(self, number: int, band: tuple[int, int]) -> None:
        product, config = self.layers.product, self.config
        tile, pitch, pixels = config.tile_bytes, self.layers.pitch, self._pixels(band)
        image = self.sums if self.layers.depthwise else self.source
        left = image + band[0] * self.layers.out_width * pitch
        sums = self._sums_rows(number, band)
        counts = (product.width_tiles, 1, 1, product.depth_tiles, 1, 1, pixels)
        self.stream.emit(
            Matrix(
                counts=counts,
                left_address=left,
                left_strides=trim((0, 0, 0, config.rows, 0, 0, pitch), counts),
                left_zero_point=SUMS_ZERO,
                top_address=self.weights,
                top_strides=trim((product.depth_tiles * tile, 0, 0, tile, 0, 0, 0), counts),
                tile_stride=config.columns,
                accumulator_address=sums[0],
                accumulator_strides=trim((pixels, 0, 0, 0, 0, 0, 1), counts),
            ),
            "multiply",
            reads(Space.ACTIVATION, (left, left + pixels * pitch)),
            reads(Space.WEIGHT, (self.weights, self.weights + product.top_bytes)),
            writes(Space.ACCUMULATOR, sums),
        )

    def _requantize(self, number: int, band: tuple[int, int]) -> None:
        product, columns = self.layers.product, self.config.columns
        pixels, pitch = self._pixels(band), self.layers.out_pitch
        sums = self._sums_rows(number, band)
        row = self._pointwise_parameters
        result = self.result + band[0] * self.layers.out_width * pitch
        counts = (product.width_tiles, 1, 1, pixels, 1, 1)
        self.stream.emit(
            Vector(
                counts=counts,
                a_source=OperandSource.ACCUMULATOR,
                a_address=sums[0],
                a_strides=trim((pixels, 0, 0, 1, 0, 0), counts),
                use_bias=1,
                scale_source=ScaleSource.PARAMETER,
                parameter_address=row,
                parameter_strides=trim((1, 0, 0, 0), counts),
                rounding=Rounding.HALF_EVEN,
                clamp_low=-128,
                clamp_high=127,
                destination=Memory.ACTIVATION,
                address=result,
                strides=trim((columns, 0, 0, pitch), counts),
            ),
            "requantize",
            reads(Space.ACCUMULATOR, sums),
            reads(Space.PARAMETER, (row, row + product.width_tiles)),
            writes(Space.ACTIVATION, (result, result + pixels * pitch)),
        )
