"""The driver: inputs and their errors, outputs, faults, and what the report says."""

import dataclasses

import numpy as np
import pytest

import weft
from network_reference import GraphBuilder, evaluate
from weft.compiler import compile_graph
from weft.errors import InputError, ProgramFormatError, WeftError
from weft.ir import Graph
from weft.program import Program
from weft.report import Accounting
from weft.session import ProgramFault, Session
from weft_hw.config import PRESETS
from weft_hw.instructions import Queue
from weft_hw.registers import FaultCause
from weft_sim.device import DeviceFault, QueueEvents, RunResult, open_device


def network(seed: int = 5) -> Graph:
    build = GraphBuilder(np.random.default_rng(seed))
    source = build.tensor((6, 6, 3))
    middle = build.conv(source, 12, (3, 3))
    return build.graph([source], [build.linear(build.flatten(middle), 7)], "small")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return network()


@pytest.fixture(scope="module")
def program(graph: Graph) -> Program:
    return compile_graph(graph, PRESETS["edge8"])


@pytest.fixture
def session(program: Program):
    with Session(program, engine="functional") as session:
        yield session


def test_float_inputs_are_quantized_and_outputs_dequantized(session, graph, rng) -> None:
    port, out = session.program.inputs[0], graph.tensor(graph.outputs[0])
    values = (rng.normal(size=(3, 6, 6)) * 60 * port.scale).astype(np.float32)
    # Written out in Python: round() rounds halves to even, as PyTorch does.
    inverse = float(np.float32(1.0 / port.scale))
    codes = np.array(
        [
            min(
                max(round(float(np.float32(value * np.float32(inverse)))) + port.zero_point, -128),
                127,
            )
            for value in values.ravel()
        ],
        np.int8,
    ).reshape(values.shape)
    expected = evaluate(graph, {port.name: codes})[out.name]
    np.testing.assert_array_equal(session.run(values), expected)
    np.testing.assert_array_equal(session.run(codes), expected)
    real = session.run(values, dequantize=True)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(
        real, (expected.astype(np.float32) - out.zero_point) * np.float32(out.scale)
    )


def test_batch_axis_is_kept(session, rng) -> None:
    batch = rng.integers(-128, 128, (4, 3, 6, 6)).astype(np.int8)
    together = session.run(batch)
    assert together.shape == (4, 7)
    assert together.dtype == np.int8
    assert session.run(batch[0]).shape == (7,)
    assert session.run(batch[:1]).shape == (1, 7)
    np.testing.assert_array_equal(together, np.stack([session.run(one) for one in batch]))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            np.zeros((6, 6, 3), np.int8),
            "must be float32 or int8 of shape 3x6x6 or Nx3x6x6, not 6x6x3",
        ),
        (np.zeros((3, 6, 6), np.float64), "of shape 3x6x6 or Nx3x6x6, not float64"),
        (np.zeros((3, 6, 6), np.uint8), "not uint8"),
        (np.float32(3), "not a scalar"),
        (np.zeros((0, 3, 6, 6), np.int8), "is an empty batch"),
        (np.full((3, 6, 6), np.nan, np.float32), "holds NaN"),
        ("hello", "not <U5"),
        ({"other": np.zeros((3, 6, 6), np.int8)}, "the inputs are t0; given: other"),
    ],
)
def test_wrong_inputs_are_named(session, values, text: str) -> None:
    with pytest.raises(InputError) as caught:
        session.run(values)
    assert text in str(caught.value)
    assert "t0" in str(caught.value)


def test_several_inputs_and_outputs(rng) -> None:
    build = GraphBuilder(rng)
    first, second = build.tensor((4, 4, 5)), build.tensor((4, 4, 5))
    total = build.add(first, second)
    graph = build.graph([first, second], [total, build.rescale(total)], "two")
    a, b = rng.integers(-128, 128, (2, 5, 4, 4)).astype(np.int8)
    expected = evaluate(graph, {first.name: a, second.name: b})
    with Session(compile_graph(graph, PRESETS["tiny"]), engine="functional") as session:
        for inputs in ((a, b), [a, b], {second.name: b, first.name: a}):
            given = session.run(inputs)
            assert list(given) == list(graph.outputs)
            for name, values in expected.items():
                np.testing.assert_array_equal(given[name], values)
        with pytest.raises(InputError, match=r"2 inputs are needed \(t0, t1\), not 1"):
            session.run(a)
        with pytest.raises(InputError, match="the inputs t0, t1 differ in their batch axis"):
            session.run((a, b[None]))


def test_other_configurations_and_devices_are_refused(program: Program) -> None:
    with pytest.raises(ProgramFormatError, match="not for base16"):
        Session(program, engine="functional", config="base16")
    device = open_device("functional", PRESETS["tiny"], memory_bytes=program.memory_bytes)
    with pytest.raises(ProgramFormatError, match="not for tiny"):
        Session(program, device=device)
    small = open_device("functional", PRESETS["edge8"], memory_bytes=4096)
    with pytest.raises(InputError, match=r"the device has 4096 bytes of memory"):
        Session(program, device=small)
    with pytest.raises(WeftError, match="is not an engine"):
        Session(program, engine="fpga")


def test_compile_finds_the_way_by_type(graph: Graph) -> None:
    assert weft.compile(graph, "edge8") == compile_graph(graph, PRESETS["edge8"])
    assert weft.compile(graph, PRESETS["edge8"]).config.name == "edge8"
    with pytest.raises(weft.UnsupportedModel, match="cannot compile a dict"):
        weft.compile({}, "edge8")


class StubDevice:
    """Takes made-up times, or faults, without computing anything."""

    engine = "stub"

    def __init__(
        self, program: Program, *, fault: DeviceFault | None = None, early: int = 0
    ) -> None:
        self.early = early  # cycles by which instructions start before the last one's retirement
        self.config = program.config
        self.memory_bytes = program.memory_bytes
        self.program = program
        self.fault = fault
        self.resets = 0

    def write_memory(self, address: int, data) -> None:
        assert address + len(data) <= self.memory_bytes

    def read_memory(self, address: int, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def reset(self) -> None:
        self.resets += 1

    def run(self, program_address: int, *, watchdog: int = 100_000) -> RunResult:
        assert program_address == self.program.instructions_address
        if self.fault is not None:
            raise self.fault
        retires = {queue: [] for queue in Queue}
        for time, (_, instruction) in enumerate(self.program.decoded[:-1], 1):
            retires[instruction.queue].append(10 * time)
        events = tuple(
            QueueEvents(
                starts=np.array(times, np.int64) - (10 + self.early),
                retires=np.array(times, np.int64),
            )
            for times in retires.values()
        )
        cycles = 10 * len(self.program.decoded) + 5
        return RunResult(cycles, 0.5, counters={"READ_BEATS": 3}, events=events)


def test_an_overlapped_cycle_counts_for_the_layer_that_matrix_works_on(program: Program) -> None:
    first, second = (
        {
            queue: sum(
                symbol.layer == layer and instruction.queue is queue
                for symbol, (_, instruction) in zip(program.symbols, program.decoded, strict=False)
            )
            for queue in Queue
        }
        for layer in range(2)
    )
    events = []
    for queue in Queue:
        # Layer 0 runs from 0 to 100 everywhere, layer 1 from 100, its loads from 10 already.
        early = 10 if queue is Queue.LOAD else 100
        starts = [0] * first[queue] + [early] * second[queue]
        retires = [10 if queue is Queue.LOAD else 100] * first[queue] + [150] * second[queue]
        events.append(QueueEvents(np.array(starts, np.int64), np.array(retires, np.int64)))
    accounting = Accounting(program, "rtl")
    accounting.add(RunResult(160, 0.1, events=tuple(events)))
    assert [layer["cycles"] for layer in accounting.report()["layers"]] == [100, 60]


def test_cycles_of_layers_add_up(program: Program, rng) -> None:
    session = Session(program, device=StubDevice(program))
    session.run(rng.integers(-128, 128, (3, 3, 6, 6)).astype(np.int8))
    report = session.report
    of_layer = [
        sum(layer.first <= symbol.offset < layer.end for symbol in program.symbols)
        for layer in program.layers
    ]
    cycles = [30 * count for count in of_layer]
    cycles[-1] += 3 * 15  # END and the interrupt
    assert [layer["cycles"] for layer in report["layers"]] == cycles
    assert report["cycles"] == sum(cycles)
    assert report["inputs"] == 3
    assert report["macs"] == 3 * (4 * 4 * 12 * 27 + 192 * 7)
    assert report["utilization"] == report["macs"] / (report["cycles"] * 64)
    assert report["wall_s"] == 1.5
    assert report["kcycles_per_s"] == report["cycles"] / 1500
    assert report["counters"] == {"READ_BEATS": 9}
    assert [layer["op"] for layer in report["layers"]] == ["Conv2d", "Linear"]
    assert (report["model"], report["config"], report["engine"]) == ("small", "edge8", "stub")
    assert report["memory"]["dram total"] == program.memory_bytes
    assert any("repack input t0" in text for text in report["host_ops"])
    session.run(np.zeros((3, 6, 6), np.int8))
    assert session.report["inputs"] == 1


def test_a_cycle_of_two_engines_counts_for_matrix(program: Program) -> None:
    """Each instruction overlaps the last 4 cycles of the one before; layers still add up."""
    session = Session(program, device=StubDevice(program, early=4))
    session.run(np.zeros((3, 6, 6), np.int8))
    queues = [each.queue for _, each in program.decoded[:-1]]
    layers = [symbol.layer for symbol in program.symbols]
    expected = [0, 0]
    for position, (queue, layer) in enumerate(zip(queues, layers, strict=True)):
        expected[layer] += 10
        if position == 0:
            continue
        before = layers[position - 1]
        if before != layer:  # the 4 cycles that both layers work in
            first = queue == Queue.MATRIX or queues[position - 1] == Queue.STORE
            first = first or (queue == Queue.VECTOR and queues[position - 1] == Queue.LOAD)
            expected[layer] += 4 * first
            expected[before] -= 4 * first
    expected[-1] += 15
    report = session.report
    assert [layer["cycles"] for layer in report["layers"]] == expected
    assert sum(expected) == report["cycles"]


def test_an_engine_without_time_reports_none(session) -> None:
    session.run(np.zeros((3, 6, 6), np.int8))
    report = session.report
    assert report["cycles"] is None
    assert report["utilization"] is None
    assert {layer["cycles"] for layer in report["layers"]} == {None}


def test_a_fault_names_instruction_layer_and_source(program: Program) -> None:
    symbol = program.symbols[-2]
    fault = DeviceFault(
        FaultCause.LOCAL_ADDRESS,
        queue=Queue.VECTOR,
        instruction_offset=symbol.offset,
        address=0x123,
    )
    device = StubDevice(program, fault=fault)
    session = Session(program, device=device)
    with pytest.raises(ProgramFault) as caught:
        session.run(np.zeros((3, 6, 6), np.int8))
    text = str(caught.value)
    assert "LOCAL_ADDRESS: an on-chip address lies outside its memory" in text
    assert "layer linear2 (Linear, from node linear2), tile 0, requantize: VECTOR " in text
    assert caught.value.cause == FaultCause.LOCAL_ADDRESS
    assert device.resets == 1
    device.fault = None
    session.run(np.zeros((3, 6, 6), np.int8))


def test_a_broken_program_faults_and_the_session_recovers(program: Program, rng) -> None:
    """On the functional engine: an address outside the scratchpad, then the program as it was."""
    offset, instruction = next(
        (at, each) for at, each in program.decoded if each.queue == Queue.MATRIX
    )
    broken = dataclasses.replace(instruction, left_address=(1 << 19) - 1, x_origin=0, y_origin=0)
    code = bytearray(program.instructions)
    code[offset : offset + broken.size] = broken.encode()
    image = rng.integers(-128, 128, (3, 6, 6)).astype(np.int8)
    with Session(program, engine="functional") as session:
        expected = session.run(image)
        session.device.write_memory(program.instructions_address, bytes(code))
        with pytest.raises(ProgramFault, match="LOCAL_ADDRESS.*layer conv2d0"):
            session.run(image)
        session.device.write_memory(program.instructions_address, program.instructions)
        np.testing.assert_array_equal(session.run(image), expected)
