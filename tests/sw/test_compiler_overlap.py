"""Reordering keeps the order of every conflict and moves what it can."""

import dataclasses
import itertools

import numpy as np
import pytest

from weft.compiler.overlap import overlap_layers
from weft.compiler.stream import Access, Space, Step
from weft_hw.instructions import Load, Matrix, Queue, Store, Vector

KINDS = (Load, Matrix, Vector, Vector, Store)


def random_steps(rng: np.random.Generator) -> list[Step]:
    """Layers of tiles: some of VECTOR alone, some of anything; accesses of random ranges."""
    steps = []
    for layer in range(8):
        kinds = (Vector,) if rng.random() < 0.5 else KINDS
        for tile in range(int(rng.integers(1, 5))):
            for _ in range(int(rng.integers(1, 4))):
                accesses = []
                for _ in range(int(rng.integers(1, 4))):
                    start = int(rng.integers(0, 60))
                    space = Space.ACTIVATION if rng.random() < 0.7 else Space.ACCUMULATOR
                    end = start + int(rng.integers(1, 8))
                    accesses.append(Access(space, start, end, bool(rng.integers(2))))
                kind = kinds[rng.integers(len(kinds))]
                number = len(steps)  # makes every step unlike the others
                step = Step(kind(), tuple(accesses), layer, f"step {number}", tile)
                steps.append(step)
    return steps


def conflict(one: Step, other: Step) -> bool:
    return any(
        a.space == b.space and a.start < b.end and b.start < a.end and (a.write or b.write)
        for a, b in itertools.product(one.accesses, other.accesses)
    )


@pytest.mark.parametrize("case", range(40))
def test_conflicts_keep_their_order(case: int, rng: np.random.Generator) -> None:
    steps = random_steps(rng)
    moved = overlap_layers(steps)
    assert sorted(step.purpose for step in moved) == sorted(step.purpose for step in steps)
    position = {step.purpose: index for index, step in enumerate(moved)}
    for one, other in itertools.combinations(steps, 2):
        if conflict(one, other):
            assert position[one.purpose] < position[other.purpose]
    for layer in range(8):  # within a tile nothing changes
        for tile in range(5):
            own = [step for step in moved if (step.layer, step.tile) == (layer, tile)]
            assert own == [step for step in steps if (step.layer, step.tile) == (layer, tile)]


def test_an_add_runs_beside_the_convolution_before_it() -> None:
    """Tile n of the second layer reads what tile n of the first has written."""

    def step(kind, layer: int, tile: int, *accesses: Access) -> Step:
        return Step(kind(), accesses, layer, "", tile)

    def rows(tile: int, write: bool) -> Access:
        return Access(Space.ACTIVATION, 10 * tile, 10 * tile + 10, write)

    convolution = [step(Matrix, 0, n, rows(n, write=True)) for n in range(3)]
    addition = [step(Vector, 1, n, rows(n, write=False)) for n in range(3)]
    order = [(each.layer, each.tile) for each in overlap_layers(convolution + addition)]
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_a_tile_takes_the_loads_of_its_constants_along() -> None:
    """But not those of activations, whose order to other transfers matters for the time."""

    def step(kind, layer: int, tile: int, space: Space, at: int, write: bool) -> Step:
        return Step(kind(), (Access(space, at, at + 1, write),), layer, "", tile)

    for space, moves in ((Space.WEIGHT, True), (Space.PARAMETER, True), (Space.ACTIVATION, False)):
        convolution = [step(Matrix, 0, n, Space.ACTIVATION, n, write=True) for n in range(2)]
        depthwise = [
            step(Load, 1, 0, space, 90, write=True),
            step(Vector, 1, 0, Space.ACTIVATION, 0, write=False),
            step(Vector, 1, 1, Space.ACTIVATION, 1, write=False),
        ]
        order = [(each.layer, each.tile) for each in overlap_layers(convolution + depthwise)]
        assert order == (
            [(0, 0), (1, 0), (1, 0), (0, 1), (1, 1)]
            if moves
            else [(0, 0), (0, 1), (1, 1), (1, 0), (1, 0)]
        )


def test_layers_of_other_queues_stay() -> None:
    steps = [
        Step(kind(), (Access(Space.DRAM, n, n + 1, write=False),), n, "", 0)
        for n, kind in enumerate((Matrix, Load, Store, Matrix))
    ]
    assert overlap_layers(steps) == steps
    mixed = [dataclasses.replace(step, layer=3) for step in steps]
    assert [step.instruction.queue for step in overlap_layers(mixed)] == [
        Queue.MATRIX,
        Queue.LOAD,
        Queue.STORE,
        Queue.MATRIX,
    ]
