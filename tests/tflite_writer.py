"""Small quantized .tflite files, written without TensorFlow, and the interpreter that judges them.

A :class:`TfliteWriter` grows operator by operator. Each new operator's output is calibrated: the
interpreter runs it alone on the values that its inputs have, and scale and zero point are adjusted
until the codes spread over the int8 range.
"""

from dataclasses import dataclass, field

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

__all__ = [
    "FUNCTIONS",
    "OF_POSITIVE_VALUES",
    "Record",
    "TfliteWriter",
    "interpreter_tensors",
    "open_interpreter",
    "reference",
]

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "uint8": schema.TensorType.UINT8,
}


FUNCTIONS = (
    *("ABS", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "NEG", "RSQRT"),
    *("SQRT", "TANH"),
)
"""Functions of one element that the reference kernels compute on int8."""

OF_POSITIVE_VALUES = ("LOG", "RSQRT", "SQRT")
"""Those whose input must have the zero point -128."""

FIXED_RESULTS = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-12, 2.0**10
"""Of calibrated outputs: a result that is constant would drive its scale to nothing."""


@dataclass
class Record:
    """A tensor to write; ``values`` is what it holds in calibration, ``data`` a constant."""

    name: str
    shape: tuple
    kind: str = "int8"
    scales: tuple = ()
    zero_points: tuple = ()
    axis: int = 0
    data: np.ndarray | None = None
    values: np.ndarray | None = None
    packed: bytes | None = None  # int4: what to write instead of data
    signature: tuple | None = None


@dataclass
class Node:
    """An operator to write."""

    kind: str
    inputs: list
    outputs: list
    options: object = None


@dataclass
class TfliteWriter:
    """A model that grows; methods return records."""

    rng: np.random.Generator
    records: list = field(default_factory=list)
    nodes: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    weight_bits: int = 8  # of filters; 4 are packed in the file, 2 are a narrow int8

    # Tensors -----------------------------------------------------------------------------------

    def record(self, shape, **fields) -> Record:
        fields.setdefault("name", f"t{len(self.records)}")
        made = Record(shape=tuple(int(size) for size in shape), **fields)
        self.records.append(made)
        return made

    def quantization(self):
        """A random scale (a float32 as written) and zero point, both ends now and then."""
        scale = float(np.float32(2.0 ** self.rng.uniform(-8, 2)))
        if self.rng.random() < 0.2:
            scale = float(2.0 ** int(self.rng.integers(-8, 2)))
        zero = int(self.rng.choice([-128, 127, 0, *self.rng.integers(-128, 128, 5)]))
        return {"scales": (scale,), "zero_points": (zero,)}

    def input(self, shape, values=None, **fields) -> Record:
        fields = self.quantization() | fields
        made = self.record(shape, **fields)
        if values is None:
            values = self.rng.integers(-128, 128, made.shape).astype(np.int8)
        made.values = values
        self.inputs.append(made)
        return made

    def constant(self, data, **fields) -> Record:
        data = np.asarray(data)
        made = self.record(data.shape, kind=str(data.dtype), data=data, **fields)
        made.values = data
        return made

    def filters(self, shape, axis, per_channel=True) -> Record:
        """Random weights with symmetric quantization, a few zeros among them."""
        half = 1 << (self.weight_bits - 1)
        lowest = -half + (self.weight_bits == 8)  # int8 weights are symmetric
        data = self.rng.integers(lowest, half, shape).astype(np.int8)
        data[self.rng.random(data.shape) < 0.1] = 0
        count = shape[axis] if per_channel else 1
        scales = tuple(float(np.float32(2.0 ** self.rng.uniform(-9, -5))) for _ in range(count))
        fields = {"packed": pack_nibbles(data)} if self.weight_bits == 4 else {}
        return self.constant(data, scales=scales, zero_points=(0,) * count, axis=axis, **fields)

    def bias(self, source: Record, weights: Record, count: int) -> list:
        """A bias at the product's scale, as the converter writes it."""
        scales = tuple(float(np.float32(source.scales[0] * scale)) for scale in weights.scales)
        data = self.rng.integers(-4000, 4000, count).astype(np.int32)
        return [self.constant(data, scales=scales, zero_points=(0,) * len(scales))]

    # Operators ---------------------------------------------------------------------------------

    def node(self, operator, inputs, shape, options=None, like=None, **fields) -> Record:
        """Append an operator; its output has the quantization of ``like``, or is calibrated.

        Given ``values`` it is not run.
        """
        calibrate = like is None and not fields
        if like is not None:
            fields = {"scales": like.scales, "zero_points": like.zero_points} | fields
        elif calibrate:
            fields = self.quantization()
            largest = max(each.scales[0] for each in inputs if each.kind == "int8" and each.scales)
            factor = float(2.0 ** self.rng.uniform(-2, 2))
            fields["scales"] = (float(np.float32(largest * factor)),)
        output = self.record(shape, **fields)
        made = Node(operator, list(inputs), [output], options)
        self.nodes.append(made)
        if calibrate:
            self._calibrate(made, output)
        elif output.values is None:
            (output.values,) = self._alone(made)
        return output

    def _alone(self, node: Node):
        """Values of an operator's outputs on its inputs' values."""
        given = [each for each in node.inputs if each is not None]
        inputs = [each for each in given if each.data is None]
        data = self.pack(inputs, node.outputs, [node])
        return reference(data, [each.values for each in inputs])

    def _calibrate(self, node: Node, output: Record) -> None:
        wanted = float(self.rng.uniform(25, 45))
        smallest = SMALLEST_SCALE
        if node.kind in ("ADD", "SUB"):  # the kernels give up where 2^20 steps are less than one
            smallest = max(each.scales[0] for each in node.inputs) / 2**10
        if node.kind == "HARD_SWISH":  # likewise beyond 128 times the output's scale
            smallest = node.inputs[0].scales[0] / 2**6
        for _ in range(8):
            (codes,) = self._alone(node)
            saturated = np.mean((codes == -128) | (codes == 127))
            spread = float(codes.std())
            if saturated > 0.15:
                factor = 4.0
            elif spread == 0:
                break  # a constant result: no scale spreads it
            elif spread < wanted / 2 or spread > 2 * wanted:
                factor = max(spread, wanted / 8) / wanted
            else:
                break
            scale = min(max(output.scales[0] * factor, smallest), LARGEST_SCALE)
            output.scales = (float(np.float32(scale)),)
        else:
            (codes,) = self._alone(node)
        output.values = codes

    def activation(self):
        """A random fused activation."""
        kinds = schema.ActivationFunctionType
        return int(
            self.rng.choice([kinds.NONE] * 4 + [kinds.RELU, kinds.RELU6, kinds.RELU_N1_TO_1])
        )

    def window_options(self, options, stride, padding):
        options.strideH, options.strideW = (int(each) for each in stride)
        options.padding = getattr(schema.Padding, padding)
        options.fusedActivationFunction = self.activation()
        return options

    def conv(
        self, source, filters, kernel, stride=(1, 1), padding="SAME", dilation=(1, 1), groups=1
    ) -> Record:
        depth = source.shape[3] // groups
        weights = self.filters((filters, *kernel, depth), 0, self.rng.random() < 0.8)
        options = self.window_options(schema.Conv2DOptionsT(), stride, padding)
        options.dilationHFactor, options.dilationWFactor = (int(each) for each in dilation)
        shape = (source.shape[0], *sides(source, kernel, stride, padding, dilation), filters)
        inputs = [source, weights, *self.bias(source, weights, filters)]
        return self.node("CONV_2D", inputs, shape, options)

    def depthwise(
        self, source, kernel, stride=(1, 1), padding="SAME", dilation=(1, 1), multiplier=1
    ) -> Record:
        filters = source.shape[3] * multiplier
        weights = self.filters((1, *kernel, filters), 3, self.rng.random() < 0.8)
        options = self.window_options(schema.DepthwiseConv2DOptionsT(), stride, padding)
        options.depthMultiplier = multiplier
        options.dilationHFactor, options.dilationWFactor = (int(each) for each in dilation)
        shape = (source.shape[0], *sides(source, kernel, stride, padding, dilation), filters)
        inputs = [source, weights, *self.bias(source, weights, filters)]
        return self.node("DEPTHWISE_CONV_2D", inputs, shape, options)

    def transposed(self, source, filters, kernel, stride=(1, 1), padding="SAME") -> Record:
        weights = self.filters((filters, *kernel, source.shape[3]), 0, self.rng.random() < 0.8)
        weights.packed = None  # the interpreter's kernel takes int8 only
        options = self.window_options(schema.TransposeConvOptionsT(), stride, padding)
        options.fusedActivationFunction = 0
        size = [source.shape[axis + 1] * stride[axis] for axis in range(2)]
        if padding == "VALID":
            size = [size[axis] + max(kernel[axis] - stride[axis], 0) for axis in range(2)]
        shape = (source.shape[0], *size, filters)
        inputs = [self.constant(np.array(shape, np.int32)), weights, source]
        if self.rng.random() < 0.7:
            inputs += self.bias(source, weights, filters)
        return self.node("TRANSPOSE_CONV", inputs, shape, options)

    def dense(self, source, filters, keep=False) -> Record:
        features = source.shape[-1] if keep else int(np.prod(source.shape[1:]))
        weights = self.filters((filters, features), 0, self.rng.random() < 0.5)
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = self.activation()
        options.keepNumDims = keep
        shape = (*source.shape[:-1], filters) if keep else (source.shape[0], filters)
        inputs = [source, weights]
        if self.rng.random() < 0.85:
            inputs += self.bias(source, weights, filters)
        return self.node("FULLY_CONNECTED", inputs, shape, options)

    def elementwise(self, kind, first, second) -> Record:
        options = getattr(schema, f"{kind.title()}OptionsT")()
        options.fusedActivationFunction = self.activation()
        shape = np.broadcast_shapes(first.shape, second.shape)
        return self.node(kind, [first, second], shape, options)

    def pool(self, kind, source, kernel, stride, padding="VALID") -> Record:
        options = self.window_options(schema.Pool2DOptionsT(), stride, padding)
        options.filterHeight, options.filterWidth = (int(each) for each in kernel)
        shape = (source.shape[0], *sides(source, kernel, stride, padding), source.shape[3])
        return self.node(kind, [source], shape, options, like=source)

    def mean(self, source, keep) -> Record:
        axes = self.constant(np.array([1, 2], np.int32))
        options = schema.ReducerOptionsT()
        options.keepDims = keep
        batch, _, _, channels = source.shape
        shape = (batch, 1, 1, channels) if keep else (batch, channels)
        return self.node("MEAN", [source, axes], shape, options)

    def pad(self, source, amounts, kind="PAD") -> Record:
        """By zero points; PADV2 names them."""
        table = self.constant(np.array([(0, 0), *amounts, (0, 0)], np.int32))
        shape = np.array(source.shape) + table.data.sum(axis=1)
        if kind == "PAD":
            return self.node(kind, [source, table], shape, schema.PadOptionsT(), like=source)
        fields = {"scales": source.scales, "zero_points": source.zero_points}
        value = self.constant(np.array(source.zero_points, np.int8), **fields)
        return self.node(kind, [source, table, value], shape, schema.PadV2OptionsT(), like=source)

    def concatenate(self, *sources) -> Record:
        options = schema.ConcatenationOptionsT()
        options.axis = int(self.rng.choice([-1, len(sources[0].shape) - 1]))
        channels = sum(source.shape[-1] for source in sources)
        shape = (*sources[0].shape[:-1], channels)
        return self.node("CONCATENATION", sources, shape, options, like=sources[0])

    def transpose(self, source, axes) -> Record:
        """Axes with the batch's in front."""
        table = self.constant(np.array(axes, np.int32))
        shape = [source.shape[axis] for axis in axes]
        options = schema.TransposeOptionsT()
        return self.node("TRANSPOSE", [source, table], shape, options, like=source)

    def slice(self, source, first, sizes) -> Record:
        """A box; the tables begin with the batch axis, a size of -1 takes the rest."""
        tables = [self.constant(np.array(table, np.int32)) for table in (first, sizes)]
        shape = [
            whole - begin if size < 0 else size
            for whole, begin, size in zip(source.shape, first, sizes, strict=True)
        ]
        return self.node("SLICE", [source, *tables], shape, schema.SliceOptionsT(), like=source)

    def strided_slice(self, source, slices, shrink=()) -> Record:
        """As ``source[slices]`` of an array; single elements of the axes in ``shrink``."""
        tables = np.array([(each.start or 0, each.stop or 0, each.step or 1) for each in slices])
        options = schema.StridedSliceOptionsT()
        for axis, each in enumerate(slices):
            options.beginMask |= (each.start is None) << axis
            options.endMask |= (each.stop is None) << axis
            options.shrinkAxisMask |= (axis in shrink) << axis
        inputs = [source, *(self.constant(table.astype(np.int32)) for table in tables.T)]
        values = source.values[tuple(slices)]
        shape = [size for axis, size in enumerate(values.shape) if axis not in shrink]
        return self.node("STRIDED_SLICE", inputs, shape, options, like=source)

    def split(self, source, axis, sizes) -> list[Record]:
        """Parts along an axis; by SPLIT where ``sizes`` is a number of equal parts."""
        where = self.constant(np.array(axis, np.int32))
        if isinstance(sizes, int):
            options = schema.SplitOptionsT()
            options.numSplits = count = sizes
            inputs, kind = [where, source], "SPLIT"
            sizes = [source.shape[axis] // count] * count
        else:
            options = schema.SplitVOptionsT()
            options.numSplits = len(sizes)
            table = self.constant(np.array(sizes, np.int32))
            inputs, kind = [source, table, where], "SPLIT_V"
            known = sum(size for size in sizes if size >= 0)
            sizes = [source.shape[axis] - known if size < 0 else size for size in sizes]
        fields = {"scales": source.scales, "zero_points": source.zero_points}
        outputs = []
        for size in sizes:
            shape = list(source.shape)
            shape[axis] = size
            outputs.append(self.record(shape, **fields))
        self.nodes.append(Node(kind, inputs, outputs, options))
        for output, values in zip(outputs, self._alone(self.nodes[-1]), strict=True):
            output.values = values
        return outputs

    def reshape(self, source, shape) -> Record:
        target = self.constant(np.array(shape, np.int32))
        options = schema.ReshapeOptionsT()
        options.newShape = [int(size) for size in shape]
        return self.node("RESHAPE", [source, target], shape, options, like=source)

    def unary(self, kind, source, **fields) -> Record:
        options = schema.QuantizeOptionsT() if kind == "QUANTIZE" else None
        return self.node(kind, [source], source.shape, options, **fields)

    def function(self, kind, source, **fields) -> Record:
        """A function of one element; its options are drawn."""
        options = None
        if kind == "LEAKY_RELU":
            options = schema.LeakyReluOptionsT()
            slopes = [0.0, 0.01, 0.1, 0.3, 1.0, *self.rng.uniform(-0.5, 2, 3)]
            options.alpha = float(np.float32(self.rng.choice(slopes)))
        if kind == "GELU":
            options = schema.GeluOptionsT()
            options.approximate = bool(self.rng.random() < 0.5)
        if kind in FIXED_RESULTS:
            scale, zero = FIXED_RESULTS[kind]
            fields |= {"scales": (scale,), "zero_points": (zero,)}
        return self.node(kind, [source], source.shape, options, **fields)

    def softmax(self, source) -> Record:
        options = schema.SoftmaxOptionsT()
        options.beta = float(self.rng.choice([1.0, 0.5, 2.0]))
        fields = {"scales": (1 / 256,), "zero_points": (-128,)}
        return self.node("SOFTMAX", [source], source.shape, options, **fields)

    def dequantize(self, source) -> Record:
        return self.node("DEQUANTIZE", [source], source.shape, kind="float32")

    # File --------------------------------------------------------------------------------------

    def pack(self, inputs, outputs, nodes=None) -> bytes:
        """The file's bytes: those nodes (all, unless given) between inputs and outputs."""
        nodes = self.nodes if nodes is None else nodes
        model = schema.ModelT()
        model.version = 3
        model.buffers = [schema.BufferT()]
        graph = schema.SubGraphT()
        numbers: dict[int, int] = {}
        tensors = []
        codes: list[str] = []

        def number(record):
            if record is None:
                return -1
            if id(record) not in numbers:
                numbers[id(record)] = len(tensors)
                tensors.append(_tensor(record, model.buffers))
            return numbers[id(record)]

        graph.inputs = [number(each) for each in inputs]
        graph.operators = []
        for node in nodes:
            operator = schema.OperatorT()
            if node.kind not in codes:
                codes.append(node.kind)
            operator.opcodeIndex = codes.index(node.kind)
            operator.inputs = [number(each) for each in node.inputs]
            operator.outputs = [number(each) for each in node.outputs]
            if node.options is not None:
                name = type(node.options).__name__.removesuffix("T")
                operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
                operator.builtinOptions = node.options
            graph.operators.append(operator)
        graph.outputs = [number(each) for each in outputs]
        graph.tensors = tensors
        model.operatorCodes = [_code(kind) for kind in codes]
        model.subgraphs = [graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def model(self, *outputs) -> bytes:
        """The whole model's bytes."""
        return self.pack(self.inputs, outputs)


def _code(kind):
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    return code


def _tensor(record: Record, buffers: list):
    tensor = schema.TensorT()
    tensor.name = record.name
    tensor.shape = list(record.shape)
    if record.signature is not None:
        tensor.shapeSignature = list(record.signature)
    if record.packed is None:
        tensor.type = TYPES.get(record.kind, schema.TensorType.FLOAT32)
    else:
        tensor.type = schema.TensorType.INT4
    tensor.buffer = 0
    if record.data is not None:
        buffer = schema.BufferT()
        data = record.packed if record.packed is not None else record.data.tobytes()
        buffer.data = np.frombuffer(data, np.uint8)
        tensor.buffer = len(buffers)
        buffers.append(buffer)
    if record.scales:
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.array(record.scales, np.float32)
        quantization.zeroPoint = np.array(record.zero_points, np.int64)
        quantization.quantizedDimension = record.axis
        tensor.quantization = quantization
    return tensor


def pack_nibbles(data: np.ndarray) -> bytes:
    """int4 codes as the format has them: two a byte, the first one low."""
    flat = data.reshape(-1)
    flat = np.append(flat, np.zeros(len(flat) % 2, np.int8)).view(np.uint8) & 15
    return (flat[0::2] | flat[1::2] << 4).tobytes()


def sides(source, kernel, stride, padding, dilation=(1, 1)):
    """Height and width of a window's output, as TFLite computes them."""
    result = []
    for axis in range(2):
        size = source.shape[axis + 1]
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        if padding == "SAME":
            result.append((size + stride[axis] - 1) // stride[axis])
        else:
            result.append((size - extent + stride[axis]) // stride[axis])
    return result


# The judge ---------------------------------------------------------------------------------------


def open_interpreter(model, resolver=OpResolverType.BUILTIN_REF) -> Interpreter:
    """The interpreter with the reference kernels; ``model`` is bytes or a path."""
    source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    interpreter = Interpreter(
        **source,
        experimental_op_resolver_type=resolver,
        experimental_preserve_all_tensors=resolver == OpResolverType.BUILTIN_REF,
    )
    interpreter.allocate_tensors()
    return interpreter


def reference(model, inputs, resolver=OpResolverType.BUILTIN_REF) -> list:
    """The outputs of a model, with batch axis."""
    interpreter = open_interpreter(model, resolver)
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]


def interpreter_tensors(interpreter: Interpreter, inputs) -> dict:
    """Every tensor that has a name, after a run."""
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return {
        detail["name"]: interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if detail["name"]
    }
