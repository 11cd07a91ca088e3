"""Layers of a network made a training step: the backward pass is derived, random bits numbered."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weft.errors import UnsupportedModel
from weft.train.data import INPUT_EXPONENT
from weft.train.layers import (
    AddLayer,
    AveragePoolLayer,
    ConvolutionLayer,
    MaxPoolLayer,
    Network,
    Value,
)
from weft.train.methods import Method
from weft.train.parameters import ParameterSet
from weft.train.step import (
    Add,
    AveragePool,
    AveragePoolGradient,
    BiasGradient,
    CompensationGradient,
    Convolution,
    DataGradient,
    Exponent,
    Image,
    LossGradient,
    Mask,
    MaxPool,
    MaxPoolGradient,
    Operation,
    Parameter,
    Quantizer,
    TrainingStep,
    WeightGradient,
)
from weft_hw.training import CODE_LIMIT, LIMIT_OF_BIAS, ONE

__all__ = ["TARGET_EXPONENT", "average_factor", "build_step"]

TARGET_EXPONENT = -7
"""127, at the label, stands for (nearly) 1."""

RANDOM_TENSORS = 1 << 12
LIMIT_OF_SUMS = 1 << 31
LIMIT_OF_CLIPPED_SUMS = 1 << 30


def average_factor(elements: int) -> tuple[int, int]:
    """``1 / elements`` as ``multiplier / 2^30 * 2**offset``, the multiplier in (2^29, 2^30]."""
    mantissa, exponent = math.frexp(1 / elements)
    if mantissa == 0.5:
        mantissa, exponent = 1.0, exponent - 1
    return round(mantissa * ONE), exponent


def build_step(
    network: Network,
    parameters: Mapping[str, NDArray[np.float32]],
    batch: int,
    method: Method,
    *,
    name: str = "network",
) -> tuple[TrainingStep, ParameterSet]:
    """The step that trains a network, and its parameters' exponents and first values.

    Parameters
    ----------
    network : Network
    parameters : dict of str to float array
        The module's, in PyTorch's shapes.
    batch : int
    method : Method
    name : str

    Raises
    ------
    UnsupportedModel
        If int32 sums could overflow, or there is nothing to train.
    """
    return _Builder(network, parameters, batch, method).step(name)


@dataclass
class _Builder:
    network: Network
    values: Mapping[str, NDArray[np.float32]]
    batch: int
    method: Method
    images: dict[str, Image] = field(default_factory=dict)
    gradients: dict[str, list[Image]] = field(default_factory=dict)
    forward: list[Operation] = field(default_factory=list)
    backward: list[Operation] = field(default_factory=list)
    operations: dict[str, Convolution] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = itertools.count()
        self.parameters = ParameterSet(self.method.update)
        self.indices: dict[str, Image] = {}

    def step(self, name: str) -> tuple[TrainingStep, ParameterSet]:
        """The whole step."""
        network = self.network
        source = self._place(network.source, Exponent(None, INPUT_EXPONENT))
        for layer in network.layers:
            self._forward(layer)
        logits = self.images[network.result.name]
        if not self._trained(network.result):
            raise UnsupportedModel("the module has no Linear or Conv2d: there is nothing to train")
        target = Image("target", logits.shape, Exponent(None, TARGET_EXPONENT))
        quantizer = Quantizer(
            "loss", next(self.numbers), stochastic=False, clipped=False, delayed=False
        )
        loss = Image("loss", logits.shape, Exponent(quantizer.name))
        self.backward.append(LossGradient(logits, target, loss, quantizer))
        self.gradients[network.result.name] = [loss]
        for layer in reversed(network.layers):
            if self._trained(layer.result):
                self._backward(layer)
        if next(self.numbers) > RANDOM_TENSORS:
            raise UnsupportedModel(f"more than {RANDOM_TENSORS} tensors take random bits")
        step = TrainingStep(
            name,
            self.batch,
            source,
            target,
            logits,
            tuple(self.forward),
            tuple(self.backward),
            self.method.update,
        )
        return step, self.parameters

    # Forward --------------------------------------------------------------------------------------

    def _place(self, value: Value, exponent: Exponent) -> Image:
        image = self.images[value.name] = Image(value.name, value.shape, exponent)
        return image

    def _quantizer(
        self, name: str, *, backward: bool, multiplier: int = ONE, offset: int = 0
    ) -> Quantizer:
        method = self.method
        return Quantizer(
            name,
            next(self.numbers),
            stochastic=method.backward_stochastic if backward else method.forward_stochastic,
            clipped=method.clipped and backward,
            delayed=method.delayed,
            multiplier=multiplier,
            offset=offset,
        )

    def _forward(self, layer: object) -> None:
        if isinstance(layer, ConvolutionLayer):
            self._convolution(layer)
        elif isinstance(layer, MaxPoolLayer):
            source = self.images[layer.source.name]
            result = self._place(layer.result, source.exponent)
            index = Image(f"{layer.name}.index", result.shape, Exponent())
            self.indices[layer.name] = index
            self.forward.append(MaxPool(source, result, index, layer.window))
        elif isinstance(layer, AveragePoolLayer):
            multiplier, offset = average_factor(layer.window[0] * layer.window[1])
            quantizer = self._quantizer(
                layer.result.name, backward=False, multiplier=multiplier, offset=offset
            )
            source = self.images[layer.source.name]
            result = self._place(layer.result, Exponent(quantizer.name))
            self.forward.append(AveragePool(source, result, quantizer, layer.window))
        elif isinstance(layer, AddLayer):
            quantizer = self._quantizer(layer.result.name, backward=False)
            first, second = self.images[layer.source.name], self.images[layer.second.name]
            result = self._place(layer.result, Exponent(quantizer.name))
            self.forward.append(Add(first, second, result, quantizer, layer.rectified))

    def _convolution(self, layer: ConvolutionLayer) -> None:
        source = self.images[layer.source.name]
        channels = layer.result.shape[2]
        kernel = layer.geometry.kernel
        shape = (*kernel, source.shape[2], channels)
        weights = self._parameter(layer.weight, shape, self.values[layer.weight])
        biases = []
        if layer.bias is not None:
            biases.append(self._parameter(layer.bias, (channels,), self.values[layer.bias]))
        compensation = None
        if self.method.compensation != "none":
            by_pixel = self.method.compensation == "pixel"
            added = self._parameter(
                f"{layer.name}.compensation",
                layer.result.shape if by_pixel else (channels,),
                None,
                group="compensation",
            )
            if by_pixel:
                compensation = added
            else:
                biases.append(added)
        self._check_sums(layer, kernel[0] * kernel[1] * source.shape[2], "inputs", len(biases))
        quantizer = self._quantizer(layer.result.name, backward=False)
        result = self._place(layer.result, Exponent(quantizer.name))
        operation = Convolution(
            source,
            weights,
            tuple(biases),
            compensation,
            result,
            quantizer,
            layer.rectified,
            layer.geometry,
        )
        self.operations[layer.name] = operation
        self.forward.append(operation)

    def _parameter(
        self,
        name: str,
        shape: tuple[int, ...],
        values: NDArray[np.float32] | None,
        group: str = "weights",
    ) -> Parameter:
        numbers = (next(self.numbers), next(self.numbers), next(self.numbers))
        return self.parameters.add(name, shape, group, numbers, values)

    def _check_sums(self, layer: ConvolutionLayer, products: int, what: str, biases: int) -> None:
        largest = CODE_LIMIT**2 * products + LIMIT_OF_BIAS * biases
        clipped = self.method.clipped and what == "outputs"
        limit = LIMIT_OF_CLIPPED_SUMS if clipped else LIMIT_OF_SUMS
        if largest >= limit:
            raise UnsupportedModel(
                f"{layer.name}: sums of {products:,} products over its {what} could overflow "
                f"{'30 bits, which range clipping needs' if clipped else 'int32'}: "
                + (
                    "use a smaller batch"
                    if what == "batch and pixels"
                    else "use fewer channels or a smaller kernel"
                )
            )

    # Backward -------------------------------------------------------------------------------------

    def _trained(self, value: Value) -> bool:
        """Whether a value depends on a parameter, so that its gradient is of use."""
        layer = self.network.producer(value)
        if layer is None:
            return False
        if isinstance(layer, AddLayer):
            return self._trained(layer.source) or self._trained(layer.second)
        return isinstance(layer, ConvolutionLayer) or self._trained(layer.source)

    def _mask(self, value: Value) -> Image | None:
        """The image whose positive codes let a value's gradient pass: its own, if it has ReLU.

        Behind max pooling too, so that the pool's source needs no mask.
        """
        layer = self.network.producer(value)
        if isinstance(layer, MaxPoolLayer):
            return self.images[value.name] if self._mask(layer.source) is not None else None
        return self.images[value.name] if getattr(layer, "rectified", False) else None

    def _new_gradient(self, value: Value) -> tuple[str, Image | None]:
        """Name of the next part of a value's gradient, and the mask to apply to that part."""
        parts = self.gradients.setdefault(value.name, [])
        name = f"{value.name}.gradient"
        if len(self.network.uses(value)) == 1:
            return name, self._mask(value)
        return f"{name}.{len(parts) + 1}", None

    def _backward(self, layer: object) -> None:
        if isinstance(layer, ConvolutionLayer):
            self._convolution_backward(layer, self._gradient(layer.result))
        elif isinstance(layer, MaxPoolLayer):
            gradient = self._gradient(layer.result)
            name, _ = self._new_gradient(layer.source)
            result = Image(name, layer.source.shape, gradient.exponent)
            index = self.indices[layer.name]
            self.backward.append(MaxPoolGradient(gradient, index, result, layer.window))
            self.gradients[layer.source.name].append(result)
        elif isinstance(layer, AveragePoolLayer):
            gradient = self._gradient(layer.result)
            multiplier, offset = average_factor(layer.window[0] * layer.window[1])
            name, mask = self._new_gradient(layer.source)
            exponent = Exponent(gradient.exponent.quantizer, gradient.exponent.offset + offset)
            result = Image(name, layer.source.shape, exponent)
            self.backward.append(
                AveragePoolGradient(gradient, result, mask, layer.window, multiplier)
            )
            self.gradients[layer.source.name].append(result)
        elif isinstance(layer, AddLayer):
            gradient = self._gradient(layer.result)
            for operand in (layer.source, layer.second):
                if self._trained(operand):
                    name, mask = self._new_gradient(operand)
                    self.gradients[operand.name].append(self._masked(gradient, mask, name))

    def _masked(self, gradient: Image, mask: Image | None, name: str) -> Image:
        if mask is None:
            return gradient
        result = Image(name, gradient.shape, gradient.exponent)
        self.backward.append(Mask(gradient, result, mask))
        return result

    def _gradient(self, value: Value) -> Image:
        """A value's whole gradient: the sum of those of its uses."""
        total, *others = self.gradients[value.name]
        name = f"{value.name}.gradient"
        if value is self.network.result:
            # The loss is a use of its own, so that it may be one part of several.
            total = self._masked(total, None if others else self._mask(value), name)
        for number, other in enumerate(others, 1):
            last = number == len(others)
            sum_name = name if last else f"{name}.sum{number}"
            quantizer = self._quantizer(sum_name, backward=True)
            result = Image(sum_name, total.shape, Exponent(quantizer.name))
            mask = self._mask(value) if last else None
            self.backward.append(Add(total, other, result, quantizer, mask=mask))
            total = result
        return total

    def _convolution_backward(self, layer: ConvolutionLayer, gradient: Image) -> None:
        operation = self.operations[layer.name]
        kernel = layer.geometry.kernel
        channels = layer.result.shape[2]
        if self._trained(layer.source):
            self._check_sums(layer, kernel[0] * kernel[1] * channels, "outputs", 0)
            name, mask = self._new_gradient(layer.source)
            quantizer = self._quantizer(name, backward=True)
            result = Image(name, layer.source.shape, Exponent(quantizer.name))
            self.backward.append(
                DataGradient(gradient, operation.weights, result, quantizer, mask, layer.geometry)
            )
            self.gradients[layer.source.name].append(result)
        pixels = gradient.shape[0] * gradient.shape[1]
        self._check_sums(layer, self.batch * pixels, "batch and pixels", 0)
        self.backward.append(
            WeightGradient(operation.source, gradient, operation.weights, layer.geometry)
        )
        self.backward.extend(BiasGradient(gradient, bias) for bias in operation.biases)
        if operation.compensation is not None:
            self.backward.append(CompensationGradient(gradient, operation.compensation))
