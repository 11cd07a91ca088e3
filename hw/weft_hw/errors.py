"""Errors that a user's input can cause; the command line prints their text as one line."""

__all__ = ["ConfigError", "EncodingError", "WeftError"]


class WeftError(Exception):
    """A failure that the user can mend.

    The message is complete by itself: what went wrong, where (file, field, layer, instruction), and
    what to do about it. A mistake inside weft is never a `WeftError`.
    """


class ConfigError(WeftError):
    """A configuration field is unknown or missing, or its value is not allowed."""


class EncodingError(WeftError):
    """An instruction is unknown, cut short, or a value does not fit its field."""
