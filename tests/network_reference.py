"""An independent evaluation of graphs, and random graphs to evaluate.

Plain NumPy in (channels, height, width) order, padding written out, Python integers of any size for
every rounding. Nothing here is shared with the compiler or the simulators but the graph's fields.
"""

from fractions import Fraction

import numpy as np

from weft.ir import (
    Add,
    AveragePool2d,
    Conv2d,
    Flatten,
    Graph,
    Linear,
    MaxPool2d,
    Operation,
    Rescale,
    Tensor,
)
from weft_hw.instructions import Rounding

__all__ = ["GraphBuilder", "evaluate", "random_chain", "random_inputs", "random_layer", "scaled"]

# Rounding ----------------------------------------------------------------------------------------


def thirty_one_bits(scale: float) -> tuple[int, int]:
    """(m, e) with scale ~ m * 2^(e - 31), m of 31 bits, rounded half up."""
    exact, exponent = Fraction(scale), 0
    while exact >= 1:
        exact, exponent = exact / 2, exponent + 1
    while exact < Fraction(1, 2):
        exact, exponent = exact * 2, exponent - 1
    mantissa = int(exact * 2**31 + Fraction(1, 2))
    return (mantissa // 2, exponent + 1) if mantissa == 2**31 else (mantissa, exponent)


def divide(value: int, shift: int, rounding: Rounding) -> int:
    """value / 2^shift, rounded half up or half to even."""
    quotient, rest = divmod(value, 1 << shift)
    doubled = 2 * rest
    up = doubled > 1 << shift or (
        doubled == 1 << shift and (rounding == Rounding.HALF_UP or quotient % 2 == 1)
    )
    return quotient + up


def scaled(value: int, scale: float, rounding: Rounding) -> int:
    """value * scale by a 31-bit multiplier."""
    multiplier, exponent = thirty_one_bits(scale)
    if exponent < -31:
        return 0
    if rounding == Rounding.TWO_STEP:
        product = (value << max(exponent, 0)) * multiplier
        nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
        high = abs(product + nudge) >> 31
        high = high if product + nudge >= 0 else -high
        half_away = abs(high) + (1 << (-exponent) >> 1 if exponent < 0 else 0)
        result = half_away >> max(-exponent, 0)
        return result if high >= 0 else -result
    return divide(value * multiplier, 31 - exponent, rounding)


def requantized(values, scales, rounding, zero_point, clamp):
    """Codes of int sums (channels, height, width); one scale, or one a channel."""
    scales = [scales] * values.shape[0] if isinstance(scales, float) else list(scales)
    result = np.empty(values.shape, np.int8)
    for channel, scale in enumerate(scales):
        for place, value in np.ndenumerate(values[channel]):
            code = scaled(int(value), float(scale), rounding) + zero_point
            result[(channel, *place)] = min(max(code, clamp[0]), clamp[1])
    return result


# Operations, on (channels, height, width) ---------------------------------------------------------


def windows(image, kernel, stride, padding, fill):
    """(row, column, image of that tap for every output position) of all taps."""
    (top, bottom), (left, right) = padding
    padded = np.pad(image, ((0, 0), (top, bottom), (left, right)), constant_values=fill)
    rows = (padded.shape[1] - kernel[0]) // stride[0] + 1
    columns = (padded.shape[2] - kernel[1]) // stride[1] + 1
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            last_y, last_x = y + (rows - 1) * stride[0] + 1, x + (columns - 1) * stride[1] + 1
            yield y, x, padded[:, y : last_y : stride[0], x : last_x : stride[1]]


def convolve(image, weights, bias, stride, padding):
    """Sums of a convolution of zero-point-free values; weights [out, y, x, in]."""
    total = None
    for y, x, tap in windows(image, weights.shape[1:3], stride, padding, 0):
        part = np.einsum("oc,chw->ohw", weights[:, y, x].astype(np.int64), tap)
        total = part if total is None else total + part
    return total if bias is None else total + bias.astype(np.int64)[:, None, None]


def added(operation: Add, first: Tensor, second: Tensor, out: Tensor, a, b):
    """The sum as the module's documentation of Add on the accelerator defines it."""
    a = a.astype(np.int64) - first.zero_point
    b = b.astype(np.int64) - second.zero_point
    rounding = operation.rounding
    scale_a, scale_b = first.scale, second.scale
    if rounding == Rounding.TWO_STEP:
        unit, shift = 2 * max(scale_a, scale_b), 20
        terms = ((a, scale_a / unit), (b, scale_b / unit))
    elif (scale_a, first.zero_point) == (scale_b, second.zero_point):
        return requantized(a + b, scale_a / out.scale, rounding, out.zero_point, operation.clamp)
    else:
        unit, shift = max(scale_a, scale_b), 22
        terms = ((a, scale_a / unit), (b, scale_b / unit))
    total = np.zeros(a.shape, object)
    for values, ratio in terms:
        for place, value in np.ndenumerate(values):
            total[place] += scaled(int(value) << shift, ratio, rounding)
    ratio = unit / (2.0**shift * out.scale)
    return requantized(total, ratio, rounding, out.zero_point, operation.clamp)


def averaged(operation: AveragePool2d, source: Tensor, out: Tensor, image):
    values = image.astype(np.int64) - source.zero_point
    arguments = operation.kernel, operation.stride, operation.padding
    total = sum(tap for _, _, tap in windows(values, *arguments, 0))
    ones = np.ones((1, *values.shape[1:]), np.int64)
    existing = sum(tap for _, _, tap in windows(ones, *arguments, 0))[0]
    result = np.empty(total.shape, np.int8)
    for place, value in np.ndenumerate(total):
        count = operation.kernel[0] * operation.kernel[1]
        if not operation.count_include_pad:
            count = int(existing[place[1:]])
        ratio = source.scale / (out.scale * count)
        code = scaled(int(value), ratio, operation.rounding) + out.zero_point
        result[place] = min(max(code, operation.clamp[0]), operation.clamp[1])
    return result


def compute(operation: Operation, graph: Graph, values):
    """One operation on arrays in the model's own order (channels first)."""
    tensors = [graph.tensor(name) for name in operation.inputs]
    out = graph.tensor(operation.output)
    source = values[operation.inputs[0]]
    if isinstance(operation, Conv2d | Linear):
        weights, image = operation.weights, source.astype(np.int64) - tensors[0].zero_point
        stride, padding = (1, 1), ((0, 0), (0, 0))
        if isinstance(operation, Linear):
            weights, image = weights[:, None, None, :], image[:, None, None]
        else:
            stride, padding = operation.stride, operation.padding
        total = convolve(image, weights, operation.bias, stride, padding)
        scales = [tensors[0].scale * float(s) / out.scale for s in operation.weight_scales]
        result = requantized(total, scales, operation.rounding, out.zero_point, operation.clamp)
        return result[:, 0, 0] if isinstance(operation, Linear) else result
    if isinstance(operation, Flatten):
        return source.reshape(-1)
    if isinstance(operation, MaxPool2d):
        arguments = operation.kernel, operation.stride, operation.padding
        result = np.max([t for _, _, t in windows(source.astype(int), *arguments, -999)], axis=0)
        return np.clip(result, *operation.clamp).astype(np.int8)
    if isinstance(operation, AveragePool2d):
        return averaged(operation, tensors[0], out, source)
    if isinstance(operation, Add):
        return added(operation, *tensors, out, source, values[operation.inputs[1]])
    assert isinstance(operation, Rescale)
    return requantized(
        source.astype(np.int64) - tensors[0].zero_point,
        tensors[0].scale / out.scale,
        operation.rounding,
        out.zero_point,
        operation.clamp,
    )


def evaluate(graph: Graph, inputs):
    """Outputs by name of one sample; arrays in the model's order, which must be channels first."""
    assert graph.layout == "CHW"
    values = dict(inputs)
    for tensor in graph.tensors:
        if tensor.data is not None:
            data = tensor.data
            values[tensor.name] = data.transpose(2, 0, 1) if data.ndim == 3 else data
    for operation in graph.operations:
        values[operation.output] = compute(operation, graph, values)
    return {name: values[name] for name in graph.outputs}


# Random graphs -----------------------------------------------------------------------------------


class GraphBuilder:
    """Adds random operations to a growing graph; shapes are (height, width, channels)."""

    def __init__(self, rng: np.random.Generator, rounding: Rounding = Rounding.HALF_EVEN) -> None:
        self.rng = rng
        self.rounding = rounding
        self.tensors: list[Tensor] = []
        self.operations: list[Operation] = []

    def tensor(self, shape, like: Tensor | None = None, data=None) -> Tensor:
        scale = like.scale if like else float(2.0 ** self.rng.uniform(-7, -3))
        zero = like.zero_point if like else int(self.rng.integers(-128, 128))
        name = f"t{len(self.tensors)}"
        made = Tensor(name=name, shape=tuple(shape), scale=scale, zero_point=zero, data=data)
        self.tensors.append(made)
        return made

    def constant(self, shape) -> Tensor:
        return self.tensor(shape, data=self.rng.integers(-128, 128, shape).astype(np.int8))

    def clamp(self) -> tuple[int, int]:
        if self.rng.random() < 0.6:
            return -128, 127
        low, high = sorted(self.rng.integers(-128, 128, 2).tolist())
        return (low, high) if high - low > 100 else (-100, 110)

    def _add(self, kind, inputs, out: Tensor, **fields) -> Tensor:
        name = f"{kind.__name__.lower()}{len(self.operations)}"
        names = tuple(tensor.name for tensor in inputs)
        self.operations.append(
            kind(name=name, inputs=names, output=out.name, source=f"node {name}", **fields)
        )
        return out

    def _filters(self, source: Tensor, out: Tensor, filters: int, depth: int, shape):
        """Weights whose sums use the output's range, with rounding ties now and then."""
        weights = self.rng.integers(-128, 128, (filters, *shape)).astype(np.int8)
        weights[self.rng.random(weights.shape) < 0.1] = 0
        spread = 74.0 * 100.0 * np.sqrt(depth) / 60.0
        factors = 2.0 ** self.rng.uniform(-1.5, 1.5, filters) / spread
        factors[self.rng.random(filters) < 0.2] = 2.0 ** -round(np.log2(spread))
        scales = factors * out.scale / source.scale
        bias = None
        if self.rng.random() < 0.8:
            bias = self.rng.integers(-(1 << 12), 1 << 12, filters).astype(np.int32)
        fields = {"weights": weights, "weight_scales": scales.astype(np.float64), "bias": bias}
        return fields | {"clamp": self.clamp(), "rounding": self.rounding}

    def conv(self, source: Tensor, filters: int, kernel, stride=(1, 1), padding=((0, 0), (0, 0))):
        size = [
            (source.shape[axis] + sum(padding[axis]) - kernel[axis]) // stride[axis] + 1
            for axis in range(2)
        ]
        out = self.tensor((*size, filters))
        channels = source.shape[2]
        depth = kernel[0] * kernel[1] * channels
        fields = self._filters(source, out, filters, depth, (*kernel, channels))
        return self._add(Conv2d, [source], out, stride=stride, padding=padding, **fields)

    def linear(self, source: Tensor, filters: int) -> Tensor:
        out = self.tensor((filters,))
        depth = source.shape[0]
        return self._add(
            Linear, [source], out, **self._filters(source, out, filters, depth, (depth,))
        )

    def flatten(self, source: Tensor) -> Tensor:
        return self._add(Flatten, [source], self.tensor((source.elements,), like=source))

    def pool(self, kind, source: Tensor, kernel, stride, padding=((0, 0), (0, 0))) -> Tensor:
        size = [
            (source.shape[axis] + sum(padding[axis]) - kernel[axis]) // stride[axis] + 1
            for axis in range(2)
        ]
        fields = {"kernel": kernel, "stride": stride, "padding": padding, "clamp": self.clamp()}
        like = source
        if kind is AveragePool2d:
            like = None
            fields["count_include_pad"] = bool(self.rng.integers(2))
            fields["rounding"] = self.rounding
        return self._add(kind, [source], self.tensor((*size, source.shape[2]), like), **fields)

    def add(self, first: Tensor, second: Tensor) -> Tensor:
        fields = {"clamp": self.clamp(), "rounding": self.rounding}
        return self._add(Add, [first, second], self.tensor(first.shape), **fields)

    def rescale(self, source: Tensor) -> Tensor:
        fields = {"clamp": self.clamp(), "rounding": self.rounding}
        return self._add(Rescale, [source], self.tensor(source.shape), **fields)

    def graph(self, inputs, outputs, name="random") -> Graph:
        return Graph(
            name=name,
            tensors=tuple(self.tensors),
            inputs=tuple(tensor.name for tensor in inputs),
            outputs=tuple(tensor.name for tensor in outputs),
            operations=tuple(self.operations),
        )


def random_inputs(graph: Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """int8 codes by name, images with channels first."""
    inputs = {}
    for name in graph.inputs:
        shape = graph.tensor(name).shape
        shape = (shape[2], *shape[:2]) if len(shape) == 3 else shape
        inputs[name] = rng.integers(-128, 128, shape).astype(np.int8)
    return inputs


def random_window(rng: np.random.Generator, shape, *, pool: bool):
    """(kernel, stride, padding) that fit an image."""
    kernel, stride, padding = [], [], []
    for axis in range(2):
        size = int(rng.integers(1, 5))
        most = size - 1 if pool else size
        pads = (
            tuple(int(pad) for pad in rng.integers(0, most + 1, 2))
            if rng.random() < 0.6
            else (0, 0)
        )
        if shape[axis] + sum(pads) < size:
            size = shape[axis]
            pads = (0, 0)
        kernel.append(size)
        padding.append(pads)
        stride.append(int(rng.integers(1, 4)))
    return tuple(kernel), tuple(stride), tuple(padding)


KINDS = ("conv", "conv", "linear", "flatten", "max", "average", "add", "same", "rescale")


def random_layer(rng: np.random.Generator, kind: str | None = None) -> Graph:
    """A graph of one operation (or a Flatten and a Linear)."""
    build = GraphBuilder(rng, rng.choice(list(Rounding)[:3]) if rng.random() < 0.3 else Rounding(2))
    kind = kind or str(rng.choice(KINDS))
    channels = int(
        rng.choice([1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 64, 70, rng.integers(1, 71)])
    )
    height, width = (int(side) for side in rng.integers(1, 13 if channels < 20 else 8, 2))
    filters = int(rng.choice([1, 2, 3, 7, 8, 10, 16, 17, 32, 40, 70, rng.integers(1, 71)]))
    if kind == "linear":
        source = build.tensor((int(rng.choice([1, 3, 16, 40, 70, 300, 1500])),))
        return build.graph([source], [build.linear(source, filters)], kind)
    source = build.tensor((height, width, channels))
    if kind == "conv":
        out = build.conv(source, filters, *random_window(rng, source.shape, pool=False))
    elif kind == "flatten":
        out = build.linear(build.flatten(source), filters)
    elif kind in ("max", "average"):
        pool = MaxPool2d if kind == "max" else AveragePool2d
        window = random_window(rng, source.shape, pool=True)
        if rng.random() < 0.2:  # a global pool
            window = (height, width), (1, 1), ((0, 0), (0, 0))
        out = build.pool(pool, source, *window)
    elif kind in ("add", "same"):
        other = build.tensor(source.shape, like=source if kind == "same" else None)
        return build.graph([source, other], [build.add(source, other)], kind)
    else:
        out = build.rescale(source)
    return build.graph([source], [out], kind)


def random_chain(rng: np.random.Generator, length: int = 6) -> Graph:
    """A network with residual connections, several outputs now and then, and a dense end."""
    build = GraphBuilder(rng)
    channels = int(rng.choice([1, 3, 4, 8, 16]))
    source = build.tensor((int(rng.integers(5, 12)), int(rng.integers(5, 12)), channels))
    now, kept, outputs = source, source, []
    for _ in range(length):
        kind = str(rng.choice(["conv", "residual", "max", "average", "rescale", "constant"]))
        if kind == "conv":
            filters = int(rng.choice([3, 8, 12, 16, 24]))
            now = build.conv(now, filters, *random_window(rng, now.shape, pool=False))
        elif kind == "residual":
            inner = build.conv(now, now.shape[2], (3, 3), (1, 1), ((1, 1), (1, 1)))
            now = build.add(inner, now if kept.shape != now.shape else kept)
        elif kind in ("max", "average"):
            pool = MaxPool2d if kind == "max" else AveragePool2d
            now = build.pool(pool, now, *random_window(rng, now.shape, pool=True))
        elif kind == "constant":
            now = build.add(now, build.constant(now.shape))
        else:
            now = build.rescale(now)
        if rng.random() < 0.3:
            kept = now
        if rng.random() < 0.15:
            outputs.append(now)
    flat = build.flatten(now)
    outputs.append(flat if rng.random() < 0.2 else build.linear(flat, int(rng.integers(1, 20))))
    unique = {tensor.name: tensor for tensor in outputs}
    return build.graph([source], list(unique.values()), "chain")
