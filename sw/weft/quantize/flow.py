"""Export, observe and convert in one call."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from weft.errors import InputError
from weft.quantize.pt2e import convert_pt2e, prepare_pt2e
from weft.quantize.quantizer import WeftQuantizer

__all__ = ["quantize"]


def quantize(
    model: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    calibration: Iterable[torch.Tensor | Sequence[torch.Tensor]],
    *,
    quantizer: Any = None,
) -> GraphModule:
    """Return the int8 form of a trained `model`, ready for `weft.compile` and `weft.save_pt2`.

    The model itself is left as it is, and is taken in evaluation mode.

    Parameters
    ----------
    model
        The trained floating-point model.
    example_inputs
        One tensor for each input of the model. The result has their shapes, batch included.
    calibration
        Batches of typical inputs that fix the range of each activation: a tensor for a model with
        one input, else one tensor for each.
    quantizer
        What to use instead of `WeftQuantizer()`.
    """
    if isinstance(example_inputs, torch.Tensor):
        raise InputError(
            "`example_inputs` must be a tuple with a tensor for each input: (x,), not x"
        )
    exported = torch.export.export(copy.deepcopy(model).eval(), tuple(example_inputs))
    graph = exported.module(check_guards=False)
    prepared = prepare_pt2e(graph, WeftQuantizer() if quantizer is None else quantizer)
    batches = 0
    with torch.no_grad():
        for batch in calibration:
            prepared(*([batch] if isinstance(batch, torch.Tensor) else batch))
            batches += 1
    if batches == 0:
        raise InputError("`calibration` is empty: give at least one batch of typical inputs")
    converted: GraphModule = convert_pt2e(prepared)
    return converted
