"""Modes of instructions, derived from their declarations: which exist, and which have occurred."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sim.random_instructions import RandomInstructions
from weft_hw.config import AcceleratorConfig
from weft_hw.fields import BitField
from weft_hw.instructions import (
    INSTRUCTIONS,
    Dataflow,
    End,
    Head,
    Instruction,
    Load,
    Matrix,
    Scalar,
    ScaleSource,
    Store,
    Tail,
    Vector,
)

__all__ = ["Coverage", "existing_modes", "mode_fields", "modes"]

Kind = type[Instruction]
Mode = tuple[str, tuple[str, ...], str]  # the instruction's name, the fields, their values

GROUPS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    Load: (("memory", "element"),),
    Store: (("memory", "element"),),
    Matrix: (
        ("dataflow", "bounds"),
        ("dataflow", "accumulate"),
        ("dataflow", "load_side"),
        ("weight_bits", "bounds"),
    ),
    Vector: (
        ("head", "a_source"),
        ("head", "b_source"),
        ("head", "bounded"),
        ("tail", "b_source"),
        ("scale_source", "rounding"),
        ("destination",),
        ("use_bias",),
        ("clamp_from_scalar",),
        ("capture",),
        ("lookup",),
    ),
    Scalar: (("operation", "use_immediate"),),
}
"""Fields whose combinations count as modes."""

DEPENDENT: dict[Kind, tuple[str, ...]] = {
    Load: ("memory", "element"),
    Store: ("memory", "element"),
    Matrix: ("dataflow", "bounds", "load_side", "weight_bits"),
    Vector: ("head", "a_source", "b_source", "tail"),
    Scalar: (),
}
"""Fields that decide together whether an instruction is supported."""

WITHOUT_EFFECT: dict[tuple[Kind, str], Callable[[Any], bool]] = {
    (Matrix, "load_side"): lambda matrix: matrix.dataflow == Dataflow.OUTPUT_STATIONARY,
    (Vector, "rounding"): lambda vector: vector.scale_source == ScaleSource.NONE,
    (Vector, "b_source"): lambda vector: vector.head != Head.DOT and vector.tail == Tail.NONE,
}


def _values(field: BitField) -> list[int]:
    if field.supported is not None:
        return list(field.supported)
    return list(field.kind) if field.kind is not None else [0, 1]


def mode_fields(kind: Kind) -> dict[str, BitField]:
    """Fields with named or listed values, and flags, of which more than one is executed."""
    return {
        field.name: field
        for field in kind.bit_fields()
        if (field.kind is not None or field.supported is not None or field.width == 1)
        and len(_values(field)) > 1
    }


def _mode(instruction: Instruction, group: tuple[str, ...]) -> Mode:
    kind = type(instruction)
    declared = {field.name: field for field in kind.bit_fields()}
    values = []
    for name in group:
        ignored = WITHOUT_EFFECT.get((kind, name))
        if ignored is not None and ignored(instruction):
            continue
        value, names = getattr(instruction, name), declared[name].kind
        values.append(names(value).name if names is not None else str(value))
    return kind.__name__.upper(), group, " ".join(values)


def modes(instruction: Instruction) -> list[Mode]:
    """The modes in which an instruction executes, one for each group of fields."""
    return [_mode(instruction, group) for group in GROUPS[type(instruction)]]


@functools.cache
def existing_modes(config: AcceleratorConfig) -> frozenset[Mode]:
    """All modes that this machine executes."""
    return frozenset(
        mode for kind in INSTRUCTIONS.values() if kind is not End for mode in _legal(kind, config)
    )


def _legal(kind: Kind, config: AcceleratorConfig) -> Iterator[Mode]:
    fields = {field.name: field for field in kind.bit_fields()}
    for group in GROUPS[kind]:
        names = list(dict.fromkeys((*group, *DEPENDENT[kind])))
        for values in itertools.product(*(_values(fields[name]) for name in names)):
            named = {
                name: value if (enum := fields[name].kind) is None else enum(value)
                for name, value in zip(names, values)
            }
            instruction = kind(**named)
            if instruction.unsupported(config) is None:
                yield _mode(instruction, group)


class Coverage:
    """Counts instructions by mode, and draws those that are still missing with preference."""

    def __init__(self, configs: Iterable[AcceleratorConfig]) -> None:
        self.expected: frozenset[Mode] = frozenset().union(*map(existing_modes, configs))
        self.counts: Counter[Mode] = Counter()
        self.instructions: Counter[str] = Counter()

    def add(self, instruction: Instruction) -> None:
        """Count an instruction that has been checked."""
        self.instructions[type(instruction).__name__.upper()] += 1
        self.counts.update(modes(instruction))

    def draw(self, random: RandomInstructions, drawn: Iterable[Instruction] = ()) -> Instruction:
        """A random instruction; of several, the one with the most modes not seen or ``drawn``."""
        seen = {mode for instruction in drawn for mode in modes(instruction)}
        seen |= self.counts.keys()
        if self.expected <= seen:
            return random.draw()
        candidates = [random.draw() for _ in range(6)]
        return max(candidates, key=lambda candidate: len(set(modes(candidate)) - seen))

    @property
    def missing(self) -> list[str]:
        """Modes that have not occurred."""
        return [
            f"{name} {'/'.join(group)}={value}"
            for name, group, value in sorted(self.expected - self.counts.keys())
        ]

    def summary(self, title: str) -> str:
        """How often each mode occurred, a line for each group of fields."""
        lines = [f"{title}: {len(self.counts)} modes"]
        for kind, groups in GROUPS.items():
            name = kind.__name__.upper()
            for group in groups:
                found = [
                    f"{value} {self.counts[name, group, value]}"
                    for _, _, value in sorted(
                        mode for mode in self.counts if mode[:2] == (name, group)
                    )
                ]
                if found:
                    number = f"{name} ({self.instructions[name]:,})"
                    lines.append(f"  {number} {'/'.join(group)}: {', '.join(found)}")
        return "\n".join(lines)
