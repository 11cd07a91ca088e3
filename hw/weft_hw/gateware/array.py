"""The systolic array: one flat module of multiply-accumulate elements for both dataflows."""

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig

__all__ = ["LEFT_BITS", "TOP_BITS", "SystolicArray"]

LEFT_BITS = 9  # an int8 operand minus an int8 zero point
TOP_BITS = 9
SUM_BITS = 32

SUM_STAGE = 2  # cycles from an element's operands to its sum


class SystolicArray(wiring.Component):
    """Multiplies a stream of left rows by a stationary tile, or by a stream of top rows.

    Element (r, c) meets what entered in cycle t in cycle t + r + c: operands, and the control bits
    that travel with them, move one anti-diagonal d = r + c a cycle. Rows are given straight: the
    skew by row and column, and the reverse at the output, are inside::

              top[0]   top[1] (1 later)
                |         |                     in each element, one register a stage:
      left[0] --+---------+-- ...               1  left operand, transport, shadow, active
      left[1] --+---------+-- ...               2  product of left operand and active
      (1 later) |         |                     3  sum = product + (sum of the element above
              sum[0]    sum[1]                                      or the element's own)

    In every cycle the elements of rows below ``left_keep`` add to their own sum, the others to the
    sum from above (row 0: to nothing). What leaves at the bottom ``latency`` cycles after a cycle
    with ``left_valid`` is flagged by ``output_valid``. There is no back-pressure.

    *Weight-stationary*: ``left_keep`` is 0, and each left row gives, with the tile that the most
    recent ``left_swap`` made active::

        sums[c] = sum over r of left[r] * tile[r][c]    modulo 2^32

    *Output-stationary*: ``left_keep`` is ``rows``, and each left row, which is always 0 where there
    is none, brings a swap to the top row that has entered before it; so every element sums its
    products left[r] * top[c]. One cycle with left = 0 and ``left_keep`` 0 makes all sums 0 before;
    ``rows`` cycles with left = 0, ``left_valid`` and ``left_keep`` = rows, rows - 1, .. 1 shift
    them out afterwards, last row first.

    The tile: row ``top_tag`` enters with ``top_valid``, in any order, into the shadow registers;
    with ``top_sideways`` it becomes column ``top_tag`` instead, with ``top_all`` every row takes
    it. ``left_swap`` makes the shadow tile active, from that very left row on. All rows of a tile
    must enter before its swap, and not before the swap of the tile before it; the cycle of that
    swap itself is allowed. A tile may therefore start every ``rows`` cycles, for any number of left
    rows, one included, and a top row for all every cycle.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    left_valid, left_swap : In(1)
    left_keep : In
        0 to ``rows``; counts in every cycle.
    left : In(array of rows signed(9))
        One left row, zero point already subtracted.
    top_valid, top_all : In(1)
    top_sideways : In(1)
        Only where ``rows == columns``.
    top_tag : In
        Number of the tile row.
    top : In(array of columns signed(9))
        One row of a tile, zero point already subtracted.
    output_valid : Out(1)
    sums : Out(array of columns signed(32))
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._rows = config.rows
        self._columns = config.columns
        members: dict[str, object] = {
            "left_valid": In(1),
            "left_swap": In(1),
            "left_keep": In(range(config.rows + 1)),
            "left": In(data.ArrayLayout(signed(LEFT_BITS), config.rows)),
            "top_valid": In(1),
            "top_all": In(1),
            "top_tag": In(range(config.rows)),
            "top": In(data.ArrayLayout(signed(TOP_BITS), config.columns)),
            "output_valid": Out(1),
            "sums": Out(data.ArrayLayout(signed(SUM_BITS), config.columns)),
        }
        if config.rows == config.columns:
            members["top_sideways"] = In(1)
        super().__init__(members)

    @property
    def latency(self) -> int:
        """Cycles from a left row at the input to its sums at the output."""
        return self._rows + self._columns + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rows, columns = self._rows, self._columns

        swap = self._control(m)
        loads = self._loads(m)
        above = self._above(m)
        left = [_delayed(m, f"left_{r}", self.left[r], r) for r in range(rows)]
        top = self._transport(m)

        sums: list[Value] = []
        for r in range(rows):
            operand: Value = left[r]
            sums_above, sums = sums, []
            for c in range(columns):
                element = f"{r}_{c}"
                stationary = self._stationary(m, element, top[r][c], loads[r][c], swap[r + c])
                operand = _register(m, f"operand_{element}", operand)
                product = _register(m, f"product_{element}", operand * stationary)
                total = Signal(signed(SUM_BITS), name=f"sum_{element}", reset_less=True)
                addend = Mux(above[r][c], sums_above[c] if r else 0, total)
                m.d.sync += total.eq(product + addend)
                sums.append(total)

        deskewed = [
            _delayed(m, f"output_{c}", sums[c], columns - 1 - c).as_unsigned()
            for c in range(columns)
        ]
        m.d.comb += self.sums.as_value().eq(Cat(*deskewed))
        return m

    def _control(self, m: Module) -> list[Value]:
        """Swap by anti-diagonal, and the output's valid bit."""
        diagonals = self._rows + self._columns - 1
        valid = Signal(self.latency)
        swap = Signal(diagonals - 1)
        swaps = Cat(self.left_swap, swap)
        m.d.sync += [valid.eq(Cat(self.left_valid, valid)), swap.eq(swaps)]
        m.d.comb += self.output_valid.eq(valid[-1])
        return [swaps[d] for d in range(diagonals)]

    def _loads(self, m: Module) -> list[list[Value]]:
        """Shadow-load enable by element: that of its row and, sideways, that of its column."""
        rows, columns = self._rows, self._columns
        square = rows == columns
        everywhere = Signal()
        m.d.comb += everywhere.eq(self.top_all | (self.top_sideways if square else 0))
        by_row = []
        for r in range(rows):
            load = self.top_valid & (everywhere | (self.top_tag == r))
            by_row.append(_history(m, f"load_row_{r}", load, r + columns))
        if not square:
            return [[by_row[r][r + c] for c in range(columns)] for r in range(rows)]
        by_column = []
        for c in range(columns):
            load = ~self.top_sideways | (self.top_tag == c)
            by_column.append(_history(m, f"load_column_{c}", load, c + rows))
        return [
            [by_row[r][r + c] & by_column[c][r + c] for c in range(columns)] for r in range(rows)
        ]

    def _above(self, m: Module) -> list[list[Value]]:
        """By element, when its product has come: add to the sum from above, not to its own."""
        above = []
        for r in range(self._rows):
            length = SUM_STAGE + r + self._columns
            history = _history(m, f"above_{r}", self.left_keep <= r, length)
            above.append([history[SUM_STAGE + r + c] for c in range(self._columns)])
        return above

    def _transport(self, m: Module) -> list[list[Value]]:
        """The top operand that passes each element, from above or, sideways, from the left."""
        rows, columns = self._rows, self._columns
        square = rows == columns
        entering = [_delayed(m, f"top_{c}", self.top[c], c) for c in range(columns)]
        if square:
            sideways = _history(m, "sideways", self.top_sideways, rows + columns - 1)
        transports: list[list[Value]] = []
        passing: list[list[Value]] = []
        for r in range(rows):
            transports.append([])
            passing.append([])
            for c in range(columns):
                value: Value = transports[r - 1][c] if r else entering[c]
                if square and r + c:
                    from_left = transports[r][c - 1] if c else entering[r]
                    chosen = Signal(signed(TOP_BITS), name=f"passing_{r}_{c}")
                    m.d.comb += chosen.eq(Mux(sideways[r + c], from_left, value))
                    value = chosen
                passing[r].append(value)
                used = r < rows - 1 or (square and c < columns - 1)
                transports[r].append(_register(m, f"transport_{r}_{c}", value) if used else value)
        return passing

    @staticmethod
    def _stationary(m: Module, element: str, top: Value, load: Value, swap: Value) -> Signal:
        """The active operand of an element, fed by its shadow."""
        shadow = Signal(signed(TOP_BITS), name=f"shadow_{element}", reset_less=True)
        active = Signal(signed(TOP_BITS), name=f"active_{element}", reset_less=True)
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


def _history(m: Module, name: str, bit: Value, length: int) -> Value:
    """Bit k is the given bit k cycles ago, for k below ``length``."""
    now = Signal(name=f"{name}_now")
    past = Signal(length - 1, name=name, reset_less=True)
    m.d.comb += now.eq(bit)
    m.d.sync += past.eq(Cat(now, past))
    return Cat(now, past)
