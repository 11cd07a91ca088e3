"""The MATRIX engine between behavioural memories, against a plain NumPy loop nest."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.sim import Simulator

from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware.accumulator_memory import UPDATE_LATENCY
from weft_hw.gateware.interfaces import READ_LATENCY
from weft_hw.gateware.matrix import MatrixEngine
from weft_hw.instructions import Accumulate, Bounds, Dataflow, LoadSide, Matrix
from weft_hw.registers import FaultCause

TINY = PRESETS["tiny"]
CONFIGS = {
    "4x4": TINY,
    "2x8": dataclasses.replace(TINY, name="2x8", rows=2, columns=8, vector_lanes=8),
    "8x2": dataclasses.replace(TINY, name="8x2", rows=8, columns=2, vector_lanes=2),
}


def trips(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*[range(count) for count in counts])


def affine(base: int, index: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return base + sum(i * s for i, s in zip(index, strides))


def exists(matrix: Matrix, index: tuple[int, ...]) -> bool:
    y = affine(matrix.y_origin, index, matrix.y_steps)
    x = affine(matrix.x_origin, index, matrix.x_steps)
    inside = 0 <= y < matrix.y_extent and 0 <= x < matrix.x_extent
    return matrix.bounds == Bounds.NONE or inside


@dataclass
class Memories:
    """Content of the three memories that MATRIX works on."""

    activations: np.ndarray
    weights: np.ndarray
    accumulators: np.ndarray

    @classmethod
    def random(cls, config: AcceleratorConfig, rng: np.random.Generator) -> "Memories":
        shape = (config.accumulator_total_rows, config.columns)
        return cls(
            rng.integers(-128, 128, config.activation_bytes),
            rng.integers(-128, 128, config.weight_bytes),
            rng.integers(-(1 << 31), 1 << 31, shape),
        )

    def copy(self) -> "Memories":
        return Memories(self.activations, self.weights, self.accumulators.copy())


def execute(config: AcceleratorConfig, memories: Memories, matrix: Matrix) -> int:
    """What docs/machine.md says, a row at a time; returns the number of rows."""
    count = 0
    for index in trips(matrix.counts):
        top = affine(matrix.top_address, index[:4], matrix.top_strides[:4])
        tile = np.array(
            [
                memories.weights[top + r * matrix.tile_stride :][: config.columns]
                for r in range(config.rows)
            ]
        )
        left = np.zeros(config.rows, dtype=np.int64)
        if exists(matrix, index):
            address = affine(matrix.left_address, index, matrix.left_strides)
            assert 0 <= address <= len(memories.activations) - config.rows
            left = memories.activations[address:][: config.rows] - matrix.left_zero_point
        row = affine(matrix.accumulator_address, index, matrix.accumulator_strides)
        overwrite = matrix.accumulate == Accumulate.OVERWRITE_FIRST and not any(index[1:4])
        old = 0 if overwrite else memories.accumulators[row]
        memories.accumulators[row] = (old + left @ tile).astype(np.int32)
        count += 1
    return count


@dataclass
class Record:
    """What happened, by cycle."""

    accepted: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    retired: list[int] = field(default_factory=list)
    faults: list[tuple] = field(default_factory=list)
    paused: int = 0


class Bench:
    """Feeds instructions, answers reads with the right latency, applies updates when visible."""

    def __init__(self, config: AcceleratorConfig, memories: Memories, *, seed: int = 0) -> None:
        self.config, self.memories = config, memories
        self.rng = np.random.default_rng(seed)
        self.left_stall = self.top_stall = self.instruction_stall = self.pause = 0.0
        self.stop_at = None

    def run(self, program: list[Matrix], *, limit: int = 20_000, after: int = 12) -> Record:
        """Until all have retired or one has faulted, and ``after`` cycles more."""
        engine, record = MatrixEngine(self.config), Record()
        content = {"left": self.memories.activations, "top": self.memories.weights}
        ports = {"left": engine.left, "top": engine.top}
        stalls = {"left": self.left_stall, "top": self.top_stall}
        data: dict[str, dict[int, int]] = {"left": {}, "top": {}}
        asked: dict[str, int | None] = {"left": None, "top": None}
        visible: dict[int, tuple] = {}
        stream = engine.engine.instruction

        async def bench(ctx):
            sent, remaining, offered = 0, None, False
            for cycle in range(limit):
                if cycle in visible:
                    row, add, lanes = visible.pop(cycle)
                    old = self.memories.accumulators[row] if add else 0
                    self.memories.accumulators[row] = (old + lanes).astype(np.int32)

                offered = offered or self.rng.random() >= self.instruction_stall
                ctx.set(stream.valid, sent < len(program) and offered)
                if sent < len(program):
                    encoded = int.from_bytes(program[sent].encode(), "little")
                    ctx.set(stream.payload.fields.as_value(), encoded)
                    ctx.set(stream.payload.offset, Matrix.size * sent)
                ctx.set(engine.engine.stop, self.stop_at is not None and cycle >= self.stop_at)
                paused = self.rng.random() < self.pause
                record.paused += paused
                ctx.set(engine.update.pause, paused)
                for name, port in ports.items():
                    ctx.set(port.ready, self.rng.random() >= stalls[name])
                    ctx.set(port.data_valid, cycle in data[name])
                    noise = int.from_bytes(self.rng.bytes(self.config.line_bytes))
                    ctx.set(port.data, data[name].pop(cycle, noise))

                for name, port in ports.items():
                    address = ctx.get(port.address)
                    if asked[name] is not None:
                        assert ctx.get(port.valid) and address == asked[name], "request withdrawn"
                    asked[name] = None
                    if ctx.get(port.valid) and ctx.get(port.ready):
                        line = np.resize(content[name][address:], self.config.line_bytes)
                        value = int.from_bytes(line.astype(np.int8).tobytes(), "little")
                        data[name][cycle + READ_LATENCY] = value
                    elif ctx.get(port.valid):
                        asked[name] = address
                if ctx.get(stream.valid) and ctx.get(stream.ready):
                    record.accepted.append(cycle)
                    sent, offered = sent + 1, False
                if ctx.get(engine.update.valid):
                    record.updates.append(cycle)
                    raw = ctx.get(engine.update.data).to_bytes(4 * self.config.columns, "little")
                    lanes = np.frombuffer(raw, "<i4").astype(np.int64)
                    row, add = ctx.get(engine.update.address), ctx.get(engine.update.add)
                    visible[cycle + UPDATE_LATENCY] = (row, add, lanes)
                if ctx.get(engine.engine.retire):
                    record.retired.append(cycle)
                    assert ctx.get(engine.engine.busy)
                fault = engine.engine.fault
                if ctx.get(fault.valid):
                    assert not visible, "an earlier row is still under way"
                    record.faults.append(
                        (
                            ctx.get(fault.cause),
                            ctx.get(fault.instruction),
                            ctx.get(fault.address),
                        )
                    )
                if remaining is None:
                    complete = len(record.retired) == len(program) or record.faults
                    remaining = after if complete else None
                elif remaining == 0:
                    assert record.faults or not ctx.get(engine.engine.busy)
                    return
                else:
                    remaining -= 1
                await ctx.tick()

        simulator = Simulator(engine)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        return record


def random_matrix(config: AcceleratorConfig, rng: np.random.Generator, rows: int) -> Matrix:
    """Random loops with about ``rows`` activation rows a tile, all accesses in range."""
    while True:
        counts = [int(rng.choice([1, 1, 2, 3])) for _ in range(4)]
        split = int(rng.choice([d for d in range(1, rows + 1) if rows % d == 0]))
        row_counts = [split, rows // split, 1]
        rng.shuffle(row_counts)
        counts = (*counts, *map(int, row_counts))
        if np.prod(counts) > 100:
            continue

        def strides(limit: int, length: int = 7) -> tuple[int, ...]:
            return tuple(int(s) for s in rng.integers(-limit, limit + 1, length))

        bounded = rng.random() < 0.5
        matrix = Matrix(
            accumulate=rng.choice([Accumulate.OVERWRITE_FIRST, Accumulate.ALWAYS_ADD]),
            bounds=Bounds.LEFT if bounded else Bounds.NONE,
            left_zero_point=int(rng.choice([-128, -3, 0, 5, 127])),
            counts=counts,
            left_strides=strides(200),
            top_strides=strides(60),
            tile_stride=int(rng.integers(-40, 41)),
            accumulator_strides=strides(8),
            y_origin=int(rng.integers(-3, 2)),
            y_extent=int(rng.integers(1, 6)),
            y_steps=strides(2),
            x_origin=int(rng.integers(-3, 2)),
            x_extent=int(rng.integers(1, 6)),
            x_steps=strides(1),
        )
        left = [
            affine(0, index, matrix.left_strides)
            for index in trips(counts)
            if exists(matrix, index)
        ]
        top = [
            affine(0, index, matrix.top_strides[:4]) + r * matrix.tile_stride
            for index in trips(counts[:4])
            for r in (0, config.rows - 1)
        ]
        accumulator = [affine(0, index, matrix.accumulator_strides) for index in trips(counts)]
        bases = {}
        for name, offsets, size in (
            ("left_address", left or [0], config.activation_bytes - config.rows),
            ("top_address", top, config.weight_bytes - config.columns),
            ("accumulator_address", accumulator, config.accumulator_total_rows - 1),
        ):
            slack = size - (max(offsets) - min(offsets))
            if slack < 0:
                break
            # Both ends of the memory are likely.
            bases[name] = -min(offsets) + int(rng.choice([0, slack, rng.integers(0, slack + 1)]))
        else:
            return dataclasses.replace(matrix, **bases)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("rows_of", ["1", "R-1", "R", "R+1", "mixed"])
def test_random_programs(name: str, stall: float, rows_of: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    side = config.rows
    choices = {"1": [1], "R-1": [side - 1], "R": [side], "R+1": [side + 1]}
    choices["mixed"] = [1, 2, side - 1, side, side + 1, 3 * side]
    program = [random_matrix(config, rng, int(rng.choice(choices[rows_of]))) for _ in range(3)]
    memories = Memories.random(config, rng)
    expected = memories.copy()
    rows = [execute(config, expected, matrix) for matrix in program]

    bench = Bench(config, memories, seed=int(rng.integers(1 << 32)))
    bench.left_stall, bench.top_stall = stall, stall * float(rng.choice([0, 1, 2]))
    bench.instruction_stall = float(rng.choice([0, 0.9]))
    bench.pause = stall / 4
    record = bench.run(program)
    assert not record.faults
    assert len(record.updates) == sum(rows)
    # In order, each when its last row has become readable.
    ends = [record.updates[end - 1] for end in itertools.accumulate(rows)]
    assert record.retired == [end + UPDATE_LATENCY for end in ends]
    np.testing.assert_array_equal(memories.accumulators, expected.accumulators)


def dense(config: AcceleratorConfig, tiles: int, rows: int) -> Matrix:
    """``tiles`` reduction tiles of ``rows`` activation rows each."""
    side = config.rows
    return Matrix(
        counts=(1, 1, 1, tiles, 1, 1, rows),
        left_strides=(0, 0, 0, side, 0, 0, tiles * side),
        top_strides=(0, 0, 0, config.tile_bytes, 0, 0, 0),
        tile_stride=config.columns,
        accumulator_strides=(0, 0, 0, 0, 0, 0, 1),
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows_of", ["1", "2", "R-1", "R", "R+1", "3R"])
def test_tile_period_without_stalls_within_and_across_instructions(
    name: str, rows_of: str, rng: np.random.Generator
) -> None:
    config = CONFIGS[name]
    side = config.rows
    rows = {"1": 1, "2": 2, "R-1": side - 1, "R": side, "R+1": side + 1, "3R": 3 * side}[rows_of]
    tiles = 4
    program = [dense(config, tiles, rows) for _ in range(3)]
    memories = Memories.random(config, rng)
    expected = memories.copy()
    for matrix in program:
        execute(config, expected, matrix)
    record = Bench(config, memories).run(program)
    np.testing.assert_array_equal(memories.accumulators, expected.accumulators)
    firsts = record.updates[::rows]
    periods = [later - sooner for sooner, later in itertools.pairwise(firsts)]
    assert periods == [max(side, rows)] * (tiles * len(program) - 1)
    # Descriptor, tile, left memory and zero point, array: then the first row is there.
    start = 3 + side + READ_LATENCY + 1 + (config.rows + config.columns + 1)
    assert firsts[0] - record.accepted[0] == start


def test_a_wish_to_pause_is_granted_by_one_gap() -> None:
    config = TINY
    memories = Memories.random(config, np.random.default_rng(1))
    bench = Bench(config, memories)
    bench.pause = 1.0
    record = bench.run([dense(config, 1, 60)])
    gaps = [later - sooner - 1 for sooner, later in itertools.pairwise(record.updates)]
    assert set(gaps) == {0, 1}
    assert 2 <= sum(gaps) <= 5


def bad(config: AcceleratorConfig, what: str) -> tuple[Matrix, FaultCause, int]:
    """An instruction that faults, the cause and the address."""
    matrix = dense(config, 2, 3)
    counts = list(matrix.counts)
    last_left = config.activation_bytes - config.rows
    last_top = config.weight_bytes - config.columns
    local = FaultCause.LOCAL_ADDRESS
    match what:
        case "zero count":
            counts[5] = 0
            return dataclasses.replace(matrix, counts=tuple(counts)), FaultCause.ZERO_COUNT, 0
        case "dataflow":
            new = dataclasses.replace(matrix, dataflow=Dataflow.OUTPUT_STATIONARY)
            return new, FaultCause.UNSUPPORTED_FIELD, 0
        case "load side":
            new = dataclasses.replace(matrix, load_side=LoadSide.LEFT)
            return new, FaultCause.UNSUPPORTED_FIELD, 0
        case "bounds":
            new = dataclasses.replace(matrix, bounds=Bounds.ACCUMULATOR)
            return new, FaultCause.UNSUPPORTED_FIELD, 0
        case "left end":  # the last row of the second tile is one byte too far
            reach = affine(0, (0, 0, 0, 1, 0, 0, 2), matrix.left_strides)
            new = dataclasses.replace(matrix, left_address=last_left + 1 - reach)
            return new, local, last_left + 1
        case "left negative":
            return dataclasses.replace(matrix, left_address=-1), local, -1
        case "top end":
            strides = tuple(8 * s for s in matrix.top_strides)
            reach = strides[3] + (config.rows - 1) * config.columns
            new = dataclasses.replace(matrix, top_strides=strides, top_address=last_top + 1 - reach)
            return new, local, last_top + 1
        case "top negative":
            return dataclasses.replace(matrix, top_address=-1), local, -1
        case "accumulator end":
            last = config.accumulator_total_rows
            return dataclasses.replace(matrix, accumulator_address=last - 2), local, last
        case "accumulator negative":
            return dataclasses.replace(matrix, accumulator_address=-1), local, -1
        case "far":  # in range, then a stride beyond the number range of an address
            strides = (0, 0, 0, 0, 0, 0, (1 << 19) - 1)
            new = dataclasses.replace(matrix, left_address=1000, left_strides=strides)
            return new, local, 1000 + (1 << 19) - 1
    raise AssertionError(what)


def rows_before_fault(config: AcceleratorConfig, matrix: Matrix) -> int:
    """Rows of a faulting instruction that serial execution completes."""
    if 0 in matrix.counts or matrix.unsupported():
        return 0
    for number, index in enumerate(trips(matrix.counts)):
        top = affine(matrix.top_address, index[:4], matrix.top_strides[:4])
        left = affine(matrix.left_address, index, matrix.left_strides)
        row = affine(matrix.accumulator_address, index, matrix.accumulator_strides)
        tops = [top + r * matrix.tile_stride for r in range(config.rows)]
        if (
            min(tops) < 0
            or max(tops) > config.weight_bytes - config.columns
            or not 0 <= left <= config.activation_bytes - config.rows
            or not 0 <= row < config.accumulator_total_rows
        ):
            return number
    raise AssertionError("no fault")


@pytest.mark.parametrize(
    "what",
    [
        "zero count",
        "dataflow",
        "load side",
        "bounds",
        "left end",
        "left negative",
        "top end",
        "top negative",
        "accumulator end",
        "accumulator negative",
        "far",
    ],
)
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_a_fault_comes_after_everything_before_it_and_is_the_last_act(
    what: str, stall: float, rng: np.random.Generator
) -> None:
    config = TINY
    matrix, cause, address = bad(config, what)
    good = dense(config, 3, 5)
    bench = Bench(config, Memories.random(config, rng), seed=5)
    bench.left_stall = bench.top_stall = stall
    record = bench.run([good, matrix, good], after=150)
    assert record.faults == [(cause, Matrix.size, address % (1 << 40))]
    assert len(record.retired) == 1
    assert len(record.updates) == 15 + rows_before_fault(config, matrix)


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_stop_ends_requests_and_retirement(stall: float, rng: np.random.Generator) -> None:
    config = TINY
    bench = Bench(config, Memories.random(config, rng), seed=6)
    bench.left_stall = stall
    bench.stop_at = 40
    record = bench.run([dense(config, 4, 8)] * 2, limit=400)
    assert record.retired == [] and record.faults == []
    assert 0 < len(record.updates) < 64
    # At most one request was waiting; what was under way comes out.
    assert record.updates[-1] < 40 + 1 / (1 - stall) * 10 + READ_LATENCY + 2 + 9
