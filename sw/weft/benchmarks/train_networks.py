"""Training steps of whole networks for `weft bench train-step`."""

from typing import Any

import numpy as np

from weft.benchmarks.train_step import bench_step
from weft.errors import InputError
from weft.train.build import build_step
from weft.train.fast import FastEngine
from weft.train.front import network_of
from weft.train.methods import choose_method
from weft.train.networks import DigitsNetwork, ResidualNetwork
from weft.train.state import Rates
from weft_hw.config import AcceleratorConfig
from weft_hw.training import CODE_LIMIT

__all__ = ["bench_network"]

NETWORKS = {"digits": (DigitsNetwork, (1, 8, 8)), "residual": (ResidualNetwork, (3, 32, 32))}


def bench_network(
    name: str,
    config: AcceleratorConfig,
    batch: int,
    method: str,
    exponents: str,
    *,
    engine: str,
    compensation: str | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """One step of a network from its start, on random pixels: :func:`bench_step`'s figures.

    Raises
    ------
    RuntimeError
        If the state after the step differs from that of the fast engine.
    InputError
        If there is no such network, method or policy.
    """
    import torch

    if name not in NETWORKS:
        raise InputError(f"network {name!r}: choose one of {', '.join(NETWORKS)}")
    kind, shape = NETWORKS[name]
    torch.manual_seed(seed)
    module = kind()
    network = network_of(module, torch.zeros(batch, *shape))
    values = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    chosen = choose_method(method, exponents=exponents, compensation=compensation)
    step, parameters = build_step(network, values, batch, chosen)
    fast = FastEngine(step)
    rng = np.random.default_rng(seed)
    images = rng.integers(-127, 128, (batch, *step.source.shape)).astype(np.int8)
    classes = step.logits.shape[2]
    targets = np.zeros((batch, classes), np.int8)
    targets[np.arange(batch), rng.integers(0, classes, batch)] = CODE_LIMIT
    state = fast.first_largest(
        parameters.state(step), images, targets, Rates.of(batch, 0.05, bits=4), seed, 0
    )
    return bench_step(step, config, state, images, targets, fast, engine=engine, **options)
