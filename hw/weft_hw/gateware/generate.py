"""Generates the files that stand for a machine: Verilog, configuration, C header."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from amaranth.back import verilog as amaranth_verilog
from amaranth.lib.wiring import Component

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.array import SystolicArray
from weft_hw.gateware.machine import Machine
from weft_hw.gateware.memory_text import tidy_memories
from weft_hw.instructions import INSTRUCTIONS, WORD_BYTES, Queue
from weft_hw.registers import DISPATCH_QUEUE, MACHINE_ID, REGISTERS, FaultCause

__all__ = ["TOP_MODULE", "array_verilog", "register_header", "verilog", "write_verilog"]

TOP_MODULE = "weft_top"


def verilog(config: AcceleratorConfig) -> str:
    """The machine as Verilog text with :data:`TOP_MODULE` as its top.

    The text depends on the configuration and the versions of weft and Amaranth alone, so that its
    hash can name a cached simulator.
    """
    return _converted(Machine(config))


def array_verilog(config: AcceleratorConfig) -> str:
    """The systolic array alone, with the same name for its top."""
    return _converted(SystolicArray(config))


def _converted(component: Component) -> str:
    # Yosys differs between installations; the one that comes with Amaranth does not.
    previous = os.environ.get("AMARANTH_USE_YOSYS")
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    try:
        text: str = amaranth_verilog.convert(
            component, name=TOP_MODULE, emit_src=False, strip_internal_attrs=True
        )
        return tidy_memories(text)
    finally:
        if previous is None:
            del os.environ["AMARANTH_USE_YOSYS"]
        else:
            os.environ["AMARANTH_USE_YOSYS"] = previous


def _header_lines(config: AcceleratorConfig) -> Iterator[str]:
    yield f"/* Registers and instruction sizes of the machine `{config.name}`. Generated. */"
    yield "#ifndef WEFT_REGISTERS_H"
    yield "#define WEFT_REGISTERS_H"
    yield ""
    yield f"#define WEFT_MACHINE_ID_VALUE 0x{MACHINE_ID:08x}u"
    yield f"#define WEFT_CONFIG_HASH_VALUE 0x{config.content_hash:016x}ull"
    yield f"#define WEFT_BUS_BYTES {config.bus_bytes}u"
    yield ""
    yield "/* Byte offsets of the registers, and their bits or values. */"
    for register in REGISTERS:
        yield f"#define WEFT_{register.name} 0x{register.offset:03x}u /* {register.doc} */"
        if register.bits is None or register.bits is FaultCause:
            continue
        for flag in register.bits:
            yield f"#define WEFT_{register.name}_{flag.name} 0x{int(flag):x}u"
    yield ""
    yield "/* Values of FAULT_CAUSE, and bit numbers of FAULT_STICKY. */"
    for cause in FaultCause:
        yield f"#define WEFT_FAULT_{cause.name} {int(cause)}u /* {cause.meaning} */"
    yield ""
    yield "/* Values of FAULT_QUEUE. */"
    for queue in Queue:
        yield f"#define WEFT_QUEUE_{queue.name} {int(queue)}u"
    yield f"#define WEFT_QUEUE_DISPATCH {DISPATCH_QUEUE}u"
    yield ""
    yield "/* Opcode and size in bytes of each instruction; the opcode is the first byte. */"
    yield f"#define WEFT_WORD_BYTES {WORD_BYTES}u"
    for opcode, kind in INSTRUCTIONS.items():
        name = kind.__name__.upper()
        yield f"#define WEFT_OPCODE_{name} 0x{opcode:02x}u"
        yield f"#define WEFT_SIZE_{name} {kind.size}u"
    yield ""
    yield "#endif"


def register_header(config: AcceleratorConfig) -> str:
    """C header with the register map, fault causes and instruction sizes."""
    return "\n".join(_header_lines(config)) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a file such that no reader ever sees a part of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_verilog(config: AcceleratorConfig, directory: str | Path) -> list[Path]:
    """Write ``weft_top.v``, ``weft_config.json`` and ``weft_registers.h`` into a directory.

    The directory is made if there is none; files are replaced whole.

    Returns
    -------
    list of Path
        The files, Verilog first.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        f"{TOP_MODULE}.v": verilog(config),
        "weft_config.json": config.to_json(),
        "weft_registers.h": register_header(config),
    }
    for name, text in texts.items():
        _replace(directory / name, text)
    return [directory / name for name in texts]
