"""Every fault of the mutation check still applies, and changes something."""

from pathlib import Path

import pytest

from mutation.__main__ import main
from mutation.faults import FAULTS, GATEWARE, Fault

TREE = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.breaks}")
def test_a_fault_applies_in_exactly_one_place(fault: Fault) -> None:
    assert (TREE / GATEWARE / fault.file).read_text().count(fault.old) == 1
    assert "\n" not in fault.old and fault.new != fault.old
    assert all((TREE / "tests/hw" / name).is_file() for name in fault.tests)


def test_there_are_enough_faults() -> None:
    assert len({(fault.file, fault.old) for fault in FAULTS}) == len(FAULTS) >= 15


def test_words_that_no_fault_has_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mutation", "no such file"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no fault's file or effect has no such file" in capsys.readouterr().err
