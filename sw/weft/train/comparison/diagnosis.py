"""What a comparison says of a method beyond accuracy: its state's bytes, its gradients' angles."""

from itertools import islice
from typing import Any

from weft.train.comparison.gradients import gradient_cosines
from weft.train.comparison.learners import DeviceLearner, Images, Labels, Learner

__all__ = ["BATCHES", "diagnosis"]

BATCHES = 10
"""Of which angles are means."""


def diagnosis(start: Learner, end: Learner, batches: list[tuple[Images, Labels]]) -> dict[str, Any]:
    """Of an integer method; nothing of others.

    Parameters
    ----------
    start, end : Learner
        Before the first step and behind the last.
    batches : list of (images, labels)
        The first :data:`BATCHES` are used.

    Returns
    -------
    dict
        ``bytes`` of codes, masters and velocities by kind of parameter, and ``gradients``: by
        parameter, cosines (quantized forward pass, unquantized) at the ``start`` and ``end``.
    """
    if not isinstance(start, DeviceLearner) or not isinstance(end, DeviceLearner):
        return {}
    chosen = list(islice(batches, BATCHES))
    angles = [gradient_cosines(learner, chosen) for learner in (start, end)]
    return {
        "bytes": _bytes(end),
        "gradients": [
            {
                "parameter": first.parameter,
                "start": [first.quantized, first.unquantized],
                "end": [last.quantized, last.unquantized],
            }
            for first, last in zip(*angles, strict=True)
        ],
    }


def _bytes(learner: DeviceLearner) -> dict[str, int]:
    sizes = {"weights": 0, "biases": 0, "compensations": 0}
    state = learner.state
    for parameter in learner.training_step.parameters():
        kind = "weights" if len(parameter.shape) == 4 else "biases"
        if parameter.name.endswith(".compensation"):
            kind = "compensations"
        for values in (state.codes, state.master, state.velocity):
            if parameter.name in values:
                sizes[kind] += values[parameter.name].nbytes
    return sizes
