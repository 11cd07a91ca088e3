"""A program as text with its source operations as comments, and that text as a program again."""

import enum
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from weft.errors import ProgramFormatError
from weft.observation.places import Places
from weft.program import Program
from weft_hw.errors import WeftError
from weft_hw.instructions import INSTRUCTIONS, Instruction

__all__ = ["assemble", "disassembly"]

_FIELD = re.compile(r"(\w+)=(\S+)$")
_KINDS = {kind.__name__.upper(): kind for kind in INSTRUCTIONS.values()}


def disassembly(program: Program) -> str:
    """The program as text; everything from ``;`` to the end of a line is a comment.

    A heading of configuration, ports and memories; then each instruction with its byte offset and
    the fields that differ from their defaults, below what it does there and between which places.
    Where instructions of several layers interleave, a heading tells each change of layer.
    """
    return "\n".join([*_heading(program), *_body(program)]) + "\n"


def _heading(program: Program) -> Iterator[str]:
    config = program.config
    yield f"; program {program.name} for {config.name} ({config.content_hash:016x})"
    yield (
        f"; {len(program.decoded)} instructions, {len(program.instructions):,} bytes, "
        f"{program.macs:,} multiply-accumulates"
    )
    for kind, ports in (("input", program.inputs), ("output", program.outputs)):
        for port in ports:
            shape = "x".join(map(str, port.shape))
            yield (
                f"; {kind} {port.name}: {port.dtype} {shape} ({port.order}), scale {port.scale:g}, "
                f"zero point {port.zero_point}, at {port.address:#x}"
            )
    yield f"; constants at {program.constants_address:#x}, {len(program.constants):,} bytes"
    for name, size in sorted(program.peaks.items()):
        yield f"; peak {name}: {size:,}"
    for host_op in program.host_ops:
        yield f"; on the host: {host_op}"


def _body(program: Program) -> Iterator[str]:
    places = Places(program)
    symbols = {symbol.offset: symbol for symbol in program.symbols}
    seen: set[int] = set()
    current = None
    for offset, instruction in program.decoded:
        symbol = symbols.get(offset)
        if symbol is None:
            yield f"\n{offset:6x}  {instruction}"
            continue
        if symbol.layer != current:
            current = symbol.layer
            layer = program.layers[current]
            yield ""
            yield f"; layer {current}: {layer.name}" + (" (continued)" if current in seen else "")
            if current not in seen:
                source = f", from {layer.source}" if layer.source else ""
                yield f";   {layer.op}{source}, {layer.macs:,} multiply-accumulates"
            seen.add(current)
        what = places.describe(instruction, symbol.layer)
        yield f"        ; {symbol.purpose}, tile {symbol.tile}: {what}"
        yield f"{offset:6x}  {instruction}"


def assemble(text: str) -> bytes:
    """The instructions in a text that :func:`disassembly` wrote, encoded.

    Offsets are not needed; comments and empty lines are skipped.

    Raises
    ------
    ProgramFormatError
        If a line cannot be read; the message names line and reason.
    """
    code = bytearray()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition(";")[0].split()
        if words and re.fullmatch(r"[0-9a-f]+", words[0]):
            del words[0]
        if not words:
            continue
        try:
            code += _instruction(words).encode()
        except (WeftError, ValueError) as error:
            raise ProgramFormatError(f"line {number}: {error}") from None
    return bytes(code)


def _instruction(words: list[str]) -> Instruction:
    kind = _KINDS.get(words[0])
    if kind is None:
        raise ValueError(f"`{words[0]}` is no instruction; there are {', '.join(_KINDS)}")
    known = {field.name: field for field in kind.bit_fields()}
    defaults = {field.name: field.default for field in fields(kind)}
    values: dict[str, Any] = {}
    for word in words[1:]:
        match = _FIELD.match(word)
        if match is None or match[1] not in known:
            raise ValueError(f"`{word}` sets no field of {words[0]}")
        values[match[1]] = _value(match[1], match[2], defaults[match[1]])
    return kind(**values)


def _value(name: str, text: str, default: object) -> object:
    """The value of a field, in the notation of :meth:`Instruction.__str__`."""
    if text.startswith("{"):
        return sum(1 << int(index) for index in text.strip("{}").split(",") if index)
    if text.startswith("["):
        return tuple(int(each) for each in text.strip("[]").split(","))
    if isinstance(default, enum.IntEnum) and not text.lstrip("-").isdigit():
        if text not in type(default).__members__:
            raise ValueError(f"`{text}` is no value of {name}")
        return type(default)[text]
    return int(text, 0)
