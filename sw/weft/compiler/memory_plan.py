"""The static memory plan: which tensors stay on chip, where each lies, and how layers are tiled.

A tensor on chip is written once by VECTOR and read from there by every consumer, with no transfer
in between; all others ("spilled") have a home in DRAM and are loaded and stored tile by tile
through a work area. The plan starts with every tensor on chip and spills the largest one that is
alive in a layer that does not fit, until all layers do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from weft.compiler.kernels import Kernel, ceil_div
from weft.compiler.layout import PixelLayout, Region, pixel_pitch
from weft.compiler.tiling import Tiling, Where, choose_tiling, smallest_need
from weft.errors import UnsupportedModel
from weft.ir import Graph
from weft_hw.config import AcceleratorConfig

__all__ = ["Block", "MemoryPlan", "Placement", "plan_memory"]

DRAM_ALIGNMENT = 64


@dataclass(frozen=True)
class Block:
    """A piece of memory with a lifetime in layers, both ends included."""

    name: str
    address: int
    size: int
    first: int
    last: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.address + self.size

    def meets(self, first: int, last: int) -> bool:
        """Whether it is alive at some time from ``first`` to ``last``."""
        return self.first <= last and first <= self.last


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies: in DRAM, on chip, or both (then it is copied once)."""

    dram: PixelLayout | None
    chip: PixelLayout | None


@dataclass(frozen=True)
class MemoryPlan:
    """Where everything lies.

    Parameters
    ----------
    placements : dict
        By tensor name.
    tilings : tuple of Tiling
        By layer.
    spilled : tuple of int
        By layer: how many inputs are loaded tile by tile.
    work : tuple of (address, size)
        By layer: the free part of the activation scratchpad.
    chip, dram : tuple of Block
        Tensors in the activation scratchpad and in DRAM, for the report.
    constants_address : int
        DRAM address of the constants: the graph's constant tensors, then what layers add.
    """

    placements: dict[str, Placement]
    tilings: tuple[Tiling, ...]
    spilled: tuple[int, ...]
    work: tuple[tuple[int, int], ...]
    chip: tuple[Block, ...]
    dram: tuple[Block, ...]
    constants_address: int


def plan_memory(
    graph: Graph,
    kernels: Sequence[Kernel],
    config: AcceleratorConfig,
    random: Random | None = None,
) -> MemoryPlan:
    """Place every tensor and tile every layer.

    Raises
    ------
    UnsupportedModel
        If a layer does not fit even alone with its smallest tiles.
    """
    lifetimes = _lifetimes(graph)
    chip_layouts = {name: _chip_layout(name, graph, kernels, config) for name in lifetimes}
    candidates = set(lifetimes)
    if random is not None:  # spill some although they would fit
        candidates = {name for name in sorted(candidates) if random.random() < 0.6}
    while True:
        chip = _allocate(candidates, chip_layouts, lifetimes, config)
        failed = _crowded(candidates, chip_layouts, lifetimes) if chip is None else None
        tilings: list[Tiling] = []
        work: list[tuple[int, int]] = []
        for layer, kernel in enumerate(kernels if chip is not None else ()):
            area = _largest_gap(
                [block for block in chip or () if block.meets(layer, layer)], config
            )
            where = _where(kernel, candidates, area[1])
            tiling = choose_tiling(kernel, where, random)
            if tiling is None:
                failed = layer
                break
            tilings.append(tiling)
            work.append(area)
        if failed is None:
            break
        alive = [n for n in candidates if lifetimes[n][0] <= failed <= lifetimes[n][1]]
        if not alive:
            raise _too_large(kernels[failed], config)
        candidates.remove(max(alive, key=lambda name: (chip_layouts[name].size, name)))
    return _finish(graph, config, lifetimes, chip_layouts, chip or (), tilings, work)


def _too_large(kernel: Kernel, config: AcceleratorConfig) -> UnsupportedModel:
    operation = kernel.operation
    needed = smallest_need(kernel, Where(len(operation.inputs), True, config.activation_bytes))
    return UnsupportedModel(
        f"{operation.name} ({operation.source or operation.kind}): its smallest tile needs "
        f"{needed} bytes of the activation scratchpad; configuration {config.name} has "
        f"{config.activation_bytes}"
    )


def _where(kernel: Kernel, on_chip: set[str], room: int) -> Where:
    operation = kernel.operation
    spilled = sum(name not in on_chip for name in operation.inputs)
    return Where(spilled, operation.output not in on_chip, room)


def _lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    """First and last layer of each tensor that some layer reads or writes."""
    lifetimes: dict[str, tuple[int, int]] = {}
    for layer, operation in enumerate(graph.operations):
        for name in (*operation.inputs, operation.output):
            first, _ = lifetimes.get(name, (layer, layer))
            lifetimes[name] = first, layer
    return lifetimes


def _whole(shape: tuple[int, ...], pitch: int) -> Region:
    return Region(0, shape[0], 0, shape[1], 0, pitch)


def _chip_layout(
    name: str, graph: Graph, kernels: Sequence[Kernel], config: AcceleratorConfig
) -> PixelLayout:
    """The tensor's layout on chip, with the padding that its convolutions need; address 0."""
    shape = graph.tensor(name).shape
    gap = max(
        (k.gap(0, k.result[1], k.whole) for k in kernels if name in k.operation.inputs), default=0
    )
    return PixelLayout(0, _whole(shape, pixel_pitch(shape[2], config)), gap)


def _allocate(
    names: set[str],
    layouts: dict[str, PixelLayout],
    lifetimes: dict[str, tuple[int, int]],
    config: AcceleratorConfig,
) -> tuple[Block, ...] | None:
    """Addresses in the activation scratchpad, or None if they do not fit.

    First try: in order of time, by turns from either end, so that a layer's input and output lie in
    different banks and what is free is one piece. Second: the largest first.
    """
    by_time = sorted(names, key=lambda name: (lifetimes[name], name))
    by_size = sorted(names, key=lambda name: (-layouts[name].size, lifetimes[name], name))
    for order, from_top in ((by_time, lambda turn: turn % 2 == 1), (by_size, lambda turn: False)):
        blocks = _first_fit(order, from_top, layouts, lifetimes, config)
        if blocks is not None:
            return blocks
    return None


def _first_fit(
    order: list[str],
    from_top: Callable[[int], bool],
    layouts: dict[str, PixelLayout],
    lifetimes: dict[str, tuple[int, int]],
    config: AcceleratorConfig,
) -> tuple[Block, ...] | None:
    line = config.line_bytes
    blocks: list[Block] = []
    for turn, name in enumerate(order):
        size = ceil_div(layouts[name].size + line, line) * line  # wide reads need a line behind
        alive = [block for block in blocks if block.meets(*lifetimes[name])]
        gaps = [gap for gap in _gaps(alive, config.activation_bytes) if gap[1] >= size]
        if not gaps:
            return None
        start, room = gaps[-1] if from_top(turn) else gaps[0]
        address = start + room - size if from_top(turn) else start
        blocks.append(Block(name, address, size, *lifetimes[name]))
    return tuple(blocks)


def _gaps(blocks: Sequence[Block], capacity: int) -> list[tuple[int, int]]:
    """Free pieces (address, size) between blocks."""
    gaps, at = [], 0
    for block in sorted(blocks, key=lambda block: block.address):
        if block.address > at:
            gaps.append((at, block.address - at))
        at = max(at, block.end)
    if capacity > at:
        gaps.append((at, capacity - at))
    return gaps


def _largest_gap(blocks: Sequence[Block], config: AcceleratorConfig) -> tuple[int, int]:
    gaps = _gaps(blocks, config.activation_bytes)
    return max(gaps, key=lambda gap: gap[1], default=(0, 0))


def _crowded(
    names: set[str], layouts: dict[str, PixelLayout], lifetimes: dict[str, tuple[int, int]]
) -> int:
    """The layer at which the most bytes are alive."""

    def alive(layer: int) -> int:
        return sum(
            layouts[name].size
            for name in names
            if lifetimes[name][0] <= layer <= lifetimes[name][1]
        )

    return max(range(max(last for _, last in lifetimes.values()) + 1), key=alive)


def _finish(
    graph: Graph,
    config: AcceleratorConfig,
    lifetimes: dict[str, tuple[int, int]],
    chip_layouts: dict[str, PixelLayout],
    chip: tuple[Block, ...],
    tilings: list[Tiling],
    work: list[tuple[int, int]],
) -> MemoryPlan:
    """Homes in DRAM: inputs and outputs for good, spilled tensors by lifetime, constants last."""
    at_chip = {block.name: block.address for block in chip}
    last_layer = len(graph.operations)
    dram: list[Block] = []
    end = 0
    for tensor in graph.tensors:
        shape = tensor.shape
        size = shape[0] * shape[1] * pixel_pitch(shape[2], config)
        size = ceil_div(size, DRAM_ALIGNMENT) * DRAM_ALIGNMENT
        fixed = tensor.name in (*graph.inputs, *graph.outputs)
        if tensor.data is not None or (not fixed and tensor.name in at_chip):
            continue
        lifetime = (0, last_layer) if fixed else lifetimes[tensor.name]
        alive = [block for block in dram if block.meets(*lifetime)]
        address = next(start for start, room in _gaps(alive, 1 << 62) if room >= size)
        dram.append(Block(tensor.name, address, size, *lifetime))
        end = max(end, address + size)
    constants = end
    for tensor in graph.tensors:
        if tensor.data is None:
            continue
        size = tensor.shape[0] * tensor.shape[1] * pixel_pitch(tensor.shape[2], config)
        dram.append(Block(tensor.name, end, size, 0, last_layer))
        end += ceil_div(size, DRAM_ALIGNMENT) * DRAM_ALIGNMENT
    in_dram = {block.name: block.address for block in dram}
    placements = {}
    for tensor in graph.tensors:
        name = tensor.name
        whole = _whole(tensor.shape, pixel_pitch(tensor.shape[2], config))
        on_chip = None
        if name in at_chip:
            layout = chip_layouts[name]
            on_chip = PixelLayout(at_chip[name], layout.region, layout.gap)
        placements[name] = Placement(
            dram=PixelLayout(in_dram[name], whole) if name in in_dram else None, chip=on_chip
        )
    spilled = tuple(
        sum(placements[name].chip is None for name in operation.inputs)
        for operation in graph.operations
    )
    return MemoryPlan(
        placements, tuple(tilings), spilled, tuple(work), chip, tuple(dram), constants
    )
