"""Convolution: MATRIX sums products tile by tile, VECTOR brings the sums back to 8 bits."""

from weft.compiler.constants import chunk_bytes, weight_tiles
from weft.compiler.context import LayerTask, TileBox
from weft.compiler.kernels import Chunk
from weft.compiler.layout import PixelLayout, Region
from weft.compiler.stream import Space, reads, writes
from weft.compiler.vectors import accumulator_strides, result_fields, trim
from weft.compiler.weighted import WeightedLayer
from weft_hw.instructions import (
    Accumulate,
    Bounds,
    Matrix,
    OperandSource,
    Vector,
    WeightBits,
)

__all__ = ["lower_convolution"]


def lower_convolution(task: LayerTask) -> None:
    """Emit a convolution."""
    _Convolution(task).run()


class _Convolution(WeightedLayer):
    def __init__(self, task: LayerTask) -> None:
        super().__init__(task)
        tiles = weight_tiles(self.kernel)
        blocks = {
            (first, chunk): chunk_bytes(tiles, first, task.tiling.channel_tiles, chunk)
            for first in range(0, self.kernel.result_tiles, task.tiling.channel_tiles)
            for chunk in task.tiling.chunks
        }
        self.place_constants(blocks)

    def run(self) -> None:
        for tile in self.task.tiles():
            bank = self.task.context.accumulators(tile.vectors)
            self.parameters(tile)  # few bytes: ahead of the tile's other transfers
            self._sum(tile, bank)
            layout = self.task.destination(tile)
            self._requantize(tile, bank, layout)
            self.task.finish(tile, layout)

    def _sum(self, tile: TileBox, bank: int) -> None:
        """One MATRIX a chunk of the reduction; chunks that see only padding are left out."""
        kernel = self.kernel
        regions = [
            (chunk, kernel.source_region(tile.y, tile.rows, tile.x, tile.columns, chunk))
            for chunk in self.task.tiling.chunks
        ]
        visible = [pair for pair in regions if not pair[1].empty]
        for number, (chunk, region) in enumerate(visible or regions[:1]):
            weights = self.weights(tile, chunk)
            gap = kernel.gap(tile.x, tile.columns, chunk)
            layout = self.task.operand(0, region, gap)
            self._multiply(tile, bank, chunk, region, layout, weights, first=number == 0)

    def _multiply(
        self,
        tile: TileBox,
        bank: int,
        chunk: Chunk,
        region: Region,
        layout: PixelLayout,
        weights: int,
        *,
        first: bool,
    ) -> None:
        kernel, config = self.kernel, self.config
        y, x = kernel.origin(tile.y, tile.x, chunk)
        (stride_y, stride_x), (tap_y, tap_x) = kernel.stride, kernel.dilation
        taps_y, taps_x, depth = chunk.y1 - chunk.y0, chunk.x1 - chunk.x0, chunk.r1 - chunk.r0
        counts = (tile.channels, taps_y, taps_x, depth, tile.rows, tile.columns, 1)
        step, size = kernel.step_bytes, config.tile_bytes
        pitch, row_pitch = layout.pitch, layout.row_pitch
        packed = kernel.packs_taps
        pixels = tile.rows * tile.columns
        bytes_first = 0 if packed else chunk.r0 * step
        instruction = Matrix(
            weight_bits=WeightBits.of(kernel.weight_bits),
            accumulate=Accumulate.OVERWRITE_FIRST if first else Accumulate.ALWAYS_ADD,
            bounds=Bounds.LEFT,
            left_zero_point=self.source.zero_point,
            counts=counts,
            left_address=self._left_address(layout, region, y, x, bytes_first),
            left_strides=trim(
                (
                    0,
                    tap_y * row_pitch,
                    tap_x * pitch,
                    step,
                    stride_y * row_pitch,
                    stride_x * pitch,
                    0,
                ),
                counts,
            ),
            top_address=weights,
            top_strides=trim(
                (
                    taps_y * taps_x * depth * size,
                    taps_x * depth * size,
                    depth * size,
                    size,
                    0,
                    0,
                    0,
                ),
                counts,
            ),
            tile_stride=config.columns,
            accumulator_address=bank,
            accumulator_strides=trim((pixels, 0, 0, 0, tile.columns, 1, 0), counts),
            y_origin=y,
            y_extent=kernel.source[0],
            y_steps=trim((0, tap_y, 0, 0, stride_y, 0, 0), counts),
            # Packed taps have their padding in memory: every column exists.
            x_origin=0 if packed else x,
            x_extent=1 if packed else kernel.source[1],
            x_steps=(0,) * 7 if packed else trim((0, 0, tap_x, 0, 0, stride_x, 0), counts),
        )
        weight_bytes = tile.channels * chunk.tiles * size
        accesses = [
            reads(Space.WEIGHT, (weights, weights + weight_bytes)),
            writes(Space.ACCUMULATOR, (bank, bank + tile.channels * pixels)),
        ]
        if region.y0 < region.y1 and (packed or region.x0 < region.x1):
            start, end = layout.span(region)
            beside = layout.gap * pitch
            beyond = depth * step - kernel.window[1] * pitch if packed else 0
            accesses.append(reads(Space.ACTIVATION, (start - beside, end + beside + beyond)))
        self.task.stream.emit(instruction, "multiply", *accesses)

    def _left_address(
        self, layout: PixelLayout, region: Region, y: int, x: int, first_byte: int
    ) -> int:
        """Address of the first tap; 0 where no tap exists at all (no access takes place)."""
        if region.y0 == region.y1 or (not self.kernel.packs_taps and region.x0 == region.x1):
            return 0
        return layout.at(y, x, first_byte)

    def _requantize(self, tile: TileBox, bank: int, layout: PixelLayout) -> None:
        task = self.task
        counts = (tile.channels, 1, tile.rows, tile.columns, 1, 1)
        region = task.output_region(tile)
        scaling, parameters = self.scaling(tile)
        instruction = Vector(
            counts=counts,
            a_source=OperandSource.ACCUMULATOR,
            a_address=bank,
            a_strides=accumulator_strides(counts),
            **scaling,
            **result_fields(layout, region, counts, self.config),
        )
        pixels = tile.channels * tile.rows * tile.columns
        task.stream.emit(
            instruction,
            "requantize",
            reads(Space.ACCUMULATOR, (bank, bank + pixels)),
            *parameters,
            writes(Space.ACTIVATION, layout.span(region)),
        )
