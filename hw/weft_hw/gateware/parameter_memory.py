"""Memory of per-channel parameters: rows of biases, multipliers and exponents."""

from amaranth.hdl import Cat, Module, Signal, Value, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.block_memory import NO_COLLISION
from weft_hw.gateware.interfaces import (
    READ_LATENCY,
    ParameterReadPort,
    WritePort,
    group_of,
    parameter_row_layout,
)

__all__ = ["ParameterMemory"]


class ParameterMemory(wiring.Component):
    """Rows of ``columns`` biases, multipliers and exponents; written by beats, read by groups of
    ``vector_lanes`` channels.

    Byte ``row * parameter_row_pitch + i`` is byte i of the row in DRAM order. Bytes from
    ``9 * columns`` to the pitch are dropped.

    Flow control: both ports are always ready. A write is one whole bus beat at an address aligned
    to beats: it takes place if bit 0 of its strobes is set. A read of the row that is being written
    in the same cycle gives no particular beat.

    Timing: a group comes ``READ_LATENCY`` cycles after its address (registers of the address, then
    memory, then a register of the group).

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    write : In(WritePort(bits of parameter_bytes, bus_bytes))
    read : In(ParameterReadPort(config))
    inhibit : In(1)
        Writes change nothing.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        address_bits = (config.parameter_bytes - 1).bit_length()
        super().__init__(
            {
                "write": In(WritePort(address_bits, config.bus_bytes)),
                "read": In(ParameterReadPort(config)),
                "inhibit": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        beat_bits = (config.bus_bytes - 1).bit_length()
        row_bits = (config.parameter_row_pitch - 1).bit_length()
        beats = config.parameter_row_bytes // config.bus_bytes
        beat = self.write.address[beat_bits:row_bits]
        m.d.comb += self.write.ready.eq(1)

        address: Value = self.read.address
        for k in range(READ_LATENCY - 2):
            later = Signal.like(self.read.address, name=f"address_{k + 1}", reset_less=True)
            m.d.sync += later.eq(address)
            address = later
        group: Value = self.read.group
        for k in range(READ_LATENCY - 1):
            next_group = Signal.like(self.read.group, name=f"group_{k + 1}", reset_less=True)
            m.d.sync += next_group.eq(group)
            group = next_group

        words = []
        for number in range(beats):
            # The last beat's tail lies beyond the row.
            used = min(8 * config.bus_bytes, 72 * config.columns - 8 * config.bus_bytes * number)
            cells: memory.Memory = memory.Memory(
                shape=unsigned(used), depth=config.parameter_rows, init=[], attrs=NO_COLLISION
            )
            m.submodules[f"beat_{number}"] = cells
            write, read = cells.write_port(), cells.read_port()
            m.d.comb += [
                write.addr.eq(self.write.address[row_bits:]),
                write.data.eq(self.write.data),
                write.en.eq(
                    self.write.valid & self.write.strobe[0] & ~self.inhibit & (beat == number)
                ),
                read.addr.eq(address),
                read.en.eq(1),
            ]
            words.append(read.data)
        row = data.View(parameter_row_layout(config.columns), Cat(words))
        chosen = Signal(parameter_row_layout(config.vector_lanes), reset_less=True)
        for name in chosen.shape().members:
            numbers = Cat(getattr(row, name))
            m.d.sync += getattr(chosen, name).eq(group_of(config, numbers, group))
        m.d.comb += self.read.data.eq(chosen)
        return m
