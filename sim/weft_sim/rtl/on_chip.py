"""The on-chip memories of a simulated machine in the order of their addresses."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_sim.rtl.library import Simulation

__all__ = ["OnChip"]

_SIDES = ("even", "odd")


class OnChip:
    """Copies of the memories, read past the machine: no port, no cycle, no instruction is used.

    Parameters
    ----------
    simulation : Simulation
    config : AcceleratorConfig
        Of the machine.
    """

    def __init__(self, simulation: Simulation, config: AcceleratorConfig) -> None:
        self._simulation = simulation
        self._config = config

    @property
    def activation(self) -> NDArray[np.int8]:
        """The activation scratchpad, int8 by byte address."""
        config = self._config
        order = config.activation_byte_order
        banks, size = config.activation_banks, config.activation_bytes
        return self._scratchpad("activation", banks, size, order)

    @property
    def weight(self) -> NDArray[np.int8]:
        """The weight scratchpad, int8 by byte address."""
        config = self._config
        return self._scratchpad("weight", config.weight_banks, config.weight_bytes)

    @property
    def accumulator(self) -> NDArray[np.int32]:
        """The accumulator memory, int32 (rows, columns)."""
        banks = [
            self._simulation.memory(f"accumulator.bank_{bank}")
            for bank in range(self._config.accumulator_banks)
        ]
        rows = np.concatenate(banks)[:, : 4 * self._config.columns]
        return np.ascontiguousarray(rows).view(np.int32)

    @property
    def parameter(self) -> NDArray[np.uint8]:
        """The parameter memory, uint8 (rows, 9 * columns): what a machine keeps of each row."""
        config = self._config
        beats = [
            self._simulation.memory(f"parameter.beat_{beat}")[:, : config.bus_bytes]
            for beat in range(config.parameter_row_bytes // config.bus_bytes)
        ]
        return np.concatenate(beats, axis=1)[:, : 9 * config.columns]

    @property
    def lookup(self) -> NDArray[np.int8]:
        """The lookup tables one after the other, int8: the copy of the first lane."""
        cells = self._simulation.memory("tables.lane_0")[:, :1]
        return np.ascontiguousarray(cells).reshape(-1).view(np.int8)

    def _scratchpad(
        self, name: str, banks: int, size: int, order: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Banks of even and odd lines that alternate; ``order``: of the bytes in their rows."""
        pieces = []
        for bank in range(banks):
            sides = [self._simulation.memory(f"{name}.bank_{bank}_{side}") for side in _SIDES]
            line = size // (banks * len(sides) * len(sides[0]))
            places = np.arange(line) if order is None else np.argsort(order)
            pieces.append(np.stack([side[:, places] for side in sides], axis=1).reshape(-1))
        return np.concatenate(pieces).view(np.int8)
