"""The instruction set: each instruction's fields, declared once.

Encoder, decoder, disassembler, Amaranth layouts, C header and reference page derive from the
classes below. What each instruction computes is defined in ``docs/machine.md``.
"""

import enum
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from weft_hw.config import AcceleratorConfig
from weft_hw.errors import EncodingError
from weft_hw.fields import BitField, bit_fields, bits, pack, unpack
from weft_hw.instruction_values import (
    LOOKUP_TABLES,
    SCALAR_REGISTER_BITS,
    Accumulate,
    Bounds,
    Capture,
    Dataflow,
    Element,
    Head,
    LoadSide,
    Memory,
    OperandSource,
    Operation,
    Queue,
    Rounding,
    ScaleSource,
    Tail,
    WeightBits,
)

__all__ = [
    "COUNT_BITS",
    "DRAM_BITS",
    "HEADER_BITS",
    "INSTRUCTIONS",
    "LOOPS_MATRIX",
    "LOOPS_TRANSFER",
    "LOOPS_VECTOR",
    "LOOPS_VECTOR_OUTER",
    "STRIDE_BITS",
    "TILE_LOOPS_MATRIX",
    "WORD_BYTES",
    "Accumulate",
    "Bounds",
    "Capture",
    "Dataflow",
    "Element",
    "End",
    "Head",
    "Instruction",
    "Load",
    "LoadSide",
    "Matrix",
    "Memory",
    "Operation",
    "OperandSource",
    "Queue",
    "Rounding",
    "Scalar",
    "ScaleSource",
    "Store",
    "Tail",
    "Vector",
    "WeightBits",
    "decode",
    "decode_stream",
    "disassemble",
]

WORD_BYTES = 16  # every instruction is a whole number of these
OPCODE_BITS = 8
SEMAPHORE_BITS = 16
HEADER_BITS = OPCODE_BITS + 2 * SEMAPHORE_BITS

ADDRESS_BITS = 19  # bytes of a scratchpad: 512 KiB at most
STRIDE_BITS = 20
ROW_BITS = 13  # rows of the accumulator memory: 8,192 at most
COUNT_BITS = 12
DRAM_BITS = 40

LOOPS_TRANSFER = 3
LOOPS_MATRIX = 7
TILE_LOOPS_MATRIX = 4  # the outermost ones; the others run over activation rows
LOOPS_VECTOR = 6
LOOPS_VECTOR_OUTER = 4  # the outermost ones; the others run over the window


INSTRUCTIONS: dict[int, type["Instruction"]] = {}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Fields that every instruction begins with; the opcode itself is the lowest byte.

    Encoding: opcode, then the fields in order of declaration, lowest bit first, zero-extended to
    ``size`` bytes, little-endian.
    """

    opcode: ClassVar[int]
    queue: ClassVar[Queue | None]
    size: ClassVar[int]

    wait: int = bits(SEMAPHORE_BITS, "Mask of semaphores to wait for; each is decremented by one.")
    signal: int = bits(SEMAPHORE_BITS, "Mask of semaphores to increment on retirement.")

    def __init_subclass__(cls, *, opcode: int, queue: Queue | None, size: int) -> None:
        if size % WORD_BYTES or opcode in INSTRUCTIONS:
            raise ValueError(f"{cls.__name__}: size {size} or opcode {opcode:#x} is not allowed")
        cls.opcode, cls.queue, cls.size = opcode, queue, size
        INSTRUCTIONS[opcode] = cls

    @classmethod
    def bit_fields(cls) -> tuple[BitField, ...]:
        """All fields behind the opcode, with their offsets in the instruction."""
        declared = bit_fields(cls, OPCODE_BITS)
        last = declared[-1]
        if last.offset + last.total_width > 8 * cls.size:
            raise ValueError(f"{cls.__name__} needs more than {cls.size} bytes")
        return declared

    def encode(self) -> bytes:
        """The instruction's bytes.

        Raises
        ------
        EncodingError
            If a value does not fit its field.
        """
        return (pack(self, OPCODE_BITS) | self.opcode).to_bytes(self.size, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of :meth:`encode`."""
        record: Self = unpack(cls, int.from_bytes(data[: cls.size], "little"), OPCODE_BITS)
        return record

    def unsupported(self, config: AcceleratorConfig) -> str | None:
        """The first field whose value is defined but not executed by that machine, or None."""
        for field in self.bit_fields():
            if field.supported is None:
                continue
            value = getattr(self, field.name)
            elements = value if field.length else (value,)
            if any(element not in field.supported for element in elements):
                return field.name
        return None

    def __str__(self) -> str:
        shown = []
        for field in self.bit_fields():
            value = getattr(self, field.name)
            default = next(f.default for f in fields(self) if f.name == field.name)
            if value == default:
                continue
            if field.name in ("wait", "signal"):
                text = "{" + ",".join(str(i) for i in range(SEMAPHORE_BITS) if value >> i & 1) + "}"
            elif field.length:
                text = "[" + ",".join(str(int(v)) for v in value) + "]"
            elif isinstance(value, enum.IntEnum):
                text = value.name
            else:
                text = hex(value) if field.name == "dram_address" else str(int(value))
            shown.append(f"{field.name}={text}")
        return f"{type(self).__name__.upper()} {' '.join(shown)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class End(Instruction, opcode=0x01, queue=None, size=16):
    """Ends the program: done and interrupt once every queue is empty and every write answered."""


@dataclass(frozen=True, kw_only=True)
class _Transfer(Instruction, opcode=0x00, queue=None, size=48):
    """What LOAD and STORE share: runs of contiguous bytes, placed by three loops."""

    dram_address: int = bits(DRAM_BITS, "Byte address of the first run in DRAM.")
    counts: tuple[int, ...] = bits(
        COUNT_BITS, "Trips of each loop, outermost first.", length=LOOPS_TRANSFER, default=1
    )
    dram_strides: tuple[int, ...] = bits(
        32, "Bytes between runs in DRAM, by loop.", length=LOOPS_TRANSFER, signed=True
    )
    run_bytes: int = bits(STRIDE_BITS, "Contiguous bytes of a run.", default=1)
    memory: Memory = bits(3, "The on-chip memory.", kind=Memory, supported=tuple(Memory))
    element: Element = bits(
        2,
        "Element width in DRAM (INT8 unless the memory is ACCUMULATOR).",
        kind=Element,
        supported=tuple(Element),
    )
    address: int = bits(
        STRIDE_BITS, "On-chip byte address of the first run (accumulators: row).", signed=True
    )
    strides: tuple[int, ...] = bits(
        STRIDE_BITS, "On-chip distance of runs, by loop.", length=LOOPS_TRANSFER, signed=True
    )
    origin: int = bits(13, "Coordinate of the first run.", signed=True)
    extent: int = bits(
        COUNT_BITS, "Runs whose coordinate is in [0, extent) exist; others are filled or dropped."
    )
    steps: tuple[int, ...] = bits(
        8, "Coordinate step, by loop.", length=LOOPS_TRANSFER, signed=True
    )
    fill: int = bits(
        8,
        "What LOAD writes into every byte (accumulators: lane) of a run that does not exist.",
        signed=True,
    )

    def unsupported(self, config: AcceleratorConfig) -> str | None:
        """As :meth:`Instruction.unsupported`; only accumulators have wider elements."""
        if self.memory != Memory.ACCUMULATOR and self.element != Element.INT8:
            return "element"
        return super().unsupported(config)


del INSTRUCTIONS[0x00]  # the shared base is no instruction


@dataclass(frozen=True, kw_only=True)
class Load(_Transfer, opcode=0x10, queue=Queue.LOAD, size=48):
    """DRAM to an on-chip memory."""


@dataclass(frozen=True, kw_only=True)
class Store(_Transfer, opcode=0x40, queue=Queue.STORE, size=48):
    """On-chip memory to DRAM."""

    memory: Memory = bits(
        3,
        "The on-chip memory.",
        kind=Memory,
        supported=(Memory.ACTIVATION, Memory.ACCUMULATOR),
    )


@dataclass(frozen=True, kw_only=True)
class Matrix(Instruction, opcode=0x20, queue=Queue.MATRIX, size=96):
    """A loop nest of array passes: sums of products into the accumulator memory."""

    dataflow: Dataflow = bits(1, "What stays in the array.", kind=Dataflow)
    weight_bits: WeightBits = bits(
        2,
        "Weight width, of those in the configuration's `weight_modes`.",
        kind=WeightBits,
        supported=(WeightBits.EIGHT, WeightBits.FOUR, WeightBits.TWO),
    )
    load_side: LoadSide = bits(
        1, "Where weight tiles enter; LEFT only if the array is square.", kind=LoadSide
    )
    accumulate: Accumulate = bits(1, "First visit of a row.", kind=Accumulate)
    left_memory: Memory = bits(1, "Memory of the left stream.", kind=Memory, supported=(0,))
    top_memory: Memory = bits(
        1,
        "Memory of the top stream.",
        kind=Memory,
        supported=(Memory.WEIGHT,),
        default=Memory.WEIGHT,
    )
    bounds: Bounds = bits(2, "The stream that the coordinates bound.", kind=Bounds)
    left_zero_point: int = bits(8, "Subtracted from each left operand.", signed=True)
    top_zero_point: int = bits(8, "Subtracted from each top operand.", signed=True)
    counts: tuple[int, ...] = bits(
        COUNT_BITS,
        "Trips of each loop, outermost first: output tiles, 3 reduction loops, 3 row loops "
        "(output-stationary: 4 loops over output tiles, 3 over the reduction).",
        length=LOOPS_MATRIX,
        default=1,
    )
    left_address: int = bits(STRIDE_BITS, "Byte address of the first left row.", signed=True)
    left_strides: tuple[int, ...] = bits(
        STRIDE_BITS, "Left byte stride, by loop.", length=LOOPS_MATRIX, signed=True
    )
    top_address: int = bits(STRIDE_BITS, "Byte address of the first top row.", signed=True)
    top_strides: tuple[int, ...] = bits(
        STRIDE_BITS,
        "Top byte stride, by loop (weight-stationary: the four tile loops only).",
        length=LOOPS_MATRIX,
        signed=True,
    )
    tile_stride: int = bits(
        16,
        "Bytes between the rows of a weight tile (output-stationary: accumulator rows between the "
        "rows of an output tile).",
        signed=True,
    )
    accumulator_address: int = bits(ROW_BITS + 1, "First accumulator row.", signed=True)
    accumulator_strides: tuple[int, ...] = bits(
        ROW_BITS + 1,
        "Accumulator row stride, by loop (output-stationary: the tile loops).",
        length=LOOPS_MATRIX,
        signed=True,
    )
    y_origin: int = bits(13, "First coordinate y.", signed=True)
    y_extent: int = bits(COUNT_BITS, "Coordinates y in [0, extent) exist.")
    y_steps: tuple[int, ...] = bits(8, "Step of y, by loop.", length=LOOPS_MATRIX, signed=True)
    x_origin: int = bits(13, "First coordinate x.", signed=True)
    x_extent: int = bits(COUNT_BITS, "Coordinates x in [0, extent) exist.")
    x_steps: tuple[int, ...] = bits(8, "Step of x, by loop.", length=LOOPS_MATRIX, signed=True)

    def unsupported(self, config: AcceleratorConfig) -> str | None:
        """As :meth:`Instruction.unsupported`, and what fits together and to the array.

        Each dataflow has one bound that makes no sense; tiles enter from the left of a square array
        only. Weights below eight bits must be a mode of the array, in the weight-stationary
        dataflow, from the top, without a zero point.
        """
        stationary = self.dataflow == Dataflow.OUTPUT_STATIONARY
        if self.bounds == (Bounds.ACCUMULATOR if stationary else Bounds.TOP):
            return "bounds"
        sideways = self.load_side == LoadSide.LEFT
        if sideways and config.rows != config.columns:
            return "load_side"
        if self.weight_bits != WeightBits.EIGHT and (
            self.weight_bits >= len(config.weight_modes)
            or stationary
            or sideways
            or self.top_zero_point
        ):
            return "weight_bits"
        return super().unsupported(config)


@dataclass(frozen=True, kw_only=True)
class Vector(Instruction, opcode=0x30, queue=Queue.VECTOR, size=128):
    """Vectors of `columns` lanes: reduce over a window, scale, combine, clamp, write."""

    counts: tuple[int, ...] = bits(
        COUNT_BITS,
        "Trips of each loop, outermost first: channel tiles, 3 output loops, 2 window loops.",
        length=LOOPS_VECTOR,
        default=1,
    )
    head: Head = bits(2, "Reduction over the window.", kind=Head)
    a_source: OperandSource = bits(
        2,
        "Source of operand A: int8 activations or int32 accumulators.",
        kind=OperandSource,
        supported=(OperandSource.ACTIVATION, OperandSource.ACCUMULATOR),
        default=OperandSource.ACCUMULATOR,
    )
    a_address: int = bits(STRIDE_BITS, "First address of A.", signed=True)
    a_strides: tuple[int, ...] = bits(
        STRIDE_BITS, "Stride of A, by loop.", length=LOOPS_VECTOR, signed=True
    )
    a_zero_point: int = bits(8, "Subtracted from each int8 element of A.", signed=True)
    b_source: OperandSource = bits(
        2,
        "Source of operand B: int8 activations or weights, or int32 accumulators.",
        kind=OperandSource,
    )
    b_address: int = bits(STRIDE_BITS, "First address of B.", signed=True)
    b_strides: tuple[int, ...] = bits(
        STRIDE_BITS,
        "Stride of B, by loop (the window's for DOT only).",
        length=LOOPS_VECTOR,
        signed=True,
    )
    b_zero_point: int = bits(8, "Subtracted from each int8 element of B.", signed=True)
    destination: Memory = bits(
        2,
        "Where results go: int8 to activations, int32 to accumulators.",
        kind=Memory,
        supported=(Memory.ACTIVATION, Memory.ACCUMULATOR),
    )
    address: int = bits(STRIDE_BITS, "First address of results.", signed=True)
    strides: tuple[int, ...] = bits(
        STRIDE_BITS, "Stride of results, by outer loop.", length=LOOPS_VECTOR_OUTER, signed=True
    )
    last_lanes: int = bits(
        7, "Lanes written in the last channel tile; 0 for all. Other tiles write all lanes."
    )
    y_origin: int = bits(13, "First coordinate y of A.", signed=True)
    y_extent: int = bits(COUNT_BITS, "Coordinates y in [0, extent) exist.")
    y_steps: tuple[int, ...] = bits(8, "Step of y, by loop.", length=LOOPS_VECTOR, signed=True)
    x_origin: int = bits(13, "First coordinate x of A.", signed=True)
    x_extent: int = bits(COUNT_BITS, "Coordinates x in [0, extent) exist.")
    x_steps: tuple[int, ...] = bits(8, "Step of x, by loop.", length=LOOPS_VECTOR, signed=True)
    bounded: int = bits(1, "1: elements of A outside the coordinates' bounds do not count.")
    parameter_address: int = bits(8, "First parameter row.")
    parameter_strides: tuple[int, ...] = bits(
        8, "Parameter row stride, by outer loop.", length=LOOPS_VECTOR_OUTER, signed=True
    )
    use_bias: int = bits(1, "1: add the parameter row's bias.")
    pre_shift: int = bits(5, "Left shift after bias, before scaling.")
    scale_source: ScaleSource = bits(2, "Source of multiplier and exponent.", kind=ScaleSource)
    multiplier: int = bits(31, "Multiplier, if the instruction is its source.")
    exponent: int = bits(8, "Exponent, if the instruction is its source.", signed=True)
    rounding: Rounding = bits(2, "Rounding of the scaled value.", kind=Rounding)
    tail: Tail = bits(
        3,
        "Use of operand B.",
        kind=Tail,
        supported=(Tail.NONE, Tail.ADD, Tail.MAXIMUM, Tail.PRODUCT, Tail.SELECT),
    )
    zero_point: int = bits(16, "Added to the result before the clamp.", signed=True)
    clamp_low: int = bits(32, "Smallest result.", signed=True, default=-(1 << 31))
    clamp_high: int = bits(32, "Largest result.", signed=True, default=(1 << 31) - 1)
    clamp_from_scalar: int = bits(1, "1: bounds from scalar registers.")
    scalar_registers: tuple[int, ...] = bits(
        SCALAR_REGISTER_BITS, "Registers of multiplier, exponent and clamp bounds.", length=4
    )
    capture: Capture = bits(
        2,
        "What is noted in scalar registers: largest absolute value, number of clamped results.",
        kind=Capture,
    )
    capture_register: int = bits(
        SCALAR_REGISTER_BITS, "Scalar register of the largest value; the next one counts."
    )
    lookup: int = bits(
        3,
        "Table that results index, from 1; 0 for none.",
        supported=tuple(range(LOOKUP_TABLES + 1)),
    )
    index_address: int = bits(32, "Logical index of the first element, for stochastic rounding.")
    index_strides: tuple[int, ...] = bits(
        22, "Logical index stride, by outer loop.", length=LOOPS_VECTOR_OUTER
    )
    tensor: int = bits(12, "Tensor number for stochastic rounding.")
    select_low: int = bits(10, "SELECT passes values where B is above this ...", signed=True)
    select_high: int = bits(10, "... and below this.", signed=True)

    def unsupported(self, config: AcceleratorConfig) -> str | None:
        """As :meth:`Instruction.unsupported`, and what fits together.

        A tail needs operand B; products and SELECT need an int8 one. A dot product needs operand B
        for itself, and an int8 A.
        """
        if self.head == Head.DOT:
            if self.a_source != OperandSource.ACTIVATION:
                return "a_source"
            if self.tail != Tail.NONE:
                return "tail"
        if self.tail != Tail.NONE and self.b_source == OperandSource.NONE:
            return "b_source"
        int8_only = self.head == Head.DOT or self.tail in (Tail.PRODUCT, Tail.SELECT)
        if int8_only and self.b_source not in (OperandSource.ACTIVATION, OperandSource.WEIGHT):
            return "b_source"
        return super().unsupported(config)


@dataclass(frozen=True, kw_only=True)
class Scalar(Instruction, opcode=0x31, queue=Queue.VECTOR, size=16):
    """Arithmetic on scalar registers, in order with VECTOR instructions."""

    operation: Operation = bits(4, "Operation.", kind=Operation, supported=tuple(Operation))
    destination: int = bits(SCALAR_REGISTER_BITS, "Destination register.")
    first: int = bits(SCALAR_REGISTER_BITS, "First operand register.")
    second: int = bits(SCALAR_REGISTER_BITS, "Second operand register.")
    use_immediate: int = bits(1, "1: the immediate replaces the second operand.")
    immediate: int = bits(32, "Immediate value.", signed=True)


def decode(data: bytes) -> Instruction:
    """The instruction at the start of ``data``.

    Raises
    ------
    EncodingError
        If the opcode is unknown or the bytes end early.
    """
    if not data or data[0] not in INSTRUCTIONS:
        raise EncodingError(f"opcode {data[0]:#04x} is not known" if data else "no bytes to decode")
    kind = INSTRUCTIONS[data[0]]
    if len(data) < kind.size:
        raise EncodingError(f"{kind.__name__} needs {kind.size} bytes, only {len(data)} are left")
    return kind.from_bytes(data)


def decode_stream(data: bytes) -> list[tuple[int, Instruction]]:
    """All instructions up to and including END, each with its byte offset."""
    decoded: list[tuple[int, Instruction]] = []
    offset = 0
    while True:
        instruction = decode(data[offset:])
        decoded.append((offset, instruction))
        if isinstance(instruction, End):
            return decoded
        offset += instruction.size


def disassemble(data: bytes) -> str:
    """One line an instruction: byte offset, name, fields that differ from their defaults."""
    return "\n".join(f"{offset:6x}  {instruction}" for offset, instruction in decode_stream(data))
