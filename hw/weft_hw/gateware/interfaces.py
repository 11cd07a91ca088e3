"""Signatures of the ports between the machine's components.

All handshakes follow valid/ready rules: a transfer happens in a cycle with both high; valid, once
high, stays high with an unchanged payload until the transfer; ready may depend on valid, valid
never depends on ready.
"""

from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES, Memory
from weft_hw.instructions import DRAM_BITS, STRIDE_BITS, Instruction
from weft_hw.registers import FaultCause

__all__ = [
    "LOOKUP_ADDRESS_BITS",
    "MEMORY_BITS",
    "READ_LATENCY",
    "WRITE_LATENCY",
    "AccumulatorReadPort",
    "AccumulatorUpdatePort",
    "AccumulatorWritePort",
    "AxiReadPort",
    "AxiWritePort",
    "EnginePort",
    "FaultReport",
    "LookupPort",
    "ParameterReadPort",
    "ReadPort",
    "WritePort",
    "group_of",
    "instruction_layout",
    "parameter_row_layout",
]

READ_LATENCY = 4
"""Cycles from the acceptance of a read request to its data, for every on-chip memory."""

WRITE_LATENCY = 4
"""Cycles from the acceptance of a scratchpad write to the first read request that surely sees it.
Fewer than pass between an instruction's retirement and the first request of one that waited for
it."""

LOOKUP_ADDRESS_BITS = (LOOKUP_TABLES * LOOKUP_ENTRIES - 1).bit_length()
"""Of an entry, counted through all tables."""

MEMORY_BITS = max(Memory).bit_length()

ADDRESS_SHAPE_BITS = STRIDE_BITS  # local addresses travel signed, so that no range check can wrap


def instruction_layout(kind: type[Instruction]) -> data.StructLayout:
    """Amaranth layout of an encoded instruction, opcode included, padded to its size."""
    from amaranth import signed, unsigned

    members: dict[str, object] = {"opcode": unsigned(8)}
    used = 8
    for field in kind.bit_fields():
        shape = signed(field.width) if field.signed else unsigned(field.width)
        members[field.name] = data.ArrayLayout(shape, field.length) if field.length else shape
        used += field.total_width
    if used < 8 * kind.size:
        members["padding"] = unsigned(8 * kind.size - used)
    return data.StructLayout(members)


def parameter_row_layout(channels: int) -> data.StructLayout:
    """Parameters of as many channels, in DRAM byte order: biases, multipliers, exponents."""
    from amaranth import signed, unsigned

    return data.StructLayout(
        {
            "bias": data.ArrayLayout(signed(32), channels),
            "multiplier": data.ArrayLayout(unsigned(32), channels),
            "exponent": data.ArrayLayout(signed(8), channels),
        }
    )


def group_of(config: AcceleratorConfig, lanes: Value, group: Value) -> Value:
    """The part of what ``columns`` lanes hold, one after the other, for a group of lanes."""
    if config.vector_groups == 1:
        return lanes
    return lanes.word_select(group, len(lanes) // config.vector_groups)


class ReadPort(wiring.Signature):
    """Read of ``width`` bytes at any byte address; seen from the requester.

    The data come exactly ``READ_LATENCY`` cycles after the cycle of acceptance, flagged by
    ``data_valid``, and must be taken then. Addresses are checked by the requester.
    """

    def __init__(self, address_bits: int, width: int) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "address": Out(address_bits),
                "data_valid": In(1),
                "data": In(8 * width),
            }
        )


class WritePort(wiring.Signature):
    """Write of up to ``width`` bytes at any byte address; seen from the requester.

    Byte i of ``data`` goes to ``address + i`` where bit i of ``strobe`` is set. A written byte is
    readable by a request accepted ``WRITE_LATENCY`` cycles after the write's acceptance.
    """

    def __init__(self, address_bits: int, width: int) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "address": Out(address_bits),
                "data": Out(8 * width),
                "strobe": Out(width),
            }
        )


class AccumulatorUpdatePort(wiring.Signature):
    """MATRIX's read-modify-write of one accumulator row a cycle; never refused.

    ``add`` low overwrites. ``pause`` asks the requester to leave out one row soon, because somebody
    has waited long for the same bank; it may be ignored.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "address": Out(config.accumulator_address_bits),
                "add": Out(1),
                "data": Out(32 * config.columns),
                "pause": In(1),
            }
        )


class AccumulatorReadPort(wiring.Signature):
    """Read of one row of ``columns`` int32; timing as :class:`ReadPort`."""

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "address": Out(config.accumulator_address_bits),
                "data_valid": In(1),
                "data": In(32 * config.columns),
            }
        )


class AccumulatorWritePort(wiring.Signature):
    """Write of one row; ``strobe`` has a bit a lane. A read accepted later sees it."""

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "address": Out(config.accumulator_address_bits),
                "data": Out(32 * config.columns),
                "strobe": Out(config.columns),
            }
        )


class ParameterReadPort(wiring.Signature):
    """Read of a row's parameters for one group of ``vector_lanes`` channels; always accepted, data
    ``READ_LATENCY`` cycles later.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "address": Out(max(1, (config.parameter_rows - 1).bit_length())),
                "group": Out(config.group_bits),
                "data": In(parameter_row_layout(config.vector_lanes)),
            }
        )


class LookupPort(wiring.Signature):
    """A lookup in the tables by every lane; the entries come in the following cycle."""

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "address": Out(LOOKUP_ADDRESS_BITS).array(config.vector_lanes),
                "data": In(8).array(config.vector_lanes),
            }
        )


class FaultReport(wiring.Signature):
    """A fault, reported in the one cycle in which ``valid`` is high; seen from the reporter."""

    def __init__(self) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "cause": Out(FaultCause),
                "instruction": Out(32),
                "address": Out(DRAM_BITS),
            }
        )


class EnginePort(wiring.Signature):
    """What an engine offers to dispatch; seen from dispatch.

    * ``instruction``: a stream of (encoded instruction, byte offset in the program). Its waits are
      already satisfied. An engine may accept the next instruction while earlier ones finish.
    * ``retire``: high for one cycle per instruction, in order, once all its effects are visible to
      the other engines; dispatch then sends the instruction's signals.
    * ``fault``: see :class:`FaultReport`. An engine that reports a fault retires nothing more.
    * ``stop``: from the first fault on: issue no bursts, drain those issued, retire nothing.
    * ``busy``: an instruction is inside. ``bus_busy``: bursts are outstanding.
    * ``stall``: an instruction is inside and could not advance because of a memory or the bus.
    """

    def __init__(self, kind: type[Instruction]) -> None:
        super().__init__(
            {
                "instruction": Out(
                    stream.Signature(
                        data.StructLayout({"fields": instruction_layout(kind), "offset": 32})
                    )
                ),
                "retire": In(1),
                "fault": In(FaultReport()),
                "stop": Out(1),
                "busy": In(1),
                "bus_busy": In(1),
                "stall": In(1),
            }
        )


class AxiReadPort(wiring.Signature):
    """AXI4 read channels (INCR bursts of whole beats, one ID); seen from the manager."""

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "arvalid": Out(1),
                "arready": In(1),
                "araddr": Out(config.address_width),
                "arlen": Out(8),
                "rvalid": In(1),
                "rready": Out(1),
                "rdata": In(config.bus_width),
                "rresp": In(2),
                "rlast": In(1),
            }
        )


class AxiWritePort(wiring.Signature):
    """AXI4 write channels (INCR bursts of whole beats, one ID); seen from the manager."""

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "awvalid": Out(1),
                "awready": In(1),
                "awaddr": Out(config.address_width),
                "awlen": Out(8),
                "wvalid": Out(1),
                "wready": In(1),
                "wdata": Out(config.bus_width),
                "wstrb": Out(config.bus_bytes),
                "wlast": Out(1),
                "bvalid": In(1),
                "bready": Out(1),
                "bresp": In(2),
            }
        )
