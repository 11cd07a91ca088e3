"""Sizes of a matrix product on a configuration, and where its operands lie."""

from dataclasses import dataclass

from weft.compiler.kernels import ceil_div
from weft_hw.config import AcceleratorConfig

__all__ = ["Addresses", "Product"]


@dataclass(frozen=True)
class Product:
    """Sizes of a product, and of its parts in whole array tiles.

    Parameters
    ----------
    config : AcceleratorConfig
    rows, depth, width : int
        X has ``rows`` by ``depth`` elements, W ``depth`` by ``width``.
    weight_bits : int
        Width of W's elements, one of the configuration's ``weight_modes``.
    """

    config: AcceleratorConfig
    rows: int
    depth: int
    width: int
    weight_bits: int = 8

    @property
    def tile_depth(self) -> int:
        """Elements of the reduction in an array pass."""
        return self.config.rows * 8 // self.weight_bits

    @property
    def depth_tiles(self) -> int:
        """Array passes of a reduction."""
        return ceil_div(self.depth, self.tile_depth)

    @property
    def width_tiles(self) -> int:
        """Column tiles of W and Y."""
        return ceil_div(self.width, self.config.columns)

    @property
    def left_pitch(self) -> int:
        """Bytes of a row of X in memory."""
        return self.depth_tiles * self.tile_depth

    @property
    def result_pitch(self) -> int:
        """Bytes of a row of Y in memory."""
        return self.width_tiles * self.config.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates, without those of padding."""
        return self.rows * self.depth * self.width

    @property
    def left_bytes(self) -> int:
        """Bytes of X in memory."""
        return self.rows * self.left_pitch

    @property
    def weight_bytes(self) -> int:
        """Bytes of W in memory."""
        return self.depth_tiles * self.width_tiles * self.config.tile_bytes

    @property
    def result_bytes(self) -> int:
        """Bytes of Y in memory."""
        return self.rows * self.result_pitch


@dataclass(frozen=True)
class Addresses:
    """Where the operands of one product lie in DRAM."""

    left: int
    weights: int
    parameters: int
    result: int
