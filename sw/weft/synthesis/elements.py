"""What the array's weight modes and ways to build its elements cost: synthesis of arrays alone.

``python -m weft.synthesis.elements docs`` writes ``docs/element-choices.md``. Each array takes some
minutes; results stay in ``build/elements``, so that a run that was interrupted goes on from there.
With ``--resources-only`` nothing is placed, and the page has no clocks.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.synthesis.flow import synthesize_verilog
from weft_hw import PRESETS, AcceleratorConfig
from weft_hw.config import ELEMENTS

__all__ = ["MODES", "choices_page", "main", "measure"]

SIDE = 8
MODES = ((8,), (8, 4), (8, 4, 2))
TARGET = "ecp5-85k"
WRAPPER_MODULE = "(wrapper)"
FOLDER = Path("build/elements")

_INTRODUCTION = f"""\
# Ways to build an array element

Written by `python -m weft.synthesis.elements docs`; not to be edited.

An {SIDE} x {SIDE} array alone on Lattice ECP5 (`{TARGET}`, speed grade 6), by `weight_modes` and
`element` of the configuration: netlist of Yosys without the shift registers around the ports, and
the clock after routing by nextpnr, aim {{megahertz:g}} MHz, one placement ("-": not placed). Both
elements give the same bits.

* `multiplier`: one 9 x 9 multiplier takes a whole weight; what narrower modes add are products by
  two or four bits in look-up tables.
* `slices`: four products by two bits each, shifted as the mode wants it, then added; no multiplier
  block.

| weight_modes | element | LUT | FF | DSP | LUT an element | clock MHz |
|---|---|---:|---:|---:|---:|---:|
"""


def configurations() -> Iterator[AcceleratorConfig]:
    """The arrays that are compared."""
    for modes in MODES:
        for element in ELEMENTS:
            yield dataclasses.replace(
                PRESETS["edge8"],
                name=f"{'-'.join(map(str, modes))}-{element}",
                rows=SIDE,
                columns=SIDE,
                weight_modes=modes,
                element=element,
            )


def measure(
    config: AcceleratorConfig, folder: Path, *, megahertz: float, place: bool = True
) -> dict[str, Any]:
    """Area and clock of a configuration's array, ready for JSON; kept in the folder.

    Raises
    ------
    MissingExtra, ToolFailed
        If a tool is missing or fails.
    """
    from weft_hw.gateware.generate import TOP_MODULE, array_verilog

    text = array_verilog(config)
    key = f"{megahertz:g} {place} {hashlib.sha256(text.encode()).hexdigest()}"
    kept = folder / f"{config.name}.json"
    if kept.exists():
        result: dict[str, Any] = json.loads(kept.read_text())
        if result["key"] == key:
            return result
    report = synthesize_verilog(
        text,
        TOP_MODULE,
        TARGET,
        folder / config.name,
        megahertz=megahertz,
        place=place,
        # An array alone is small: the placer that knows of the clock gives the faster one.
        placer="heap",
    )
    modules = [area for name, area in report.modules.items() if name != WRAPPER_MODULE]
    result = {
        "key": key,
        "weight_modes": list(config.weight_modes),
        "element": config.element,
        "luts": sum(area.luts for area in modules),
        "flip_flops": sum(area.flip_flops for area in modules),
        "multipliers": sum(area.multipliers for area in modules),
        "clock_mhz": report.clock_mhz,
    }
    kept.write_text(json.dumps(result, indent=2) + "\n")
    return result


def choices_page(results: list[dict[str, Any]], *, megahertz: float) -> str:
    """The page, one line a result."""
    lines = []
    for result in results:
        modes = ", ".join(map(str, result["weight_modes"]))
        clock = "-" if result["clock_mhz"] is None else f"{result['clock_mhz']:.1f}"
        lines.append(
            f"| {modes} | {result['element']} | {result['luts']:,} | {result['flip_flops']:,} "
            f"| {result['multipliers']} | {result['luts'] / SIDE**2:.0f} | {clock} |\n"
        )
    return _INTRODUCTION.format(megahertz=megahertz) + "".join(lines)


def main(arguments: list[str]) -> int:
    """Measure all arrays and write the page into a folder; the area alone on request."""
    place = "--resources-only" not in arguments
    folders = [argument for argument in arguments if argument != "--resources-only"]
    if len(folders) != 1 or not Path(folders[0]).is_dir():
        print(
            "usage: python -m weft.synthesis.elements [--resources-only] FOLDER (which must exist)",
            file=sys.stderr,
        )
        return 2
    megahertz = 100.0
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = []
    for config in configurations():
        results.append(measure(config, FOLDER, megahertz=megahertz, place=place))
        print(f"{config.name}: {results[-1]}", flush=True)
    page = Path(folders[0]) / "element-choices.md"
    page.write_text(choices_page(results, megahertz=megahertz))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
