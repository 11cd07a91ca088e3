"""VECTOR as ``docs/machine.md`` words it, in loops over Python integers, sharing no arithmetic."""

import dataclasses
import itertools
from fractions import Fraction

from hw.scalar_reference import execute_scalar
from hw.speck import random_word
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import (
    Capture,
    Head,
    Memory,
    OperandSource,
    Rounding,
    Scalar,
    ScaleSource,
    Tail,
    Vector,
)

__all__ = ["OutsideError", "State", "accesses", "execute", "scale"]


class OutsideError(Exception):
    """An access that takes place lies outside its memory; the argument is its address."""


@dataclasses.dataclass
class State:
    """On-chip memories as lists of signed integers; a parameter row is a list of triples."""

    activation: list[int]
    accumulator: list[list[int]]
    parameters: list[list[tuple[int, int, int]]]
    weight: list[int]
    random: tuple[int, int]  # seed and step
    lookup: list[list[int]]
    scalars: list[int]

    def copy(self) -> "State":
        rows = [list(row) for row in self.accumulator]
        parameters = [list(row) for row in self.parameters]
        lookup, scalars = [list(table) for table in self.lookup], list(self.scalars)
        memories = (list(self.activation), rows, parameters, list(self.weight))
        return State(*memories, self.random, lookup, scalars)


def wrap(value: int, bits: int = 32) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def saturate(value: int) -> int:
    return min(max(value, -(1 << 31)), (1 << 31) - 1)


def scale(value: int, multiplier: int, exponent: int, rounding: Rounding, word: int) -> int:
    """TFLite's two functions as published, or one exact division rounded once."""
    if rounding == Rounding.TWO_STEP:
        value = wrap(value << max(exponent, 0))
        product = value * multiplier
        nudge = (1 << 30) if product >= 0 else 1 - (1 << 30)
        quotient = abs(product + nudge) >> 31  # C divides towards zero
        high = quotient if product + nudge >= 0 else -quotient
        shift = max(-exponent, 0)
        mask = (1 << shift) - 1
        threshold = (mask >> 1) + (1 if high < 0 else 0)
        return (high >> shift) + (1 if (high & mask) > threshold else 0)
    exact = Fraction(value * multiplier) * Fraction(2) ** (exponent - 31)
    if rounding == Rounding.STOCHASTIC:  # by multiples of 2^-16, of which the word is one
        multiples = (exact * 65536).__floor__()
        return saturate((multiples + word) // 65536)
    if rounding == Rounding.HALF_EVEN:
        return saturate(round(exact))  # Python rounds halves to even
    return saturate((exact + Fraction(1, 2)).__floor__())


def _sum(base: int, strides: tuple[int, ...], index: tuple[int, ...]) -> int:
    return base + sum(stride * i for stride, i in zip(strides, index))


def _exists(instruction: Vector, index: tuple[int, ...]) -> bool:
    y = _sum(instruction.y_origin, instruction.y_steps, index)
    x = _sum(instruction.x_origin, instruction.x_steps, index)
    inside = 0 <= y < instruction.y_extent and 0 <= x < instruction.x_extent
    return inside or not instruction.bounded


def _lanes(instruction: Vector, config: AcceleratorConfig, index: tuple[int, ...]) -> int:
    if index[0] == instruction.counts[0] - 1 and instruction.last_lanes:
        return min(instruction.last_lanes, config.columns)
    return config.columns


def accesses(instruction: Vector, config: AcceleratorConfig) -> list[list[tuple[str, int, int]]]:
    """For each vector, in order: (what, first address, length) of all that it touches."""
    ranges = [range(count) for count in instruction.counts]
    vectors = []
    for outer in itertools.product(*ranges[:4]):
        touched = []
        for inner in itertools.product(*ranges[4:]):
            if _exists(instruction, outer + inner):
                a = _sum(instruction.a_address, instruction.a_strides, outer + inner)
                touched.append(("a", a, config.columns))
            if instruction.head == Head.DOT:
                b = _sum(instruction.b_address, instruction.b_strides, outer + inner)
                touched.append(("b", b, config.columns))
        if instruction.tail != Tail.NONE:
            b = _sum(instruction.b_address, instruction.b_strides[:4], outer)
            touched.append(("b", b, config.columns))
        result = _sum(instruction.address, instruction.strides, outer)
        touched.append(("result", result, _lanes(instruction, config, outer)))
        if instruction.use_bias or instruction.scale_source == ScaleSource.PARAMETER:
            row = _sum(instruction.parameter_address, instruction.parameter_strides, outer) % 256
            touched.append(("parameter", row, 1))
        vectors.append(touched)
    return vectors


def _bytes(instruction: Vector, state: State, what: str) -> list[int]:
    """The scratchpad of an int8 operand or result."""
    weights = what == "b" and instruction.b_source == OperandSource.WEIGHT
    return state.weight if weights else state.activation


def _is_accumulator(instruction: Vector, what: str) -> bool:
    if what == "result":
        return instruction.destination == Memory.ACCUMULATOR
    source = instruction.a_source if what == "a" else instruction.b_source
    return source == OperandSource.ACCUMULATOR


def _check(instruction: Vector, state: State, what: str, address: int, length: int) -> None:
    if what == "parameter":
        size = len(state.parameters)
    elif _is_accumulator(instruction, what):
        size, length = len(state.accumulator), 1
    else:
        size = len(_bytes(instruction, state, what))
    if not (0 <= address and address + length <= size):
        raise OutsideError(address)


def _tail(instruction: Vector, value: int, b: int) -> int:
    if instruction.tail == Tail.ADD:
        return wrap(value + b)
    if instruction.tail == Tail.MAXIMUM:
        return max(value, b)
    if instruction.tail == Tail.PRODUCT:
        return wrap(value * b)
    assert instruction.tail == Tail.SELECT
    return value if instruction.select_low < b < instruction.select_high else 0


def _with_scalars(instruction: Vector, scalars: list[int]) -> Vector:
    """The same with what it takes from registers written into its fields."""
    multiplier, exponent, low, high = (scalars[n] for n in instruction.scalar_registers)
    if instruction.scale_source == ScaleSource.SCALAR:
        instruction = dataclasses.replace(
            instruction,
            scale_source=ScaleSource.INSTRUCTION,
            multiplier=multiplier % 2**31,
            exponent=wrap(exponent, 8),
        )
    if instruction.clamp_from_scalar:
        instruction = dataclasses.replace(instruction, clamp_low=low, clamp_high=high)
    return instruction


def _note_largest(instruction: Vector, scalars: list[int], value: int) -> None:
    if instruction.capture in (Capture.LARGEST, Capture.BOTH):
        n = instruction.capture_register
        scalars[n] = max(scalars[n], min(abs(value), 2**31 - 1))


def _note_clamped(instruction: Vector, scalars: list[int], clamped: bool) -> None:
    if instruction.capture in (Capture.CLAMPED, Capture.BOTH):
        n = (instruction.capture_register + 1) % 16
        scalars[n] = wrap(scalars[n] + clamped)


def execute(instruction: Vector | Scalar, config: AcceleratorConfig, state: State) -> None:
    """Change the state as the instruction does; stops with OutsideError at the first bad vector."""
    if isinstance(instruction, Scalar):
        execute_scalar(instruction, state.scalars)
        return
    instruction = _with_scalars(instruction, state.scalars)
    ranges = [range(count) for count in instruction.counts]
    outers = itertools.product(*ranges[:4])
    for outer, touched in zip(outers, accesses(instruction, config)):
        for what, address, length in touched:
            _check(instruction, state, what, address, length)
        windows = [outer + inner for inner in itertools.product(*ranges[4:])]
        places = {what: address for what, address, _ in touched if what != "a"}
        row = state.parameters[places["parameter"]] if "parameter" in places else None
        results = []
        for lane in range(config.columns):
            elements = []
            existing = [index for index in windows if _exists(instruction, index)]
            for index in existing:
                a = _sum(instruction.a_address, instruction.a_strides, index)
                if _is_accumulator(instruction, "a"):
                    elements.append(state.accumulator[a][lane])
                else:
                    elements.append(state.activation[a + lane] - instruction.a_zero_point)
                if instruction.head == Head.DOT:
                    b = _sum(instruction.b_address, instruction.b_strides, index)
                    byte = _bytes(instruction, state, "b")[b + lane]
                    elements[-1] *= byte - instruction.b_zero_point
            if instruction.head == Head.MAXIMUM:
                value = max(elements, default=-(1 << 31))
            elif instruction.head == Head.INDEX_OF_MAXIMUM:
                value = 0
                if elements:
                    index = existing[elements.index(max(elements))]
                    value = index[4] * instruction.counts[5] + index[5]
            else:
                value = sum(elements)
            bias, multiplier, exponent = row[lane] if row else (0, 0, 0)
            value = wrap(value + (bias if instruction.use_bias else 0))
            if lane < _lanes(instruction, config, outer):
                _note_largest(instruction, state.scalars, value)
            value = wrap(value << instruction.pre_shift)
            if instruction.scale_source == ScaleSource.INSTRUCTION:
                multiplier, exponent = instruction.multiplier, instruction.exponent
            if instruction.scale_source != ScaleSource.NONE:
                element = lane + _sum(instruction.index_address, instruction.index_strides, outer)
                word = random_word(*state.random, instruction.tensor, element)
                value = scale(value, multiplier, exponent, instruction.rounding, word)
            if instruction.tail != Tail.NONE:
                if _is_accumulator(instruction, "b"):
                    b = state.accumulator[places["b"]][lane]
                else:
                    byte = _bytes(instruction, state, "b")[places["b"] + lane]
                    b = byte - instruction.b_zero_point
                value = _tail(instruction, value, b)
            value = wrap(value + instruction.zero_point)
            bounded = min(max(value, instruction.clamp_low), instruction.clamp_high)
            if lane < _lanes(instruction, config, outer):
                _note_clamped(instruction, state.scalars, bounded != value)
            if instruction.lookup:
                bounded = state.lookup[instruction.lookup - 1][bounded % 256]
            results.append(bounded)
        for lane in range(_lanes(instruction, config, outer)):
            if _is_accumulator(instruction, "result"):
                state.accumulator[places["result"]][lane] = results[lane]
            else:
                state.activation[places["result"] + lane] = wrap(results[lane], 8)
