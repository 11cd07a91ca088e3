"""Bias, left shift and requantization of one vector a cycle, in every rounding of the contract."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.instructions import Rounding

__all__ = ["Requantizer"]

KEPT_BITS = 33  # of what is shifted: an int32 and the bit below
FRACTION_BITS = 15  # below them, with which and that bit stochastic rounding adds
FINE_MASK = Const((1 << 7) - 1, 7)
INT32_MAX = Const((1 << 31) - 1, 32)
INT32_MIN = Const(1 << 31, 32)


class Requantizer(wiring.Component):
    """Scales every lane of a vector by a 31-bit multiplier and a power of two.

    In each lane, with :func:`weft_hw.arithmetic.requantize`::

        shifted = wrap32((value + bias) << pre_shift)
        result  = shifted                                             if bypass
                = requantize(shifted, multiplier, exponent, rounding) otherwise

    Both forms of rounding go through one shifter. A one-step rounding shifts the product right by
    ``31 - exponent``. The two-step rounding adds 2^30 to the product, clears what lies below 2^31
    (the first rounding) and shifts by ``31 - min(exponent, 0)``; a positive exponent has already
    shifted the value left. ``bypass`` multiplies by one and shifts by zero::

        1 sum | 2 left shift | 3 four products | 4 inner sum | 5 product | 6, 7 shift | 8 round

    Stochastic rounding takes the 16 highest of the bits that the shift drops, and goes up where
    they carry when ``random`` is added.

    A vector enters in every cycle with ``i_valid`` high and leaves ``latency`` cycles later; there
    is no back-pressure. A stage without a vector does not switch.

    Parameters
    ----------
    lanes : int

    Members
    -------
    i_valid, o_soon, o_valid : In(1), Out(1), Out(1)
        ``o_soon`` is ``o_valid`` of the following cycle.
    value, bias : In(signed(32)), an array of lanes
    multiplier : In(31), an array of lanes
    exponent : In(signed(8)), an array of lanes
        From -31 to 31; the result for others is not defined.
    pre_shift : In(5)
    rounding : In(2)
        A :class:`weft_hw.instructions.Rounding`.
    random : In(16), an array of lanes
        For stochastic rounding; of the vector that entered ``random_delay`` cycles before.
    bypass : In(1)
    biased : Out(signed(32)), an array of lanes
        Value and bias of the vector that entered in the cycle before.
    result : Out(signed(32)), an array of lanes
    """

    def __init__(self, lanes: int) -> None:
        if not isinstance(lanes, int) or lanes < 1:
            raise ValueError(f"`lanes` must be a positive integer, not {lanes!r}")
        self._lanes = lanes
        super().__init__(
            {
                "i_valid": In(1),
                "value": In(signed(32)).array(lanes),
                "bias": In(signed(32)).array(lanes),
                "multiplier": In(31).array(lanes),
                "exponent": In(signed(8)).array(lanes),
                "pre_shift": In(5),
                "rounding": In(2),
                "random": In(16).array(lanes),
                "bypass": In(1),
                "biased": Out(signed(32)).array(lanes),
                "o_soon": Out(1),
                "o_valid": Out(1),
                "result": Out(signed(32)).array(lanes),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a vector's entry to its result."""
        return 8

    @property
    def random_delay(self) -> int:
        """Cycles from a vector's entry to the use of its random bits."""
        return 7

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Element k belongs to stage k: the input is 0, the output register is `latency`.
        stages = range(self.latency + 1)
        valid = [Signal(name=f"valid_{k}") for k in stages]
        two_step = [Signal(name=f"two_step_{k}", reset_less=True) for k in stages]
        half_even = [Signal(name=f"half_even_{k}", reset_less=True) for k in stages]
        stochastic = [Signal(name=f"stochastic_{k}", reset_less=True) for k in stages]
        m.d.comb += [
            valid[0].eq(self.i_valid),
            two_step[0].eq((self.rounding == Rounding.TWO_STEP) & ~self.bypass),
            half_even[0].eq(self.rounding == Rounding.HALF_EVEN),
            stochastic[0].eq((self.rounding == Rounding.STOCHASTIC) & ~self.bypass),
            self.o_soon.eq(valid[self.latency - 1]),
            self.o_valid.eq(valid[self.latency]),
        ]
        for k in range(self.latency):
            m.d.sync += valid[k + 1].eq(valid[k])
            with m.If(valid[k]):
                m.d.sync += [
                    two_step[k + 1].eq(two_step[k]),
                    half_even[k + 1].eq(half_even[k]),
                    stochastic[k + 1].eq(stochastic[k]),
                ]
        for lane in range(self._lanes):
            self._elaborate_lane(m, lane, valid, two_step, half_even, stochastic)
        return m

    def _elaborate_lane(
        self,
        m: Module,
        lane: int,
        valid: list[Signal],
        two_step: list[Signal],
        half_even: list[Signal],
        stochastic: list[Signal],
    ) -> None:
        def register(name: str, shape: object) -> Signal:
            return Signal(shape, name=f"{name}_{lane}", reset_less=True)

        exponent = self.exponent[lane]

        # 1: the biased sum, and how far it will be shifted to the left and to the right.
        total = register("total", signed(32))
        m.d.comb += self.biased[lane].eq(total)
        factor_1 = register("factor_1", 31)
        left_1 = register("left_1", 6)
        right_1 = register("right_1", 6)
        with m.If(valid[0]):
            m.d.sync += [
                total.eq(self.value[lane] + self.bias[lane]),
                factor_1.eq(Mux(self.bypass, 1, self.multiplier[lane])),
                left_1.eq(self.pre_shift + Mux(two_step[0] & (exponent > 0), exponent[:5], 0)),
            ]
            with m.If(self.bypass):
                m.d.sync += right_1.eq(0)
            with m.Elif(two_step[0] & (exponent > 0)):
                m.d.sync += right_1.eq(31)
            with m.Else():
                m.d.sync += right_1.eq(31 - exponent)

        # 2: left shift modulo 2^32.
        shifted = register("shifted", signed(32))
        factor_2 = register("factor_2", 31)
        right_2 = register("right_2", 6)
        with m.If(valid[1]):
            m.d.sync += [
                # Never more than 64 bits wide, which a simulator does in one machine word.
                shifted.eq(Mux(left_1[5], 0, (total.as_unsigned() << left_1[:5])[:32])),
                factor_2.eq(factor_1),
                right_2.eq(right_1),
            ]

        # 3: four products of 16 bits by 16, each in one multiplier block.
        low_low = register("low_low", 32)
        low_high = register("low_high", 31)
        high_low = register("high_low", signed(32))
        high_high = register("high_high", signed(31))
        right_3 = register("right_3", 6)
        value_low, value_high = shifted[:16], shifted[16:].as_signed()
        with m.If(valid[2]):
            m.d.sync += [
                low_low.eq(value_low * factor_2[:16]),
                low_high.eq(value_low * factor_2[16:]),
                high_low.eq(value_high * factor_2[:16]),
                high_high.eq(value_high * factor_2[16:]),
                right_3.eq(right_2),
            ]

        # 4, 5: their sum, the outer one with the first rounding's 2^30.
        outer = register("outer", signed(63))
        inner = register("inner", signed(34))
        right_4 = register("right_4", 6)
        with m.If(valid[3]):
            m.d.sync += [
                outer.eq(
                    Cat(low_low[:30], Cat(low_low[30:], high_high).as_signed() + two_step[3])[:63]
                ),
                inner.eq(low_high + high_low),
                right_4.eq(right_3),
            ]
        product = register("product", signed(63))
        right_5 = register("right_5", 6)
        with m.If(valid[4]):
            m.d.sync += [
                product.eq(Cat(outer[:16], (outer[16:].as_signed() + inner)[:47])),
                right_5.eq(right_4),
            ]
            with m.If(two_step[4]):  # the first rounding
                m.d.sync += product[:31].eq(0)

        # 6, 7: right shift by eights, then by ones. The lowest of the bits that are kept stands for
        # one half. `sticky` tells whether anything of the bits below it is set, `exceeds` whether a
        # bit above them differs from the sign. FRACTION_BITS of those below are kept for stochastic
        # rounding.
        scaled = Signal(signed(64), name=f"scaled_{lane}")
        m.d.comb += scaled.eq(Cat(Const(0, 1), product))
        eights = right_5[3:]
        coarse = register("coarse", signed(FRACTION_BITS + KEPT_BITS + 7))
        sticky_6 = register("sticky_6", 1)
        exceeds_6 = register("exceeds_6", 1)
        negative_6 = register("negative_6", 1)
        right_6 = register("right_6", 3)
        dropped = [(eights > k) & scaled[8 * k : 8 * k + 8].any() for k in range(7)]
        # Bytes above those that `coarse` holds; for larger shifts they are all sign.
        first_above = (KEPT_BITS + 7) // 8
        signs = product[-1].replicate(8)
        above = [
            (eights <= k - first_above) & (scaled[8 * k : 8 * k + 8] ^ signs).any()
            for k in range(first_above, 8)
        ]
        with m.If(valid[5]):
            m.d.sync += [
                coarse.eq(
                    (Cat(Const(0, FRACTION_BITS), scaled).as_signed() >> Cat(Const(0, 3), eights))[
                        : len(coarse)
                    ]
                ),
                sticky_6.eq(reduce(or_, dropped)),
                exceeds_6.eq(reduce(or_, above)),
                negative_6.eq(product[-1]),
                right_6.eq(right_5[:3]),
            ]
        fine = register("fine", KEPT_BITS)
        fraction = register("fraction", FRACTION_BITS)
        sticky_7 = register("sticky_7", 1)
        exceeds_7 = register("exceeds_7", 1)
        negative_7 = register("negative_7", 1)
        largest_7 = register("largest_7", 1)  # `fine` is the largest int32, unless it exceeds
        kept = coarse[FRACTION_BITS:]
        differs = kept[KEPT_BITS - 1 :] ^ negative_6.replicate(8)
        with m.If(valid[6]):
            m.d.sync += [
                Cat(fraction, fine).eq(coarse >> right_6),
                sticky_7.eq(sticky_6 | (kept[:7] & (FINE_MASK >> ~right_6)).any()),
                exceeds_7.eq(exceeds_6 | (differs >> right_6).any()),
                negative_7.eq(negative_6),
                largest_7.eq(~negative_6 & _shifted_ones(kept, right_6)),
            ]

        # 8: the rounding decision, in this one place, and saturation. The largest int32 is not
        # rounded up.
        half, odd, negative = fine[0], fine[1], negative_7
        increment = Signal(name=f"increment_{lane}")
        with m.If(two_step[7]):
            m.d.comb += increment.eq(half & (sticky_7 | ~negative))
        with m.Elif(half_even[7]):
            m.d.comb += increment.eq(half & (sticky_7 | odd))
        with m.Elif(stochastic[7]):
            m.d.comb += increment.eq((Cat(fraction, half) + self.random[lane])[16])
        with m.Else():
            m.d.comb += increment.eq(half)
        rounded = Signal(signed(32), name=f"rounded_{lane}")
        m.d.comb += rounded.eq((fine[1:].as_signed() + (increment & ~largest_7))[:32])
        result = register("result", signed(32))
        m.d.comb += self.result[lane].eq(result)
        with m.If(valid[7]):
            with m.If(exceeds_7):
                m.d.sync += result.eq(Mux(negative, INT32_MIN, INT32_MAX))
            with m.Else():
                m.d.sync += result.eq(rounded)


def _shifted_ones(kept: Value, places: Value) -> Value:
    """Whether an int32's bits below its sign are all set, once ``kept`` is shifted right by up to 7
    places; its lowest bit is the one above the bit that stands for one half.
    """
    top = KEPT_BITS - 2  # the highest of them, before the shift by ``places``
    below = [kept[bit] | (places >= bit) for bit in range(1, 8)]
    above = [kept[top + k] | (places < k) for k in range(1, 8)]
    return Cat(below).all() & kept[8 : top + 1].all() & Cat(above).all()
