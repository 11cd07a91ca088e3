"""Files that commands write: complete or not at all, and refused before the work where possible."""

import os
from collections.abc import Sequence
from pathlib import Path

from weft.errors import InputError

__all__ = ["check_writable", "write_text"]


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
