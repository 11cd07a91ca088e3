"""The four lookup tables of a training step: all that the machine has, loaded once a program."""

from weft.compiler.stream import Space, reads
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES

__all__ = [
    "UPPER_EXPONENTIAL",
    "LOGARITHM",
    "LOWER_EXPONENTIAL",
    "RECTIFIER",
    "TABLES_ACCESS",
    "TABLES_BYTES",
    "TABLE_OFFSET",
    "table_bytes",
]

RECTIFIER, UPPER_EXPONENTIAL, LOWER_EXPONENTIAL, LOGARITHM = range(1, LOOKUP_TABLES + 1)
"""Values of VECTOR's field ``lookup``. Exponentials are negated."""

TABLE_OFFSET = 127
"""What is looked up in a table of exponentials is u + this, in that of logarithms this - v."""

TABLES_BYTES = LOOKUP_TABLES * LOOKUP_ENTRIES
TABLES_ACCESS = reads(Space.LOOKUP, (0, TABLES_BYTES))


def table_bytes(classes: int) -> bytes:
    """All four tables as they lie in memory: entries of 0..127, then of -128..-1."""
    import numpy as np

    from weft_hw.training import exponential_tables, logarithm_table

    upper, lower = exponential_tables()
    codes = np.arange(-128, 128)
    logarithms = logarithm_table(classes)[TABLE_OFFSET - codes]
    tables = [np.maximum(codes, 0), upper, lower, logarithms]
    return b"".join(np.roll(table, 128).astype(np.int8).tobytes() for table in tables)
