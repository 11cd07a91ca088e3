"""`--report` and `--trace` of `weft run`, and `weft disasm`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.files import check_writable, write_text
from weft.cli.options import ConfigOption, JsonOption, ModelArgument
from weft.cli.output import Output
from weft.errors import InputError
from weft.session import Session
from weft_hw import load_config

__all__ = ["Observed", "ReportOption", "TraceOption", "disasm"]

REPORTS = (".json", ".html")
WAVEFORMS = (".fst", ".vcd")
TRACE = ".json"

ReportOption = Annotated[
    list[Path] | None,
    typer.Option("--report", help="Where to write the report: .json, .html, or twice for both."),
]
TraceOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trace",
        help="Of rtl: .json is a trace for ui.perfetto.dev, .fst or .vcd a waveform; or twice.",
    ),
]


@dataclass(frozen=True)
class Observed:
    """The files that a run is to be seen in.

    Parameters
    ----------
    engine : str
    reports, traces : list of Path

    Raises
    ------
    InputError
        If a file cannot be written by its name, or the engine has nothing to trace.
    """

    engine: str
    reports: list[Path]
    traces: list[Path]

    def __post_init__(self) -> None:
        if self.traces and self.engine != "rtl":
            raise InputError(
                f"--trace shows the cycles of the rtl engine; {self.engine} has none: "
                "run with --engine rtl"
            )
        for path in self.reports:
            check_writable("--report", path, REPORTS)
        for path in self.traces:
            check_writable("--trace", path, (TRACE, *WAVEFORMS))
        if len(self._waveforms) > 1:
            raise InputError("--trace writes one waveform at a time: name one .fst or .vcd file")

    @property
    def _waveforms(self) -> list[Path]:
        return [path for path in self.traces if path.suffix in WAVEFORMS]

    @property
    def session_options(self) -> dict[str, Any]:
        """What the device needs to know before the run."""
        if self.engine != "rtl":
            return {}
        recorded = any(path.suffix in (TRACE, ".html") for path in (*self.reports, *self.traces))
        return {"trace": next(iter(self._waveforms), None), "record_bus": recorded}

    def write(self, session: Session, report: dict[str, Any], output: Output) -> None:
        """Write the files after the run; of several inputs a trace shows the last one."""
        for path in self.reports:
            if path.suffix == ".html":
                from weft.observation.page import report_page

                text = report_page(session.program, report, session.last_result)
            else:
                text = json.dumps(report, indent=2) + "\n"
            write_text(path, text)
            output.say(f"wrote {path}")
        for path in self.traces:
            if path.suffix == TRACE:
                from weft.observation.trace import perfetto_trace

                assert session.last_result is not None
                write_text(path, perfetto_trace(session.program, session.last_result))
            output.say(f"wrote {path}")


def disasm(
    program_path: ModelArgument,
    output_path: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a file instead of printing.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a program: instructions, with source operations and tensors as comments."""
    output = Output(as_json=as_json)
    from weft.models import load_model
    from weft.observation.disassembly import disassembly

    if output_path is not None:
        check_writable("--output", output_path, (output_path.suffix,))
    program = load_model(program_path, load_config(config) if config else None)
    text = disassembly(program)
    if output_path is not None:
        write_text(output_path, text)
        output.say(f"wrote {output_path}")
    elif not as_json:
        print(text, end="")
    output.result({"program": program.name, "instructions": len(program.decoded), "text": text})
