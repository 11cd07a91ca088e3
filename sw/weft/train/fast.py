"""The fast engine: a training step in vectorized whole numbers of PyTorch, bit for bit.

Codes, sums and random bits are whole numbers (or multiples of 2^-31) in floating point, wherever
their width proves that exact; the rest is int64. ``docs/training-arithmetic.md`` has the formulas.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import InputError
from weft.train.fast_updates import Gradient, update_by_bits, update_by_momentum
from weft.train.products import EXACT, check_products, data_gradient, forward_sums, weight_gradient
from weft.train.random_bits import RandomBits
from weft.train.rounding import check_rounding, requantized, scaled
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
    ONE,
    aligned_bias,
    aligned_codes,
    clamp_bound,
    clip_range,
    loss_gradient,
    residual_base,
    shift_of,
)

__all__ = ["FastEngine"]

EVALUATION_BATCH = 128
"""Images that are computed at a time: their tensors fit the caches."""


class FastEngine:
    """Executes a step; every instance first compares itself with the formulas.

    Parameters
    ----------
    step : TrainingStep
    device : str or torch.device, optional
        The CPU unless given.
    threads : int
        Of PyTorch while this engine computes. One is the fastest unless the machine is idle and
        the images large: every operation waits for the last thread.

    Raises
    ------
    WeftError
        If this machine's PyTorch does not compute exactly.
    """

    def __init__(self, step: TrainingStep, device: Any = None, *, threads: int = 1) -> None:
        self.step = step
        self.threads = threads
        self.device = torch.device(device or "cpu")
        with _threads(threads):
            check_rounding(self.device)
            for key in {
                (operation.geometry, operation.source.shape, operation.result.shape[2])
                for operation in step.forward
                if isinstance(operation, Convolution)
            }:
                check_products(*key, self.device)
        self._random = RandomBits(_random_sizes(step), self.device)

    def run(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        rates: Rates,
        seed: int,
        number: int,
    ) -> tuple[State, NDArray[np.int8]]:
        """One step.

        Parameters
        ----------
        state : State
            Not changed.
        images : int8 array (batch, height, width, channels)
        targets : int8 array (batch, classes)
            127 at the label, else 0.
        rates : Rates
        seed, number : int
            Of the run and of the step: they choose the random bits.

        Returns
        -------
        state : State
        logits : int8 array (batch, classes)
            Before the update.
        """
        with _threads(self.threads):
            run = self._passes(state, images, targets, seed, number)
            run.update(rates)
        return run.state, run.logits()

    def values(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        seed: int,
        number: int,
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """Everything that a step computes before its updates, as real numbers.

        Returns
        -------
        tensors : dict of str to array (batch, height, width, channels)
            By image: results and their gradients (descent directions, of the summed loss).
        gradients : dict of str to array
            By parameter, in its shape: descent directions, of the summed loss.
        """
        with _threads(self.threads):
            run = self._passes(state, images, targets, seed, number)
        tensors = {
            image.name: np.ldexp(codes.double().cpu().numpy(), run.exponent(image.exponent))
            for image, codes in run.results()
        }
        gradients = {
            parameter.name: np.ldexp(sums.cpu().numpy(), exponent).reshape(parameter.shape)
            for parameter, sums, exponent in run.gradients
        }
        return tensors, gradients

    def _passes(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        seed: int,
        number: int,
    ) -> "_Run":
        """All operations; the updates are left."""
        self._check(images, targets)
        run = _Run(self.step, state, self._random.fill(seed, number), self.device)
        run.put(self.step.source, images)
        run.put(self.step.target, targets[:, None, None, :])
        run.execute(self.step.operations)
        return run

    def first_largest(
        self,
        state: State,
        images: NDArray[np.int8],
        targets: NDArray[np.int8],
        rates: Rates,
        seed: int,
        number: int,
    ) -> State:
        """The state with the largest sums of a step with own exponents that updates nothing.

        What a run with delayed exponents starts from; the state itself where there are none.
        """
        if not any(quantizer.delayed for quantizer in self.step.quantizers()):
            return state
        own = copy.copy(self)
        own.step = _with_own_exponents(self.step)
        found, _ = own.run(state, images, targets, rates, seed, number)
        result = state.copy()
        for name, value in found.cells.items():
            if name.endswith(".largest"):
                result.cells[name] = value
        return result

    def evaluate(self, state: State, images: NDArray[np.int8]) -> tuple[NDArray[np.int8], int]:
        """Logits of any number of images, rounded to nearest with the shifts of the last step.

        Returns
        -------
        logits : int8 array (samples, classes)
        exponent : int
        """
        frozen = _frozen(self.step)
        parts, exponent = [], 0
        with _threads(self.threads):
            for start in range(0, len(images), EVALUATION_BATCH):
                run = _Run(frozen, state, {}, self.device)
                run.put(frozen.source, images[start : start + EVALUATION_BATCH])
                run.execute(frozen.forward)
                parts.append(run.logits())
                exponent = run.exponent(frozen.logits.exponent)
        return np.concatenate(parts), exponent

    def _check(self, images: NDArray[np.int8], targets: NDArray[np.int8]) -> None:
        expected = (self.step.batch, *self.step.source.shape)
        classes = (self.step.batch, self.step.target.shape[2])
        for name, array, shape in (("images", images, expected), ("targets", targets, classes)):
            if array.shape != shape or array.dtype != np.int8:
                raise InputError(
                    f"{name}: {array.dtype} of shape {array.shape}; the step takes int8 of {shape}"
                )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _random_sizes(step: TrainingStep) -> dict[int, int]:
    """Elements of every tensor that takes random bits, by its number."""
    sizes: dict[int, int] = {}
    for operation in step.operations:
        if isinstance(operation, Convolution | DataGradient | AveragePool | Add):
            if operation.quantizer.stochastic:
                size = step.batch * math.prod(operation.result.shape)
                sizes[operation.quantizer.number] = size
    for parameter in step.parameters():
        used = parameter.numbers[: _streams(step)]
        sizes.update(dict.fromkeys(used, math.prod(parameter.shape)))
    return sizes


def _streams(step: TrainingStep) -> int:
    """How many of a parameter's three random streams the update uses."""
    if isinstance(step.update, BitUpdate):
        return 1
    return 3 if step.update.decays else 2


def _map_quantizers(step: TrainingStep, **changes: Any) -> TrainingStep:
    def changed(operation: Operation) -> Operation:
        quantizer = getattr(operation, "quantizer", None)
        if quantizer is None:
            return operation
        fields: dict[str, Any] = {"quantizer": replace(quantizer, **changes)}
        return replace(operation, **fields)

    return replace(
        step,
        forward=tuple(changed(each) for each in step.forward),
        backward=tuple(changed(each) for each in step.backward),
    )


def _with_own_exponents(step: TrainingStep) -> TrainingStep:
    own = _map_quantizers(step, delayed=False)
    return replace(own, update=BitUpdate()) if isinstance(step.update, BitUpdate) else own


def _frozen(step: TrainingStep) -> TrainingStep:
    """Round to nearest, with the shifts that the state's cells say."""
    return _map_quantizers(step, delayed=True, stochastic=False)


class _Run:
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
        codes = loss_gradient(logits, self.exponent(operation.logits.exponent), target)
        self.put(operation.result, codes[:, None, None, :].astype(np.int8))


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
    Add: _Run.add,
    AveragePool: _Run.average_pool,
    AveragePoolGradient: _Run.average_pool_gradient,
    BiasGradient: _Run.bias_gradient,
    CompensationGradient: _Run.compensation_gradient,
    Convolution: _Run.convolution,
    DataGradient: _Run.data_gradient,
    LossGradient: _Run.loss_gradient,
    Mask: _Run.mask,
    MaxPool: _Run.max_pool,
    MaxPoolGradient: _Run.max_pool_gradient,
    WeightGradient: _Run.weight_gradient,
}
