"""How true the integer gradients are: their angle to those of float64 autograd."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from weft.train.comparison.learners import DeviceLearner, Images, Labels
from weft.train.data import CLASSES, INPUT_EXPONENT, target_codes
from weft.train.step import Add, AveragePool, Convolution, MaxPool, TrainingStep

__all__ = ["Cosines", "float_gradients", "gradient_cosines"]

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Cosines:
    """Of one parameter's gradient: to autograd on the same quantized forward pass, and to autograd
    on a forward pass without quantization; means over batches."""

    parameter: str
    quantized: float
    unquantized: float


def gradient_cosines(learner: DeviceLearner, batches: list[tuple[Images, Labels]]) -> list[Cosines]:
    """Cosines between integer and float64 gradients of every parameter, at the learner's state.

    The reference computes every product, the loss (float64 softmax) and its gradients in float64
    from the same weights. On the quantized forward pass, each result takes the value of the
    integer step's, and its rounding the derivative 1.

    Parameters
    ----------
    learner : DeviceLearner
        Not changed.
    batches : list of (images, labels)
        Of the step's size.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for number, (images, labels) in enumerate(batches, start=learner.number):
        inputs = (images, target_codes(labels, CLASSES))
        state = learner.state
        values, gradients = learner.engine.values(state, *inputs, learner.seed, number)
        parameters = {
            parameter.name: torch.from_numpy(learner.parameters.real(state, parameter.name))
            for parameter in learner.training_step.parameters()
        }
        for parameter in learner.training_step.parameters():
            if len(parameter.shape) == 4:  # the products have codes, whatever is behind them
                codes = state.codes[parameter.name].astype(np.float64)
                parameters[parameter.name] = torch.from_numpy(np.ldexp(codes, parameter.exponent))
        references = [
            float_gradients(learner.training_step, parameters, images, labels, given)
            for given in (values, None)
        ]
        for name, gradient in gradients.items():
            pair = [_cosine(gradient, -reference[name].numpy()) for reference in references]
            found.setdefault(name, []).append((pair[0], pair[1]))
    return [
        Cosines(name, *(float(np.mean(column)) for column in zip(*pairs, strict=True)))
        for name, pairs in found.items()
    ]


def _cosine(first: Values, second: Values) -> float:
    """0 where one of them is zero."""
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / length if length else 0.0


def float_gradients(
    step: TrainingStep,
    parameters: Mapping[str, Tensor],
    images: Images,
    labels: Labels,
    values: Mapping[str, Values] | None,
) -> dict[str, Tensor]:
    """Gradients of the summed cross-entropy, by autograd in float64.

    Parameters
    ----------
    step : TrainingStep
    parameters : mapping of str to float64 tensor
        In the parameters' own shapes.
    images : int8 array (batch, height, width, channels)
    labels : int64 array (batch,)
    values : mapping of str to float64 array, optional
        What each result shall be, by its name; else what is computed.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    tensors: dict[str, Any] = {
        step.source.name: torch.from_numpy(np.ldexp(images.astype(np.float64), INPUT_EXPONENT))
    }

    def result(name: str, computed: Tensor, *, rectified: bool = False) -> None:
        if values is None:
            tensors[name] = functional.relu(computed) if rectified else computed
            return
        given = torch.from_numpy(values[name])
        if rectified:
            computed = computed * (given > 0)
        tensors[name] = computed + (given - computed).detach()

    for operation in step.forward:
        if isinstance(operation, Convolution):
            sums = _convolution(operation, tensors[operation.source.name], leaves)
            result(operation.result.name, sums, rectified=operation.rectified)
        elif isinstance(operation, Add):
            first, second = (tensors[image.name] for image in (operation.first, operation.second))
            result(operation.result.name, first + second, rectified=operation.rectified)
        elif isinstance(operation, MaxPool | AveragePool):
            pool = (
                functional.max_pool2d if isinstance(operation, MaxPool) else functional.avg_pool2d
            )
            source = tensors[operation.source.name].permute(0, 3, 1, 2)
            pooled = pool(source, operation.window).permute(0, 2, 3, 1)
            result(operation.result.name, pooled)
        else:
            raise TypeError(f"no reference for {type(operation).__name__}")
    logits = tensors[step.logits.name][:, 0, 0]
    loss = functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    names = list(leaves)
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names])
    return dict(zip(names, gradients, strict=True))


def _convolution(operation: Convolution, source: Tensor, leaves: Mapping[str, Tensor]) -> Tensor:
    geometry = operation.geometry
    sums = functional.conv2d(
        source.permute(0, 3, 1, 2),
        leaves[operation.weights.name].permute(3, 2, 0, 1),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
    ).permute(0, 2, 3, 1)
    for bias in operation.biases:
        sums = sums + leaves[bias.name]
    if operation.compensation is not None:
        sums = sums + leaves[operation.compensation.name]
    return sums
