"""The systolic array against NumPy matrix products, at the shortest tile period and with gaps."""

import dataclasses
import itertools
import re
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware.array import SystolicArray

TINY = PRESETS["tiny"]
CONFIGS = {
    "4x4": TINY,
    "2x8": dataclasses.replace(TINY, name="2x8", rows=2, columns=8, vector_lanes=8),
    "8x2": dataclasses.replace(TINY, name="8x2", rows=8, columns=2, vector_lanes=2),
    "2x2": dataclasses.replace(TINY, name="2x2", rows=2, columns=2, vector_lanes=2),
}
CONFIGS["4x4 slices"] = dataclasses.replace(TINY, element="slices")
for shape in ("4x4", "2x8"):
    for modes in ((8, 4), (8, 4, 2)):
        for element in ("multiplier", "slices"):
            name = f"{shape} {'/'.join(map(str, modes))} {element}"
            CONFIGS[name] = dataclasses.replace(CONFIGS[shape], weight_modes=modes, element=element)


@dataclass
class Tile:
    """A weight tile, the activation rows that meet it, and the cycles in which both enter.

    ``sideways``: what enters are the tile's columns. With ``split`` s the reduction is 2^s times as
    deep as the array has rows.
    """

    weights: np.ndarray  # [reduction, column]
    left: np.ndarray  # [row, reduction]
    weight_cycles: list[int]  # of the tile's rows, in `weight_order`
    weight_order: list[int]
    left_cycles: list[int]
    sideways: bool = False
    split: int = 0

    def top(self, row: int) -> np.ndarray:
        """What enters as a row of the tile: as many weights a byte as the split says."""
        if self.sideways:
            return self.weights[:, row]
        if not self.split:
            return self.weights[row]
        count, bits = 1 << self.split, 8 >> self.split
        packed = np.zeros(self.weights.shape[1], np.int64)
        for number in range(count):
            packed |= (self.weights[row * count + number] & ((1 << bits) - 1)) << bits * number
        return packed.astype(np.uint8).astype(np.int8)

    def slots(self, number: int, operands: int) -> list[int]:
        """A left row as the array takes it: a slot shares its operand with those of its byte."""
        count = 1 << self.split
        repeats = operands // count
        return [int(x) for x in self.left[number] for _ in range(repeats)]


def operands(
    rng: np.random.Generator, config: AcceleratorConfig, rows: int, split: int = 0
) -> tuple:
    """Weights and activations; extreme values are frequent."""
    depth = config.rows << split
    half = 1 << (8 >> split) - 1
    low, high = (-half, half - 1) if split else (-255, 255)
    if rng.random() < 0.3:
        weights = rng.choice([low, high], (depth, config.columns))
        left = rng.choice([-255, 255], (rows, depth))
    else:
        weights = rng.integers(low, high + 1, (depth, config.columns))
        left = rng.integers(-255, 256, (rows, depth))
    return weights.astype(np.int64), left.astype(np.int64)


def run(config: AcceleratorConfig, tiles: list[Tile]) -> int:
    """Play the tiles, compare every output row and its cycle; returns the number of rows."""
    array = SystolicArray(config)
    weight_rows, left_rows, expected = {}, {}, {}
    for tile in tiles:
        for cycle, row in zip(tile.weight_cycles, tile.weight_order, strict=True):
            assert cycle not in weight_rows
            weight_rows[cycle] = (row, tile.top(row), tile.sideways)
        for number, cycle in enumerate(tile.left_cycles):
            assert cycle not in left_rows
            slots = tile.slots(number, config.operands_per_element)
            left_rows[cycle] = (number == 0, slots, tile.split)
            expected[cycle + array.latency] = tile.left[number] @ tile.weights
    length = max(expected) + 3
    rng = np.random.default_rng(length)
    seen = {}

    async def bench(ctx):
        for cycle in range(length):
            if ctx.get(array.output_valid):
                seen[cycle] = np.array([ctx.get(array.sums[c]) for c in range(config.columns)])
            left = left_rows.get(cycle)
            top = weight_rows.get(cycle)
            # What is not valid is noise: it must not matter.
            noise = rng.integers(-100, 100, config.rows + config.columns).tolist()
            ctx.set(array.left_valid, left is not None)
            ctx.set(array.left_swap, bool(left and left[0]))
            wide = config.rows * config.operands_per_element
            ctx.set(array.left, left[1] if left else np.resize(noise, wide).tolist())
            if len(config.weight_modes) > 1:
                split = left[2] if left and left[0] else noise[3] % len(config.weight_modes)
                ctx.set(array.left_split, split)
            ctx.set(array.top_valid, top is not None)
            ctx.set(array.top_tag, top[0] if top else noise[0] % config.rows)
            ctx.set(array.top_all, 0 if top else noise[2] & 1)
            if config.rows == config.columns:
                ctx.set(array.top_sideways, top[2] if top else noise[1] & 1)
            ctx.set(array.top, top[1].tolist() if top else noise[config.rows :])
            await ctx.tick()

    simulator = Simulator(array)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert sorted(seen) == sorted(expected)
    for cycle, row in expected.items():
        np.testing.assert_array_equal(seen[cycle], row)
    return len(seen)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows_of", ["1", "2", "R-1", "R", "R+1"])
def test_a_tile_starts_every_max_of_tile_rows_and_activation_rows(
    name: str, rows_of: str, rng: np.random.Generator
) -> None:
    config = CONFIGS[name]
    side = config.rows
    rows = {"1": 1, "2": 2, "R-1": side - 1, "R": side, "R+1": side + 1}[rows_of]
    period = max(side, rows)
    tiles = []
    for number in range(5):
        # Its weights enter from the cycle of the previous tile's swap on.
        loading = number * period
        start = loading + period
        split = int(rng.integers(len(config.weight_modes)))
        weights, left = operands(rng, config, rows, split)
        tiles.append(
            Tile(
                weights,
                left,
                list(range(loading, loading + side)),
                list(range(side)),
                list(range(start, start + rows)),
                split=split,
            )
        )
    starts = [tile.left_cycles[0] for tile in tiles]
    assert {later - sooner for sooner, later in itertools.pairwise(starts)} == {period}
    assert run(config, tiles) == 5 * rows


@pytest.mark.parametrize("name", CONFIGS)
def test_gaps_and_any_order_of_tile_rows(name: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    side = config.rows
    tiles = []
    earliest_load, earliest_left = 0, 0
    for _ in range(12):
        rows = int(rng.choice([1, 2, side - 1, side, side + 1, 2 * side]))
        rows = max(rows, 1)
        load_span, left_span = side + int(rng.integers(0, 4)), rows + int(rng.integers(0, 4))
        weight_cycles = earliest_load + rng.permutation(load_span)[:side]
        start = max(int(weight_cycles.max()) + 1, earliest_left)
        left_cycles = np.sort(start + rng.permutation(left_span)[:rows])
        split = int(rng.integers(len(config.weight_modes)))
        weights, left = operands(rng, config, rows, split)
        order = rng.permutation(side).tolist()
        sideways = split == 0 and side == config.columns and bool(rng.integers(2))
        enter = np.sort(weight_cycles).tolist()
        tiles.append(Tile(weights, left, enter, order, left_cycles.tolist(), sideways, split))
        earliest_load, earliest_left = int(left_cycles[0]), int(left_cycles[-1]) + 1
    run(config, tiles)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("4x4")])
def test_every_weight_byte_in_every_mode(name: str, rng: np.random.Generator) -> None:
    """All bytes, each with extreme and with random operands."""
    config = CONFIGS[name]
    tiles: list[Tile] = []
    side = config.rows
    start = 0
    for split in range(len(config.weight_modes)):
        count, bits = 1 << split, 8 >> split
        every = np.arange(256).reshape(-1, side, side)
        parts = [(every >> bits * number) & ((1 << bits) - 1) for number in range(count)]
        signed = [part - ((part >> bits - 1) << bits) for part in parts]
        for weights in np.stack(signed, axis=2).reshape(len(every), side * count, side):
            left = rng.integers(-255, 256, (side, side * count))
            left[0], left[1, ::2] = 255, -255
            loading = list(range(start, start + side))
            start += side
            rows = list(range(start, start + side))
            tiles.append(Tile(weights, left, loading, list(range(side)), rows, split=split))
    assert run(config, tiles) == side * len(tiles)


def test_sums_of_extreme_operands_do_not_overflow_a_product_register() -> None:
    config = TINY
    weights = np.full((4, 4), -255, dtype=np.int64)
    left = np.array([[-255] * 4, [255] * 4], dtype=np.int64)
    tile = Tile(weights, left, [0, 1, 2, 3], [0, 1, 2, 3], [4, 5])
    assert run(config, [tile]) == 2


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("gaps", [False, True])
def test_sums_stay_and_leave_last_row_first(
    name: str, gaps: bool, rng: np.random.Generator
) -> None:
    """Output tiles of 1, 2, R-1, R, R+1 and more steps, each right behind the one before."""
    config = CONFIGS[name]
    side, columns = config.rows, config.columns
    array = SystolicArray(config)
    events: list[dict] = []  # what enters, by cycle; a top row one cycle before its left row
    expected = {}
    for steps in (1, 2, max(1, side - 1), side, side + 1, 25):
        left = rng.integers(-255, 256, (steps, side))
        top = rng.integers(-255, 256, (steps, columns))
        events.append({"keep": 0})
        for number in range(steps):
            events[-1]["top"] = top[number]
            while gaps and rng.random() < 0.4:
                events.append({"keep": side})
            events.append({"keep": side, "left": left[number]})
        sums = left.T @ top
        for row in reversed(range(side)):
            expected[len(events) + array.latency] = sums[row]
            events.append({"keep": row + 1, "leaves": True})
    seen = {}

    async def bench(ctx):
        for cycle in range(max(expected) + 3):
            if ctx.get(array.output_valid):
                seen[cycle] = np.array([ctx.get(array.sums[c]) for c in range(columns)])
            event = events[cycle] if cycle < len(events) else {"keep": 0}
            noise = rng.integers(-100, 100, columns)
            ctx.set(array.left_valid, "leaves" in event)
            ctx.set(array.left_swap, "left" in event)
            ctx.set(array.left_keep, event["keep"])
            operand = event.get("left", np.zeros(side, int))
            ctx.set(array.left, operand.repeat(config.operands_per_element).tolist())
            ctx.set(array.top_valid, "top" in event)
            ctx.set(array.top_all, 1)
            ctx.set(array.top_tag, int(rng.integers(side)))
            ctx.set(array.top, event.get("top", noise).tolist())
            await ctx.tick()

    simulator = Simulator(array)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert sorted(seen) == sorted(expected)
    for cycle, row in expected.items():
        np.testing.assert_array_equal(seen[cycle], row)


@pytest.mark.parametrize(
    "config",
    [TINY, PRESETS["base16"], CONFIGS["4x4 8/4/2 multiplier"], CONFIGS["4x4 8/4/2 slices"]],
    ids=lambda config: f"{config.name}-{config.element}-{len(config.weight_modes)}",
)
def test_no_datapath_register_has_a_reset(config: AcceleratorConfig) -> None:
    """Only the bits that say whether something is valid are reset, in the generated Verilog too."""
    text = verilog.convert(
        SystolicArray(config), name="top", emit_src=False, strip_internal_attrs=True
    )
    following = re.findall(r"if \(rst\) begin\s+(\S+) +=", text)
    assert len(following) == text.count("(rst)")
    reset = set()
    for name in following:
        reset |= set(re.findall(rf"(\S+) <= {re.escape(name)} ;", text))
    assert reset == {"valid", "swap"}
    registers = set(re.findall(r"^  reg (?:\[\d+:0\] )?(\S+)", text, flags=re.MULTILINE))
    assert len(registers - reset) > 4 * config.rows * config.columns
