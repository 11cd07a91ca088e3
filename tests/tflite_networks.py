"""Random .tflite networks: branches, odd shapes, every operator that runs on the machine.

A layer is kept only if its codes are worth comparing: at least 32 different ones (half as many as
there are elements, in a small tensor) and less than a fifth at either end of the range.
"""

import numpy as np

from tflite_writer import FUNCTIONS, OF_POSITIVE_VALUES, Record, TfliteWriter

__all__ = ["random_network"]

DISTINCT = 32
SATURATED = 0.2
TRIES = 10
MOST_ELEMENTS = 4000


def lively(record: Record) -> bool:
    """Whether a tensor's codes say something."""
    values = record.values
    if values.dtype != np.int8:
        return True
    distinct = len(np.unique(values))
    ends = np.mean((values == -128) | (values == 127))
    return distinct >= min(DISTINCT, values.size // 2) and ends < SATURATED


class _Network:
    def __init__(self, rng: np.random.Generator, most_elements: int) -> None:
        self.most_elements = most_elements
        self.rng = rng
        self.writer = TfliteWriter(rng, weight_bits=int(rng.choice([8, 8, 4, 2])))
        self.images: list[Record] = []
        self.vectors: list[Record] = []

    def pair(self, low: int, high: int) -> tuple[int, int]:
        y, x = self.rng.integers(low, high, 2)
        return int(y), int(x)

    def some(self, records: list[Record]) -> Record:
        """Mostly the newest."""
        back = min(int(self.rng.geometric(0.6)), len(records))
        return records[-back]

    def padding(self, source: Record, kernel, dilation=(1, 1)) -> str:
        extents = [(kernel[axis] - 1) * dilation[axis] + 1 for axis in range(2)]
        fits = all(extents[axis] <= source.shape[axis + 1] for axis in range(2))
        return str(self.rng.choice(["SAME", "VALID"])) if fits else "SAME"

    def like(self, source: Record, target: Record) -> Record:
        """A tensor in another's quantization."""
        if (source.scales, source.zero_points) == (target.scales, target.zero_points):
            return source
        fields = {"scales": target.scales, "zero_points": target.zero_points}
        return self.writer.unary("QUANTIZE", source, **fields)

    def parts(self, source: Record) -> list[Record]:
        """Rows, columns or channels (all that a vector has), cut in two or three."""
        rng = self.rng
        axis = int(rng.integers(1, len(source.shape)))
        size = source.shape[axis]
        if rng.random() < 0.5:
            counts = [each for each in (2, 3, 1) if size % each == 0]
            return self.writer.split(source, axis, counts[0])
        cut = int(rng.integers(1, max(size, 2)))
        return self.writer.split(source, axis, [cut, -1] if cut < size else [size])

    def box(self, source: Record) -> Record:
        """Most of a tensor."""
        rng = self.rng
        first = [0, *(int(rng.integers(0, (size + 3) // 4)) for size in source.shape[1:])]
        if rng.random() < 0.5:
            return self.writer.slice(source, first, [-1] * len(first))
        steps = [1] * len(first)
        if len(first) == 4:
            steps[1:3] = self.pair(1, 3)
        slices = [slice(begin, None, step) for begin, step in zip(first, steps, strict=True)]
        return self.writer.strided_slice(source, slices)

    def image_layer(self) -> Record | list[Record] | None:
        writer, rng = self.writer, self.rng
        source = self.some(self.images)
        channels = source.shape[3]
        kind = str(rng.choice(IMAGE_LAYERS))
        kernel, stride, dilation = self.pair(1, 5), self.pair(1, 3), self.pair(1, 3)
        partners = [each for each in self.images if each.shape == source.shape]
        match kind:
            case "conv":
                return writer.conv(
                    source, self.filters(), kernel, stride, self.padding(source, kernel)
                )
            case "dilated":
                padding = self.padding(source, kernel, dilation)
                return writer.conv(source, self.filters(), kernel, (1, 1), padding, dilation)
            case "grouped":
                groups = [each for each in range(2, channels + 1) if channels % each == 0]
                if not groups:
                    return None
                count = int(rng.choice(groups))
                filters = count * int(rng.integers(1, 4))
                return writer.conv(source, filters, kernel, groups=count)
            case "depthwise":
                padding = self.padding(source, kernel)
                multiplier = int(rng.choice([1, 1, 1, 2])) if channels < 20 else 1
                return writer.depthwise(source, kernel, stride, padding, multiplier=multiplier)
            case "transposed":
                if max(source.shape[1:3]) > 9:
                    return None
                return writer.transposed(source, self.filters(), kernel, stride)
            case "pointwise":
                return writer.dense(source, self.filters(), keep=True)
            case "pool":
                kind = str(rng.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
                return writer.pool(kind, source, kernel, stride, self.padding(source, kernel))
            case "pad":
                return writer.pad(source, [self.pair(0, 3), self.pair(0, 3)])
            case "concatenate":
                beside = [each for each in self.images if each.shape[:3] == source.shape[:3]]
                other = beside[rng.integers(len(beside))]
                return writer.concatenate(source, self.like(other, source))
            case "constant":
                shape = [(channels,), (1, 1, 1, 1), source.shape][rng.integers(3)]
                data = rng.integers(-128, 128, shape).astype(np.int8)
                other = writer.constant(data, **writer.quantization())
                return writer.elementwise(str(rng.choice(["ADD", "SUB", "MUL"])), source, other)
            case "ADD" | "SUB" | "MUL":
                other = partners[rng.integers(len(partners))]
                return writer.elementwise(kind, source, other)
            case _:
                return self.of_one(kind, source)

    def of_one(self, kind: str, source: Record) -> Record | list[Record] | None:
        """What an image and a vector may go through alike."""
        match kind:
            case "function":
                return self.function(source)
            case "parts":
                return self.parts(source)
            case "columns to rows":
                return self.writer.transpose(source, (0, 2, 1, 3))
            case "box":
                return self.box(source)
            case _:
                return self.writer.unary(kind, source)

    def function(self, source: Record) -> Record | None:
        """A function of one element; of positive values, if it must be, by a sigmoid before."""
        kind = str(self.rng.choice(FUNCTIONS))
        if kind in OF_POSITIVE_VALUES and source.zero_points[0] != -128:
            source = self.writer.function("LOGISTIC", source)
            if not lively(source):
                return None
        return self.writer.function(kind, source)

    def vector_layer(self) -> Record | list[Record] | None:
        writer, rng = self.writer, self.rng
        source = self.some(self.vectors)
        kind = str(rng.choice(VECTOR_LAYERS))
        partners = [each for each in self.vectors if each.shape == source.shape]
        match kind:
            case "dense":
                return writer.dense(source, self.filters())
            case "concatenate":
                other = self.some(self.vectors)
                return writer.concatenate(source, self.like(other, source))
            case "RELU" | "function" | "parts" | "box":
                return self.of_one(kind, source)
            case _:
                return writer.elementwise(kind, source, partners[rng.integers(len(partners))])

    def filters(self) -> int:
        return int(self.rng.choice([3, 5, 8, 16, 17, 32, self.rng.integers(4, 41)]))

    def to_vector(self) -> None:
        """The newest image as a vector, in one of the ways that networks end."""
        writer, source = self.writer, self.images[-1]
        way = str(self.rng.choice(["mean", "mean image", "pool", "reshape", "dense"]))
        if way == "mean":
            self.vectors.append(writer.mean(source, keep=False))
            return
        if way == "dense":
            self.vectors.append(writer.dense(source, self.filters()))
            return
        if way == "mean image":
            source = writer.mean(source, keep=True)
        elif way == "pool":
            size = source.shape[1:3]
            source = writer.pool("AVERAGE_POOL_2D", source, size, size)
        vector = writer.reshape(source, (1, int(np.prod(source.shape))))
        if way == "reshape":  # image and vector lie differently: dense layers bring them together
            vector = writer.dense(vector, self.filters())
        self.vectors.append(vector)

    def grow(self, layers: int, make, known: list[Record]) -> None:
        """Append that many lively layers."""
        writer = self.writer
        added = 0
        for _ in range(TRIES * layers):
            before = len(writer.records), len(writer.nodes)
            made = make()
            new = made if isinstance(made, list) else [made]
            if made is not None and all(
                lively(each) and each.values.size <= self.most_elements for each in new
            ):
                known.extend(new)
                added += 1
            else:
                del writer.records[before[0] :], writer.nodes[before[1] :]
            if added == layers:
                return


IMAGE_LAYERS = (
    *(
        "conv",
        "conv",
        "conv",
        "dilated",
        "grouped",
        "depthwise",
        "depthwise",
        "transposed",
        "pointwise",
    ),
    *("pool", "pad", "concatenate", "constant", "ADD", "ADD", "SUB", "MUL"),
    *("RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "QUANTIZE"),
    *("function", "function", "function", "function", "parts", "box", "columns to rows"),
)

VECTOR_LAYERS = (
    *("dense", "dense", "ADD", "MUL", "SUB", "concatenate", "RELU", "function", "function"),
    *("parts", "box"),
)


def random_network(
    rng: np.random.Generator, small: bool = False
) -> tuple[TfliteWriter, list[Record]]:
    """A network of 3 to 12 layers, with its inputs' values, and its outputs.

    A small one has up to 7 layers, images of up to 7x7 pixels, and a quarter as many elements.
    """
    while True:
        writer, outputs = _draw(rng, small)
        if len(writer.nodes) >= 3:  # else too few lively layers were found
            return writer, outputs


def _draw(rng: np.random.Generator, small: bool) -> tuple[TfliteWriter, list[Record]]:
    network = _Network(rng, MOST_ELEMENTS // 4 if small else MOST_ELEMENTS)
    writer = network.writer
    layers = int(rng.integers(3, 8 if small else 13))
    shape = (1, *network.pair(3, 8 if small else 16), int(rng.choice([1, 3, 4, 8, 16, 19])))
    if rng.random() < 0.2:  # as a vector that the network makes an image
        network.images.append(writer.reshape(writer.input((1, int(np.prod(shape)))), shape))
    elif rng.random() < 0.2:  # channels first, as other frameworks have it
        first = writer.input([shape[axis] for axis in (0, 3, 1, 2)])
        network.images.append(writer.transpose(first, (0, 2, 3, 1)))
    else:
        network.images.append(writer.input(shape))
    if rng.random() < 0.2:
        network.images.append(writer.input((*network.images[0].shape[:3], 7)))
    dense = int(rng.integers(0, 4))
    network.grow(max(1, layers - dense), network.image_layer, network.images)
    outputs = [network.images[-1]]
    if dense:
        network.to_vector()
        network.grow(dense, network.vector_layer, network.vectors)
        outputs = [network.vectors[-1]]
        if rng.random() < 0.5:
            outputs = [writer.softmax(outputs[0])]
    if rng.random() < 0.3 and network.images[-1] is not outputs[0]:
        outputs.append(network.images[-1])
    if rng.random() < 0.2:
        axes = (0, *(1 + int(axis) for axis in rng.permutation(3)))
        outputs.append(writer.transpose(network.images[-1], axes))
    if rng.random() < 0.2:
        outputs.append(writer.dequantize(outputs[-1]))
    used = {id(each) for node in writer.nodes for each in node.inputs}
    writer.inputs = [each for each in writer.inputs if id(each) in used]
    return writer, outputs
