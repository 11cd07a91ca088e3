"""Matrix products on the machine, checked against NumPy: `weft bench gemm`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.benchmarks.product import Addresses, Product
from weft.benchmarks.product_schedule import product_program
from weft.compiler.weights import check_weight_bits, pack_weights, weight_range
from weft.errors import InputError
from weft_hw import AcceleratorConfig
from weft_sim.device import RunResult, open_device

__all__ = ["bench_gemm", "measurement", "stalls_of"]

PAGE = 4096
ENGINES = ("LOAD", "MATRIX", "VECTOR", "STORE")
MULTIPLIER = 1 << 30  # with the exponent alone: a scale that is a power of two


def bench_gemm(
    config: AcceleratorConfig,
    shape: tuple[int, int, int],
    *,
    engine: str,
    repeat: int = 1,
    weight_bits: int = 8,
    seed: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """Run Y = X W on ``repeat`` different operands in one program and compare every element.

    X, W and Y are int8 (W: of ``weight_bits``) and lie in DRAM, W in array tiles; Y is the sum plus
    a bias, scaled by a power of two and rounded half to even.

    Parameters
    ----------
    config : AcceleratorConfig
    shape : (M, K, N)
        X has M by K elements, W K by N.
    engine : {"rtl", "functional"}
    repeat : int
    weight_bits : int
        Width of W's elements in memory and in the array; see :func:`check_weight_bits`.
    seed : int
        Of the operands.
    **options
        Of the engine, see :func:`weft_sim.device.open_device`.

    Returns
    -------
    list of dict
        One :func:`measurement`, of the product ``Y``.

    Raises
    ------
    InputError
        If a size is not positive, the machine does not have the weights' width, or the operands do
        not fit its address space.
    RuntimeError
        If an element is wrong.
    """
    if min(shape) < 1 or repeat < 1:
        raise InputError("sizes and the number of repetitions must be positive")
    check_weight_bits(config, weight_bits)
    product = Product(config, *shape, weight_bits)
    rng = np.random.default_rng(seed)
    cases = [_Case.random(product, rng) for _ in range(repeat)]
    places, end = _places(product, repeat)
    if end > 1 << config.address_width:
        raise InputError(f"{end} bytes of operands are more than {config.name} can address")
    program = product_program(product, places)
    memory_bytes = -(-(end + len(program)) // PAGE) * PAGE
    device = open_device(engine, config, memory_bytes=memory_bytes, **options)
    try:
        for case, place in zip(cases, places, strict=True):
            device.write_memory(place.left, case.left_image())
            device.write_memory(place.weights, case.weight_image())
            device.write_memory(place.parameters, case.parameter_image())
        device.write_memory(end, program)
        result = device.run(end)
        for number, (case, place) in enumerate(zip(cases, places, strict=True)):
            image = device.read_memory(place.result, product.result_bytes)
            got = image.view(np.int8).reshape(product.rows, -1)[:, : product.width]
            wrong = int(np.count_nonzero(got != case.expected()))
            if wrong:
                raise RuntimeError(f"product {number}: {wrong} of {got.size} elements are wrong")
    finally:
        device.close()
    return [measurement("Y", config, product.macs * repeat, result, weight_bits)]


def measurement(
    name: str, config: AcceleratorConfig, macs: int, result: RunResult, weight_bits: int = 8
) -> dict[str, Any]:
    """Figures of a run, ready for JSON; None for what the engine cannot tell.

    ``utilization`` is the share of what the array can multiply and accumulate with weights of that
    width, over all cycles from the start to the interrupt.
    """
    utilization = None
    if result.cycles:
        most = config.rows * config.columns * 8 // weight_bits
        utilization = macs / (result.cycles * most)
    return {
        "product": name,
        "cycles": result.cycles,
        "macs": macs,
        "utilization": utilization,
        "stalls": stalls_of(result.counters),
        "counters": dict(result.counters),
        "wall_s": result.wall_seconds,
    }


def stalls_of(counters: Mapping[str, int]) -> dict[str, dict[str, int]] | None:
    """Each engine's cycles: busy, waiting for a semaphore, held up by a memory or the bus."""
    if not counters:
        return None
    return {
        engine.lower(): {
            kind: counters[f"{engine}_{kind.upper()}"] for kind in ("busy", "wait", "stall")
        }
        for engine in ENGINES
    }


def _places(product: Product, repeat: int) -> tuple[list[Addresses], int]:
    """DRAM addresses of every repetition's operands, and the first page behind them."""
    parameters = product.width_tiles * product.config.parameter_row_bytes
    sizes = (product.left_bytes, product.weight_bytes, parameters, product.result_bytes)
    places, end = [], 0
    for _ in range(repeat):
        starts = []
        for size in sizes:
            starts.append(end)
            end += -(-size // PAGE) * PAGE
        places.append(Addresses(*starts))
    return places, end


@dataclass(frozen=True, eq=False)
class _Case:
    """Operands of one product."""

    product: Product
    left: NDArray[np.int8]
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    shift: int

    @classmethod
    def random(cls, product: Product, rng: np.random.Generator) -> "_Case":
        low, high = weight_range(product.weight_bits)
        deviation = 73 * 2.0 ** (product.weight_bits - 8)  # of uniform values of that width
        spread = 73 * deviation * np.sqrt(product.depth)
        return cls(
            product,
            rng.integers(-128, 128, (product.rows, product.depth)).astype(np.int8),
            rng.integers(low, high + 1, (product.depth, product.width)).astype(np.int8),
            rng.integers(-5000, 5001, product.width).astype(np.int32),
            max(1, int(np.log2(spread / 50))),  # few results saturate, most bits matter
        )

    def expected(self) -> NDArray[np.int8]:
        """The result by floating point, which is exact here: all sums are below 2^53."""
        sums = self.left.astype(np.float64) @ self.weights.astype(np.float64) + self.bias
        return np.clip(np.rint(sums / 2.0**self.shift), -128, 127).astype(np.int8)

    def left_image(self) -> bytes:
        padded = np.zeros((self.product.rows, self.product.left_pitch), np.int8)
        padded[:, : self.product.depth] = self.left
        return padded.tobytes()

    def weight_image(self) -> bytes:
        """Array tiles: those of a column tile behind one another."""
        product, config = self.product, self.product.config
        padded = np.zeros((product.left_pitch, product.result_pitch), np.int8)
        padded[: product.depth, : product.width] = self.weights
        packed = pack_weights(padded, product.weight_bits)
        tiles = packed.reshape(product.depth_tiles, config.rows, product.width_tiles, -1)
        return tiles.transpose(2, 0, 1, 3).tobytes()

    def parameter_image(self) -> bytes:
        product, config = self.product, self.product.config
        columns = config.columns
        bias = np.zeros(product.result_pitch, np.int32)
        bias[: product.width] = self.bias
        multiplier = np.full(columns, MULTIPLIER, np.int32).tobytes()
        exponent = np.full(columns, 1 - self.shift, np.int8).tobytes()
        rows = []
        for start in range(0, product.result_pitch, columns):
            row = bias[start : start + columns].tobytes() + multiplier + exponent
            rows.append(row.ljust(config.parameter_row_bytes, b"\0"))
        return b"".join(rows)
