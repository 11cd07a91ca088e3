"""The systolic array: one flat module of multiply-accumulate elements, weight-stationary."""

from amaranth.hdl import Cat, Module, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig

__all__ = ["SystolicArray"]

LEFT_BITS = 9  # an int8 operand minus an int8 zero point
WEIGHT_BITS = 8
SUM_BITS = 32


class SystolicArray(wiring.Component):
    """Multiplies a stream of activation rows by a stationary weight tile; the next tile loads
    meanwhile.

    For each activation row, with the tile that the most recent ``left_swap`` made active::

        sums[c] = sum over r of left[r] * tile[r][c]    modulo 2^32

    A row is given straight: the skew by row and column, and the reverse at the output, are inside.
    Element (r, c) meets what entered in cycle t in cycle t + r + c: operands, and the control bits
    that travel with them, move one anti-diagonal d = r + c a cycle::

              top[0]   top[1] (1 later)
                |         |                     in each element, one register a stage:
      left[0] --+---------+-- ...               1  activation, weight transport, shadow, active
      left[1] --+---------+-- ...               2  product
      (1 later) |         |                     3  sum = product + sum of the element above
              sum[0]    sum[1]

    There is no back-pressure: a row enters in every cycle with ``left_valid`` high and leaves
    exactly ``latency`` cycles later. Row ``top_tag`` of a weight tile enters with ``top_valid``, in
    any order, into the shadow registers; ``left_swap`` makes the shadow tile active, from that very
    activation row on. All rows of a tile must enter before its swap, and not before the swap of the
    tile before it; the cycle of that swap itself is allowed. A tile may therefore start every
    ``rows`` cycles, for any number of activation rows, one included.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    left_valid, left_swap : In(1)
    left : In(array of rows signed(9))
        One activation row, zero point already subtracted.
    top_valid : In(1)
    top_tag : In
        Number of the tile row.
    top : In(array of columns signed(8))
        One row of a weight tile.
    output_valid : Out(1)
    sums : Out(array of columns signed(32))
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._rows = config.rows
        self._columns = config.columns
        super().__init__(
            {
                "left_valid": In(1),
                "left_swap": In(1),
                "left": In(data.ArrayLayout(signed(LEFT_BITS), config.rows)),
                "top_valid": In(1),
                "top_tag": In(range(config.rows)),
                "top": In(data.ArrayLayout(signed(WEIGHT_BITS), config.columns)),
                "output_valid": Out(1),
                "sums": Out(data.ArrayLayout(signed(SUM_BITS), config.columns)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an activation row at the input to its sums at the output."""
        return self._rows + self._columns + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rows, columns = self._rows, self._columns

        swap, loads = self._control(m)
        left = [_delayed(m, f"left_{r}", self.left[r], r) for r in range(rows)]
        top = [_delayed(m, f"top_{c}", self.top[c], c) for c in range(columns)]

        sums: list[Value] = []
        for r in range(rows):
            activation: Value = left[r]
            sums_above, sums = sums, []
            for c in range(columns):
                element = f"{r}_{c}"
                stationary = self._stationary(m, element, top[c], loads[r][c], swap[r + c])
                activation = _register(m, f"activation_{element}", activation)
                product = _register(m, f"product_{element}", activation * stationary)
                addend = product + sums_above[c] if r else product
                sums.append(_register(m, f"sum_{element}", addend, signed(SUM_BITS)))
                if r < rows - 1:
                    top[c] = _register(m, f"transport_{element}", top[c])

        deskewed = [
            _delayed(m, f"output_{c}", sums[c], columns - 1 - c).as_unsigned()
            for c in range(columns)
        ]
        m.d.comb += self.sums.as_value().eq(Cat(*deskewed))
        return m

    def _control(self, m: Module) -> tuple[list[Value], list[list[Value]]]:
        """Swap by anti-diagonal and shadow-load enable by element, and the output's valid bit."""
        diagonals = self._rows + self._columns - 1
        valid = Signal(self.latency)
        swap = Signal(diagonals - 1)
        load = Signal(diagonals - 1)
        swaps = Cat(self.left_valid & self.left_swap, swap)
        load_valid = Cat(self.top_valid, load)
        m.d.sync += [
            valid.eq(Cat(self.left_valid, valid)),
            swap.eq(swaps),
            load.eq(load_valid),
        ]
        m.d.comb += self.output_valid.eq(valid[-1])

        tags: list[Value] = [self.top_tag]
        for d in range(1, diagonals):
            tags.append(_register(m, f"tag_{d}", tags[-1]))
        loads = [
            [load_valid[r + c] & (tags[r + c] == r) for c in range(self._columns)]
            for r in range(self._rows)
        ]
        return [swaps[d] for d in range(diagonals)], loads

    @staticmethod
    def _stationary(m: Module, element: str, top: Value, load: Value, swap: Value) -> Signal:
        """The active weight of an element, fed by its shadow."""
        shadow = Signal(signed(WEIGHT_BITS), name=f"shadow_{element}", reset_less=True)
        active = Signal(signed(WEIGHT_BITS), name=f"active_{element}", reset_less=True)
        with m.If(load):
            m.d.sync += shadow.eq(top)
        with m.If(swap):
            m.d.sync += active.eq(shadow)
        return active


def _register(m: Module, name: str, value: Value, shape: Shape | None = None) -> Signal:
    """The value one cycle later, in a register without reset."""
    register = Signal(shape or value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register


def _delayed(m: Module, name: str, value: Value, cycles: int) -> Value:
    """The value ``cycles`` later."""
    for i in range(cycles):
        value = _register(m, f"{name}_delay_{i}", value)
    return value
