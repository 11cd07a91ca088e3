"""A training step on the machine, cycles and memory: `weft bench train-step`."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.train.machine.engine import MachineEngine, StepProgram
from weft.train.machine.timing import macs_of, operation_times
from weft.train.state import Rates, State, StepEngine
from weft.train.step import (
    Convolution,
    DataGradient,
    Exponent,
    Geometry,
    Image,
    MomentumUpdate,
    Operation,
    Parameter,
    Quantizer,
    TrainingStep,
    Update,
    WeightGradient,
)
from weft_hw.config import AcceleratorConfig

__all__ = ["bench_passes", "bench_step", "convolution_passes", "memory_of"]

LARGEST = 1 << 15


def convolution_passes(
    shape: tuple[int, int, int, int], batch: int, kernel: int, *, delayed: bool, update: Update
) -> dict[str, TrainingStep]:
    """The forward pass and both gradients of one convolution, each as a step of its own.

    Parameters
    ----------
    shape : (H, W, C, K)
    batch : int
    kernel : int
        Padded by half of it.
    delayed : bool
    update : Update
    """
    height, width, channels, filters = shape
    geometry = Geometry((kernel, kernel), padding=(kernel // 2, kernel // 2))
    weights = Parameter("weights", (kernel, kernel, channels, filters), -9, "weights", (1, 2, 3))
    source = Image("x", (height, width, channels), Exponent(None, -7))
    gradient = Image("dy", (height, width, filters), Exponent(None, -7))

    def quantizer(name: str, number: int) -> Quantizer:
        return Quantizer(name, number, stochastic=True, clipped=False, delayed=delayed)

    result = Image("y", (height, width, filters), Exponent("y"))
    data = Image("dx", (height, width, channels), Exponent("dx"))
    forward = Convolution(source, weights, (), None, result, quantizer("y", 4), True, geometry)
    backward = DataGradient(gradient, weights, data, quantizer("dx", 5), source, geometry)
    product = WeightGradient(source, gradient, weights, geometry)
    target = Image("target", (1, 1, filters), Exponent(None, -7))

    def step(name: str, first: Operation, given: Image) -> TrainingStep:
        return TrainingStep(name, batch, given, target, result, (first,), (), update)

    return {
        "Y": step("forward", forward, source),
        "dX": step("data gradient", backward, gradient),
        "dW": step("weight gradient and update", product, source),
    }


def _random_state(step: TrainingStep, rng: np.random.Generator) -> State:
    state = State()
    for parameter in step.parameters():
        codes = rng.integers(-64, 65, parameter.shape).astype(np.int8)
        state.codes[parameter.name] = codes
        if isinstance(step.update, MomentumUpdate):
            kind: type = np.int16 if step.update.state_bits == 16 else np.int32
            finest = codes.astype(np.int64) << step.update.fraction
            state.master[parameter.name] = finest.astype(kind)
            state.velocity[parameter.name] = np.zeros(parameter.shape, kind)
    state.cells = dict.fromkeys(step.cells(), 0)
    for name in state.cells:
        if name.endswith(".largest"):
            state.cells[name] = LARGEST
    return state


def _rates(step: TrainingStep) -> Rates:
    return Rates.of(step.batch, 0.05, bits=4)


def bench_passes(
    config: AcceleratorConfig,
    shape: tuple[int, int, int, int],
    batch: int,
    kernel: int,
    *,
    exponents: str,
    engine: str,
    seed: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """Cycles and utilization of a convolution's three passes, each a program of its own.

    Their bits are those of all training steps, which the tests compare with three other engines.
    """
    rng = np.random.default_rng(seed)
    results = []
    steps = convolution_passes(
        shape, batch, kernel, delayed=exponents == "delayed", update=MomentumUpdate()
    )
    for name, step in steps.items():
        (operation,) = step.operations
        with MachineEngine(step, config, engine, **options) as machine:
            for home in machine.memory_plan.images.values():
                codes = rng.integers(-127, 128, (home.batch, *home.image.shape)).astype(np.int8)
                machine.write_image(home.image.name, codes)
            machine.start(_random_state(step, rng), _rates(step), seed, 0)
            assert machine.last_run is not None
            results.append(
                _measured(name, macs_of(operation, batch), machine.last_run.cycles, config)
            )
    return results


def _measured(
    name: str, macs: int, cycles: int | None, config: AcceleratorConfig
) -> dict[str, Any]:
    elements = config.rows * config.columns
    utilization = macs / elements / cycles if cycles else None
    return {"name": name, "macs": macs, "cycles": cycles, "utilization": utilization}


def bench_step(
    step: TrainingStep,
    config: AcceleratorConfig,
    state: State,
    images: NDArray[np.int8],
    targets: NDArray[np.int8],
    judge: StepEngine,
    *,
    engine: str,
    **options: Any,
) -> dict[str, Any]:
    """One step: cycles by operation and pass, memory by purpose, bytes that cross.

    Parameters
    ----------
    judge : StepEngine
        Another engine, whose state after the step must be the same.

    Raises
    ------
    RuntimeError
        If it is not.
    """
    with MachineEngine(step, config, engine, **options) as machine:
        found, _ = machine.run(state, images, targets, _rates(step), 1, 0)
        expected, _ = judge.run(state, images, targets, _rates(step), 1, 0)
        if (difference := expected.difference(found)) is not None:
            raise RuntimeError(f"{engine} differs from the fast engine: {difference}")
        run, program = machine.last_run, machine.program
        assert run is not None
        operations = [dataclasses.asdict(entry) for entry in operation_times(program, run)]
        macs = sum(entry["macs"] for entry in operations)
        return {
            **_measured("step", macs, run.cycles, config),
            "operations": operations,
            "counters": dict(run.counters),
            **memory_of(program),
        }


def memory_of(program: StepProgram) -> dict[str, Any]:
    """Planned memory and transfers, in bytes."""
    plan = program.plan
    return {
        "memory": plan.by_purpose(),
        "peak_bytes": plan.peak,
        "areas": [dataclasses.asdict(area) for area in plan.areas],
        "transfers": [dataclasses.asdict(entry) for entry in program.transfers()],
    }
