"""The systolic array: one flat module of multiply-accumulate elements for both dataflows."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.array_element import LEFT_BITS, TOP_BITS, ElementArithmetic, register

__all__ = ["LEFT_BITS", "TOP_BITS", "SystolicArray"]

SUM_BITS = 32


class SystolicArray(wiring.Component):
    """Multiplies a stream of left rows by a stationary tile, or by a stream of top rows.

    Element (r, c) meets what entered in cycle t in cycle t + r + c: operands, and the control bits
    that travel with them, move one anti-diagonal d = r + c a cycle. Rows are given straight: the
    skew by row and column, and the reverse at the output, are inside::

              top[0]   top[1] (1 later)
                |         |                     in each element, one register a stage:
      left[0] --+---------+-- ...               1  left operand, transport, shadow, active
      left[1] --+---------+-- ...               2  product of left operand and active
      (1 later) |         |                        (3  with several weight modes)
              sum[0]    sum[1]                  3  sum = product + (sum of the element above
                                                                    or the element's own)

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

    *Weight modes*: with ``left_split`` s at its swap, a tile's elements are 2^s weights each, the
    first in the lowest bits, and row r has ``operands_per_element`` operand slots, which hold its
    2^s operands as :mod:`weft_hw.gateware.array_element` has it; its term in the sum above becomes
    that of their products. ``left_split`` is 0 in the output-stationary dataflow.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    left_valid, left_swap : In(1)
    left_keep : In
        0 to ``rows``; counts in every cycle.
    left_split : In
        Only with several weight modes.
    left : In(array of rows * operands_per_element signed(9))
        One left row, zero point already subtracted; the slots of a row of the array together.
    top_valid, top_all : In(1)
    top_sideways : In(1)
        Only where ``rows == columns``.
    top_tag : In
        Number of the tile row.
    top : In(array of columns signed(9))
        One row of a tile, zero point already subtracted.
    output_valid, output_next : Out(1)
        Sums leave in this cycle, and in the next one.
    sums : Out(array of columns signed(32))
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._rows = config.rows
        self._columns = config.columns
        self._element = ElementArithmetic(config)
        self._splits = len(config.weight_modes)
        members: dict[str, object] = {
            "left_valid": In(1),
            "left_swap": In(1),
            "left_keep": In(range(config.rows + 1)),
            "left": In(
                data.ArrayLayout(signed(LEFT_BITS), config.rows * config.operands_per_element)
            ),
            "top_valid": In(1),
            "top_all": In(1),
            "top_tag": In(range(config.rows)),
            "top": In(data.ArrayLayout(signed(TOP_BITS), config.columns)),
            "output_valid": Out(1),
            "output_next": Out(1),
            "sums": Out(data.ArrayLayout(signed(SUM_BITS), config.columns)),
        }
        if config.rows == config.columns:
            members["top_sideways"] = In(1)
        if self._splits > 1:
            members["left_split"] = In(range(self._splits))
        super().__init__(members)

    @property
    def _sum_stage(self) -> int:
        """Cycles from an element's operands to its sum."""
        return self._element.stages + 1

    @property
    def latency(self) -> int:
        """Cycles from a left row at the input to its sums at the output."""
        return self._rows + self._columns + self._element.stages

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rows, columns = self._rows, self._columns

        swap = self._control(m)
        split, active_split = self._split_control(m, swap)
        loads = self._loads(m)
        above = self._above(m)
        left = [_delayed(m, f"left_{r}", self._left_row(r), r) for r in range(rows)]
        top = self._transport(m)

        sums: list[Value] = []
        for r in range(rows):
            operand: Value = left[r]
            sums_above, sums = sums, []
            for c in range(columns):
                element = f"{r}_{c}"
                diagonal = r + c
                shadow = Signal(signed(TOP_BITS), name=f"shadow_{element}", reset_less=True)
                with m.If(loads[r][c]):
                    m.d.sync += shadow.eq(top[r][c])
                weights = self._element.active(m, element, shadow, swap[diagonal], split[diagonal])
                operand = register(m, f"operand_{element}", operand)
                splits = active_split[diagonal]
                product = self._element.product(m, element, operand, weights, splits)
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
        m.d.comb += [self.output_valid.eq(valid[-1]), self.output_next.eq(valid[-2])]
        return [swaps[d] for d in range(diagonals)]

    def _split_control(self, m: Module, swap: list[Value]) -> tuple[list[Value], list[list[Value]]]:
        """By anti-diagonal: the split that comes with a swap, and by stage that of the product."""
        if self._splits == 1:
            constant = Const(0, 1)
            return [constant] * len(swap), [[constant] * self._element.stages] * len(swap)
        entering, active = [], []
        now: Value = self.left_split
        for d, swaps in enumerate(swap):
            entering.append(now)
            first = Signal.like(self.left_split, name=f"active_split_{d}", reset_less=True)
            with m.If(swaps):
                m.d.sync += first.eq(now)
            active.append([first, register(m, f"product_split_{d}", first)])
            if d < len(swap) - 1:
                now = register(m, f"split_{d}", now)
        return entering, active

    def _left_row(self, r: int) -> Value:
        """The operands of a row of the array; signed if it is one alone."""
        slots = self._element.slots
        operands = [self.left[slots * r + slot] for slot in range(slots)]
        return operands[0] if slots == 1 else Cat(*operands)

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
            length = self._sum_stage + r + self._columns
            history = _history(m, f"above_{r}", self.left_keep <= r, length)
            above.append([history[self._sum_stage + r + c] for c in range(self._columns)])
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
                transports[r].append(register(m, f"transport_{r}_{c}", value) if used else value)
        return passing


def _delayed(m: Module, name: str, value: Value, cycles: int) -> Value:
    """The value ``cycles`` later."""
    for i in range(cycles):
        value = register(m, f"{name}_delay_{i}", value)
    return value


def _history(m: Module, name: str, bit: Value, length: int) -> Value:
    """Bit k is the given bit k cycles ago, for k below ``length``."""
    now = Signal(name=f"{name}_now")
    past = Signal(length - 1, name=name, reset_less=True)
    m.d.comb += now.eq(bit)
    m.d.sync += past.eq(Cat(now, past))
    return Cat(now, past)
