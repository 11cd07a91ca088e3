"""From the operations of a training step to instructions, in their order."""

import dataclasses
from dataclasses import dataclass

from weft.compiler.stream import Step
from weft.train.machine import elementwise
from weft.train.machine.builder import Builder
from weft.train.machine.data_gradient import data_gradient_sums
from weft.train.machine.forward import convolution_sums
from weft.train.machine.gradient_chunks import (
    bias_chunks,
    bias_sums,
    compensation_chunks,
    copied_rows,
    weight_chunks,
)
from weft.train.machine.loss import lower_loss
from weft.train.machine.plan import TrainingPlan
from weft.train.machine.preparation import prepare_biases, prepare_compensation
from weft.train.machine.quantization import Result, behind, quantize_image
from weft.train.machine.scalars import Register, Scalars
from weft.train.machine.tables import TABLES_BYTES
from weft.train.machine.updates import Updater
from weft.train.machine.weight_gradient import weight_gradient_sums
from weft.train.step import (
    Add,
    AveragePool,
    AveragePoolGradient,
    BiasGradient,
    CompensationGradient,
    Convolution,
    DataGradient,
    LossGradient,
    Mask,
    MaxPool,
    MaxPoolGradient,
    Operation,
    TrainingStep,
    WeightGradient,
)
from weft_hw.config import AcceleratorConfig
from weft_hw.instructions import Load, Memory

__all__ = ["lower_step"]


def lower_step(
    step: TrainingStep, config: AcceleratorConfig, plan: TrainingPlan, tile_rows: int | None = None
) -> list[Step]:
    """Instructions of a whole step, without semaphores; ``layer`` is the operation's number."""
    builder = Builder(config, tile_rows)
    builder.images, builder.weights_at = plan.images, plan.weights
    scalars = Scalars(builder, plan.cells)
    scalars.begin()
    builder.copy_bytes(Load, plan.tables, 0, TABLES_BYTES, Memory.LOOKUP, "load tables")
    lowering = _Lowering(step, builder, scalars, plan)
    for number, operation in enumerate(step.operations):
        builder.stream.layer, builder.stream.tile = number, 0
        lowering.lower(operation)
    return builder.stream.steps


@dataclass
class _Lowering:
    step: TrainingStep
    builder: Builder
    scalars: Scalars
    plan: TrainingPlan

    def __post_init__(self) -> None:
        self._sums = 0
        self.updater = Updater(self.builder, self.scalars, self.step.update, self.plan.spill)

    def lower(self, operation: Operation) -> None:
        """Append one operation."""
        builder, scalars, spill = self.builder, self.scalars, self.plan.spill
        match operation:
            case Convolution():
                self._convolution(operation)
            case DataGradient(gradient=gradient, weights=weights):
                scalars.exponent(Register.SUMS, gradient.exponent, weights.exponent)
                result = Result(operation.result, operation.quantizer, mask=operation.mask)
                sums = data_gradient_sums(builder, operation)
                quantize_image(builder, scalars, result, spill, sums)
            case WeightGradient(source=source, gradient=gradient, weights=weights):
                home = self.plan.weights[weights.name]
                chunks = (
                    chunk
                    for tile in behind(weight_gradient_sums(builder, operation))
                    for chunk in weight_chunks(builder, home, tile)
                )
                self.updater.apply(weights, [source.exponent, gradient.exponent], chunks)
            case BiasGradient():
                self._bias_gradient(operation)
            case CompensationGradient(gradient=gradient, parameter=parameter):
                sums_by_pixel = compensation_chunks(builder, operation)
                self.updater.apply(parameter, [gradient.exponent], sums_by_pixel)
            case MaxPool():
                elementwise.max_pool(builder, operation)
            case MaxPoolGradient():
                elementwise.max_pool_gradient(builder, operation)
            case AveragePool():
                scalars.exponent(Register.SUMS, operation.source.exponent)
                result = Result(operation.result, operation.quantizer)
                sums = elementwise.average_pool_sums(builder, operation)
                quantize_image(builder, scalars, result, spill, sums)
            case AveragePoolGradient():
                elementwise.average_pool_gradient(builder, operation)
            case Add():
                elementwise.residual_exponents(
                    scalars, operation.first.exponent, operation.second.exponent
                )
                result = Result(
                    operation.result, operation.quantizer, operation.rectified, operation.mask
                )
                sums = elementwise.residual_sums(builder, operation)
                quantize_image(builder, scalars, result, spill, sums)
            case Mask():
                elementwise.mask(builder, operation)
            case LossGradient():
                lower_loss(builder, scalars, operation, self.plan.loss, spill)

    def _bias_gradient(self, operation: BiasGradient) -> None:
        """Update a bias; the sums are left for a neighbour that has the same gradient."""
        builder, name, number = self.builder, operation.gradient.name, self.builder.stream.layer
        before, behind_it = (
            other if isinstance(other, BiasGradient) and other.gradient.name == name else None
            for other in (self._operation(number - 1), self._operation(number + 1))
        )
        if before is None:
            self._sums = bias_sums(builder, operation)
        sums = self._sums
        if behind_it is not None:
            sums = copied_rows(builder, sums, builder.images[name].tiles)
        chunks = bias_chunks(builder, operation, sums)
        self.updater.apply(operation.parameter, [operation.gradient.exponent], chunks)

    def _operation(self, number: int) -> Operation | None:
        operations = self.step.operations
        return operations[number] if 0 <= number < len(operations) else None

    def _convolution(self, operation: Convolution) -> None:
        builder, scalars, plan = self.builder, self.scalars, self.plan
        scalars.exponent(Register.SUMS, operation.source.exponent, operation.weights.exponent)
        result = Result(operation.result, operation.quantizer, operation.rectified)
        if operation.biases:
            biases = prepare_biases(
                builder, scalars, operation.biases, self.step.update.fraction, plan.biases
            )
            result = dataclasses.replace(result, biases=biases)
        prepare = None
        if operation.compensation is not None:
            compensation = operation.compensation
            home = plan.compensations[compensation.name]
            result = dataclasses.replace(result, compensation=home)

            def prepare() -> None:
                prepare_compensation(
                    builder, scalars, compensation, self.step.update.fraction, home
                )

        quantize_image(
            builder, scalars, result, plan.spill, convolution_sums(builder, operation), prepare
        )
