"""A whole training step of one small family of networks, written from docs/training-arithmetic.md.

Shares no code with the engines: the products' gradients come from autograd in float64, everything
else is int64. The family is: convolution with ReLU, a residual convolution behind it (sum, then
ReLU), pooling (largest or average), a hidden dense layer with ReLU or none, dense layer. All values
are tensors of NumPy shape (batch, height, width, channels).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

Tensor = Any
ONE = 1 << 30
LAYERS = ("stem", "block", "classify")


@dataclass(frozen=True)
class Settings:
    """What the network's author and the method have chosen; ``numbers`` are random tensors."""

    stride: int
    padding: int
    window: int
    average: bool
    forward_stochastic: bool
    backward_stochastic: bool
    clipped: bool
    delayed: bool
    compensation: str
    state_bits: int  # 0: updates of a set width
    momentum: float
    decays: bool
    exponents: dict[str, int]
    numbers: dict[str, int]
    parameter_numbers: dict[str, tuple[int, int, int]]


@dataclass
class Memory:
    """The state: masters (or codes) and velocities by parameter, counters by name."""

    codes: dict[str, Tensor]
    master: dict[str, Tensor]
    velocity: dict[str, Tensor]
    cells: dict[str, int] = field(default_factory=dict)


def saturate(values: Tensor) -> Tensor:
    return values.clamp(-(1 << 31), (1 << 31) - 1)


def requantize(values: Tensor, multiplier: int, exponent: int, random: Tensor = None) -> Tensor:
    """``value * multiplier * 2^(exponent - 31)``: half to even, or stochastic with random bits."""
    product, shift = values * multiplier, 31 - exponent
    if shift == 0:
        return saturate(product)
    floor = product >> shift
    rest = product - (floor << shift)
    if random is None:
        half = 1 << (shift - 1)
        up = (rest > half) | ((rest == half) & (floor % 2 == 1))
    else:
        first_bits = rest >> (shift - 16) if shift >= 16 else rest << (16 - shift)
        up = first_bits + random >= 65536
    return saturate(floor + up.long())


def scale(values: Tensor, power: int, random: Tensor = None) -> Tensor:
    return requantize(values, ONE, min(max(power + 1, -31), 31), random)


def real_multiplier(value: float) -> tuple[int, int]:
    mantissa, exponent = math.frexp(value)
    return math.floor(mantissa * 2**31 + 0.5), exponent


def bit_length(value: int) -> int:
    return len(f"{value:b}") if value else 0


def rotate(value: Tensor, left: int) -> Tensor:
    return ((value << left) | (value >> (16 - left))) & 0xFFFF


def speck_bits(seed: int, step: int, tensor: int, shape: tuple[int, ...]) -> Tensor:
    """16 bits by element: the upper half of Speck32/64's block, rounds 5 to 11."""
    block = torch.arange(math.prod(shape)) ^ ((tensor << 20) & 0xFFFFFFFF)
    x, y = block >> 16, block & 0xFFFF
    key = torch.tensor(step & 0xFFFF)
    queue = [torch.tensor(word & 0xFFFF) for word in (seed, step >> 16, seed >> 16)]
    for number in range(12):
        if number >= 5:
            x = ((rotate(x, 9) + y) & 0xFFFF) ^ key
            y = rotate(y, 2) ^ x
        queue.append(((key + rotate(queue.pop(0), 9)) & 0xFFFF) ^ number)
        key = rotate(key, 2) ^ queue[-1]
    return x.reshape(shape)


def products(
    function: Callable[..., Tensor], source: Tensor, weights: Tensor, gradient: Tensor | None = None
) -> tuple[Tensor, ...]:
    """A linear function's sums, or both of its gradients, exact in float64."""
    x = source.double().requires_grad_(gradient is not None)
    w = weights.double().requires_grad_(gradient is not None)
    result = function(x, w)
    if gradient is None:
        return (result.long(),)
    found = torch.autograd.grad(result, (x, w), gradient.double())
    return tuple(each.long() for each in found)


class Reference:
    """Steps of one network."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fraction = {0: 0, 16: 8, 32: 16}[settings.state_bits]
        self.finer = {0: 0, 16: 4, 32: 8}[settings.state_bits]

    def first_largest(self, memory: Memory, images: Tensor, labels: Tensor, seed: int) -> None:
        """What delayed exponents start from."""
        if self.settings.delayed:
            copy = Memory(
                dict(memory.codes), dict(memory.master), dict(memory.velocity), dict(memory.cells)
            )
            self._pass(copy, images, labels, seed, 0, delayed=False)
            for name, value in copy.cells.items():
                if name.endswith("largest"):
                    memory.cells[name] = value

    def step(
        self,
        memory: Memory,
        images: Tensor,
        labels: Tensor,
        rates: dict[str, tuple[int, int]],
        keeps: dict[str, tuple[int, int]],
        bits: int,
        seed: int,
        number: int,
    ) -> Tensor:
        """Changes the memory; returns the logits' codes."""
        delayed = self.settings.delayed
        logits, gradients = self._pass(
            memory, images, labels, seed, number, delayed=delayed, bits=bits
        )
        for name, (sums, exponent, _) in gradients.items():
            if self.settings.state_bits:
                self._momentum(memory, name, sums, exponent, rates, keeps, seed, number)
            else:
                self._few_bits(memory, name, sums, bits, seed, number)
        return logits

    # One pass over the network -------------------------------------------------------------------

    def _convolve(self, layer: str) -> Callable[[Tensor, Tensor], Tensor]:
        settings = self.settings
        stride, padding = {
            "stem": (settings.stride, settings.padding),
            "block": (1, 1),
            "hidden": (1, 0),
            "classify": (1, 0),
        }[layer]

        def function(source: Tensor, weights: Tensor) -> Tensor:
            sums = functional.conv2d(
                source.permute(0, 3, 1, 2),
                weights.permute(3, 2, 0, 1),
                stride=stride,
                padding=padding,
            )
            return sums.permute(0, 2, 3, 1)

        return function

    def _pass(
        self,
        memory: Memory,
        images: Tensor,
        labels: Tensor,
        seed: int,
        number: int,
        *,
        delayed: bool,
        bits: int = 1,
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int, int]]]:
        settings, cells = self.settings, memory.cells
        exponents = settings.exponents

        def finest(name: str) -> Tensor:
            return (memory.master if settings.state_bits else memory.codes)[name]

        def quantize(
            name: str,
            sums: Tensor,
            exponent: int,
            *,
            backward: bool = False,
            multiplier: int = ONE,
            offset: int = 0,
            compensation: str | None = None,
            positive: Tensor = None,
        ) -> tuple[Tensor, int]:
            own = int(sums.abs().max())
            used = cells[f"{name}.largest"] if delayed else own
            cells[f"{name}.largest"] = own
            bound = 127
            if backward and settings.clipped:
                used = (243 * used) >> 8
            shift = max(0, bit_length(used) - 7)
            if backward and settings.clipped:
                bound = used >> shift
            stochastic = settings.backward_stochastic if backward else settings.forward_stochastic
            random = None
            if stochastic:
                random = speck_bits(seed, number, settings.numbers[name], tuple(sums.shape))
            values = requantize(sums, multiplier, min(max(1 - shift, -31), 31), random)
            result = exponent + shift + offset
            if compensation is not None and compensation in memory.codes:
                power = exponents[compensation] - self.fraction - result
                values = values + scale(finest(compensation), power).clamp(-127, 127)
            if positive is not None:
                values = torch.where(positive > 0, values, 0)
            codes = values.clamp(-bound, bound)
            cells[f"{name}.exponent"] = result
            cells[f"{name}.saturated"] = int((codes != values).sum())
            return codes, result

        def layer(name: str, source: Tensor, e_source: int) -> tuple[Tensor, int]:
            (sums,) = products(self._convolve(name), source, memory.codes[f"{name}.weight"])
            exponent = e_source + exponents[f"{name}.weight"]
            by_channel = settings.compensation == "channel"
            for bias in [f"{name}.bias"] + [f"{name}.compensation"] * by_channel:
                aligned = scale(finest(bias), exponents[bias] - self.fraction - exponent)
                sums = sums + aligned.clamp(-(1 << 29), 1 << 29)
            by_pixel = None if by_channel else f"{name}.compensation"
            return quantize(name, sums, exponent, compensation=by_pixel)

        def total(
            name: str, a: Tensor, e_a: int, b: Tensor, e_b: int, **options: Any
        ) -> tuple[Tensor, int]:
            base = max(min(e_a, e_b), max(e_a, e_b) - 16)
            return quantize(name, scale(a, e_a - base) + scale(b, e_b - base), base, **options)

        # Forward
        stem, e_stem = layer("stem", images, -7)
        stem = stem.clamp(min=0)
        block, e_block = layer("block", stem, e_stem)
        added, e_added = total("add", stem, e_stem, block, e_block)
        added = added.clamp(min=0)
        batch, height, width, channels = added.shape
        k = settings.window
        rows, columns = height // k, width // k
        windows = (
            added[:, : rows * k, : columns * k]
            .reshape(batch, rows, k, columns, k, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(batch, rows, columns, k * k, channels)
        )
        factor, offset = real_multiplier(1 / (k * k))  # mantissa over 2^31, in [1/2, 1)
        if factor == ONE:
            factor, offset = 2 * ONE, offset - 1
        factor = (factor + 1) // 2  # over 2^30, in (1/2, 1]
        if settings.average:
            pooled, e_pooled = quantize(
                "pool", windows.sum(3), e_added, multiplier=factor, offset=offset
            )
        else:
            pooled, e_pooled = windows.amax(3), e_added
        hidden, e_hidden = pooled, e_pooled
        deep = "hidden.weight" in memory.codes
        if deep:
            hidden, e_hidden = layer("hidden", pooled, e_pooled)
            hidden = hidden.clamp(min=0)
        logits, e_logits = layer("classify", hidden, e_hidden)

        # Loss
        sums = self._loss_gradient(logits[:, 0, 0], e_logits, labels)[:, None, None]
        cells["loss.largest"] = int(sums.abs().max())
        shift = max(0, bit_length(cells["loss.largest"]) - 7)
        loss, e_loss = scale(sums, -shift), shift - 15
        cells["loss.exponent"] = e_loss
        cells["loss.saturated"] = int((loss.abs() > 127).sum())
        loss = loss.clamp(-127, 127)

        # Backward
        gradients: dict[str, tuple[Tensor, int, int]] = {}

        def back(name: str, source: Tensor, e_source: int, dy: Tensor, e_dy: int) -> Tensor:
            weights = memory.codes[f"{name}.weight"]
            dx, dw = products(self._convolve(name), source, weights, dy)
            gradients[f"{name}.weight"] = dw, e_source + e_dy, 0
            gradients[f"{name}.bias"] = dy.sum((0, 1, 2)), e_dy, 0
            if settings.compensation != "none":
                axes = (0, 1, 2) if settings.compensation == "channel" else (0,)
                gradients[f"{name}.compensation"] = dy.sum(axes), e_dy, 0
            return dx

        sums = back("classify", hidden, e_hidden, loss, e_loss)
        exponent = e_loss + exponents["classify.weight"]
        if deep:
            d_hidden, e_d_hidden = quantize(
                "hidden.gradient", sums, exponent, backward=True, positive=hidden
            )
            sums = back("hidden", pooled, e_pooled, d_hidden, e_d_hidden)
            exponent = e_d_hidden + exponents["hidden.weight"]
        positive = None if settings.average else pooled
        d_pool, e_pool = quantize("pool.gradient", sums, exponent, backward=True, positive=positive)
        if settings.average:
            spread = requantize(d_pool, factor, 1)
            d_windows, e_pool = spread[:, :, :, None].expand(windows.shape), e_pool + offset
        else:
            first = (windows == pooled[:, :, :, None]).long().cumsum(3)
            chosen = (windows == pooled[:, :, :, None]) & (first == 1)
            d_windows = torch.where(chosen, d_pool[:, :, :, None], 0)
        d_added = torch.zeros_like(added)
        d_added[:, : rows * k, : columns * k] = (
            d_windows.reshape(batch, rows, columns, k, k, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(batch, rows * k, columns * k, channels)
        )
        d_added = torch.where(added > 0, d_added, 0)
        sums = back("block", stem, e_stem, d_added, e_pool)
        exponent = e_pool + exponents["block.weight"]
        d_block, e_d_block = quantize("stem.gradient.2", sums, exponent, backward=True)
        d_stem, e_d_stem = total(
            "stem.gradient", d_added, e_pool, d_block, e_d_block, backward=True, positive=stem
        )
        back("stem", images, -7, d_stem, e_d_stem)
        if not settings.state_bits:
            for name, (each, _, _) in gradients.items():
                cells[f"{name}.before"] = cells.get(f"{name}.largest", 0)
                cells[f"{name}.largest"] = int(each.abs().max())
        return logits[:, 0, 0], gradients

    def _loss_gradient(self, logits: Tensor, exponent: int, labels: Tensor) -> Tensor:
        classes = logits.shape[1]

        def powers_of_two(sixteenths: Tensor) -> Tensor:
            values = [
                0 if each == -255 else round(2 ** (15 + each / 16))
                for each in sixteenths.flatten().tolist()
            ]
            return torch.tensor(values).reshape(sixteenths.shape)

        d = logits - logits.amax(1, keepdim=True)
        multiplier, own = real_multiplier(16 / math.log(2))
        u = requantize(d, multiplier, min(max(own + exponent, -31), 31)).clamp(-255, 0)
        total = powers_of_two(u).sum(1, keepdim=True)
        v = requantize(total, *real_multiplier(255 / (2**15 * classes))).clamp(0, 255)
        logarithms = [
            max(-round(16 * math.log2(code * classes / 255)), -128) for code in v.flatten().tolist()
        ]
        p = powers_of_two((u + torch.tensor(logarithms)[:, None]).clamp(-255, 0))
        label = functional.one_hot(labels, classes).bool()
        return torch.where(label, torch.where(label, 0, p).sum(1, keepdim=True), -p)

    # Updates --------------------------------------------------------------------------------------

    def _momentum(
        self,
        memory: Memory,
        name: str,
        sums: Tensor,
        e_sums: int,
        rates: dict[str, tuple[int, int]],
        keeps: dict[str, tuple[int, int]],
        seed: int,
        step: int,
    ) -> None:
        settings = self.settings
        group = "compensation" if name.endswith("compensation") else "weights"
        for_moved, for_master, for_decay = (
            speck_bits(seed, step, number, tuple(sums.shape))
            for number in settings.parameter_numbers[name]
        )
        multiplier, n = rates[group]
        unit = settings.exponents[name] - self.fraction - self.finer
        power = min(max(n + e_sums - unit, -31), 31)
        moved = requantize(sums, multiplier, power, for_moved).clamp(-ONE, ONE)
        velocity = moved
        if settings.momentum:
            momentum = real_multiplier(settings.momentum)
            velocity = requantize(memory.velocity[name], *momentum) + moved
        limit = (1 << 15) - 1 if settings.state_bits == 16 else ONE - 1
        velocity = velocity.clamp(-limit, limit)
        master = memory.master[name]
        if settings.decays:
            master = requantize(master, *keeps[group], for_decay)
        limit = 127 << self.fraction
        master = (master + scale(velocity, -self.finer, for_master)).clamp(-limit, limit)
        memory.master[name] = master
        if settings.momentum:
            memory.velocity[name] = velocity
        memory.codes[name] = scale(master, -self.fraction).clamp(-127, 127)

    def _few_bits(
        self, memory: Memory, name: str, sums: Tensor, bits: int, seed: int, step: int
    ) -> None:
        before = memory.cells.pop(f"{name}.before")
        largest = before if self.settings.delayed else memory.cells[f"{name}.largest"]
        shift = max(0, bit_length(largest) - bits)
        number = self.settings.parameter_numbers[name][0]
        random = speck_bits(seed, step, number, tuple(sums.shape))
        moved = scale(sums, -shift, random)
        bound = (1 << bits) - 1
        clamped = moved.clamp(-bound, bound)
        memory.cells[f"{name}.saturated"] = int((clamped != moved).sum())
        memory.codes[name] = (memory.codes[name] + clamped).clamp(-127, 127)
