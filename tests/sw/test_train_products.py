"""Sums of convolutions and of their gradients as the machine computes them, against PyTorch."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from weft.compiler.stream import Space, reads, writes
from weft.compiler.synchronize import synchronize
from weft.train.machine import gather
from weft.train.machine.builder import Builder, ImageTile, WeightTile
from weft.train.machine.gather_plan import GatherPlan
from weft.train.machine.homes import ImageHome, WeightHome
from weft.train.machine.products import (
    convolution_sums,
    data_gradient_sums,
    weight_gradient_sums,
)
from weft.train.step import (
    Convolution,
    DataGradient,
    Exponent,
    Geometry,
    Image,
    Parameter,
    Quantizer,
    WeightGradient,
)
from weft_hw import PRESETS, AcceleratorConfig
from weft_hw.instructions import Element, End, Matrix, Memory, Store
from weft_sim.device import open_device

torch = pytest.importorskip("torch")

ROOMY = dataclasses.replace(
    PRESETS["tiny"],
    name="roomy",
    activation_bytes=4096,
    weight_bytes=2048,
    accumulator_rows=64,
)
LARGE = dataclasses.replace(
    PRESETS["tiny"],
    name="large",
    activation_bytes=1 << 16,
    weight_bytes=1 << 14,
    accumulator_rows=1024,
)
TINY = PRESETS["tiny"]
KINDS = ("forward", "data gradient", "weight gradient")
PAGE = 4096


@dataclass(frozen=True)
class Case:
    """Sizes of a convolution; pairs are (y, x)."""

    batch: int
    size: tuple[int, int]
    channels: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def result(self) -> tuple[int, int]:
        spans = ((n - 1) * d + 1 for n, d in zip(self.kernel, self.dilation))
        rows, columns = (
            (size + 2 * padding - span) // stride + 1
            for size, padding, span, stride in zip(self.size, self.padding, spans, self.stride)
        )
        return rows, columns

    @property
    def products(self) -> int:
        return int(np.prod([self.batch, *self.result, *self.kernel, *self.channels]))

    @classmethod
    def random(
        cls, rng: np.random.Generator, side: int, most: int = 400_000, longest: int = 13
    ) -> "Case":
        """Any small one; sometimes the kernel is the image, sometimes one pixel."""
        while True:
            size = tuple(int(n) for n in rng.integers(1, longest, 2))
            kernel = tuple(int(n) for n in rng.integers(1, 6, 2))
            style = rng.integers(6)
            case = cls(
                int(rng.choice([1, 2, 3, 5, 8, 17])),
                size,
                tuple(int(n) for n in rng.integers(1, 4 * side, 2)),
                {0: size, 1: (1, 1)}.get(int(style), kernel),
                tuple(int(n) for n in rng.choice([1, 1, 2, 3, 5], 2)),
                tuple(int(n) for n in rng.integers(0, 4, 2)),
                tuple(int(n) for n in rng.choice([1, 1, 1, 2, 3], 2)),
            )
            if style == 0:
                case = dataclasses.replace(case, padding=(0, 0), dilation=(1, 1))
            if min(case.result) >= 1 and case.products <= most:
                return case


class Bench:
    """Tensors of one case in a device's memory, and the programs that sum into it."""

    def __init__(self, config: AcceleratorConfig, case: Case, rng: np.random.Generator) -> None:
        self.config, self.case, self.side = config, case, config.rows
        low, high = (127, 128) if rng.integers(4) == 0 else (-127, 128)
        (height, width), (inputs, outputs) = case.size, case.channels
        exponent = Exponent()
        self.x = Image("x", (height, width, inputs), exponent)
        self.y = Image("y", (*case.result, outputs), exponent)
        self.dx = Image("dx", (height, width, inputs), exponent)
        self.w = Parameter("w", (*case.kernel, inputs, outputs), 0, "weights", (0, 1, 2))
        self.geometry = Geometry(case.kernel, case.stride, case.padding, case.dilation)
        self.values = {
            "x": rng.integers(low, high, (case.batch, *self.x.shape)).astype(np.int8),
            "y": rng.integers(low, high, (case.batch, *self.y.shape)).astype(np.int8),
            "w": rng.integers(low, high, self.w.shape).astype(np.int8),
        }
        self.homes: dict[str, ImageHome] = {}
        at = 0
        for image in (self.x, self.y):
            home = ImageHome(image, case.batch, self.side, at)
            self.homes[image.name] = home
            at = _page(at + home.size)
        self.weights = WeightHome(self.w, self.side, at)
        self.sums = _page(at + self.weights.rows * self.side)

    @property
    def memory(self) -> dict[int, np.ndarray]:
        """What lies in DRAM, by address."""
        side, home = self.side, self.weights
        padded = _pad(_pad(self.values["w"], 2, side), 3, side)
        tiles = padded.reshape(home.taps, home.inputs, side, home.outputs, side)
        return {
            **{self.homes[name].address: _pad(self.values[name], 3, side) for name in ("x", "y")},
            home.codes: np.ascontiguousarray(tiles.transpose(0, 1, 3, 2, 4)),
        }

    def operation(self, kind: str) -> Convolution | DataGradient | WeightGradient:
        quantizer = Quantizer("q", 0, False, False, False)
        if kind == "forward":
            return Convolution(self.x, self.w, (), None, self.y, quantizer, False, self.geometry)
        if kind == "data gradient":
            return DataGradient(self.y, self.w, self.dx, quantizer, None, self.geometry)
        return WeightGradient(self.x, self.y, self.w, self.geometry)

    def tiles(self, builder: Builder, kind: str) -> Iterator[ImageTile | WeightTile]:
        builder.images.update(self.homes)
        builder.weights_at["w"] = self.weights
        operation = self.operation(kind)
        match operation:
            case Convolution():
                return convolution_sums(builder, operation)
            case DataGradient():
                return data_gradient_sums(builder, operation)
            case _:
                return weight_gradient_sums(builder, operation)

    def program(self, kind: str, rows: int | None) -> tuple[bytes, list[tuple[int, object]]]:
        """Stores every tile as int32, a tile behind; and where each one lies in DRAM."""
        builder = Builder(self.config, rows)
        places, at = [], self.sums
        held = None

        def store(tile: ImageTile | WeightTile, address: int) -> None:
            first, end = tile.access
            size = 4 * self.side * (end - first)
            builder.stream.emit(
                Store(
                    dram_address=address,
                    address=first,
                    run_bytes=size,
                    memory=Memory.ACCUMULATOR,
                    element=Element.INT32,
                    extent=1,
                ),
                "store",
                reads(Space.ACCUMULATOR, (first, end)),
                writes(Space.DRAM, (address, address + size)),
            )

        for tile in self.tiles(builder, kind):
            first, end = tile.access
            assert end - first <= builder.limit_rows
            rows_of_bank = self.config.accumulator_rows
            assert first // rows_of_bank == (end - 1) // rows_of_bank
            if held is not None:
                assert held[0].access[0] // rows_of_bank != first // rows_of_bank
                store(*held)
            held = tile, at
            places.append((at, tile))
            at += 4 * self.side * (end - first)
        assert held is not None
        store(*held)
        instructions = synchronize(builder.stream.steps, self.config)
        return b"".join(entry.encode() for entry in [*instructions, End()]), places

    def expected(self, kind: str) -> np.ndarray:
        """Sums of all channel tiles; float64 is exact for them."""
        x, y, w = (
            torch.tensor(self.values[name].astype(np.float64), requires_grad=name != "y")
            for name in ("x", "y", "w")
        )
        geometry = self.geometry
        result = torch.nn.functional.conv2d(
            x.permute(0, 3, 1, 2),
            w.permute(3, 2, 0, 1),
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
        )
        assert tuple(result.shape[2:]) == self.case.result
        if kind == "forward":
            found = result.detach().permute(0, 2, 3, 1)
        else:
            result.backward(y.permute(0, 3, 1, 2))
            found = x.grad if kind == "data gradient" else w.grad
        values = found.numpy().astype(np.int64).astype(np.int32)
        values = _pad(values, 3, self.side)
        return values if kind != "weight gradient" else _pad(values, 2, self.side)

    def check(self, kind: str, engine: str = "functional", rows: int | None = None, **options):
        """Run a program; every sum must come exactly once, and be right."""
        code, places = self.program(kind, rows)
        at, tile = places[-1]
        first, end = tile.access
        start = _page(at + 4 * self.side * (end - first))
        memory_bytes = _page(start + len(code))
        device = open_device(engine, self.config, memory_bytes=memory_bytes, **options)
        try:
            for address, values in self.memory.items():
                device.write_memory(address, values.tobytes())
            device.write_memory(start, code)
            run = device.run(start)
            expected = self.expected(kind)
            found, seen = np.zeros_like(expected), np.zeros(expected.shape, np.int64)
            for at, tile in places:
                first, end = tile.access
                size = 4 * self.side * (end - first)
                sums = device.read_memory(at, size).view("<i4")
                self._enter(tile, sums, found, seen)
        finally:
            device.close()
        assert (seen == 1).all(), (self.case, kind, rows)
        assert np.array_equal(found, expected), (self.case, kind, rows)
        return run

    def _enter(self, tile, sums: np.ndarray, found: np.ndarray, seen: np.ndarray) -> None:
        side = self.side
        if isinstance(tile, ImageTile):
            box = tile.box
            values = sums.reshape(*box.counts, side).transpose(1, 2, 3, 0, 4)
            place = (
                *(slice(*part) for part in (box.images, box.rows, box.columns)),
                slice(box.tiles[0] * side, box.tiles[1] * side),
            )
            found[place] = values.reshape(*values.shape[:3], -1)
            seen[place] += 1
            return
        taps, inputs, outputs = tile.counts
        values = sums.reshape(taps, inputs, outputs, side, side).transpose(0, 1, 3, 2, 4)
        for number, tap in enumerate(range(*tile.taps)):
            place = (
                *divmod(tap, self.case.kernel[1]),
                slice(tile.inputs[0] * side, tile.inputs[1] * side),
                slice(tile.outputs[0] * side, tile.outputs[1] * side),
            )
            found[place] = values[number].reshape(inputs * side, outputs * side)
            seen[place] += 1


def _page(address: int) -> int:
    return -(-address // PAGE) * PAGE


def _pad(values: np.ndarray, axis: int, side: int) -> np.ndarray:
    """Zeros behind, up to a multiple of the array's side."""
    room = [(0, 0)] * values.ndim
    room[axis] = (0, -values.shape[axis] % side)
    return np.pad(values, room)


EDGES = {
    "one pixel": Case(1, (1, 1), (1, 1), (1, 1)),
    "dense": Case(17, (3, 5), (9, 7), (3, 5)),
    "dense of one pixel": Case(31, (1, 1), (67, 29), (1, 1)),
    "primes": Case(3, (11, 7), (5, 13), (3, 2), (2, 3), (1, 2)),
    "taps in the padding": Case(2, (1, 1), (5, 3), (3, 3), (1, 1), (1, 1)),
    "first tap never exists": Case(2, (2, 2), (3, 5), (4, 4), (1, 1), (5, 5), (3, 3)),
    "nothing meets": Case(2, (1, 1), (3, 5), (2, 2), (4, 4), (1, 1), (2, 2)),
    "stride beyond the kernel": Case(2, (11, 9), (4, 8), (1, 2), (4, 3)),
    "dilation and stride": Case(2, (9, 8), (4, 5), (3, 2), (2, 4), (2, 1), (2, 2)),
    "pointwise of stride 2": Case(3, (8, 6), (8, 12), (1, 1), (2, 2)),
    "row wider than the scratchpad": Case(1, (2, 700), (5, 3), (2, 3), (1, 2), (1, 1)),
    "image higher than a coordinate": Case(1, (4300, 1), (2, 3), (3, 1), (1, 1), (1, 0)),
    "reduction beyond the scratchpads": Case(2, (3, 3), (150, 7), (3, 3), (1, 1), (1, 1)),
    "results beyond the scratchpads": Case(2, (3, 3), (7, 150), (3, 3), (1, 1), (1, 1)),
    "stride and dilation beyond a step": Case(
        1, (300, 2), (2, 2), (2, 1), (130, 1), dilation=(150, 1)
    ),
    "distance beyond a field": Case(1, (2, 700), (20, 4), (3, 1), (1, 100), (145, 0), (100, 1)),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, rng: np.random.Generator) -> None:
    for kind in KINDS:
        Bench(TINY, EDGES[name], rng).check(kind)
        Bench(LARGE, EDGES[name], rng).check(kind, rows=[None, 5, 50][int(rng.integers(3))])


DIVIDED = {
    "offset of half a million bytes": (
        "forward",
        Case(1, (2, 700), (20, 4), (3, 1), (1, 100), (145, 0), (100, 1)),
        GatherPlan(1, 92, 7, 1, (3, 1), 5, True),
    ),
    "stride of 130": (
        "forward",
        Case(1, (3, 500), (2, 2), (2, 2), (1, 130), (1, 1)),
        GatherPlan(1, 4, 4, 1, (2, 2), 1, True),
    ),
    "dilation of 150": (
        "data gradient",
        Case(1, (310, 2), (2, 2), (3, 1), (1, 1), (2, 1), (150, 1)),
        GatherPlan(1, 310, 2, 1, (3, 1), 1, True),
    ),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_distances_beyond_fields_are_divided(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile takes several instructions; the tiling is given, as no choice would be such."""
    kind, case, plan = DIVIDED[name]
    monkeypatch.setattr(gather, "choose_plan", lambda problem, builder: plan)
    bench, builder = Bench(LARGE, case, rng), Builder(LARGE)
    assert len(list(bench.tiles(builder, kind))) == 1
    matrix = [step for step in builder.stream.steps if isinstance(step.instruction, Matrix)]
    assert len(matrix) > 1
    bench.check(kind)


@pytest.mark.parametrize("config", [TINY, ROOMY, PRESETS["edge8"]], ids=lambda c: c.name)
def test_random_convolutions(config: AcceleratorConfig, rng: np.random.Generator) -> None:
    for _ in range(12):
        case = Case.random(rng, config.rows)
        rows = [None, int(rng.integers(config.rows, 48))][int(rng.integers(2))]
        for kind in KINDS:
            Bench(config, case, rng).check(kind, rows=rows)


@pytest.mark.rtl
def test_random_convolutions_in_hardware(rng: np.random.Generator) -> None:
    for _ in range(3):
        case = Case.random(rng, TINY.rows, most=20_000, longest=6)
        for kind in KINDS:
            Bench(TINY, case, rng).check(kind, "rtl", stall_probability=0.1)
