"""A trained network as a graph for inference: the forward pass with the exponents frozen.

Exponents stay at those that the last training step's largest sums give; rounding is to nearest.
The compiled graph computes the codes of :meth:`weft.train.fast.FastEngine.evaluate`, bit for bit;
but for averages over windows that are no power of two, whose multipliers have one bit more there,
so that what lies between two codes may go to the other.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import UnsupportedModel
from weft.ir import Add as GraphAdd
from weft.ir import AveragePool2d, Conv2d, Flatten, Graph, MaxPool2d, Operation, Tensor
from weft.train.state import State
from weft.train.step import (
    Add,
    AveragePool,
    Convolution,
    Exponent,
    Image,
    MaxPool,
    Quantizer,
    TrainingStep,
)
from weft_hw.training import CODE_LIMIT, aligned_bias, residual_base, shift_of

__all__ = ["inference_graph"]

SYMMETRIC = (-CODE_LIMIT, CODE_LIMIT)
RECTIFIED = (0, CODE_LIMIT)


def inference_graph(step: TrainingStep, state: State) -> Graph:
    """The trained network, ready for :func:`weft.compile`.

    Its input are pixels (float32, or int8 codes with a scale of 2^-7), its output is a vector of
    logits.

    Raises
    ------
    UnsupportedModel
        If a layer has a compensation by pixel, which inference does not have.
    """
    return _Exporter(step, state).graph()


class _Exporter:
    def __init__(self, step: TrainingStep, state: State) -> None:
        self.step, self.state = step, state
        self.exponents: dict[str, int] = {}
        self.tensors: list[Tensor] = []

    def graph(self) -> Graph:
        """All of it."""
        step = self.step
        self._tensor(step.source)
        operations = [operation for op in step.forward for operation in self._operation(op)]
        logits = step.logits
        flat = "logits as a vector"
        scale = 2.0 ** self._exponent(logits.exponent)
        self.tensors.append(Tensor(name=flat, shape=(logits.shape[2],), scale=scale, zero_point=0))
        operations.append(Flatten(name="flatten", inputs=(logits.name,), output=flat))
        return Graph(
            name=step.name,
            tensors=tuple(self.tensors),
            inputs=(step.source.name,),
            outputs=(flat,),
            operations=tuple(operations),
        )

    def _exponent(self, exponent: Exponent) -> int:
        own = self.exponents[exponent.quantizer] if exponent.quantizer is not None else 0
        return own + exponent.offset

    def _tensor(self, image: Image) -> str:
        self.tensors.append(
            Tensor(
                name=image.name,
                shape=image.shape,
                scale=2.0 ** self._exponent(image.exponent),
                zero_point=0,
            )
        )
        return image.name

    def _freeze(self, quantizer: Quantizer, sums: int) -> None:
        """Note the exponent that the last step's largest sum gives."""
        shift = shift_of(self.state.cells[quantizer.cells[0]])
        self.exponents[quantizer.name] = sums + shift + quantizer.offset

    def _operation(self, operation: Any) -> Iterator[Operation]:
        match operation:
            case Convolution():
                yield self._convolution(operation)
            case Add(first=first, second=second):
                base = residual_base(
                    self._exponent(first.exponent), self._exponent(second.exponent)
                )
                self._freeze(operation.quantizer, base)
                yield GraphAdd(
                    name=operation.result.name,
                    inputs=(first.name, second.name),
                    output=self._tensor(operation.result),
                    clamp=RECTIFIED if operation.rectified else SYMMETRIC,
                )
            case MaxPool(source=source, window=window):
                yield MaxPool2d(
                    name=operation.result.name,
                    inputs=(source.name,),
                    output=self._tensor(operation.result),
                    kernel=window,
                    stride=window,
                )
            case AveragePool(source=source, window=window):
                self._freeze(operation.quantizer, self._exponent(source.exponent))
                yield AveragePool2d(
                    name=operation.result.name,
                    inputs=(source.name,),
                    output=self._tensor(operation.result),
                    kernel=window,
                    stride=window,
                    clamp=SYMMETRIC,
                )

    def _convolution(self, operation: Convolution) -> Conv2d:
        if operation.compensation is not None:
            raise UnsupportedModel(
                f"{operation.compensation.name}: a compensation by pixel and channel has no "
                "inference form; train with one by channel, which is a bias"
            )
        weights, geometry = operation.weights, operation.geometry
        sums = self._exponent(operation.source.exponent) + weights.exponent
        self._freeze(operation.quantizer, sums)
        filters = weights.shape[3]
        (y, x) = geometry.padding
        return Conv2d(
            name=weights.name.removesuffix(".weight"),
            inputs=(operation.source.name,),
            output=self._tensor(operation.result),
            weights=np.ascontiguousarray(self.state.codes[weights.name].transpose(3, 0, 1, 2)),
            weight_scales=np.full(filters, 2.0**weights.exponent),
            bias=self._bias(operation, sums) if operation.biases else None,
            stride=geometry.stride,
            padding=((y, y), (x, x)),
            dilation=geometry.dilation,
            clamp=RECTIFIED if operation.rectified else SYMMETRIC,
        )

    def _bias(self, operation: Convolution, sums: int) -> NDArray[np.int32]:
        fraction = self.step.update.fraction
        total = np.zeros(operation.weights.shape[3], np.int64)
        for bias in operation.biases:
            master = self.state.master.get(bias.name, self.state.codes[bias.name])
            total += aligned_bias(master, bias.exponent - fraction - sums)
        return total.astype(np.int32)
