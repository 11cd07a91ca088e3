"""From layers to instructions, in the layers' order."""

from collections.abc import Sequence

from weft.compiler.constants import ConstantImage, image_bytes
from weft.compiler.context import Context, LayerTask
from weft.compiler.kernels import Kernel
from weft.compiler.layout import pixel_pitch
from weft.compiler.lower_add import lower_add
from weft.compiler.lower_convolution import lower_convolution
from weft.compiler.lower_copy import (
    lower_concatenate,
    lower_interleave,
    lower_pad,
    lower_slice,
    lower_transpose,
)
from weft.compiler.lower_depthwise import lower_depthwise
from weft.compiler.lower_vector import lower_lookup, lower_multiply, lower_pool, lower_rescale
from weft.compiler.memory_plan import MemoryPlan
from weft.compiler.tiling import Tiling
from weft.ir import (
    Add,
    AveragePool2d,
    Concatenate,
    Conv2d,
    Graph,
    Interleave,
    Lookup,
    MaxPool2d,
    Multiply,
    Pad,
    Rescale,
    Slice,
    Subtract,
    Transpose,
)
from weft_hw.config import AcceleratorConfig

__all__ = ["lower"]


def lower(
    graph: Graph,
    config: AcceleratorConfig,
    plan: MemoryPlan,
    kernels: Sequence[Kernel],
    layers: range | None = None,
) -> Context:
    """Instructions of all layers, or of some of them, without semaphores."""
    constants = ConstantImage(plan.constants_address)
    for tensor in graph.tensors:  # in the plan's order, so that each lands at its planned address
        if tensor.data is not None:
            address = constants.append(
                image_bytes(tensor.data, pixel_pitch(tensor.shape[2], config))
            )
            home = plan.placements[tensor.name].dram
            assert home is not None and home.address == address
    context = Context(
        graph, config, plan, constants, tap_bytes=_tap_bytes(config, plan.tilings, kernels)
    )
    for layer in range(len(kernels)) if layers is None else layers:
        kernel = kernels[layer]
        task = LayerTask(context, layer, kernel, plan.tilings[layer])
        match kernel.operation:
            case Conv2d() if kernel.is_depthwise:
                lower_depthwise(task)
            case Conv2d():
                lower_convolution(task)
            case MaxPool2d() | AveragePool2d():
                lower_pool(task)
            case Add() | Subtract():
                lower_add(task)
            case Multiply():
                lower_multiply(task)
            case Pad():
                lower_pad(task)
            case Concatenate():
                lower_concatenate(task)
            case Interleave():
                lower_interleave(task)
            case Lookup():
                lower_lookup(task)
            case Slice():
                lower_slice(task)
            case Transpose():
                lower_transpose(task)
            case Rescale():
                lower_rescale(task)
    return context


def _tap_bytes(
    config: AcceleratorConfig, tilings: Sequence[Tiling], kernels: Sequence[Kernel]
) -> int:
    """A bank of the weight scratchpad for VECTOR's taps, if all else fits the other banks.

    There VECTOR and MATRIX do not wait for each other.
    """
    bank = config.weight_bank_bytes
    taps = weights = 0
    for kernel, tiling in zip(kernels, tilings, strict=True):
        if kernel.is_depthwise:
            window = kernel.window[0] * kernel.window[1]
            taps = max(taps, tiling.channel_tiles * window * config.columns)
        elif kernel.is_convolution:
            steps = tiling.channel_tiles * tiling.chunks[0].tiles
            weights = max(weights, steps * config.tile_bytes)
    fits = 0 < taps <= bank and weights <= config.weight_bytes - bank
    return bank if fits else 0
