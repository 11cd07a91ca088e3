"""Devices of every engine, for tests that hold for all of them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from weft_hw import AcceleratorConfig
from weft_sim.device import Device, open_device

ENGINES = ["functional", pytest.param("rtl", marks=pytest.mark.rtl)]

OpenEngine = Callable[..., Device]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine in turn."""
    return str(request.param)


@pytest.fixture
def open_engine(engine: str) -> Iterator[OpenEngine]:
    """``open_engine(config, memory_bytes, **options of the rtl engine)``; closed after the test."""
    devices: list[Device] = []

    def create(config: AcceleratorConfig, memory_bytes: int, **rtl_options: Any) -> Device:
        options = rtl_options if engine == "rtl" else {}
        devices.append(open_device(engine, config, memory_bytes=memory_bytes, **options))
        return devices[-1]

    yield create
    for device in devices:
        device.close()
