"""The machine's program of a training step ends in the state of the fast engine, bit for bit."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn

import weft
from weft.errors import InputError, UnsupportedModel
from weft.train.build import build_step
from weft.train.export import inference_graph
from weft.train.fast import FastEngine
from weft.train.front import network_of
from weft.train.machine.engine import MachineEngine, compile_step
from weft.train.methods import choose_method
from weft.train.state import Rates, State
from weft.train.step import MomentumUpdate, TrainingStep
from weft_hw.config import load_config
from weft_sim.device import BusEventKind

pytestmark = pytest.mark.torch


class Residual(nn.Module):
    """Everything that training supports but average pooling."""

    def __init__(self, channels: int = 7, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 11, 3, stride=2, padding=1, bias=False)
        self.block = nn.Conv2d(11, 11, 3, padding=1)
        self.hidden = nn.Linear(11 * 4, 13)
        self.classify = nn.Linear(13, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.down(x))
        x = torch.relu(x + self.block(x))
        x = torch.flatten(nn.functional.max_pool2d(x, 2), 1)
        return self.classify(torch.relu(self.hidden(x)))


class Pooled(nn.Module):
    """Odd sizes, dilation, ReLU before and after pools, average pools of any size."""

    window = (2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 5, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1))
        self.second = nn.Conv2d(5, 18, 1)
        self.beside = nn.Conv2d(5, 18, 1)
        self.classify = nn.Linear(18, 17)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(x)), (2, 1))
        x = torch.relu(self.second(x)) + self.beside(x)
        x = nn.functional.avg_pool2d(torch.relu(x), self.window)
        return self.classify(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class EvenlyPooled(Pooled):
    """Windows of a power of two: their means have no rounding of their own."""

    window = (2, 2)


NETWORKS = {
    "residual": (Residual, (3, 8, 8)),
    "pooled": (Pooled, (1, 9, 11)),
    "evenly pooled": (EvenlyPooled, (1, 9, 15)),
}


@dataclasses.dataclass
class Case:
    """A step at its start, with a batch."""

    step: TrainingStep
    state: State
    fast: FastEngine
    images: np.ndarray
    targets: np.ndarray
    rates: Rates


def make(
    network: str,
    method: str,
    exponents: str,
    *,
    batch: int = 3,
    seed: int = 0,
    **chosen: object,
) -> Case:
    kind, shape = NETWORKS[network]
    torch.manual_seed(seed)
    module = kind()
    settings = choose_method(method, exponents=exponents, **chosen)  # type: ignore[arg-type]
    values = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    layers = network_of(module, torch.zeros(batch, *shape))
    step, parameters = build_step(layers, values, batch, settings)
    rng = np.random.default_rng(seed)
    images = rng.integers(-127, 128, (batch, *step.source.shape)).astype(np.int8)
    classes = step.logits.shape[2]
    targets = np.zeros((batch, classes), np.int8)
    targets[np.arange(batch), rng.integers(0, classes, batch)] = 127
    rates = Rates.of(batch, 0.1, decay=1e-2, compensation_decay=0.1, bits=4)
    fast = FastEngine(step)
    state = fast.first_largest(parameters.state(step), images, targets, rates, 5, 0)
    return Case(step, state, fast, images, targets, rates)


def assert_equal_runs(case: Case, machine: MachineEngine, steps: int) -> State:
    mine = its = case.state
    for number in range(steps):
        batch = case.images, case.targets, case.rates, 5, number
        mine, my_logits = case.fast.run(mine, *batch)
        its, its_logits = machine.run(its, *batch)
        assert np.array_equal(my_logits, its_logits)
        assert mine.difference(its) is None, f"step {number}"
    return mine


@pytest.mark.parametrize("config", ["base16", "edge8"])
@pytest.mark.parametrize("exponents", ["own", "delayed"])
@pytest.mark.parametrize("method", ["int8", "octo", "shared"])
@pytest.mark.parametrize("network", ["residual", "pooled"])
def test_equals_fast(network: str, method: str, exponents: str, config: str) -> None:
    case = make(network, method, exponents)
    with MachineEngine(case.step, load_config(config)) as machine:
        before = case.state.copy()
        after = assert_equal_runs(case, machine, 3)
    assert case.state.difference(before) is None  # a run leaves its argument alone
    assert after.difference(before) is not None


@pytest.mark.parametrize(
    "update",
    [
        MomentumUpdate(state_bits=32, momentum=0.9, decays=True),
        MomentumUpdate(state_bits=16, momentum=0.0, decays=False),
        MomentumUpdate(state_bits=16, momentum=0.5, decays=True),
    ],
    ids=str,
)
def test_updates(update: MomentumUpdate) -> None:
    case = make("residual", "octo", "delayed", update=update)
    with MachineEngine(case.step, load_config("edge8")) as machine:
        assert_equal_runs(case, machine, 3)


@pytest.mark.parametrize("exponents", ["own", "delayed"])
def test_compensation_by_pixel(exponents: str) -> None:
    case = make("residual", "octo", exponents, compensation="pixel")
    with MachineEngine(case.step, load_config("edge8")) as machine:
        assert_equal_runs(case, machine, 3)


@pytest.mark.parametrize("rows", [16, 37])
def test_tilings_change_nothing(rows: int) -> None:
    case = make("residual", "octo", "own", batch=5)
    with MachineEngine(case.step, load_config("base16"), tile_rows=rows) as machine:
        assert_equal_runs(case, machine, 2)


@pytest.mark.rtl
@pytest.mark.parametrize("method", ["octo", "shared"])
def test_rtl_equals_fast_and_touches_what_was_planned(method: str) -> None:
    case = make("residual", method, "own", batch=2)
    config = load_config("edge8")
    with MachineEngine(case.step, config, "rtl", record_bus=True, latency=3) as machine:
        assert_equal_runs(case, machine, 2)
        assert machine.last_run is not None and machine.last_run.bus is not None
        plan, beat = machine.memory_plan, config.bus_bytes
        ends = [
            int(event["address"]) // beat + int(event["beats"])
            for event in machine.last_run.bus
            if event["kind"] in (BusEventKind.READ_BURST, BusEventKind.WRITE_BURST)
            and event["address"] < plan.instructions  # fetch reads ahead, beyond the program
        ]
        planned = max(area.end for area in plan.areas if area.purpose != "instructions")
        assert max(ends) == -(-planned // beat)
        assert machine.program.memory_bytes - plan.peak < beat


@pytest.mark.parametrize("method", ["octo", "shared"])
@pytest.mark.parametrize("network", ["residual", "evenly pooled"])
def test_exports_what_it_evaluates(network: str, method: str) -> None:
    case = make(network, method, "delayed", seed=3)
    state = case.state
    for number in range(3):
        state, _ = case.fast.run(state, case.images, case.targets, case.rates, 5, number)
    expected, _ = case.fast.evaluate(state, case.images)
    program = weft.compile(inference_graph(case.step, state), "edge8")
    with weft.Session(program, "functional") as session:
        for image, logits in zip(case.images, expected, strict=True):
            found = session.run(image.transpose(2, 0, 1))
            assert np.array_equal(np.asarray(found).reshape(-1), logits)


def test_export_refuses_compensation_by_pixel() -> None:
    case = make("residual", "octo", "own", compensation="pixel")
    with pytest.raises(UnsupportedModel, match="compensation by pixel"):
        inference_graph(case.step, case.state)


def test_refuses_arrays_that_are_not_square() -> None:
    case = make("residual", "octo", "own")
    wide = dataclasses.replace(load_config("edge8"), name="wide", columns=16, vector_lanes=16)
    with pytest.raises(InputError, match="square array"):
        compile_step(case.step, wide)


def test_refuses_what_dram_cannot_hold() -> None:
    case = make("residual", "octo", "own", batch=32)
    small = dataclasses.replace(load_config("edge8"), address_width=16)
    with pytest.raises(UnsupportedModel, match="choose a smaller batch"):
        compile_step(case.step, small)


def test_transfers_are_all_that_crosses() -> None:
    case = make("residual", "octo", "delayed")
    program = compile_step(case.step, load_config("base16"))
    sizes = {entry.what: (entry.to_machine, entry.from_machine) for entry in program.transfers()}
    assert sizes["pixels"] == (3 * 8 * 8 * 3, 0)  # no padding to whole tiles
    assert sizes["targets by class"] == (16 * 5, 0)  # one block of 16 samples
    assert sizes["logits"] == (0, 3 * 16)
