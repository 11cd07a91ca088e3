"""The accumulator memory: banks of int32 rows with a read-modify-write port for MATRIX."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Module, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import (
    AccumulatorReadPort,
    AccumulatorUpdatePort,
    AccumulatorWritePort,
)

__all__ = ["PATIENCE", "UPDATE_LATENCY", "AccumulatorMemory"]

UPDATE_LATENCY = 3
"""A read accepted this many cycles after an update, or later, sees it."""

PATIENCE = 16
"""Cycles that a request waits before the memory asks MATRIX to leave out a row."""

LANE_BITS = 32


class AccumulatorMemory(wiring.Component):
    """Banks, chosen by the high address bits, of ``accumulator_rows`` rows of ``columns`` int32.

    Each bank has one read and one write port. In a bank, an update comes first (it is never
    refused), the other requests take turns; requests to different banks never meet. An update that
    overwrites does not occupy the bank's read port.

    Timing, an update being in stage 0 in the cycle it is presented::

        read     0 accepted | 1 memory output        | 2 bank register = `data`
        update   0 read     | 1 forwarding decided   | 2 add, write | 3, 4 forwarded to later ones
        write    0 accepted and written

    An update reads what an update of the same row one or two cycles before it has not yet brought
    to the memory: that comes from stages 3 and 4. An update is visible to a read accepted
    ``update_latency`` cycles later, a write to a read accepted in the next cycle.

    ``pause`` is high while a read or write has waited ``PATIENCE`` cycles or more. The memory's
    content after power-up is not defined.

    Parameters
    ----------
    config : AcceleratorConfig
    readers, writers : int
        Number of read ports and of write ports.

    Members
    -------
    update : In(AccumulatorUpdatePort)
    reads : In(AccumulatorReadPort), an array
    writes : In(AccumulatorWritePort), an array
    inhibit : In(1)
        Suppresses all writes; requests are still accepted.
    """

    def __init__(self, config: AcceleratorConfig, *, readers: int = 2, writers: int = 1) -> None:
        for name, value in (("readers", readers), ("writers", writers)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer, not {value!r}")
        self._config = config
        self._readers = readers
        self._writers = writers
        self._row_bits = (config.accumulator_rows - 1).bit_length()
        super().__init__(
            {
                "update": In(AccumulatorUpdatePort(config)),
                "reads": In(AccumulatorReadPort(config)).array(readers),
                "writes": In(AccumulatorWritePort(config)).array(writers),
                "inhibit": In(1),
            }
        )

    @property
    def update_latency(self) -> int:
        """Cycles from an update to the first acceptance of a read that sees it."""
        return UPDATE_LATENCY

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        banks = config.accumulator_banks
        width = LANE_BITS * config.columns

        read_bank = [Signal(width, name=f"data_{bank}", reset_less=True) for bank in range(banks)]
        updated, valid, address = self._update(m, Array(read_bank))
        for bank in range(banks):
            storage: memory.Memory = memory.Memory(
                shape=unsigned(width), depth=config.accumulator_rows, init=[]
            )
            m.submodules[f"bank_{bank}"] = storage
            self._bank_reads(m, bank, storage.read_port(), read_bank[bank])
            write_port = storage.write_port(granularity=LANE_BITS)
            self._bank_writes(m, bank, write_port, updated, valid, address)
        self._answers(m, Array(read_bank))
        self._pause(m)
        return m

    def _bank(self, address: Value) -> Value:
        return address[self._row_bits :]

    def _row(self, address: Value) -> Value:
        return address[: self._row_bits]

    def _update(self, m: Module, data: Array) -> tuple[Value, Value, Value]:
        """The update's stages; returns the row to write, and whether and where in stage 2."""
        update = self.update
        valid = Signal(3)  # of stages 1 to 3
        address = [
            Signal.like(update.address, name=f"address_{k}", reset_less=True) for k in (1, 2, 3)
        ]
        addend = [Signal.like(update.data, name=f"addend_{k}", reset_less=True) for k in (1, 2)]
        add = [Signal(name=f"add_{k}", reset_less=True) for k in (1, 2)]
        near = Signal(reset_less=True)  # result_3 is the row of stage 2
        far = Signal(reset_less=True)  # result_4 is
        result = Signal.like(update.data)
        results = [Signal.like(update.data, name=f"result_{k}", reset_less=True) for k in (3, 4)]

        m.d.sync += valid.eq(Cat(update.valid, valid))
        with m.If(update.valid):
            m.d.sync += [
                address[0].eq(update.address),
                addend[0].eq(update.data),
                add[0].eq(update.add),
            ]
        with m.If(valid[0]):
            m.d.sync += [
                address[1].eq(address[0]),
                addend[1].eq(addend[0]),
                add[1].eq(add[0]),
                near.eq(valid[1] & (address[0] == address[1])),
                far.eq(valid[2] & (address[0] == address[2])),
            ]
        with m.If(valid[1]):
            m.d.sync += [address[2].eq(address[1]), results[0].eq(result)]
        with m.If(valid[2]):
            m.d.sync += results[1].eq(results[0])

        base = Signal.like(update.data)
        with m.If(~add[1]):
            m.d.comb += base.eq(0)
        with m.Elif(near):
            m.d.comb += base.eq(results[0])
        with m.Elif(far):
            m.d.comb += base.eq(results[1])
        with m.Else():
            m.d.comb += base.eq(data[self._bank(address[1])])
        lanes = [slice(i, i + LANE_BITS) for i in range(0, len(base), LANE_BITS)]
        m.d.comb += result.eq(Cat((base[lane] + addend[1][lane])[:LANE_BITS] for lane in lanes))
        return result, valid[1], address[1]

    def _bank_reads(
        self, m: Module, bank: int, port: memory.ReadPort.Signature, data: Signal
    ) -> None:
        update = self.update
        update_reads = Signal(name=f"update_reads_{bank}")
        m.d.comb += update_reads.eq(
            update.valid & update.add & (self._bank(update.address) == bank)
        )
        granted = self._take_turns(m, f"read_{bank}", self.reads, bank, update_reads)
        m.d.comb += [port.en.eq(update_reads | granted.any()), port.addr.eq(update.address)]
        for k, requester in enumerate(self.reads):
            with m.If(granted[k]):
                m.d.comb += port.addr.eq(self._row(requester.address))

        fetched = Signal(name=f"fetched_{bank}")
        m.d.sync += fetched.eq(port.en)
        with m.If(fetched):
            m.d.sync += data.eq(port.data)

    def _bank_writes(
        self,
        m: Module,
        bank: int,
        port: memory.WritePort.Signature,
        updated: Value,
        valid: Value,
        address: Value,
    ) -> None:
        update_writes = Signal(name=f"update_writes_{bank}")
        m.d.comb += update_writes.eq(valid & (self._bank(address) == bank))
        granted = self._take_turns(m, f"write_{bank}", self.writes, bank, update_writes)
        strobe = Signal(self._config.columns, name=f"strobe_{bank}")
        m.d.comb += [
            strobe.eq(update_writes.replicate(len(strobe))),
            port.addr.eq(self._row(address)),
            port.data.eq(updated),
            port.en.eq(strobe & (~self.inhibit).replicate(len(strobe))),
        ]
        for k, requester in enumerate(self.writes):
            with m.If(granted[k]):
                m.d.comb += [
                    strobe.eq(requester.strobe),
                    port.addr.eq(self._row(requester.address)),
                    port.data.eq(requester.data),
                ]

    def _take_turns(
        self, m: Module, name: str, requesters: Sequence, bank: int, blocked: Value
    ) -> Signal:
        """One bit a requester: it has this bank's port in this cycle, and so its request is taken.

        The requester served last comes last in the next cycle.
        """
        count = len(requesters)
        wants = Signal(count, name=f"{name}_wants")
        granted = Signal(count, name=f"{name}_granted")
        turn = Signal(range(max(count, 2)), name=f"{name}_turn")
        m.d.comb += wants.eq(Cat(p.valid & (self._bank(p.address) == bank) for p in requesters))
        with m.If(~blocked):
            with m.Switch(turn):
                for first in range(count):
                    order = [(first + i) % count for i in range(count)]
                    with m.Case(first) if first < count - 1 else m.Default():
                        for place, k in enumerate(order):
                            ahead = reduce(or_, (wants[j] for j in order[:place]), False)
                            m.d.comb += granted[k].eq(wants[k] & ~ahead)
        for k in range(count):
            with m.If(granted[k]):
                m.d.sync += turn.eq((k + 1) % count)
                m.d.comb += requesters[k].ready.eq(1)
        return granted

    def _answers(self, m: Module, data: Array) -> None:
        """Data of a read come from its bank's register two cycles after its acceptance."""
        for k, port in enumerate(self.reads):
            accepted = Signal(2, name=f"accepted_{k}")
            bank = [
                Signal(range(len(data)), name=f"answer_bank_{k}_{i}", reset_less=True)
                for i in (1, 2)
            ]
            m.d.sync += [
                accepted.eq(Cat(port.valid & port.ready, accepted)),
                bank[0].eq(self._bank(port.address)),
                bank[1].eq(bank[0]),
            ]
            m.d.comb += [port.data_valid.eq(accepted[1]), port.data.eq(data[bank[1]])]

    def _pause(self, m: Module) -> None:
        """Counts, for each port, how long its request has waited."""
        impatient = []
        for k, port in enumerate([*self.reads, *self.writes]):
            waited = Signal(range(PATIENCE + 1), name=f"waited_{k}")
            impatient.append(waited == PATIENCE)
            with m.If(~port.valid | port.ready):
                m.d.sync += waited.eq(0)
            with m.Elif(waited != PATIENCE):
                m.d.sync += waited.eq(waited + 1)
        m.d.comb += self.update.pause.eq(Cat(impatient).any())
