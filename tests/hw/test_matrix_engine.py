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
from weft_hw.instructions import Accumulate, Bounds, Dataflow, LoadSide, Matrix, WeightBits
from weft_hw.registers import FaultCause

TINY = PRESETS["tiny"]
CONFIGS = {
    "4x4": TINY,
    "2x8": dataclasses.replace(TINY, name="2x8", rows=2, columns=8, vector_lanes=8),
    "8x2": dataclasses.replace(TINY, name="8x2", rows=8, columns=2, vector_lanes=2),
    "4x4 8/4/2": dataclasses.replace(TINY, weight_modes=(8, 4, 2)),
    "2x8 8/4 slices": dataclasses.replace(
        TINY, rows=2, columns=8, vector_lanes=8, weight_modes=(8, 4), element="slices"
    ),
}


def trips(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*[range(count) for count in counts])


def affine(base: int, index: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return base + sum(i * s for i, s in zip(index, strides))


def inside(matrix: Matrix, index: tuple[int, ...]) -> bool:
    y = affine(matrix.y_origin, index, matrix.y_steps)
    x = affine(matrix.x_origin, index, matrix.x_steps)
    return 0 <= y < matrix.y_extent and 0 <= x < matrix.x_extent


def exists(matrix: Matrix, index: tuple[int, ...], stream: Bounds) -> bool:
    return matrix.bounds != stream or inside(matrix, index)


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


@dataclass
class Expected:
    """Rows of sums that leave the array, and at which of them the first fault comes, if any."""

    rows: int = 0
    updates: int = 0
    fault: int | None = None


def execute(config: AcceleratorConfig, memories: Memories, matrix: Matrix) -> Expected:
    """What docs/machine.md says, a row at a time, up to the first address that is wrong."""
    expected = Expected()

    def read(memory: np.ndarray, address: int, length: int) -> np.ndarray:
        if not 0 <= address <= len(memory) - length:
            raise IndexError(address)
        return memory[address : address + length]

    def left_row(index: tuple[int, ...]) -> np.ndarray:
        depth = config.rows * (1, 2, 4)[matrix.weight_bits]
        if not exists(matrix, index, Bounds.LEFT):
            return np.zeros(depth, dtype=np.int64)
        address = affine(matrix.left_address, index, matrix.left_strides)
        return read(memories.activations, address, depth) - matrix.left_zero_point

    def weights_of(bytes_of_row: np.ndarray) -> list[list[int]]:
        """The rows of the reduction that a tile's row of bytes stands for."""
        bits = (8, 4, 2)[matrix.weight_bits]
        rows = []
        for low in range(0, 8, bits):
            parts = [(int(byte) >> low) % (1 << bits) for byte in bytes_of_row]
            rows.append([part - (part >> bits - 1 << bits) for part in parts])
        return rows

    def update(row: int, sums: np.ndarray, adds: bool) -> None:
        if not 0 <= row < config.accumulator_total_rows:
            raise IndexError(row)
        old = memories.accumulators[row] if adds else 0
        memories.accumulators[row] = (old + sums).astype(np.int32)
        expected.updates += 1

    def weight_stationary() -> None:
        for outer in trips(matrix.counts[:4]):
            top = affine(matrix.top_address, outer, matrix.top_strides[:4])
            addresses = [top + r * matrix.tile_stride for r in range(config.rows)]
            stored = [read(memories.weights, a, config.columns) for a in addresses]
            tile = np.array([weights for row in stored for weights in weights_of(row)])
            tile = tile - matrix.top_zero_point
            if matrix.load_side == LoadSide.LEFT:
                tile = tile.T
            for inner in trips(matrix.counts[4:]):
                index = outer + inner
                left = left_row(index)
                if exists(matrix, index, Bounds.ACCUMULATOR):
                    row = affine(matrix.accumulator_address, index, matrix.accumulator_strides)
                    adds = matrix.accumulate == Accumulate.ALWAYS_ADD or any(index[1:4])
                    update(row, left @ tile, adds)
                expected.rows += 1

    def output_stationary() -> None:
        for outer in trips(matrix.counts[:4]):
            sums = np.zeros((config.rows, config.columns), dtype=np.int64)
            for inner in trips(matrix.counts[4:]):
                index = outer + inner
                if not exists(matrix, index, Bounds.TOP):
                    left_row(index)
                    continue
                top = affine(matrix.top_address, index, matrix.top_strides)
                right = read(memories.weights, top, config.columns) - matrix.top_zero_point
                sums += np.outer(left_row(index), right)
            base = affine(matrix.accumulator_address, outer, matrix.accumulator_strides[:4])
            rows = [base + r * matrix.tile_stride for r in range(config.rows)]
            for row in rows[0], rows[-1]:
                if not 0 <= row < config.accumulator_total_rows:
                    raise IndexError(row)
            for row, values in reversed(list(zip(rows, sums))):
                update(row, values, matrix.accumulate == Accumulate.ALWAYS_ADD)
                expected.rows += 1

    try:
        if matrix.dataflow == Dataflow.OUTPUT_STATIONARY:
            output_stationary()
        else:
            weight_stationary()
    except IndexError as error:
        expected.fault = error.args[0]
    return expected


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
                    noise = int.from_bytes(self.rng.bytes(len(port.data) // 8))
                    ctx.set(port.data, data[name].pop(cycle, noise))

                for name, port in ports.items():
                    address = ctx.get(port.address)
                    if asked[name] is not None:
                        assert ctx.get(port.valid) and address == asked[name], "request withdrawn"
                    asked[name] = None
                    if ctx.get(port.valid) and ctx.get(port.ready):
                        line = np.resize(content[name][address:], len(port.data) // 8)
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


MODES = {
    "top": {},
    "sideways": {"load_side": LoadSide.LEFT},
    "scatter": {"bounds": Bounds.ACCUMULATOR},
    "four bits": {"weight_bits": WeightBits.FOUR, "top_zero_point": 0},
    "two bits": {"weight_bits": WeightBits.TWO, "top_zero_point": 0},
    "two bits, scatter": {
        "weight_bits": WeightBits.TWO,
        "top_zero_point": 0,
        "bounds": Bounds.ACCUMULATOR,
    },
    "output": {"dataflow": Dataflow.OUTPUT_STATIONARY},
}


def modes(config: AcceleratorConfig) -> list[str]:
    """The modes that an array of that shape has."""
    return [name for name, fields in MODES.items() if Matrix(**fields).unsupported(config) is None]


def random_matrix(
    config: AcceleratorConfig, rng: np.random.Generator, rows: int, mode: str
) -> Matrix:
    """Random loops with about ``rows`` left rows a tile, all accesses in range."""
    streams = mode == "output"
    while True:
        counts = [int(rng.choice([1, 1, 2, 3])) for _ in range(4)]
        split = int(rng.choice([d for d in range(1, rows + 1) if rows % d == 0]))
        row_counts = [split, rows // split, 1]
        rng.shuffle(row_counts)
        counts = (*counts, *map(int, row_counts))
        if np.prod(counts) > 80:
            continue

        def strides(limit: int, length: int = 7) -> tuple[int, ...]:
            return tuple(int(s) for s in rng.integers(-limit, limit + 1, length))

        bounds = rng.choice([Bounds.NONE, Bounds.LEFT, Bounds.TOP if streams else Bounds.LEFT])
        fields = {
            "accumulate": rng.choice([Accumulate.OVERWRITE_FIRST, Accumulate.ALWAYS_ADD]),
            "bounds": Bounds(int(bounds)),
            "left_zero_point": int(rng.choice([-128, -3, 0, 5, 127])),
            "top_zero_point": int(rng.choice([-128, -3, 0, 0, 127])),
            "counts": counts,
            "left_strides": strides(200),
            "top_strides": strides(60),
            "tile_stride": int(rng.integers(-2, 3) if streams else rng.integers(-40, 41)),
            "accumulator_strides": strides(8),
            "y_origin": int(rng.integers(-3, 2)),
            "y_extent": int(rng.integers(1, 6)),
            "y_steps": strides(2),
            "x_origin": int(rng.integers(-3, 2)),
            "x_extent": int(rng.integers(1, 6)),
            "x_steps": strides(1),
        }
        matrix = Matrix(**(fields | MODES[mode]))
        everything = list(trips(counts))
        depth = config.rows * matrix.weight_bits.weights
        left = [
            affine(0, index, matrix.left_strides)
            for index in everything
            if exists(matrix, index, Bounds.LEFT)
        ]
        ends = (0, (config.rows - 1) * matrix.tile_stride)
        top = [affine(0, index, matrix.top_strides[:4]) + e for index in everything for e in ends]
        accumulator = [
            affine(0, index, matrix.accumulator_strides)
            for index in everything
            if exists(matrix, index, Bounds.ACCUMULATOR)
        ]
        if streams:
            top = [
                affine(0, index, matrix.top_strides)
                for index in everything
                if exists(matrix, index, Bounds.TOP)
            ]
            accumulator = [
                affine(0, index[:4], matrix.accumulator_strides[:4]) + e
                for index in everything
                for e in ends
            ]
        bases = {}
        for name, offsets, size in (
            ("left_address", left or [0], config.activation_bytes - depth),
            ("top_address", top or [0], config.weight_bytes - config.columns),
            ("accumulator_address", accumulator or [0], config.accumulator_total_rows - 1),
        ):
            slack = size - (max(offsets) - min(offsets))
            if slack < 0:
                break
            # Both ends of the memory are likely.
            bases[name] = -min(offsets) + int(rng.choice([0, slack, rng.integers(0, slack + 1)]))
        else:
            return dataclasses.replace(matrix, **bases)


def compare(
    config: AcceleratorConfig, program: list[Matrix], stall: float, rng: np.random.Generator
) -> None:
    """Run it, stalled at random, and compare memory, number of updates and retirements."""
    memories = Memories.random(config, rng)
    expected = memories.copy()
    outcomes = [execute(config, expected, matrix) for matrix in program]
    assert all(outcome.fault is None for outcome in outcomes)

    bench = Bench(config, memories, seed=int(rng.integers(1 << 32)))
    bench.left_stall, bench.top_stall = stall, stall * float(rng.choice([0, 1, 2]))
    bench.instruction_stall = float(rng.choice([0, 0.9]))
    bench.pause = stall / 4
    record = bench.run(program)
    assert not record.faults
    assert len(record.updates) == sum(outcome.updates for outcome in outcomes)
    # In order, each when its last row has become readable.
    ends = itertools.accumulate(outcome.updates for outcome in outcomes)
    for matrix, end, retired in zip(program, ends, record.retired, strict=True):
        if matrix.bounds != Bounds.ACCUMULATOR:
            assert retired == record.updates[end - 1] + UPDATE_LATENCY
        assert end == 0 or retired >= record.updates[end - 1] + UPDATE_LATENCY
    np.testing.assert_array_equal(memories.accumulators, expected.accumulators)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("rows_of", ["1", "2", "R-1", "R", "R+1", "mixed"])
def test_random_programs(name: str, stall: float, rows_of: str, rng: np.random.Generator) -> None:
    """Modes in random order, back to back."""
    config = CONFIGS[name]
    side = config.rows
    choices = {"1": [1], "2": [2], "R-1": [side - 1], "R": [side], "R+1": [side + 1]}
    choices["mixed"] = [1, 2, side - 1, side, side + 1, 3 * side]
    usual = [*modes(config), "output", "top"]
    length = max(4, len(usual)) if len(config.weight_modes) > 1 else 4
    order = rng.permutation(usual)[:length]
    program = [
        random_matrix(config, rng, int(rng.choice(choices[rows_of])), str(mode)) for mode in order
    ]
    compare(config, program, stall, rng)


def dense(
    config: AcceleratorConfig, tiles: int, rows: int, weight_bits: WeightBits = WeightBits.EIGHT
) -> Matrix:
    """``tiles`` reduction tiles of ``rows`` activation rows each."""
    side = config.rows * weight_bits.weights
    return Matrix(
        weight_bits=weight_bits,
        counts=(1, 1, 1, tiles, 1, 1, rows),
        left_strides=(0, 0, 0, side, 0, 0, tiles * side),
        top_strides=(0, 0, 0, config.tile_bytes, 0, 0, 0),
        tile_stride=config.columns,
        accumulator_strides=(0, 0, 0, 0, 0, 0, 1),
    )


def outer_product(config: AcceleratorConfig, tiles: int, steps: int) -> Matrix:
    """``tiles`` output tiles, side by side, each the sum of ``steps`` outer products."""
    side, columns = config.rows, config.columns
    return Matrix(
        dataflow=Dataflow.OUTPUT_STATIONARY,
        counts=(1, 1, 1, tiles, 1, 1, steps),
        left_strides=(0, 0, 0, side, 0, 0, side),
        top_strides=(0, 0, 0, 0, 0, 0, columns),
        tile_stride=1,
        accumulator_strides=(0, 0, 0, side, 0, 0, 0),
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_output_tile_period_without_stalls(name: str, steps: int, rng: np.random.Generator) -> None:
    """``rows`` + 1 cycles beside the steps, also from one instruction to the next."""
    config = CONFIGS[name]
    tiles = 3
    program = [outer_product(config, tiles, steps) for _ in range(3)]
    memories = Memories.random(config, rng)
    expected = memories.copy()
    for matrix in program:
        execute(config, expected, matrix)
    record = Bench(config, memories).run(program)
    np.testing.assert_array_equal(memories.accumulators, expected.accumulators)
    firsts = record.updates[:: config.rows]
    periods = {later - sooner for sooner, later in itertools.pairwise(firsts)}
    assert periods == {steps + config.rows + 1}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows_of", ["1", "2", "R-1", "R", "R+1", "3R"])
def test_tile_period_without_stalls_within_and_across_instructions(
    name: str, rows_of: str, rng: np.random.Generator
) -> None:
    config = CONFIGS[name]
    side = config.rows
    rows = {"1": 1, "2": 2, "R-1": side - 1, "R": side, "R+1": side + 1, "3R": 3 * side}[rows_of]
    tiles = 4
    widths = list(WeightBits)[: len(config.weight_modes)]
    program = [dense(config, tiles, rows, widths[-number % len(widths)]) for number in range(3)]
    memories = Memories.random(config, rng)
    expected = memories.copy()
    for matrix in program:
        execute(config, expected, matrix)
    record = Bench(config, memories).run(program)
    np.testing.assert_array_equal(memories.accumulators, expected.accumulators)
    firsts = record.updates[::rows]
    periods = [later - sooner for sooner, later in itertools.pairwise(firsts)]
    period = max(side, rows)
    # A loop nest takes one cycle to prepare an instruction's first step, which rows that wait in a
    # queue may hide.
    across = periods[tiles - 1 :: tiles]
    del periods[tiles - 1 :: tiles]
    assert set(periods) == {period}
    assert set(across) <= {period, period + 1}
    # Descriptor, nest, tile (or the checks of the left row, if that is small), left memory and zero
    # point, array: then the first row is there.
    array = config.rows + config.columns + 1 + ("/" in name)  # several weight modes: one more
    start = max(7 + side, 8) + READ_LATENCY + 1 + array
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
    streams = outer_product(config, 2, 7)
    side, columns = config.rows, config.columns
    counts = list(matrix.counts)
    last_left = config.activation_bytes - config.rows
    last_top = config.weight_bytes - config.columns
    local = FaultCause.LOCAL_ADDRESS
    match what:
        case "zero count":
            counts[5] = 0
            return dataclasses.replace(matrix, counts=tuple(counts)), FaultCause.ZERO_COUNT, 0
        case "weight bits":
            return dataclasses.replace(matrix, weight_bits=1), FaultCause.UNSUPPORTED_FIELD, 0
        case "load side":
            new = dataclasses.replace(matrix, load_side=LoadSide.LEFT)
            return new, FaultCause.UNSUPPORTED_FIELD, 0
        case "bounds":
            new = dataclasses.replace(matrix, bounds=Bounds.TOP)
            return new, FaultCause.UNSUPPORTED_FIELD, 0
        case "output-stationary, bounds":
            new = dataclasses.replace(streams, bounds=Bounds.ACCUMULATOR)
            return new, FaultCause.UNSUPPORTED_FIELD, 0
        case "output-stationary, left":  # in the second tile
            new = dataclasses.replace(streams, left_address=last_left + 1 - side - 6 * side)
            return new, local, last_left + 1
        case "output-stationary, top":  # in the second step of the first tile
            return dataclasses.replace(streams, top_address=last_top), local, last_top + columns
        case "output-stationary, first accumulator":
            return dataclasses.replace(streams, accumulator_address=-side - 1), local, -side - 1
        case "output-stationary, last accumulator":  # of the second tile
            total = config.accumulator_total_rows
            base = total - 2 * side + 1
            return dataclasses.replace(streams, accumulator_address=base), local, total
        case "left end":  # the last row of the second tile is one byte too far
            reach = affine(0, (0, 0, 0, 1, 0, 0, 2), matrix.left_strides)
            new = dataclasses.replace(matrix, left_address=last_left + 1 - reach)
            return new, local, last_left + 1
        case "left end, two bits":  # the last byte of the first row
            new = dataclasses.replace(dense(config, 2, 3, WeightBits.TWO), left_address=last_left)
            return new, local, last_left
        case "two bits, zero point":
            new = dense(config, 2, 3, WeightBits.TWO)
            return dataclasses.replace(new, top_zero_point=1), FaultCause.UNSUPPORTED_FIELD, 0
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


@pytest.mark.parametrize(
    "what",
    [
        "zero count",
        "weight bits",
        "load side",
        "bounds",
        "output-stationary, bounds",
        "output-stationary, left",
        "output-stationary, top",
        "output-stationary, first accumulator",
        "output-stationary, last accumulator",
        "left end",
        "left end, two bits",
        "two bits, zero point",
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
    config = CONFIGS["2x8"] if what == "load side" else TINY
    if "two bits" in what:
        config = CONFIGS["4x4 8/4/2"]
    matrix, cause, address = bad(config, what)
    good = dense(config, 3, 5)
    bench = Bench(config, Memories.random(config, rng), seed=5)
    bench.left_stall = bench.top_stall = stall
    record = bench.run([good, matrix, good], after=150)
    assert record.faults == [(cause, Matrix.size, address % (1 << 40))]
    assert len(record.retired) == 1
    before = 0
    if cause == FaultCause.LOCAL_ADDRESS:
        outcome = execute(config, Memories.random(config, rng), matrix)
        assert outcome.fault == address
        before = outcome.updates
    assert len(record.updates) == 15 + before


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
