"""Exceptions raised by the software side of weft, all of them `WeftError`."""

from weft_hw.errors import WeftError

__all__ = [
    "CheckpointError",
    "InputError",
    "MissingExtra",
    "ProgramFormatError",
    "UnsupportedModel",
    "WeftError",
    "missing_extra",
]


class UnsupportedModel(WeftError):
    """The model holds an operator, parameter or tensor that weft cannot compile."""


class ProgramFormatError(WeftError):
    """A program file is damaged, of another format version, or made for another configuration."""


class CheckpointError(WeftError):
    """A checkpoint of training cannot be read or written, or belongs to other training."""


class InputError(WeftError):
    """An argument or input array is missing or has the wrong name, shape, type or range."""


class MissingExtra(WeftError, ImportError):
    """An optional dependency is needed and not installed."""


def missing_extra(package: str, extra: str, *, purpose: str = "this") -> MissingExtra:
    """Return the error that tells which extra brings `package`.

    Raise it from the `ImportError` that showed the package to be missing::

        try:
            import torch
        except ImportError as error:
            raise missing_extra("PyTorch", "torch", purpose="reading a .pt2 file") from error

    Parameters
    ----------
    package
        Name of the package as people say it.
    extra
        Name of the extra of the `weft` distribution that installs it.
    purpose
        What it is needed for, to follow the words "is needed for".
    """
    return MissingExtra(f'{package} is needed for {purpose}: pip install "weft[{extra}]"')
