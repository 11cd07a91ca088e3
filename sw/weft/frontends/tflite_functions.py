"""TFLite's functions of one element: a table of 256 codes each."""

from collections.abc import Callable

from weft.frontends.tflite_file import TfliteOperator
from weft.frontends.tflite_pieces import Importer, require_shape
from weft.frontends.tflite_tables import (
    ELEMENT_FUNCTIONS,
    Codes,
    Quantization,
    absolute,
    float_table,
    hard_swish,
    leaky_relu,
    negated,
    reciprocal_root,
    square_root,
)
from weft.ir import Lookup

__all__ = ["element_function"]

Tabulate = Callable[[Importer, Quantization], Codes]

FIXED_RESULTS = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
"""Scale and zero point that TFLite demands of a result."""

OF_POSITIVE_VALUES = ("LOG", "RSQRT", "SQRT")
"""Defined where the input's zero point is its smallest code, so that no code is negative."""

_TABLES: dict[str, Tabulate] = {
    "ABS": lambda importer, quantization: absolute(quantization),
    "HARD_SWISH": lambda importer, quantization: hard_swish(quantization),
    "LEAKY_RELU": lambda importer, quantization: leaky_relu(
        quantization, float(importer.option("Alpha", 0.0))
    ),
    "NEG": lambda importer, quantization: negated(quantization),
    "RSQRT": lambda importer, quantization: reciprocal_root(quantization),
    "SQRT": lambda importer, quantization: square_root(quantization),
}


def element_function(importer: Importer, operator: TfliteOperator) -> None:
    importer.expect((1,))
    source, output = importer.activation(0), importer.result()
    require_shape(importer, output, source.shape)
    kind = operator.kind
    demanded = FIXED_RESULTS.get(kind)
    if demanded is not None and (output.scale, output.zero_point) != demanded:
        importer.refuse(
            f"gives scale {output.scale} and zero point {output.zero_point}; TFLite's kernel gives "
            f"{demanded[0]} and {demanded[1]}: convert the model again"
        )
    if kind in OF_POSITIVE_VALUES and source.zero_point != -128:
        importer.refuse(
            f"input {source.name} has zero point {source.zero_point}, so that its codes can be "
            "negative; quantize it with zero point -128"
        )
    quantization = Quantization(source.scale, source.zero_point, output.scale, output.zero_point)
    try:
        codes = _codes(importer, kind, quantization)
    except ValueError as error:
        importer.refuse(f"its scales are out of range: {error}")
    importer.emit(Lookup, (source,), output, codes=codes)


def _codes(importer: Importer, kind: str, quantization: Quantization) -> Codes:
    if kind in _TABLES:
        return _TABLES[kind](importer, quantization)
    if kind == "GELU" and importer.option("Approximate", False):
        kind = "GELU approximate"
    return float_table(ELEMENT_FUNCTIONS[kind], quantization)
