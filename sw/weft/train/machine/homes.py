"""Where the tensors of a training step lie in DRAM.

Pixels and weight rows are padded with zeros to whole array tiles, which stay zeros: their sums are.
"""

import math
from dataclasses import dataclass

from weft.compiler.kernels import ceil_div
from weft.train.step import Image, Parameter
from weft_hw.config import AcceleratorConfig

__all__ = ["ImageHome", "WeightHome"]


@dataclass(frozen=True)
class ImageHome:
    """int8 (batch, height, width, pitch).

    Parameters
    ----------
    image : Image
    batch : int
    side : int
        Of the array; pixels are whole multiples of it, with zeros behind the channels.
    address : int
    narrow : bool
        Pixels have no more bytes than channels here; LOAD brings the zeros.
    """

    image: Image
    batch: int
    side: int
    address: int
    narrow: bool = False

    @property
    def tiles(self) -> int:
        """Channel tiles of a pixel."""
        return ceil_div(self.image.shape[2], self.side)

    @property
    def pitch(self) -> int:
        """Bytes of a pixel."""
        return self.image.shape[2] if self.narrow else self.tiles * self.side

    @property
    def row_pitch(self) -> int:
        """Bytes of an image row."""
        return self.image.shape[1] * self.pitch

    @property
    def image_pitch(self) -> int:
        """Bytes of an image."""
        return self.image.shape[0] * self.row_pitch

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.batch * self.image_pitch

    def at(self, image: int, y: int, x: int = 0, byte: int = 0) -> int:
        """Address of a byte of a pixel."""
        return self.address + image * self.image_pitch + y * self.row_pitch + x * self.pitch + byte


@dataclass(frozen=True)
class WeightHome:
    """Rows of C elements: [kernel y, kernel x, input tile, output tile, R], of a few arrays.

    Codes are int8 (``codes``); master and velocity, if there are any, lie in the same order, of
    ``state_bytes`` an element. A bias (channels,) has one row a channel tile; a compensation
    (height, width, channels) has rows [y, x, channel tile].
    """

    parameter: Parameter
    side: int
    codes: int
    master: int = 0
    velocity: int = 0
    state_bytes: int = 0

    @property
    def outputs(self) -> int:
        """Tiles of output channels."""
        return ceil_div(self.parameter.shape[-1], self.side)

    @property
    def inputs(self) -> int:
        """Tiles of input channels (of weights)."""
        return ceil_div(self.parameter.shape[2], self.side)

    @property
    def taps(self) -> int:
        """Of the kernel (of weights)."""
        return self.parameter.shape[0] * self.parameter.shape[1]

    @property
    def tile_bytes(self) -> int:
        """Bytes of an array tile of codes."""
        return self.side * self.side

    @property
    def rows(self) -> int:
        """Rows of C elements."""
        if len(self.parameter.shape) == 4:
            return self.taps * self.inputs * self.outputs * self.side
        return math.prod(self.parameter.shape[:-1]) * self.outputs

    def tile(self, tap: int, input_tile: int, output_tile: int) -> int:
        """Number of an array tile; its codes begin at ``codes + tile * tile_bytes``."""
        return (tap * self.inputs + input_tile) * self.outputs + output_tile


def require_square(config: AcceleratorConfig) -> int:
    """The array's side.

    Raises
    ------
    InputError
        If the array is not square: gradients need weight tiles that enter from the left.
    """
    from weft.errors import InputError

    if config.rows != config.columns:
        raise InputError(
            f"training needs a square array (weights enter from the left for gradients); "
            f"{config.name} is {config.rows}x{config.columns}"
        )
    return config.rows
