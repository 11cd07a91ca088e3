"""weft: compile quantized networks for the accelerator and run them on its simulators.

``import weft`` is light: what needs PyTorch is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

from weft.errors import InputError, ProgramFormatError, UnsupportedModel, WeftError

if TYPE_CHECKING:
    from weft.entry import compile
    from weft.frontends.pt2_file import save_pt2
    from weft.ir import Graph
    from weft.program import Program
    from weft.session import Session
    from weft_hw.config import PRESETS, AcceleratorConfig, load_config

__all__ = [
    "PRESETS",
    "AcceleratorConfig",
    "Graph",
    "InputError",
    "Program",
    "ProgramFormatError",
    "Session",
    "UnsupportedModel",
    "WeftError",
    "compile",
    "load_config",
    "save_pt2",
]

__version__ = "0.1.0"

_HOMES = {
    "AcceleratorConfig": "weft_hw.config",
    "Graph": "weft.ir",
    "PRESETS": "weft_hw.config",
    "Program": "weft.program",
    "Session": "weft.session",
    "compile": "weft.entry",
    "load_config": "weft_hw.config",
    "save_pt2": "weft.frontends.pt2_file",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
