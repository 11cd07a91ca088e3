"""Random networks: training steps on random machines equal the fast engine, bit for bit."""

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

import weft
from random_networks import RandomNetwork, draw_network
from weft.train.data import target_codes
from weft.train.export import inference_graph
from weft.train.fast import FastEngine
from weft.train.machine.engine import MachineEngine
from weft.train.module import training_step
from weft.train.parameters import from_torch_layout
from weft.train.state import Rates
from weft.train.step import MomentumUpdate
from weft_hw.config import AcceleratorConfig, load_config

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

METHODS = ("int8", "octo", "clipped", "compensated", "shared")
COMPENSATED = ("octo", "compensated")
LEAST_COSINE = 0.8
"""Of a gradient to that of the module; of one that is wired wrongly it is about 0."""


def draw_machine(
    rng: np.random.Generator, names: tuple[str, ...]
) -> tuple[AcceleratorConfig, int | None]:
    """A machine of any size, and the accumulator rows that a tile may take."""
    name = str(rng.choice(names))
    config = load_config(name)
    if name == "tiny":  # as few on-chip bytes as training takes
        config = dataclasses.replace(config, accumulator_rows=64, parameter_rows=16)
    rows = int(rng.integers(config.rows, 60)) if rng.random() < 0.5 else None
    return config, rows


def draw_batch(
    rng: np.random.Generator, network: RandomNetwork, batch: int
) -> tuple[NDArray[np.int8], NDArray[np.int64], int]:
    channels, height, width = network.shape
    classes = network.lines[-1].module.out_features
    images = rng.integers(-127, 128, (batch, height, width, channels)).astype(np.int8)
    return images, rng.integers(0, classes, batch), classes


def compare_engines(rng: np.random.Generator, engine: str, names: tuple[str, ...]) -> None:
    """Two steps of one network."""
    torch.manual_seed(int(rng.integers(1 << 31)))
    network = draw_network(rng)
    config, rows = draw_machine(rng, names)
    method = str(rng.choice(METHODS))
    exponents = str(rng.choice(["own", "delayed"]))
    compensation = str(rng.choice(["channel", "pixel"])) if method in COMPENSATED else "none"
    update = None
    if method != "shared":
        update = MomentumUpdate(
            int(rng.choice([16, 32])), float(rng.choice([0.0, 0.9])), bool(rng.integers(2))
        )
    batch = int(rng.choice([1, 2, 5, config.rows, config.rows + 3]))
    print(network.description)
    print(config.name, rows, method, exponents, compensation, update, "batch", batch)
    example = torch.zeros(batch, *network.shape)
    step, parameters = training_step(
        network, example, method, update=update, exponents=exponents, compensation=compensation
    )
    images, labels, classes = draw_batch(rng, network, batch)
    targets = target_codes(labels, classes)
    seed = int(rng.integers(1 << 32))
    rates = Rates.of(batch, 0.3, decay=0.02, compensation_rate=0.05, bits=2)
    fast = FastEngine(step)
    mine = fast.first_largest(parameters.state(step), images, targets, rates, seed, 0)
    its = mine
    with MachineEngine(step, config, engine, tile_rows=rows) as machine:
        for number in range(2):
            mine, my_logits = fast.run(mine, images, targets, rates, seed, number)
            its, its_logits = machine.run(its, images, targets, rates, seed, number)
            assert np.array_equal(my_logits, its_logits)
            difference = mine.difference(its)
            assert difference is None, f"step {number}: {difference}"


@pytest.mark.parametrize("number", range(40))
def test_functional_equals_fast(rng: np.random.Generator, number: int) -> None:
    compare_engines(rng, "functional", ("tiny", "edge8", "base16"))


@pytest.mark.rtl
@pytest.mark.parametrize("number", range(4))
def test_rtl_equals_fast(rng: np.random.Generator, number: int) -> None:
    compare_engines(rng, "rtl", ("edge8", "base16"))


@pytest.mark.parametrize("number", range(20))
def test_gradients_are_those_of_the_module(rng: np.random.Generator, number: int) -> None:
    """Of every parameter, against autograd through the module itself on the same results."""
    torch.manual_seed(int(rng.integers(1 << 31)))
    network = draw_network(rng)
    print(network.description)
    batch = 32
    example = torch.zeros(batch, *network.shape)
    step, parameters = training_step(network, example, "int8", compensation="none")
    images, labels, classes = draw_batch(rng, network, batch)
    state, targets = parameters.state(step), target_codes(labels, classes)
    values, gradients = FastEngine(step).values(state, images, targets, 7, 0)

    network.double()
    results = network.results([operation.result.name for operation in step.forward])
    given = {
        number: torch.from_numpy(values[name]).double().permute(0, 3, 1, 2)
        for number, name in results.items()
    }
    logits = network(torch.from_numpy(images / 128.0).permute(0, 3, 1, 2), given)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    loss.backward()
    shapes = {parameter.name: parameter.shape for parameter in step.parameters()}
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue  # of a layer whose result nothing uses
        right = from_torch_layout(-parameter.grad, shapes[name]).ravel()
        ours = gradients[name].ravel()
        length = np.linalg.norm(right) * np.linalg.norm(ours)
        cosine = float(right @ ours) / length if length else float(not right.any())
        assert cosine > LEAST_COSINE, f"{name}: {cosine}"


def has_exact_averages(network: RandomNetwork) -> bool:
    """Whether every average is over a power of two: others may differ by one where codes tie."""
    windows = [
        math.prod(layer.kernel_size)
        for layer in network.children()
        if isinstance(layer, torch.nn.AvgPool2d)
    ]
    return all(size & (size - 1) == 0 for size in windows)


@pytest.mark.parametrize("number", range(16))
def test_exports_what_it_evaluates(rng: np.random.Generator, number: int) -> None:
    """The inference program of a network after two steps, on a machine of any size."""
    torch.manual_seed(int(rng.integers(1 << 31)))
    network = draw_network(rng)
    while not has_exact_averages(network):
        network = draw_network(rng)
    method, config = str(rng.choice(METHODS)), str(rng.choice(["tiny", "edge8", "base16"]))
    print(network.description, method, config)
    batch = 4
    example = torch.zeros(batch, *network.shape)
    step, parameters = training_step(network, example, method, compensation="channel")
    images, labels, classes = draw_batch(rng, network, batch)
    targets, rates = target_codes(labels, classes), Rates.of(batch, 0.3, bits=2)
    fast, state = FastEngine(step), parameters.state(step)
    for step_number in range(2):
        state, _ = fast.run(state, images, targets, rates, 5, step_number)
    expected, _ = fast.evaluate(state, images)
    program = weft.compile(inference_graph(step, state), config)
    with weft.Session(program, "functional") as session:
        for image, logits in zip(images, expected, strict=True):
            found = session.run(image.transpose(2, 0, 1))
            assert np.array_equal(np.asarray(found).reshape(-1), logits)
