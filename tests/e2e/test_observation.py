"""Traces and reports of the RTL agree with its counters, and with each other."""

import json
from typing import Any

import numpy as np
import pytest

from weft.benchmarks.networks import residual_network
from weft.cli import main
from weft.compiler import compile_graph
from weft.program import Program
from weft_hw import PRESETS
from weft_hw.instructions import WORD_BYTES, Queue
from weft_sim.device import BusEventKind
from weft_sim.rtl import RtlDevice

pytestmark = pytest.mark.rtl

SEMAPHORES = range(16)


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_graph(residual_network(6, (4,)), PRESETS["tiny"])


@pytest.fixture(scope="module")
def seen(program: Program, tmp_path_factory: pytest.TempPathFactory, seed: int) -> dict[str, Any]:
    """The files of one run by the command line, read back."""
    folder = tmp_path_factory.mktemp("seen")
    program.save(folder / "small.weft")
    image = np.random.default_rng(seed).integers(-128, 128, program.inputs[0].shape)
    np.save(folder / "x.npy", image.astype(np.int8))
    names = {"json": folder / "r.json", "html": folder / "r.html", "trace": folder / "t.json"}
    arguments = ["run", str(folder / "small.weft"), "--input", str(folder / "x.npy")]
    for option, name in (("--report", "json"), ("--report", "html"), ("--trace", "trace")):
        arguments += [option, str(names[name])]
    assert main(arguments) == 0
    return {
        "report": json.loads(names["json"].read_text()),
        "page": names["html"].read_text(),
        "trace": json.loads(names["trace"].read_text()),
    }


def slices(seen: dict[str, Any], category: str) -> list[dict[str, Any]]:
    events = seen["trace"]["traceEvents"]
    return [event for event in events if event["ph"] == "X" and event["cat"] == category]


def test_slices_add_up_to_the_counters(seen, program: Program) -> None:
    counters = seen["report"]["counters"]
    by_offset = dict(program.decoded)
    for queue in Queue:
        found = slices(seen, queue.name.lower())
        assert sum(event["dur"] for event in found) == counters[f"{queue.name}_BUSY"]
        assert len(found) == counters[f"{queue.name}_RETIRED"]
        ends = [0]
        for event in found:  # on a track of their own: in order, without overlap
            assert event["ts"] >= ends[-1]
            ends.append(event["ts"] + event["dur"])
            instruction = by_offset[int(event["args"]["offset"], 16)]
            assert instruction.queue is queue
            assert event["args"]["instruction"] == str(instruction)
            assert event["args"]["taken"] <= event["ts"]
        assert ends[-1] < seen["report"]["cycles"]
    sources = {event["args"]["source"] for event in slices(seen, "matrix")}
    assert sources <= {layer.source for layer in program.layers}


def test_layers_of_trace_and_report_agree(seen) -> None:
    report = seen["report"]
    cycles: dict[str, int] = {}
    for event in slices(seen, "layer"):
        cycles[event["name"]] = cycles.get(event["name"], 0) + event["dur"]
    for layer in report["layers"]:
        assert layer["cycles"] == cycles.get(layer["name"], 0)
        assert sum(layer["cycles_by"].values()) == layer["cycles"]
    assert sum(cycles.values()) == report["cycles"] == seen["trace"]["otherData"]["cycles"]
    matrix = sum(layer["cycles_by"]["matrix"] for layer in report["layers"])
    assert matrix == report["counters"]["MATRIX_BUSY"]


def test_semaphores_and_queues_rise_and_fall_to_zero(seen, program: Program) -> None:
    levels: dict[str, list[int]] = {}
    for event in seen["trace"]["traceEvents"]:
        if event["ph"] == "C":
            levels.setdefault(event["name"], []).append(event["args"]["value"])
    used = [n for n in SEMAPHORES if any(each.signal >> n & 1 for _, each in program.decoded)]
    assert [name for name in levels if name.startswith("semaphore")] == [
        f"semaphore {n}" for n in used
    ]
    queued = [name for name in levels if name.endswith("fetched, not started")]
    assert len(queued) == len(Queue)
    for name in [*queued, *(f"semaphore {n}" for n in used)]:
        assert min(levels[name]) == 0
        assert max(levels[name]) > 0
        assert levels[name][-1] == 0
    arrows = [event for event in seen["trace"]["traceEvents"] if event["ph"] in "sf"]
    waits = sum(each.wait.bit_count() for _, each in program.decoded)
    assert len(arrows) == 2 * waits
    ends = {event["id"]: event["ts"] for event in arrows if event["ph"] == "f"}
    assert all(event["ts"] < ends[event["id"]] for event in arrows if event["ph"] == "s")


def test_bus_slices_are_the_beats_that_the_machine_counted(seen) -> None:
    counters = seen["report"]["counters"]
    beats: dict[int, int] = {}
    for event in slices(seen, "bus"):
        assert event["args"]["beats"] == event["dur"]
        beats[event["tid"]] = beats.get(event["tid"], 0) + event["dur"]
    assert beats == {
        1: counters["READ_BEATS"],
        2: counters["FETCH_BEATS"],
        3: counters["WRITE_BEATS"],
    }


def test_the_page_shows_the_reports_numbers(seen) -> None:
    import xml.etree.ElementTree as ElementTree

    report = seen["report"]
    root = ElementTree.fromstring(seen["page"].removeprefix("<!doctype html>"))
    assert "://" not in seen["page"]
    figures = [
        "".join(each.itertext()) for each in root.iter("div") if each.get("class") == "figure"
    ]
    assert f"{report['cycles']:,}cycles" in figures
    assert f"{100 * report['utilization']:.1f} %of the array's peak" in figures
    loaded = sum(layer["loaded_bytes"] for layer in report["layers"])
    assert f"{loaded:,}bytes loaded" in figures
    table = next(root.iter("table"))
    rows = [["".join(cell.itertext()).strip() for cell in row] for row in table.iter("tr")][1:]
    assert len(rows) == len(report["layers"])
    for number, (row, layer) in enumerate(zip(rows, report["layers"], strict=True)):
        assert row[0] == str(number)
        assert row[1] == layer["name"] + layer["source"]
        assert row[2] == layer["op"]
        assert row[3] == f"{layer['cycles']:,}"
        assert row[5] == (layer["bound"] or "")
        assert row[6] == f"{layer['macs']:,}"
        assert row[7] == (f"{100 * layer['utilization']:.1f} %" if layer["macs"] else "")
        assert row[9:] == [f"{layer['loaded_bytes']:,}", f"{layer['stored_bytes']:,}"]
    for queue in Queue:
        rects = [
            each for each in root.iter("rect") if queue.name in (each.get("class") or "").split()
        ]
        widths = sum(int(each.get("width") or 0) for each in rects)
        assert widths == report["counters"][f"{queue.name}_BUSY"]


def test_traffic_fits_the_beats(seen, program: Program) -> None:
    report, width = seen["report"], program.config.bus_bytes
    for direction, counter in (("loaded", "READ_BEATS"), ("stored", "WRITE_BEATS")):
        moved = sum(layer[f"{direction}_bytes"] for layer in report["layers"])
        beats = report["counters"][counter]
        assert 0 < moved <= beats * width
        assert moved > beats * width / 2  # whole beats: more only at the ends of runs


def test_the_bus_is_recorded_only_on_request(program: Program) -> None:
    with RtlDevice(PRESETS["tiny"], memory_bytes=program.memory_bytes) as device:
        device.write_memory(program.constants_address, program.constants)
        device.write_memory(program.instructions_address, program.instructions)
        assert device.run(program.instructions_address).bus is None
    with RtlDevice(
        PRESETS["tiny"],
        memory_bytes=program.memory_bytes,
        record_bus=True,
        stall_probability=0.3,
        seed=5,
    ) as device:
        device.write_memory(program.constants_address, program.constants)
        device.write_memory(program.instructions_address, program.instructions)
        for _ in range(2):  # each run anew
            bus = device.run(program.instructions_address).bus
            statistics = device.bus_statistics
            assert bus is not None
            counts = {kind: int((bus["kind"] == kind).sum()) for kind in BusEventKind}
            assert counts == {
                BusEventKind.READ_BURST: statistics.read_bursts,
                BusEventKind.READ_BEAT: statistics.read_beats,
                BusEventKind.WRITE_BURST: statistics.write_bursts,
                BusEventKind.WRITE_BEAT: statistics.write_beats,
                BusEventKind.WRITE_RESPONSE: statistics.write_bursts,
            }
            assert (np.diff(bus["cycle"].astype(np.int64)) >= 0).all()
            assert bus["cycle"].max() < device.cycles_outside
            reads = bus[bus["kind"] == BusEventKind.READ_BURST]
            assert reads["beats"].sum() == statistics.read_beats


def test_waits_are_those_that_the_machine_counted(seen, program: Program) -> None:
    """But for the cycles in which dispatch and the queue collect an instruction's words."""
    counters = seen["report"]["counters"]
    for queue in Queue:
        waits = [event for event in slices(seen, "wait") if event["tid"] == queue + 1]
        collecting = sum(
            each.size // WORD_BYTES + 4 for _, each in program.decoded if each.queue is queue
        )
        waited = sum(event["dur"] for event in waits)
        counted = counters[f"{queue.name}_WAIT"]
        assert counted <= waited <= counted + collecting
        assert (counted > 0) == (waited > 0)
