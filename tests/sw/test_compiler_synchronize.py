"""Semaphores: every conflict is ordered, serial execution never blocks, nothing superfluous."""

import dataclasses
import itertools

import numpy as np
import pytest

from network_reference import random_chain
from weft.compiler import compile_graph
from weft.compiler.stream import Access, Space, Step
from weft.compiler.synchronize import synchronize
from weft.errors import UnsupportedModel
from weft_hw.config import PRESETS
from weft_hw.instructions import End, Instruction, Load, Matrix, Queue, Store, Vector

KINDS = (Load, Matrix, Vector, Store)


def random_steps(rng: np.random.Generator, count: int) -> list[Step]:
    """Accesses of random ranges; as on the machine, MATRIX and STORE never meet."""
    spaces = {
        Load: ((Space.DRAM, False), (Space.ACTIVATION, True), (Space.PARAMETER, True)),
        Matrix: ((Space.ACTIVATION, False), (Space.ACCUMULATOR, True)),
        Vector: (
            (Space.ACTIVATION, False),
            (Space.ACTIVATION, True),
            (Space.ACCUMULATOR, False),
            (Space.PARAMETER, False),
        ),
        Store: ((Space.ACTIVATION, False), (Space.DRAM, True)),
    }
    steps = []
    for _ in range(count):
        kind = KINDS[rng.integers(4)]
        accesses = []
        for space, write in spaces[kind]:
            if rng.random() < 0.7:
                start = int(rng.integers(0, 40))
                accesses.append(Access(space, start, start + int(rng.integers(1, 12)), write))
        steps.append(Step(kind(), tuple(accesses), 0, "", 0))
    return steps


def ordered_before(instructions: list[Instruction]) -> list[set[int]]:
    """For each instruction the ones that must have retired before it starts.

    The n-th wait on a semaphore is satisfied by the n-th signal; queues are in order.
    """
    signals: dict[int, list[int]] = {}
    waits: dict[int, int] = {}
    in_queue: dict[Queue, int] = {}
    before: list[set[int]] = []
    for position, instruction in enumerate(instructions):
        known: set[int] = set()
        if instruction.queue in in_queue:
            previous = in_queue[instruction.queue]
            known |= before[previous] | {previous}
        for semaphore in range(16):
            if instruction.wait >> semaphore & 1:
                turn = waits.get(semaphore, 0)
                waits[semaphore] = turn + 1
                sent = signals.get(semaphore, [])
                assert turn < len(sent), "serial execution blocks"
                known |= before[sent[turn]] | {sent[turn]}
        for semaphore in range(16):
            if instruction.signal >> semaphore & 1:
                signals.setdefault(semaphore, []).append(position)
        in_queue[instruction.queue] = position
        before.append(known)
    for semaphore, sent in signals.items():
        assert waits.get(semaphore, 0) == len(sent), "a signal that nobody waits for"
    return before


def check_roles(instructions: list[Instruction]) -> None:
    """Each semaphore has one signalling and one waiting queue."""
    for semaphore in range(16):
        senders = {each.queue for each in instructions if each.signal >> semaphore & 1}
        waiters = {each.queue for each in instructions if each.wait >> semaphore & 1}
        assert len(senders) <= 1
        assert len(waiters) <= 1


def conflicts(steps: list[Step]):
    for (i, a), (j, b) in itertools.combinations(enumerate(steps), 2):
        if a.instruction.queue == b.instruction.queue:
            continue
        for one, other in itertools.product(a.accesses, b.accesses):
            meet = one.space == other.space and one.start < other.end and other.start < one.end
            if meet and (one.write or other.write):
                yield i, j
                break


@pytest.mark.parametrize("case", range(20))
def test_every_conflict_is_ordered(case: int, rng: np.random.Generator) -> None:
    steps = random_steps(rng, 80)
    instructions = synchronize(steps, PRESETS["base16"])
    check_roles(instructions)
    before = ordered_before(instructions)
    found = list(conflicts(steps))
    assert found
    assert all(i in before[j] for i, j in found)


@pytest.mark.parametrize("case", range(5))
def test_no_wait_is_superfluous(case: int, rng: np.random.Generator) -> None:
    """Without any one wait (and its signal) some conflict is not ordered."""
    steps = random_steps(rng, 40)
    instructions = synchronize(steps, PRESETS["base16"])
    found = list(conflicts(steps))
    pairs: dict[int, tuple[list[int], list[int]]] = {}
    for position, each in enumerate(instructions):
        for semaphore in range(16):
            sent, taken = pairs.setdefault(semaphore, ([], []))
            if each.signal >> semaphore & 1:
                sent.append(position)
            if each.wait >> semaphore & 1:
                taken.append(position)
    for semaphore, (sent, taken) in pairs.items():
        for signaller, waiter in zip(sent, taken, strict=True):
            fewer = list(instructions)
            bit = 1 << semaphore
            fewer[signaller] = dataclasses.replace(
                fewer[signaller], signal=fewer[signaller].signal & ~bit
            )
            fewer[waiter] = dataclasses.replace(fewer[waiter], wait=fewer[waiter].wait & ~bit)
            before = ordered_before(fewer)
            assert not all(i in before[j] for i, j in found)


@pytest.mark.parametrize("config", ["base16", "tiny"])
def test_compiled_programs_keep_the_rules(config: str, rng: np.random.Generator) -> None:
    for case in range(3):
        program = compile_graph(random_chain(rng), PRESETS[config], force_tiles=case)
        instructions = [each for _, each in program.decoded]
        assert isinstance(instructions.pop(), End)
        check_roles(instructions)
        ordered_before(instructions)


def test_too_few_semaphores_are_named(rng: np.random.Generator) -> None:
    config = dataclasses.replace(PRESETS["base16"], semaphores=8)
    with pytest.raises(UnsupportedModel, match=r"needs \d+ semaphores; configuration base16 has 8"):
        synchronize(random_steps(rng, 400), config)


def test_a_count_that_could_overflow_is_named() -> None:
    """Signals far ahead of their waits: LOAD may run on while MATRIX stands still."""
    config = dataclasses.replace(PRESETS["base16"], semaphore_bits=2)
    loads = [
        Step(Load(), (Access(Space.WEIGHT, n, n + 1, write=True),), 0, "", 0) for n in range(5)
    ]
    products = [
        Step(Matrix(), (Access(Space.WEIGHT, n, n + 1, write=False),), 0, "", 0) for n in range(5)
    ]
    with pytest.raises(UnsupportedModel, match=r"could count to 5; .* 2-bit .* \(up to 3\)"):
        synchronize(loads + products, config)
    interleaved = [step for pair in zip(loads, products, strict=True) for step in pair]
    with pytest.raises(UnsupportedModel, match="could count to"):
        synchronize(interleaved, config)  # dispatch holds only a few instructions back
    synchronize(interleaved, dataclasses.replace(config, semaphore_bits=3))
