"""Random cases by operator: how many codes were compared, and how many differ."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from float_rounding import explain
from pytorch_models import MODELS, layers_beside_pytorch, prepared
from tflite_networks import random_network
from tflite_operators import BUILDS, CONFIGS, drawn_operator, drawn_table, run
from tflite_writer import FUNCTIONS, Record, TfliteWriter
from weft.compiler import compile_graph
from weft.frontends.pytorch import graph_from_torch
from weft.quantize.integer_reference import IntegerReference
from weft.session import Session
from weft_hw.config import PRESETS

__all__ = [
    "Row",
    "pytorch_machine",
    "pytorch_rows",
    "tflite_networks",
    "tflite_rows",
    "tflite_tables",
]

SEED = 1
OPERATOR_CASES = 10
NETWORK_CASES = 50
TABLE_CASES = 100
MODEL_SEEDS = (1, 2)


@dataclass
class Row:
    """Results of one operator: random cases, codes compared, codes that differ, and why."""

    operator: str
    cases: int = 0
    codes: int = 0
    differ: int = 0
    reasons: tuple[str, ...] = ()

    def add(self, expected: list[np.ndarray], made: list[np.ndarray]) -> None:
        """Another case; arrays of other types or shapes differ in every element."""
        self.cases += 1
        for one, other in zip(expected, made, strict=True):
            self.codes += one.size
            alike = one.dtype == other.dtype and one.shape == other.shape
            self.differ += int((one != other).sum()) if alike else one.size


def _random(*words: object) -> np.random.Generator:
    return np.random.default_rng([SEED, zlib.crc32(repr(words).encode())])


def _compare(row: Row, writer: TfliteWriter, outputs: list[Record], case: int) -> None:
    row.add(*run(writer, outputs, CONFIGS[case % len(CONFIGS)], case if case % 2 else None))


def tflite_rows(names: tuple[str, ...] = tuple(BUILDS), cases: int = OPERATOR_CASES) -> list[Row]:
    """One operator behind an input, on several configurations and tilings."""
    rows = []
    for name in sorted(names):
        rows.append(Row(name))
        for case in range(cases):
            _compare(rows[-1], *drawn_operator(name, case, _random(name, case)), case)
    return rows


def tflite_tables(cases: int = TABLE_CASES) -> list[Row]:
    """Tables of all 256 codes; quantizations that weft refuses are no case."""
    rows = []
    for name in sorted((*FUNCTIONS, "ELU")):
        rows.append(Row(name))
        rng = _random("table", name)
        for _ in range(cases):
            drawn = drawn_table(name, rng)
            if not isinstance(drawn, str):
                rows[-1].add([drawn[0]], [drawn[1]])
    return rows


def tflite_networks(cases: int = NETWORK_CASES) -> Row:
    """Whole networks, compiled for their outputs."""
    row = Row("networks of 3 to 12 layers")
    for case in range(cases):
        _compare(row, *random_network(_random("network", case)), case)
    return row


def pytorch_rows() -> list[Row]:
    """The integer rules beside PyTorch's float32 graph, each layer on equal inputs.

    Raises
    ------
    AssertionError
        If a difference is no effect of float32 rounding, or the integer code not the rounded exact
        value.
    """
    rows: dict[str, Row] = {}
    for kind in MODELS:
        for seed in MODEL_SEEDS:
            model, samples = prepared(kind, seed)
            for layer in layers_beside_pytorch(model, samples):
                row = rows.setdefault(layer.operator, Row(layer.operator))
                row.add([layer.floating], [layer.integer])
                if layer.exact is not None:
                    found = explain(layer.exact, layer.integer, layer.floating, layer.name)
                    row.reasons = tuple(sorted({*row.reasons, *(each.kind for each in found)}))
    return [rows[name] for name in sorted(rows)]


def pytorch_machine() -> Iterator[Row]:
    """The machine beside the integer rules."""
    for kind in MODELS:
        row = Row(kind.__name__)
        for seed in MODEL_SEEDS:
            model, samples = prepared(kind, seed)
            expected = IntegerReference(model)(samples[:2])
            program = compile_graph(graph_from_torch(model, name=row.operator), PRESETS["base16"])
            with Session(program, engine="functional") as session:
                made = session.run(samples[:2])
            alone = not isinstance(made, dict)
            row.add([expected] if alone else [*expected], [made] if alone else [*made.values()])
        yield row
