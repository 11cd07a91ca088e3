"""The program file: magic, version, JSON header, raw sections, SHA-256 of all that.

::

    8 bytes   b"WEFTPROG"
    4 bytes   format version          (little-endian, like all numbers here)
    4 bytes   length of the header
    header    JSON: everything but the sections, and the sections' lengths
    sections  instructions, constants
    32 bytes  SHA-256 of everything before
"""

import hashlib
import json
import struct
from typing import Any

from weft.errors import ProgramFormatError
from weft.program import (
    FORMAT_VERSION,
    MAGIC,
    HostStep,
    Layer,
    Port,
    Program,
    ProgramRegion,
    Symbol,
    plain,
)
from weft_hw.config import AcceleratorConfig
from weft_hw.errors import WeftError

__all__ = ["pack_program", "unpack_program"]

START = struct.Struct(f"<{len(MAGIC)}sII")
DIGEST_BYTES = 32


def pack_program(program: Program) -> bytes:
    """The bytes of a program file."""
    header = {
        "name": program.name,
        "config": program.config.to_dict(),
        "config_hash": f"{program.config.content_hash:016x}",
        "inputs": [plain(port) for port in program.inputs],
        "outputs": [plain(port) for port in program.outputs],
        "instructions_address": program.instructions_address,
        "constants_address": program.constants_address,
        "memory_bytes": program.memory_bytes,
        "regions": [plain(region) for region in program.regions],
        "peaks": program.peaks,
        "layers": [plain(layer) for layer in program.layers],
        "symbols": _pack_symbols(program.symbols),
        "host_ops": list(program.host_ops),
        "host_steps": [plain(step) for step in program.host_steps],
        "results": list(program.results),
        "sections": [len(program.instructions), len(program.constants)],
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    body = START.pack(MAGIC, FORMAT_VERSION, len(text)) + text
    body += program.instructions + program.constants
    return body + hashlib.sha256(body).digest()


def unpack_program(data: bytes, origin: str) -> Program:
    """The program in these bytes; see :meth:`Program.from_bytes`."""
    if data[: len(MAGIC)] != MAGIC:
        raise ProgramFormatError(f"{origin}: not a weft program")
    if len(data) < START.size + DIGEST_BYTES:
        raise ProgramFormatError(f"{origin}: the program file is cut short")
    _, version, header_size = START.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ProgramFormatError(
            f"{origin}: format version {version}; this weft reads version {FORMAT_VERSION}: "
            "compile the model again"
        )
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ProgramFormatError(f"{origin}: the program file is damaged or cut short")
    try:
        header = json.loads(body[START.size : START.size + header_size])
        return _build(header, body[START.size + header_size :])
    except (ValueError, KeyError, TypeError, WeftError) as error:
        raise ProgramFormatError(f"{origin}: the program file is inconsistent: {error}") from None


def _build(header: dict[str, Any], sections: bytes) -> Program:
    config = AcceleratorConfig.from_dict(header["config"])
    if f"{config.content_hash:016x}" != header["config_hash"]:
        raise ValueError("its configuration does not have the hash it names")
    instructions, constants = header["sections"]
    if instructions + constants != len(sections):
        raise ValueError("its sections do not have the lengths it names")
    return Program(
        name=header["name"],
        config=config,
        inputs=tuple(_port(values) for values in header["inputs"]),
        outputs=tuple(_port(values) for values in header["outputs"]),
        instructions=sections[:instructions],
        instructions_address=header["instructions_address"],
        constants=sections[instructions:],
        constants_address=header["constants_address"],
        memory_bytes=header["memory_bytes"],
        regions=tuple(ProgramRegion(**values) for values in header["regions"]),
        peaks=header["peaks"],
        layers=tuple(Layer(**values) for values in header["layers"]),
        symbols=_unpack_symbols(header["symbols"]),
        host_ops=tuple(header["host_ops"]),
        host_steps=tuple(_host_step(values) for values in header["host_steps"]),
        results=tuple(header["results"]),
    )


def _port(values: dict[str, Any]) -> Port:
    height, width, channels = values["image"]
    return Port(**{**values, "shape": tuple(values["shape"]), "image": (height, width, channels)})


def _host_step(values: dict[str, Any]) -> HostStep:
    return HostStep(
        **{**values, "shape": tuple(values["shape"]), "inputs": tuple(values["inputs"])}
    )


def _pack_symbols(symbols: tuple[Symbol, ...]) -> dict[str, list[Any]]:
    """Columns instead of rows, purposes by number: a program has many instructions."""
    purposes = sorted({symbol.purpose for symbol in symbols})
    number = {purpose: index for index, purpose in enumerate(purposes)}
    return {
        "purposes": purposes,
        "offset": [symbol.offset for symbol in symbols],
        "layer": [symbol.layer for symbol in symbols],
        "purpose": [number[symbol.purpose] for symbol in symbols],
        "tile": [symbol.tile for symbol in symbols],
    }


def _unpack_symbols(columns: dict[str, list[Any]]) -> tuple[Symbol, ...]:
    purposes = columns["purposes"]
    rows = zip(
        columns["offset"], columns["layer"], columns["purpose"], columns["tile"], strict=True
    )
    return tuple(
        Symbol(offset, layer, purposes[index], tile) for offset, layer, index, tile in rows
    )
