"""From a PyTorch module to the step that trains it."""

from typing import Any

import numpy as np

from weft.train.build import build_step
from weft.train.front import network_of
from weft.train.methods import Method, choose_method
from weft.train.parameters import ParameterSet
from weft.train.step import TrainingStep

__all__ = ["training_step"]


def training_step(
    module: Any, example: Any, method: str | Method = "octo", **settings: Any
) -> tuple[TrainingStep, ParameterSet]:
    """The step that trains a module, and its parameters (``.state(step)`` is the first state).

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    example : float tensor (batch, C, H, W) or (batch, features)
        Its first axis is the batch of every step.
    method : str or Method
    **settings
        Of :func:`weft.train.methods.choose_method`: ``update``, ``exponents``, ``compensation``.

    Raises
    ------
    UnsupportedModel
        If the module holds what cannot be trained; the message names the layer.
    InputError
        If there is no such method or setting.
    """
    chosen = choose_method(method, **settings)
    network = network_of(module, example)
    values = {
        name: parameter.detach().cpu().numpy().astype(np.float32)
        for name, parameter in module.named_parameters()
    }
    name = type(module).__name__
    return build_step(network, values, example.shape[0], chosen, name=name)
