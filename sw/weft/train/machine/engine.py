"""A training step on the machine: compiled once, then run step by step on an engine."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.compiler.kernels import ceil_div
from weft.compiler.synchronize import synchronize
from weft.errors import UnsupportedModel
from weft.train.machine.homes import WeightHome
from weft.train.machine.loss import identity_bytes, target_bytes
from weft.train.machine.lowering import lower_step
from weft.train.machine.plan import Area, TrainingPlan, plan_training
from weft.train.machine.scalars import CELL_BYTES
from weft.train.machine.tables import table_bytes
from weft.train.state import Rates, State
from weft.train.step import MomentumUpdate, Parameter, TrainingStep
from weft_hw.config import AcceleratorConfig
from weft_hw.errors import EncodingError
from weft_hw.instructions import End
from weft_hw.training import EXPONENT_BIAS
from weft_sim.device import Device, RunResult, open_device

__all__ = ["MachineEngine", "StepProgram", "Transfer", "compile_step"]

EXPONENT_CELL = ".exponent"
WATCHDOG = 1_000_000
Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Transfer:
    """Bytes that cross between host and machine in every step."""

    what: str
    to_machine: int
    from_machine: int


@dataclass(frozen=True)
class StepProgram:
    """A training step as machine code with its memory plan.

    Parameters
    ----------
    step : TrainingStep
    config : AcceleratorConfig
    plan : TrainingPlan
    instructions : bytes
    symbols : tuple of (int, int, str)
        Byte offset, number of the operation and purpose of each instruction.
    """

    step: TrainingStep
    config: AcceleratorConfig
    plan: TrainingPlan
    instructions: bytes
    symbols: tuple[tuple[int, int, str], ...]

    @property
    def memory_bytes(self) -> int:
        """DRAM in all, whole beats."""
        beat = self.config.bus_bytes
        return ceil_div(self.plan.peak, beat) * beat

    def transfers(self) -> tuple[Transfer, ...]:
        """All that the host writes before a step and reads after it."""
        step, plan = self.step, self.plan
        rates = len(plan.cells) - len(step.cells())
        saturated = sum(name.endswith(".saturated") for name in step.cells())
        exponent = 1 if step.logits.exponent.quantizer is not None else 0
        return (
            Transfer("pixels", plan.images[step.source.name].size, 0),
            Transfer("targets by class", _area(plan, "targets").size, 0),
            Transfer("rates", rates * CELL_BYTES, 0),
            Transfer("logits", 0, plan.images[step.logits.name].size),
            Transfer("exponent of the logits", 0, exponent * CELL_BYTES),
            Transfer("counts of saturated codes", 0, saturated * CELL_BYTES),
        )


def _area(plan: TrainingPlan, name: str) -> Area:
    return next(area for area in plan.areas if area.name == name)


def compile_step(
    step: TrainingStep, config: AcceleratorConfig, *, tile_rows: int | None = None
) -> StepProgram:
    """Compile a training step.

    Parameters
    ----------
    step : TrainingStep
    config : AcceleratorConfig
    tile_rows : int, optional
        Accumulator rows that a tile may take at most; other tilings give the same bits.

    Raises
    ------
    InputError, UnsupportedModel
        If the configuration cannot train it; the message says why.
    """
    plan = plan_training(step, config)
    steps = lower_step(step, config, plan, tile_rows)
    code = bytearray()
    symbols = []
    for instruction, source in zip(synchronize(steps, config), steps, strict=True):
        symbols.append((len(code), source.layer, source.purpose))
        try:
            code += instruction.encode()
        except EncodingError as error:
            operation = step.operations[source.layer]
            raise UnsupportedModel(
                f"{type(operation).__name__} {getattr(operation, 'result', operation)}: a size is "
                f"beyond what an instruction can express: {error}"
            ) from None
    code += End().encode()
    last = len(step.operations) - 1
    plan.areas.append(Area("program", "instructions", plan.instructions, len(code), 0, last))
    return StepProgram(step, config, plan, bytes(code), tuple(symbols))


class MachineEngine:
    """Runs a training step on ``functional`` or ``rtl``.

    Parameters
    ----------
    step : TrainingStep
    config : AcceleratorConfig
    engine : {"functional", "rtl"}
    tile_rows : int, optional
        See :func:`compile_step`.
    **options
        Of the engine, see :func:`weft_sim.device.open_device`.

    Attributes
    ----------
    program : StepProgram
    last_run : RunResult or None
        Cycles and counters of the last step.
    runs, cycles, wall_seconds
        Of all steps so far; no cycles on an engine without time.
    """

    def __init__(
        self,
        step: TrainingStep,
        config: AcceleratorConfig,
        engine: str = "functional",
        *,
        tile_rows: int | None = None,
        **options: Any,
    ) -> None:
        self.step = step
        self.program = compile_step(step, config, tile_rows=tile_rows)
        self.last_run: RunResult | None = None
        self.runs, self.cycles, self.wall_seconds = 0, 0, 0.0
        self._resident: State | None = None
        plan = self.program.plan
        self.device: Device = open_device(
            engine, config, memory_bytes=self.program.memory_bytes, **options
        )
        classes = step.logits.shape[2]
        self.device.write_memory(plan.tables, table_bytes(classes))
        self.device.write_memory(plan.loss.identity, identity_bytes(config.rows))
        self.device.write_memory(plan.instructions, self.program.instructions)

    @property
    def memory_plan(self) -> TrainingPlan:
        """Where everything lies."""
        return self.program.plan

    def __enter__(self) -> "MachineEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the device."""
        self.device.close()

    def run(
        self,
        state: State,
        images: Codes,
        targets: Codes,
        rates: Rates,
        seed: int,
        number: int,
    ) -> tuple[State, Codes]:
        """One step; see :meth:`weft.train.state.StepEngine.run`."""
        step = self.step
        self.write_image(step.source.name, images)
        self.device.write_memory(
            self.program.plan.loss.targets, target_bytes(targets, self.program.config.rows)
        )
        self.start(state, rates, seed, number)
        logits = self.read_image(step.logits.name)
        self._resident = self._read_state()
        return self._resident, logits.reshape(step.batch, -1)

    def start(self, state: State, rates: Rates, seed: int, number: int) -> None:
        """Run the program once, on what lies in DRAM; ``last_run`` tells how long it took."""
        if state is not self._resident:
            self._write_state(state)
        self._write_rates(rates)
        self.last_run = self.device.run(
            self.program.plan.instructions,
            watchdog=WATCHDOG,
            random_seed=seed,
            random_step=number,
        )
        self.runs += 1
        self.cycles += self.last_run.cycles or 0
        self.wall_seconds += self.last_run.wall_seconds

    def read_image(self, name: str) -> Codes:
        """Codes of an image (batch, height, width, channels) as DRAM has them; most are
        overwritten by later ones in the course of a step."""
        home = self.program.plan.images[name]
        height, width, channels = home.image.shape
        data = self.device.read_memory(home.address, home.size).view(np.int8)
        return data.reshape(home.batch, height, width, home.pitch)[..., :channels].copy()

    def write_image(self, name: str, codes: Codes) -> None:
        """Codes (batch, height, width, channels) to an image's home."""
        home = self.program.plan.images[name]
        height, width, channels = home.image.shape
        padded = np.zeros((home.batch, height, width, home.pitch), np.int8)
        padded[..., :channels] = codes
        self.device.write_memory(home.address, padded.tobytes())

    # Cells -----------------------------------------------------------------------------------

    def _write_cell(self, name: str, value: int) -> None:
        self.device.write_memory(
            self.program.plan.cells[name], int(value).to_bytes(CELL_BYTES, "little")
        )

    def _write_rates(self, rates: Rates) -> None:
        if not isinstance(self.step.update, MomentumUpdate):
            self._write_cell("bits", rates.bits)
            return
        groups = {parameter.group for parameter in self.step.parameters()}
        for what in ("rate", "keep"):
            for group in groups:
                multiplier, exponent = getattr(rates, what)[group]
                self._write_cell(f"{what}.{group}.multiplier", multiplier)
                self._write_cell(f"{what}.{group}.exponent", exponent + EXPONENT_BIAS)

    # State -----------------------------------------------------------------------------------

    def _arrays(self) -> list[tuple[str, Parameter, WeightHome, int, type]]:
        """What each parameter keeps: part of the state, its home, address and element type."""
        result: list[tuple[str, Parameter, WeightHome, int, type]] = []
        update = self.step.update
        for parameter in self.step.parameters():
            home = self.program.plan.weights[parameter.name]
            result.append(("codes", parameter, home, home.codes, np.int8))
            if isinstance(update, MomentumUpdate):
                kind = np.int16 if update.state_bits == 16 else np.int32
                result.append(("master", parameter, home, home.master, kind))
                if update.momentum > 0:
                    result.append(("velocity", parameter, home, home.velocity, kind))
        return result

    def _write_state(self, state: State) -> None:
        for part, parameter, home, address, kind in self._arrays():
            values = getattr(state, part)[parameter.name].astype(kind)
            self.device.write_memory(address, to_rows(home, values).tobytes())
        for name in self.step.cells():
            value = state.cells.get(name, 0)
            self._write_cell(name, value + EXPONENT_BIAS * name.endswith(EXPONENT_CELL))

    def _read_state(self) -> State:
        state = State()
        for part, parameter, home, address, kind in self._arrays():
            size = home.rows * home.side * np.dtype(kind).itemsize
            rows: NDArray[Any] = self.device.read_memory(address, size).view(kind)
            getattr(state, part)[parameter.name] = from_rows(home, rows)
        for name in self.step.cells():
            data = self.device.read_memory(self.program.plan.cells[name], CELL_BYTES)
            value = int.from_bytes(data.tobytes(), "little", signed=True)
            state.cells[name] = value - EXPONENT_BIAS * name.endswith(EXPONENT_CELL)
        return state


def to_rows(home: WeightHome, values: NDArray[Any]) -> NDArray[Any]:
    """A parameter as its home holds it, padded with zeros to whole tiles."""
    side, shape = home.side, home.parameter.shape
    if len(shape) < 4:
        padded = np.zeros((*shape[:-1], home.outputs * side), values.dtype)
        padded[..., : shape[-1]] = values
        return padded
    padded = np.zeros((home.taps, home.inputs * side, home.outputs * side), values.dtype)
    padded[:, : shape[2], : shape[3]] = values.reshape(home.taps, *shape[2:])
    tiles = padded.reshape(home.taps, home.inputs, side, home.outputs, side)
    return np.ascontiguousarray(tiles.transpose(0, 1, 3, 2, 4))


def from_rows(home: WeightHome, rows: NDArray[Any]) -> NDArray[Any]:
    """Inverse of :func:`to_rows`."""
    side, shape = home.side, home.parameter.shape
    if len(shape) < 4:
        return rows.reshape(*shape[:-1], home.outputs * side)[..., : shape[-1]].copy()
    tiles = rows.reshape(home.taps, home.inputs, home.outputs, side, side)
    whole = tiles.transpose(0, 1, 3, 2, 4).reshape(
        home.taps, home.inputs * side, home.outputs * side
    )
    return whole[:, : shape[2], : shape[3]].reshape(shape).copy()
