"""What a comparison found, as values and as text."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft.program import Program

__all__ = ["Comparison", "Difference", "Element", "instruction_facts"]


@dataclass(frozen=True)
class Element:
    """The first element that differs.

    Parameters
    ----------
    memory : str
        Where it lies, in words.
    place : int
        Byte address, or row times columns plus lane of accumulators.
    tensor : str or None
        What it belongs to; None if nothing of the program says so.
    coordinates : (y, x, channel) or None
    detail : str
        How tensor and coordinates follow from the place, if not by the address alone.
    """

    memory: str
    place: int
    tensor: str | None
    coordinates: tuple[int, int, int] | None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first difference of two computations.

    Parameters
    ----------
    index, offset : int
        Number of the instruction in the stream, and its byte in the program.
    instruction : str
        Disassembled.
    layer, op, source : str
        The operation it belongs to, and where the model has that.
    tile : int
    purpose : str
        What the instruction does in its layer.
    element : Element or None
        None if the machine stopped before anything differed.
    values : dict of engine to value
        Of the element.
    before : int or None
        The element's value before the instruction, where both engines agreed on it.
    elements : int
        How many elements differ after the instruction.
    stray : bool
        The element lies outside what the instruction is to write.
    stopped : str
        How the rtl engine stopped, if it did.
    only_concurrent : bool
        The instruction is right when every instruction waits for the one before it to retire.
    cycle, start, retire : int or None
        From the start of the whole program on rtl: when the element took its last value, and when
        the instruction started and retired. ``cycle`` is None if the element did not change.
    """

    index: int
    offset: int
    instruction: str
    layer: str
    op: str
    source: str
    tile: int
    purpose: str
    element: Element | None
    values: dict[str, int]
    before: int | None = None
    elements: int = 0
    stray: bool = False
    stopped: str = ""
    only_concurrent: bool = False
    cycle: int | None = None
    start: int | None = None
    retire: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The outcome of comparing two computations of one input.

    Parameters
    ----------
    model : str
    config : str
    engines : (str, str)
        The trusted one first.
    difference : Difference or None
    instructions, elements : int
        Executed, and compared up to the difference or the end.
    skipped : tuple of str
        Tensors of the reference that have no home in the program, hence were not compared.
    race : str
        What the race check found, if it found something.
    waveform : Path or None
    window : (int, int) or None
        First and last cycle of the waveform.
    notes : tuple of str
    """

    model: str
    config: str
    engines: tuple[str, str]
    difference: Difference | None
    instructions: int
    elements: int
    skipped: tuple[str, ...] = ()
    race: str = ""
    waveform: Path | None = None
    window: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        values["waveform"] = None if self.waveform is None else str(self.waveform)
        return values

    def text(self) -> str:
        """The report for people."""
        compared = f"{self.instructions:,} instructions and {self.elements:,} elements compared"
        between = f"{self.engines[0]} and {self.engines[1]}"
        if self.difference is None:
            lines = [f"no difference between {between}: {compared}"]
        else:
            lines = [f"first difference between {between} ({compared})"]
            lines += [f"  {name:12} {value}" for name, value in _facts(self.difference)]
        if self.waveform is not None and self.window is not None:
            first, last = self.window
            lines.append(f"  {'waveform':12} {self.waveform}, cycles {first} to {last}")
        if self.race:
            lines.append(f"race check: {self.race}")
        if self.skipped:
            lines.append(f"not compared, no place of their own: {', '.join(self.skipped)}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _facts(found: Difference) -> list[tuple[str, str]]:
    source = f", from {found.source}" if found.source else ""
    facts = [
        ("layer", f"{found.layer} ({found.op}{source}), tile {found.tile}"),
        ("instruction", f"{found.index} at byte {found.offset:#x}: {found.purpose}"),
        ("", found.instruction),
    ]
    element = found.element
    if element is not None:
        tensor = element.tensor or "no tensor of the program"
        if element.coordinates is not None:
            y, x, channel = element.coordinates
            tensor += f" [y {y}, x {x}, channel {channel}]"
        if element.detail:
            tensor += f" ({element.detail})"
        facts += [("element", tensor), ("", element.memory)]
        if found.stray:
            facts.append(("", "outside what the instruction is to write"))
        values = ", ".join(f"{engine} {value}" for engine, value in found.values.items())
        if found.before is not None:
            values += f" (before: {found.before})"
        facts += [("values", values), ("differing", f"{found.elements:,} elements")]
    if found.stopped:
        facts.append(("stopped", found.stopped))
    if found.retire is not None:
        ran = f"started in {found.start}, retired in {found.retire}"
        if found.cycle is not None:
            facts.append(("cycle", f"{found.cycle} ({ran})"))
        elif element is not None:
            facts.append(("cycle", f"the element did not change ({ran})"))
        else:
            facts.append(("cycle", ran))
    if found.only_concurrent:
        facts.append(
            ("order", "one instruction at a time it is right; only in the whole program it differs")
        )
    return facts


def instruction_facts(program: Program, index: int) -> dict[str, Any]:
    """The fields of :class:`Difference` that name an instruction."""
    offset, instruction = program.decoded[index]
    symbol = program.symbols[index]
    layer = program.layers[symbol.layer]
    return {
        "index": index,
        "offset": offset,
        "instruction": str(instruction),
        "layer": layer.name,
        "op": layer.op,
        "source": layer.source,
        "tile": symbol.tile,
        "purpose": symbol.purpose,
    }
