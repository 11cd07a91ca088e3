"""What gradients do to parameters: chunks of sums become steps of the state."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from weft.compiler.stream import Space, reads, writes
from weft.train.machine.builder import Builder
from weft.train.machine.fields import EVEN, added, power_of_two, scalar_scale
from weft.train.machine.gradient_chunks import Chunk
from weft.train.machine.homes import WeightHome
from weft.train.machine.quantization import SUM_BYTES, Spill
from weft.train.machine.scalars import Register, Scalars
from weft.train.step import Exponent, MomentumUpdate, Parameter, Update
from weft_hw.arithmetic import quantize_multiplier
from weft_hw.instructions import (
    Capture,
    Load,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Store,
    Vector,
)
from weft_hw.training import CODE_LIMIT, EXPONENT_BIAS, LIMIT_OF_SUM, velocity_limit

__all__ = ["Updater"]


class Updater:
    """Applies gradients to parameters."""

    def __init__(self, builder: Builder, scalars: Scalars, update: Update, spill: Spill) -> None:
        self.builder, self.scalars, self.update, self.spill = builder, scalars, update, spill
        self.stream, self.side = builder.stream, builder.side

    def apply(
        self, parameter: Parameter, exponents: list[Exponent], chunks: Iterable[Chunk]
    ) -> None:
        """Update a parameter by its gradient's sums, whose exponent is the sum of those given."""
        home = self.builder.weights_at[parameter.name]
        if isinstance(self.update, MomentumUpdate):
            self._rates(parameter, exponents, self.update)
            for chunk in chunks:
                self._move(home, chunk, self.update)
        else:
            self._apply_bits(home, chunks, delayed=self.update.delayed)

    # Momentum --------------------------------------------------------------------------------

    def _rates(
        self, parameter: Parameter, exponents: list[Exponent], update: MomentumUpdate
    ) -> None:
        """MULTIPLIER and EXPONENT: from the sums' unit to the velocity's. FIRST, SECOND: decay."""
        scalars, group = self.scalars, parameter.group
        unit = parameter.exponent - update.fraction - update.finer
        scalars.exponent(Register.EXPONENT, exponents[0], -unit)
        for exponent in exponents[1:]:
            scalars.exponent(Register.OTHER, exponent)
            scalars.add(Register.EXPONENT, Register.EXPONENT, Register.OTHER)
        scalars.read(f"rate.{group}.exponent", Register.OTHER)
        scalars.add(Register.EXPONENT, Register.EXPONENT, Register.OTHER)
        scalars.add(Register.EXPONENT, Register.EXPONENT, -EXPONENT_BIAS)
        scalars.limit(Register.EXPONENT, -31, 31)
        scalars.read(f"rate.{group}.multiplier", Register.MULTIPLIER)
        if update.decays:
            scalars.read(f"keep.{group}.multiplier", Register.FIRST)
            scalars.read(f"keep.{group}.exponent", Register.SECOND)
            scalars.add(Register.SECOND, Register.SECOND, -EXPONENT_BIAS)

    def _move(self, home: WeightHome, chunk: Chunk, update: MomentumUpdate) -> None:
        velocity, master = self.builder.scratch(0), self.builder.scratch(1)
        limit = velocity_limit(update.state_bits)
        moved, stepped, decayed = (self._random(home, chunk, stream) for stream in range(3))
        has_velocity = update.momentum > 0
        if has_velocity:
            self._state(Load, home.velocity, home, chunk, velocity)
        self._state(Load, home.master, home, chunk, master)
        low = -(LIMIT_OF_SUM if has_velocity else limit)
        self._rows(
            chunk,
            chunk.address,
            "scale gradients",
            scalar_scale(Register.MULTIPLIER, Register.EXPONENT, Rounding.STOCHASTIC)
            | moved
            | {"clamp_low": low, "clamp_high": -low},
            target=None if has_velocity else velocity,
        )
        if has_velocity:
            multiplier, exponent = quantize_multiplier(update.momentum)
            self._rows(
                chunk,
                velocity,
                "move velocities",
                {
                    "scale_source": ScaleSource.INSTRUCTION,
                    "multiplier": multiplier,
                    "exponent": exponent,
                    "rounding": EVEN,
                    "clamp_low": -limit,
                    "clamp_high": limit,
                },
                plus=chunk.address,
            )
            self._state(Store, home.velocity, home, chunk, velocity)
        if update.decays:
            self._rows(
                chunk,
                master,
                "decay",
                scalar_scale(Register.FIRST, Register.SECOND, Rounding.STOCHASTIC) | decayed,
            )
        bound = CODE_LIMIT << update.fraction
        self._rows(
            chunk,
            velocity,
            "move weights",
            power_of_two(-update.finer, Rounding.STOCHASTIC)
            | stepped
            | {"clamp_low": -bound, "clamp_high": bound},
            plus=master,
            target=master,
        )
        self._state(Store, home.master, home, chunk, master)
        self._codes(home, chunk, master, power_of_two(-update.fraction), None)

    # Bits ------------------------------------------------------------------------------------

    def _apply_bits(self, home: WeightHome, chunks: Iterable[Chunk], *, delayed: bool) -> None:
        scalars, name = self.scalars, home.parameter.name
        waiting: list[Chunk] = []
        if delayed:
            scalars.read(f"{name}.largest", Register.LARGEST)
        else:
            scalars.move(Register.LARGEST, 0)
            for chunk in chunks:
                self._measure(chunk)
                self._rows_of(Store, self.spill.address, SUM_BYTES, chunk, chunk.address)
                waiting.append(chunk)
            scalars.write(f"{name}.largest", Register.LARGEST)
        scalars.read("bits", Register.FIRST)
        scalars.shift(Register.SHIFT, Register.LARGEST, Register.FIRST)
        scalars.scale_exponent(Register.EXPONENT, Register.SHIFT, -1)
        scalars.move(Register.HIGH, 1)
        scalars.shift_by(Register.HIGH, Register.FIRST)
        scalars.add(Register.HIGH, Register.HIGH, -1)
        scalars.subtract(Register.LOW, 0, Register.HIGH)
        scalars.move(Register.LARGEST, 0)
        scalars.move(Register.CLAMPED, 0)
        if delayed:
            for chunk in chunks:
                self._step(home, chunk, Capture.BOTH)
            scalars.write(f"{name}.largest", Register.LARGEST)
        for chunk in waiting:
            rows = self.builder.scratch(0)
            self._rows_of(Load, self.spill.address, SUM_BYTES, chunk, rows)
            again = dataclasses.replace(chunk, address=rows)
            self._step(home, again, Capture.CLAMPED)
        scalars.write(f"{name}.saturated", Register.CLAMPED)

    def _measure(self, chunk: Chunk) -> None:
        self._rows(
            chunk,
            chunk.address,
            "find the largest sum",
            {"capture": Capture.LARGEST, "capture_register": Register.LARGEST},
        )

    def _step(self, home: WeightHome, chunk: Chunk, capture: Capture) -> None:
        """Move codes by some bits."""
        codes = self._place(chunk)
        self._codes_of(Load, home, chunk, codes)
        self._rows(
            chunk,
            chunk.address,
            "scale gradients",
            scalar_scale(Register.ONE, Register.EXPONENT, Rounding.STOCHASTIC)
            | self._random(home, chunk, 0)
            | {
                "clamp_from_scalar": 1,
                "capture": capture,
                "capture_register": Register.LARGEST,
            },
        )
        self._codes(home, chunk, chunk.address, {}, codes)

    # Pieces ----------------------------------------------------------------------------------

    def _random(self, home: WeightHome, chunk: Chunk, stream: int) -> dict[str, Any]:
        return {
            "index_address": chunk.index,
            "index_strides": chunk.index_strides,
            "tensor": home.parameter.numbers[stream],
        }

    def _place(self, chunk: Chunk) -> int:
        return self.builder.staging.place(None, chunk.rows * self.side)

    def _rows(
        self,
        chunk: Chunk,
        source: int,
        purpose: str,
        fields: dict[str, Any],
        *,
        target: int | None = None,
        plus: int | None = None,
    ) -> None:
        """A pass over rows of a chunk's shape, in place unless there is a target."""
        address = source if target is None else target
        accesses = [reads(Space.ACCUMULATOR, (source, source + chunk.rows))]
        if plus is not None:
            fields = fields | added(OperandSource.ACCUMULATOR, plus, (*chunk.strides, 0, 0))
            accesses.append(reads(Space.ACCUMULATOR, (plus, plus + chunk.rows)))
        self.stream.emit(
            Vector(
                counts=(*chunk.counts, 1, 1),
                a_address=source,
                a_strides=(*chunk.strides, 0, 0),
                destination=Memory.ACCUMULATOR,
                address=address,
                strides=chunk.strides,
                **fields,
            ),
            purpose,
            *accesses,
            writes(Space.ACCUMULATOR, (address, address + chunk.rows)),
        )

    def _codes(
        self,
        home: WeightHome,
        chunk: Chunk,
        source: int,
        fields: dict[str, Any],
        old: int | None,
    ) -> None:
        """Codes from rows of masters, or from steps and the old codes on chip, to DRAM."""
        codes, size = self._place(chunk), chunk.rows * self.side
        lines = tuple(stride * self.side for stride in chunk.strides)
        accesses = [reads(Space.ACCUMULATOR, (source, source + chunk.rows))]
        if old is not None:
            fields = fields | added(OperandSource.ACTIVATION, old, (*lines, 0, 0))
            accesses.append(reads(Space.ACTIVATION, (old, old + size)))
        self.stream.emit(
            Vector(
                counts=(*chunk.counts, 1, 1),
                a_address=source,
                a_strides=(*chunk.strides, 0, 0),
                destination=Memory.ACTIVATION,
                address=codes,
                strides=lines,
                clamp_low=-CODE_LIMIT,
                clamp_high=CODE_LIMIT,
                **fields,
            ),
            "make codes",
            *accesses,
            writes(Space.ACTIVATION, (codes, codes + size)),
        )
        self._codes_of(Store, home, chunk, codes)

    def _codes_of(
        self, kind: type[Load | Store], home: WeightHome, chunk: Chunk, codes: int
    ) -> None:
        """A chunk's codes between DRAM and the activation scratchpad."""
        self.builder.copy_bytes(
            kind,
            home.codes + chunk.row * self.side,
            codes,
            chunk.rows * self.side,
            Memory.ACTIVATION,
            f"{kind.__name__.lower()} {home.parameter.name}",
        )

    def _state(
        self, kind: type[Load | Store], base: int, home: WeightHome, chunk: Chunk, rows: int
    ) -> None:
        """Master or velocity between DRAM and accumulator rows."""
        self._rows_of(kind, base, home.state_bytes, chunk, rows)

    def _rows_of(
        self, kind: type[Load | Store], base: int, width: int, chunk: Chunk, rows: int
    ) -> None:
        """A chunk of a parameter's array in DRAM, from or to accumulator rows."""
        dram = base + chunk.row * self.side * width
        why = f"{kind.__name__.lower()} state"
        self.builder.copy_rows(kind, dram, rows, chunk.rows, width, why)
