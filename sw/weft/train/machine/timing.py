"""Where the cycles of a training step go: by operation, by layer and by pass."""

from collections.abc import Iterator
from dataclasses import dataclass

from weft.train.machine.engine import StepProgram
from weft.train.step import (
    BiasGradient,
    CompensationGradient,
    Convolution,
    DataGradient,
    Operation,
    TrainingStep,
    WeightGradient,
)
from weft_hw.instructions import Queue, decode_stream
from weft_sim.device import RunResult

__all__ = ["OperationTime", "macs_of", "operation_times", "title_of"]


@dataclass(frozen=True)
class OperationTime:
    """One operation of a step.

    Parameters
    ----------
    title : str
        What it computes.
    kind : str
    forward : bool
    macs : int
        Multiply-accumulates of the model (no padding of channels).
    cycles : int or None
        From the retirement of all operations before it to its own.
    """

    title: str
    kind: str
    forward: bool
    macs: int
    cycles: int | None


def macs_of(operation: Operation, batch: int) -> int:
    """Multiply-accumulates of an operation, those with padding included.

    The machine leaves out most of these, so that its utilization may pass 100 %.
    """
    match operation:
        case Convolution(weights=weights, result=result):
            image = result
        case DataGradient(weights=weights, gradient=gradient):
            image = gradient
        case WeightGradient(weights=weights, gradient=gradient):
            image = gradient
        case _:
            return 0
    height, width, _ = image.shape
    taps_y, taps_x, channels, filters = weights.shape
    return batch * height * width * taps_y * taps_x * channels * filters


def title_of(operation: Operation) -> str:
    """What an operation computes, in short."""
    match operation:
        case WeightGradient(weights=parameter):
            return f"update {parameter.name}"
        case BiasGradient(parameter=parameter) | CompensationGradient(parameter=parameter):
            return f"update {parameter.name}"
        case _:
            return operation.result.name


def operation_times(program: StepProgram, run: RunResult) -> Iterator[OperationTime]:
    """Times of all operations, in order; without cycles if the engine has no time."""
    step = program.step
    if run.events is None or run.cycles is None:
        for number, operation in enumerate(step.operations):
            yield _entry(step, number, operation, None)
        return
    ends = [0] * len(step.operations)
    taken = dict.fromkeys(Queue, 0)
    decoded = decode_stream(program.instructions)[:-1]
    for (_, instruction), (_, number, _) in zip(decoded, program.symbols, strict=True):
        queue = instruction.queue
        assert queue is not None
        ends[number] = max(ends[number], int(run.events[queue].retires[taken[queue]]))
        taken[queue] += 1
    before = 0
    for number, operation in enumerate(step.operations):
        end = max(before, ends[number])
        if number == len(step.operations) - 1:
            end = run.cycles
        yield _entry(step, number, operation, end - before)
        before = end


def _entry(
    step: TrainingStep, number: int, operation: Operation, cycles: int | None
) -> OperationTime:
    return OperationTime(
        title_of(operation),
        type(operation).__name__,
        number < len(step.forward),
        macs_of(operation, step.batch),
        cycles,
    )
