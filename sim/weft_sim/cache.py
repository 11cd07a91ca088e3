"""The cache of whatever takes long to make: entries named by their content, complete or absent.

An entry is a directory ``<cache>/<kind>/<key>``. It is made under a file lock in a directory of
another name and renamed when complete, so that concurrent processes make it once and an interrupted
one leaves nothing that a later one could take for an entry.
"""

import errno
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from weft_hw.errors import WeftError

__all__ = [
    "Progress",
    "cache_directory",
    "cached",
    "content_key",
    "discard",
    "renewed",
    "source_hash",
]

Progress = Callable[[str, float | None], None]
"""Called with what is being done and, if known, how much of it is done (0 to 1)."""

CACHE_VARIABLE = "WEFT_CACHE"

_made_anew: set[Path] | None = None  # entries made inside `renewed`; None outside of it

_SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".vlt", ".v"}


def cache_directory() -> Path:
    """Where the cache lies: ``$WEFT_CACHE``, or the user's cache folder on this system.

    Raises
    ------
    WeftError
        If the folder is not there and cannot be made.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        path = Path(named).expanduser().absolute()
    else:
        import platformdirs

        path = Path(platformdirs.user_cache_dir("weft", appauthor=False))
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def content_key(*parts: str | bytes) -> str:
    """A name for what the parts determine: 32 hexadecimal digits.

    Each part is hashed with its length, so that moving text from one part to the next changes it.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def source_hash(*packages: str) -> str:
    """Hash of the sources of top-level packages, found without importing them."""
    parts: list[str | bytes] = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{package!r} is not an importable package")
        for location in spec.submodule_search_locations:
            root = Path(location)
            for path in sorted(root.rglob("*")):
                if path.suffix in _SOURCE_SUFFIXES and path.is_file():
                    parts += [path.relative_to(root).as_posix(), path.read_bytes()]
    return content_key(*parts)


def cached(
    kind: str, key: str, make: Callable[[Path], None], *, progress: Progress | None = None
) -> Path:
    """The directory of an entry, made first if it is not there.

    Parameters
    ----------
    kind : str
        Name of the family, a folder of the cache.
    key : str
        From :func:`content_key`, over everything that shapes the entry.
    make : callable
        Fills the empty directory that it is given. If it raises, nothing is kept.
    progress : callable, optional
        Told when another process is making the entry.

    Raises
    ------
    WeftError
        If the disk is full or the cache cannot be written.
    """
    folder = cache_directory() / kind
    entry = folder / key
    if _made_anew is not None and entry not in _made_anew:
        discard(kind, key)
        _made_anew.add(entry)
    if entry.is_dir():
        return entry
    with _explained(folder):
        folder.mkdir(exist_ok=True)
        with _locked(folder / f"{key}.lock", progress):
            if not entry.is_dir():  # else made by another process in the meantime
                _make_entry(entry, make)
    return entry


def discard(kind: str, key: str) -> None:
    """Remove an entry that turned out to be damaged; it is no error if there is none."""
    folder = cache_directory() / kind
    with _explained(folder):
        folder.mkdir(exist_ok=True)
        with _locked(folder / f"{key}.lock", None):
            shutil.rmtree(folder / key, ignore_errors=True)


@contextmanager
def renewed() -> Iterator[None]:
    """Inside, every entry asked for is made anew once, whatever the cache holds."""
    global _made_anew
    _made_anew = set()
    try:
        yield
    finally:
        _made_anew = None


def _make_entry(entry: Path, make: Callable[[Path], None]) -> None:
    _remove_interrupted(entry.parent)
    partial = entry.with_name(f"{entry.name}.partial")
    if partial.exists():  # the lock says that nobody works on it
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        make(partial)
        os.replace(partial, entry)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_interrupted(folder: Path) -> None:
    """Remove what processes that were killed have left of other entries."""
    for partial in folder.glob("*.partial"):
        lock = FileLock(partial.with_suffix(".lock"))
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(partial, ignore_errors=True)
        except Timeout:
            pass  # being made


@contextmanager
def _locked(path: Path, progress: Progress | None) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress is not None:
            progress("waiting for another process that builds the same", None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what a user can mend about the disk into plain words."""
    try:
        yield
    except OSError as error:
        hint = f"set {CACHE_VARIABLE} to another folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeftError(
                f"no space is left for the cache in {folder}: free some, or {hint}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise WeftError(
                f"the cache in {folder} cannot be written ({error.strerror}): {hint}"
            ) from error
        raise
