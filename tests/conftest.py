"""Fixtures shared by all tests: seeded randomness and the folder of test models."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

SEED_VARIABLE = "WEFT_SEED"
MODELS_VARIABLE = "WEFT_MODELS"


def pytest_configure(config: pytest.Config) -> None:
    # Set in the environment, so that the worker processes of pytest-xdist have the same seed.
    text = os.environ.setdefault(SEED_VARIABLE, "1")
    if text == "random":
        os.environ[SEED_VARIABLE] = text = str(int.from_bytes(os.urandom(4)))
    if not text.isdigit():
        raise pytest.UsageError(f"{SEED_VARIABLE} must be a whole number or 'random', not {text!r}")


def pytest_report_header(config: pytest.Config) -> str:
    models = os.environ.get(MODELS_VARIABLE, "none")
    return f"{SEED_VARIABLE}={os.environ[SEED_VARIABLE]} {MODELS_VARIABLE}={models}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have recorded as the property `modes`: counts of what occurred by chance."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in report.user_properties:
                if name == "modes":
                    terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this run: 1, or what WEFT_SEED says (a number, or `random`)."""
    return int(os.environ[SEED_VARIABLE])


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the seed and the test's name, not on the tests before it."""
    return np.random.default_rng([seed, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: in small networks others have nothing to do, and are waited for."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of .tflite test models; the test is skipped where there is none."""
    folder = os.environ.get(MODELS_VARIABLE)
    if not folder:
        pytest.skip(f"{MODELS_VARIABLE} does not name a folder of test models (see README.md)")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"{MODELS_VARIABLE}={folder} is not a folder")
    return path
