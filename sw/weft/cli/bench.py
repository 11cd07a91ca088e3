"""`weft bench`: figures with units, as text and as JSON."""

from typing import Annotated, Any

import typer
from rich.table import Table

from weft.cli.bench_methods import train
from weft.cli.bench_training import train_step
from weft.cli.options import ConfigOption, EngineOption, JsonOption, LatencyOption, engine_options
from weft.cli.output import Output
from weft_hw import load_config

__all__ = ["application"]

application = typer.Typer(help="Measure: figures with units.", no_args_is_help=True)


@application.callback()
def bench() -> None:
    """Measure: figures with units."""


application.command("train")(train)
application.command("train-step")(train_step)


@application.command("sim")
def simulators(
    config: ConfigOption = "base16",
    cocotb: Annotated[
        bool, typer.Option("--cocotb/--no-cocotb", help="Measure cocotb as well.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Simulated cycles a second of rtl, functional and cocotb."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft.benchmarks.simulators import bench_simulators

    results = bench_simulators(chosen, output, with_cocotb=cocotb)
    table = Table("engine", "network", "multiply-accumulates", "cycles", "wall s", "kcycles/s")
    for entry in results:
        table.add_row(
            entry["engine"],
            entry["network"],
            f"{entry['macs']:,}",
            f"{entry['cycles']:,}",
            f"{entry['wall_s']:.3f}",
            f"{entry['kcycles_per_s']:,.0f}",
        )
    output.console.print(table)
    output.result({"config": chosen.name, "results": results})


ProductOption = Annotated[
    str,
    typer.Option(
        "--product", help="Result, or gradient; all that there are.", metavar="Y|dX|dW|all"
    ),
]

WeightBitsOption = Annotated[
    int,
    typer.Option("--weight-bits", help="Width of the weights, of the machine's.", metavar="8|4|2"),
]


@application.command("gemm")
def gemm(
    shape: Annotated[
        tuple[int, int, int],
        typer.Option("--shape", help="X is M by K, W is K by N.", metavar="M K N"),
    ] = (512, 512, 512),
    config: ConfigOption = "base16",
    weight_bits: WeightBitsOption = 8,
    engine: EngineOption = "rtl",
    latency: LatencyOption = 20,
    product: ProductOption = "all",
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, help="Products back to back in one program.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Y = X W, dX = dY W^T and dW = X^T dY of int8 operands in DRAM, every element checked."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft.benchmarks.gemm import bench_gemm, kinds_of

    kinds = kinds_of(chosen, product, weight_bits)
    with output.stages() as stage:
        stage(f"{shape[0]} x {shape[1]} x {shape[2]} on {engine}", None)
        options = engine_options(engine, latency, stage)
        results = bench_gemm(
            chosen,
            shape,
            engine=engine,
            products=kinds,
            repeat=repeat,
            weight_bits=weight_bits,
            **options,
        )
    _show(output, results)
    output.result(
        {
            "config": chosen.name,
            "engine": engine,
            "shape": list(shape),
            "repeat": repeat,
            "weight_bits": weight_bits,
            "latency": options.get("latency"),
            "results": results,
        }
    )


@application.command("conv")
def convolution(
    shape: Annotated[
        tuple[int, int, int, int],
        typer.Option("--shape", help="Input H, W, C and output channels K.", metavar="H W C K"),
    ] = (16, 16, 64, 64),
    kernel: Annotated[int, typer.Option("--kernel", min=1, help="Side of the kernel.")] = 3,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Of both axes.")] = 1,
    config: ConfigOption = "base16",
    weight_bits: WeightBitsOption = 8,
    engine: EngineOption = "rtl",
    latency: LatencyOption = 20,
    product: ProductOption = "all",
    as_json: JsonOption = False,
) -> None:
    """An int8 convolution, padded by half its kernel, and its gradients, every element checked.

    The convolution is compiled; its gradients have schedules of their own, for operands that fit on
    chip, dX for stride 1. What they do not cover is left out of all, with the reason.
    """
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft.benchmarks.convolution import bench_convolution
    from weft.benchmarks.convolution_gradients import bench_gradients
    from weft.benchmarks.gemm import kinds_of
    from weft.benchmarks.gradient_schedule import GradientSizes
    from weft.benchmarks.product import ProductKind

    kinds = kinds_of(chosen, product, weight_bits)
    with output.stages() as stage:
        stage(f"{kernel} x {kernel} convolution on {engine}", None)
        options = engine_options(engine, latency, stage)
        results = []
        if ProductKind.Y in kinds:
            results += bench_convolution(
                chosen,
                shape,
                kernel,
                engine=engine,
                stride=stride,
                weight_bits=weight_bits,
                **options,
            )
        sizes = GradientSizes(chosen, shape, kernel, stride)
        gradients, left_out = bench_gradients(
            sizes, kinds, engine=engine, required=product != "all", **options
        )
    _show(output, results + gradients)
    for name, reason in left_out.items():
        output.console.print(f"{name} is left out: {reason}")
    output.result(
        {
            "config": chosen.name,
            "engine": engine,
            "shape": list(shape),
            "kernel": kernel,
            "stride": stride,
            "weight_bits": weight_bits,
            "latency": options.get("latency"),
            "results": results + gradients,
            "left_out": left_out,
        }
    )


@application.command("depthwise")
def depthwise(
    shape: Annotated[
        tuple[int, int, int], typer.Option("--shape", help="Input H, W, C.", metavar="H W C")
    ] = (24, 24, 64),
    stride: Annotated[int, typer.Option("--stride", min=1, max=2, help="Of both axes.")] = 1,
    pointwise: Annotated[
        int, typer.Option("--pointwise", min=0, help="Outputs of a 1x1 convolution behind it.")
    ] = 0,
    config: ConfigOption = "base16",
    engine: EngineOption = "rtl",
    latency: LatencyOption = 20,
    as_json: JsonOption = False,
) -> None:
    """A depthwise 3x3 convolution of an int8 image in DRAM, padded by 1, every element checked."""
    output = Output(as_json=as_json)
    chosen = load_config(config or "base16")
    from weft.benchmarks.depthwise import bench_depthwise

    with output.stages() as stage:
        stage(f"depthwise {shape[0]} x {shape[1]} x {shape[2]} on {engine}", None)
        options = engine_options(engine, latency, stage)
        results = bench_depthwise(
            chosen, shape, engine=engine, stride=stride, filters=pointwise, **options
        )
    _show(output, results)
    if "over_longer" in results[-1]:
        output.console.print(f"both / the longer alone: {results[-1]['over_longer']:.3f}")
    output.result(
        {
            "config": chosen.name,
            "engine": engine,
            "shape": list(shape),
            "stride": stride,
            "pointwise": pointwise,
            "latency": options.get("latency"),
            "results": results,
        }
    )


def _show(output: Output, results: list[dict[str, Any]]) -> None:
    """One row a product; each engine's share of the cycles: at work, waiting, held back."""
    table = Table("product", "cycles", "utilization", "engine", "busy", "wait", "stall")
    for entry in results:
        if entry["cycles"] is None:
            table.add_row(entry["product"], "-", "-", "-", "-", "-", "-")
            continue
        first = (entry["product"], f"{entry['cycles']:,}", f"{entry['utilization']:.2%}")
        for engine, stalls in entry["stalls"].items():
            counts = (f"{stalls[kind]:,}" for kind in ("busy", "wait", "stall"))
            table.add_row(*first, engine, *counts)
            first = ("", "", "")
    output.console.print(table)
