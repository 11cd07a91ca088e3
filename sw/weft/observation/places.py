"""Names for addresses: tensors of the memory plan, constants by layer, ports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weft.observation.traffic import moved_bytes
from weft.program import Program
from weft_hw.instructions import (
    Bounds,
    Instruction,
    Load,
    Matrix,
    Memory,
    OperandSource,
    ScaleSource,
    Store,
    Vector,
)

__all__ = ["Places", "short_name"]

_KINDS = {Memory.WEIGHT: "weights", Memory.PARAMETER: "parameters", Memory.LOOKUP: "table"}
_UNITS = {Memory.ACCUMULATOR: "row ", Memory.PARAMETER: "byte "}


@dataclass(frozen=True)
class _Named:
    """A named range of a memory, alive in layers ``first`` to ``last``."""

    name: str
    address: int
    end: int
    first: int
    last: int


def short_name(name: str) -> str:
    """A tensor's name up to its first semicolon: TFLite joins the names of all it has fused."""
    return name.partition(";")[0]


class Places:
    """The program's addresses by name, as :func:`short_name` has them.

    A name is followed by ``+`` and the distance from its beginning, in hexadecimal. What no tensor
    of the plan covers is written as the memory and the address: work areas of tiles, the weight,
    parameter and accumulator memories.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program) -> None:
        last = len(program.layers)
        constants_end = program.constants_address + len(program.constants)
        self._dram: list[_Named] = [
            _Named(short_name(port.name), port.address, port.address + port.size, 0, last)
            for port in (*program.inputs, *program.outputs)
        ]
        self._chip: list[_Named] = []
        for region in program.regions:
            named = _Named(
                short_name(region.name),
                region.address,
                region.address + region.size,
                region.first_layer,
                region.last_layer,
            )
            if region.memory == "dram":
                self._dram.append(named)
            elif region.memory == "activation":
                self._chip.append(named)
        self._dram += _constants_by_layer(program, constants_end)
        self._dram.append(_Named("constants", program.constants_address, constants_end, 0, last))

    def dram(self, address: int, layer: int) -> str:
        """A DRAM address, in a layer's instruction."""
        return _name(self._dram, address, layer) or f"dram {address:#x}"

    def chip(self, memory: Memory, address: int, layer: int) -> str:
        """An on-chip address, in a layer's instruction."""
        if memory == Memory.ACTIVATION:
            named = _name(self._chip, address, layer)
            if named is not None:
                return named
        return f"{memory.name.lower()} {_UNITS.get(memory, '')}{address:#x}"

    def describe(self, instruction: Instruction, layer: int) -> str:
        """What an instruction reads and writes: ``sources -> destination``."""
        if isinstance(instruction, Load):
            source = self.dram(instruction.dram_address, layer)
            if not moved_bytes(instruction):
                source = f"fill {instruction.fill}"
            return f"{source} -> {self.chip(instruction.memory, instruction.address, layer)}"
        if isinstance(instruction, Store):
            source = self.chip(instruction.memory, instruction.address, layer)
            return f"{source} -> {self.dram(instruction.dram_address, layer)}"
        if isinstance(instruction, Matrix):
            padded = instruction.bounds == Bounds.LEFT
            address = instruction.left_address
            if padded:
                address = _first_inside(instruction, address, instruction.left_strides)
            left = self.chip(instruction.left_memory, address, layer)
            left += " (padded)" if address != instruction.left_address else ""
            top = self.chip(instruction.top_memory, instruction.top_address, layer)
            target = self.chip(Memory.ACCUMULATOR, instruction.accumulator_address, layer)
            return f"{left} x {top} -> {target}"
        if isinstance(instruction, Vector):
            return self._vector(instruction, layer)
        return ""

    def _vector(self, instruction: Vector, layer: int) -> str:
        address = instruction.a_address
        if instruction.bounded:
            address = _first_inside(instruction, address, instruction.a_strides)
        sources = [self._operand(instruction.a_source, address, layer)]
        sources[0] += " (padded)" if address != instruction.a_address else ""
        if instruction.b_source != OperandSource.NONE:
            sources.append(self._operand(instruction.b_source, instruction.b_address, layer))
        if instruction.use_bias or instruction.scale_source == ScaleSource.PARAMETER:
            sources.append(f"parameter row {instruction.parameter_address:#x}")
        target = self.chip(instruction.destination, instruction.address, layer)
        return f"{', '.join(sources)} -> {target}"

    def _operand(self, source: OperandSource, address: int, layer: int) -> str:
        if source == OperandSource.NONE:
            return "nothing"
        return self.chip(Memory[source.name], address, layer)


def _first_inside(instruction: Matrix | Vector, address: int, strides: Sequence[int]) -> int:
    """The address of the first access whose coordinates are not below zero."""
    for origin, steps in (
        (instruction.y_origin, instruction.y_steps),
        (instruction.x_origin, instruction.x_steps),
    ):
        for count, step, stride in zip(instruction.counts, steps, strides, strict=True):
            if origin < 0 and step > 0:
                index = min(count - 1, -(origin // step))
                origin += index * step
                address += index * stride
    return address


def _name(ranges: Iterable[_Named], address: int, layer: int) -> str | None:
    for each in ranges:
        if each.address <= address < each.end and each.first <= layer <= each.last:
            distance = address - each.address
            return f"{each.name}+{distance:#x}" if distance else each.name
    return None


def _constants_by_layer(program: Program, end: int) -> list[_Named]:
    """What each layer loads besides tensors, each from its first load to the next name's start."""
    firsts: dict[tuple[int, str], int] = {}
    for symbol, (_, instruction) in zip(program.symbols, program.decoded, strict=False):
        if not isinstance(instruction, Load):
            continue
        address = instruction.dram_address
        if not program.constants_address <= address < end:
            continue
        kind = _KINDS.get(instruction.memory)
        if kind is not None:
            key = symbol.layer, kind
            firsts[key] = min(firsts.get(key, address), address)
    ordered = sorted((address, key) for key, address in firsts.items())
    ends = [address for address, _ in ordered[1:]] + [end]
    return [
        _Named(f"{program.layers[layer].name}.{kind}", address, until, 0, len(program.layers))
        for (address, (layer, kind)), until in zip(ordered, ends, strict=True)
    ]
