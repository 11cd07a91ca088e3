"""Trained tensors between PyTorch's floats and the step's codes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import InputError
from weft.train.state import State
from weft.train.step import BitUpdate, MomentumUpdate, Parameter, TrainingStep, Update
from weft_hw.training import CODE_LIMIT

__all__ = ["ParameterSet", "from_torch_layout", "to_torch_layout"]

INITIAL_CODE = 32
"""The largest absolute weight at the start is at most this: the rest is room to grow."""

INITIAL_CODE_OF_CODES = 64
"""The same where codes are all the state, and one of them is the smallest step."""

BIAS_EXPONENT = -4
"""Least exponent of biases and compensations: their range is at least -7.9 to 7.9."""

BIAS_EXPONENT_OF_CODES = -7
"""The same where codes are all the state, which every update moves by one or more."""


def from_torch_layout(values: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """PyTorch's (out, in, y, x) or (out, features) as (y, x, in, out); others as they are."""
    array = np.asarray(values)
    if len(shape) != 4:
        return array.reshape(shape)
    height, width, inputs, outputs = shape
    return array.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)


def to_torch_layout(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The reverse of :func:`from_torch_layout`: ``shape`` is PyTorch's."""
    if values.ndim == 4:
        values = values.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(values).reshape(shape)


def _exponent(values: NDArray[Any], highest_code: int, least: int | None) -> int:
    """The smallest exponent with which no code is above the highest."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0:
        return -7 if least is None else least
    wanted = math.ceil(math.log2(largest / highest_code))
    return wanted if least is None else max(wanted, least)


@dataclass
class ParameterSet:
    """Exponents and values of a network's parameters.

    Parameters
    ----------
    update : Update
        Its ``fraction`` says how much finer than codes the masters are.
    parameters : dict of str to Parameter
    shapes : dict of str to tuple of int
        In PyTorch.
    initial : dict of str to float array
        In the parameter's own shape.
    """

    update: Update
    parameters: dict[str, Parameter] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    initial: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        group: str,
        numbers: tuple[int, int, int],
        values: NDArray[Any] | None,
    ) -> Parameter:
        """A parameter with PyTorch's values, or zeros."""
        self.shapes[name] = shape if values is None else values.shape
        given = np.zeros(shape) if values is None else np.asarray(values, np.float64)
        initial = from_torch_layout(given, shape)
        coarse = isinstance(self.update, BitUpdate)
        of_biases = BIAS_EXPONENT_OF_CODES if coarse else BIAS_EXPONENT
        highest = INITIAL_CODE_OF_CODES if coarse else INITIAL_CODE
        exponent = _exponent(initial, highest, None if len(shape) == 4 else of_biases)
        parameter = Parameter(name, shape, exponent, group, numbers)
        self.parameters[name] = parameter
        self.initial[name] = initial
        return parameter

    def state(self, step: TrainingStep) -> State:
        """The first state: rounded initial values, velocities and cells of 0."""
        state = State(cells=dict.fromkeys(step.cells(), 0))
        for name, values in self.initial.items():
            self.assign(state, name, values)
        return state

    def assign(self, state: State, name: str, values: NDArray[Any]) -> None:
        """Set a parameter to real values (in its own shape), its velocity to 0."""
        update, exponent = self.update, self.parameters[name].exponent
        codes = np.rint(np.ldexp(values, -exponent))
        if isinstance(update, MomentumUpdate):
            kind = np.int16 if update.state_bits == 16 else np.int32
            limit = CODE_LIMIT << update.fraction
            master = np.rint(np.ldexp(values, update.fraction - exponent))
            state.master[name] = np.clip(master, -limit, limit).astype(kind)
            # The codes that the update itself would leave behind this master.
            codes = np.rint(state.master[name] / (1 << update.fraction))
            if update.momentum:
                state.velocity[name] = np.zeros(values.shape, kind)
        state.codes[name] = np.clip(codes, -CODE_LIMIT, CODE_LIMIT).astype(np.int8)

    def assign_torch(self, state: State, name: str, values: NDArray[Any]) -> None:
        """:meth:`assign` from PyTorch's layout.

        Raises
        ------
        InputError
            If the shape differs, or a value is not finite or out of the parameter's range.
        """
        if values.shape != self.shapes[name]:
            raise InputError(f"{name} has shape {values.shape}, not {self.shapes[name]}")
        parameter = self.parameters[name]
        limit = float(np.ldexp(CODE_LIMIT, parameter.exponent))
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= limit:  # NaN too
            raise InputError(
                f"{name} reaches {largest:.4g}; it was compiled for at most {limit:.4g}: compile "
                "the module with these values"
            )
        self.assign(state, name, from_torch_layout(values, parameter.shape))

    def real(self, state: State, name: str) -> NDArray[np.float64]:
        """A parameter's values, from its master where there is one, in its own shape."""
        exponent = self.parameters[name].exponent
        if name in state.master:
            return np.ldexp(state.master[name].astype(np.float64), exponent - self.update.fraction)
        return np.ldexp(state.codes[name].astype(np.float64), exponent)

    def to_torch(self, state: State) -> Mapping[str, NDArray[np.float32]]:
        """All parameters as float32 in PyTorch's shapes."""
        return {
            name: to_torch_layout(self.real(state, name), shape).astype(np.float32)
            for name, shape in self.shapes.items()
        }
