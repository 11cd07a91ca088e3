"""The registers on AXI4-Lite, built from their declarations."""

import enum
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.bus import REGISTER_ADDRESS_BITS, AxiLitePort
from weft_hw.registers import MACHINE_ID, REGISTERS, Access, Register

__all__ = ["RegisterBlock", "writable_mask"]

OKAY, SLVERR = 0b00, 0b10


def writable_mask(register: Register) -> int:
    """The bits of a register that exist: the named ones if they are flags, else all."""
    if register.bits is not None and issubclass(register.bits, enum.Flag):
        return reduce(or_, (int(bit) for bit in register.bits))
    return 0xFFFF_FFFF


class RegisterBlock(wiring.Component):
    """AXI4-Lite subordinate with every register of :data:`weft_hw.registers.REGISTERS`.

    What a write does follows from the register's access: it sets the value (by byte strobes), acts
    once for each 1 that it writes, clears each bit written as 1, or does nothing. Bits that have no
    name in a register of flags read as zero. Unknown offsets answer SLVERR, all others OKAY; the
    two lowest address bits are ignored.

    Flow control: address and data of a write come in any order, each is accepted at once and held.
    One write and one read are in progress at a time; a response waits until it is taken.

    Timing: a write takes effect one cycle after the later of its address and data; responses come
    in the cycle after that.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    bus : In(AxiLitePort)
    NAME : In(32) or Out(32)
        In lower case. Read only: the value, In. Read and write: the value, Out. Write pulse: a bit
        is high for one cycle, Out. Write one clears: the value, Out.
    NAME_set : In(32)
        Write one clears: bits to set; setting wins over clearing.
    clear_events : In(1)
        All registers of that kind become zero.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._constants = {
            "MACHINE_ID": MACHINE_ID,
            "CONFIG_HASH_LOW": config.content_hash & 0xFFFF_FFFF,
            "CONFIG_HASH_HIGH": config.content_hash >> 32,
        }
        members: dict[str, object] = {"bus": In(AxiLitePort()), "clear_events": In(1)}
        for register in REGISTERS:
            if register.name in self._constants:
                continue
            name = register.name.lower()
            read_only = register.access is Access.READ_ONLY
            # Amaranth's type stubs do not know `init` of a port.
            members[name] = In(32) if read_only else Out(32, init=register.reset)  # type: ignore[call-arg]
            if register.access is Access.WRITE_ONE_CLEARS:
                members[f"{name}_set"] = In(32)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._elaborate_writes(m)
        self._elaborate_reads(m)
        return m

    def _elaborate_writes(self, m: Module) -> None:
        bus = self.bus
        address = Signal(REGISTER_ADDRESS_BITS - 2, reset_less=True)
        value = Signal(32, reset_less=True)
        strobe = Signal(4, reset_less=True)
        address_held = Signal()
        data_held = Signal()
        write = Signal()
        known = Signal()
        m.d.comb += [
            bus.awready.eq(~address_held),
            bus.wready.eq(~data_held),
            write.eq(address_held & data_held & (~bus.bvalid | bus.bready)),
        ]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address.eq(bus.awaddr[2:]), address_held.eq(1)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [value.eq(bus.wdata), strobe.eq(bus.wstrb), data_held.eq(1)]
        with m.If(write):
            m.d.sync += [
                address_held.eq(0),
                data_held.eq(0),
                bus.bvalid.eq(1),
                bus.bresp.eq(SLVERR),
            ]
        with m.If(write & known):
            m.d.sync += bus.bresp.eq(OKAY)

        for register in REGISTERS:
            selected = Signal(name=f"write_{register.name.lower()}")
            m.d.comb += selected.eq(write & (address == register.offset >> 2))
            with m.If(address == register.offset >> 2):
                m.d.comb += known.eq(1)
            self._write_one(m, register, selected, value, Cat(s.replicate(8) for s in strobe))

    def _write_one(
        self, m: Module, register: Register, selected: Signal, value: Signal, strobes: Cat
    ) -> None:
        if register.access is Access.READ_ONLY:
            return
        signal = getattr(self, register.name.lower())
        mask = strobes & writable_mask(register)
        if register.access is Access.WRITE_PULSE:
            with m.If(selected):
                m.d.comb += signal.eq(value & mask)
        elif register.access is Access.READ_WRITE:
            with m.If(selected):
                m.d.sync += signal.eq((signal & ~mask) | (value & mask))
        else:
            cleared = Signal(32, name=f"{register.name.lower()}_cleared")
            with m.If(selected):
                m.d.comb += cleared.eq(value & mask)
            with m.If(self.clear_events):
                m.d.comb += cleared.eq(0xFFFF_FFFF)
            added = getattr(self, f"{register.name.lower()}_set")
            m.d.sync += signal.eq((signal & ~cleared) | added)

    def _elaborate_reads(self, m: Module) -> None:
        bus = self.bus
        address = Signal(REGISTER_ADDRESS_BITS - 2, reset_less=True)
        held = Signal()
        m.d.comb += bus.arready.eq(~held)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [address.eq(bus.araddr[2:]), held.eq(1)]
        with m.If(held & (~bus.rvalid | bus.rready)):
            m.d.sync += [
                held.eq(0),
                bus.rvalid.eq(1),
                bus.rdata.eq(0),
                bus.rresp.eq(SLVERR),
            ]
            with m.Switch(address):
                for register in REGISTERS:
                    with m.Case(register.offset >> 2):
                        m.d.sync += [bus.rdata.eq(self._value(register)), bus.rresp.eq(OKAY)]

    def _value(self, register: Register) -> Signal | int:
        if register.name in self._constants:
            return self._constants[register.name]
        if register.access is Access.WRITE_PULSE:
            return 0
        value: Signal = getattr(self, register.name.lower())
        return value
