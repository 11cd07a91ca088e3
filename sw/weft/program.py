"""A compiled network: everything that a device and its driver need, in one file."""

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from weft.errors import ProgramFormatError, UnsupportedModel
from weft_hw.config import AcceleratorConfig
from weft_hw.errors import EncodingError
from weft_hw.instructions import Instruction, decode, decode_stream

__all__ = [
    "FORMAT_VERSION",
    "MAGIC",
    "HostStep",
    "Layer",
    "Port",
    "Program",
    "ProgramRegion",
    "Symbol",
]

MAGIC = b"WEFTPROG"
FORMAT_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of the network.

    Parameters
    ----------
    name : str
    shape : tuple of int
        As the model has it, without batch axis; (C, H, W) if ``order`` is "CHW".
    scale : float
    zero_point : int
    address : int
        In DRAM.
    image : (height, width, channels)
        The image that the accelerator sees; a vector is one pixel, or a flattened image.
    pitch : int
        Bytes from pixel to pixel in DRAM.
    order : str
        How the model orders the image's elements: its axes by their names ("CHW", "HWC", ...).
    dtype : {"int8"}
    float_rule : {"reciprocal", "divide"}
        How float32 values become codes, see :func:`weft.host.quantize`.
    source : str
        The model's transposition that the host does here; empty where the order is the model's.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    address: int
    image: tuple[int, int, int]
    pitch: int
    order: str
    dtype: str = "int8"
    float_rule: str = "reciprocal"
    source: str = ""

    @property
    def size(self) -> int:
        """Bytes in DRAM."""
        return self.image[0] * self.image[1] * self.pitch


@dataclass(frozen=True, kw_only=True)
class HostStep:
    """An operation that the host computes after the accelerator's run.

    Parameters
    ----------
    name : str
        Of the tensor that it gives.
    kind : str
        What it computes, see :mod:`weft.host_operations`.
    source : str
        Where the model has it.
    inputs : tuple of str
        Names of outputs of the accelerator and of earlier steps.
    shape : tuple of int
        Of the result, without batch axis.
    scale, zero_point, dtype
        Of the result.
    parameters : dict of str to float
    """

    name: str
    kind: str
    source: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    dtype: str
    parameters: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An operation of the network; its instructions lie in [first, end), others may lie between."""

    name: str
    op: str
    source: str
    macs: int
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class ProgramRegion:
    """A tensor's place in the static plan, alive in layers ``first_layer`` to ``last_layer``.

    Byte c of pixel (y, x) is ``(gap + y * (width + gap) + x) * pitch + c`` bytes from ``address``.

    Parameters
    ----------
    memory : {"activation", "dram"}
    name : str
        Of the tensor.
    address, size : int
        Bytes.
    first_layer, last_layer : int
    height, width, channels : int
        The image that lies there; 0 if unknown.
    pitch : int
        Bytes from pixel to pixel.
    gap : int
        Pixels of padding before the first row and behind every row.
    """

    memory: str
    name: str
    address: int
    size: int
    first_layer: int
    last_layer: int
    height: int = 0
    width: int = 0
    channels: int = 0
    pitch: int = 0
    gap: int = 0


@dataclass(frozen=True)
class Symbol:
    """Where an instruction comes from."""

    offset: int
    layer: int
    purpose: str
    tile: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """A network compiled for one configuration.

    Parameters
    ----------
    name : str
    config : AcceleratorConfig
    inputs, outputs : tuple of Port
        What the accelerator takes and gives.
    instructions, constants : bytes
        Contents of DRAM at ``instructions_address`` and ``constants_address``.
    memory_bytes : int
        DRAM that the program needs, from address 0.
    regions : tuple of ProgramRegion
        The static memory plan.
    peaks : dict of str to int
        Largest use of each memory: bytes, or rows of accumulators and parameters.
    layers : tuple of Layer
    symbols : tuple of Symbol
        One an instruction, END excepted, in order.
    host_ops : tuple of str
        What the host does, in words.
    host_steps : tuple of HostStep
        What the host computes from the accelerator's outputs, in order.
    results : tuple of str
        The network's outputs, in the user's order: names of ``outputs`` and ``host_steps``.
    """

    name: str
    config: AcceleratorConfig
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    instructions: bytes
    instructions_address: int
    constants: bytes
    constants_address: int
    memory_bytes: int
    regions: tuple[ProgramRegion, ...]
    peaks: dict[str, int]
    layers: tuple[Layer, ...]
    symbols: tuple[Symbol, ...]
    host_ops: tuple[str, ...]
    host_steps: tuple[HostStep, ...] = ()
    results: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.results:
            object.__setattr__(self, "results", tuple(port.name for port in self.outputs))

    def result(self, name: str) -> Port | HostStep:
        """What gives an output of the network; it has ``name, shape, dtype, scale, zero_point``."""
        values: list[Port | HostStep] = [*self.outputs, *self.host_steps]
        return next(value for value in values if value.name == name)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one input."""
        return sum(layer.macs for layer in self.layers)

    @cached_property
    def decoded(self) -> list[tuple[int, Instruction]]:
        """Every instruction with its byte offset, END included."""
        return decode_stream(self.instructions)

    def locate(self, offset: int) -> str:
        """The instruction at a byte offset, disassembled, with its layer and source."""
        symbol = next((each for each in self.symbols if each.offset == offset), None)
        try:
            instruction = str(decode(self.instructions[offset:]))
        except EncodingError as error:
            instruction = f"({error})"
        if symbol is None:
            return instruction
        layer = self.layers[symbol.layer]
        source = f", from {layer.source}" if layer.source else ""
        return (
            f"layer {layer.name} ({layer.op}{source}), tile {symbol.tile}, {symbol.purpose}: "
            f"{instruction}"
        )

    def listing(self) -> str:
        """The whole program, one line an instruction."""
        places = {symbol.offset: symbol for symbol in self.symbols}
        lines = []
        for offset, instruction in self.decoded:
            symbol = places.get(offset)
            where = ""
            if symbol is not None:
                where = f"{self.layers[symbol.layer].name}[{symbol.tile}] {symbol.purpose}"
            lines.append(f"{offset:6x}  {where:40}  {instruction}")
        return "\n".join(lines)

    def require_config(self, config: AcceleratorConfig) -> None:
        """Refuse any other configuration than the program's own.

        Raises
        ------
        ProgramFormatError
            If the configurations differ in more than their names.
        """
        if config.content_hash != self.config.content_hash:
            raise ProgramFormatError(
                f"program {self.name} was compiled for configuration {self.config.name} "
                f"({self.config.content_hash:016x}), not for {config.name} "
                f"({config.content_hash:016x}): compile it again"
            )

    def require_no_host_steps(self) -> None:
        """Refuse a program of which the host computes a part.

        Raises
        ------
        UnsupportedModel
            Naming the first such operation.
        """
        steps = [(step.kind, step.source) for step in self.host_steps]
        ports = (*self.inputs, *self.outputs)
        steps += [("Transpose", port.source) for port in ports if port.source]
        for kind, source in steps:
            raise UnsupportedModel(
                f"{self.name}: {kind} ({source}) runs on the host; cut it off the model, "
                "or compile without strict"
            )

    def memory_report(self) -> dict[str, int]:
        """Size of each part of DRAM and peak of each on-chip memory."""
        dram = {
            "dram instructions": len(self.instructions),
            "dram constants": len(self.constants),
            "dram tensors": sum(region.size for region in self.regions if region.memory == "dram"),
            "dram total": self.memory_bytes,
        }
        return dram | self.peaks

    def summary(self) -> dict[str, Any]:
        """Plain values for reports."""

        def port(each: Port | HostStep) -> dict[str, Any]:
            return {
                "name": each.name,
                "shape": list(each.shape),
                "dtype": each.dtype,
                "scale": each.scale,
                "zero_point": each.zero_point,
            }

        return {
            "model": self.name,
            "config": self.config.name,
            "config_hash": f"{self.config.content_hash:016x}",
            "format_version": FORMAT_VERSION,
            "inputs": [port(each) for each in self.inputs],
            "outputs": [port(self.result(name)) for name in self.results],
            "layers": [
                {"name": layer.name, "op": layer.op, "macs": layer.macs} for layer in self.layers
            ],
            "macs": self.macs,
            "memory": self.memory_report(),
            "host_ops": list(self.host_ops),
        }

    def to_bytes(self) -> bytes:
        """The file's content; equal programs give equal bytes."""
        from weft.program_file import pack_program

        return pack_program(self)

    @classmethod
    def from_bytes(cls, data: bytes, origin: str = "the program") -> "Program":
        """Inverse of :meth:`to_bytes`.

        Raises
        ------
        ProgramFormatError
            If the bytes are no program, damaged, cut short or of another format version.
        """
        from weft.program_file import unpack_program

        return unpack_program(data, origin)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; it appears complete or not at all."""
        target = Path(path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            temporary.write_bytes(self.to_bytes())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Program":
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        ProgramFormatError
            As :meth:`from_bytes`, or if the file cannot be read.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ProgramFormatError(f"{path}: cannot be read: {error.strerror}") from None
        return cls.from_bytes(data, str(path))


def plain(record: Any) -> dict[str, Any]:
    """A record of this module as plain values."""
    return dataclasses.asdict(record)
