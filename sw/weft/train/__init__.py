"""Integer training: a PyTorch module made a program that trains on the machine.

``import weft.train`` is light: what needs PyTorch is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.train.compiling import compile
    from weft.train.methods import METHODS, Method
    from weft.train.schedule import Schedule, constant, cosine, falling_bits, stairs
    from weft.train.step import BitUpdate, MomentumUpdate
    from weft.train.trainer import EngineMismatch, Evaluation, StepReport, Trainer

__all__ = [
    "METHODS",
    "BitUpdate",
    "EngineMismatch",
    "Evaluation",
    "Method",
    "MomentumUpdate",
    "Schedule",
    "StepReport",
    "Trainer",
    "compile",
    "constant",
    "cosine",
    "falling_bits",
    "stairs",
]

_HOMES = {
    "METHODS": "methods",
    "BitUpdate": "step",
    "EngineMismatch": "trainer",
    "Evaluation": "trainer",
    "Method": "methods",
    "MomentumUpdate": "step",
    "Schedule": "schedule",
    "StepReport": "trainer",
    "Trainer": "trainer",
    "compile": "compiling",
    "constant": "schedule",
    "cosine": "schedule",
    "falling_bits": "schedule",
    "stairs": "schedule",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'weft.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"weft.train.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
