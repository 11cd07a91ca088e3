"""How an image lies in memory: channel-innermost pixels at a pitch, rows with an optional gap."""

from dataclasses import dataclass

from weft_hw.config import AcceleratorConfig

__all__ = ["PixelLayout", "Region", "is_narrow", "pixel_pitch"]

NARROW_PITCHES = (1, 2, 4, 8)


def pixel_pitch(channels: int, config: AcceleratorConfig) -> int:
    """Bytes from pixel to pixel: channels rounded up to the array's rows, or 1, 2, 4 or 8."""
    for pitch in NARROW_PITCHES:
        if channels <= pitch < config.rows:
            return pitch
    return -(-channels // config.rows) * config.rows


def is_narrow(pitch: int, config: AcceleratorConfig) -> bool:
    """Whether one array row-read covers several neighbouring pixels."""
    return pitch < config.rows


@dataclass(frozen=True)
class Region:
    """A box of an image: rows [y0, y1), columns [x0, x1), bytes [c0, c1) of each pixel."""

    y0: int
    y1: int
    x0: int
    x1: int
    c0: int
    c1: int

    @property
    def empty(self) -> bool:
        """Whether it holds no byte."""
        return self.y0 >= self.y1 or self.x0 >= self.x1 or self.c0 >= self.c1


@dataclass(frozen=True)
class PixelLayout:
    """A box of an image in memory.

    Parameters
    ----------
    address : int
        First byte.
    region : Region
        The part of the image that lies here.
    gap : int
        Pixels of padding before the first row and behind every row. One gap serves as the right
        padding of a row and as the left padding of the next.
    """

    address: int
    region: Region
    gap: int = 0

    @property
    def pitch(self) -> int:
        """Bytes from pixel to pixel."""
        return self.region.c1 - self.region.c0

    @property
    def row_pitch(self) -> int:
        """Bytes from row to row."""
        return (self.region.x1 - self.region.x0 + self.gap) * self.pitch

    @property
    def size(self) -> int:
        """Bytes from the first to behind the last, gaps included."""
        return self.gap * self.pitch + (self.region.y1 - self.region.y0) * self.row_pitch

    def at(self, y: int, x: int, c: int) -> int:
        """Address of byte c of pixel (y, x), also for coordinates outside the region."""
        return (
            self.address
            + self.gap * self.pitch
            + (y - self.region.y0) * self.row_pitch
            + (x - self.region.x0) * self.pitch
            + (c - self.region.c0)
        )

    def span(self, part: Region, slack: int = 0) -> tuple[int, int]:
        """Address range that covers a part of the region, and the bytes a wide read adds."""
        first = self.at(part.y0, part.x0, part.c0)
        last = self.at(part.y1 - 1, part.x1 - 1, part.c1)
        return first, last + slack
