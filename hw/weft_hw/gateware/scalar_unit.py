"""Scalar registers and their arithmetic, one bit a cycle where that saves area."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import enum, memory, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.instruction_values import SCALAR_REGISTER_BITS, Operation
from weft_hw.instructions import Scalar

__all__ = ["ScalarUnit"]

BITS = 32
LARGEST = (1 << BITS - 1) - 1
FETCHED = 4  # registers that a VECTOR instruction takes


class State(enum.Enum, shape=4):
    """What happens in a cycle."""

    IDLE = 0
    FIRST = 1  # operands come from the registers ...
    SECOND = 2
    PREPARE = 3  # ... and are brought to the form that the operation works on
    REPEAT = 4  # one bit of a shift, count, product or quotient
    FINISH = 5
    WRITE = 6
    FETCH = 7  # registers for a VECTOR instruction, one a cycle
    MERGE = 8  # what an instruction captured is brought to the operation that enters it


class ScalarUnit(wiring.Component):
    """Sixteen int32 registers; executes SCALAR instructions as ``docs/machine.md`` defines them.

    Three users ask, never two at a time: ``start`` executes the instruction in ``fields``,
    ``fetch`` reads four registers, ``merge`` enters what an instruction captured. Each holds its
    request and what belongs to it until ``done``.

    Cycles from request to ``done``: moves, sums and comparisons 5; shifts 5 and one for each place
    (32 at most); leading zeros 5 and one for each; products and quotients 38; a fetch 5; a merge 4,
    or 7 if both are entered. Registers read as zero until they are written, so that reset need not
    clear them.

    Members
    -------
    start, fields : In(1), In(encoded SCALAR instruction)
    fetch, numbers, fetched : In(1), In(4), Out(signed(32)), arrays of 4
        ``fetched`` is held until the next request.
    merge, merge_largest, merge_clamped, merge_register : In(1), In(1), In(1), In(4)
        Enter ``largest``, ``clamped``, or both, into that register and the one after it.
    largest, clamped : In(31), In(32)
    done : Out(1)
        For one cycle.
    inhibit : In(1)
        Nothing is written.
    index, value : In(4), Out(32)
        A register to look at; right while no request is.
    """

    def __init__(self) -> None:
        number = SCALAR_REGISTER_BITS
        super().__init__(
            {
                "start": In(1),
                "fields": In(instruction_layout(Scalar)),
                "fetch": In(1),
                "numbers": In(number).array(FETCHED),
                "fetched": Out(signed(BITS)).array(FETCHED),
                "merge": In(1),
                "merge_largest": In(1),
                "merge_clamped": In(1),
                "merge_register": In(number),
                "largest": In(BITS - 1),
                "clamped": In(BITS),
                "done": Out(1),
                "inhibit": In(1),
                "index": In(number),
                "value": Out(BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fields = self.fields
        cells: memory.Memory = memory.Memory(
            shape=signed(BITS), depth=1 << SCALAR_REGISTER_BITS, init=[]
        )
        m.submodules.cells = cells
        write, read = cells.write_port(), cells.read_port(domain="comb")
        written = Signal(1 << SCALAR_REGISTER_BITS)
        # Read in this cycle; a register, so that only its own path lies before the operands.
        number = Signal(SCALAR_REGISTER_BITS, reset_less=True)
        register = Signal(signed(BITS))  # what it holds
        m.d.comb += [
            read.addr.eq(number),
            register.eq(Mux(written.bit_select(number, 1), read.data, 0)),
        ]
        m.d.sync += number.eq(self.index)
        shown = Signal(BITS)
        m.d.sync += shown.eq(register)
        m.d.comb += self.value.eq(shown)
        with m.If(write.en):
            m.d.sync += written.bit_select(write.addr, 1).eq(1)

        state = Signal(State)
        a, b, result = (Signal(signed(BITS), name=n, reset_less=True) for n in ("a", "b", "result"))
        takes_b = Signal(reset_less=True)  # instead of the result, for it is less, or not less
        remaining = Signal(range(BITS + 1), reset_less=True)
        turn = Signal(range(FETCHED), reset_less=True)
        merging = Signal(reset_less=True)  # and of what is merged: the second
        second = Signal(reset_less=True)
        merged = Signal(SCALAR_REGISTER_BITS)
        operation = Signal(Operation, reset_less=True)
        m.d.comb += [
            merged.eq(self.merge_register + second),
            write.addr.eq(fields.destination),
            write.data.eq(Mux(takes_b, b, result)),
        ]
        with m.If(merging):
            m.d.comb += write.addr.eq(merged)
        repeat = self._elaborate_operation(m, state, operation, a, b, result, takes_b, remaining)

        with m.Switch(state):
            with m.Case(State.IDLE):
                m.d.sync += [turn.eq(0), merging.eq(0)]
                with m.If(self.start):
                    m.d.sync += [number.eq(fields.first), state.eq(State.FIRST)]
                with m.Elif(self.fetch):
                    m.d.sync += [number.eq(self.numbers[0]), state.eq(State.FETCH)]
                with m.Elif(self.merge):
                    m.d.sync += [
                        merging.eq(1),
                        second.eq(~self.merge_largest),
                        number.eq(self.merge_register + ~self.merge_largest),
                        state.eq(State.MERGE),
                    ]
            with m.Case(State.FIRST):
                m.d.sync += [a.eq(register), number.eq(fields.second), state.eq(State.SECOND)]
            with m.Case(State.SECOND):
                m.d.sync += [
                    b.eq(Mux(fields.use_immediate, fields.immediate, register)),
                    operation.eq(fields.operation),
                    state.eq(State.PREPARE),
                ]
            with m.Case(State.PREPARE):
                m.d.sync += state.eq(Mux(repeat, State.REPEAT, State.WRITE))
            with m.Case(State.REPEAT):
                with m.If(remaining == 1):
                    m.d.sync += state.eq(State.FINISH)
            with m.Case(State.FINISH):
                m.d.sync += state.eq(State.WRITE)
            with m.Case(State.WRITE):
                m.d.comb += write.en.eq(~self.inhibit)
                with m.If(merging & ~second & self.merge_clamped):
                    m.d.sync += [
                        second.eq(1),
                        number.eq(self.merge_register + 1),
                        state.eq(State.MERGE),
                    ]
                with m.Else():
                    m.d.comb += self.done.eq(1)
                    m.d.sync += state.eq(State.IDLE)
            with m.Case(State.FETCH):
                with m.Switch(turn):
                    for i in range(FETCHED):
                        with m.Case(i):
                            m.d.sync += self.fetched[i].eq(register)
                            m.d.sync += number.eq(self.numbers[(i + 1) % FETCHED])
                m.d.sync += turn.eq(turn + 1)
                with m.If(turn == FETCHED - 1):
                    m.d.comb += self.done.eq(1)
                    m.d.sync += state.eq(State.IDLE)
            with m.Case(State.MERGE):
                m.d.sync += [
                    a.eq(register),
                    b.eq(Mux(second, self.clamped, self.largest)),
                    operation.eq(Mux(second, Operation.ADD, Operation.MAXIMUM)),
                    state.eq(State.PREPARE),
                ]
        return m

    def _elaborate_operation(
        self,
        m: Module,
        state: Signal,
        operation: Signal,
        a: Signal,
        b: Signal,
        result: Signal,
        takes_b: Signal,
        remaining: Signal,
    ) -> Signal:
        """The registers ``a``, ``b``, ``result`` and ``takes_b`` from PREPARE on.

        Returns whether bits are repeated.
        """
        repeat = Signal()
        right = Signal(reset_less=True)
        negative = Signal(reset_less=True)  # a quotient's sign
        by_zero = Signal(reset_less=True)
        high = Signal(signed(BITS + 2), reset_less=True)  # of a product; a division's remainder
        magnitude = Signal(BITS)  # of b
        m.d.comb += magnitude.eq(Mux(b[-1], -b, b))
        far = magnitude[5:].any()  # shifts that leave nothing but signs

        with m.If(state == State.PREPARE):
            m.d.sync += [remaining.eq(BITS), high.eq(0), right.eq(b[-1]), takes_b.eq(0)]
            with m.Switch(operation):
                with m.Case(Operation.MOVE):
                    m.d.sync += result.eq(b)
                with m.Case(Operation.ADD):
                    m.d.sync += result.eq(a + b)
                with m.Case(Operation.SUBTRACT):
                    m.d.sync += result.eq(a - b)
                with m.Case(Operation.MINIMUM):
                    m.d.sync += [result.eq(a), takes_b.eq(~(a < b))]
                with m.Case(Operation.MAXIMUM):
                    m.d.sync += [result.eq(a), takes_b.eq(a < b)]
                with m.Case(Operation.SHIFT):
                    m.d.comb += repeat.eq(b != 0)
                    m.d.sync += [result.eq(a), remaining.eq(Mux(far, BITS, magnitude[:5]))]
                with m.Case(Operation.LEADING_ZEROS):
                    m.d.comb += repeat.eq(1)
                    m.d.sync += result.eq(0)
                with m.Case(Operation.MULTIPLY_HIGH):
                    m.d.comb += repeat.eq(1)
                with m.Case(Operation.DIVIDE):
                    m.d.comb += repeat.eq(1)
                    m.d.sync += [
                        a.eq(Mux(a[-1], -a, a)),
                        b.eq(magnitude),
                        negative.eq(a[-1] ^ b[-1]),
                        by_zero.eq(b == 0),
                    ]
                    with m.If(b == 0):  # the sign of a decides
                        m.d.sync += negative.eq(a[-1])

        partial = Signal(signed(BITS + 2))
        taken = Signal(BITS + 1)  # the remainder with the dividend's next bit
        less = Signal(signed(BITS + 2))  # without the divisor, if that is not negative
        term = Mux(b[0], a, 0)
        m.d.comb += [
            # The multiplier's sign bit weighs less than nothing.
            partial.eq(Mux(remaining == 1, high - term, high + term)),
            taken.eq(Cat(a[-1], high[:BITS])),
            less.eq(taken - b.as_unsigned()),
        ]
        with m.If(state == State.REPEAT):
            m.d.sync += remaining.eq(remaining - 1)
            with m.Switch(operation):
                with m.Case(Operation.SHIFT):
                    m.d.sync += result.eq(Mux(right, result >> 1, result << 1))
                with m.Case(Operation.LEADING_ZEROS):
                    m.d.sync += a.eq(a << 1)
                    with m.If(~a[-1]):
                        m.d.sync += result.eq(result + 1)
                    with m.Else():
                        m.d.sync += remaining.eq(1)  # one more cycle, without effect
                        m.d.sync += a.eq(a)
                with m.Case(Operation.MULTIPLY_HIGH):
                    m.d.sync += [high.eq(partial >> 1), b.eq(b >> 1)]
                with m.Case(Operation.DIVIDE):
                    m.d.sync += [
                        high.eq(Mux(less < 0, taken, less)),
                        a.eq(Cat(less >= 0, a[: BITS - 1])),
                    ]
        with m.If(state == State.FINISH):
            with m.If(operation == Operation.MULTIPLY_HIGH):
                m.d.sync += result.eq(high)
            with m.If(operation == Operation.DIVIDE):
                m.d.sync += result.eq(Mux(negative, -a, a))
                with m.If(by_zero):
                    # All bits of the quotient are ones then, unless the dividend is zero.
                    bound = LARGEST ^ negative.replicate(BITS)
                    m.d.sync += result.eq(Mux(high[:BITS] == 0, 0, bound))
        return repeat
