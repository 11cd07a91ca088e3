"""Builds the cocotb simulation of a configuration and runs programs in it, from plain Python."""

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_hw.config import AcceleratorConfig
from weft_hw.errors import WeftError
from weft_hw.registers import FaultCause
from weft_sim.cache import Progress
from weft_sim.device import DeviceFault, RunResult
from weft_sim.rtl.build import machine_verilog, verilated_defines
from weft_sim.rtl.compilation import TOP, Recipe, compiled

__all__ = ["CocotbJob", "CocotbResult", "build_cocotb", "run_cocotb", "run_jobs"]

BENCH = "weft_sim.cocotb_bench.tb_program"
JOBS_VARIABLE = "WEFT_COCOTB_JOBS"

# Only ports are visible to cocotb: a visible signal cannot be optimized away, and a model with all
# of its signals visible is five times slower.
_VISIBLE = ("clk", "rst", "interrupt", "event_*", "s_axil__*", "m_axi__*")


@dataclass(frozen=True, kw_only=True)
class CocotbJob:
    """One program to run.

    Parameters
    ----------
    image : mapping of int to bytes
        What DRAM holds, by address; the rest is zero.
    program_address : int
    memory_bytes : int
        Size of DRAM; accesses beyond it are answered with an error.
    read_ranges : sequence of (int, int)
        Address and size of what to read back.
    seed : int
        Of the pauses on the buses; 0 pauses never.
    pause_probability : float
        Of each bus channel in each cycle, if the seed is not 0.
    error_ranges : sequence of (int, int)
        First address and end of what is answered with an error.
    watchdog : int
        Cycles without progress that count as a hang.
    cycle_limit : int
        Cycles after which the bench gives up.
    """

    image: Mapping[int, bytes | NDArray[np.uint8]]
    program_address: int
    memory_bytes: int
    read_ranges: Sequence[tuple[int, int]] = ()
    seed: int = 0
    pause_probability: float = 0.3
    error_ranges: Sequence[tuple[int, int]] = ()
    watchdog: int = 100_000
    cycle_limit: int = 5_000_000


@dataclass(frozen=True)
class CocotbResult:
    """What one program gave.

    Parameters
    ----------
    run : RunResult
        Cycles from the machine's own register; wall seconds from start to interrupt.
    memory : list of uint8 array
        What ``read_ranges`` asked for, in order.
    fault : DeviceFault or None
        Why the machine stopped, if it did not reach the program's end.
    """

    run: RunResult
    memory: list[NDArray[np.uint8]] = field(default_factory=list)
    fault: DeviceFault | None = None


def build_cocotb(config: AcceleratorConfig, *, progress: Progress | None = None) -> Path:
    """The simulation's executable, from the cache or built now.

    Raises
    ------
    WeftError
        If cocotb or a tool is missing.
    """
    try:
        import cocotb_tools.config as cocotb_config
    except ImportError:
        raise WeftError('cocotb is not installed: pip install "weft[cocotb]"') from None
    main = cocotb_config.share_dir / "lib" / "verilator" / "verilator.cpp"
    libraries = cocotb_config.libs_dir
    visible = "\n".join(f'public_flat_rw -module "{TOP}" -var "{name}"' for name in _VISIBLE)
    recipe = Recipe(
        output=TOP,
        prefix="Vtop",  # the name that cocotb's main function knows
        verilator_flags=("--vpi", "--no-assert"),
        control=visible,
        defines=verilated_defines(None),
        sources=(main,),
        link_flags=(f"-Wl,-rpath,{libraries}", f"-L{libraries}", "-lcocotbvpi_verilator"),
    )
    return compiled(
        "cocotb", recipe, machine_verilog(config, progress=progress), progress=progress
    )[0]


def run_jobs(
    config: AcceleratorConfig, jobs: Sequence[CocotbJob], *, progress: Progress | None = None
) -> list[CocotbResult]:
    """Run several programs in one simulator process, with a reset before each.

    Raises
    ------
    WeftError
        If cocotb or a tool is missing.
    RuntimeError
        If the bench fails: a bus rule is broken, a register answers wrongly, or the interrupt does
        not come. The bench's log is in the text.
    """
    executable = build_cocotb(config, progress=progress)
    if progress is not None:
        progress("running cocotb", None)
    with tempfile.TemporaryDirectory(prefix="weft-cocotb-") as folder:
        directory = Path(folder)
        _write_jobs(directory, config, jobs)
        _run_bench(executable, directory)
        return [_read_result(directory, index, job) for index, job in enumerate(jobs)]


def run_cocotb(
    config: AcceleratorConfig,
    image: Mapping[int, bytes | NDArray[np.uint8]],
    program_address: int,
    *,
    memory_bytes: int,
    read_ranges: Sequence[tuple[int, int]] = (),
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> CocotbResult:
    """Run one program; ``options`` are further fields of :class:`CocotbJob`.

    Raises
    ------
    DeviceFault
        If the machine stopped with a fault.
    WeftError, RuntimeError
        See :func:`run_jobs`.
    """
    job = CocotbJob(
        image=image,
        program_address=program_address,
        memory_bytes=memory_bytes,
        read_ranges=read_ranges,
        seed=seed,
        **options,
    )
    result = run_jobs(config, [job], progress=progress)[0]
    if result.fault is not None:
        raise result.fault
    return result


def _write_jobs(directory: Path, config: AcceleratorConfig, jobs: Sequence[CocotbJob]) -> None:
    described = []
    for index, job in enumerate(jobs):
        arrays = {
            str(address): np.frombuffer(bytes(data), dtype=np.uint8)
            for address, data in job.image.items()
        }
        # NumPy's type stubs take any keyword for `allow_pickle`.
        np.savez(directory / f"image{index}.npz", **arrays)  # type: ignore[arg-type]
        described.append(asdict(replace(job, image={})))
    content = {"config_hash": config.content_hash, "jobs": described}
    (directory / "jobs.json").write_text(json.dumps(content))


def _run_bench(executable: Path, directory: Path) -> None:
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import Verilator

    log = directory / "log"
    results = directory / "results.xml"
    runner = Verilator()
    runner.log.setLevel(logging.ERROR)
    try:
        # The runner prints its commands, and exits where a test has failed: that is ours to report.
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
            runner.test(
                test_module=BENCH,
                hdl_toplevel=TOP,
                hdl_toplevel_lang="verilog",
                build_dir=executable.parent,
                test_dir=directory,
                results_xml=str(results),
                log_file=log,
                extra_env={
                    JOBS_VARIABLE: str(directory),
                    "COCOTB_LOG_LEVEL": "WARNING",
                    "PYTHONWARNINGS": "ignore",
                },
            )
        tests, failed = get_results(results)
    except RuntimeError as error:
        raise RuntimeError(f"cocotb gave no results ({error}):\n{_tail(log)}") from None
    if failed or not tests:
        raise RuntimeError(f"the cocotb bench failed:\n{_tail(log)}")


def _tail(log: Path) -> str:
    if not log.is_file():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


def _read_result(directory: Path, index: int, job: CocotbJob) -> CocotbResult:
    values = json.loads((directory / f"result{index}.json").read_text())
    with np.load(directory / f"memory{index}.npz") as data:
        memory = [data[str(position)] for position in range(len(job.read_ranges))]
    run = RunResult(
        cycles=values["cycles"], wall_seconds=values["wall_seconds"], counters=values["counters"]
    )
    fault = None
    if values["fault"] is not None:
        described = values["fault"]
        cause = FaultCause(described["cause"])
        fault = DeviceFault(
            cause,
            queue=described["queue"],
            instruction_offset=described["instruction"],
            address=described["address"],
            sticky=tuple(
                entry for entry in FaultCause if entry != cause and described["sticky"] >> entry & 1
            ),
        )
    return CocotbResult(run, memory, fault)
