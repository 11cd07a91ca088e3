"""The `weft` command."""

from weft.cli.application import main

__all__ = ["main"]
