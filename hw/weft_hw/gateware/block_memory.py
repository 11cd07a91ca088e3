"""Memories that synthesis puts into block RAM as they are."""

from amaranth.hdl import Module
from amaranth.lib import fifo

__all__ = ["NO_COLLISION", "BlockFifo"]

NO_COLLISION = {"no_rw_check": "1"}
"""Attributes of a memory of which nobody uses what is read while it is written.

Without them synthesis adds logic around a block RAM, which in a collision returns nothing defined,
to return the old value.
"""


class BlockFifo(fifo.SyncFIFOBuffered):
    """A buffered FIFO in block RAM; its words are never read while they are written."""

    def elaborate(self, platform: object) -> Module:
        m: Module = super().elaborate(platform)
        m.submodules.storage.attrs.update(NO_COLLISION, ram_style="block")
        return m
