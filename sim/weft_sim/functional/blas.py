"""One thread for NumPy's matrix products while a program runs.

The products of one instruction are small: handing them to a second thread gains little on an idle
machine and, on a busy one, waits for that thread many times longer than the product takes.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["one_thread"]

Getter = Callable[[], int]
Setter = Callable[[int], None]

# OpenBLAS exports these under the prefix and suffix that it was built with.
_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


def _find_controls() -> tuple[Getter, Setter] | None:
    """OpenBLAS's own functions, reached through the NumPy module that is linked to it."""
    module = getattr(getattr(np, "_core", None), "_multiarray_umath", None)
    path = getattr(module, "__file__", None)
    if path is None:
        return None
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return None
    for name in _NAMES:
        getter = getattr(library, name.format("get_num_threads"), None)
        setter = getattr(library, name.format("set_num_threads"), None)
        if getter is not None and setter is not None:
            getter.restype, getter.argtypes = ctypes.c_int, []
            setter.restype, setter.argtypes = None, [ctypes.c_int]
            return getter, setter
    return None  # another library: it keeps its own number of threads


_CONTROLS = _find_controls()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit the process to one thread in matrix products, and restore the number afterwards."""
    if _CONTROLS is None:
        yield
        return
    get_threads, set_threads = _CONTROLS
    before = get_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)
