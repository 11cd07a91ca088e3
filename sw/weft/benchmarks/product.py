"""Sizes of the three matrix products of a dense layer on a configuration, and their places."""

import enum
from dataclasses import dataclass

from weft.compiler.kernels import ceil_div
from weft_hw.config import AcceleratorConfig

__all__ = ["Addresses", "Product", "ProductKind"]


class ProductKind(enum.Enum):
    """The product of a forward pass, and those of its two gradients."""

    Y = "Y"
    """Y = X W"""
    DX = "dX"
    """dX = dY W^T, from W as it lies in memory"""
    DW = "dW"
    """dW = X^T dY"""


@dataclass(frozen=True)
class Product:
    """One of the three products, and its parts in whole array tiles.

    In memory, X, dY and every result are matrices of int8 whose rows are padded to whole array
    tiles; W lies in array tiles, those of a column tile behind one another.

    Parameters
    ----------
    config : AcceleratorConfig
    kind : ProductKind
    shape : (M, K, N)
        X has M by K elements, W and dW K by N, Y and dY M by N.
    weight_bits : int
        Width of W's elements, one of the configuration's ``weight_modes``; 8 for the gradients.
    """

    config: AcceleratorConfig
    kind: ProductKind
    shape: tuple[int, int, int]
    weight_bits: int = 8

    @property
    def rows(self) -> int:
        """Rows of the result."""
        rows, depth, _ = self.shape
        return depth if self.kind is ProductKind.DW else rows

    @property
    def depth(self) -> int:
        """Length of the reduction."""
        return self.shape[(ProductKind.DW, ProductKind.Y, ProductKind.DX).index(self.kind)]

    @property
    def width(self) -> int:
        """Columns of the result."""
        _, depth, width = self.shape
        return depth if self.kind is ProductKind.DX else width

    @property
    def transposed(self) -> bool:
        """Whether weight tiles enter the array transposed."""
        return self.kind is ProductKind.DX

    @property
    def left_row(self) -> int:
        """Bytes of a left row: what one array pass reads of one row of X or dY."""
        return self.config.rows * 8 // self.weight_bits

    @property
    def depth_tiles(self) -> int:
        """Array passes of a reduction (weight-stationary)."""
        return ceil_div(self.depth, self.left_row)

    @property
    def row_tiles(self) -> int:
        """Row tiles of the result (output-stationary)."""
        return ceil_div(self.rows, self.config.rows)

    @property
    def width_tiles(self) -> int:
        """Column tiles of the result."""
        return ceil_div(self.width, self.config.columns)

    @property
    def stored_rows(self) -> int:
        """Rows of the result in memory."""
        if self.kind is ProductKind.DW:
            return self.row_tiles * self.config.rows
        return self.rows

    @property
    def left_pitch(self) -> int:
        """Bytes of a row of the left operand in memory."""
        tiles = self.row_tiles if self.kind is ProductKind.DW else self.depth_tiles
        return tiles * self.left_row

    @property
    def result_pitch(self) -> int:
        """Bytes of a row of the result in memory; of dY as the second operand of dW too."""
        return self.width_tiles * self.config.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates, without those of padding."""
        return self.rows * self.depth * self.width

    @property
    def left_bytes(self) -> int:
        """Bytes of the left operand in memory."""
        return (self.depth if self.kind is ProductKind.DW else self.rows) * self.left_pitch

    @property
    def top_bytes(self) -> int:
        """Bytes of the second operand (W, or dY) in memory."""
        if self.kind is ProductKind.DW:
            return self.depth * self.result_pitch
        return self.depth_tiles * self.width_tiles * self.config.tile_bytes

    @property
    def result_bytes(self) -> int:
        """Bytes of the result in memory."""
        return self.stored_rows * self.result_pitch


@dataclass(frozen=True)
class Addresses:
    """Where the operands of one product lie in DRAM.

    ``parameters`` are rows of bias and scale, of Y only: a gradient has one scale for all.
    """

    left: int
    top: int
    parameters: int
    result: int
