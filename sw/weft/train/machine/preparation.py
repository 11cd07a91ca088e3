"""Biases and compensations, brought into the exponents of the step before they are used."""

from typing import Any

from weft.compiler.stream import Space, reads, writes
from weft.compiler.transfers import load_parameters
from weft.train.machine.builder import Builder
from weft.train.machine.fields import scalar_scale
from weft.train.machine.homes import ImageHome, WeightHome
from weft.train.machine.quantization import Biases
from weft.train.machine.scalars import Register, Scalars
from weft.train.step import Parameter
from weft_hw.instructions import (
    Element,
    Load,
    Memory,
    OperandSource,
    Store,
    Tail,
    Vector,
)
from weft_hw.training import CODE_LIMIT, LIMIT_OF_BIAS

__all__ = ["prepare_biases", "prepare_compensation"]


def _load_rows(builder: Builder, home: WeightHome, first: int, rows: int, target: int) -> None:
    """Rows of a parameter's master as int32."""
    width = home.state_bytes
    address = home.master + first * builder.side * width
    builder.copy_rows(Load, address, target, rows, width, f"load {home.parameter.name}")


def _rows(
    builder: Builder, purpose: str, source: int, rows: int, fields: dict[str, Any], *other: int
) -> None:
    """A pass over rows, in place."""
    step = 1 if rows > 1 else 0
    accesses = [reads(Space.ACCUMULATOR, (source, source + rows))]
    for row in other:
        fields = fields | {
            "tail": Tail.ADD,
            "b_source": OperandSource.ACCUMULATOR,
            "b_address": row,
            "b_strides": (0, 0, 0, step, 0, 0),
        }
        accesses.append(reads(Space.ACCUMULATOR, (row, row + rows)))
    defaults: dict[str, Any] = {
        "counts": (1, 1, 1, rows, 1, 1),
        "a_address": source,
        "a_strides": (0, 0, 0, step, 0, 0),
        "destination": Memory.ACCUMULATOR,
        "address": source,
        "strides": (0, 0, 0, step),
    }
    builder.stream.emit(
        Vector(**(defaults | fields)),
        purpose,
        *accesses,
        writes(Space.ACCUMULATOR, (source, source + rows)),
    )


def prepare_biases(
    builder: Builder,
    scalars: Scalars,
    biases: tuple[Parameter, ...],
    fraction: int,
    image: int,
) -> Biases:
    """The sum of some biases in the exponent of the sums (in SUMS), in the parameter memory.

    ``image`` is the DRAM address at which parameter rows are put together.
    """
    homes = [builder.weights_at[bias.name] for bias in biases]
    tiles, side = homes[0].outputs, builder.side
    pitch = builder.config.parameter_row_bytes
    for first in range(0, tiles, builder.scratch_rows):
        rows = min(builder.scratch_rows, tiles - first)
        for number, home in enumerate(homes):
            target = builder.scratch(min(number, 1))
            _load_rows(builder, home, first, rows, target)
            scalars.subtract(Register.EXPONENT, home.parameter.exponent - fraction, Register.SUMS)
            scalars.scale_exponent(Register.EXPONENT, Register.EXPONENT)
            fields = scalar_scale(Register.ONE, Register.EXPONENT) | {
                "clamp_low": -LIMIT_OF_BIAS,
                "clamp_high": LIMIT_OF_BIAS,
            }
            _rows(builder, "align biases", target, rows, fields)
            if number:
                _rows(builder, "add biases", builder.scratch(0), rows, {}, target)
        source = builder.scratch(0)
        start = image + first * pitch
        builder.stream.emit(
            Store(
                dram_address=start,
                address=source,
                counts=(rows, 1, 1),
                dram_strides=(pitch if rows > 1 else 0, 0, 0),
                strides=(1 if rows > 1 else 0, 0, 0),
                run_bytes=4 * side,
                memory=Memory.ACCUMULATOR,
                element=Element.INT32,
                extent=1,
            ),
            "store aligned biases",
            reads(Space.ACCUMULATOR, (source, source + rows)),
            writes(Space.DRAM, (start, start + rows * pitch)),
        )
    row = builder.parameters.place(None, tiles)
    load_parameters(builder.stream, image, row, tiles, builder.config)
    return Biases(row, tiles)


def prepare_compensation(
    builder: Builder, scalars: Scalars, parameter: Parameter, fraction: int, target: ImageHome
) -> None:
    """The codes of a compensation in the exponent of its result (in SUMS), to DRAM.

    The register EXPONENT, which holds the result's scale, is kept in SECOND meanwhile.
    """
    home, side = builder.weights_at[parameter.name], builder.side
    scalars.move(Register.SECOND, Register.EXPONENT)
    scalars.subtract(Register.EXPONENT, parameter.exponent - fraction, Register.SUMS)
    scalars.scale_exponent(Register.EXPONENT, Register.EXPONENT)
    for first in range(0, home.rows, builder.scratch_rows):
        rows = min(builder.scratch_rows, home.rows - first)
        source = builder.scratch(0)
        _load_rows(builder, home, first, rows, source)
        codes = builder.staging.place(None, rows * side)
        step = 1 if rows > 1 else 0
        size = rows * side
        builder.stream.emit(
            Vector(
                counts=(1, 1, 1, rows, 1, 1),
                a_address=source,
                a_strides=(0, 0, 0, step, 0, 0),
                destination=Memory.ACTIVATION,
                address=codes,
                strides=(0, 0, 0, step * side),
                clamp_low=-CODE_LIMIT,
                clamp_high=CODE_LIMIT,
                **scalar_scale(Register.ONE, Register.EXPONENT),
            ),
            "align compensation",
            reads(Space.ACCUMULATOR, (source, source + rows)),
            writes(Space.ACTIVATION, (codes, codes + size)),
        )
        builder.copy_bytes(
            Store,
            target.address + first * side,
            codes,
            size,
            Memory.ACTIVATION,
            f"store aligned {parameter.name}",
        )
    scalars.move(Register.EXPONENT, Register.SECOND)
