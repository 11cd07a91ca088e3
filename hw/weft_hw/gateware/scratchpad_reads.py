"""How reads of a scratchpad choose their bytes among the lines that its banks hold.

An access of one line at any byte address takes bytes of two lines, one even and one odd: of the
line in which it begins those from its first one on, and of the line after it those before that
place. So each place of a line has one byte of it; what is left is to find it among the banks'
lines, and to rotate them. There are two ways, as fast as each other (:class:`Scratchpad`'s timing):
a reader chooses among the lines of all banks (:func:`choose_among_lines`), or banks choose between
their two lines for all readers (:func:`placed_bytes`), and a reader among the banks
(:func:`choose_among_banks`).
"""

from collections.abc import Collection, Sequence
from types import SimpleNamespace

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.utils import exact_log2

from weft_hw.gateware.choice import numbered, selected

__all__ = ["choose_among_banks", "choose_among_lines", "placed_bytes", "rotated"]

Lines = tuple[Value, Value]
"""What the even and the odd memory of a bank have read, in the order of addresses."""


def choose_among_lines(
    m: Module,
    i: int,
    port: wiring.PureInterface,
    taken: SimpleNamespace,
    lines: Sequence[Lines],
) -> None:
    """Reader i: choose each byte of a line by sub-bank and bank, register, rotate, register.

    Parameters
    ----------
    port : ReadPort
        Its ``data`` and ``data_valid`` are driven.
    taken : SimpleNamespace
        The read in the cycle after its acceptance, as the scratchpad has it.
    lines : sequence of Lines
        By bank.
    """
    line = len(lines[0][0]) // 8
    offset_bits = exact_log2(line)
    fetched, chosen = Signal(name=f"read_{i}_fetched"), Signal(name=f"read_{i}_chosen")
    offsets = [Signal(offset_bits, name=f"read_{i}_offset_{k}", reset_less=True) for k in (2, 3)]
    m.d.sync += [fetched.eq(taken.valid), chosen.eq(fetched), port.data_valid.eq(chosen)]
    offset, parity = taken.first_byte[:offset_bits], taken.first_byte[offset_bits]
    with m.If(taken.valid):
        m.d.sync += offsets[0].eq(offset)
    with m.If(fetched):
        m.d.sync += offsets[1].eq(offsets[0])

    word = Signal(8 * line, name=f"read_{i}_word", reset_less=True)
    for place in range(line):
        bits = slice(8 * place, 8 * place + 8)
        side = parity ^ (offset > place)
        number = Mux(side, taken.number[1], taken.number[0])
        source = Signal(len(number) + 1, name=f"read_{i}_source_{place}", reset_less=True)
        with m.If(taken.valid):
            m.d.sync += source.eq(Cat(number, side))
        data = [each[bits] for side_lines in zip(*lines) for each in side_lines]
        with m.If(fetched):
            m.d.sync += word[bits].eq(numbered(source, data))

    data = Signal(8 * line, reset_less=True, name=f"read_{i}_data")
    with m.If(chosen):
        m.d.sync += data.eq(rotated(word, offsets[1]))
    m.d.comb += port.data.eq(data)


def placed_bytes(
    m: Module, accepted: Sequence[SimpleNamespace], lines: Sequence[Lines], widths: Collection[int]
) -> dict[int, list[Value]]:
    """By width of a read: what each bank has for it, each byte at its place modulo the width.

    Every bank registers a line's width of the two ``lines`` that it has read for one of the
    ``accepted`` reads, and chooses from that for narrower widths, all of them powers of two.
    """
    line_bytes = len(lines[0][0]) // 8
    placed: dict[int, list[Value]] = {width: [] for width in widths}
    for bank, (even, odd) in enumerate(lines):
        name = f"bank_{bank}"
        here = Cat(taken.at[0][bank] | taken.at[1][bank] for taken in accepted)
        read = Signal(name=f"{name}_read")
        first_byte = Signal.like(accepted[0].first_byte, name=f"{name}_first_byte")
        line = Signal(8 * line_bytes, name=f"{name}_line", reset_less=True)
        m.d.sync += read.eq(here.any())
        with m.If(here.any()):
            m.d.sync += first_byte.eq(selected(here, [t.first_byte for t in accepted]))
        sides = _parts(m, f"{name}_side", first_byte, line_bytes)
        with m.If(read):
            for place, side in enumerate(sides):
                bits = slice(8 * place, 8 * place + 8)
                m.d.sync += line[bits].eq(Mux(side, odd[bits], even[bits]))
        for width, banks in placed.items():
            if width == line_bytes:
                banks.append(line)
                continue
            chosen = Signal(8 * width, name=f"{name}_bytes_{width}")
            parts = _parts(m, f"{name}_part_{width}", first_byte, width)
            for place, part in enumerate(parts):
                within = Signal(len(part) - 1, name=f"{name}_within_{width}_{place}")
                with m.If(read):
                    m.d.sync += within.eq(part[:-1])
                data = [line.word_select(k, 8) for k in range(place, line_bytes, width)]
                m.d.comb += chosen.word_select(place, 8).eq(numbered(within, data))
            banks.append(chosen)
    return placed


def choose_among_banks(
    m: Module,
    i: int,
    port: wiring.PureInterface,
    taken: SimpleNamespace,
    banks: Sequence[Value],
) -> None:
    """Reader i: choose each byte by bank, of what :func:`placed_bytes` has, rotate, register."""
    width = len(banks[0]) // 8
    fetched = SimpleNamespace(
        valid=Signal(name=f"read_{i}_fetched"),
        number=[
            Signal.like(number, name=f"read_{i}_fetched_number_{side}")
            for side, number in enumerate(taken.number)
        ],
        first_byte=Signal.like(taken.first_byte, name=f"read_{i}_fetched_byte"),
    )
    chosen = Signal(name=f"read_{i}_chosen")
    offset = Signal(exact_log2(width), name=f"read_{i}_offset", reset_less=True)
    m.d.sync += [
        fetched.valid.eq(taken.valid),
        chosen.eq(fetched.valid),
        port.data_valid.eq(chosen),
    ]
    with m.If(taken.valid):
        m.d.sync += fetched.first_byte.eq(taken.first_byte)
        m.d.sync += [ours.eq(its) for ours, its in zip(fetched.number, taken.number)]
    with m.If(fetched.valid):
        m.d.sync += offset.eq(fetched.first_byte)

    word = Signal(8 * width, name=f"read_{i}_word")
    parts = _parts(m, f"read_{i}_part", fetched.first_byte, width)
    for place, part in enumerate(parts):
        number = Mux(part[-1], fetched.number[1], fetched.number[0])
        source = Signal(len(number), name=f"read_{i}_source_{place}", reset_less=True)
        with m.If(fetched.valid):
            m.d.sync += source.eq(number)
        data = [bank.word_select(place, 8) for bank in banks]
        m.d.comb += word.word_select(place, 8).eq(numbered(source, data))

    data = Signal(8 * width, reset_less=True, name=f"read_{i}_data")
    with m.If(chosen):
        m.d.sync += data.eq(rotated(word, offset))
    m.d.comb += port.data.eq(data)


def _parts(m: Module, name: str, first_byte: Value, width: int) -> list[Signal]:
    """By place: which part of that width of two lines, even and odd, has the byte for it.

    An access of that width takes, of the part in which it begins, the bytes from its own first
    one on, and those before that place of the part after it.
    """
    bits = exact_log2(width)
    first = first_byte[bits:]
    after = Signal.like(first, name=f"{name}_after")
    parts = [Signal.like(first, name=f"{name}_{place}") for place in range(width)]
    m.d.comb += after.eq(first + 1)
    for part, before in zip(parts, _numbers_below(first_byte[:bits])):
        m.d.comb += part.eq(Mux(before, after, first))
    return parts


def _numbers_below(value: Value) -> list[Value]:
    """Whether each number that has as many bits is below the value, without comparators."""
    below: list[Value] = [Const(0, 1)]
    for bit in value:
        below = [bit | one for one in below] + [bit & one for one in below]
    return below


def rotated(data: Value, places: Value) -> Value:
    """Byte k is byte k + ``places`` of the data, after the last one the first again."""
    for bit, moves in enumerate(places):
        data = Mux(moves, data.rotate_right(8 << bit), data)
    return data
