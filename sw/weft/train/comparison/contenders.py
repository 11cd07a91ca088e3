"""The methods that are compared, each with its grid of equally many trials."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from weft.train.comparison.learners import (
    BitSchedule,
    DeviceLearner,
    FloatLearner,
    Learner,
    RateSchedule,
    Schedule,
)
from weft.train.methods import Method, choose_method
from weft.train.octo_reference import OctoSettings, ZeroPoints
from weft.train.step import MomentumUpdate

__all__ = ["CONTENDERS", "QUESTIONS", "Contender"]

SMALL_RATES: tuple[Schedule, ...] = tuple(RateSchedule(rate) for rate in (0.0003, 0.003, 0.03))
BITS: tuple[Schedule, ...] = (
    BitSchedule(((0.0, 1),)),
    BitSchedule(((0.0, 2), (0.5, 1))),
    BitSchedule(((0.0, 3), (1 / 3, 2), (2 / 3, 1))),
)

Make = Callable[[nn.Module, Tensor, int], Learner]


@dataclass(frozen=True)
class Contender:
    """A method under comparison.

    Parameters
    ----------
    name, text : str
        For a table, and a sentence on what it is.
    make : callable
        From a network, an example batch and a seed.
    schedules : tuple of Schedule, optional
        What is tried, if not the learning rates of the task.
    """

    name: str
    text: str
    make: Make
    schedules: tuple[Schedule, ...] | None = None


def _float(octo: OctoSettings | None = None) -> Make:
    return lambda network, example, seed: FloatLearner(network, example, octo, seed)


def _device(method: Method, *, biases_as_compensation: bool = False) -> Make:
    return lambda network, example, seed: DeviceLearner(
        network, example, method, seed, biases_as_compensation=biases_as_compensation
    )


def _method(name: str, compensation: str | None = None) -> Make:
    return _device(choose_method(name, compensation=compensation))


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("FP32", "PyTorch, float32, SGD with momentum.", _float()),
        Contender(
            "Octo, published",
            "Float emulation of the paper: affine codes, stochastic rounding forward, nearest "
            "backward, compensation by channel and pixel, ranges clipped to 0.95 backward; zero "
            "points handled rightly.",
            _float(OctoSettings()),
        ),
        Contender(
            "Octo, demonstration",
            "The same with zero points as in the public demonstration, which leaves them in the "
            "products; without the normalization that stands behind them there.",
            _float(OctoSettings(ZeroPoints.DEMONSTRATION)),
            SMALL_RATES,
        ),
        Contender("INT8", "Plain integer SGD on the machine.", _method("int8")),
        Contender(
            "INT8 + LAC",
            "With a trained compensation by channel and pixel.",
            _method("compensated", "pixel"),
        ),
        Contender(
            "INT8 + LAC by channel",
            "With a trained compensation by channel.",
            _method("compensated", "channel"),
        ),
        Contender(
            "INT8, penalized biases",
            "The control for LAC: no compensation, but its learning rate and L2 on the biases.",
            _device(choose_method("int8"), biases_as_compensation=True),
        ),
        Contender("INT8 + PRC", "Gradients clipped to 0.95 of their range.", _method("clipped")),
        Contender(
            "Octo",
            "INT8 + LAC by channel and pixel + PRC on the machine.",
            _method("octo", "pixel"),
        ),
        Contender(
            "Shared exponents",
            "NITI's shared exponents and roundings with integer SGD in 16-bit state.",
            _device(replace(choose_method("shared"), update=MomentumUpdate())),
        ),
        Contender(
            "Shared exponents, bits",
            "NITI: shared exponents, updates of a falling number of bits, no state but int8 codes.",
            _method("shared"),
            BITS,
        ),
    )
}
"""By name, in the order of a table."""

QUESTIONS = (
    ("What does LAC add to INT8?", "INT8 + LAC", "INT8"),
    ("What does LAC by channel add to INT8?", "INT8 + LAC by channel", "INT8"),
    ("Is LAC by channel more than a bias?", "INT8 + LAC by channel", "INT8, penalized biases"),
    ("What does PRC add to INT8?", "INT8 + PRC", "INT8"),
    ("What do both add to INT8?", "Octo", "INT8"),
    ("Is Octo on the machine as good as published?", "Octo", "Octo, published"),
    ("How far is Octo from float?", "Octo", "FP32"),
    ("How far are shared exponents from float?", "Shared exponents", "FP32"),
    ("What do updates of a few bits cost?", "Shared exponents, bits", "Shared exponents"),
    ("How far is plain INT8 from float?", "INT8", "FP32"),
)
"""A question, the method that it is about and what that is compared with."""
