"""Random instructions that do not fault: all fields, edge cases more often than by chance."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from weft_hw.config import AcceleratorConfig
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES
from weft_hw.instructions import (
    Accumulate,
    Bounds,
    Capture,
    Dataflow,
    Element,
    Head,
    Instruction,
    Load,
    LoadSide,
    Matrix,
    Memory,
    OperandSource,
    Operation,
    Rounding,
    Scalar,
    ScaleSource,
    Store,
    Tail,
    Vector,
    WeightBits,
)

__all__ = ["RandomInstructions"]

MULTIPLIER_REGISTER, EXPONENT_REGISTER = 3, 4
FREE_REGISTERS = [n for n in range(16) if n not in (MULTIPLIER_REGISTER, EXPONENT_REGISTER)]
NOTED_REGISTERS = [n for n in FREE_REGISTERS if (n + 1) % 16 in FREE_REGISTERS]


def _offsets(strides: Sequence[int], counts: Sequence[int]) -> dict[tuple[int, ...], int]:
    return {
        index: sum(i * stride for i, stride in zip(index, strides))
        for index in itertools.product(*[range(count) for count in counts])
    }


class RandomInstructions:
    """Draws legal instructions for a configuration.

    Parameters
    ----------
    config : AcceleratorConfig
    rng : numpy.random.Generator
    dram : (int, int)
        Address range for LOAD and STORE.
    apart : bool
        VECTOR reads from the lower halves of the memories and writes to the upper ones, so that no
        read can depend on a write of the same instruction.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        rng: np.random.Generator,
        dram: tuple[int, int],
        *,
        apart: bool = False,
    ) -> None:
        self.config, self.rng, self.dram, self.apart = config, rng, dram, apart

    def draw(self) -> Instruction:
        """Any instruction but LOAD of parameters, which leaves exponents that are not defined."""
        kinds = [self.load, self.load_lookup, self.store, self.matrix, self.vector, self.vector]
        kind = self.pick([*kinds, self.scalar])
        return kind()

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of them."""
        return choices[int(self.rng.integers(len(choices)))]

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included and more likely than others."""
        if low >= high:
            return low
        value = int(self.rng.integers(low, high + 1))
        return self.pick([value, value, value, low, high])

    def counts(self, most: Sequence[int], trips: int) -> tuple[int, ...]:
        """Loop counts up to ``most`` each, with at most that many trips together."""
        counts = [1] * len(most)
        for loop in self.rng.permutation(len(most)):
            if self.pick([True, True, False]):
                left = trips // int(np.prod(counts))
                counts[loop] = self.between(1, max(1, min(most[loop], left)))
        return tuple(counts)

    def place(
        self,
        counts: Sequence[int],
        span: tuple[int, int],
        width: int,
        *,
        steps: Sequence[int],
        exists: Callable[[tuple[int, ...]], bool] = lambda index: True,
        distinct: bool = False,
    ) -> tuple[int, tuple[int, ...]]:
        """An address and strides so that every access that exists lies in ``span``.

        ``steps`` are the distances to draw strides from; ``distinct``: no address comes twice.
        """
        for _ in range(40):
            strides = self._strides(counts, steps, distinct)
            offsets = _offsets(strides, counts)
            taken = [offset for index, offset in offsets.items() if exists(index)] or [0]
            low, high = span[0] - min(taken), span[1] - width - max(taken)
            if low <= high:
                return self.between(low, high), strides
        taken = [0]
        return self.between(span[0], span[1] - width), (0,) * len(counts)

    def _strides(
        self, counts: Sequence[int], steps: Sequence[int], distinct: bool
    ) -> tuple[int, ...]:
        if not distinct:
            signs = self.rng.choice([1, 1, 1, -1], len(counts))
            return tuple(int(sign) * self.pick([0, *steps]) for sign in signs)
        strides = [0] * len(counts)
        stride = self.pick(steps)
        for loop in self.rng.permutation(len(counts)):  # a mixed-radix number, one digit a loop
            strides[loop] = stride
            stride *= counts[loop]
        return tuple(strides)

    def coordinates(self, loops: int) -> dict[str, Any]:
        """Origins, extents and steps of y and x: often all, often some, at times no trip exists."""
        fields: dict[str, Any] = {}
        for axis in "yx":
            fields[f"{axis}_origin"] = self.pick([0, 0, -1, -2, 3, -4096])
            fields[f"{axis}_extent"] = self.pick([1, 3, 4, 5, 4095, 4095, 0])
            fields[f"{axis}_steps"] = tuple(self.pick([0, 0, 1, 1, 2, -1]) for _ in range(loops))
        return fields

    # Instructions -------------------------------------------------------------------------------

    def load(self) -> Load:
        """LOAD of a scratchpad or of accumulators."""
        return self._transfer(
            Load, self.pick([Memory.ACTIVATION, Memory.WEIGHT, Memory.ACCUMULATOR])
        )

    def store(self) -> Store:
        """STORE of the activation scratchpad or of accumulators."""
        return self._transfer(Store, self.pick([Memory.ACTIVATION, Memory.ACCUMULATOR]))

    def _transfer(self, kind: Any, memory: Memory) -> Any:
        config = self.config
        rows = memory is Memory.ACCUMULATOR
        element = self.pick(list(Element)) if rows else Element.INT8
        grain = (1, 2, 4)[element]  # bytes of an element: all that is in DRAM is a multiple of it
        counts = self.counts((5, 5, 5), 24)
        origin, extent = self.pick([0, 0, -1, 2, -4096]), self.pick([1, 2, 4, 4095, 4095, 0])
        step = tuple(self.pick([0, 0, 1, 2, -1]) for _ in range(3))
        positions = {index: origin + offset for index, offset in _offsets(step, counts).items()}

        def exists(index: tuple[int, ...]) -> bool:
            return 0 <= positions[index] < extent

        run = self.between(1, self.pick([5, 20, 70]))  # elements
        steps = [1, run, run + 3, config.line_bytes]
        span = -(-run // config.columns) if rows else run
        size = {
            Memory.ACTIVATION: config.activation_bytes,
            Memory.WEIGHT: config.weight_bytes,
            Memory.ACCUMULATOR: config.accumulator_total_rows,
        }[memory]
        always: dict[str, Any] = {} if kind is Load else {"exists": exists}
        address, strides = self.place(
            counts, (0, size), span, steps=[1, span, span + 1] if rows else steps, **always
        )
        elements = -(-self.dram[0] // grain), self.dram[1] // grain
        dram, dram_strides = self.place(counts, elements, run, steps=steps, exists=exists)
        if dram < 0:  # no unsigned base fits: some run that does not exist comes first
            dram, dram_strides = elements[0], (0, 0, 0)
        return kind(
            dram_address=dram * grain,
            dram_strides=tuple(grain * stride for stride in dram_strides),
            counts=counts,
            run_bytes=run * grain,
            memory=memory,
            element=element,
            address=address,
            strides=strides,
            origin=origin,
            extent=extent,
            steps=step,
            fill=self.between(-128, 127),
        )

    def load_parameters(self) -> Load:
        """LOAD of the parameter memory, in whole beats."""
        beat = self.config.bus_bytes
        counts = self.counts((3, 3, 3), 6)
        beats = self.between(1, self.config.parameter_row_bytes // beat)
        limit = self.config.parameter_bytes // beat
        address, strides = self.place(counts, (0, limit), beats, steps=[1, beats])
        span = -(-self.dram[0] // beat), self.dram[1] // beat
        dram, dram_strides = self.place(counts, span, beats, steps=[1, beats])
        return Load(
            dram_address=dram * beat,
            dram_strides=tuple(beat * stride for stride in dram_strides),
            counts=counts,
            run_bytes=beats * beat,
            memory=Memory.PARAMETER,
            address=address * beat,
            strides=tuple(beat * stride for stride in strides),
            origin=0,
            extent=self.pick([1, 1, 1, 0]),
            fill=0,
        )

    def load_lookup(self) -> Load:
        """LOAD of lookup tables, in whole beats."""
        beat = self.config.bus_bytes
        span = -(-self.dram[0] // beat), self.dram[1] // beat
        beats = self.pick([1, LOOKUP_ENTRIES // beat, self.between(1, 300 // beat)])
        beats = min(beats, span[1] - span[0])
        limit = LOOKUP_TABLES * LOOKUP_ENTRIES // beat
        counts = self.counts((2, 2, 2), 4)
        address, strides = self.place(counts, (0, limit), beats, steps=[1, beats])
        dram, dram_strides = self.place(counts, span, beats, steps=[1, beats])
        return Load(
            dram_address=dram * beat,
            dram_strides=tuple(beat * stride for stride in dram_strides),
            counts=counts,
            run_bytes=beats * beat,
            memory=Memory.LOOKUP,
            address=address * beat,
            strides=tuple(beat * stride for stride in strides),
            extent=self.pick([1, 1, 1, 0]),
            fill=self.between(-128, 127),
        )

    def scalar(self) -> Scalar:
        """SCALAR in any of its modes; two registers hold multipliers and exponents only."""
        if self.pick([True, False, False]):
            scale = self.pick([True, False])
            exponent = self.between(-31, 31) + 256 * self.between(-2, 2)
            return Scalar(
                destination=MULTIPLIER_REGISTER if scale else EXPONENT_REGISTER,
                use_immediate=1,
                immediate=self.between(0, (1 << 31) - 1) if scale else exponent,
            )
        return Scalar(
            operation=self.pick(list(Operation)),
            destination=self.pick(FREE_REGISTERS),
            first=self.between(0, 15),
            second=self.between(0, 15),
            use_immediate=self.pick([0, 1]),
            immediate=self.pick(
                [0, -1, -(1 << 31), self.between(-40, 40), self.between(-(1 << 31), (1 << 31) - 1)]
            ),
        )

    def matrix(self) -> Matrix:
        """MATRIX: convolution-like, or with accumulator rows that repeat, in either dataflow."""
        config = self.config
        rows, columns = config.rows, config.columns
        streams = self.pick([False, False, True])
        weight_bits = WeightBits.EIGHT
        if not streams:
            weight_bits = self.pick(list(WeightBits)[: len(config.weight_modes)])
        narrow = weight_bits is not WeightBits.EIGHT
        depth = rows * {WeightBits.EIGHT: 1, WeightBits.FOUR: 2, WeightBits.TWO: 4}[weight_bits]
        counts = self.counts((3, 3, 3, 3, 6, 6, 3), 60 if rows * columns > 100 else 150)
        fields = self.coordinates(7)
        bounds = self.pick(
            [Bounds.NONE, Bounds.LEFT, Bounds.TOP if streams else Bounds.ACCUMULATOR]
        )

        def exists(stream: Bounds) -> Callable[[tuple[int, ...]], bool]:
            def inside(index: tuple[int, ...]) -> bool:
                y = fields["y_origin"] + sum(i * s for i, s in zip(index, fields["y_steps"]))
                x = fields["x_origin"] + sum(i * s for i, s in zip(index, fields["x_steps"]))
                return 0 <= y < fields["y_extent"] and 0 <= x < fields["x_extent"]

            return inside if bounds is stream else lambda index: True

        left, left_strides = self.place(
            counts,
            (0, config.activation_bytes),
            depth,
            steps=self.pick([[depth, 2 * depth, 4 * depth], [1, 4, rows], [1, 3, 7]]),
            exists=exists(Bounds.LEFT),
        )
        if not -(1 << 19) <= left < 1 << 19:
            left = 0
        weights = (0, config.weight_bytes)
        steps = self.pick([[columns, rows * columns], [1, columns + 1]])
        if streams:
            top, top_strides = self.place(
                counts, weights, columns, steps=steps, exists=exists(Bounds.TOP)
            )
            accumulator, strides = self._output_tiles(counts[:4])
            accumulator_strides, tile_stride = (*strides[:4], 1, -7, 99), strides[4]
        else:
            top, places = self.place((*counts[:4], rows), weights, columns, steps=steps)
            top_strides, tile_stride = (*places[:4], 0, 0, 0), places[4]
            accumulator, accumulator_strides = self._accumulators(
                counts, exists(Bounds.ACCUMULATOR)
            )
        square = rows == columns
        return Matrix(
            dataflow=Dataflow.OUTPUT_STATIONARY if streams else Dataflow.WEIGHT_STATIONARY,
            weight_bits=weight_bits,
            load_side=self.pick(list(LoadSide)) if square and not narrow else LoadSide.TOP,
            accumulate=self.pick(list(Accumulate)),
            bounds=bounds,
            left_zero_point=self.between(-128, 127),
            top_zero_point=0 if narrow else self.pick([0, 0, self.between(-128, 127)]),
            counts=counts,
            left_address=left,
            left_strides=left_strides,
            top_address=top,
            top_strides=top_strides,
            tile_stride=tile_stride,
            accumulator_address=accumulator,
            accumulator_strides=accumulator_strides,
            **fields,
        )

    def _accumulators(
        self, counts: Sequence[int], exists: Callable[[tuple[int, ...]], bool]
    ) -> tuple[int, tuple[int, ...]]:
        """Accumulator rows: one for each output tile and activation row, or any."""
        total = self.config.accumulator_total_rows
        if self.pick([True, True, False]):
            inner, strides = self.place(
                (counts[0], *counts[4:]), (0, total), 1, steps=[1, 1, 2], distinct=True
            )
            return inner, (strides[0], 0, 0, 0, *strides[1:])
        return self.place(counts, (0, total), 1, steps=[1, 2], exists=exists)

    def _output_tiles(self, counts: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Accumulator rows of output tiles, one apart from the other or not."""
        span = (0, self.config.accumulator_total_rows)
        every = (*counts, self.config.rows)
        distinct = self.pick([True, False])
        return self.place(every, span, 1, steps=[1, 1, 2], distinct=distinct)

    def vector(self) -> Vector:
        """VECTOR in any of its modes."""
        config = self.config
        counts = self.counts((3, 3, 5, 5, 4, 4), 100)
        outer = counts[:4]
        fields = self.coordinates(6)
        bounded = self.pick([0, 1])

        def exists(index: tuple[int, ...]) -> bool:
            y = fields["y_origin"] + sum(i * s for i, s in zip(index, fields["y_steps"]))
            x = fields["x_origin"] + sum(i * s for i, s in zip(index, fields["x_steps"]))
            inside = 0 <= y < fields["y_extent"] and 0 <= x < fields["x_extent"]
            return not bounded or inside

        sources = [OperandSource.ACTIVATION, OperandSource.ACCUMULATOR]
        a_source, b_source = self.pick(sources), self.pick([*sources, OperandSource.WEIGHT])
        destination = self.pick([Memory.ACTIVATION, Memory.ACCUMULATOR])
        head = self.pick(list(Head))
        tail = self.pick([Tail.NONE, Tail.ADD, Tail.MAXIMUM, Tail.PRODUCT, Tail.SELECT])
        if head is Head.DOT:
            a_source, tail = OperandSource.ACTIVATION, Tail.NONE
        if head is Head.DOT or tail in (Tail.PRODUCT, Tail.SELECT):  # of int8 only
            b_source = self.pick([OperandSource.ACTIVATION, OperandSource.WEIGHT])
        b_used = head is Head.DOT or tail is not Tail.NONE
        last_lanes = self.pick([0, 0, self.between(1, config.columns)])
        a, a_strides = self._operand(a_source, counts, 0, exists)
        if not -(1 << 19) <= a < 1 << 19:
            a = 0
        if head is Head.DOT:
            b, b_strides = self._operand(b_source, counts, 0)  # has its address checked always
        else:
            b, b_strides = self._operand(b_source, outer, 0)
            b_strides = (*b_strides, 0, 0)
        wide = destination is Memory.ACCUMULATOR
        target = OperandSource.ACCUMULATOR if wide else OperandSource.ACTIVATION
        address, strides = self._operand(target, outer, 1)
        parameter, parameter_strides = self.place(
            outer, (0, config.parameter_rows), 1, steps=[1, 2]
        )
        bound = self.pick([(-128, 127), (-(1 << 31), (1 << 31) - 1), (-5, 100), (3, 3), (7, -7)])
        return Vector(
            counts=counts,
            head=head,
            a_source=a_source,
            a_address=a,
            a_strides=a_strides,
            a_zero_point=self.between(-128, 127),
            b_source=b_source if b_used else OperandSource.NONE,
            b_address=b,
            b_strides=b_strides,
            b_zero_point=self.between(-128, 127),
            destination=destination,
            address=address,
            strides=strides,
            last_lanes=last_lanes,
            bounded=bounded,
            parameter_address=parameter,
            parameter_strides=parameter_strides,
            use_bias=self.pick([0, 1]),
            pre_shift=self.pick([0, 0, 0, 7, 31, self.between(0, 31)]),
            scale_source=self.pick(list(ScaleSource)),
            scalar_registers=(
                MULTIPLIER_REGISTER,
                EXPONENT_REGISTER,
                self.between(0, 15),
                self.between(0, 15),
            ),
            clamp_from_scalar=self.pick([0, 0, 1]),
            capture=self.pick([Capture.NONE, *Capture]),
            capture_register=self.pick(NOTED_REGISTERS),
            lookup=self.pick([0, 0, 0, 0, *range(1, LOOKUP_TABLES + 1)]),
            multiplier=self.pick([0, 1 << 30, (1 << 31) - 1, self.between(0, (1 << 31) - 1)]),
            exponent=self.pick([0, -8, -31, 31, self.between(-31, 31)]),
            rounding=self.pick(list(Rounding)),
            index_address=self.pick([0, 0xFFFFFFFE, self.between(0, 0xFFFFFFFF)]),
            index_strides=tuple(self.pick([0, 1, self.between(0, 1 << 21)]) for _ in range(4)),
            tensor=self.between(0, 4095),
            tail=tail,
            zero_point=self.pick([0, self.between(-128, 127), self.between(-32768, 32767)]),
            clamp_low=bound[0],
            clamp_high=bound[1],
            select_low=self.pick([0, -512, self.between(-256, 255)]),
            select_high=self.pick([127, 511, self.between(-256, 255)]),
            **fields,
        )

    def _operand(
        self,
        source: OperandSource,
        counts: Sequence[int],
        half: int,
        exists: Callable[[tuple[int, ...]], bool] = lambda index: True,
    ) -> tuple[int, tuple[int, ...]]:
        columns = self.config.columns
        if source is OperandSource.ACCUMULATOR:
            size, width, steps = self.config.accumulator_total_rows, 1, [1, 1, 2, 5]
        else:
            weights = source is OperandSource.WEIGHT
            size = self.config.weight_bytes if weights else self.config.activation_bytes
            width = columns
            steps = self.pick([[columns, 2 * columns, 4 * columns], [1, 3, columns]])
        span = (half * size // 2, (half + 1) * size // 2) if self.apart else (0, size)
        return self.place(
            counts, span, width, steps=steps, exists=exists, distinct=self.pick([True, False])
        )

    # Data ---------------------------------------------------------------------------------------

    def parameter_rows(self) -> bytes:
        """Content for the whole parameter memory: exponents in the range that is defined."""
        config, rng = self.config, self.rng
        data = bytearray()
        for _ in range(config.parameter_rows):
            limit = self.pick([1 << 31, 1 << 20, 1 << 8])
            bias = rng.integers(-limit, limit, config.columns).astype("<i4")
            multiplier = rng.integers(0, 1 << 31, config.columns).astype("<u4")
            exponent = rng.integers(-31, self.pick([1, 32]), config.columns).astype(np.int8)
            row = bias.tobytes() + multiplier.tobytes() + exponent.tobytes()
            data += row.ljust(config.parameter_row_pitch, b"\0")
        return bytes(data)
