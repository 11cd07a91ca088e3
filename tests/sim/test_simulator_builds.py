"""Real builds of a small simulator: by two processes at once, killed, and on a full disk."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from matmul_program import MEMORY_BYTES, OUTPUT, PROGRAM, MatmulCase
from weft_hw import PRESETS, WeftError
from weft_sim.device import open_device
from weft_sim.rtl.build import build_simulator
from weft_sim.toolchain import find_compiler

pytestmark = pytest.mark.rtl

EXERCISER = Path(__file__).parent / "bus_exerciser.v"  # seconds to build

# Builds, says every stage, then loads the library and reads a register of the simulated hardware.
BUILDER = """
import json, sys
import numpy as np
from pathlib import Path
from weft_sim.rtl.build import build_simulator
from weft_sim.rtl.library import BusModel, Simulation

def progress(stage, fraction):
    print(json.dumps(stage), flush=True)

simulator = build_simulator(Path(sys.argv[1]).read_text(), progress=progress)
simulation = Simulation(simulator.library, np.zeros(4096, np.uint8), BusModel())
simulation.reset()
simulation.write_register(0x10, 3)
print(json.dumps(str(simulator.library)), flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("WEFT_CACHE", str(path))
    return path


def _start() -> subprocess.Popen[str]:
    """A builder, in a session of its own, so that its compilers can be killed with it."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(EXERCISER)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _stages(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def _entries(cache: Path) -> list[str]:
    return sorted(p.suffix or "entry" for p in (cache / "simulators").iterdir())


def test_two_processes_build_it_once(cache: Path) -> None:
    first = _start()
    assert first.stdout is not None
    assert json.loads(first.stdout.readline()) == "translating Verilog to C++"
    second = _start()  # the first holds the lock for some seconds yet
    found = [_stages(second), _stages(first)]
    assert found[0][0] == "waiting for another process that builds the same"
    assert len(found[0]) == 2  # nothing was built
    assert "linking the simulator" in found[1]
    assert found[0][-1] == found[1][-1]
    assert Path(found[0][-1]).is_file()
    assert [_stages(_start())[0]] == found[0][-1:]  # a third one just loads it
    assert _entries(cache) == [".lock", "entry"]


def test_a_killed_build_is_done_again(cache: Path) -> None:
    process = _start()
    assert process.stdout is not None
    while json.loads(process.stdout.readline()) != "compiling the simulator":
        pass
    deadline = time.monotonic() + 300
    while not list(cache.glob("simulators/*.partial/scratch/*.o")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    assert ".partial" in _entries(cache) and "entry" not in _entries(cache)  # so this is a test
    stages = _stages(_start())
    assert stages[0] == "translating Verilog to C++"
    assert Path(stages[-1]).is_file()
    assert _entries(cache) == [".lock", "entry"]


def _compiler(folder: Path, failure: str) -> str:
    """A compiler that fails to write the harness's object file, with that message."""
    real = " ".join(find_compiler().command)
    path = folder / "compiler"
    path.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"-c "*harness.cpp*) echo "{failure}" >&2; exit 1;; esac\n'
        f'exec {real} "$@"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_full_disk_is_explained(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "fatal error: error writing to /tmp/x.s: No space left on device"
    monkeypatch.setenv("CXX", _compiler(tmp_path, full))
    with pytest.raises(WeftError) as caught:
        build_simulator(EXERCISER.read_text())
    message = str(caught.value)
    assert message.startswith(f"no space is left on the disk of {cache}")
    assert "while building harness.cpp" in message
    assert message.endswith("free some, or set WEFT_CACHE to a folder on another disk")
    assert _entries(cache) == [".lock"]  # nothing of it is kept
    monkeypatch.delenv("CXX")
    assert build_simulator(EXERCISER.read_text()).library.is_file()


def test_a_compiler_that_fails_is_quoted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, "harness.cpp:1: error: what is this"))
    with pytest.raises(RuntimeError, match=r"failed on harness\.cpp:\nharness.*what is this"):
        build_simulator(EXERCISER.read_text())
    assert _entries(cache) == [".lock"]


def test_programs_of_two_configurations_take_turns(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """In one process, both simulators loaded, each with its own state."""
    monkeypatch.undo()  # the usual cache: these machines other tests use too
    names = ("tiny", "edge8")
    devices = [open_device("rtl", PRESETS[name], memory_bytes=MEMORY_BYTES) for name in names]
    try:
        cycles = []
        for rows in (5, 9, 5):
            for device in devices:
                case = MatmulCase.random(device.config, rows, rng)
                for address, data in case.image().items():
                    device.write_memory(address, data)
                cycles.append(device.run(PROGRAM).cycles)
                found = device.read_memory(OUTPUT, case.output_size).view(np.int8)
                assert np.array_equal(found.reshape(rows, -1), case.expected())
        assert cycles[:2] == cycles[4:] and len(set(cycles)) == 4
    finally:
        for device in devices:
            device.close()
