"""TFLite's int8 functions of one element, as tables of all 256 codes.

Each function is what TFLite's reference kernel computes (named in its docstring): in integers, or
in float32 step by step. Library functions of float32 (``expf``, ``erfcf``, ...) are the float64
function rounded to float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.ir import INT8_RANGE
from weft_hw.arithmetic import quantize_multiplier, requantize
from weft_hw.instructions import Rounding

__all__ = [
    "ELEMENT_FUNCTIONS",
    "Codes",
    "Quantization",
    "absolute",
    "float_table",
    "hard_swish",
    "leaky_relu",
    "negated",
    "reciprocal_root",
    "square_root",
]

Codes = NDArray[np.int8]
Integers = NDArray[np.int64]
Floats = NDArray[np.float32]

CODES: Integers = np.arange(INT8_RANGE[0], INT8_RANGE[1] + 1)
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1


@dataclass(frozen=True)
class Quantization:
    """Scales (float32 values) and zero points of a function's input and output."""

    scale: float
    zero_point: int
    result_scale: float
    result_zero_point: int


def _clamped(codes: Integers) -> Codes:
    return np.clip(codes, *INT8_RANGE).astype(np.int8)


# Functions of float32 ----------------------------------------------------------------------------


def float_table(function: Callable[[Floats], Floats], quantization: Quantization) -> Codes:
    """The codes of a float32 function (``LUTPopulate`` in TFLite's ``lut.h``).

    Parameters
    ----------
    function : function of a float32 array, giving another without NaN
    quantization : Quantization

    Returns
    -------
    int8 array [256]
        For the codes -128 to 127 in this order.
    """
    steps = _steps(function, quantization).astype(np.float64)
    return _codes(np.copysign(np.floor(np.abs(steps) + 0.5), steps), quantization)


def square_root(quantization: Quantization) -> Codes:
    """As :func:`float_table` of the square root, but rounded down; for a zero point of -128."""
    return _codes(np.floor(_steps(np.sqrt, quantization)), quantization)


def _steps(function: Callable[[Floats], Floats], quantization: Quantization) -> Floats:
    """The function's results in steps of the output's scale, not yet whole."""
    centred = (CODES - quantization.zero_point).astype(np.float32)
    with np.errstate(all="ignore"):
        values = function(np.float32(quantization.scale) * centred)
        steps: Floats = values * (np.float32(1) / np.float32(quantization.result_scale))
    return steps


def _codes(steps: NDArray[np.floating], quantization: Quantization) -> Codes:
    """Whole steps as codes."""
    return np.clip(steps + quantization.result_zero_point, *INT8_RANGE).astype(np.int8)


def _library(function: Callable[[float], float]) -> Callable[[Floats], Floats]:
    """A function of Python's ``math`` on float32 arrays, infinite where it overflows."""

    def apply(values: Floats) -> Floats:
        def one(value: float) -> float:
            try:
                return function(value)
            except OverflowError:
                return math.inf

        return np.array([one(value) for value in values.tolist()], np.float64).astype(np.float32)

    return apply


_exp, _tanh, _erfc = _library(math.exp), _library(math.tanh), _library(math.erfc)
_root_of_half = np.float32(math.sqrt(0.5))
_root_of_two_over_pi = np.float32(math.sqrt(2 / math.pi))


def _logistic(values: Floats) -> Floats:
    one = np.float32(1)
    result: Floats = one / (one + _exp(-values))
    return result


def _elu(values: Floats) -> Floats:
    return np.where(values < 0, _library(math.expm1)(np.minimum(values, 0)), values)


def _gelu(values: Floats) -> Floats:
    result: Floats = np.float32(0.5) * values * _erfc(-values * _root_of_half)
    return result


def _gelu_approximate(values: Floats) -> Floats:
    inner = values + np.float32(0.044715) * values * values * values
    result: Floats = (
        np.float32(0.5) * values * (np.float32(1) + _tanh(_root_of_two_over_pi * inner))
    )
    return result


def _log(values: Floats) -> Floats:
    return _library(lambda value: math.log(value) if value > 0 else -math.inf)(values)


ELEMENT_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "ELU": _elu,
    "EXP": _exp,
    "GELU": _gelu,
    "GELU approximate": _gelu_approximate,
    "LOG": _log,
    "LOGISTIC": _logistic,
    "TANH": _tanh,
}
"""float32 functions by operator, for :func:`float_table`."""


# Functions in integers ---------------------------------------------------------------------------


def _scaled(values: Integers, multiplier: int, exponent: int) -> Integers:
    """``MultiplyByQuantizedMultiplier``: two roundings.

    Raises
    ------
    ValueError
        Where TFLite's result is undefined: it shifts out of 32 bits.
    """
    if exponent < -31 or int(np.abs(values).max()) << max(exponent, 0) > INT32_MAX:
        raise ValueError("the kernel's own numbers leave 32 bits")
    return requantize(values, multiplier, exponent, Rounding.TWO_STEP)


def negated(quantization: Quantization) -> Codes:
    """``reference_ops::Negate`` of codes: -q modulo 256, whatever the quantization."""
    return (-CODES).astype(np.int8)


def absolute(quantization: Quantization) -> Codes:
    """``AbsEvalQuantized``: of the centred code, rescaled where the scales differ."""
    values = np.abs(CODES - quantization.zero_point)
    if quantization.scale != quantization.result_scale:
        ratio = np.float32(quantization.scale) / np.float32(quantization.result_scale)
        values = _scaled(values, *quantize_multiplier(float(ratio)))
    return _clamped(values + quantization.result_zero_point)


def leaky_relu(quantization: Quantization, alpha: float) -> Codes:
    """``QuantizeLeakyRelu``: a multiplier for each sign; ratios of scales are float32."""
    centred = CODES - quantization.zero_point
    scale, result_scale = np.float32(quantization.scale), np.float32(quantization.result_scale)
    straight = _scaled(centred, *quantize_multiplier(float(scale / result_scale)))
    slope = float(scale * np.float32(alpha) / result_scale)
    multiplier, exponent = quantize_multiplier(abs(slope))
    leaking = _scaled(centred, int(math.copysign(multiplier, slope)), exponent)
    return _clamped(np.where(centred >= 0, straight, leaking) + quantization.result_zero_point)


def reciprocal_root(quantization: Quantization) -> Codes:
    """``RsqrtEvalQuantized`` for a zero point of -128; the root of nothing is 127.

    Its inverse square root is gemmlowp's: five Newton steps on numbers with 28 bits behind the
    point (``GetInvSqrtQuantizedMultiplierExp``).
    """
    shift = 20
    scale = 1 / (float(np.sqrt(np.float32(quantization.scale))) * quantization.result_scale)
    multiplier, exponent = quantize_multiplier(scale)
    results = []
    for value in (CODES - quantization.zero_point).tolist():
        if value <= 0:
            results.append(INT8_RANGE[1])
            continue
        root, left = _inverse_root(value)
        data = _scaled(np.array(1), root, left + shift)
        results.append(int(_scaled(data, multiplier, exponent - shift)))
        results[-1] += quantization.result_zero_point
    return _clamped(np.array(results))


def _inverse_root(value: int) -> tuple[int, int]:
    """Multiplier and exponent of ``1 / sqrt(value)``."""
    if value == 1:
        return INT32_MAX, 0
    pairs = (32 - value.bit_length() - 1) // 2 - 1
    shift = 11 - pairs
    number = value << (2 * pairs) >> 1
    half = int(_shifted(number, 1))
    x = 1 << 28
    for _ in range(5):
        cube = _rescaled(_product(_product(x, x), x), 6)
        x = _rescaled(_product((1 << 28) + (1 << 27), x) - _product(half, cube), 3)
    x = _product(x, 1518500250)
    if shift < 0:
        return x << -shift, 0
    return x, -shift


def _product(first: int, second: int) -> int:
    """``SaturatingRoundingDoublingHighMul`` of two int32."""
    product = first * second
    nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
    total = product + nudge
    return total >> 31 if total >= 0 else -(-total >> 31)


def _rescaled(value: int, bits: int) -> int:
    """``SaturatingRoundingMultiplyByPOT`` to the left."""
    return min(max(value << bits, INT32_MIN), INT32_MAX)


def _shifted(value: int, bits: int) -> int:
    """``RoundingDivideByPOT``: halves away from zero."""
    remainder = value & ((1 << bits) - 1)
    return (value >> bits) + (remainder > (((1 << bits) - 1) >> 1) + (value < 0))


def hard_swish(quantization: Quantization) -> Codes:
    """``reference_ops::HardSwish``: ``x relu6(x + 3) / 6`` in 16-bit fixed point.

    Raises
    ------
    ValueError
        If the input's scale is so large that TFLite refuses it, too: 128 output scales or more.
    """
    fine = np.float32(1 / 128) * np.float32(quantization.scale)
    multiplier, exponent = _short_multiplier(float(fine / np.float32(quantization.result_scale)))
    gate, gate_exponent = _short_multiplier(float(fine / np.float32(3 / 32768)))
    if exponent > 0:
        raise ValueError("its input's scale is more than 128 times its output's")
    results = []
    for centred in (CODES - quantization.zero_point).tolist():
        value = centred << 7
        opening = value
        if gate_exponent > 0:
            opening = _short(opening << (gate_exponent - 1))
        opening = _short_product(opening, gate)
        if gate_exponent > 0:
            opening = _short(opening << 1)
        if gate_exponent < 0:
            opening = _short_shifted(opening, -gate_exponent)
        opening = (opening + (1 << 15)) >> 1
        product = opening * _short_product(value, multiplier)
        result = product >> 15 if product >= 0 else -(-product >> 15)
        results.append(_short_shifted(result, -exponent) + quantization.result_zero_point)
    return _clamped(np.array(results))


def _short(value: int) -> int:
    """Saturated to int16."""
    return min(max(value, -(1 << 15)), (1 << 15) - 1)


def _short_shifted(value: int, bits: int) -> int:
    """``RoundingDivideByPOT`` of an int16, whose mask of 16 and more bits is -1 there."""
    if bits < 16:
        return _shifted(value, bits)
    return 1 if value >= 0 else -1


def _short_multiplier(scale: float) -> tuple[int, int]:
    """A multiplier of 15 bits, and its exponent (``DownScaleInt32ToInt16Multiplier``)."""
    multiplier, exponent = quantize_multiplier(scale)
    return min((multiplier + (1 << 15)) >> 16, (1 << 15) - 1), exponent


def _short_product(first: int, second: int) -> int:
    """``SaturatingRoundingDoublingHighMul`` of two int16 (never both the smallest)."""
    product = first * second
    total = product + (1 << 14 if product >= 0 else 1 - (1 << 14))
    return total >> 15 if total >= 0 else -(-total >> 15)
