"""The compiler's stages in order, and the assembly of the program."""

from random import Random

from weft.compiler.host_part import View, split_host
from weft.compiler.kernels import Kernel
from weft.compiler.lowering import lower
from weft.compiler.memory_plan import MemoryPlan, plan_memory
from weft.compiler.overlap import overlap_layers
from weft.compiler.schedule import choose_schedule
from weft.compiler.stream import Space, Step
from weft.compiler.synchronize import synchronize
from weft.errors import UnsupportedModel
from weft.ir import Conv2d, Graph, Linear, Operation
from weft.passes import (
    CheckLimits,
    FusePadding,
    FuseTables,
    ImagesOnly,
    NarrowWeights,
    RemoveDead,
    SplitGroups,
    run_passes,
)
from weft.program import HostStep, Layer, Port, Program, ProgramRegion, Symbol
from weft_hw.config import AcceleratorConfig
from weft_hw.errors import EncodingError
from weft_hw.instructions import End, Instruction

__all__ = ["compile_graph"]

PAGE = 4096

PASSES = (
    ImagesOnly(),
    RemoveDead(),
    FusePadding(),
    FuseTables(),
    SplitGroups(),
    NarrowWeights(),
    CheckLimits(),
)


def compile_graph(
    graph: Graph, config: AcceleratorConfig, *, force_tiles: int | None = None
) -> Program:
    """Compile a graph for a configuration; the same arguments always give the same program.

    Parameters
    ----------
    graph : Graph
    config : AcceleratorConfig
    force_tiles : int, optional
        For tests: a seed by which tile sizes and the tensors that stay on chip are drawn at random
        among those that fit. Results do not depend on it.

    Returns
    -------
    Program

    Raises
    ------
    UnsupportedModel
        If the accelerator cannot run the graph; the message names the layer.
    GraphError
        If the graph breaks the rules of :mod:`weft.ir`.
    """
    random = None if force_tiles is None else Random(force_tiles)
    graph.verify()
    results = graph.outputs
    part = split_host(graph)
    graph, host_steps = part.graph, part.steps
    legal = run_passes(graph, PASSES)
    kernels = [Kernel.of(operation, legal, config) for operation in legal.operations]
    plan = plan_memory(legal, kernels, config, random)
    if random is None:
        plan = choose_schedule(legal, config, plan, kernels)
    context = lower(legal, config, plan, kernels)
    steps = overlap_layers(context.stream.steps)
    told = {each.name: (each.kind, _macs(each, graph)) for each in graph.operations}
    code, layers, symbols = _encode(synchronize(steps, config), steps, kernels, told)
    constants_end = plan.constants_address + len(context.constants.data)
    code_address = -(-constants_end // PAGE) * PAGE
    memory_bytes = -(-(code_address + len(code)) // PAGE) * PAGE
    if memory_bytes > 1 << config.address_width:
        raise UnsupportedModel(
            f"the program needs {memory_bytes} bytes of DRAM; configuration {config.name} "
            f"addresses {1 << config.address_width}"
        )
    inputs = _ports(part.inputs, graph, legal, plan, legal.inputs)
    outputs = _ports(part.outputs, graph, legal, plan, legal.outputs)
    return Program(
        name=graph.name,
        config=config,
        inputs=inputs,
        outputs=outputs,
        instructions=code,
        instructions_address=code_address,
        constants=bytes(context.constants.data),
        constants_address=plan.constants_address,
        memory_bytes=memory_bytes,
        regions=_regions(plan, legal),
        peaks=_peaks(plan, steps),
        layers=layers,
        symbols=symbols,
        host_ops=_host_ops(inputs, outputs, host_steps, results),
        host_steps=host_steps,
        results=results,
    )


def _macs(operation: Operation, graph: Graph) -> int:
    """Multiply-accumulates of the model's operation."""
    if isinstance(operation, Linear):
        return operation.weights.size
    if not isinstance(operation, Conv2d):
        return 0
    height, width, _ = graph.tensor(operation.output).shape
    return height * width * operation.weights.size


def _encode(
    instructions: list[Instruction],
    steps: list[Step],
    kernels: list[Kernel],
    told: dict[str, tuple[str, int]],
) -> tuple[bytes, tuple[Layer, ...], tuple[Symbol, ...]]:
    """Bytes, layers (with kind and size as the model has them) and symbols; END at last."""
    code = bytearray()
    symbols = []
    firsts, ends = [-1] * len(kernels), [0] * len(kernels)
    for instruction, step in zip(instructions, steps, strict=True):
        operation = kernels[step.layer].operation
        if firsts[step.layer] < 0:
            firsts[step.layer] = len(code)
        symbols.append(Symbol(len(code), step.layer, step.purpose, step.tile))
        try:
            code += instruction.encode()
        except EncodingError as error:
            raise UnsupportedModel(
                f"{operation.name} ({operation.source or operation.kind}): a size is beyond what "
                f"an instruction can express: {error}"
            ) from None
        ends[step.layer] = len(code)
    code += End().encode()
    layers = [
        Layer(
            name=kernel.operation.name,
            op=told[kernel.operation.name][0] + _behind(kernel.operation),
            source=kernel.operation.source,
            macs=told[kernel.operation.name][1],
            first=first,
            end=end,
        )
        for kernel, first, end in zip(kernels, firsts, ends, strict=True)
    ]
    return bytes(code), tuple(layers), tuple(symbols)


def _behind(operation: Operation) -> str:
    """What a layer's kind says of the table behind it."""
    return " + Lookup" if getattr(operation, "table", None) is not None else ""


def _ports(
    views: tuple[View, ...],
    graph: Graph,
    legal: Graph,
    plan: MemoryPlan,
    homes: tuple[str, ...],
) -> tuple[Port, ...]:
    """Ports with the model's names and shapes, at the addresses of the rewritten graph."""
    ports = []
    for view, home in zip(views, homes, strict=True):
        tensor = view.tensor
        height, width, channels = legal.tensor(home).shape
        place = plan.placements[home].dram
        assert place is not None
        shape = tensor.shape
        if len(shape) == 3 and graph.layout == "CHW":
            shape = (channels, height, width)
        ports.append(
            Port(
                name=tensor.name,
                shape=shape,
                scale=tensor.scale,
                zero_point=tensor.zero_point,
                address=place.address,
                image=(height, width, channels),
                pitch=place.pitch,
                order=view.order,
                source=view.source,
                float_rule=graph.float_rule,
            )
        )
    return tuple(ports)


def _regions(plan: MemoryPlan, graph: Graph) -> tuple[ProgramRegion, ...]:
    regions = []
    for memory, blocks in (("activation", plan.chip), ("dram", plan.dram)):
        for block in blocks:
            place = plan.placements[block.name]
            layout = place.chip if memory == "activation" else place.dram
            assert layout is not None
            height, width, channels = graph.tensor(block.name).shape
            regions.append(
                ProgramRegion(
                    memory=memory,
                    name=block.name,
                    address=block.address,
                    size=block.size,
                    first_layer=block.first,
                    last_layer=block.last,
                    height=height,
                    width=width,
                    channels=channels,
                    pitch=layout.pitch,
                    gap=layout.gap,
                )
            )
    return tuple(regions)


def _peaks(plan: MemoryPlan, steps: list[Step]) -> dict[str, int]:
    """Largest use of each on-chip memory at any layer."""

    def highest(space: Space) -> int:
        touched = (access for step in steps for access in step.accesses if access.space == space)
        return max((access.end for access in touched), default=0)

    activation = 0
    for layer, (tiling, kernel_inputs) in enumerate(zip(plan.tilings, plan.spilled, strict=True)):
        alive = sum(block.size for block in plan.chip if block.meets(layer, layer))
        work = tiling.slots * (kernel_inputs * tiling.input_bytes + tiling.output_bytes)
        activation = max(activation, alive + work)
    return {
        "activation bytes": activation,
        "weight bytes": highest(Space.WEIGHT),
        "accumulator rows": highest(Space.ACCUMULATOR),
        "parameter rows": highest(Space.PARAMETER),
    }


def _host_ops(
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    steps: tuple[HostStep, ...],
    results: tuple[str, ...],
) -> tuple[str, ...]:
    """What the driver does around the accelerator's run, for each input and output."""
    told = []
    for port in inputs:
        told.append(f"quantize input {port.name} to int8 (if given as float32)")
        told += _repacking("input", port)
    for port in outputs:
        told += _repacking("output", port)
    told += [f"compute {step.kind} {step.name} ({step.source})" for step in steps]
    values: list[Port | HostStep] = [*outputs, *steps]
    for value in values:
        if value.name in results and value.dtype == "int8":
            told.append(f"dequantize output {value.name} to float32 (if asked for)")
    return tuple(told)


def _repacking(what: str, port: Port) -> list[str]:
    """How the host arranges a port's elements, if it does."""
    height, width, channels = port.image
    shape = "x".join(map(str, port.shape))
    arranged = f"{port.order} {shape} as {height} x {width} pixels of {port.pitch} bytes"
    if port.source:
        return [f"transpose {what} {port.name} ({port.source}): {arranged}, {port.size} bytes"]
    moves = port.order == "CHW" and channels > 1 and height * width > 1
    if moves or channels != port.pitch:
        return [f"repack {what} {port.name}: {arranged}, {port.size} bytes"]
    return []
