"""A waveform of a whole program on request."""

import re
from pathlib import Path

import numpy as np
import pytest

from network_reference import evaluate
from weft.benchmarks.networks import residual_network
from weft.compiler import compile_graph
from weft.session import Session
from weft_hw import PRESETS

pytestmark = pytest.mark.rtl


def test_vcd_shows_the_ports_and_the_right_time(tmp_path: Path) -> None:
    graph = residual_network(6, (4,))
    image = np.random.default_rng(0).integers(-128, 128, (3, 6, 6)).astype(np.int8)
    path = tmp_path / "wave.vcd"
    with Session(compile_graph(graph, PRESETS["tiny"]), engine="rtl", trace=path) as session:
        output = session.run(image)
        cycles = session.report["cycles"]
    assert np.array_equal(output, evaluate(graph, {"image": image})["dense.output"].ravel())
    text = path.read_text()
    for name in ("clk", "interrupt", "m_axi__araddr", "s_axil__awvalid", "event_retire"):
        assert re.search(rf"\$var wire +\d+ \S+ {name}\b", text), name
    clock = re.search(r"\$var wire +1 (\S+) clk \$end", text)
    assert clock is not None
    assert text.count(f"\n1{clock[1]}\n") >= cycles
