"""Accumulator rows as a transfer sees them: elements of 8, 16 or 32 bits, packed as in DRAM."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.transfer import packed_row_bits
from weft_hw.instructions import Element

__all__ = ["PackedPlace", "element_bits", "packed_chunk", "rotated", "unpacked_row"]

LANE_BITS = 32


def element_bits(element: Element) -> int:
    """Bits of an element of that width."""
    return 8 << element


class PackedPlace:
    """Where in its row a packed byte address lies; all of it combinational.

    Parameters
    ----------
    m : Module
    config : AcceleratorConfig
    name : str
        Prefix of the signals.
    local : Value
        The packed byte address.
    element : Value
        Element width.

    Attributes
    ----------
    row : Signal
        The accumulator row.
    place : Signal
        Byte in the packed row.
    left, size : Signal
        Packed bytes from there to the row's end; of a whole row.
    """

    def __init__(
        self, m: Module, config: AcceleratorConfig, name: str, local: Value, element: Value
    ) -> None:
        widest = packed_row_bits(config, Element.INT32)
        self.row = Signal(config.accumulator_address_bits, name=f"{name}_row")
        self.place = Signal(widest, name=f"{name}_place")
        self.left = Signal(widest + 1, name=f"{name}_left")
        self.size = Signal(widest + 1, name=f"{name}_size")
        with m.Switch(element):
            for width in Element:
                bits = packed_row_bits(config, width)
                with m.Case(width):
                    m.d.comb += [
                        self.size.eq(1 << bits),
                        self.row.eq(local[bits:]),
                        self.place.eq(local[:bits]),
                        self.left.eq((1 << bits) - local[:bits]),
                    ]


def rotated(m: Module, data: Value, places: Value) -> Value:
    """``data``, whose byte ``i`` becomes byte ``i + places`` modulo its (power of two) length."""
    for bit in range((len(data) // 8 - 1).bit_length()):
        level = Signal(len(data), name=f"rotated_{bit}")
        m.d.comb += level.eq(Mux(places[bit], data.rotate_left(8 << bit), data))
        data = level
    return data


def unpacked_row(m: Module, config: AcceleratorConfig, data: Value, element: Value) -> Signal:
    """A row of sign-extended elements; lane c's begins at byte ``c * width`` of the data.

    The data repeat beyond their length: where they are shorter than a packed row, they serve each
    lane that a strobe may choose.
    """
    row = Signal(LANE_BITS * config.columns, name="unpacked_row")
    with m.Switch(element):
        for width in Element:
            bits = element_bits(width)
            with m.Case(width):
                for lane in range(config.columns):
                    start = lane * bits % len(data)
                    value = data[start : start + bits].as_signed()
                    m.d.comb += row.word_select(lane, LANE_BITS).eq(value)
    return row


def packed_chunk(
    m: Module, config: AcceleratorConfig, row: Value, element: Value, chunk: Value
) -> Signal:
    """Bytes ``chunk * bus_bytes`` and on of a row packed to elements of that width, saturated.

    Where a packed row is shorter than a beat, the bytes behind it are undefined.
    """
    result = Signal(config.bus_width, name="packed_chunk")
    lanes = [row.word_select(lane, LANE_BITS).as_signed() for lane in range(config.columns)]
    with m.Switch(element):
        for width in Element:
            with m.Case(width):
                packed = Cat(_saturated(lane, element_bits(width)) for lane in lanes)
                if len(packed) <= config.bus_width:
                    m.d.comb += result.eq(packed)
                else:
                    m.d.comb += result.eq(packed.word_select(chunk, config.bus_width))
    return result


def _saturated(value: Value, bits: int) -> Value:
    """The nearest signed value of that many bits."""
    if bits == len(value):
        return value
    sign, above = value[-1], value[bits - 1 : -1]
    fits = Mux(sign, above.all(), ~above.any())
    bound = Cat((~sign).replicate(bits - 1), sign)
    saturated: Value = Mux(fits, value[:bits], bound).as_signed()
    assert saturated.shape() == signed(bits)
    return saturated
