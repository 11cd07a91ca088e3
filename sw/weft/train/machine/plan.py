"""The static memory plan of a training step: every byte of DRAM, by purpose."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

from weft.compiler.kernels import ceil_div
from weft.errors import InputError, UnsupportedModel
from weft.train.machine.homes import ImageHome, WeightHome, require_square
from weft.train.machine.loss import (
    LossHomes,
    identity_bytes,
    loss_sums_bytes,
    target_size,
    turned_bytes,
)
from weft.train.machine.quantization import SUM_BYTES, Spill
from weft.train.machine.scalars import CELL_BYTES
from weft.train.machine.tables import TABLES_BYTES
from weft.train.step import (
    Add,
    AveragePool,
    BitUpdate,
    Convolution,
    DataGradient,
    Image,
    LossGradient,
    Mask,
    MomentumUpdate,
    Operation,
    Parameter,
    TrainingStep,
)
from weft_hw.config import AcceleratorConfig

__all__ = ["Area", "TrainingPlan", "images_of", "plan_training"]

ALIGNMENT = 64
RATE_CELLS = ("rate", "keep")


@dataclass(frozen=True)
class Area:
    """A range of DRAM with a purpose and a lifetime in operations, both ends included."""

    name: str
    purpose: str
    address: int
    size: int
    first: int
    last: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.address + self.size


@dataclass
class TrainingPlan:
    """Where everything lies.

    Parameters
    ----------
    areas : list of Area
    images : dict of str to ImageHome
    weights : dict of str to WeightHome
    cells : dict of str to int
        Address of each cell of the state, and of the rates that the host sets.
    biases : int
        Rows of the parameter memory that are made in a step, as they lie in DRAM.
    compensations : dict of str to ImageHome
        Codes of a compensation in the exponent of its result.
    tables : int
    loss : LossHomes
    spill : Spill
    instructions : int
        Address of the program; its size is known once it is compiled.
    """

    areas: list[Area]
    images: dict[str, ImageHome]
    weights: dict[str, WeightHome]
    cells: dict[str, int]
    biases: int
    compensations: dict[str, ImageHome]
    tables: int
    loss: LossHomes
    spill: Spill
    instructions: int

    def by_purpose(self) -> dict[str, int]:
        """Bytes at the operation at which most are alive, by purpose."""
        last = max(area.last for area in self.areas)
        moments = (
            [area for area in self.areas if area.first <= moment <= area.last]
            for moment in range(last + 1)
        )
        fullest = max(moments, key=lambda areas: sum(area.size for area in areas))
        sizes: dict[str, int] = {}
        for area in fullest:
            sizes[area.purpose] = sizes.get(area.purpose, 0) + area.size
        return sizes

    @property
    def peak(self) -> int:
        """The first byte that is never touched."""
        return max(area.end for area in self.areas)


def images_of(operation: Operation) -> Iterator[tuple[str, Image]]:
    """The images of an operation, with the names of their fields."""
    assert is_dataclass(operation)
    for field in fields(operation):
        value = getattr(operation, field.name)
        if isinstance(value, Image):
            yield field.name, value


WRITTEN = ("result", "index")
"""Fields that hold what an operation writes (a pool's ``index`` is read by its gradient)."""


def plan_training(step: TrainingStep, config: AcceleratorConfig) -> TrainingPlan:
    """Lay out DRAM for a step.

    Raises
    ------
    InputError
        If the array is not square.
    UnsupportedModel
        If the machine does not address that much.
    """
    planner = _Planner(step, config)
    plan = planner.plan()
    if plan.peak > 1 << config.address_width:
        raise UnsupportedModel(
            f"training {step.name} with a batch of {step.batch} takes {plan.peak:,} bytes of DRAM; "
            f"{config.name} addresses {1 << config.address_width:,}: choose a smaller batch"
        )
    return plan


class _Planner:
    def __init__(self, step: TrainingStep, config: AcceleratorConfig) -> None:
        self.step, self.config = step, config
        self.side = require_square(config)
        self.last = len(step.operations) - 1
        self.areas: list[Area] = []
        self.end = 0

    def _always(self, name: str, purpose: str, size: int) -> int:
        """An area for good."""
        address = self.end
        self.areas.append(Area(name, purpose, address, size, 0, self.last))
        self.end = ceil_div(address + size, ALIGNMENT) * ALIGNMENT
        return address

    def plan(self) -> TrainingPlan:
        step, config, side = self.step, self.config, self.side
        weights = {parameter.name: self._weights(parameter) for parameter in step.parameters()}
        groups = sorted({parameter.group for parameter in step.parameters()})
        names = list(step.cells())
        if isinstance(step.update, MomentumUpdate):
            names += [
                f"{what}.{group}.{part}"
                for what in RATE_CELLS
                for group in groups
                for part in ("multiplier", "exponent")
            ]
        else:
            names.append("bits")
        base = self._always("cells", "scalars", len(names) * CELL_BYTES)
        cells = {name: base + number * CELL_BYTES for number, name in enumerate(names)}
        tables = self._always("tables", "constants", TABLES_BYTES)
        identity = self._always("identity", "constants", len(identity_bytes(side)))
        convolutions = [op for op in step.forward if isinstance(op, Convolution)]
        rows = max(
            (weights[op.weights.name].outputs for op in convolutions if op.biases), default=0
        )
        if rows > config.parameter_rows:
            raise InputError(
                f"a layer has {rows * side} output channels; with biases {config.name} trains up "
                f"to {config.parameter_rows * side} (its parameter memory's rows)"
            )
        biases = self._always("aligned biases", "constants", rows * config.parameter_row_bytes)
        compensations = {}
        for op in convolutions:
            if op.compensation is not None:
                home = ImageHome(
                    Image(op.compensation.name, op.result.shape, op.result.exponent), 1, side, 0
                )
                at = self._always(f"aligned {op.compensation.name}", "constants", home.size)
                compensations[op.compensation.name] = ImageHome(home.image, 1, side, at)
        logits = ImageHome(step.logits, step.batch, side, 0)
        loss = LossHomes(
            identity,
            self._always("targets", "inputs", target_size(logits)),
            self._always(
                "gradient by class", "gradients", turned_bytes(step.logits.shape[2], side)
            ),
        )
        images = self._images()
        spill = self._spill(images, weights)
        return TrainingPlan(
            self.areas,
            images,
            weights,
            cells,
            biases,
            compensations,
            tables,
            loss,
            spill,
            self.end,
        )

    def _weights(self, parameter: Parameter) -> WeightHome:
        update, side = self.step.update, self.side
        home = WeightHome(parameter, side, 0)
        elements = home.rows * side
        codes = self._always(parameter.name, "weights", elements)
        if not isinstance(update, MomentumUpdate):
            return WeightHome(parameter, side, codes, codes, 0, 1)
        width = update.state_bits // 8
        master = self._always(f"{parameter.name} master", "optimizer", elements * width)
        velocity = 0
        if update.momentum > 0:
            velocity = self._always(f"{parameter.name} velocity", "optimizer", elements * width)
        return WeightHome(parameter, side, codes, master, velocity, width)

    def _lifetimes(self) -> dict[str, tuple[Image, str, int, int]]:
        """By name: the image, its purpose, its first and last operation."""
        step = self.step
        found: dict[str, tuple[Image, str, int, int]] = {}
        gradients = len(step.forward)
        for number, operation in enumerate(step.operations):
            for _, image in images_of(operation):
                if image.name == step.target.name:
                    continue  # it lies by class, see `targets`
                purpose = "gradients" if number >= gradients else "kept activations"
                known = found.get(image.name, (image, purpose, number, number))
                found[image.name] = (image, known[1], known[2], number)
        source, logits = step.source.name, step.logits.name
        if source in found:
            found[source] = (step.source, "inputs", 0, found[source][3])
        if logits in found:
            found[logits] = (*found[logits][:3], self.last)
        return found

    def _in_place(self, lifetimes: dict[str, tuple[Image, str, int, int]]) -> dict[str, str]:
        """Results that take the place of an operand that they are the last to use.

        Both are read and written box by box, an element of the result after its own operands.
        """
        places: dict[str, str] = {}
        for number, operation in enumerate(self.step.operations):
            match operation:
                case Add(first=first, second=second):
                    operands = [first, second]
                case Mask(gradient=gradient):
                    operands = [gradient]
                case _:
                    continue
            for operand in operands:
                if lifetimes[operand.name][3] == number and operand.name != self.step.source.name:
                    places[operation.result.name] = places.get(operand.name, operand.name)
                    break
        return places

    def _images(self) -> dict[str, ImageHome]:
        """Homes of all images, each for its lifetime; the largest first, as low as they fit."""
        base = self.end
        homes: dict[str, ImageHome] = {}
        placed: list[Area] = []
        lifetimes = self._lifetimes()
        places = self._in_place(lifetimes)

        def narrow(name: str) -> bool:
            """Whether nothing writes it but the host, and zeros would take more than it."""
            return name == self.step.source.name and 2 * self.step.source.shape[2] <= self.side

        for name, place in places.items():
            image, purpose, first, last = lifetimes[place]
            lifetimes[place] = image, purpose, first, max(last, lifetimes[name][3])
        results = {name: lifetimes.pop(name)[0] for name in places}

        def size_of(name: str) -> int:
            home = ImageHome(lifetimes[name][0], self.step.batch, self.side, 0, narrow(name))
            return ceil_div(home.size, ALIGNMENT) * ALIGNMENT

        for name in sorted(lifetimes, key=lambda name: (-size_of(name), name)):
            image, purpose, first, last = lifetimes[name]
            size = size_of(name)
            beside = [area for area in placed if area.first <= last and first <= area.last]
            address = base
            for area in sorted(beside, key=lambda area: area.address):
                if area.address - address >= size:
                    break
                address = max(address, area.end)
            placed.append(Area(name, purpose, address, size, first, last))
            homes[name] = ImageHome(image, self.step.batch, self.side, address, narrow(name))
        for name, place in places.items():
            homes[name] = dataclasses.replace(homes[place], image=results[name])
        self.areas += placed
        self.end = max((area.end for area in placed), default=base)
        return homes

    def _spill(self, images: dict[str, ImageHome], weights: dict[str, WeightHome]) -> Spill:
        """Room for the sums of the largest image, or parameter, whose largest comes first."""
        size = 0
        for operation in self.step.operations:
            match operation:
                case (
                    Convolution(quantizer=quantizer, result=result)
                    | DataGradient(quantizer=quantizer, result=result)
                    | AveragePool(quantizer=quantizer, result=result)
                    | Add(quantizer=quantizer, result=result)
                ) if not quantizer.delayed:
                    size = max(size, images[result.name].size * SUM_BYTES)
                case LossGradient(logits=logits):
                    size = max(size, loss_sums_bytes(images[logits.name]))
        if isinstance(self.step.update, BitUpdate) and not self.step.update.delayed:
            rows = max(home.rows for home in weights.values())
            size = max(size, rows * self.side * SUM_BYTES)
        return Spill(self._always("sums", "sums", size) if size else self.end, size)
