"""The committed reference pages are those that the declarations give."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import weft_hw
from weft_hw.instructions import INSTRUCTIONS
from weft_hw.reference import instructions_page, main, registers_page
from weft_hw.registers import REGISTERS, FaultCause

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("name", "page"),
    [("instructions.md", instructions_page), ("registers.md", registers_page)],
)
def test_committed_pages_are_up_to_date(name: str, page) -> None:
    stale = f"docs/{name} is out of date: run `python -m weft_hw.reference docs`"
    assert (DOCS / name).read_text() == page(), stale


def test_every_field_has_a_row() -> None:
    page = instructions_page()
    for kind in INSTRUCTIONS.values():
        section = page.split(f"\n## {kind.__name__.upper()}\n")[1].split("\n## ")[0]
        assert f"`{kind.opcode:#04x}`, {kind.size} bytes" in section
        names = [line.split("|")[2].strip() for line in section.split("\n") if line[:1] == "|"]
        fields = [field.name for field in kind.bit_fields()]
        assert [name for name in names if name in fields] == fields


@pytest.mark.parametrize(
    "row",
    [
        "| last_lanes | u7 | 0 to 127 |",
        "1 ACTIVATION, 2 ACCUMULATOR; reserved, fault: 0 NONE, 3 WEIGHT",
        "; without a name, fault: 5, 6, 7 | Use of operand B. |",
        "| 39:24 | signal | u16 | 0 to 65535 |",
        "0, 1, 2, 3, 4; others are reserved and fault",
    ],
)
def test_rows_of_instructions(row: str) -> None:
    assert row in instructions_page()


def test_every_register_and_cause_has_a_row() -> None:
    page = registers_page()
    for entry in REGISTERS:
        assert f"| `{entry.offset:#05x}` | {entry.name} | {entry.access.value} |" in page
    for cause in FaultCause:
        assert f"| {int(cause)} | {cause.name} | {cause.meaning} |" in page


def test_command_writes_both_pages(tmp_path: Path) -> None:
    paths = [str(Path(weft_hw.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "weft_hw.reference", str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "instructions.md").read_text() == instructions_page()
    assert (tmp_path / "registers.md").read_text() == registers_page()


def test_command_wants_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["no such folder"]) == 2
    assert "usage:" in capsys.readouterr().err
