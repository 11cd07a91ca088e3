"""`weft.train.compile`: a PyTorch module, a method and an engine made a trainer."""

from collections.abc import Callable
from typing import Any

import torch

from weft.errors import InputError
from weft.train.fast import FastEngine
from weft.train.methods import Method
from weft.train.module import training_step
from weft.train.schedule import Schedule, constant
from weft.train.state import StepEngine
from weft.train.step import Update
from weft.train.trainer import Trainer
from weft_hw.config import AcceleratorConfig, load_config

__all__ = ["ENGINES", "compile"]

ENGINES = ("fast", "functional", "rtl")

DEFAULT_RATE = 0.05


def compile(
    module: Any,
    example_input: Any,
    config: AcceleratorConfig | str = "base16",
    *,
    method: str | Method = "octo",
    update: Update | None = None,
    exponents: str | None = None,
    compensation: str | None = None,
    engine: str = "fast",
    verify_every: int = 0,
    schedule: Schedule | Callable[[int], float] | float = DEFAULT_RATE,
    seed: int = 0,
    device: Any = None,
    **options: Any,
) -> "Trainer":
    """Prepare a PyTorch module for integer training.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed. Its parameters are the first weights.
    example_input : float tensor (batch, C, H, W) or (batch, features)
        For its shape; its first axis is the batch of every step.
    config : AcceleratorConfig or str
        The machine that the engines ``functional`` and ``rtl`` simulate.
    method : str or Method
        ``int8``, ``compensated``, ``clipped``, ``octo`` or ``shared``
        (:data:`weft.train.methods.METHODS`).
    update : Update, optional
        In place of the method's, for example ``MomentumUpdate(state_bits=32, decays=True)``.
    exponents : str, optional
        ``own`` or ``delayed``.
    compensation : str, optional
        ``none``, ``channel`` or ``pixel``.
    engine : str
        ``fast`` (PyTorch integers), ``functional`` or ``rtl`` (the machine's program).
    verify_every : int
        If not 0, every so many steps are also computed by another engine (a machine's by ``fast``,
        ``fast`` by ``functional``), and both must end in the same state.
    schedule : Schedule, callable or float
        A callable gives the learning rate by step (:mod:`weft.train.schedule`).
    seed : int
        Of stochastic rounding and of the order of the data.
    device : str or torch.device, optional
        Of the fast engine.
    **options
        Of the machine's engine.

    Returns
    -------
    Trainer

    Raises
    ------
    UnsupportedModel
        If the module holds what cannot be trained; the message names the layer.
    InputError, ConfigError
        If an argument is not allowed.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if verify_every < 0:
        raise InputError(f"verify_every={verify_every}: 0 (never) or a number of steps")
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed={seed}: from 0 to 2^32 - 1")
    machine = config if isinstance(config, AcceleratorConfig) else load_config(config)
    step, parameters = training_step(
        module,
        torch.zeros(tuple(example_input.shape)),
        method,
        update=update,
        exponents=exponents,
        compensation=compensation,
    )
    fast = FastEngine(step, device)
    runs: StepEngine = fast
    verifies: StepEngine | None = None
    if engine != "fast" or verify_every:
        from weft.train.machine.engine import MachineEngine

        kind = "functional" if engine == "fast" else engine
        other = MachineEngine(step, machine, engine=kind, **options)
        runs, verifies = (fast, other) if engine == "fast" else (other, fast)
    if not isinstance(schedule, Schedule):
        schedule = Schedule(schedule if callable(schedule) else constant(schedule))
    return Trainer(
        step,
        parameters,
        fast,
        runs,
        verifies if verify_every else None,
        verify_every=verify_every,
        schedule=schedule,
        seed=seed,
    )
