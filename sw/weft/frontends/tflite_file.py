"""A .tflite file as plain records: tensors, operators, options; every offset in it is checked."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import UnsupportedModel, missing_extra

__all__ = ["FILE_IDENTIFIER", "TfliteModel", "TfliteOperator", "TfliteTensor", "read_tflite"]

FILE_IDENTIFIER = b"TFL3"
"""Bytes 4 to 7 of every .tflite file."""

LARGEST_COUNT = 1 << 16
"""More tensors, operators or inputs than this in one file are taken for damage."""

_DTYPES = {
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
}

_WINDOW = ("Padding", "StrideH", "StrideW")
_FUSED = ("FusedActivationFunction",)
_DILATION = ("DilationHFactor", "DilationWFactor")

_OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": ("Conv2DOptions", (*_WINDOW, *_FUSED, *_DILATION)),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (*_WINDOW, *_FUSED, *_DILATION)),
    "TRANSPOSE_CONV": ("TransposeConvOptions", (*_WINDOW, *_FUSED)),
    "FULLY_CONNECTED": ("FullyConnectedOptions", (*_FUSED, "WeightsFormat")),
    "AVERAGE_POOL_2D": ("Pool2DOptions", (*_WINDOW, *_FUSED, "FilterHeight", "FilterWidth")),
    "MAX_POOL_2D": ("Pool2DOptions", (*_WINDOW, *_FUSED, "FilterHeight", "FilterWidth")),
    "ADD": ("AddOptions", _FUSED),
    "SUB": ("SubOptions", _FUSED),
    "MUL": ("MulOptions", _FUSED),
    "CONCATENATION": ("ConcatenationOptions", (*_FUSED, "Axis")),
    "GELU": ("GeluOptions", ("Approximate",)),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "Offset"),
    ),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
}
"""Class of an operator's options in the schema, and those that weft reads."""


@dataclass(frozen=True, eq=False)
class TfliteTensor:
    """A tensor of the file.

    Parameters
    ----------
    index : int
    name : str
        Unique: the file's own name, with the index behind it where the file repeats or omits it.
    shape : tuple of int
        With batch axis; -1 where the file leaves a size open.
    kind : str
        The element type's name in the schema, for example ``INT8``.
    scales, zero_points : float64 and int64 arrays
        Empty if it is not quantized, one entry a tensor or one a channel.
    axis : int
        Of the channels.
    data : array or None
        A constant's value (int4 unpacked to int8).
    """

    index: int
    name: str
    shape: tuple[int, ...]
    kind: str
    scales: NDArray[np.float64]
    zero_points: NDArray[np.int64]
    axis: int
    data: NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class TfliteOperator:
    """An operator of the file: the schema's name, tensor indices (-1: absent), options by name."""

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)
class TfliteModel:
    """A file's one subgraph."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_tflite(data: bytes, origin: str) -> TfliteModel:
    """The records of a .tflite file.

    Parameters
    ----------
    data : bytes
    origin : str
        The file's name, for errors.

    Raises
    ------
    MissingExtra
        If the package with the file format's schema is not installed.
    UnsupportedModel
        If the bytes are no .tflite file, damaged or cut short, or hold more than one subgraph.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "tflite", purpose="reading .tflite files") from error
    if data[4:8] != FILE_IDENTIFIER:
        raise UnsupportedModel(f"{origin}: not a .tflite file (its identifier is missing)")
    try:
        return _Reader(schema, data, origin).model()
    except (
        struct.error,
        IndexError,
        TypeError,  # flatbuffers' way to say that an offset is negative
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:
        text = str(error).strip() or type(error).__name__
        raise UnsupportedModel(
            f"{origin}: the .tflite file is damaged or cut short ({text}); "
            "fetch or convert it again"
        ) from None


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


class _Reader:
    def __init__(self, schema: Any, data: bytes, origin: str) -> None:
        self.schema = schema
        self.origin = origin
        self.file = schema.Model.GetRootAs(data, 0)
        self.operator_names = _names(schema.BuiltinOperator)
        self.type_names = _names(schema.TensorType)
        self.option_names = _names(schema.BuiltinOptions)

    def model(self) -> TfliteModel:
        count = self.file.SubgraphsLength()
        if count != 1:
            raise UnsupportedModel(
                f"{self.origin}: has {count} subgraphs; weft reads models of one (control flow is "
                "not supported)"
            )
        graph = self.file.Subgraphs(0)
        tensors = []
        taken: set[str] = set()
        for index in range(self._count(graph.TensorsLength(), "tensors")):
            tensor = self._tensor(graph.Tensors(index), index, taken)
            taken.add(tensor.name)
            tensors.append(tensor)
        count = self._count(graph.OperatorsLength(), "operators")
        operators = [self._operator(graph.Operators(index), index) for index in range(count)]
        inputs, outputs = _integers(graph.InputsAsNumpy()), _integers(graph.OutputsAsNumpy())
        used = [*inputs, *outputs]
        for operator in operators:
            used += [*(each for each in operator.inputs if each != -1), *operator.outputs]
        wrong = [each for each in used if not 0 <= each < len(tensors)]
        if wrong:
            raise ValueError(f"there is no tensor {wrong[0]}")
        return TfliteModel(tuple(tensors), tuple(operators), inputs, outputs)

    def _count(self, count: int, what: str) -> int:
        if not 0 <= count <= LARGEST_COUNT:
            raise ValueError(f"{count} {what}")
        return count

    def _tensor(self, entry: Any, index: int, taken: set[str]) -> TfliteTensor:
        name = (entry.Name() or b"").decode("utf-8", "replace") or f"tensor_{index}"
        while name in taken:
            name = f"{name}_{index}"
        kind = self.type_names.get(entry.Type(), f"type {entry.Type()}")
        shape = _integers(entry.ShapeAsNumpy())
        signature = _integers(entry.ShapeSignatureAsNumpy())
        if len(signature) == len(shape):
            shape = tuple(
                -1 if open_ < 0 else size for size, open_ in zip(shape, signature, strict=True)
            )
        if entry.Sparsity() is not None:
            raise UnsupportedModel(
                f"{self.origin}: tensor {name} is stored sparsely; convert the model without "
                "sparsity"
            )
        scales: NDArray[np.float64] = np.zeros(0)
        zero_points: NDArray[np.int64] = np.zeros(0, np.int64)
        axis = 0
        quantization = entry.Quantization()
        if quantization is not None:
            axis = quantization.QuantizedDimension()
            if quantization.ScaleLength():
                scales = np.asarray(quantization.ScaleAsNumpy()).astype(np.float64)
            if quantization.ZeroPointLength():
                zero_points = np.asarray(quantization.ZeroPointAsNumpy()).astype(np.int64)
            if len(scales) and not len(zero_points):
                zero_points = np.zeros(len(scales), np.int64)
        data = self._data(entry.Buffer(), kind, shape, name)
        return TfliteTensor(index, name, shape, kind, scales, zero_points, axis, data)

    def _data(
        self, buffer: int, kind: str, shape: tuple[int, ...], name: str
    ) -> NDArray[Any] | None:
        """The constant in a buffer; None if the buffer is empty."""
        if not 0 <= buffer < self.file.BuffersLength():
            raise ValueError(f"tensor {name} lies in buffer {buffer}, which does not exist")
        entry = self.file.Buffers(buffer)
        if entry.Offset() > 1:
            raise UnsupportedModel(
                f"{self.origin}: tensor {name} is stored outside the flatbuffer; convert the model "
                "without external buffers"
            )
        if not entry.DataLength():
            return None
        raw = np.asarray(entry.DataAsNumpy()).view(np.uint8)
        if any(size < 0 for size in shape):
            raise ValueError(f"constant {name} has an open shape")
        elements = 1
        for size in shape:
            elements *= size
        if kind == "INT4":
            needed = (elements + 1) // 2
            values: NDArray[Any] = _nibbles(raw[:needed])[:elements]
        elif kind in _DTYPES:
            dtype = np.dtype(_DTYPES[kind])
            needed = elements * dtype.itemsize
            values = raw[:needed].view(dtype) if len(raw) >= needed else raw
        else:
            return raw
        if len(raw) < needed:
            raise ValueError(f"constant {name} has {len(raw)} bytes instead of {needed}")
        return values.reshape(shape)

    def _operator(self, entry: Any, index: int) -> TfliteOperator:
        code_index = entry.OpcodeIndex()
        if not 0 <= code_index < self.file.OperatorCodesLength():
            raise ValueError(f"operator {index} has no operator code")
        code = self.file.OperatorCodes(code_index)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kind = self.operator_names.get(number, f"operator code {number}")
        if kind == "CUSTOM":
            kind = f"CUSTOM {(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        return TfliteOperator(
            index,
            kind,
            _integers(entry.InputsAsNumpy()),
            _integers(entry.OutputsAsNumpy()),
            self._options(entry, kind, index),
        )

    def _options(self, entry: Any, kind: str, index: int) -> dict[str, Any]:
        """The options that weft reads, by their names in the schema."""
        name, wanted = _OPTIONS.get(kind, ("", ()))
        table = entry.BuiltinOptions()
        if not name or table is None:
            return {}
        found = self.option_names.get(entry.BuiltinOptionsType())
        if found != name:
            raise ValueError(f"operator {index} ({kind}) has options of type {found}")
        record = getattr(self.schema, name)()
        record.Init(table.Bytes, table.Pos)
        fields = {field: getattr(record, field)() for field in wanted}
        if "FusedActivationFunction" in fields:
            names = _names(self.schema.ActivationFunctionType)
            number = fields["FusedActivationFunction"]
            fields["FusedActivationFunction"] = names.get(number, f"activation {number}")
        if "Padding" in fields:
            names = _names(self.schema.Padding)
            fields["Padding"] = names.get(fields["Padding"], f"padding {fields['Padding']}")
        return fields


def _integers(values: Any) -> tuple[int, ...]:
    """A vector of the file; an absent one reads as 0."""
    if isinstance(values, int):
        return ()
    return tuple(int(value) for value in values)


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Two's-complement 4-bit values, the lower half of each byte first."""
    signed = raw.view(np.int8)
    pairs = np.stack([(signed << 4).astype(np.int8) >> 4, signed >> 4], axis=-1)
    return pairs.reshape(-1).astype(np.int8)
