"""Program files: equal bytes, complete or not at all, damage named in one line."""

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from network_reference import random_chain
from weft.compiler import compile_graph
from weft.errors import ProgramFormatError
from weft.program import FORMAT_VERSION, MAGIC, Program
from weft_hw.config import PRESETS


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_graph(random_chain(np.random.default_rng(3)), PRESETS["tiny"])


def test_saved_and_loaded_programs_are_equal(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "network.weft"
    program.save(path)
    loaded = Program.load(path)
    assert loaded == program
    loaded.save(tmp_path / "again.weft")
    assert path.read_bytes() == (tmp_path / "again.weft").read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"network.weft", "again.weft"}


def test_saving_replaces_and_a_failure_leaves_no_rest(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "network.weft"
    path.write_text("old")
    program.save(path)
    assert Program.load(path) == program
    with pytest.raises(OSError, match="nowhere"):
        program.save(tmp_path / "nowhere" / "network.weft")


def test_any_damaged_byte_is_found(program: Program, rng: np.random.Generator) -> None:
    data = program.to_bytes()
    for position in [0, 9, 13, len(data) - 1, *rng.integers(0, len(data), 60).tolist()]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(ProgramFormatError) as caught:
            Program.from_bytes(bytes(damaged), "x.weft")
        assert str(caught.value).startswith("x.weft: ")
        assert "\n" not in str(caught.value)


def test_any_truncation_is_found(program: Program, rng: np.random.Generator) -> None:
    data = program.to_bytes()
    for size in [0, 3, 8, 16, 40, len(data) - 1, *rng.integers(0, len(data), 30).tolist()]:
        with pytest.raises(ProgramFormatError, match=r"not a weft program|cut short"):
            Program.from_bytes(data[:size])


def test_other_files_and_versions_are_refused(program: Program, tmp_path: Path) -> None:
    with pytest.raises(ProgramFormatError, match="not a weft program"):
        Program.from_bytes(b"PK\x03\x04 something else entirely, long enough to look at twice")
    data = bytearray(program.to_bytes())
    struct.pack_into("<I", data, len(MAGIC), 99)
    with pytest.raises(ProgramFormatError, match=r"format version 99; this weft reads version 3"):
        Program.from_bytes(bytes(data))
    with pytest.raises(ProgramFormatError, match="cannot be read: No such file"):
        Program.load(tmp_path / "missing.weft")


def test_a_well_signed_but_inconsistent_file_is_refused(program: Program) -> None:
    """Somebody else's writer: the digest is right, the content is not."""
    data = program.to_bytes()
    size = struct.unpack_from("<I", data, len(MAGIC) + 4)[0]
    header = json.loads(data[16 : 16 + size])
    rest = data[16 + size : -32]

    def signed(values: dict) -> bytes:
        text = json.dumps(values).encode()
        body = MAGIC + struct.pack("<II", FORMAT_VERSION, len(text)) + text + rest
        return body + hashlib.sha256(body).digest()

    assert Program.from_bytes(signed(header)) == program
    for change in (
        {"sections": [1, 2]},
        {"config": {**header["config"], "rows": 3}},
        {"config": {**header["config"], "rows": 8}},
        {"layers": [{"name": "only"}]},
    ):
        with pytest.raises(ProgramFormatError, match="inconsistent"):
            Program.from_bytes(signed({**header, **change}))
    del header["symbols"]
    with pytest.raises(ProgramFormatError, match="inconsistent"):
        Program.from_bytes(signed(header))


def test_another_configuration_is_refused(program: Program) -> None:
    program.require_config(dataclasses.replace(PRESETS["tiny"], name="renamed"))
    with pytest.raises(
        ProgramFormatError, match=r"compiled for configuration tiny \(.*\), not for base16"
    ):
        program.require_config(PRESETS["base16"])


def test_every_instruction_can_be_located(program: Program) -> None:
    assert [symbol.offset for symbol in program.symbols] == [
        offset for offset, _ in program.decoded[:-1]
    ]
    for symbol in program.symbols:
        layer = program.layers[symbol.layer]
        assert layer.first <= symbol.offset < layer.end
        text = program.locate(symbol.offset)
        assert layer.name in text
        assert layer.source in text
        assert symbol.purpose in text
    assert program.locate(program.decoded[-1][0]) == "END"
    assert "opcode 0x00 is not known" in program.locate(1)
    assert len(program.listing().splitlines()) == len(program.decoded)


def test_memory_plan_holds_no_overlap(program: Program) -> None:
    """Two pieces of one memory that live at the same time do not share a byte."""
    for case in range(8):
        graph = random_chain(np.random.default_rng(case))
        for config in ("base16", "tiny"):
            regions = compile_graph(graph, PRESETS[config]).regions
            for index, one in enumerate(regions):
                for other in regions[:index]:
                    together = (
                        one.memory == other.memory
                        and one.first_layer <= other.last_layer
                        and other.first_layer <= one.last_layer
                    )
                    if together:
                        apart = (
                            one.address + one.size <= other.address
                            or other.address + other.size <= one.address
                        )
                        assert apart, (one, other)


def test_report_counts_what_the_program_holds(program: Program) -> None:
    memory = program.memory_report()
    config = program.config
    assert memory["dram instructions"] == len(program.instructions)
    assert memory["dram constants"] == len(program.constants)
    assert memory["dram total"] == program.memory_bytes
    assert 0 < memory["activation bytes"] <= config.activation_bytes
    assert 0 < memory["weight bytes"] <= config.weight_bytes
    assert 0 < memory["accumulator rows"] <= config.accumulator_total_rows
    assert 0 < memory["parameter rows"] <= config.parameter_rows
    summary = program.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["macs"] == sum(layer["macs"] for layer in summary["layers"]) > 0
