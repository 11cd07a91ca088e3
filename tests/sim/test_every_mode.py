"""Every instruction in every mode, by chance, against the reference; counts are in the summary.

A functional case is one random instruction. An rtl or cocotb case is a program that fills all
on-chip memories, executes some random instructions, and writes everything back.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest

from sim.instruction_modes import GROUPS, Coverage, existing_modes, mode_fields
from sim.machine_reference import ReferenceMachine
from sim.programs import dump_state, encode, fill_state, serialized
from sim.random_instructions import RandomInstructions
from sim.test_device_conformance import FLEXIBLE, TALL, TINY, WIDE
from sim.test_functional import CONFIGS, Pair
from weft_hw import AcceleratorConfig
from weft_hw.instructions import INSTRUCTIONS, Element, End, Instruction, Memory, Store
from weft_sim.device import open_device

Record = Callable[[str, object], None]

WATCHDOG = 5000

# All weight modes, a square array, and little to fill and to write back under pauses.
SMALL = dataclasses.replace(
    FLEXIBLE,
    name="small",
    activation_bytes=512,
    weight_bytes=256,
    accumulator_rows=16,  # a random transfer takes up to 18 rows of both banks
)


def test_every_field_of_modes_is_counted():
    for kind in INSTRUCTIONS.values():
        if kind is not End:
            assert mode_fields(kind).keys() <= {name for group in GROUPS[kind] for name in group}


def test_modes_follow_the_configuration():
    def values(config: AcceleratorConfig, *group: str) -> set[str]:
        return {value for _, names, value in existing_modes(config) if names == group}

    assert values(TINY, "weight_bits", "bounds") == {
        f"EIGHT {bounds}" for bounds in ("NONE", "LEFT", "TOP", "ACCUMULATOR")
    }
    assert {"FOUR LEFT", "TWO ACCUMULATOR"} <= values(FLEXIBLE, "weight_bits", "bounds")
    assert "FOUR TOP" not in values(FLEXIBLE, "weight_bits", "bounds")
    assert "WEIGHT_STATIONARY LEFT" not in values(TALL, "dataflow", "load_side")


def test_functional(rng: np.random.Generator, record_property: Record):
    coverage = Coverage(CONFIGS)
    for config in CONFIGS:
        for _ in range(2 if config.columns > 8 else 12):
            pair = Pair(config, rng)
            # LOAD of parameters comes last: it may leave exponents that are not defined.
            draws = [functools.partial(coverage.draw, pair.random)] * 40
            for draw in [*draws, *[pair.random.load_parameters] * 4]:
                instruction = draw()
                pair.run([instruction])
                pair.reference.execute(instruction)
                pair.check([instruction])
                coverage.add(instruction)
    total = sum(coverage.instructions.values())
    record_property("modes", coverage.summary(f"functional: {total:,} random instructions"))
    assert total >= 2000
    assert not coverage.missing


def test_a_mode_that_did_not_occur_is_missing():
    coverage = Coverage([TINY])
    coverage.add(Store(memory=Memory.ACCUMULATOR, element=Element.INT16))
    assert "STORE memory/element=ACCUMULATOR INT16" not in coverage.missing
    assert "STORE memory/element=ACCUMULATOR INT32" in coverage.missing
    assert len(coverage.missing) == len(existing_modes(TINY)) - 1


class Case:
    """A random program, what DRAM holds before it, and where everything lies."""

    def __init__(
        self, config: AcceleratorConfig, rng: np.random.Generator, coverage: Coverage, length: int
    ) -> None:
        working = 512  # the first bytes of DRAM are for random LOAD and STORE
        prologue, filled = fill_state(config, working)
        epilogue, dumped = dump_state(config, working + filled)
        self.program_address = -(-(working + filled + dumped) // 64) * 64
        random = RandomInstructions(config, rng, (0, working), apart=True)
        self.body: list[Instruction] = []
        for _ in range(length):
            self.body.append(coverage.draw(random, self.body))
        self.instructions = serialized([*prologue, *self.body, *epilogue])
        code = np.frombuffer(encode(self.instructions), np.uint8)
        end = -(-(self.program_address + len(code)) // 64) * 64
        self.dram = rng.integers(0, 256, end).astype(np.uint8)
        rows = np.frombuffer(random.parameter_rows(), np.uint8)
        start = working + config.activation_bytes + config.weight_bytes
        self.dram[start : start + len(rows)] = rows
        self.dram[self.program_address : self.program_address + len(code)] = code

    def expected(self, reference: ReferenceMachine, coverage: Coverage) -> list[int]:
        """DRAM after the program, on a machine that may have run others before."""
        reference.dram = self.dram.tolist()
        for instruction in self.instructions:
            reference.execute(instruction)
            coverage.add(instruction)
        return reference.dram

    def __str__(self) -> str:
        return "\n".join(map(str, self.body))


@pytest.mark.rtl
def test_rtl(rng: np.random.Generator, seed: int, record_property: Record):
    configs = [TINY, WIDE, TALL, FLEXIBLE]
    coverage = Coverage(configs)
    memory_bytes, programs = 1 << 15, 0
    for number, config in enumerate(configs):
        stalls = {"stall_probability": 0.1 * number, "seed": seed + number}
        device = open_device(
            "rtl", config, memory_bytes=memory_bytes, latency=1 + 13 * number, **stalls
        )
        reference = ReferenceMachine(config, b"")
        with device:
            for _ in range(75):
                case = Case(config, rng, coverage, 4)
                device.write_memory(0, case.dram)
                reference.random = int(rng.integers(1 << 32)), int(rng.integers(1 << 32))
                random_seed, random_step = reference.random
                device.run(
                    case.program_address,
                    watchdog=WATCHDOG,
                    random_seed=random_seed,
                    random_step=random_step,
                )
                found = device.read_memory(0, len(case.dram))
                assert found.tolist() == case.expected(reference, coverage), case
                assert device.read_scalars() == tuple(reference.scalars), case
                programs += 1
    record_property("modes", coverage.summary(f"rtl: {programs} random programs"))
    assert programs >= 300
    assert not coverage.missing


@pytest.mark.cocotb
def test_cocotb_under_pauses(rng: np.random.Generator, seed: int, record_property: Record):
    pytest.importorskip("cocotb")
    from weft_sim.cocotb_bench import CocotbJob, run_jobs

    coverage = Coverage([SMALL])
    cases, expected = [], []
    reference = ReferenceMachine(SMALL, b"")  # the reset before each job leaves its memories
    for _ in range(50):
        reference.scalars = [0] * 16
        cases.append(Case(SMALL, rng, coverage, 6))
        expected.append(cases[-1].expected(reference, coverage).copy())
    jobs = [
        CocotbJob(
            image={0: case.dram},
            program_address=case.program_address,
            memory_bytes=len(case.dram),
            read_ranges=[(0, len(case.dram))],
            seed=100 * seed + number,
            pause_probability=0.1 + 0.1 * (number % 4),
            watchdog=WATCHDOG,
        )
        for number, case in enumerate(cases, 1)
    ]
    for case, memory, result in zip(cases, expected, run_jobs(SMALL, jobs), strict=True):
        assert result.fault is None, case
        assert result.memory[0].tolist() == memory, case
    record_property("modes", coverage.summary(f"cocotb: {len(cases)} random programs with pauses"))
    assert len(cases) >= 50
    assert not coverage.missing
