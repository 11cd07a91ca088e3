"""The sums of the gradient of a convolution's source, tile by tile."""

from collections.abc import Iterator

from weft.train.machine.axes import axes_of, data_gradient_axis
from weft.train.machine.builder import Builder, ImageTile
from weft.train.machine.gather import Gather
from weft.train.step import DataGradient

__all__ = ["data_gradient_sums"]


def data_gradient_sums(builder: Builder, operation: DataGradient) -> Iterator[ImageTile]:
    """Emit loads and products, and yield where int32 sums lie; nothing is masked.

    Source pixels of each remainder modulo the stride gather from the pixels of the gradient that
    their taps met; weight tiles enter transposed. Tiles as in
    :func:`weft.train.machine.forward.convolution_sums`; pixels that no tap meets get zeros.
    """
    axes = axes_of(data_gradient_axis, operation.result.shape[:2], operation.geometry)
    gradient = builder.images[operation.gradient.name]
    weights = builder.weights_at[operation.weights.name]
    yield from Gather(builder, gradient, weights, axes, True, operation.result.name).run()
