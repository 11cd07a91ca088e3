"""The first difference of two engines, on machines and models that are broken on purpose."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mutation.__main__ import TREE, apply
from mutation.faults import FAULTS
from network_reference import GraphBuilder, evaluate, random_inputs
from weft.cli import main
from weft.compiler import compile_graph
from weft.diverge import compare_machine, compare_reference, reference_tensors
from weft.errors import InputError
from weft.ir import Graph
from weft.program import Program
from weft_hw.config import PRESETS
from weft_hw.instructions import Load, Matrix, Vector, decode_stream
from weft_sim.cache import cached, content_key, source_hash
from weft_sim.functional.scaling import Scaling
from weft_sim.rtl import ErrorRange, RtlDevice

TINY = PRESETS["tiny"]
PADDED = ((1, 1), (1, 1))


def network() -> Graph:
    """Two convolutions, of which only the second one has padding, a sum and a dense layer."""
    build = GraphBuilder(np.random.default_rng(5))
    source = build.tensor((6, 5, 3))
    first = build.conv(source, 4, (2, 2))
    second = build.conv(first, 4, (3, 3), (1, 1), PADDED)
    total = build.add(second, first)
    return build.graph([source], [build.linear(build.flatten(total), 6)], "small")


def case(seed: int = 0, tiles: int | None = None) -> tuple[Graph, Program, dict[str, np.ndarray]]:
    graph = network()
    inputs = random_inputs(graph, np.random.default_rng(seed))
    return graph, compile_graph(graph, TINY, force_tiles=tiles), inputs


def tensors_of(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every result of the independent evaluation, by name."""
    names = tuple(operation.output for operation in graph.operations)
    return evaluate(dataclasses.replace(graph, outputs=names), inputs)


def first_of(program: Program, kind: type, matches=lambda instruction: True) -> int:
    stream = decode_stream(program.instructions)
    return next(
        index
        for index, (_, instruction) in enumerate(stream)
        if isinstance(instruction, kind) and matches(instruction)
    )


# Engines that agree ------------------------------------------------------------------------------


@pytest.mark.rtl
@pytest.mark.parametrize("tiles", [None, 3])
def test_no_difference_says_how_much_was_compared(tiles: int | None) -> None:
    _, program, inputs = case(tiles=tiles)
    found = compare_machine(program, inputs, machine=partial(RtlDevice, stall_probability=0.2))
    assert found.difference is None
    assert found.race == ""
    assert found.instructions == len(decode_stream(program.instructions)) - 1
    # At the least, every tensor is written once, and the constants are loaded.
    assert found.elements > sum(each.size for each in tensors_of(*case()[::2]).values())
    assert f"no difference between functional and rtl: {found.instructions:,}" in found.text()


@pytest.mark.parametrize("tiles", [None, 1, 2, 3, 4, 5])
def test_reference_tensors_agree_wherever_they_lie(tiles: int | None) -> None:
    graph, program, inputs = case(tiles=tiles)
    expected = tensors_of(graph, inputs)
    found = compare_reference(program, inputs, expected)
    assert found.difference is None
    computed = {region.name for region in program.regions} & set(expected)
    assert set(found.skipped) == set(expected) - computed
    # A tensor with two homes is compared in both.
    homes = sum(expected[each.name].size for each in program.regions if each.name in expected)
    assert found.elements == homes > 0


# The machine, broken -----------------------------------------------------------------------------


def mutated_verilog(breaks: str) -> str:
    """The tiny machine with one of the faults of tests/mutation."""
    fault = next(fault for fault in FAULTS if fault.breaks == breaks)
    key = content_key(source_hash("weft_hw"), repr(fault), f"{TINY.content_hash:016x}")

    def make(directory: Path) -> None:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TREE / "hw", directory / "hw", ignore=skipped)
        apply(fault, directory)
        code = (
            "import sys\n"
            "from weft_hw.config import PRESETS\n"
            "from weft_hw.gateware.generate import verilog\n"
            "sys.stdout.write(verilog(PRESETS['tiny']))\n"
        )
        made = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(directory / "hw"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        shutil.rmtree(directory / "hw")
        (directory / "weft_top.v").write_text(made.stdout)

    return (cached("verilog", key, make) / "weft_top.v").read_text()


def raw_sum(graph: Graph, tensors: dict[str, np.ndarray], number: int, y: int, x: int, c: int):
    """A convolution's sum without bias, padding left out."""
    operation = graph.operations[number]
    source = graph.tensor(operation.inputs[0])
    values = tensors[source.name].astype(np.int64) - source.zero_point
    padded = np.pad(values, ((0, 0), *operation.padding))
    _, height, width, _ = operation.weights.shape
    window = padded[:, y : y + height, x : x + width]
    return int((window.transpose(1, 2, 0) * operation.weights[c].astype(np.int64)).sum())


@pytest.mark.rtl
def test_a_fault_of_the_gateware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Padding that is not zero: the first MATRIX that has padding, on an output at the border."""
    graph, program, inputs = case()
    verilog = mutated_verilog("padding is not zero")
    found = compare_machine(program, inputs, machine=partial(RtlDevice, verilog=verilog))
    difference = found.difference
    assert difference is not None
    expected = first_of(
        program, Matrix, lambda each: each.y_origin < 0 or each.x_origin < 0 and each.bounds
    )
    assert difference.index == expected
    offset, instruction = decode_stream(program.instructions)[expected]
    assert (difference.offset, difference.instruction) == (offset, str(instruction))
    assert difference.layer == graph.operations[1].name
    assert difference.source == graph.operations[1].source
    assert not difference.stray
    assert not difference.only_concurrent
    element = difference.element
    assert element is not None
    assert element.tensor == graph.operations[1].output
    assert element.memory.startswith("accumulator memory, row ")
    y, x, channel = element.coordinates
    height, width, _ = graph.tensor(element.tensor).shape
    assert y in (0, height - 1) or x in (0, width - 1)
    tensors = tensors_of(graph, inputs) | inputs
    assert difference.values["functional"] == raw_sum(graph, tensors, 1, y, x, channel)
    assert difference.values["rtl"] != difference.values["functional"]
    assert difference.start <= difference.cycle <= difference.retire
    # The same from the command line.
    program.save(tmp_path / "small.weft")
    np.save(tmp_path / "x.npy", inputs[graph.inputs[0]])
    (tmp_path / "weft_top.v").write_text(verilog)
    words = ["diverge", str(tmp_path / "small.weft"), "--input", str(tmp_path / "x.npy")]
    words += ["--verilog", str(tmp_path / "weft_top.v")]
    assert main([*words, "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["difference"]["index"] == expected
    assert printed["difference"]["element"]["coordinates"] == [y, x, channel]
    assert printed["difference"]["cycle"] == difference.cycle
    assert main(words) == 3
    text = " ".join(capsys.readouterr().out.split())
    assert f"instruction {expected} at byte {offset:#x}" in text
    assert f"{element.tensor} [y {y}, x {x}, channel {channel}]" in text


class WrongMemory(RtlDevice):
    """A machine whose DRAM flips a bit of one byte whenever the byte is written."""

    flipped: int

    def write_memory(self, address: int, data: np.ndarray | bytes) -> None:
        super().write_memory(address, data)
        if address <= self.flipped < address + len(data):
            self._memory[self.flipped] ^= 0x10


def wrong_memory(address: int) -> type[RtlDevice]:
    return type("WrongMemory", (WrongMemory,), {"flipped": address})


@pytest.mark.rtl
def test_a_wrong_constant_and_its_waveform(tmp_path: Path) -> None:
    graph, program, inputs = case()
    load = first_of(
        program,
        Load,
        lambda each: each.memory == 1 and each.dram_address > program.constants_address,
    )
    instruction = decode_stream(program.instructions)[load][1]
    address = instruction.dram_address + 5
    path = tmp_path / "wave.vcd"
    found = compare_machine(
        program, inputs, machine=wrong_memory(address), waveform=path, window=20
    )
    difference = found.difference
    assert difference is not None
    assert difference.index == load
    right = program.constants[address - program.constants_address]
    codes = np.array([right, right ^ 0x10], np.uint8).view(np.int8).tolist()
    assert difference.values == dict(zip(("functional", "rtl"), codes, strict=True))
    assert difference.element is not None
    layer = program.layers[program.symbols[load].layer]
    assert difference.element.tensor == f"weights of {layer.name}"
    assert difference.elements == 1
    assert difference.start < difference.cycle <= difference.retire
    assert found.window == (difference.cycle - 20, difference.cycle + 20)
    text = path.read_text()
    clock = re.search(r"\$var wire +1 (\S+) clk \$end", text)
    assert clock is not None
    assert text.count(f"\n1{clock[1]}\n") == 41
    assert f"{path}, cycles {difference.cycle - 20} to {difference.cycle + 20}" in found.text()


@pytest.mark.rtl
def test_a_wrong_parameter() -> None:
    _, program, inputs = case()
    load = first_of(program, Load, lambda each: each.memory == 2)
    address = decode_stream(program.instructions)[load][1].dram_address + 4 * 2 + 1
    found = compare_machine(program, inputs, machine=wrong_memory(address)).difference
    assert found is not None
    assert found.index == load
    assert found.element is not None
    assert found.element.memory == "parameter memory, row 0, bias of lane 2"
    first = address - 1 - program.constants_address
    bias = int.from_bytes(program.constants[first : first + 4], "little", signed=True)
    assert found.values["functional"] == bias
    assert abs(found.values["rtl"] - bias) == 0x1000


@pytest.mark.rtl
def test_a_machine_that_stops() -> None:
    _, program, inputs = case()
    load = first_of(program, Load, lambda each: each.memory == 1)
    address = decode_stream(program.instructions)[load][1].dram_address
    broken = partial(RtlDevice, error_ranges=[ErrorRange(address, address + 1)])
    found = compare_machine(program, inputs, machine=broken)
    assert found.difference is not None
    assert found.difference.index == load
    assert found.difference.element is None
    assert "READ_ERROR" in found.difference.stopped
    assert "READ_ERROR" in found.text()


# The functional engine, broken -------------------------------------------------------------------


@pytest.mark.rtl
def test_a_wrong_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth requantization rounds down instead of to the nearest."""
    graph, program, inputs = case()
    calls = []
    apply_rightly = Scaling.apply

    def apply_wrongly(self, value, *rest):
        calls.append(value.shape)
        if len(calls) != 4:
            return apply_rightly(self, value, *rest)
        return value.astype(np.int64) * self._multiplier >> self._shift

    monkeypatch.setattr(Scaling, "apply", apply_wrongly)
    found = compare_machine(program, inputs).difference
    scaled = [
        index
        for index, (_, each) in enumerate(decode_stream(program.instructions))
        if isinstance(each, Vector) and each.scale_source
    ]
    assert found is not None
    assert found.index == scaled[3]
    assert found.element is not None
    y, x, channel = found.element.coordinates
    right = tensors_of(graph, inputs)
    if found.element.detail == "":  # a result of its layer, not a step towards it
        assert found.values["rtl"] == right[found.element.tensor][channel, y, x]
        assert found.values["functional"] == found.values["rtl"] - 1


# The program, broken -----------------------------------------------------------------------------


@pytest.mark.rtl
def test_a_missing_wait_shows_only_in_the_whole_run() -> None:
    _, program, inputs = case()
    index = first_of(program, Matrix)
    offset, instruction = decode_stream(program.instructions)[index]
    assert instruction.wait
    hasty = dataclasses.replace(instruction, wait=0).encode()
    code = bytearray(program.instructions)
    code[offset : offset + len(hasty)] = hasty
    program = dataclasses.replace(program, instructions=bytes(code))
    found = compare_machine(program, inputs, machine=partial(RtlDevice, latency=200))
    assert found.difference is not None
    assert found.difference.only_concurrent
    assert found.difference.index == index
    assert "no chain of semaphores orders" in found.race
    assert "race check: no chain of semaphores orders" in found.text()
    assert "one instruction at a time it is right" in found.text()


@pytest.mark.parametrize("tiles", [None, 2, 3])
def test_a_wrong_weight_against_the_reference(tiles: int | None) -> None:
    """The compiled network has another weight than the model."""
    graph, _, inputs = case()
    layer = graph.operations[1]
    weights = layer.weights.copy()
    weights[2, 1, 1, 3] ^= 0x40
    wrong = list(graph.operations)
    wrong[1] = dataclasses.replace(layer, weights=weights)
    broken = dataclasses.replace(graph, operations=tuple(wrong))
    program = compile_graph(broken, TINY, force_tiles=tiles)
    right, made = tensors_of(graph, inputs), tensors_of(broken, inputs)
    found = compare_reference(program, inputs, right).difference
    assert found is not None
    assert found.element is not None
    assert (found.layer, found.element.tensor) == (layer.name, layer.output)
    y, x, channel = found.element.coordinates
    assert channel == 2
    assert found.values == {
        "reference": right[layer.output][channel, y, x],
        "functional": made[layer.output][channel, y, x],
    }
    # No instruction before the one that is named computes a wrong element: tiles come in order of
    # rows, so the first wrong row belongs to the first wrong tile.
    rows = np.flatnonzero((right[layer.output] != made[layer.output]).any(axis=(0, 2)))
    columns = np.flatnonzero((right[layer.output] != made[layer.output])[:, rows[0]].any(axis=0))
    assert isinstance(decode_stream(program.instructions)[found.index][1], Vector)
    assert (y, x) == (rows[0], columns[0])


# What a user gives -------------------------------------------------------------------------------


def test_inputs_and_references_that_do_not_fit(tmp_path: Path) -> None:
    graph, program, inputs = case()
    name = graph.inputs[0]
    right = tensors_of(graph, inputs)
    with pytest.raises(InputError, match="a batch of 2; one sample"):
        compare_machine(program, np.stack([inputs[name]] * 2))
    with pytest.raises(InputError, match=f"the inputs are {name}; given: other"):
        compare_machine(program, {"other": inputs[name]})
    with pytest.raises(InputError, match=r"wave\.png"):
        compare_machine(program, inputs, waveform=Path("wave.png"))
    with pytest.raises(InputError, match="0 cycles or more, not -1"):
        compare_machine(program, inputs, window=-1)
    with pytest.raises(InputError, match="no tensor of the reference .* has a place"):
        compare_reference(program, inputs, {"nobody": inputs[name]})
    output = graph.outputs[0]
    with pytest.raises(InputError, match="must hold 6 int8 codes"):
        compare_reference(program, inputs, {output: right[output][:-1]})
    with pytest.raises(InputError, match="not float32"):
        compare_reference(program, inputs, {output: right[output].astype(np.float32)})
    program.save(tmp_path / "small.weft")
    with pytest.raises(InputError, match="only a .pt2 or a .tflite file has reference tensors"):
        reference_tensors(tmp_path / "small.weft", program, inputs)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, program, inputs = case()
    model, sample = str(tmp_path / "small.weft"), str(tmp_path / "x.npy")
    program.save(model)
    np.save(sample, inputs[graph.inputs[0]])
    tensors = tmp_path / "tensors.npz"
    right = tensors_of(graph, inputs)
    np.savez(tensors, **right)
    words = ["diverge", model, "--input", sample]
    reference = [*words, "--against", "reference", "--reference"]
    assert main([*reference, str(tensors)]) == 0
    assert "no difference between reference and functional" in capsys.readouterr().out
    output = graph.outputs[0]
    np.savez(tensors, **{output: right[output] ^ 1})
    assert main([*reference, str(tensors), "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["difference"]["element"]["tensor"] == output
    for wrong, message in (
        ([*words, "--against", "board"], "must be one of rtl, reference"),
        ([*words, "--reference", str(tensors)], "needs --against reference"),
        ([*reference, sample], "not a readable .npz file"),
        ([*reference, str(tmp_path / "none.npz")], "there is no such file"),
        ([*words, "--waveform", "wave.png"], "must end in .vcd or .fst"),
        ([*words, "--verilog", str(tmp_path / "none.v")], "cannot be read"),
    ):
        assert main(wrong) == 1
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.torch
def test_a_pytorch_model_against_its_integer_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from weft.frontends.pt2_file import save_pt2
    from weft.quantize import quantize

    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 2)
    )
    data = [(torch.randn(2, 3, 5, 5),) for _ in range(3)]
    save_pt2(quantize(model.eval(), data[0], data), tmp_path / "m.pt2", data[0])
    np.save(tmp_path / "x.npy", torch.randn(1, 3, 5, 5).numpy())
    words = ["diverge", str(tmp_path / "m.pt2"), "--input", str(tmp_path / "x.npy")]
    words += ["--config", "tiny", "--against", "reference", "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    # The input (25 pixels of 3) on chip, both results there, and the last one in DRAM as well.
    assert printed["elements"] == 75 + 100 + 32 + 32
    assert printed["difference"] is None
