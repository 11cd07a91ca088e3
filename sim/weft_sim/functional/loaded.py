"""What is computed from loaded constants, shared by all instructions that use the same ones."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from weft_sim.race_check import Access

__all__ = ["LoadedCache", "Refreshed"]


class Refreshed(Protocol):
    """Something that depends on an on-chip memory."""

    def refresh(self) -> None:
        """Compute it from what the memory holds now."""
        ...


T = TypeVar("T", bound=Refreshed)


class LoadedCache(Generic[T]):
    """Used while a program is prepared, in stream order.

    Whoever gets an object first must refresh it in every run, before its use; it then stays valid
    up to the next LOAD that touches what it was computed from.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[T, Access]] = {}

    def get(self, key: Hashable, read: Access, make: Callable[[], T]) -> tuple[T, bool]:
        """The object of that key, which depends on what ``read`` covers; and whether it is new."""
        if key in self._entries:
            return self._entries[key][0], False
        made = make()
        self._entries[key] = made, read
        return made, True

    def loaded(self, accesses: Sequence[Access]) -> None:
        """Forget the objects that a LOAD makes invalid."""
        for written in accesses:
            if written.write:
                self._entries = {
                    key: (made, read)
                    for key, (made, read) in self._entries.items()
                    if not _meet(written, read)
                }


def _meet(first: Access, second: Access) -> bool:
    if first.space is not second.space or not second.starts.size:
        return False
    # For each interval of the first, the only one of the second that can begin the overlap.
    candidate = np.searchsorted(second.ends, first.starts, side="right")
    inside = candidate < len(second.starts)
    return bool((second.starts[candidate[inside]] < first.ends[inside]).any())
