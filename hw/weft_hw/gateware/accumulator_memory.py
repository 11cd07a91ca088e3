"""The accumulator memory: banks of int32 rows with a read-modify-write port for MATRIX."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from types import SimpleNamespace

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.block_memory import NO_COLLISION
from weft_hw.gateware.interfaces import (
    READ_LATENCY,
    AccumulatorReadPort,
    AccumulatorUpdatePort,
    AccumulatorWritePort,
)

__all__ = ["PATIENCE", "UPDATE_LATENCY", "AccumulatorMemory"]

UPDATE_LATENCY = 4
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

        read     0 accepted | 1 memory | 2 bank register | 3 bank chosen | 4 = `data`
        update   0 | 1 read | 2 bank register | 3 bank chosen, forwarded | 4 add, write | 5, 6
        write    0 accepted | 1 written

    An update reads what updates of the same row one, two or three cycles before it have not yet
    brought to the memory: that comes from stage 5, in which the sum of one cycle before is when
    this one is in stage 4, and that of two cycles before when it is in stage 3; and from stage 6.
    An update is visible to a read accepted ``update_latency`` cycles later, a write to a read
    accepted in the next cycle.

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
        update = self._update(m, Array(read_bank))
        accepted_writes = [self._held_write(m, k, port) for k, port in enumerate(self.writes)]
        for bank in range(banks):
            storage: memory.Memory = memory.Memory(
                shape=unsigned(width),
                depth=config.accumulator_rows,
                init=[],
                attrs=NO_COLLISION,
            )
            m.submodules[f"bank_{bank}"] = storage
            self._bank_reads(m, bank, storage.read_port(), read_bank[bank], update)
            write_port = storage.write_port(granularity=LANE_BITS)
            self._bank_writes(m, bank, write_port, update, accepted_writes)
        self._answers(m, Array(read_bank))
        self._pause(m)
        return m

    def _bank(self, address: Value) -> Value:
        return address[self._row_bits :]

    def _row(self, address: Value) -> Value:
        return address[: self._row_bits]

    def _update(self, m: Module, data: Array) -> SimpleNamespace:
        """The update's stages: whether and where in each of them, and the row to write in 4."""
        update = self.update
        valid = Signal(5)  # of stages 1 to 5
        stages = (1, 2, 3, 4)
        address = [
            Signal.like(update.address, name=f"address_{k}", reset_less=True) for k in stages
        ]
        addend = [Signal.like(update.data, name=f"addend_{k}", reset_less=True) for k in stages]
        add = [Signal(name=f"add_{k}", reset_less=True) for k in (1, 2, 3)]
        # The row is that of the update one, two or three cycles before; of stages 2, 3 and 4.
        before = [Signal(3, name=f"before_{k}", reset_less=True) for k in (2, 3)]
        forwards = Signal(reset_less=True)
        base = Signal.like(update.data, name="base_4", reset_less=True)
        results = [Signal.like(update.data, name=f"result_{k}", reset_less=True) for k in (5, 6)]

        m.d.sync += valid.eq(Cat(update.valid, valid))
        with m.If(update.valid):
            m.d.sync += [
                address[0].eq(update.address),
                addend[0].eq(update.data),
                add[0].eq(update.add),
            ]
        for k in range(3):
            with m.If(valid[k]):
                m.d.sync += [address[k + 1].eq(address[k]), addend[k + 1].eq(addend[k])]
                if k < 2:
                    m.d.sync += add[k + 1].eq(add[k])
        with m.If(valid[0]):
            earlier = [valid[k] & (address[0] == address[k]) for k in (1, 2, 3)]
            m.d.sync += before[0].eq(Cat(earlier))
        with m.If(valid[1]):
            m.d.sync += before[1].eq(before[0])

        with m.If(valid[2]):
            m.d.sync += forwards.eq(before[1][0] & add[2])
            with m.If(~add[2]):
                m.d.sync += base.eq(0)
            with m.Elif(before[1][1]):
                m.d.sync += base.eq(results[0])
            with m.Elif(before[1][2]):
                m.d.sync += base.eq(results[1])
            with m.Else():
                m.d.sync += base.eq(data[self._bank(address[2])])
        result = Signal.like(update.data)
        origin = Mux(forwards, results[0], base)
        lanes = [slice(i, i + LANE_BITS) for i in range(0, len(base), LANE_BITS)]
        m.d.comb += result.eq(Cat((origin[lane] + addend[3][lane])[:LANE_BITS] for lane in lanes))
        with m.If(valid[3]):
            m.d.sync += results[0].eq(result)
        with m.If(valid[4]):
            m.d.sync += results[1].eq(results[0])
        return SimpleNamespace(valid=valid, address=address, result=result)

    def _bank_reads(
        self,
        m: Module,
        bank: int,
        port: memory.ReadPort.Signature,
        data: Signal,
        stages: SimpleNamespace,
    ) -> None:
        """The bank's read port serves, in the cycle after the request, the update or one reader."""
        update = self.update
        update_reads = Signal(name=f"update_reads_{bank}")
        m.d.comb += update_reads.eq(
            update.valid & update.add & (self._bank(update.address) == bank)
        )
        granted = self._take_turns(m, f"read_{bank}", self.reads, bank, update_reads)
        reads = Signal(name=f"reads_{bank}")
        reader = Signal(len(self.reads), name=f"reader_{bank}")
        m.d.sync += [reads.eq(update_reads | granted.any()), reader.eq(granted)]
        m.d.comb += [port.en.eq(reads), port.addr.eq(stages.address[0])]
        for k, requester in enumerate(self.reads):
            row = Signal(self._row_bits, name=f"row_{bank}_{k}", reset_less=True)
            with m.If(granted[k]):
                m.d.sync += row.eq(self._row(requester.address))
            with m.If(reader[k]):
                m.d.comb += port.addr.eq(row)

        fetched = Signal(name=f"fetched_{bank}")
        m.d.sync += fetched.eq(reads)
        with m.If(fetched):
            m.d.sync += data.eq(port.data)

    def _held_write(self, m: Module, k: int, port: wiring.PureInterface) -> SimpleNamespace:
        """Registers of a write in the cycle after its acceptance, in which it is written."""
        held = SimpleNamespace(
            row=Signal(self._row_bits, name=f"write_row_{k}", reset_less=True),
            data=Signal.like(port.data, name=f"write_data_{k}", reset_less=True),
            strobe=Signal.like(port.strobe, name=f"write_strobe_{k}", reset_less=True),
        )
        with m.If(port.valid):  # the last values presented are those accepted
            m.d.sync += [
                held.row.eq(self._row(port.address)),
                held.data.eq(port.data),
                held.strobe.eq(port.strobe),
            ]
        return held

    def _bank_writes(
        self,
        m: Module,
        bank: int,
        port: memory.WritePort.Signature,
        update: SimpleNamespace,
        held: Sequence[SimpleNamespace],
    ) -> None:
        blocked = Signal(name=f"update_comes_{bank}")  # in the cycle after this one
        update_writes = Signal(name=f"update_writes_{bank}")
        m.d.comb += blocked.eq(update.valid[2] & (self._bank(update.address[2]) == bank))
        m.d.sync += update_writes.eq(blocked)
        granted = self._take_turns(m, f"write_{bank}", self.writes, bank, blocked)
        writer = Signal(len(held), name=f"writer_{bank}")
        m.d.sync += writer.eq(granted)
        strobe = Signal(self._config.columns, name=f"strobe_{bank}")
        m.d.comb += [
            strobe.eq(update_writes.replicate(len(strobe))),
            port.addr.eq(self._row(update.address[3])),
            port.data.eq(update.result),
            port.en.eq(strobe & (~self.inhibit).replicate(len(strobe))),
        ]
        for k, write in enumerate(held):
            with m.If(writer[k]):
                m.d.comb += [
                    strobe.eq(write.strobe),
                    port.addr.eq(write.row),
                    port.data.eq(write.data),
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
        """Data of a read come from its bank's register, chosen in the third cycle."""
        for k, port in enumerate(self.reads):
            accepted = Signal(READ_LATENCY, name=f"accepted_{k}")
            bank = [
                Signal(range(len(data)), name=f"answer_bank_{k}_{i}", reset_less=True)
                for i in (1, 2, 3)
            ]
            answer = Signal.like(port.data, name=f"answer_{k}", reset_less=True)
            m.d.sync += [
                accepted.eq(Cat(port.valid & port.ready, accepted)),
                bank[0].eq(self._bank(port.address)),
                bank[1].eq(bank[0]),
                bank[2].eq(bank[1]),
            ]
            with m.If(accepted[-2]):
                m.d.sync += answer.eq(data[bank[2]])
            m.d.comb += [port.data_valid.eq(accepted[-1]), port.data.eq(answer)]

    def _pause(self, m: Module) -> None:
        """Counts, for each port, how long its request has waited."""
        impatient = []
        for k, port in enumerate([*self.reads, *self.writes]):
            waited = Signal(range(PATIENCE), name=f"waited_{k}")
            impatient.append(Signal(name=f"impatient_{k}"))  # it has waited for PATIENCE cycles
            with m.If(~port.valid | port.ready):
                m.d.sync += [waited.eq(0), impatient[k].eq(0)]
            with m.Elif(waited != PATIENCE - 1):
                m.d.sync += waited.eq(waited + 1)
            with m.Else():
                m.d.sync += impatient[k].eq(1)
        m.d.comb += self.update.pause.eq(Cat(impatient).any())
