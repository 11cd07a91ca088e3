"""Sums of convolutions and gradients from the machine, tile by tile, and the same from PyTorch."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from weft.compiler.stream import Space, reads, writes
from weft.compiler.synchronize import synchronize
from weft.train.machine.builder import Builder, ImageTile, WeightTile
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
from weft_hw import AcceleratorConfig
from weft_hw.instructions import Element, End, Memory, Store
from weft_sim.device import Device, RunResult, open_device

__all__ = ["KINDS", "Case", "ProductBench"]

KINDS = ("forward", "data gradient", "weight gradient")
PAGE = 4096
Tile = ImageTile | WeightTile


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


class ProductBench:
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
            narrow = image.shape[2] < self.side and bool(rng.integers(2))
            home = ImageHome(image, case.batch, self.side, at, narrow)
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
        images = {
            place.address: values if place.narrow else _pad(values, 3, side)
            for values, place in ((self.values[name], self.homes[name]) for name in ("x", "y"))
        }
        return {
            **images,
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

    def program(
        self, kind: str, rows: int | None, finish: "Callable[[Builder, Tile, int], int] | None"
    ) -> tuple[bytes, list[tuple[int, Tile]], int]:
        """Finishes every tile, one behind: the code, where each one lies, and their end.

        ``finish(builder, tile, address)`` emits what stores a tile, and returns its bytes.
        """
        builder = Builder(self.config, rows)
        places, at = [], self.sums
        held: Tile | None = None
        bank = self.config.accumulator_rows
        finish = finish or _store

        def end(tile: Tile) -> None:
            nonlocal at
            places.append((at, tile))
            at += finish(builder, tile, at)

        for tile in self.tiles(builder, kind):
            first, last = tile.access[0], tile.access[1] - 1
            assert last - first < builder.limit_rows
            assert first // bank == last // bank
            if held is not None:
                assert held.access[0] // bank != first // bank
                end(held)
            held = tile
        assert held is not None
        end(held)
        instructions = synchronize(builder.stream.steps, self.config)
        code = b"".join(entry.encode() for entry in [*instructions, End()])
        return code, places, at

    def _channels_first(self) -> Iterator[tuple[str, np.ndarray]]:
        """x, y, w as PyTorch has them."""
        for name, order in (("x", (0, 3, 1, 2)), ("y", (0, 3, 1, 2)), ("w", (3, 2, 0, 1))):
            yield name, self.values[name].astype(np.float64).transpose(order)

    def expected(self, kind: str) -> np.ndarray:
        """Sums of all channel tiles; float64 is exact for them."""
        x, y, w = (
            torch.tensor(np.ascontiguousarray(values), requires_grad=name != "y")
            for name, values in self._channels_first()
        )
        geometry = self.geometry
        result = torch.nn.functional.conv2d(
            x,
            w,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
        )
        assert tuple(result.shape[2:]) == self.case.result
        if kind != "forward":
            result.backward(y)
        found = {"forward": result.detach(), "data gradient": x.grad, "weight gradient": w.grad}
        order = (2, 3, 1, 0) if kind == "weight gradient" else (0, 2, 3, 1)
        values = found[kind].numpy().transpose(order).astype(np.int64).astype(np.int32)
        values = _pad(values, 3, self.side)
        return values if kind != "weight gradient" else _pad(values, 2, self.side)

    def run(
        self,
        kind: str,
        engine: str = "functional",
        rows: int | None = None,
        finish: "Callable[[Builder, Tile, int], int] | None" = None,
        read: "Callable[[Device, list[tuple[int, Tile]]], None] | None" = None,
        **options: Any,
    ) -> RunResult:
        """Run a program; ``read`` sees the memory behind it."""
        code, places, end = self.program(kind, rows, finish)
        start = _page(end)
        memory_bytes = _page(start + len(code))
        device = open_device(engine, self.config, memory_bytes=memory_bytes, **options)
        try:
            for address, values in self.memory.items():
                device.write_memory(address, values.tobytes())
            device.write_memory(start, code)
            run = device.run(start)
            if read is not None:
                read(device, places)
        finally:
            device.close()
        return run

    def check(
        self, kind: str, engine: str = "functional", rows: int | None = None, **options: Any
    ) -> None:
        """Run a program; every sum must come exactly once, and be right."""
        expected = self.expected(kind)
        found, seen = np.zeros_like(expected), np.zeros(expected.shape, np.int64)

        def read(device: Device, places: list[tuple[int, Tile]]) -> None:
            for at, tile in places:
                first, end = tile.access
                sums = device.read_memory(at, 4 * self.side * (end - first)).view("<i4")
                self._enter(tile, sums, found, seen)

        self.run(kind, engine, rows, read=read, **options)
        assert (seen == 1).all(), (self.case, kind, rows)
        assert np.array_equal(found, expected), (self.case, kind, rows)

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


def _store(builder: Builder, tile: Tile, address: int) -> int:
    """Sums as int32."""
    first, end = tile.access
    size = 4 * builder.side * (end - first)
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
    return size


def _page(address: int) -> int:
    return -(-address // PAGE) * PAGE


def _pad(values: np.ndarray, axis: int, side: int) -> np.ndarray:
    """Zeros behind, up to a multiple of the array's side."""
    room = [(0, 0)] * values.ndim
    room[axis] = (0, -values.shape[axis] % side)
    return np.pad(values, room)
