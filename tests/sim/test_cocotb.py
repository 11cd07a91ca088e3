"""The hardware between cocotbext-axi's bus models, with pauses on every channel by seed."""

import dataclasses

import numpy as np
import pytest

from matmul_program import LEFT, LOADED, MEMORY_BYTES, OUTPUT, PROGRAM, MatmulCase
from weft_hw import PRESETS
from weft_hw.instructions import End, Matrix, Queue
from weft_hw.registers import FaultCause
from weft_sim.device import DeviceFault

pytest.importorskip("cocotb")

from weft_sim.cocotb_bench import CocotbJob, run_cocotb, run_jobs

pytestmark = pytest.mark.cocotb

TINY = PRESETS["tiny"]


def job(case: MatmulCase, **options: object) -> CocotbJob:
    return CocotbJob(
        image=case.image(),
        program_address=PROGRAM,
        memory_bytes=MEMORY_BYTES,
        read_ranges=[(OUTPUT, case.output_size), (0, MEMORY_BYTES)],
        watchdog=2000,
        **options,
    )


def expected_memory(case: MatmulCase) -> np.ndarray:
    memory = np.zeros(MEMORY_BYTES, dtype=np.uint8)
    for address, data in case.image().items():
        memory[address : address + len(data)] = np.frombuffer(data, dtype=np.uint8)
    output = case.expected().tobytes()
    memory[OUTPUT : OUTPUT + len(output)] = np.frombuffer(output, dtype=np.uint8)
    return memory


def test_matrix_products_under_pauses(rng: np.random.Generator, seed: int) -> None:
    cases = [MatmulCase.random(TINY, rows, rng) for rows in (1, 4, 5, 9, 9)]
    seeds = [0, 100 * seed + 1, 100 * seed + 2, 0, 100 * seed + 3]
    jobs = [job(case, seed=pauses) for case, pauses in zip(cases, seeds)]
    results = run_jobs(TINY, jobs)
    for case, result in zip(cases, results):
        assert result.fault is None
        assert np.array_equal(result.memory[0].view(np.int8), case.expected().reshape(-1))
        assert np.array_equal(result.memory[1], expected_memory(case))
        assert result.run.counters["LOAD_RETIRED"] == 3
        assert result.run.counters["WRITE_BEATS"] == case.output_size // TINY.bus_bytes
    assert results[4].run.cycles > 1.1 * results[3].run.cycles  # the pauses took place


def test_faults_and_recovery(rng: np.random.Generator) -> None:
    case = MatmulCase.random(TINY, 3, rng)
    waits = CocotbJob(
        image={PROGRAM: Matrix(wait=LOADED).encode() + End().encode()},
        program_address=PROGRAM,
        memory_bytes=MEMORY_BYTES,
        watchdog=300,
    )
    results = run_jobs(
        TINY,
        [
            job(case, error_ranges=[(LEFT, LEFT + 1)], seed=1),
            job(case, error_ranges=[(OUTPUT, OUTPUT + 1)], seed=2),
            waits,
            job(case),
        ],
    )
    faults = [result.fault for result in results]
    assert [fault and (fault.cause, fault.queue) for fault in faults] == [
        (FaultCause.READ_ERROR, Queue.LOAD),
        (FaultCause.WRITE_ERROR, Queue.STORE),
        (FaultCause.WATCHDOG, Queue.MATRIX),
        None,
    ]
    assert faults[0].address == LEFT
    assert np.array_equal(results[3].memory[1], expected_memory(case))


def test_one_program(rng: np.random.Generator) -> None:
    case = MatmulCase.random(TINY, 2, rng)
    result = run_cocotb(
        TINY,
        case.image(),
        PROGRAM,
        memory_bytes=MEMORY_BYTES,
        read_ranges=[(OUTPUT, case.output_size)],
    )
    assert np.array_equal(result.memory[0].view(np.int8), case.expected().reshape(-1))
    assert result.run.cycles and result.run.wall_seconds > 0
    with pytest.raises(DeviceFault, match="READ_ERROR"):
        run_cocotb(
            TINY,
            case.image(),
            PROGRAM,
            memory_bytes=MEMORY_BYTES,
            error_ranges=[(LEFT, LEFT + 1)],
        )


def test_a_failing_bench_is_no_pass(rng: np.random.Generator) -> None:
    late = dataclasses.replace(job(MatmulCase.random(TINY, 2, rng)), cycle_limit=20)
    with pytest.raises(RuntimeError, match="no interrupt within 20 cycles"):
        run_jobs(TINY, [late])
