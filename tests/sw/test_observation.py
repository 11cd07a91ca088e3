"""What is shown of programs and runs: disassembly, traffic, timelines, pages; without the RTL."""

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from network_reference import random_chain, random_inputs
from weft.benchmarks.networks import residual_network
from weft.cli import main
from weft.compiler import compile_graph
from weft.errors import InputError, ProgramFormatError
from weft.observation.disassembly import assemble, disassembly
from weft.observation.occupancy import accesses, occupancy
from weft.observation.page import report_page
from weft.observation.timeline import Slice, Timeline
from weft.observation.traffic import moved_bytes
from weft.program import Program
from weft.session import Session
from weft_hw import PRESETS
from weft_hw.instructions import (
    INSTRUCTIONS,
    Instruction,
    Load,
    Matrix,
    Memory,
    Queue,
    Vector,
    WeightBits,
)
from weft_sim.device import QueueEvents, RunResult


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_graph(residual_network(6, (4,)), PRESETS["tiny"])


def random_instruction(rng: np.random.Generator) -> Instruction:
    """Any encodable values: the extremes of a field half of the time."""
    kind = list(INSTRUCTIONS.values())[rng.integers(len(INSTRUCTIONS))]
    values: dict[str, object] = {}
    for field in kind.bit_fields():
        low, high = field.limits

        def draw(low: int = low, high: int = high) -> int:
            return int([low, high, *rng.integers(low, high, 2, endpoint=True)][rng.integers(4)])

        if field.kind is not None:
            named = [each for each in field.kind if each <= high]
            values[field.name] = named[rng.integers(len(named))]
        elif field.length:
            values[field.name] = tuple(draw() for _ in range(field.length))
        else:
            values[field.name] = draw()
    return kind(**values)


def test_any_instruction_is_read_back_from_its_text(rng) -> None:
    for _ in range(300):
        instruction = random_instruction(rng)
        assert assemble(f"   1f0  {instruction}  ; a comment") == instruction.encode()


@pytest.mark.parametrize("preset", ["tiny", "edge8", "base16"])
def test_a_program_is_read_back_from_its_disassembly(preset: str, rng) -> None:
    graph = random_chain(rng)
    program = compile_graph(graph, PRESETS[preset])
    text = disassembly(program)
    assert assemble(text) == program.instructions
    for layer in program.layers:
        assert f": {layer.name}\n" in text
        assert layer.source in text
    for port in (*program.inputs, *program.outputs):
        assert f" {port.name}: int8" in text


def test_disassembly_names_tensors_weights_and_padding(program: Program) -> None:
    lines = [line.strip() for line in disassembly(program).splitlines()]
    told = [(line, lines[number + 1]) for number, line in enumerate(lines) if " -> " in line]
    symbols = [program.layers[symbol.layer].name for symbol in program.symbols]
    assert len(told) == len(symbols)
    (load,) = [instruction for comment, instruction in told if "image -> image" in comment]
    assert " LOAD " in load
    weights = multiplies = 0
    for layer, (comment, instruction) in zip(symbols, told, strict=True):
        if "memory=WEIGHT" in instruction:
            weights += 1
            assert re.match(rf"; load weights, tile \d+: {layer}\.weights.* -> weight 0x", comment)
        if " MATRIX " in instruction and layer != "dense":
            multiplies += 1
            source = {"stem": "image", "block0.first": "stem.output"}.get(
                layer, "block0.first.output"
            )
            above = re.search(r"y_origin=-", instruction) is not None
            assert f": {source}{' (padded)' if above else '+0x'}" in comment
            assert re.search(r" x weight 0x\w+ -> accumulator row 0x\w+$", comment)
    assert weights == 4
    assert multiplies >= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("END\n\nJUMP there=1", "line 3: `JUMP` is no instruction; there are END, LOAD"),
        ("LOAD speed=3", "line 1: `speed=3` sets no field of LOAD"),
        ("LOAD run_bytes", "line 1: `run_bytes` sets no field of LOAD"),
        ("LOAD run_bytes=99999999", "line 1: .*run_bytes"),
        ("LOAD run_bytes=many", "line 1: .*'many'"),
        ("LOAD memory=TAPE", "line 1: `TAPE` is no value of memory"),
    ],
)
def test_unreadable_assembly_is_named(text: str, message: str) -> None:
    with pytest.raises(ProgramFormatError, match=message):
        assemble(text)


def test_moved_bytes_count_the_runs_that_exist(rng) -> None:
    for _ in range(200):
        counts = tuple(int(n) for n in rng.integers(1, 6, 3))
        steps = tuple(int(n) for n in rng.integers(-3, 4, 3))
        origin, extent = int(rng.integers(-6, 7)), int(rng.integers(0, 9))
        load = Load(
            counts=counts,
            steps=steps,
            origin=origin,
            extent=extent,
            run_bytes=int(rng.integers(1, 99)),
        )
        exist = 0
        for index in itertools.product(*map(range, counts)):
            coordinate = origin + sum(i * step for i, step in zip(index, steps, strict=True))
            exist += 0 <= coordinate < extent
        assert moved_bytes(load) == exist * load.run_bytes


def reached(base: int, counts, strides, size: int) -> set[int]:
    return {
        base + sum(i * stride for i, stride in zip(index, strides, strict=False)) + byte
        for index in itertools.product(*map(range, counts))
        for byte in range(size)
    }


def test_access_ranges_enclose_exactly_what_the_loops_reach(rng) -> None:
    config = PRESETS["flex16"]

    def draw(count: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high, count))

    for _ in range(12):
        counts, strides = draw(3, 1, 4), draw(3, -90, 90)
        load = Load(counts=counts, address=700, strides=strides, run_bytes=5, memory=Memory.WEIGHT)
        expected = {(Memory.WEIGHT, True): reached(700, counts, strides, 5)}
        check(load, config, expected)
        counts, left, top, sums = draw(7, 1, 3), *(draw(7, -90, 90) for _ in range(3))
        bits = [WeightBits.EIGHT, WeightBits.FOUR, WeightBits.TWO][rng.integers(3)]
        matrix = Matrix(
            counts=counts,
            weight_bits=bits,
            left_address=900,
            left_strides=left,
            top_address=800,
            top_strides=top,
            tile_stride=17,
            accumulator_address=40,
            accumulator_strides=sums,
        )
        row = config.rows * {WeightBits.EIGHT: 1, WeightBits.FOUR: 2, WeightBits.TWO: 4}[bits]
        weights = reached(800, (*counts[:4], config.rows), (*top[:4], 17), config.columns)
        expected = {
            (Memory.ACTIVATION, False): reached(900, counts, left, row),
            (Memory.WEIGHT, False): weights,
            (Memory.ACCUMULATOR, True): reached(40, counts, sums, 1),
        }
        check(matrix, config, expected)
        counts, a, target = draw(6, 1, 4), draw(6, -90, 90), draw(4, -90, 90)
        vector = Vector(counts=counts, a_address=300, a_strides=a, address=600, strides=target)
        expected = {
            (Memory.ACCUMULATOR, False): reached(300, counts, a, 1),
            (Memory.ACTIVATION, True): reached(600, counts[:4], target, config.columns),
        }
        check(vector, config, expected)


def check(instruction: Instruction, config, expected: dict[tuple[Memory, bool], set[int]]) -> None:
    found = list(accesses(instruction, config))
    assert len(found) == len(expected)
    for access in found:
        addresses = expected[access.memory, access.write]
        assert (access.low, access.high) == (min(addresses), max(addresses) + 1)


def test_sums_and_weights_last_until_they_are_used(program: Program) -> None:
    """One instruction after the other, each of 10 cycles."""
    retires: dict[Queue, list[int]] = {queue: [] for queue in Queue}
    for number, (_, instruction) in enumerate(program.decoded[:-1], 1):
        retires[instruction.queue].append(10 * number)
    events = tuple(QueueEvents(np.array(each) - 10, np.array(each)) for each in retires.values())
    timeline = Timeline(program, RunResult(10 * len(program.decoded), 0.1, events=events))
    pieces = occupancy(timeline)
    stem = [each for each in timeline.slices if each.layer == 0]
    multiplies = [each for each in stem if each.queue is Queue.MATRIX]
    weights = [each for each in pieces if each.memory == Memory.WEIGHT and each.layer == 0]
    assert weights
    assert max(each.end for each in weights) == multiplies[-1].retire
    sums = [each for each in pieces if each.memory == Memory.ACCUMULATOR and each.layer == 0]
    assert [each.start for each in sums] == [each.begin for each in multiplies]
    for each in sums:
        reader = next(
            other
            for other in stem
            if other.queue is Queue.VECTOR
            and other.instruction.a_address == each.low
            and other.begin > each.start
        )
        assert each.end == reader.retire
    for each in pieces:
        assert 0 <= each.start < each.end <= timeline.cycles


def test_a_read_uses_only_what_was_written_last() -> None:
    """Two loads overlap in weight bytes 50 to 100; tiles are read from 60 and then from 0."""
    config = PRESETS["tiny"]
    stream = [
        Load(memory=Memory.WEIGHT, run_bytes=100, extent=1),
        Load(memory=Memory.WEIGHT, address=50, run_bytes=100, extent=1),
        Matrix(top_address=60, tile_stride=4),
        Load(memory=Memory.WEIGHT, address=40, run_bytes=200, extent=1),
        Matrix(top_address=0, tile_stride=4),
        Matrix(top_address=90, tile_stride=4),
    ]
    slices = [
        Slice(each.queue, 0, each, 0, number, "", 10 * number, 10 * number, 10 * number + 10)
        for number, each in enumerate(stream)
    ]
    program = SimpleNamespace(config=config)
    pieces = occupancy(SimpleNamespace(slices=slices, program=program))  # type: ignore[arg-type]
    spans = [(each.low, each.start, each.end) for each in pieces if each.memory == Memory.WEIGHT]
    assert spans == [(0, 0, 50), (50, 10, 30), (40, 30, 60)]


def made_up_run(program: Program, rng: np.random.Generator) -> RunResult:
    """Times with gaps and overlaps, but in order within each queue."""
    number = dict.fromkeys(Queue, 0)
    for _, instruction in program.decoded[:-1]:
        number[instruction.queue] += 1
    events = []
    for queue in Queue:
        retires = np.cumsum(rng.integers(3, 40, number[queue]))
        starts = retires - rng.integers(1, 60, number[queue])
        events.append(QueueEvents(np.maximum.accumulate(np.maximum(starts, 0)), retires))
    return RunResult(int(max(each.retires[-1] for each in events)) + 7, 0.1, events=tuple(events))


def test_timeline_accounts_for_every_cycle_once(program: Program, rng) -> None:
    result = made_up_run(program, rng)
    timeline = Timeline(program, result)
    for queue in Queue:
        covered = np.zeros(result.cycles, int)
        for start, retire in zip(
            result.events[queue].starts, result.events[queue].retires, strict=True
        ):
            covered[start:retire] = 1
        slices = np.zeros(result.cycles, int)
        for each in timeline.of_queue(queue):
            slices[each.begin : each.retire] += 1
        np.testing.assert_array_equal(slices, covered)
    working = {
        queue: sum(each.retire - each.begin for each in timeline.of_queue(queue)) for queue in Queue
    }
    assert timeline.layer_cycles.sum() == result.cycles
    assert timeline.layer_cycles[:, 0].sum() == working[Queue.MATRIX]
    assert [each[1] for each in timeline.stretches[1:]] == [
        each[2] for each in timeline.stretches[:-1]
    ]
    assert sum(end - start for _, start, end in timeline.stretches) == result.cycles


def test_timeline_refuses_what_does_not_fit(program: Program, rng) -> None:
    result = made_up_run(program, rng)
    with pytest.raises(InputError, match="has no time"):
        Timeline(program, RunResult(None, 0.1))
    short = tuple(QueueEvents(each.starts[:-1], each.retires[:-1]) for each in result.events)
    with pytest.raises(InputError, match="not those of this program"):
        Timeline(program, RunResult(result.cycles, 0.1, events=short))
    long = tuple(
        QueueEvents(np.append(each.starts, 900), np.append(each.retires, 901))
        for each in result.events
    )
    with pytest.raises(InputError, match="not those of this program"):
        Timeline(program, RunResult(result.cycles, 0.1, events=long))


def well_formed(page: str) -> ElementTree.Element:
    """The page's elements; it must be XML as well, and refer to nothing outside itself."""
    assert page.startswith("<!doctype html>\n")
    root = ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))
    for element in root.iter():
        assert element.tag != "link"
        for name, value in element.attrib.items():
            assert name not in ("src", "href") or value.startswith("data:"), (name, value)
            assert "://" not in value
    assert "://" not in page
    assert "@import" not in page
    assert "url(" not in page
    return root


@pytest.mark.parametrize("engine_name", ["made-up", "functional"])
def test_a_page_is_well_formed_whatever_the_names(rng, engine_name: str) -> None:
    graph = random_chain(rng)
    program = compile_graph(graph, PRESETS["edge8"])
    hostile = tuple(
        type(layer)(**{**vars(layer), "name": f"<b>&{n}\"'", "source": "</script><!--"})
        for n, layer in enumerate(program.layers)
    )
    program = Program(**{**vars_of(program), "layers": hostile})
    with Session(program, engine="functional") as session:
        session.run(random_inputs(graph, rng))
        report = session.report
    result = None
    if engine_name == "made-up":
        result = made_up_run(program, rng)
    root = well_formed(report_page(program, {**report, "model": "a<b>.pt2"}, result))
    text = "".join(root.itertext())
    for layer in program.layers:
        assert layer.name in text
    assert ("Engines in time" in text) == (result is not None)


def vars_of(program: Program) -> dict[str, object]:
    return {name: getattr(program, name) for name in Program.__dataclass_fields__}


@pytest.fixture
def files(program: Program, tmp_path: Path) -> Path:
    program.save(tmp_path / "small.weft")
    np.save(tmp_path / "x.npy", np.zeros(program.inputs[0].shape, np.int8))
    (tmp_path / "folder.json").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--report", "r.txt"], "--report r.txt: the name must end in .json or .html"),
        (["--report", "missing/r.html"], "--report missing/r.html: there is no folder "),
        (["--report", "folder.json"], "--report folder.json: this is a folder"),
        (["--trace", "t.json"], "--trace shows the cycles of the rtl engine; functional has none"),
        (
            ["--engine", "rtl", "--trace", "t.svg"],
            "--trace t.svg: the name must end in .json or .fst or .vcd",
        ),
        (["--engine", "rtl", "--trace", "missing/t.json"], "there is no folder "),
        (
            ["--engine", "rtl", "--trace", "a.vcd", "--trace", "b.fst"],
            "--trace writes one waveform at a time",
        ),
    ],
)
def test_bad_paths_are_refused_before_the_run(
    files: Path, monkeypatch, capsys, options: list[str], text: str
) -> None:
    monkeypatch.chdir(files)
    engine = [] if "--engine" in options else ["--engine", "functional"]
    before = sorted(files.iterdir())
    assert main(["run", "small.weft", "--input", "x.npy", *engine, *options]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1
    assert sorted(files.iterdir()) == before


def test_both_reports_of_the_functional_engine(files: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(files)
    arguments = ["run", "small.weft", "--input", "x.npy", "--engine", "functional"]
    assert main([*arguments, "--report", "r.html", "--report", "r.json"]) == 0
    report = json.loads((files / "r.json").read_text())
    assert report["cycles"] is None
    text = "".join(well_formed((files / "r.html").read_text()).itertext())
    assert "The engine functional has no time" in text
    assert f"{report['macs']:,}" in text


def test_disasm_prints_writes_and_refuses(
    files: Path, program: Program, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(files)
    assert main(["disasm", "small.weft"]) == 0
    printed = capsys.readouterr().out
    assert printed == disassembly(program)
    assert main(["disasm", "small.weft", "-o", "small.s"]) == 0
    assert (files / "small.s").read_text() == printed
    capsys.readouterr()
    assert main(["disasm", "small.weft", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == printed
    for arguments, text in (
        (["nothing.weft"], "nothing.weft: there is no such model file"),
        (["x.npy"], "x.npy: neither a Program"),
        (["small.weft", "-o", "missing/small.s"], "there is no folder"),
        (["small.weft", "--config", "base16"], "not for base16"),
    ):
        assert main(["disasm", *arguments]) == 1
        error = capsys.readouterr().err
        assert text in re.sub(r"\s+", " ", error)
