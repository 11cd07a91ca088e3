"""A step's operations in vectorized whole numbers of PyTorch, one by one.

Codes, sums and random bits are whole numbers (or multiples of 2^-31) in floating point, wherever
their width proves that exact; the rest is int64.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.train.fast_updates import Gradient, update_by_bits, update_by_momentum
from weft.train.products import EXACT, data_gradient, forward_sums, weight_gradient
from weft.train.rounding import requantized, scaled
from weft.train.state import Rates, State
from weft.train.step import (
    Add,
    AveragePool,
    AveragePoolGradient,
    BiasGradient,
    BitUpdate,
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
from weft_hw.training import (
    CODE_LIMIT,
    LOSS_EXPONENT,
    ONE,
    aligned_bias,
    aligned_codes,
    clamp_bound,
    clip_range,
    loss_gradient,
    residual_base,
    shift_of,
)

__all__ = ["Run"]


class Run:
    """One pass over a step's operations. Images are float32 codes (N, H, W, C)."""

    def __init__(self, step: TrainingStep, state: State, random: dict[int, Any], device: Any):
        self.step = step
        # Arrays are replaced, never changed, so that the old state keeps its own.
        self.state = State(
            dict(state.codes), dict(state.master), dict(state.velocity), dict(state.cells)
        )
        self.random = random
        self.device = device
        self.images: dict[str, Any] = {}
        self.exponents: dict[str, int] = {}
        self.weights: dict[str, Any] = {}
        self.gradients: list[Gradient] = []

    def put(self, image: Image, codes: NDArray[np.int8]) -> None:
        """Set an image from outside."""
        tensor = torch.from_numpy(np.ascontiguousarray(codes)).to(self.device)
        self.images[image.name] = tensor.to(torch.float32)

    def execute(self, operations: tuple[Operation, ...]) -> None:
        """In their order."""
        for operation in operations:
            RULES[type(operation)](self, operation)

    def update(self, rates: Rates) -> None:
        """All parameters, when all gradients are there."""
        update = self.step.update
        if isinstance(update, BitUpdate):
            update_by_bits(self.gradients, update, self.state, rates.bits, self.random)
        else:
            update_by_momentum(self.gradients, update, self.state, rates, self.random)

    def results(self) -> Iterator[tuple[Image, Any]]:
        """The images that operations have made, and their codes."""
        for operation in self.step.operations:
            image = getattr(operation, "result", None)
            if image is not None:
                yield image, self.images[image.name]

    def logits(self) -> NDArray[np.int8]:
        """(samples, classes)."""
        codes = self.images[self.step.logits.name][:, 0, 0]
        array: NDArray[np.int8] = codes.to(torch.int8).cpu().numpy()
        return array

    def exponent(self, exponent: Exponent) -> int:
        """Its number in this step."""
        base = 0 if exponent.quantizer is None else self.exponents[exponent.quantizer]
        return base + exponent.offset

    def image(self, image: Image) -> Any:
        """Its codes."""
        return self.images[image.name]

    def kernel(self, parameter: Parameter) -> Any:
        """Weights as float32 (out, in, y, x), channels last in memory."""
        if parameter.name not in self.weights:
            codes = torch.from_numpy(self.state.codes[parameter.name]).to(self.device)
            weights = codes.permute(3, 2, 0, 1).to(torch.float32)
            self.weights[parameter.name] = weights.contiguous(memory_format=torch.channels_last)
        return self.weights[parameter.name]

    def finest(self, parameter: Parameter) -> NDArray[Any]:
        """A parameter's master, or its codes where they are all there is."""
        name = parameter.name
        return self.state.master.get(name, self.state.codes[name])

    def quantize(
        self,
        quantizer: Quantizer,
        sums: Any,
        exponent: int,
        *,
        parameter: Parameter | None = None,
        mask: Image | None = None,
    ) -> Any:
        """Sums as codes; ``parameter`` is an added compensation. May overwrite the sums."""
        largest_cell, exponent_cell, saturated_cell = quantizer.cells
        cells = self.state.cells
        low, high = sums.aminmax()
        largest = max(-int(low), int(high))
        used = cells[largest_cell] if quantizer.delayed else largest
        cells[largest_cell] = largest
        if quantizer.clipped:
            used = clip_range(used)
        shift = shift_of(used)
        bound = clamp_bound(used, shift) if quantizer.clipped else CODE_LIMIT
        result = exponent + shift + quantizer.offset
        cells[exponent_cell] = self.exponents[quantizer.name] = result
        random = None
        if quantizer.stochastic:
            random = self.random[quantizer.number].view(sums.shape)
        if parameter is not None:
            sums = sums.double()
        if quantizer.multiplier == ONE:
            values = scaled(sums, -shift, random)
        else:
            whole = None if random is None else (random * 65536).to(torch.int64)
            values = requantized(sums, quantizer.multiplier, 1 - shift, whole)
        if parameter is not None:
            power = parameter.exponent - self.step.update.fraction - result
            added = torch.from_numpy(aligned_codes(self.finest(parameter), power)).to(self.device)
            values = values.to(torch.int64) + added
            values = ((values + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)  # int32 wraps
        values = self.masked(values, mask)
        codes = values.clamp(-bound, bound)
        cells[saturated_cell] = int((codes != values).sum())
        return codes.to(torch.float32)

    def masked(self, codes: Any, mask: Image | None) -> Any:
        """Codes, 0 where the mask is not positive."""
        return codes if mask is None else codes * (self.image(mask) > 0)

    # Operations -----------------------------------------------------------------------------------

    def convolution(self, operation: Convolution) -> None:
        """Forward."""
        sums, bound = forward_sums(
            self.image(operation.source), self.kernel(operation.weights), operation.geometry
        )
        exponent = self.exponent(operation.source.exponent) + operation.weights.exponent
        if operation.biases:
            fraction = self.step.update.fraction
            biases = sum(
                aligned_bias(self.finest(bias), bias.exponent - fraction - exponent)
                for bias in operation.biases
            )
            if bound + np.abs(biases).max() >= EXACT:
                sums = sums.double()
            sums += torch.from_numpy(biases).to(self.device, sums.dtype)
        codes = self.quantize(operation.quantizer, sums, exponent, parameter=operation.compensation)
        self.images[operation.result.name] = codes.relu_() if operation.rectified else codes

    def data_gradient(self, operation: DataGradient) -> None:
        """Of a convolution."""
        sums = data_gradient(
            self.image(operation.gradient),
            self.kernel(operation.weights),
            operation.geometry,
            operation.result.shape[:2],
        )
        exponent = self.exponent(operation.gradient.exponent) + operation.weights.exponent
        codes = self.quantize(operation.quantizer, sums, exponent, mask=operation.mask)
        self.images[operation.result.name] = codes

    def weight_gradient(self, operation: WeightGradient) -> None:
        """Sums for the update."""
        sums = weight_gradient(
            self.image(operation.source),
            self.image(operation.gradient),
            self.kernel(operation.weights),
            operation.geometry,
        )
        exponent = self.exponent(operation.source.exponent)
        exponent += self.exponent(operation.gradient.exponent)
        sums = sums.permute(2, 3, 1, 0).reshape(-1)
        self.gradients.append((operation.weights, sums, exponent))

    def bias_gradient(self, operation: BiasGradient) -> None:
        """Sums for the update."""
        sums = self.image(operation.gradient).sum((0, 1, 2), dtype=torch.float64)
        exponent = self.exponent(operation.gradient.exponent)
        self.gradients.append((operation.parameter, sums, exponent))

    def compensation_gradient(self, operation: CompensationGradient) -> None:
        """Sums for the update."""
        sums = self.image(operation.gradient).sum(0, dtype=torch.float64).reshape(-1)
        exponent = self.exponent(operation.gradient.exponent)
        self.gradients.append((operation.parameter, sums, exponent))

    def max_pool(self, operation: MaxPool) -> None:
        """Forward."""
        windows = _windows(self.image(operation.source), operation.window)
        # The first of equal codes: codes differ by at least 1, places by less.
        places = windows.shape[3]
        ranks = windows * places - torch.arange(places, device=self.device)[:, None]
        best = ranks.amax(3)
        largest = torch.ceil(best / places)
        self.images[operation.result.name] = largest
        self.images[operation.index.name] = largest * places - best

    def max_pool_gradient(self, operation: MaxPoolGradient) -> None:
        """To the place of the largest."""
        gradient, index = self.image(operation.gradient), self.image(operation.index)
        places = torch.arange(operation.window[0] * operation.window[1], device=self.device)
        windows = gradient[:, :, :, None] * (index[:, :, :, None] == places[:, None])
        self.images[operation.result.name] = _from_windows(
            windows, operation.window, operation.result.shape
        )

    def average_pool(self, operation: AveragePool) -> None:
        """Forward."""
        sums = _windows(self.image(operation.source), operation.window).sum(3)
        exponent = self.exponent(operation.source.exponent)
        self.images[operation.result.name] = self.quantize(operation.quantizer, sums, exponent)

    def average_pool_gradient(self, operation: AveragePoolGradient) -> None:
        """The same to every place."""
        gradient = self.image(operation.gradient)
        if operation.multiplier != ONE:
            gradient = requantized(gradient, operation.multiplier, 1).to(torch.float32)
        places = operation.window[0] * operation.window[1]
        windows = gradient[:, :, :, None].expand(-1, -1, -1, places, -1)
        codes = _from_windows(windows, operation.window, operation.result.shape)
        self.images[operation.result.name] = self.masked(codes, operation.mask)

    def add(self, operation: Add) -> None:
        """Forward or backward."""
        first = self.exponent(operation.first.exponent)
        second = self.exponent(operation.second.exponent)
        base = residual_base(first, second)
        # Below 127 * 2^17 in magnitude: exact in float32 as one of the two powers is at most 0.
        sums = scaled(self.image(operation.first), first - base).to(torch.float32)
        sums = sums + scaled(self.image(operation.second), second - base).to(torch.float32)
        codes = self.quantize(operation.quantizer, sums, base, mask=operation.mask)
        self.images[operation.result.name] = codes.relu_() if operation.rectified else codes

    def mask(self, operation: Mask) -> None:
        """ReLU's gradient alone."""
        codes = self.masked(self.image(operation.gradient), operation.mask)
        self.images[operation.result.name] = codes

    def loss_gradient(self, operation: LossGradient) -> None:
        """On the host: some hundred numbers."""
        logits, target = (
            self.image(image)[:, 0, 0].cpu().numpy().astype(np.int64)
            for image in (operation.logits, operation.target)
        )
        sums = loss_gradient(logits, self.exponent(operation.logits.exponent), target)
        # Below 256 * 2^15: exact in float32.
        values = torch.from_numpy(sums[:, None, None, :]).to(self.device, torch.float32)
        codes = self.quantize(operation.quantizer, values, LOSS_EXPONENT)
        self.images[operation.result.name] = codes


def _windows(codes: Any, window: tuple[int, int]) -> Any:
    """(N, H, W, C) as (N, rows, columns, places in a window, C); the rest is cut off."""
    batch, height, width, channels = codes.shape
    rows, columns = height // window[0], width // window[1]
    cut = codes[:, : rows * window[0], : columns * window[1]]
    split = cut.reshape(batch, rows, window[0], columns, window[1], channels)
    return split.transpose(2, 3).reshape(batch, rows, columns, -1, channels)


def _from_windows(windows: Any, window: tuple[int, int], shape: tuple[int, int, int]) -> Any:
    """The reverse of :func:`_windows`, zeros where it cut."""
    batch, rows, columns, _, channels = windows.shape
    split = windows.reshape(batch, rows, columns, *window, channels).transpose(2, 3)
    codes = split.reshape(batch, rows * window[0], columns * window[1], channels)
    if codes.shape[1:3] == shape[:2]:
        return codes
    result = codes.new_zeros((batch, *shape))
    result[:, : codes.shape[1], : codes.shape[2]] = codes
    return result


RULES: dict[type, Any] = {
    Add: Run.add,
    AveragePool: Run.average_pool,
    AveragePoolGradient: Run.average_pool_gradient,
    BiasGradient: Run.bias_gradient,
    CompensationGradient: Run.compensation_gradient,
    Convolution: Run.convolution,
    DataGradient: Run.data_gradient,
    LossGradient: Run.loss_gradient,
    Mask: Run.mask,
    MaxPool: Run.max_pool,
    MaxPoolGradient: Run.max_pool_gradient,
    WeightGradient: Run.weight_gradient,
}
