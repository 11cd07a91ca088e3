"""The updates of all parameters, as vectorized whole numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from weft.train.rounding import requantized, requantized_each, scaled
from weft.train.state import Rates, State
from weft.train.step import BitUpdate, MomentumUpdate, Parameter
from weft_hw.arithmetic import quantize_multiplier
from weft_hw.training import CODE_LIMIT, LIMIT_OF_SUM, shift_of, velocity_limit

__all__ = ["Gradient", "update_by_bits", "update_by_momentum"]

Gradient = tuple[Parameter, Any, int]
"""A parameter, its gradient's sums (float64, flat, in the parameter's order), their exponent."""


def update_by_bits(
    gradients: Sequence[Gradient], update: BitUpdate, state: State, bits: int, random: Any
) -> None:
    """Move codes by updates of a few bits; changes the state's dictionaries."""
    for parameter, sums, _ in gradients:
        name = parameter.name
        largest = int(sums.abs().max())
        used = state.cells[f"{name}.largest"] if update.delayed else largest
        moved = scaled(sums, -shift_of(used, bits), random[parameter.numbers[0]])
        bound = (1 << bits) - 1
        clamped = moved.clamp(-bound, bound)
        state.cells[f"{name}.largest"] = largest
        state.cells[f"{name}.saturated"] = int((clamped != moved).sum())
        old = torch.from_numpy(state.codes[name].reshape(-1)).to(sums.device)
        codes = (old + clamped).clamp_(-CODE_LIMIT, CODE_LIMIT)
        state.codes[name] = codes.to(torch.int8).cpu().numpy().reshape(parameter.shape)


def update_by_momentum(
    gradients: Sequence[Gradient],
    update: MomentumUpdate,
    state: State,
    rates: Rates,
    random: Any,
) -> None:
    """Integer SGD of all parameters as one vector; changes the state's dictionaries."""
    device = gradients[0][1].device
    sizes = torch.tensor([len(sums) for _, sums, _ in gradients], device=device)

    def each(values: Sequence[int]) -> Any:
        numbers = torch.tensor(values, dtype=torch.int64, device=device)
        return torch.repeat_interleave(numbers, sizes)

    def stream(number: int) -> Any:
        parts = [random[parameter.numbers[number]] for parameter, _, _ in gradients]
        return (torch.cat(parts) * 65536).to(torch.int64)

    def gathered(arrays: dict[str, Any]) -> Any:
        flat = [arrays[parameter.name].reshape(-1) for parameter, _, _ in gradients]
        return torch.from_numpy(np.concatenate(flat).astype(np.int64)).to(device)

    fraction, finer = update.fraction, update.finer
    multipliers, exponents = [], []
    for parameter, _, exponent in gradients:
        multiplier, power = rates.rate[parameter.group]
        power += exponent - (parameter.exponent - fraction - finer)
        multipliers.append(multiplier)
        exponents.append(min(max(power, -31), 31))
    sums = torch.cat([sums for _, sums, _ in gradients]).to(torch.int64)
    moved = requantized_each(sums, each(multipliers), each(exponents), stream(0))
    velocity = moved.clamp_(-LIMIT_OF_SUM, LIMIT_OF_SUM)
    if update.momentum:
        velocity += requantized(gathered(state.velocity), *quantize_multiplier(update.momentum))
    limit = velocity_limit(update.state_bits)
    velocity.clamp_(-limit, limit)

    master = gathered(state.master)
    if update.decays:
        keep = [rates.keep[parameter.group] for parameter, _, _ in gradients]
        multipliers, exponents = [one for one, _ in keep], [other for _, other in keep]
        master = requantized_each(master, each(multipliers), each(exponents), stream(2))
    step = torch.cat([random[parameter.numbers[1]] for parameter, _, _ in gradients])
    master += scaled(velocity.double(), -finer, step).to(torch.int64)
    limit = CODE_LIMIT << fraction
    master.clamp_(-limit, limit)
    codes = scaled(master.double(), -fraction).clamp_(-CODE_LIMIT, CODE_LIMIT)

    kind = np.int16 if update.state_bits == 16 else np.int32
    whole = {
        "codes": codes.to(torch.int8).cpu().numpy(),
        "master": master.cpu().numpy().astype(kind),
    }
    if update.momentum:
        whole["velocity"] = velocity.cpu().numpy().astype(kind)
    ends = np.cumsum([0, *sizes.tolist()])
    for name, values in whole.items():
        for (parameter, _, _), start, stop in zip(gradients, ends, ends[1:], strict=False):
            part = values[start:stop].reshape(parameter.shape)
            getattr(state, name)[parameter.name] = part
