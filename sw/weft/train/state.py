"""What training keeps from step to step, and what the host sets before one: plain NumPy."""

import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weft_hw.arithmetic import quantize_multiplier

__all__ = ["Rates", "State", "StepEngine"]

Array = NDArray[Any]


@dataclass
class State:
    """Everything that a step changes. Two engines agree if their states are equal.

    Parameters
    ----------
    codes : dict of str to int8 array
        By parameter's name, in the parameter's shape.
    master : dict of str to int16 or int32 array
        Of a :class:`~weft.train.step.MomentumUpdate`; empty otherwise.
    velocity : dict of str to int16 or int32 array
        Likewise, if its momentum is not 0.
    cells : dict of str to int
        By :meth:`~weft.train.step.TrainingStep.cells`; exponents without bias.
    """

    codes: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    master: dict[str, Array] = field(default_factory=dict)
    velocity: dict[str, Array] = field(default_factory=dict)
    cells: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "State":
        """One that shares nothing with this."""
        return copy.deepcopy(self)

    def difference(self, other: "State") -> str | None:
        """The first thing in which another state differs, in words; None if it is equal."""
        for what in ("codes", "master", "velocity"):
            mine, its = getattr(self, what), getattr(other, what)
            if mine.keys() != its.keys():
                return f"{what} of other parameters: {sorted(mine)} and {sorted(its)}"
            for name, values in mine.items():
                if not np.array_equal(values, its[name]):
                    place = tuple(int(n) for n in np.argwhere(values != its[name])[0])
                    count = int(np.count_nonzero(values != its[name]))
                    return (
                        f"{what} of {name}: {count} of {values.size} differ, the first at {place}: "
                        f"{values[place]} and {its[name][place]}"
                    )
        if self.cells.keys() != other.cells.keys():
            return "other cells"
        for name, value in self.cells.items():
            if value != other.cells[name]:
                return f"cell {name}: {value} and {other.cells[name]}"
        return None


@dataclass(frozen=True)
class Rates:
    """What a step's updates use, as integers.

    Parameters
    ----------
    rate : dict of str to (multiplier, exponent)
        By parameter group: learning rate over batch size
        (:func:`weft_hw.arithmetic.quantize_multiplier`).
    keep : dict of str to (multiplier, exponent)
        By group: what weight decay leaves.
    bits : int
        Of a :class:`~weft.train.step.BitUpdate`.
    """

    rate: dict[str, tuple[int, int]] = field(default_factory=dict)
    keep: dict[str, tuple[int, int]] = field(default_factory=dict)
    bits: int = 0

    @classmethod
    def of(
        cls,
        batch: int,
        rate: float,
        *,
        decay: float = 0.0,
        compensation_rate: float | None = None,
        compensation_decay: float = 0.0,
        bits: int = 0,
    ) -> "Rates":
        """From real numbers; the compensation's rate is the weights' unless given."""
        other = rate if compensation_rate is None else compensation_rate
        return cls(
            {
                "weights": quantize_multiplier(rate / batch),
                "compensation": quantize_multiplier(other / batch),
            },
            {
                "weights": quantize_multiplier(1 - rate * decay),
                "compensation": quantize_multiplier(1 - other * compensation_decay),
            },
            bits,
        )


class StepEngine(Protocol):
    """What executes training steps."""

    def run(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        rates: Rates,
        seed: int,
        number: int,
    ) -> tuple[State, NDArray[np.int8]]:
        """The state after a step, and the logits (batch, classes) before its update.

        Parameters
        ----------
        state : State
            Stays as it is.
        images : int8 array (batch, height, width, channels)
        targets : int8 array (batch, classes)
            127 at the label, else 0.
        rates : Rates
        seed, number : int
            Of the run and of the step: they choose the random bits.
        """
        ...
