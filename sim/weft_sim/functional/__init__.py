"""The functional engine: bit-exact, without time."""

from weft_sim.functional.device import FunctionalDevice

__all__ = ["FunctionalDevice"]
