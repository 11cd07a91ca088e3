"""The instruction stream of matrix products, scheduled by hand for the benchmark."""

from collections.abc import Sequence

from weft.benchmarks.outer_product import OuterProductSchedule
from weft.benchmarks.product import Addresses, Product, ProductKind
from weft.benchmarks.weight_product import WeightProductSchedule
from weft.compiler.synchronize import synchronize
from weft_hw.instructions import End

__all__ = ["product_program"]


def product_program(product: Product, places: Sequence[Addresses], shift: int = 0) -> bytes:
    """Machine code that computes the product once for each of the places, in order.

    A gradient is scaled by ``2**-shift``; the scale of Y is in its parameters.
    """
    schedule: OuterProductSchedule | WeightProductSchedule
    if product.kind is ProductKind.DW:
        schedule = OuterProductSchedule(product, shift)
    else:
        schedule = WeightProductSchedule(product, shift)
    for number, addresses in enumerate(places):
        schedule.add(number, addresses)
    instructions = synchronize(schedule.stream.steps, product.config)
    return b"".join(entry.encode() for entry in [*instructions, End()])
