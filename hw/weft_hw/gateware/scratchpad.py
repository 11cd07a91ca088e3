"""Banked scratchpad memory: accesses at any byte address, one read and one write port a bank."""

from collections.abc import Sequence
from types import SimpleNamespace

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In
from amaranth.utils import ceil_log2, exact_log2

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.arbiter import BankArbiter
from weft_hw.gateware.block_memory import NO_COLLISION
from weft_hw.gateware.choice import selected
from weft_hw.gateware.interfaces import WRITE_LATENCY, ReadPort, WritePort
from weft_hw.gateware.scratchpad_reads import (
    choose_among_banks,
    choose_among_lines,
    placed_bytes,
    rotated,
)

__all__ = ["Scratchpad", "activation_banks_read", "weight_banks_read"]

SUB_BANKS = 2  # even and odd lines: an access as wide as a line touches at most one of each


class _Access:
    """Where an access of one line at any byte address falls.

    ``offset`` is the first byte's place in its line, ``parity`` that line's sub-bank. For each
    sub-bank s (0 even, 1 odd) ``bank[s]`` (one-hot), ``number[s]`` (the same in binary) and
    ``index[s]`` are the bank and the row in it. The line after the last one of a bank is the first
    of the next bank: if the first line is the bank's last one, and odd, the even one lies there.
    """

    def __init__(
        self, m: Module, name: str, address: Value, *, offset_bits: int, index_bits: int, banks: int
    ) -> None:
        self.offset = address[:offset_bits]
        self.parity = address[offset_bits]
        index = address[offset_bits + 1 :][:index_bits]
        number = address[offset_bits + 1 + index_bits :]
        even = Signal(index_bits, name=f"{name}_even_row")
        crosses = Signal(name=f"{name}_crosses")
        odd_bank = Signal(banks, name=f"{name}_odd_bank")
        even_bank = Signal(banks, name=f"{name}_even_bank")
        m.d.comb += [
            even.eq(index + self.parity),
            crosses.eq(index.all() & self.parity),
            odd_bank.eq(Cat((number == bank) if banks > 1 else 1 for bank in range(banks))),
            even_bank.eq(Mux(crosses, odd_bank.rotate_left(1), odd_bank)),
        ]
        self.number = (Mux(crosses, number + 1, number)[: len(number)], number)
        self.index = (even, index)
        self.bank = (even_bank, odd_bank)

    def wanted(self, line_bytes: int, taken: int) -> tuple[Value, Value]:
        """The masks of banks that a read of so many bytes needs, by sub-bank."""
        both = self.offset > line_bytes - taken  # an aligned read needs one line only
        return (
            Mux(~self.parity | both, self.bank[0], 0),
            Mux(self.parity | both, self.bank[1], 0),
        )


def activation_banks_read(
    m: Module, name: str, config: AcceleratorConfig, address: Value, taken: int
) -> Value:
    """The mask of banks that a read of ``taken`` bytes of the activation scratchpad needs."""
    bank_bytes, line = config.activation_bank_bytes, config.left_port_bytes
    return _banks_read(m, name, address, config.activation_banks, bank_bytes, line, taken)


def weight_banks_read(m: Module, name: str, config: AcceleratorConfig, address: Value) -> Value:
    """The mask of banks that a read of the weight scratchpad needs."""
    bank_bytes, line = config.weight_bank_bytes, config.line_bytes
    return _banks_read(m, name, address, config.weight_banks, bank_bytes, line, line)


def _banks_read(
    m: Module, name: str, address: Value, banks: int, bank_bytes: int, line: int, taken: int
) -> Value:
    place = _Access(
        m,
        name,
        address[: exact_log2(banks * bank_bytes)],
        offset_bits=exact_log2(line),
        index_bits=exact_log2(bank_bytes // (SUB_BANKS * line)),
        banks=banks,
    )
    even, odd = place.wanted(line, taken)
    return even | odd


class Scratchpad(wiring.Component):
    """Byte-addressed memory of several banks with any number of readers and writers.

    An address is (bank, row, sub-bank, byte), highest bits first: a bank holds consecutive
    addresses, and within it lines of ``line_bytes`` alternate between two sub-banks, each a memory
    with one read and one write port. So any ``line_bytes`` consecutive bytes lie in one line of
    each sub-bank and are read or written in one cycle. Addresses wrap at the end of the memory;
    checking them is the requester's task.

    Flow control: each bank serves one reader and one writer a cycle, chosen by a
    :class:`BankArbiter` for all reads and one for all writes. An access that straddles two banks
    needs both; a write needs only the banks of the bytes that it strobes. Requesters in different
    banks never meet, and one that is refused is served after at most one access of each other. A
    write is accepted into a register of its port, and competes from there.

    Timing::

        read     0 accepted | 1 address chosen, memory | 2 bank chosen | 3 rotated | 4 = `data`
        write    0 accepted, rotated | 1 arbitrated (and later) | 2 port chosen, memory

    That is where every reader chooses for itself. With ``choose_by_bank`` a bank, which serves one
    reader at a time, chooses between its two lines for all of them in cycle 2, beside its memories,
    and a reader chooses in cycle 3, among as few bytes as it takes, and rotates them.

    A read sees what was accepted ``WRITE_LATENCY`` cycles before it, or earlier; what it returns of
    bytes written more recently is not defined. There are at most ``WRITE_LATENCY - 1`` writers.

    Parameters
    ----------
    size_bytes, banks, line_bytes : int
        Powers of two, at least four lines a bank.
    readers, writers : int
        Number of ports.
    read_bytes, write_bytes : sequence of int
        Bytes that each reader takes of a line's width, from the first one on, and each writer
        gives: the others are undefined, and never written. Without it all.
    byte_order : sequence of int
        The bytes of a line as a row of the memories has them, lowest bits first; without it from
        the first one on. A block RAM has a few bytes of a row: if they are those among which narrow
        accesses choose, no choice leaves it.
    choose_by_bank : bool
        Banks choose between their lines; always so where a reader takes less than a line. It takes
        fewer look-up tables; which one routes better differs (docs/measurements.md).
    told_banks : bool
        Readers say which banks they need, who may know it before they ask.

    Members
    -------
    reads : In(ReadPort(address_bits, line_bytes)).array(readers)
    writes : In(WritePort(address_bits, line_bytes)).array(writers)
    read_banks : In(banks), an array of readers
        With ``told_banks``: what :func:`activation_banks_read`, or that of the weights, says of the
        address.
    inhibit : In(1)
        Writes are accepted but change nothing.

    Raises
    ------
    ValueError
        If a parameter is not allowed.
    """

    def __init__(
        self,
        size_bytes: int,
        banks: int,
        line_bytes: int,
        readers: int,
        writers: int,
        *,
        read_bytes: Sequence[int] | None = None,
        write_bytes: Sequence[int] | None = None,
        byte_order: Sequence[int] | None = None,
        choose_by_bank: bool = False,
        told_banks: bool = False,
    ) -> None:
        for name, value in (("banks", banks), ("line_bytes", line_bytes)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"`{name}` must be a power of two, not {value}")
        if line_bytes < 2:
            raise ValueError(f"`line_bytes` must be at least 2, not {line_bytes}")
        smallest = 2 * SUB_BANKS * line_bytes * banks
        if size_bytes < smallest or size_bytes & (size_bytes - 1):
            raise ValueError(
                f"`size_bytes` must be a power of two from {smallest}, not {size_bytes}"
            )
        for name, value in (("readers", readers), ("writers", writers)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer, not {value}")
        if writers >= WRITE_LATENCY:
            raise ValueError(f"`writers` must be at most {WRITE_LATENCY - 1}, not {writers}")
        self._read_bytes = list(read_bytes or [line_bytes] * readers)
        self._write_bytes = list(write_bytes or [line_bytes] * writers)
        for name, ports, widths in (
            ("read_bytes", readers, self._read_bytes),
            ("write_bytes", writers, self._write_bytes),
        ):
            if len(widths) != ports or not all(0 < width <= line_bytes for width in widths):
                raise ValueError(
                    f"`{name}` must be {ports} numbers from 1 to {line_bytes}, not {widths}"
                )
        natural = list(range(line_bytes))
        if sorted(byte_order or natural) != natural:
            raise ValueError(f"`byte_order` must have 0 to {line_bytes - 1} once each")
        self._byte_order = None if byte_order is None else list(byte_order)
        self._banks = banks
        self._line_bytes = line_bytes
        self._rows = size_bytes // (banks * SUB_BANKS * line_bytes)
        address_bits = exact_log2(size_bytes)
        self._told = told_banks
        narrow = any(taken < line_bytes for taken in self._read_bytes)
        self.choose_by_bank = choose_by_bank or narrow
        members: dict[str, object] = {
            "reads": In(ReadPort(address_bits, line_bytes)).array(readers),
            "writes": In(WritePort(address_bits, line_bytes)).array(writers),
            "inhibit": In(1),
        }
        if told_banks:
            members["read_banks"] = In(banks).array(readers)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        names = [(bank, side) for bank in range(self._banks) for side in range(SUB_BANKS)]
        readers, writers = {}, {}
        for bank, side in names:
            cells: memory.Memory = memory.Memory(
                shape=unsigned(8 * self._line_bytes),
                depth=self._rows,
                init=[],
                attrs=NO_COLLISION,
            )
            m.submodules[f"bank_{bank}_{'odd' if side else 'even'}"] = cells
            readers[bank, side] = cells.read_port()
            writers[bank, side] = cells.write_port(granularity=8)
        self._elaborate_reads(m, readers)
        self._elaborate_writes(m, writers)
        return m

    def _as_row(self, line: Value) -> Value:
        """What belongs to the bytes of a line, in the order that the memories have."""
        return line if self._byte_order is None else self._permuted(line, self._byte_order)

    def _as_line(self, row: Value) -> Value:
        """The same from the memories' order back to that of addresses."""
        if self._byte_order is None:
            return row
        places = sorted(range(self._line_bytes), key=self._byte_order.__getitem__)
        return self._permuted(row, places)

    def _permuted(self, value: Value, order: Sequence[int]) -> Value:
        return Cat(value.word_select(byte, len(value) // self._line_bytes) for byte in order)

    def _access(self, m: Module, name: str, address: Value) -> _Access:
        return _Access(
            m,
            name,
            address,
            offset_bits=exact_log2(self._line_bytes),
            index_bits=exact_log2(self._rows),
            banks=self._banks,
        )

    def _arbitrate(
        self, m: Module, name: str, valid: list[Value], needs: list[Value]
    ) -> list[Signal]:
        """Connect an arbiter: a port needs a mask of banks; the result is a grant."""
        arbiter = BankArbiter(requesters=len(valid), banks=self._banks)
        m.submodules[f"{name}_arbiter"] = arbiter
        for i, (port_valid, port_needs) in enumerate(zip(valid, needs)):
            m.d.comb += [
                getattr(arbiter, f"valid_{i}").eq(port_valid),
                getattr(arbiter, f"needs_{i}").eq(port_needs),
            ]
        return [getattr(arbiter, f"grant_{i}") for i in range(len(valid))]

    def _elaborate_reads(self, m: Module, cells: dict) -> None:
        ports = list(self.reads)
        places, wanted = [], []
        for i, port in enumerate(ports):
            place = self._access(m, f"read_{i}", port.address)
            wants = tuple(Signal(self._banks, name=f"read_{i}_wants_{s}") for s in range(SUB_BANKS))
            wanted_here = place.wanted(self._line_bytes, self._read_bytes[i])
            m.d.comb += [want.eq(mask) for want, mask in zip(wants, wanted_here)]
            places.append(place)
            wanted.append(wants)
        needs: list[Value] = [wants[0] | wants[1] for wants in wanted]
        if self._told:
            needs = list(self.read_banks)
        grants = self._arbitrate(m, "read", [port.valid for port in ports], needs)

        accepted = []
        for i, (port, grant) in enumerate(zip(ports, grants)):
            m.d.comb += port.ready.eq(grant)
            accepted.append(self._accepted_read(m, i, grant, places[i], wanted[i]))
        for (bank, side), cell in cells.items():
            here = [taken.at[side][bank] for taken in accepted]
            rows = [taken.index[side] for taken in accepted]
            m.d.comb += [cell.en.eq(Cat(here).any()), cell.addr.eq(selected(here, rows))]
        lines = [
            (self._as_line(cells[bank, 0].data), self._as_line(cells[bank, 1].data))
            for bank in range(self._banks)
        ]
        if not self.choose_by_bank:
            for i, port in enumerate(ports):
                choose_among_lines(m, i, port, accepted[i], lines)
            return
        widths = [1 << ceil_log2(taken) for taken in self._read_bytes]
        placed = placed_bytes(m, accepted, lines, widths)
        for i, (port, width) in enumerate(zip(ports, widths)):
            choose_among_banks(m, i, port, accepted[i], placed[width])

    def _accepted_read(
        self, m: Module, i: int, grant: Value, place: _Access, wants: tuple[Value, ...]
    ) -> SimpleNamespace:
        """Registers of a read in the cycle after its acceptance."""
        taken = SimpleNamespace(
            valid=Signal(name=f"read_{i}_taken"),
            at=[Signal(self._banks, name=f"read_{i}_at_{s}") for s in range(SUB_BANKS)],
            index=[
                Signal.like(place.index[s], name=f"read_{i}_index_{s}", reset_less=True)
                for s in range(SUB_BANKS)
            ],
            number=[
                Signal.like(place.number[s], name=f"read_{i}_number_{s}", reset_less=True)
                for s in range(SUB_BANKS)
            ],
            first_byte=Signal(
                exact_log2(self._line_bytes) + 1, name=f"read_{i}_first_byte", reset_less=True
            ),
        )
        m.d.sync += taken.valid.eq(grant)
        with m.If(grant):
            m.d.sync += taken.first_byte.eq(Cat(place.offset, place.parity))
            for side in range(SUB_BANKS):
                m.d.sync += [
                    taken.index[side].eq(place.index[side]),
                    taken.number[side].eq(place.number[side]),
                    taken.at[side].eq(wants[side]),
                ]
        with m.Elif(taken.valid):
            m.d.sync += [at.eq(0) for at in taken.at]
        return taken

    def _elaborate_writes(self, m: Module, cells: dict) -> None:
        held = [self._held_write(m, i, port) for i, port in enumerate(self.writes)]
        needs = [w.needs for w in held]
        grants = self._arbitrate(m, "write", [w.valid for w in held], needs)
        granted = []
        for i, (port, write, grant) in enumerate(zip(self.writes, held, grants)):
            m.d.comb += [write.granted.eq(grant), port.ready.eq(~write.valid | grant)]
            granted.append(self._granted_write(m, i, write))

        for bank in range(self._banks):
            # A bank serves one writer, so that both sub-banks take the same writer's data.
            here = [write.at[0][bank] | write.at[1][bank] for write in granted]
            data = Signal(8 * self._line_bytes, name=f"write_data_{bank}")
            lines = [w.data.replicate(8 * self._line_bytes // len(w.data)) for w in granted]
            m.d.comb += data.eq(selected(here, lines))
            for side in range(SUB_BANKS):
                cell = cells[bank, side]
                at = [write.at[side][bank] & ~self.inhibit for write in granted]
                mask = selected(at, [write.mask[side] for write in granted])
                m.d.comb += [
                    cell.addr.eq(selected(here, [write.index[side] for write in granted])),
                    cell.data.eq(self._as_row(data)),
                    cell.en.eq(self._as_row(mask)),
                ]

    def _write_registers(self, i: int, stage: str) -> SimpleNamespace:
        line, sides = self._line_bytes, range(SUB_BANKS)
        width = 1 << ceil_log2(self._write_bytes[i])
        rows = exact_log2(self._rows)

        def name(what: str) -> str:
            return f"write_{i}_{stage}_{what}"

        return SimpleNamespace(
            data=Signal(8 * width, name=name("data"), reset_less=True),
            mask=[Signal(line, name=name(f"mask_{s}"), reset_less=True) for s in sides],
            index=[Signal(rows, name=name(f"index_{s}"), reset_less=True) for s in sides],
        )

    def _held_write(self, m: Module, i: int, port: wiring.PureInterface) -> SimpleNamespace:
        """The register into which a write is accepted, rotated as its lines have it.

        Of a narrow writer's bytes each has one place modulo their number: lines repeat them.
        """
        line = self._line_bytes
        place = self._access(m, f"write_{i}", port.address)
        held = self._write_registers(i, "held")
        held.valid = Signal(name=f"write_{i}_held")
        held.granted = Signal(name=f"write_{i}_granted")
        held.wants = [
            Signal(self._banks, name=f"write_{i}_wants_{s}", reset_less=True)
            for s in range(SUB_BANKS)
        ]
        held.needs = Signal(self._banks, name=f"write_{i}_needs", reset_less=True)
        data = Signal.like(held.data, name=f"write_{i}_rotated", reset_less=False)
        spread = Signal(2 * line, name=f"write_{i}_spread")
        m.d.comb += [
            data.eq(rotated(port.data[: len(data)], (-place.offset)[: exact_log2(len(data) // 8)])),
            spread.eq(port.strobe[: len(data) // 8] << place.offset),
        ]
        lines = (spread[:line], spread[line:])
        masks = [Mux(place.parity, lines[1 - side], lines[side]) for side in range(SUB_BANKS)]
        used = [lines[0].any(), lines[1].any()]
        with m.If(port.ready):
            m.d.sync += held.valid.eq(port.valid)
            with m.If(port.valid):
                m.d.sync += held.data.eq(data)
                wants = []
                for side in range(SUB_BANKS):
                    uses = Mux(place.parity, used[1 - side], used[side])
                    wants.append(Mux(uses, place.bank[side], 0))
                    m.d.sync += [
                        held.index[side].eq(place.index[side]),
                        held.mask[side].eq(masks[side]),
                        held.wants[side].eq(wants[side]),
                    ]
                m.d.sync += held.needs.eq(wants[0] | wants[1])
        return held

    def _granted_write(self, m: Module, i: int, held: SimpleNamespace) -> SimpleNamespace:
        """Registers of a write in the cycle in which it reaches the memory."""
        taken = self._write_registers(i, "taken")
        taken.at = [Signal(self._banks, name=f"write_{i}_at_{s}") for s in range(SUB_BANKS)]
        writes = Signal(name=f"write_{i}_taken")
        m.d.sync += writes.eq(held.granted)
        with m.If(held.granted):
            m.d.sync += taken.data.eq(held.data)
            for side in range(SUB_BANKS):
                m.d.sync += [
                    taken.mask[side].eq(held.mask[side]),
                    taken.index[side].eq(held.index[side]),
                    taken.at[side].eq(held.wants[side]),
                ]
        with m.Elif(writes):
            m.d.sync += [at.eq(0) for at in taken.at]
        return taken
