"""Write docs/exactness.md from random cases: `PYTHONPATH=tests python -m exactness docs`.

Ends with 1 if anything differs that is not explained.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from exactness.measure import (
    SEED,
    Row,
    pytorch_machine,
    pytorch_rows,
    tflite_networks,
    tflite_rows,
    tflite_tables,
)

__all__ = ["main", "page", "table"]

HEADING = """# Exactness

Written by `PYTHONPATH=tests python -m exactness docs` (part of `make docs`) from random cases with
seed {seed}; nothing here is typed in. A case is a model with random shapes, scales, zero points and
weights; a code is one element of a result.

## TFLite: the machine beside the interpreter's reference kernels

Each case is compiled for `base16`, `edge8` or `tiny`, every other one with tiles drawn at random,
and run on the functional simulator, which equals the RTL (`tests/e2e`). Equal means in every bit.
[tflite.md](tflite.md) says what of each operator is supported.
"""

TABLES = """## TFLite: functions of one element

The front end's tables of all 256 codes, for random scales and zero points, beside the reference
kernel; for ELU, which has none, beside the optimized one.
"""

BESIDE_PYTORCH = """## PyTorch: the integer rules beside the converted graph

The converted graph computes in float32, weft in integers. Each layer gets equal codes of its
inputs. Every difference is checked to be one that float32 rounding explains, and weft's code to be
the correctly rounded exact value, up to the error of a 31-bit multiplier or of a residual add
([decision 0002](decisions/0002-residual-add-keeps-the-larger-scale-exact.md)). A *near tie* is a
value so near to the middle of two codes that float32 cannot tell on which side it lies; a *sum
beyond 2^24* is one that float32 does not hold. A `quantize` is that of a float32 input.
"""

ON_THE_MACHINE = """## PyTorch: the machine beside the integer rules

The models of `tests/pytorch_models.py` on `base16`, two samples a case.
"""


def table(rows: Iterable[Row], first: str, why: bool = False) -> str:
    """Rows as Markdown."""
    lines = [f"| {first} | cases | codes | result |" + (" why |" if why else "")]
    lines.append("|---|---|---|---|" + ("---|" if why else ""))
    for row in rows:
        result = "equal"
        if row.differ:
            result = f"{row.differ:,} differ ({row.differ / row.codes:.2g} of all)"
        line = f"| {row.operator} | {row.cases} | {row.codes:,} | {result} |"
        lines.append(line + (f" {', '.join(row.reasons)} |" if why else ""))
    return "\n".join(lines) + "\n"


def page() -> tuple[str, bool]:
    """The page, and whether all is as it should be."""
    operators = [*tflite_rows(), tflite_networks()]
    beside, machine = pytorch_rows(), list(pytorch_machine())
    tables = tflite_tables()
    parts = [
        HEADING.format(seed=SEED),
        table(operators, "operator"),
        TABLES,
        table(tables, "operator"),
        BESIDE_PYTORCH,
        table(beside, "operator", why=True),
        ON_THE_MACHINE,
        table(machine, "model"),
    ]
    unexplained = [row for row in beside if row.differ and not row.reasons]
    wrong = [row for row in (*operators, *tables, *machine) if row.differ or not row.codes]
    return "\n".join(parts), not wrong and not unexplained


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m exactness", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write exactness.md")
    folder = parser.parse_args().folder
    text, good = page()
    (folder / "exactness.md").write_text(text)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
