"""A compiled program under cocotb, between cocotbext-axi's bus models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weft.host import pack, unpack
from weft.program import Program
from weft_sim.cache import Progress
from weft_sim.cocotb_bench import CocotbJob, CocotbResult, run_jobs

__all__ = ["cocotb_job", "outputs_of", "run_programs"]


def cocotb_job(program: Program, inputs: Sequence[NDArray[np.int8]], *, seed: int = 0) -> CocotbJob:
    """The job that runs a program on one sample, given as codes in the program's order of inputs.

    ``seed`` 0 lets the buses run freely, another one pauses them at random.
    """
    image: dict[int, bytes | NDArray[np.uint8]] = {
        program.constants_address: program.constants,
        program.instructions_address: program.instructions,
    }
    for port, codes in zip(program.inputs, inputs, strict=True):
        image[port.address] = pack(port, codes)
    return CocotbJob(
        image=image,
        program_address=program.instructions_address,
        memory_bytes=program.memory_bytes,
        read_ranges=[(port.address, port.size) for port in program.outputs],
        seed=seed,
    )


def outputs_of(program: Program, result: CocotbResult) -> list[NDArray[np.int8]]:
    """A job's outputs, as the model has them."""
    if result.fault is not None:
        raise result.fault
    return [
        unpack(port, memory) for port, memory in zip(program.outputs, result.memory, strict=True)
    ]


def run_programs(
    programs: Sequence[Program],
    inputs: Sequence[Sequence[NDArray[np.int8]]],
    *,
    seeds: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[tuple[list[NDArray[np.int8]], CocotbResult]]:
    """Run programs of one configuration in one simulation; outputs and the run of each."""
    jobs = [
        cocotb_job(program, sample, seed=seeds[number] if seeds else 0)
        for number, (program, sample) in enumerate(zip(programs, inputs, strict=True))
    ]
    results = run_jobs(programs[0].config, jobs, progress=progress)
    return [
        (outputs_of(program, result), result)
        for program, result in zip(programs, results, strict=True)
    ]
