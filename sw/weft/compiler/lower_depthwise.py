"""Depthwise convolution: a dot product of each window with tap weights, in VECTOR alone."""

from weft.compiler.constants import tap_weights
from weft.compiler.context import LayerTask
from weft.compiler.stream import Space, reads, writes
from weft.compiler.vectors import result_fields, tile_source, trim, vector_read, window_fields
from weft.compiler.weighted import WeightedLayer
from weft_hw.instructions import Head, OperandSource, Vector

__all__ = ["lower_depthwise"]


def lower_depthwise(task: LayerTask) -> None:
    """Emit a depthwise convolution of one filter a channel: one VECTOR a tile."""
    _Depthwise(task).run()


class _Depthwise(WeightedLayer):
    def __init__(self, task: LayerTask) -> None:
        super().__init__(task)
        taps = tap_weights(self.kernel)
        step = task.tiling.channel_tiles
        self.place_constants(
            {
                (first, self.kernel.whole): taps[first : first + step].tobytes()
                for first in range(0, self.kernel.result_tiles, step)
            }
        )

    def run(self) -> None:
        task, lanes, whole = self.task, self.config.columns, self.kernel.whole
        taps_y, taps_x = self.kernel.window
        for tile in task.tiles():
            scaling, parameters = self.scaling(tile)
            weights = self.weights(tile, whole)
            region = tile_source(task, tile, whole)
            layout = task.operand(0, region)
            target = task.destination(tile)
            output = task.output_region(tile)
            window = window_fields(task, tile, whole, layout, region)
            counts = window["counts"]
            accesses = [
                *parameters,
                reads(Space.WEIGHT, (weights, weights + tile.channels * taps_y * taps_x * lanes)),
                writes(Space.ACTIVATION, target.span(output)),
            ]
            if not region.empty:
                accesses.append(vector_read(task, tile, layout, region))
            task.stream.emit(
                Vector(
                    **window,
                    **scaling,
                    head=Head.DOT,
                    a_zero_point=self.source.zero_point,
                    b_source=OperandSource.WEIGHT,
                    b_address=weights,
                    b_strides=trim(
                        (taps_y * taps_x * lanes, 0, 0, 0, taps_x * lanes, lanes), counts
                    ),
                    **result_fields(target, output, counts, self.config),
                ),
                "depthwise",
                *accesses,
            )
            task.finish(tile, target)
