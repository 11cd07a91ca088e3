"""The machine as ``docs/machine.md`` words it: serial execution in loops over Python integers.

It shares no arithmetic and no address generation with any engine.
"""

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

from hw.scalar_reference import execute_scalar
from hw.speck import random_word
from weft_hw.config import AcceleratorConfig
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
    Rounding,
    Scalar,
    ScaleSource,
    Store,
    Tail,
    Vector,
)

__all__ = ["ReferenceFault", "ReferenceMachine"]


class ReferenceFault(Exception):
    """The arguments are the cause's name and the offending address, if the document defines one."""


def signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def at(base: int, strides: Sequence[int], index: Sequence[int]) -> int:
    return base + sum(i * stride for i, stride in zip(index, strides))


def nest(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*[range(count) for count in counts])


def round_half_away(numerator: int, denominator: int) -> int:
    quotient, remainder = divmod(abs(numerator), denominator)
    quotient += 2 * remainder >= denominator
    return quotient if numerator >= 0 else -quotient


def requantize(value: int, multiplier: int, exponent: int, rounding: Rounding, word: int) -> int:
    if rounding == Rounding.TWO_STEP:
        # As TFLite states it: round to nearest by a nudge and a division towards zero.
        value = signed(value << max(exponent, 0), 32)
        nudged = value * multiplier + (1 << 30 if value >= 0 else 1 - (1 << 30))
        high = abs(nudged) // (1 << 31) * (1 if nudged >= 0 else -1)
        return round_half_away(high, 1 << max(-exponent, 0))
    exact = Fraction(value * multiplier) * Fraction(2) ** (exponent - 31)
    if rounding == Rounding.STOCHASTIC:
        below = exact - exact.__floor__()
        result = exact.__floor__() + (int(65536 * below) + word >= 65536)
    elif rounding == Rounding.HALF_EVEN:
        result = round(exact)
    else:
        result = (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)
    return max(-(2**31), min(2**31 - 1, result))


class ReferenceMachine:
    """Memories as lists of Python integers; ``dram`` and the scratchpads hold unsigned bytes."""

    def __init__(self, config: AcceleratorConfig, dram: bytes) -> None:
        self.config = config
        self.dram = list(dram)
        self.activation = [0] * config.activation_bytes
        self.weight = [0] * config.weight_bytes
        self.parameter = [0] * config.parameter_bytes
        self.lookup = [0] * 1024
        self.scalars = [0] * 16
        self.random = (0, 0)  # seed and step
        self.accumulator = [[0] * config.columns for _ in range(config.accumulator_total_rows)]

    def execute(self, instruction: Instruction) -> None:
        match instruction:
            case Load():
                self._load(instruction)
            case Store():
                self._store(instruction)
            case Matrix():
                self._matrix(instruction)
            case Vector():
                self._vector(instruction)
            case Scalar():
                execute_scalar(instruction, self.scalars)

    # Memories -----------------------------------------------------------------------------------

    def _memory(self, memory: Memory) -> list[int]:
        return {
            Memory.ACTIVATION: self.activation,
            Memory.WEIGHT: self.weight,
            Memory.PARAMETER: self.parameter,
            Memory.LOOKUP: self.lookup,
        }[memory]

    @staticmethod
    def _inside(memory: Sequence[object], address: int, length: int) -> None:
        if address < 0 or address + length > len(memory):
            raise ReferenceFault("LOCAL_ADDRESS", address)

    def _bytes(self, memory: list[int], address: int, length: int) -> list[int]:
        self._inside(memory, address, length)
        return [signed(byte, 8) for byte in memory[address : address + length]]

    def _row(self, address: int) -> list[int]:
        self._inside(self.accumulator, address, 1)
        return self.accumulator[address]

    def _parameters(self, row: int) -> list[tuple[int, int, int]]:
        config = self.config
        if row >= config.parameter_rows:
            raise ReferenceFault("LOCAL_ADDRESS", row)
        start = row * config.parameter_row_pitch
        data = bytes(self.parameter[start : start + 9 * config.columns])

        def word(number: int, is_signed: bool) -> int:
            return int.from_bytes(data[4 * number : 4 * number + 4], "little", signed=is_signed)

        return [
            (
                word(lane, True),
                word(config.columns + lane, False),
                signed(data[8 * config.columns + lane], 8),
            )
            for lane in range(config.columns)
        ]

    # Instructions -------------------------------------------------------------------------------

    def _runs(self, instruction: Load | Store) -> Iterator[tuple[int, int, bool]]:
        if 0 in instruction.counts or instruction.run_bytes == 0:
            raise ReferenceFault("ZERO_COUNT")
        if instruction.memory in (Memory.PARAMETER, Memory.LOOKUP):
            placed = (instruction.dram_address, instruction.address, instruction.run_bytes)
            for value in placed + instruction.dram_strides + instruction.strides:
                if value % self.config.bus_bytes:
                    raise ReferenceFault("ALIGNMENT")
        if instruction.memory == Memory.ACCUMULATOR:
            for value in (
                instruction.dram_address,
                instruction.run_bytes,
                *instruction.dram_strides,
            ):
                if value % self._element_bytes(instruction):
                    raise ReferenceFault("ALIGNMENT")
        for index in nest(instruction.counts):
            coordinate = at(instruction.origin, instruction.steps, index)
            yield (
                at(instruction.dram_address, instruction.dram_strides, index),
                at(instruction.address, instruction.strides, index),
                0 <= coordinate < instruction.extent,
            )

    def _on_bus(self, cause: str, address: int, length: int) -> None:
        """Bursts are whole beats; the first one that the memory does not hold whole fails."""
        beat = self.config.bus_bytes
        block = beat * self.config.burst_beats
        burst = address - address % beat
        while burst < address + length:
            end = min(burst - burst % block + block, -(-(address + length) // beat) * beat)
            if end > len(self.dram):
                raise ReferenceFault(cause, burst)
            burst = end

    @staticmethod
    def _element_bytes(instruction: Load | Store) -> int:
        return {Element.INT8: 1, Element.INT16: 2, Element.INT32: 4}[instruction.element]

    def _load(self, instruction: Load) -> None:
        length = instruction.run_bytes
        for dram, local, exists in self._runs(instruction):
            if instruction.memory == Memory.ACCUMULATOR:
                self._load_rows(instruction, dram, local, exists)
                continue
            memory = self._memory(instruction.memory)
            self._inside(memory, local, length)
            data = [instruction.fill % 256] * length
            if exists:
                self._on_bus("READ_ERROR", dram, length)
                data = self.dram[dram : dram + length]
            memory[local : local + length] = data

    def _rows(self, instruction: Load | Store, local: int) -> list[tuple[int, int]]:
        """Row and lane of each element of a run; the fault names the run's first row."""
        columns = self.config.columns
        elements = range(instruction.run_bytes // self._element_bytes(instruction))
        places = [(local + number // columns, number % columns) for number in elements]
        self._inside(self.accumulator, local, places[-1][0] - local + 1)
        return places

    def _load_rows(self, instruction: Load, dram: int, local: int, exists: bool) -> None:
        width = self._element_bytes(instruction)
        places = self._rows(instruction, local)
        if exists:
            self._on_bus("READ_ERROR", dram, instruction.run_bytes)
        for number, (row, lane) in enumerate(places):
            value = instruction.fill
            if exists:
                start = dram + number * width
                data = bytes(self.dram[start : start + width])
                value = int.from_bytes(data, "little", signed=True)
            self.accumulator[row][lane] = value

    def _store(self, instruction: Store) -> None:
        length = instruction.run_bytes
        for dram, local, exists in self._runs(instruction):
            if not exists:
                continue
            if instruction.memory == Memory.ACCUMULATOR:
                data = self._narrowed(instruction, self._rows(instruction, local))
            else:
                self._inside(self.activation, local, length)
                data = self.activation[local : local + length]
            self._on_bus("WRITE_ERROR", dram, length)
            self.dram[dram : dram + length] = data

    def _narrowed(self, instruction: Store, places: list[tuple[int, int]]) -> list[int]:
        width = self._element_bytes(instruction)
        largest = 2 ** (8 * width - 1) - 1
        data = b""
        for row, lane in places:
            value = min(max(self.accumulator[row][lane], -largest - 1), largest)
            data += value.to_bytes(width, "little", signed=True)
        return list(data)

    @staticmethod
    def _exists(instruction: Matrix | Vector, index: tuple[int, ...]) -> bool:
        y = at(instruction.y_origin, instruction.y_steps, index)
        x = at(instruction.x_origin, instruction.x_steps, index)
        return 0 <= y < instruction.y_extent and 0 <= x < instruction.x_extent

    def _matrix(self, instruction: Matrix) -> None:
        if 0 in instruction.counts:
            raise ReferenceFault("ZERO_COUNT")
        if instruction.load_side == LoadSide.LEFT and self.config.rows != self.config.columns:
            raise ReferenceFault("UNSUPPORTED_FIELD")
        bits = {0: 8, 1: 4, 2: 2}[instruction.weight_bits]
        if bits not in self.config.weight_modes:
            raise ReferenceFault("UNSUPPORTED_FIELD")
        if bits < 8 and (
            instruction.dataflow != Dataflow.WEIGHT_STATIONARY
            or instruction.load_side != LoadSide.TOP
            or instruction.top_zero_point != 0
        ):
            raise ReferenceFault("UNSUPPORTED_FIELD")
        if instruction.dataflow == Dataflow.OUTPUT_STATIONARY:
            self._output_stationary(instruction)
        else:
            self._weight_stationary(instruction)

    def _left(self, instruction: Matrix, index: tuple[int, ...], width: int) -> list[int]:
        if instruction.bounds == Bounds.LEFT and not self._exists(instruction, index):
            return [0] * width
        address = at(instruction.left_address, instruction.left_strides, index)
        data = self._bytes(self.activation, address, width)
        return [value - instruction.left_zero_point for value in data]

    def _top(self, instruction: Matrix, address: int) -> list[int]:
        data = self._bytes(self.weight, address, self.config.columns)
        return [value - instruction.top_zero_point for value in data]

    def _weight_stationary(self, instruction: Matrix) -> None:
        config = self.config
        bits = {0: 8, 1: 4, 2: 2}[instruction.weight_bits]
        k = 8 // bits
        for outer in nest(instruction.counts[:4]):
            top = at(instruction.top_address, instruction.top_strides[:4], outer)
            tile = [
                self._top(instruction, top + r * instruction.tile_stride)
                for r in range(config.rows)
            ]
            if instruction.load_side == LoadSide.LEFT:
                tile = [list(column) for column in zip(*tile, strict=True)]
            for inner in nest(instruction.counts[4:]):
                index = outer + inner
                left = self._left(instruction, index, config.rows * k)
                if instruction.bounds == Bounds.ACCUMULATOR and not self._exists(
                    instruction, index
                ):
                    continue
                row = self._row(
                    at(instruction.accumulator_address, instruction.accumulator_strides, index)
                )
                adds = instruction.accumulate == Accumulate.ALWAYS_ADD or any(outer[1:])
                for c in range(config.columns):
                    total = 0
                    for r in range(config.rows):
                        if bits == 8:
                            total += left[r] * tile[r][c]
                            continue
                        byte = tile[r][c] % 256
                        for j in range(k):
                            total += left[r * k + j] * signed(byte >> (bits * j), bits)
                    row[c] = signed((row[c] if adds else 0) + total, 32)

    def _output_stationary(self, instruction: Matrix) -> None:
        config = self.config
        for outer in nest(instruction.counts[:4]):
            sums = [[0] * config.columns for _ in range(config.rows)]
            for inner in nest(instruction.counts[4:]):
                index = outer + inner
                top = [0] * config.columns
                if instruction.bounds != Bounds.TOP or self._exists(instruction, index):
                    address = at(instruction.top_address, instruction.top_strides, index)
                    top = self._top(instruction, address)
                left = self._left(instruction, index, config.rows)
                for r in range(config.rows):
                    for c in range(config.columns):
                        sums[r][c] += left[r] * top[c]
            base = at(instruction.accumulator_address, instruction.accumulator_strides[:4], outer)
            for r in (0, config.rows - 1):
                self._row(base + r * instruction.tile_stride)
            for r in reversed(range(config.rows)):
                row = self._row(base + r * instruction.tile_stride)
                adds = instruction.accumulate == Accumulate.ALWAYS_ADD
                for c in range(config.columns):
                    row[c] = signed((row[c] if adds else 0) + sums[r][c], 32)

    def _vector(self, instruction: Vector) -> None:
        if 0 in instruction.counts:
            raise ReferenceFault("ZERO_COUNT")
        # Reads may not depend on the instruction's own writes: all are made first.
        for address, lanes, results in list(self._vectors(instruction)):
            if instruction.destination == Memory.ACCUMULATOR:
                self._row(address)[:lanes] = results[:lanes]
            else:
                data = [result % 256 for result in results[:lanes]]
                self.activation[address : address + lanes] = data

    def _vectors(self, instruction: Vector) -> Iterator[tuple[int, int, list[int]]]:
        columns = self.config.columns
        largest, clamped = [0], [0]  # what is captured
        for outer in nest(instruction.counts[:4]):
            lanes = columns
            if outer[0] == instruction.counts[0] - 1 and instruction.last_lanes:
                lanes = min(columns, instruction.last_lanes)
            results = self._values(instruction, outer, lanes, largest, clamped)
            address = at(instruction.address, instruction.strides, outer)
            if instruction.destination == Memory.ACCUMULATOR:
                self._row(address)
            else:
                self._inside(self.activation, address, lanes)
            yield address, lanes, results
        note = instruction.capture_register
        if instruction.capture in (Capture.LARGEST, Capture.BOTH):
            self.scalars[note] = max(self.scalars[note], min(largest[0], 2**31 - 1))
        if instruction.capture in (Capture.CLAMPED, Capture.BOTH):
            note = (note + 1) % 16
            self.scalars[note] = signed(self.scalars[note] + clamped[0], 32)

    def _values(
        self,
        instruction: Vector,
        outer: tuple[int, ...],
        lanes: int,
        largest: list[int],
        clamped: list[int],
    ) -> list[int]:
        columns = self.config.columns
        window, factors, numbers = [], [], []
        for inner in nest(instruction.counts[4:]):
            index = outer + inner
            exists = not instruction.bounded or self._exists(instruction, index)
            if exists:
                numbers.append(inner[0] * instruction.counts[5] + inner[1])
                address = at(instruction.a_address, instruction.a_strides, index)
                window.append(
                    self._operand(instruction.a_source, address, instruction.a_zero_point)
                )
            if instruction.head == Head.DOT:
                address = at(instruction.b_address, instruction.b_strides, index)
                factor = self._operand(instruction.b_source, address, instruction.b_zero_point)
                if exists:
                    factors.append(factor)
        b = [0] * columns
        if instruction.tail != Tail.NONE:
            address = at(instruction.b_address, instruction.b_strides[:4], outer)
            b = self._operand(instruction.b_source, address, instruction.b_zero_point)
        parameters = [(0, 0, 0)] * columns
        if instruction.use_bias or instruction.scale_source == ScaleSource.PARAMETER:
            row = at(instruction.parameter_address, instruction.parameter_strides, outer) % 256
            parameters = self._parameters(row)
        results = []
        for lane in range(columns):
            elements = [vector[lane] for vector in window]
            if instruction.head == Head.SUM:
                value = sum(elements)
            elif instruction.head == Head.DOT:
                value = sum(a * other[lane] for a, other in zip(elements, factors, strict=True))
            elif instruction.head == Head.INDEX_OF_MAXIMUM:
                value = numbers[elements.index(max(elements))] if elements else 0
            else:
                value = max(elements, default=-(2**31))
            bias, multiplier, exponent = parameters[lane]
            value = signed(value + bias * instruction.use_bias, 32)
            if lane < lanes:
                largest[0] = max(largest[0], value, -value)
            value = signed(value << instruction.pre_shift, 32)
            if instruction.scale_source == ScaleSource.INSTRUCTION:
                multiplier, exponent = instruction.multiplier, instruction.exponent
            if instruction.scale_source == ScaleSource.SCALAR:
                multiplier = self.scalars[instruction.scalar_registers[0]] % 2**31
                exponent = signed(self.scalars[instruction.scalar_registers[1]], 8)
            if instruction.scale_source != ScaleSource.NONE:
                place = at(instruction.index_address, instruction.index_strides, outer) + lane
                word = random_word(*self.random, instruction.tensor, place)
                value = requantize(value, multiplier, exponent, instruction.rounding, word)
            if instruction.tail == Tail.ADD:
                value = signed(value + b[lane], 32)
            elif instruction.tail == Tail.MAXIMUM:
                value = max(value, b[lane])
            elif instruction.tail == Tail.PRODUCT:
                value = signed(value * b[lane], 32)
            elif instruction.tail == Tail.SELECT:
                passes = b[lane] > instruction.select_low and b[lane] < instruction.select_high
                value = value if passes else 0
            value = signed(value + instruction.zero_point, 32)
            low, high = instruction.clamp_low, instruction.clamp_high
            if instruction.clamp_from_scalar:
                low, high = (self.scalars[n] for n in instruction.scalar_registers[2:])
            bounded = min(max(value, low), high)
            clamped[0] += lane < lanes and bounded != value
            if instruction.lookup:
                bounded = signed(self.lookup[256 * instruction.lookup - 256 + bounded % 256], 8)
            results.append(bounded)
        return results

    def _operand(self, source: OperandSource, address: int, zero_point: int) -> list[int]:
        if source == OperandSource.ACCUMULATOR:
            return list(self._row(address))
        memory = self.weight if source == OperandSource.WEIGHT else self.activation
        data = self._bytes(memory, address, self.config.columns)
        return [value - zero_point for value in data]
