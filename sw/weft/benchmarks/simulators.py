"""How fast each simulator runs: `weft bench sim`."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from weft.benchmarks.networks import residual_network
from weft.cli.output import Output
from weft.compiler import compile_graph
from weft.ir import Graph
from weft.session import Session
from weft_hw import AcceleratorConfig

__all__ = ["SimulatorSpeed", "bench_simulators"]

REPEATS = 5

# About 50,000 and a million cycles on 256 elements; the small one also serves cocotb.
NETWORKS: dict[str, Graph] = {
    "small": residual_network(28, (16, 32, 64)),
    "large": residual_network(64, (32, 64, 128)),
}


@dataclass(frozen=True)
class SimulatorSpeed:
    """One measurement.

    ``cycles`` are those of the RTL for one input of the network; ``wall_s`` the best time of
    ``repeats`` runs of it on ``engine``, after one that warms up; ``kcycles_per_s`` their quotient.
    """

    engine: str
    network: str
    macs: int
    cycles: int
    wall_s: float
    repeats: int

    @property
    def kcycles_per_s(self) -> float:
        """Simulated thousands of cycles a second."""
        return self.cycles / self.wall_s / 1e3


def bench_simulators(
    config: AcceleratorConfig, output: Output, *, with_cocotb: bool
) -> list[dict[str, Any]]:
    """Measure `rtl`, `functional` and, on request, cocotb; functional's cycles are the RTL's."""
    speeds: list[SimulatorSpeed] = []
    for name, graph in NETWORKS.items():
        speeds += _measure(name, graph, config, output)
        if with_cocotb and name == "small":
            speeds.append(_measure_cocotb(name, graph, config, output))
    return [{**asdict(speed), "kcycles_per_s": speed.kcycles_per_s} for speed in speeds]


def _input(graph: Graph) -> np.ndarray:
    shape = graph.tensor(graph.inputs[0]).shape
    return np.random.default_rng(1).integers(-128, 128, (shape[2], *shape[:2])).astype(np.int8)


def _measure(
    name: str, graph: Graph, config: AcceleratorConfig, output: Output
) -> list[SimulatorSpeed]:
    image = _input(graph)
    program = compile_graph(graph, config)
    with output.stages() as stage:
        rtl = Session(program, engine="rtl", progress=stage)
        functional = Session(program, engine="functional")
        stage(f"{name} network on rtl", None)
        answers = [rtl.run(image)]
        rtl_seconds = _best_of(rtl, image, 1 if name == "large" else REPEATS)
        cycles = rtl.report["cycles"]
        stage(f"{name} network on functional", None)
        answers.append(functional.run(image))
        functional_seconds = _best_of(functional, image, REPEATS)
    if not np.array_equal(*answers):
        raise RuntimeError(f"{name}: rtl and functional differ")
    macs = rtl.report["macs"]
    return [
        SimulatorSpeed("rtl", name, macs, cycles, rtl_seconds, REPEATS),
        SimulatorSpeed("functional", name, macs, cycles, functional_seconds, REPEATS),
    ]


def _best_of(session: Session, image: np.ndarray, repeats: int) -> float:
    """Seconds inside the device's run, which host-side packing does not count in."""
    seconds: list[float] = []
    for _ in range(repeats):
        session.run(image)
        seconds.append(session.report["wall_s"])
    return min(seconds)


def _measure_cocotb(
    name: str, graph: Graph, config: AcceleratorConfig, output: Output
) -> SimulatorSpeed:
    from weft.benchmarks.cocotb_program import run_programs

    program = compile_graph(graph, config)
    with output.stages() as stage:
        ((_, result),) = run_programs([program], [[_input(graph)]], progress=stage)
    return SimulatorSpeed(
        "cocotb", name, program.macs, result.run.cycles or 0, result.run.wall_seconds, 1
    )
