"""The cycle model against the RTL: whole programs, layers, and `weft estimate`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason='needs pip install "weft[tflite]"')

import weft
from tflite_networks import random_network
from weft.cli import main
from weft.compiler import compile_graph
from weft.frontends.tflite import graph_from_tflite_bytes
from weft.observation.timeline import Timeline
from weft.program import Program
from weft.session import Session
from weft_hw.config import PRESETS
from weft_hw.errors import WeftError
from weft_hw.instructions import Load, Queue
from weft_sim.cycle_model import estimate_run
from weft_sim.device import RunResult

pytestmark = pytest.mark.tflite

NETWORKS = ("pretrainedResnet_quant", "vww_96_int8", "kws_ref_model", "ad01_int8")

WORST_NETWORK, WORST_LAYER = 0.03, 0.10
"""Relative errors that estimates promise to stay below: of a network, and of a longer layer."""

LONG_LAYER = 1000
"""Cycles from which a layer's estimate is promised, at the usual latency. At other latencies some
work of VECTOR may meet MATRIX in a bank that it just misses in the estimate: it is the next layer
then that takes the cycles."""

RANDOM_NETWORKS = 20
WORST_RANDOM = 0.10
"""Of networks of a few thousand cycles, most of which no engine works."""


def simulated(program: Program, inputs: object, latency: int) -> RunResult:
    with Session(program, engine="rtl", latency=latency) as session:
        session.run(inputs)
        assert session.last_result is not None
        return session.last_result


def estimated(program: Program, latency: int) -> RunResult:
    instructions = [instruction for _, instruction in program.decoded]
    return estimate_run(program.config, instructions, latency=latency)


@pytest.mark.parametrize("config", ["base16", "flex16", "edge8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, config: str, models: Path, rng: np.random.Generator) -> None:
    program = weft.compile(models / f"{name}.tflite", config=config)
    sample = rng.integers(-128, 128, program.inputs[0].shape).astype(np.int8)
    for latency in (100, 20):  # last the one for which layers are promised, too
        rtl, model = simulated(program, sample, latency), estimated(program, latency)
        assert rtl.cycles is not None
        assert model.cycles is not None
        true = Timeline(program, rtl).layer_cycles.sum(axis=1)
        guessed = Timeline(program, model).layer_cycles.sum(axis=1)
        long = true > LONG_LAYER
        layers = np.abs(guessed[long] / true[long] - 1)
        network = model.cycles / rtl.cycles - 1
        print(
            f"{name} {config} latency {latency}: {rtl.cycles:,} cycles, estimated "
            f"{model.cycles:,} ({network:+.2%}), worst of {long.sum()} layers {layers.max():.2%}"
        )
        assert abs(network) <= WORST_NETWORK
    assert layers.max() <= WORST_LAYER


def test_a_wide_bus(rng: np.random.Generator) -> None:
    """Beats that hold two words of the program, and (other tests) one, and half of one."""
    writer, outputs = random_network(rng)
    graph = graph_from_tflite_bytes(writer.model(*outputs), name="random")
    inputs = tuple(record.values for record in writer.inputs)
    config = dataclasses.replace(PRESETS["tiny"], name="wide-bus", bus_width=256)
    program = compile_graph(graph, config)
    rtl = simulated(program, inputs if len(inputs) > 1 else inputs[0], 20)
    model = estimated(program, 20)
    assert model.cycles == pytest.approx(rtl.cycles, rel=WORST_RANDOM)


def test_a_program_that_never_ends() -> None:
    waits = [Load(counts=(1, 1, 1), run_bytes=16, extent=1, wait=1)]
    with pytest.raises(WeftError, match="0 of 1 instructions retire"):
        estimate_run(PRESETS["tiny"], waits)


def test_random_networks(rng: np.random.Generator) -> None:
    """Small ones, in tiles drawn at random too: queues, semaphores and short instructions."""
    errors = []
    for case in range(RANDOM_NETWORKS):
        writer, outputs = random_network(rng)
        graph = graph_from_tflite_bytes(writer.model(*outputs), name=f"random{case}")
        inputs = tuple(record.values for record in writer.inputs)
        config = PRESETS[("base16", "edge8")[case % 2]]
        program = compile_graph(graph, config, force_tiles=case if case % 4 > 1 else None)
        rtl = simulated(program, inputs if len(inputs) > 1 else inputs[0], 20)
        model = estimated(program, 20)
        assert rtl.cycles is not None
        assert model.cycles is not None
        errors.append(model.cycles / rtl.cycles - 1)
        for queue in Queue:  # each instruction starts and retires, in order
            assert rtl.events is not None
            assert model.events is not None
            true, guessed = rtl.events[queue], model.events[queue]
            assert len(guessed.starts) == len(guessed.retires) == len(true.starts)
            assert (np.diff(guessed.starts) >= 0).all()
            assert (guessed.retires > guessed.starts).all()
    print(" ".join(f"{error:+.1%}" for error in errors))
    assert np.abs(errors).max() <= WORST_RANDOM


def test_estimate_command(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, outputs = random_network(rng)
    model = tmp_path / "network.tflite"
    model.write_bytes(writer.model(*outputs))
    page, figures = tmp_path / "report.html", tmp_path / "report.json"
    command = ["estimate", str(model), "--config", "tiny", "--latency", "50", "--json"]
    assert main([*command, "--report", str(page), "--report", str(figures)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(figures.read_text())
    assert report["engine"] == "cycle model"
    assert report["cycles"] >= sum(layer["cycles"] for layer in report["layers"]) > 0
    assert "cycle model" in page.read_text()
    program = weft.compile(model, config="tiny")
    assert report["cycles"] == estimated(program, 50).cycles
    assert main(["estimate", str(tmp_path / "missing.tflite")]) == 1
    assert "there is no such model file" in capsys.readouterr().err
