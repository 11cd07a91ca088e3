"""Quantized .tflite files as weft graphs.

Everything that is not int8 in the form that TFLite's own converter writes, or that the machine does
not compute bit for bit as TFLite's reference kernels do, is refused by name.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from weft.errors import UnsupportedModel
from weft.frontends.tflite_file import TfliteModel, TfliteOperator, TfliteTensor, read_tflite
from weft.frontends.tflite_operators import RULES
from weft.ir import Flatten, Graph, HostOperation, Operation, Reshape, Tensor

__all__ = ["graph_from_tflite", "graph_from_tflite_bytes"]


def graph_from_tflite(path: str | os.PathLike[str]) -> Graph:
    """The graph of a .tflite file; see :func:`graph_from_tflite_bytes`.

    Raises
    ------
    UnsupportedModel
        Also if the file cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read: {error.strerror}") from None
    return graph_from_tflite_bytes(data, name=path.stem)


def graph_from_tflite_bytes(data: bytes, *, name: str = "model") -> Graph:
    """The graph of a .tflite file's content.

    Parameters
    ----------
    data : bytes
    name : str
        The graph's name.

    Returns
    -------
    Graph
        Of one sample: the batch axis is dropped. Tensors have the file's names, operations that of
        their operator with its index in the file (``conv_2d_0``).

    Raises
    ------
    MissingExtra
        If the package that reads the format is not installed.
    UnsupportedModel
        If the file is damaged, or holds an operator, option or type that weft does not compute; the
        message names operator, index and tensor, and says what to do.
    """
    graph = _Importer(read_tflite(data, name), name).graph()
    graph.verify()
    return graph


class _Importer:
    """One walk over the operators of a file; ``tensors`` holds what is known by file index."""

    def __init__(self, model: TfliteModel, name: str) -> None:
        self.model = model
        self.name = name
        self.tensors: dict[int, Tensor] = {}
        self.extra: dict[str, Tensor] = {}
        self.operations: list[Operation] = []
        self.on_host: set[str] = set()
        self.float_inputs: set[int] = set()
        self.operator: TfliteOperator | None = None

    def graph(self) -> Graph:
        """The graph of the whole file."""
        if not self.model.inputs or not self.model.outputs:
            raise UnsupportedModel(f"{self.name}: the model has no input or no output")
        if len(set(self.model.inputs)) != len(self.model.inputs):
            raise UnsupportedModel(f"{self.name}: the model lists an input twice")
        for index in self.model.inputs:
            tensor = self.model.tensors[index]
            if tensor.kind == "FLOAT32":
                self.float_inputs.add(
                    index
                )  # a QUANTIZE must follow: it gives scale and zero point
            else:
                self.tensors[index] = self.declare(tensor)
        for operator in self.model.operators:
            self.operator = operator
            rule = RULES.get(operator.kind)
            if rule is None:
                self.refuse(f"weft has no such operator; it knows {', '.join(sorted(RULES))}")
            if any(each in self.tensors for each in operator.outputs):
                self.refuse("computes a tensor that is given already")
            rule.apply(self, operator)
        self.operator = None
        for index in (*self.model.inputs, *self.model.outputs):
            if index not in self.tensors:
                found = self.model.tensors[index]
                raise UnsupportedModel(
                    f"{self.name}: tensor {found.name} ({found.kind}) is an input or output that "
                    "no supported operator reads or computes; convert the model with int8 inputs "
                    "and outputs"
                )
        tensors = {tensor.name: tensor for tensor in (*self.tensors.values(), *self.extra.values())}
        return Graph(
            name=self.name,
            tensors=tuple(tensors.values()),
            inputs=tuple(self.tensors[index].name for index in self.model.inputs),
            outputs=tuple(self.tensors[index].name for index in self.model.outputs),
            operations=tuple(self.operations),
            layout="HWC",
            float_rule="divide",
        )

    # What the operators' rules ask for

    def refuse(self, text: str, tensor: TfliteTensor | None = None) -> NoReturn:
        """Refuse the operator at hand."""
        operator = self.operator
        where = self.name
        if operator is not None:
            result = self.model.tensors[operator.outputs[0]].name if operator.outputs else "nothing"
            where = f"{self.name}: operator {operator.index} ({operator.kind}, computes {result})"
        about = f": tensor {tensor.name}" if tensor is not None else ""
        raise UnsupportedModel(f"{where}{about}: {text}")

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the operator at hand, or the schema's default where it has no options."""
        assert self.operator is not None
        value = self.operator.options.get(name, default)
        if value is None:
            self.refuse(f"its option {name} is missing")
        return value

    def operand(self, position: int) -> TfliteTensor:
        """The file's record of an input."""
        assert self.operator is not None
        if position >= len(self.operator.inputs) or self.operator.inputs[position] < 0:
            self.refuse(f"its input {position} is missing")
        return self.model.tensors[self.operator.inputs[position]]

    def has(self, position: int) -> bool:
        """Whether an optional input is there."""
        assert self.operator is not None
        return position < len(self.operator.inputs) and self.operator.inputs[position] >= 0

    def expect(self, inputs: tuple[int, ...], outputs: int = 1) -> None:
        """Refuse another number of inputs or outputs."""
        assert self.operator is not None
        if len(self.operator.inputs) not in inputs or len(self.operator.outputs) != outputs:
            self.refuse(
                f"has {len(self.operator.inputs)} inputs and {len(self.operator.outputs)} outputs"
            )

    def activation(self, position: int) -> Tensor:
        """An input that is computed (or a constant, as a tensor of the graph)."""
        record = self.operand(position)
        known = self.tensors.get(record.index)
        if known is not None:
            if known.name in self.on_host:
                self.refuse(
                    "reads what the host computes after the accelerator's run; only host operators "
                    "may follow one",
                    record,
                )
            return known
        if record.data is None:
            self.refuse("is read before it is computed", record)
        self.tensors[record.index] = self.declare(record)
        return self.tensors[record.index]

    def from_host(self, position: int) -> Tensor:
        """An input of a host operation: what the machine or the host has computed."""
        record = self.operand(position)
        known = self.tensors.get(record.index)
        return known if known is not None else self.activation(position)

    def constant(self, position: int, kinds: tuple[str, ...]) -> NDArray[Any]:
        """The value of a constant input."""
        record = self.operand(position)
        if record.data is None:
            self.refuse("must be a constant: weft compiles models whose weights are frozen", record)
        if record.kind not in kinds:
            self.refuse(f"is {record.kind}; weft takes {' or '.join(kinds)}", record)
        return record.data

    def declare(self, record: TfliteTensor) -> Tensor:
        """The graph's tensor for an int8 record."""
        if record.kind != "INT8":
            self.refuse(
                f"is {record.kind}; weft takes int8 activations: convert the model with full "
                "integer quantization (int8)",
                record,
            )
        if len(record.scales) != 1 or len(record.zero_points) != 1:
            self.refuse(
                f"has {len(record.scales)} scales; weft takes activations of one scale: convert "
                "the model with full integer quantization (int8)",
                record,
            )
        scale, zero_point = float(record.scales[0]), int(record.zero_points[0])
        if not np.isfinite(scale) or scale <= 0 or not -128 <= zero_point <= 127:
            self.refuse(f"has scale {scale} and zero point {zero_point}", record)
        shape = self.sample_shape(record)
        data = record.data
        if data is not None:
            data = np.ascontiguousarray(data.reshape(shape))
        return Tensor(name=record.name, shape=shape, scale=scale, zero_point=zero_point, data=data)

    def sample_shape(self, record: TfliteTensor) -> tuple[int, ...]:
        """Shape of one sample: (height, width, channels) or (channels,)."""
        shape = record.shape
        if len(shape) not in (2, 4):
            self.refuse(
                f"has the shape {_text(shape)}; weft takes (batch, height, width, channels) and "
                "(batch, channels)",
                record,
            )
        if min(shape[1:]) < 1:
            self.refuse(
                f"has the shape {_text(shape)}; every size but the batch's must be fixed: convert "
                "the model with a fixed input shape",
                record,
            )
        if shape[0] not in (-1, self.batch) and not (record.data is not None and shape[0] == 1):
            self.refuse(
                f"has the shape {_text(shape)}, but the model's batch is {self.batch}", record
            )
        return shape[1:]

    @property
    def batch(self) -> int:
        """The first axis of every activation."""
        first = self.model.tensors[self.model.inputs[0]].shape
        return max(first[0], 1) if first else 1

    def result(self, position: int = 0) -> Tensor:
        """An output as the file declares it."""
        assert self.operator is not None
        return self.declare(self.model.tensors[self.operator.outputs[position]])

    def emit(
        self,
        kind: type[Operation],
        inputs: tuple[Tensor, ...],
        output: Tensor,
        suffix: str = "",
        **fields: Any,
    ) -> None:
        """Append an operation that computes a tensor."""
        operator = self.operator
        assert operator is not None
        records = [self.model.tensors[index] for index in operator.outputs]
        record = next((each for each in records if each.name == output.name), records[0])
        for tensor in inputs:
            if all(tensor is not known for known in self.tensors.values()):
                self.extra[tensor.name] = tensor
        if output.name == record.name:
            self.tensors[record.index] = output
        else:
            self.extra[output.name] = output
        if issubclass(kind, HostOperation):
            self.on_host.add(output.name)
        self.operations.append(
            kind(
                name=f"{operator.kind.lower()}_{operator.index}{suffix}",
                inputs=tuple(tensor.name for tensor in inputs),
                output=output.name,
                source=f"operator {operator.index} {operator.kind}, {record.name}",
                **fields,
            )
        )

    def fresh(self, name: str) -> str:
        """A name that no tensor has."""
        taken = {record.name for record in self.model.tensors} | set(self.extra)
        while name in taken:
            name += "_"
        return name

    def between(self, like: Tensor, what: str, **changes: Any) -> Tensor:
        """A tensor that the file does not have, between two operations for one operator."""
        return replace(like, name=self.fresh(f"{like.name}.{what}"), **changes)

    def reshape(self, source: Tensor, output: Tensor, suffix: str = "") -> None:
        """Emit the same elements in another shape."""
        if len(output.shape) == 1:
            self.emit(Flatten, (source,), output, suffix, order="HWC")
        else:
            self.emit(Reshape, (source,), output, suffix)

    def quantized_input(self, output: Tensor) -> bool:
        """If the operator quantizes a float32 input of the model: make its result the input."""
        assert self.operator is not None
        (index,) = self.operator.inputs
        if index not in self.float_inputs:
            return False
        if index in self.tensors:
            self.refuse("quantizes this input a second time", self.model.tensors[index])
        record = self.model.tensors[index]
        if self.sample_shape(record) != output.shape:
            self.refuse(f"input and output have the shapes {record.shape} and {output.shape}")
        self.tensors[index] = self.tensors[self.operator.outputs[0]] = replace(
            output, name=record.name
        )
        return True


def _text(shape: tuple[int, ...]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape) or "()"
