"""How commands tell the stage of a long build where no terminal shows a spinner."""

import pytest
from rich.console import Console

from weft.cli import output


def test_stages_are_lines_on_standard_error_at_most_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 30.0, 61.0, 100.0, 121.5])
    monkeypatch.setattr(output, "monotonic", lambda: next(seconds))
    with output.Output(as_json=False).stages() as stage:
        stage("generating Verilog")
        stage("Yosys: ABC9")
        stage("Yosys: ABC9 again")
        stage("compiling", 0.5)
    told = capsys.readouterr()
    assert told.out.strip() == ""
    assert told.err.splitlines() == ["after 1 min: Yosys: ABC9", "after 2 min: compiling 50%"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_quick_command_tells_no_stage(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with output.Output(as_json=as_json).stages() as stage:
        stage("compiling")
    told = capsys.readouterr()
    assert told.out.strip() == "" and told.err.strip() == ""


def test_a_terminal_gets_no_lines_beside_its_spinner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("TERM", "xterm")  # a dumb one shows no spinner
    told = output.Output(as_json=False)
    told.console = Console(force_terminal=True)
    with told.stages() as stage:
        stage("compiling")
    written = capsys.readouterr()  # Rich sends lines for standard error through its own console
    assert "compiling" in written.out and "after" not in written.out + written.err
