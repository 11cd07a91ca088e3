"""Files of commands: arrays to read, and texts that are written completely or not at all."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError

__all__ = ["check_writable", "read_array", "write_text"]


def check_writable(option: str, path: Path, endings: Sequence[str]) -> None:
    """Refuse a name with another ending, or in a folder that is not there.

    Raises
    ------
    InputError
        Naming the option, the path, and what is allowed.
    """
    if path.suffix not in endings:
        raise InputError(f"{option} {path}: the name must end in {' or '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path.is_dir():
        raise InputError(f"{option} {path}: this is a folder")


def write_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it.

    Raises
    ------
    InputError
        If the system refuses.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array of a .npy file; ``mapped`` leaves it on disk until it is used.

    Raises
    ------
    InputError
        If there is no such file, or it holds no array.
    """
    try:
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such input file") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from None
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path}: not a .npy file but an archive of several arrays")
    return found
