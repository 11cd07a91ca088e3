"""Proofs of the loop nest: which trips it makes, and that no address stream wraps."""

from functools import partial, reduce
from operator import add as plus

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed

from formal.harness import add, always, constant, free, given
from formal.prover import BOUNDED, INDUCTION, Proof
from weft_hw.gateware.loops import LoopNest
from weft_hw.gateware.transfer import (
    COORDINATE_STREAM_BITS,
    DRAM_STREAM_BITS,
    LOCAL_STREAM_BITS,
)
from weft_hw.instructions import COUNT_BITS, DRAM_BITS, LOOPS_TRANSFER, STRIDE_BITS

__all__ = ["PROOFS"]

# Of the streams of LOAD and STORE: stream width, base width, stride width, base signed.
STREAMS = {
    "dram": (DRAM_STREAM_BITS, DRAM_BITS, 32, False),
    "local": (LOCAL_STREAM_BITS, STRIDE_BITS, STRIDE_BITS, True),
    "coordinate": (COORDINATE_STREAM_BITS, 13, 8, True),
}
MARGIN = 4  # bits that the reference has beyond the stream


class _Odometer:
    """Trip numbers counted independently of the unit: of the trip shown, and of the one after."""

    def __init__(self, m: Module, nest: LoopNest, counts: list[Signal]) -> None:
        self.index = [Signal(COUNT_BITS, name=f"index_{i}") for i in range(len(counts))]
        self.ahead = [Signal(COUNT_BITS, name=f"ahead_{i}") for i in range(len(counts))]
        self.loaded = Signal(name="was_loaded")
        self.running = Signal(name="running")
        self.at_last = self._at_last(m, "at_last", self.index, counts)
        self.ahead_at_last = self._at_last(m, "ahead_at_last", self.ahead, counts)
        self.finished = Cat(self.at_last).all()
        m.d.sync += self.loaded.eq(nest.load)
        with m.If(nest.load):
            m.d.sync += self.running.eq(0)
            m.d.sync += [index.eq(0) for index in self.ahead]
        with m.Elif(self.loaded):
            m.d.sync += self.running.eq(1)
        with m.If(~nest.load & (self.loaded | nest.advance)):
            for i, (index, ahead) in enumerate(zip(self.index, self.ahead)):
                moves = Cat(self.ahead_at_last[i + 1 :]).all()
                m.d.sync += index.eq(ahead)
                with m.If(moves):
                    m.d.sync += ahead.eq(Mux(self.ahead_at_last[i], 0, ahead + 1))

    @staticmethod
    def _at_last(m: Module, name: str, indices: list[Signal], counts: list[Signal]) -> list[Signal]:
        flags = [Signal(name=f"{name}_{i}") for i in range(len(counts))]
        m.d.comb += [f.eq(index + 1 == n) for f, index, n in zip(flags, indices, counts)]
        return flags

    def steps(self, i: int) -> Value:
        """The step that leads from the trip shown to the next one is loop ``i``'s."""
        return Cat(self.at_last[i + 1 :]).all() & ~self.at_last[i]


def _setup(m: Module, streams: dict[str, int]) -> tuple[LoopNest, object, list[Signal], _Odometer]:
    """A nest with chosen counts of at least 1, loaded and advanced as its contract allows."""
    nest = LoopNest(loops=LOOPS_TRANSFER, streams=streams)
    inside = add(m, nest)
    counts = [constant(m, COUNT_BITS, f"count_{i}") for i in range(LOOPS_TRANSFER)]
    for i, count in enumerate(counts):
        m.d.comb += nest.counts[i].eq(count)
        given(m, count != 0)
    free(m, nest.load, nest.advance)
    odometer = _Odometer(m, nest, counts)
    given(m, ~nest.advance | (odometer.running & ~odometer.finished & ~nest.load))
    return nest, inside, counts, odometer


def _flags(m: Module, nest: LoopNest, inside, counts: list[Signal], odometer: _Odometer) -> None:
    begun = odometer.loaded | odometer.running
    always(m, nest.ready == odometer.running)
    always(m, inside["loaded"] == odometer.loaded)
    always(m, ~(odometer.loaded & odometer.running))
    for i, (index, ahead, count) in enumerate(zip(odometer.index, odometer.ahead, counts)):
        counted = (ahead < count) & (inside[f"remaining_{i}"] == count - ahead)
        counted &= inside["first_ahead"][i] == (ahead == 0)
        counted &= inside["last_ahead"][i] == (ahead + 1 == count)
        counted &= inside["single"][i] == (count == 1)
        counted &= inside["double"][i] == (count == 2)
        counted &= inside["nearly_ahead"][i] == (ahead + 2 == count)
        beyond = Cat(odometer.ahead_at_last[i + 1 :]).all()
        counted &= inside["inner_last"][i + 1] == beyond
        counted &= inside["steps"][i] == (beyond & ~odometer.ahead_at_last[i])
        if i == 0:
            counted &= inside["inner_last"][0] == Cat(odometer.ahead_at_last).all()
        always(m, ~begun | counted)
        fits = (index < count) & (nest.first[i] == (index == 0))
        fits &= nest.last[i] == (index + 1 == count)
        moves = Cat(odometer.at_last[i + 1 :]).all()
        fits &= ahead == Mux(moves, Mux(odometer.at_last[i], 0, index + 1), index)
        always(m, ~odometer.running | fits)
    always(m, ~odometer.running | (nest.finished == odometer.finished))


def visits(m: Module) -> None:
    """first, last and finished are those of an odometer with any counts."""
    _flags(m, *_setup(m, {"a": 4}))


def product(m: Module) -> None:
    """With counts up to 2, finished comes after exactly the product of the counts."""
    nest, _, counts, odometer = _setup(m, {"a": 4})
    for count in counts:
        given(m, count <= 2)
    trips = Signal(6, init=1)
    with m.If(nest.load):
        m.d.sync += trips.eq(1)
    with m.Elif(nest.advance):
        m.d.sync += trips.eq(trips + 1)
    expected = Signal(6)
    m.d.comb += expected.eq(counts[0][:2] * counts[1][:2] * counts[2][:2])
    always(m, ~odometer.running | (nest.finished == (trips == expected)))
    always(m, ~odometer.running | (trips <= expected))


def values(m: Module, name: str) -> None:
    """A stream of LOAD and STORE: base, and a stride for each step, as in wider numbers."""
    width, base_bits, stride_bits, base_signed = STREAMS[name]
    nest, inside, counts, odometer = _setup(m, {name: width})
    _flags(m, nest, inside, counts, odometer)
    wide = signed(width + MARGIN)
    base = constant(m, base_bits, "chosen_base")
    base_value = base.as_signed() if base_signed else base
    m.d.comb += getattr(nest, f"{name}_base").eq(base_value)
    # The value at the start of each loop's current trip, in numbers that cannot wrap, and how many
    # strides were added for it; no stride exceeds 2^(stride_bits - 1).
    last = LOOPS_TRANSFER - 1
    begun = odometer.loaded | odometer.running
    exact = [Signal(wide, name=f"exact_{i}") for i in range(LOOPS_TRANSFER)]
    strides = [constant(m, stride_bits, f"chosen_{i}").as_signed() for i in range(LOOPS_TRANSFER)]
    added = [Signal(COUNT_BITS + 2, name=f"added_{i}") for i in range(LOOPS_TRANSFER)]
    for i, stride in enumerate(strides):
        m.d.comb += getattr(nest, f"{name}_strides")[i].eq(stride)
        m.d.comb += added[i].eq(reduce(plus, odometer.index[: i + 1]))
        steps = odometer.steps(i)
        # What was prepared for the step that comes: a stride, and where it starts.
        origin = Mux(inside["from_value"], inside[f"{name}_at_{last}"], inside[f"{name}_origin"])
        prepared = (inside[f"{name}_stride"] == stride) & (origin == inside[f"{name}_at_{i}"])
        for loop in range(LOOPS_TRANSFER):
            prepared &= inside["changes"][loop] == (loop >= i)
        always(m, ~odometer.running | ~steps | prepared)
        for inner in range(i, LOOPS_TRANSFER):
            with m.If(nest.advance & steps):
                m.d.sync += exact[inner].eq(exact[i] + stride)
        reach = Signal(wide, name=f"reach_{i}")
        base_strides = 1 << max(0, base_bits - stride_bits + 1)  # the base, in largest strides
        m.d.comb += reach.eq((added[i] + base_strides) << (stride_bits - 1))
        always(m, ~begun | ((exact[i] <= reach) & (exact[i] >= -reach)))
        always(m, ~begun | (inside[f"{name}_at_{i}"] == exact[i]))
        always(m, ~odometer.loaded | (exact[i] == base_value))
    with m.If(nest.load):
        m.d.sync += [value.eq(base_value) for value in exact]
    always(m, ~odometer.running | (getattr(nest, name) == exact[-1]))


PROOFS = [
    Proof(
        "loop nest: trips",
        "3 loops of any counts run as an odometer: first, last and finished are its, "
        "every index stays below its count",
        visits,
        INDUCTION,
        1,
    ),
    Proof(
        "loop nest: product",
        "with counts up to 2, finished comes after exactly count_0 * count_1 * count_2 trips",
        product,
        BOUNDED,
        12,
    ),
    *[
        Proof(
            f"loop nest: {name}",
            f"LOAD's and STORE's {name} stream adds each loop's stride at its "
            "steps as numbers without limit would, for any fields: it never wraps",
            partial(values, name=name),
            INDUCTION,
            1,
        )
        for name in STREAMS
    ],
]
