"""What layers with weights share: constants in DRAM, and their way into the on-chip memories."""

from typing import Any

from weft.compiler.constants import parameter_rows
from weft.compiler.context import LayerTask, TileBox
from weft.compiler.kernels import Chunk
from weft.compiler.stream import Access, Space, reads
from weft.compiler.transfers import load_parameters, load_weights
from weft.compiler.vectors import trim
from weft.ir import Conv2d
from weft_hw.instructions import ScaleSource

__all__ = ["WeightedLayer"]

Block = tuple[int, Chunk]
"""First output tile, and part of the reduction."""


class WeightedLayer:
    """The lowering of one convolution; subclasses place its constants first."""

    def __init__(self, task: LayerTask) -> None:
        operation = task.kernel.operation
        assert isinstance(operation, Conv2d)
        self.operation = operation
        self.task = task
        self.kernel = task.kernel
        self.config = task.config
        graph = task.context.graph
        self.source = graph.tensor(operation.inputs[0])
        self.result = graph.scaled(operation)

    def place_constants(self, blocks: dict[Block, bytes]) -> None:
        """Weights in the order of their use, one contiguous run a block, and parameter rows."""
        constants = self.task.context.constants
        self._weights_at = {
            block: (constants.append(data), len(data)) for block, data in blocks.items()
        }
        self._parameters_at = constants.append(
            parameter_rows(self.kernel, self.source, self.result)
        )

    def weights(self, tile: TileBox, chunk: Chunk) -> int:
        """Address of the weights in the weight scratchpad, after loading them if need be."""
        context = self.task.context
        ring = context.taps if self.kernel.is_depthwise else context.weights
        key = self.task.layer, tile.channel, chunk
        found = ring.find(key)
        if found is None:
            dram_address, size = self._weights_at[tile.channel, chunk]
            found = ring.place(key, size)
            load_weights(self.task.stream, dram_address, found, size)
        return found

    def parameters(self, tile: TileBox) -> int:
        """Parameter row of the tile's first channels, after loading them if need be."""
        ring = self.task.context.parameters
        key = self.task.layer, tile.channel
        found = ring.find(key)
        if found is None:
            found = ring.place(key, tile.channels)
            address = self._parameters_at + tile.channel * self.config.parameter_row_bytes
            load_parameters(self.task.stream, address, found, tile.channels, self.config)
        return found

    def scaling(self, tile: TileBox) -> tuple[dict[str, Any], list[Access]]:
        """Fields that bring a tile's sums back to 8 bits; accesses of parameters and table."""
        row = self.parameters(tile)
        lookup, table = self.task.lookup()
        fields = {
            "use_bias": 1,
            "scale_source": ScaleSource.PARAMETER,
            "parameter_address": row,
            "parameter_strides": trim((1, 0, 0, 0), (tile.channels, 1, 1, 1)),
            "rounding": self.operation.rounding,
            "zero_point": self.result.zero_point,
            "clamp_low": self.operation.clamp[0],
            "clamp_high": self.operation.clamp[1],
            **lookup,
        }
        return fields, [reads(Space.PARAMETER, (row, row + tile.channels)), *table]
