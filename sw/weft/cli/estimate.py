"""`weft estimate`: the cycles of a model by the cycle model, without simulating the RTL."""

import json

from weft.cli.files import check_writable, write_text
from weft.cli.layer_table import show_layers
from weft.cli.observation import REPORTS, ReportOption
from weft.cli.options import ConfigOption, JsonOption, LatencyOption, ModelArgument, StrictOption
from weft.cli.output import Output
from weft_hw import load_config

__all__ = ["estimate"]


def estimate(
    model: ModelArgument,
    config: ConfigOption = None,
    latency: LatencyOption = 20,
    reports: ReportOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Estimate a model's cycles by layer in seconds, without the RTL."""
    output = Output(as_json=as_json)
    chosen = load_config(config) if config else None
    for path in reports or []:
        check_writable("--report", path, REPORTS)
    from weft.models import load_model
    from weft.report import CYCLE_MODEL, Accounting
    from weft_sim.cycle_model import estimate_run

    with output.stages() as stage:
        stage(f"compiling {model.name}", None)
        program = load_model(model, chosen)
        if strict:
            program.require_no_host_steps()
        stage("estimating", None)
        instructions = [instruction for _, instruction in program.decoded]
        result = estimate_run(program.config, instructions, latency=latency)
    accounting = Accounting(program, CYCLE_MODEL)
    accounting.add(result)
    report = {**accounting.report(), "model": str(model)}
    for path in reports or []:
        if path.suffix == ".html":
            from weft.observation.page import report_page

            write_text(path, report_page(program, report, result))
        else:
            write_text(path, json.dumps(report, indent=2) + "\n")
        output.say(f"wrote {path}")
    show_layers(output, report)
    output.result(report)
