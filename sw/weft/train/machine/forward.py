"""The sums of a convolution, tile by tile."""

from collections.abc import Iterator

from weft.train.machine.axes import axes_of, forward_axis
from weft.train.machine.builder import Builder, ImageTile
from weft.train.machine.gather import Gather
from weft.train.step import Convolution

__all__ = ["convolution_sums"]


def convolution_sums(builder: Builder, operation: Convolution) -> Iterator[ImageTile]:
    """Emit loads and products, and yield where int32 sums lie; biases are not added.

    The tiles cover (batch, height, width, channel tiles) of the result once. A tile is complete
    when it is yielded, and its rows stay until two more have been asked for.
    """
    axes = axes_of(forward_axis, operation.source.shape[:2], operation.geometry)
    source = builder.images[operation.source.name]
    weights = builder.weights_at[operation.weights.name]
    yield from Gather(builder, source, weights, axes, False, operation.result.name).run()
