"""The accelerator's Verilog, compiled by Verilator and run in-process."""

from weft_sim.rtl.build import Variant, build_simulator, machine_verilog
from weft_sim.rtl.device import RtlDevice
from weft_sim.rtl.library import (
    BusModel,
    BusStatistics,
    ErrorRange,
    Simulation,
    SimulationError,
)

__all__ = [
    "BusModel",
    "BusStatistics",
    "ErrorRange",
    "RtlDevice",
    "Simulation",
    "SimulationError",
    "Variant",
    "build_simulator",
    "machine_verilog",
]
