"""One array element's product of its left operands and the weights that it holds.

A weight byte holds one, two or four weights; an element of an array with ``k`` operands an element
has ``k`` operand slots. Where a byte is split into ``n`` weights, slot j holds operand j * n // k,
so that a slot's operand belongs to the same bits of the byte in whatever mode::

    k = 4     slot 0      slot 1      slot 2      slot 3
    n = 1     x[0]        x[0]        x[0]        x[0]        x[0] * byte
    n = 2     x[0]        x[0]        x[1]        x[1]        x[0] * low half + x[1] * high half
    n = 4     x[0]        x[1]        x[2]        x[3]        one two-bit weight each

``element = "multiplier"`` multiplies slot 0 by a whole weight and adds products of the narrow
weights that slots 1 to 3 have; ``"slices"`` adds four products by two bits each, shifted as the
mode wants it. Both give the same sums.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed

from weft_hw.config import AcceleratorConfig

__all__ = ["LEFT_BITS", "TOP_BITS", "ElementArithmetic", "register"]

LEFT_BITS = 9  # an int8 operand minus an int8 zero point
TOP_BITS = 9

SLICES = 4
SLICE_BITS = 2
SLICE_PRODUCT_BITS = LEFT_BITS + SLICE_BITS


class ElementArithmetic:
    """What the elements of one array have in common.

    Parameters
    ----------
    config : AcceleratorConfig

    Attributes
    ----------
    slots : int
        Left operands an element takes a cycle.
    stages : int
        Cycles from the operands, and the weights that are active with them, to their product.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.slots = config.operands_per_element
        self._slices = config.element == "slices"
        self._modes = range(len(config.weight_modes))
        self.stages = 2 if self._slices or self.slots > 1 else 1

    def active(
        self, m: Module, element: str, shadow: Value, swap: Value, split: Value
    ) -> list[Value]:
        """Registers of the active weights, which ``swap`` takes from the shadow.

        ``split`` is the binary logarithm of the number of weights that the byte holds.
        """
        if self._slices:
            weights = self._slice_weights(shadow, split)
        else:
            weights = [self._slot_weight(shadow, split, slot) for slot in range(self.slots)]
        names = [f"active_{element}"] + [f"active_{element}_{i}" for i in range(1, len(weights))]
        registers = [
            Signal(weight.shape(), name=name, reset_less=True)
            for name, weight in zip(names, weights, strict=True)
        ]
        with m.If(swap):
            m.d.sync += [after.eq(now) for after, now in zip(registers, weights, strict=True)]
        return list(registers)

    def product(
        self, m: Module, element: str, operand: Value, weights: list[Value], splits: list[Value]
    ) -> Value:
        """The product, ``stages`` registers behind ``operand``.

        ``splits`` are those of the active weights, by stage.
        """
        slots = [
            operand[LEFT_BITS * slot : LEFT_BITS * (slot + 1)].as_signed()
            for slot in range(self.slots)
        ]
        if self._slices:
            return self._sliced(m, element, slots, weights, splits)
        whole = register(m, f"product_{element}", slots[0] * weights[0])
        if self.slots == 1:
            return whole
        narrow = [_narrow_product(x, weight) for x, weight in zip(slots[1:], weights[1:])]
        others: Value = register(m, f"narrow_{element}", narrow[self.slots // 2 - 1])
        if self.slots == 4:
            others = others + register(m, f"narrowest_{element}", narrow[0] + narrow[2])
        return register(m, f"products_{element}", whole + others)

    # The parts of a weight byte -----------------------------------------------------------------

    def _slot_weight(self, byte: Value, split: Value, slot: int) -> Value:
        """The weight by which a slot is multiplied; 0 where another slot has the same operand."""
        weight: Value = Const(0, signed(1)) if slot else byte
        for mode in self._modes[1:]:
            count, bits = 1 << mode, 8 >> mode
            number, repeats = divmod(slot * count, self.slots)
            if not repeats:
                part = byte[bits * number : bits * (number + 1)].as_signed()
                weight = Mux(split == mode, part, weight)
        if not slot:
            return weight
        widest = 8 * (slot & -slot) // self.slots
        return weight[:widest].as_signed()

    def _slice_weights(self, byte: Value, split: Value) -> list[Value]:
        """Two bits each, as a signed number of three: negative where the slice ends a weight."""
        weights = []
        for number in range(SLICES - 1):
            end = SLICE_BITS * (number + 1)
            negative: Value = Const(0, 1)
            for mode in self._modes[1:]:
                if end % (8 >> mode) == 0:
                    negative = negative | (split == mode)
            bits = byte[end - SLICE_BITS : end]
            weights.append(Cat(bits, negative & bits[-1]).as_signed())
        return [*weights, byte[SLICE_BITS * (SLICES - 1) :].as_signed()]

    def _sliced(
        self, m: Module, element: str, slots: list[Value], weights: list[Value], splits: list[Value]
    ) -> Value:
        parts = [_slice_product(slots[i * self.slots // SLICES], weights[i]) for i in range(SLICES)]
        halves: list[Value] = []
        for low, high in (parts[:2], parts[2:]):
            shifted = Mux(splits[0] == 2, high, high << 2) if self.slots == 4 else high << 2
            halves.append(register(m, f"half_{len(halves)}_{element}", low + shifted))
        high = Mux(splits[1] == 0, halves[1] << 4, halves[1]) if self.slots > 1 else halves[1] << 4
        return register(m, f"product_{element}", halves[0] + high)


def register(m: Module, name: str, value: Value, shape: Shape | None = None) -> Signal:
    """The value one cycle later, in a register without reset."""
    after = Signal(shape or value.shape(), name=name, reset_less=True)
    m.d.sync += after.eq(value)
    return after


def _wide(x: Value, shift: int, width: int) -> Value:
    """``x << shift``, sign-extended; ``x`` is a register's bits, so that this takes no gates."""
    return Cat(Const(0, shift), x, x[-1].replicate(width - shift - len(x)))


def _combined(a: Value, b: Value, subtract: Value) -> Value:
    """``a + b`` or ``a - b`` in their width, as one addition whose carry in is a bit below."""
    width = len(a)
    total = Cat(subtract, a) + Cat(subtract, b ^ subtract.replicate(width))
    return total[1 : width + 1].as_signed()


def _slice_product(x: Value, weight: Value) -> Value:
    """By -4 to 3: the operand once or not at all, and 2, 0, -2 or -4 times."""
    once, twice, negative = weight[0], weight[1], weight[2]
    width = SLICE_PRODUCT_BITS
    even = Mux(twice, _wide(x, 1, width), Mux(negative, _wide(x, 2, width), 0))
    return _combined(Mux(once, _wide(x, 0, width), 0), even, negative)


def _narrow_product(x: Value, weight: Value) -> Value:
    """By a signed weight of two or four bits, without a multiplier."""
    width = LEFT_BITS + SLICE_BITS
    once, twice = (Mux(weight[i - 2], _wide(x, i, width), 0) for i in range(2))
    high = _combined(once, twice, weight[-1])
    if len(weight) == SLICE_BITS:
        return high
    once, twice = (Mux(weight[i], _wide(x, i, width), 0) for i in range(2))
    return (once + twice)[:width].as_signed() + (high << SLICE_BITS)
