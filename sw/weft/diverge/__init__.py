"""Where two computations of a network first differ: instruction, element, both values, cycle."""

from weft.diverge.compare import compare_machine, compare_reference
from weft.diverge.reference import reference_tensors
from weft.diverge.report import Comparison, Difference, Element

__all__ = [
    "Comparison",
    "Difference",
    "Element",
    "compare_machine",
    "compare_reference",
    "reference_tensors",
]
