"""Banked scratchpad memory: accesses at any byte address, one read and one write port a bank."""

from amaranth.hdl import Cat, Module, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from weft_hw.gateware.arbiter import BankArbiter
from weft_hw.gateware.interfaces import ReadPort, WritePort

__all__ = ["Scratchpad"]

SUB_BANKS = 2  # even and odd lines: an access as wide as a line touches at most one of each


def _log2(value: int) -> int:
    return value.bit_length() - 1


class _Access:
    """Where an access of one line at any byte address falls.

    ``offset`` is the first byte's place in its line, ``parity`` that line's sub-bank. For each
    sub-bank s (0 even, 1 odd) ``bank[s]`` and ``index[s]`` are the bank and the row in it. The line
    after the last one of a bank is the first of the next bank, so that the two may differ.
    """

    def __init__(
        self, m: Module, name: str, address: Value, *, offset_bits: int, index_bits: int
    ) -> None:
        rows_bits = len(address) - offset_bits - _log2(SUB_BANKS)  # rows of all banks together
        self.offset = address[:offset_bits]
        self.parity = address[offset_bits]
        row = address[offset_bits + 1 :]
        even = Signal(rows_bits, name=f"{name}_even_row")
        m.d.comb += even.eq(row + self.parity)  # wraps at the end of the memory
        self.index = (even[:index_bits], row[:index_bits])
        self.bank = (even[index_bits:], row[index_bits:])


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
    banks never meet, and one that is refused is served after at most one access of each other.

    Timing: data come two cycles after acceptance (memory, then selection and rotation). Writes
    happen in the cycle of acceptance. A read accepted in the same cycle as a write to the same byte
    returns the old or the new one.

    Parameters
    ----------
    size_bytes, banks, line_bytes : int
        Powers of two, at least four lines a bank.
    readers, writers : int
        Number of ports.

    Members
    -------
    reads : In(ReadPort(address_bits, line_bytes)).array(readers)
    writes : In(WritePort(address_bits, line_bytes)).array(writers)
    inhibit : In(1)
        Writes are accepted but change nothing.

    Raises
    ------
    ValueError
        If a parameter is not allowed.
    """

    def __init__(
        self, size_bytes: int, banks: int, line_bytes: int, readers: int, writers: int
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
        self._banks = banks
        self._line_bytes = line_bytes
        self._rows = size_bytes // (banks * SUB_BANKS * line_bytes)
        address_bits = _log2(size_bytes)
        super().__init__(
            {
                "reads": In(ReadPort(address_bits, line_bytes)).array(readers),
                "writes": In(WritePort(address_bits, line_bytes)).array(writers),
                "inhibit": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        names = [(bank, side) for bank in range(self._banks) for side in range(SUB_BANKS)]
        readers, writers = {}, {}
        for bank, side in names:
            cells: memory.Memory = memory.Memory(
                shape=unsigned(8 * self._line_bytes), depth=self._rows, init=[]
            )
            m.submodules[f"bank_{bank}_{'odd' if side else 'even'}"] = cells
            readers[bank, side] = cells.read_port()
            writers[bank, side] = cells.write_port(granularity=8)
        self._elaborate_reads(m, readers)
        self._elaborate_writes(m, writers)
        return m

    def _access(self, m: Module, name: str, address: Value) -> _Access:
        return _Access(
            m,
            name,
            address,
            offset_bits=_log2(self._line_bytes),
            index_bits=_log2(self._rows),
        )

    def _arbitrate(
        self, m: Module, name: str, ports: list, places: list[_Access], uses: list[tuple]
    ) -> dict[tuple[int, int, int], Signal]:
        """Connect an arbiter; the result is high if a port is served by (bank, sub-bank)."""
        arbiter = BankArbiter(requesters=len(ports), banks=self._banks)
        m.submodules[f"{name}_arbiter"] = arbiter
        served = {}
        for i, port in enumerate(ports):
            wanted = []
            for bank in range(self._banks):
                for side in range(SUB_BANKS):
                    want = Signal(name=f"{name}_{i}_wants_{bank}_{side}")
                    here = places[i].bank[side] == bank if self._banks > 1 else 1
                    m.d.comb += want.eq(uses[i][side] & here)
                    wanted.append(want)
                    served[i, bank, side] = Signal(name=f"{name}_{i}_at_{bank}_{side}")
            grant = getattr(arbiter, f"grant_{i}")
            m.d.comb += [
                getattr(arbiter, f"valid_{i}").eq(port.valid),
                getattr(arbiter, f"needs_{i}").eq(
                    Cat(Cat(wanted[SUB_BANKS * b :][:SUB_BANKS]).any() for b in range(self._banks))
                ),
                port.ready.eq(grant),
            ]
            for bank in range(self._banks):
                for side in range(SUB_BANKS):
                    m.d.comb += served[i, bank, side].eq(wanted[SUB_BANKS * bank + side] & grant)
        return served

    def _elaborate_reads(self, m: Module, cells: dict) -> None:
        ports = list(self.reads)
        places, uses = [], []
        for i, port in enumerate(ports):
            place = self._access(m, f"read_{i}", port.address)
            both = place.offset.any()  # an aligned access needs one line only
            places.append(place)
            uses.append((~place.parity | both, place.parity | both))
        served = self._arbitrate(m, "read", ports, places, uses)

        for (bank, side), port in cells.items():
            here = [served[i, bank, side] for i in range(len(ports))]
            m.d.comb += port.en.eq(Cat(here).any())
            m.d.comb += port.addr.eq(places[-1].index[side])
            for i in range(len(ports) - 1):
                with m.If(here[i]):
                    m.d.comb += port.addr.eq(places[i].index[side])

        for i, port in enumerate(ports):
            self._elaborate_selection(m, i, port, places[i], cells)

    def _elaborate_selection(
        self, m: Module, i: int, port: wiring.PureInterface, place: _Access, cells: dict
    ) -> None:
        """The second read cycle: choose each sub-bank's word, rotate, register."""
        line = self._line_bytes
        pending = Signal(name=f"read_{i}_pending")
        first_byte = Signal(_log2(line) + 1, reset_less=True, name=f"read_{i}_first_byte")
        m.d.sync += [pending.eq(port.valid & port.ready), port.data_valid.eq(pending)]
        with m.If(port.valid & port.ready):
            m.d.sync += first_byte.eq(Cat(place.offset, place.parity))

        words = []
        for side in range(SUB_BANKS):
            if self._banks == 1:
                words.append(cells[0, side].data)
                continue
            bank = Signal(_log2(self._banks), reset_less=True, name=f"read_{i}_bank_{side}")
            word = Signal(8 * line, name=f"read_{i}_word_{side}")
            with m.If(port.valid & port.ready):
                m.d.sync += bank.eq(place.bank[side])
            with m.If(pending), m.Switch(bank):  # idle readers cost the simulation nothing
                for number in range(self._banks):
                    with m.Case(number):
                        m.d.comb += word.eq(cells[number, side].data)
            words.append(word)

        data = Signal(8 * line, reset_less=True, name=f"read_{i}_data")
        both = Cat(words[0], words[1], words[0])
        with m.If(pending), m.Switch(first_byte):
            for position in range(2 * line):
                with m.Case(position):
                    m.d.sync += data.eq(both[8 * position : 8 * (position + line)])
        m.d.comb += port.data.eq(data)

    def _elaborate_writes(self, m: Module, cells: dict) -> None:
        line = self._line_bytes
        ports = list(self.writes)
        places, uses, enables, rotated = [], [], [], []
        for i, port in enumerate(ports):
            place = self._access(m, f"write_{i}", port.address)
            spread = Signal(2 * line, name=f"write_{i}_spread")
            data = Signal(8 * line, name=f"write_{i}_rotated")
            with m.If(port.valid), m.Switch(place.offset):
                for k in range(line):
                    with m.Case(k):
                        split = 8 * (line - k)
                        m.d.comb += [
                            data.eq(Cat(port.data[split:], port.data[:split])),
                            spread.eq(port.strobe << k),
                        ]
            lines = (spread[:line], spread[line:])
            mask = [Signal(line, name=f"write_{i}_mask_{side}") for side in range(SUB_BANKS)]
            with m.If(place.parity):
                m.d.comb += [mask[0].eq(lines[1]), mask[1].eq(lines[0])]
            with m.Else():
                m.d.comb += [mask[0].eq(lines[0]), mask[1].eq(lines[1])]
            places.append(place)
            uses.append((mask[0].any(), mask[1].any()))
            enables.append(mask)
            rotated.append(data)
        served = self._arbitrate(m, "write", ports, places, uses)

        for bank in range(self._banks):
            # A bank serves one writer, so that both sub-banks take the same writer's data.
            data = Signal(8 * line, name=f"write_data_{bank}")
            m.d.comb += data.eq(rotated[-1])
            for side in range(SUB_BANKS):
                port = cells[bank, side]
                m.d.comb += [port.addr.eq(places[-1].index[side]), port.data.eq(data)]
            for i in range(len(ports)):
                here = [served[i, bank, side] for side in range(SUB_BANKS)]
                if i != len(ports) - 1:
                    with m.If(Cat(here).any()):
                        m.d.comb += data.eq(rotated[i])
                        for side in range(SUB_BANKS):
                            m.d.comb += cells[bank, side].addr.eq(places[i].index[side])
                for side in range(SUB_BANKS):
                    with m.If(here[side] & ~self.inhibit):
                        m.d.comb += cells[bank, side].en.eq(enables[i][side])
