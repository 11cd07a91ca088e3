"""A dense layer's matrix products on the machine, checked against NumPy: `weft bench gemm`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.benchmarks.blocks import MULTIPLIER
from weft.benchmarks.product import Addresses, Product, ProductKind
from weft.benchmarks.product_schedule import product_program
from weft.compiler.weights import check_weight_bits, pack_weights, weight_range
from weft.errors import InputError
from weft_hw import AcceleratorConfig
from weft_sim.device import RunResult, open_device

__all__ = ["bench_gemm", "kinds_of", "measurement", "stalls_of"]

PAGE = 4096
ENGINES = ("LOAD", "MATRIX", "VECTOR", "STORE")


def kinds_of(config: AcceleratorConfig, product: str, weight_bits: int = 8) -> list[ProductKind]:
    """The products that a word stands for: one of them, or ``all`` that the machine computes.

    Raises
    ------
    InputError
        If there is no such product, or if the machine does not compute it.
    """
    known = {kind.value: kind for kind in ProductKind}
    square = config.rows == config.columns
    if product == "all":
        if weight_bits != 8:
            return [ProductKind.Y]
        return [kind for kind in ProductKind if square or kind is not ProductKind.DX]
    if product not in known:
        raise InputError(f"`--product` must be {', '.join(known)} or all, not {product!r}")
    if known[product] is not ProductKind.Y and weight_bits != 8:
        raise InputError(f"{product} has operands of 8 bits; `--weight-bits` is for Y alone")
    if known[product] is ProductKind.DX and not square:
        raise InputError(
            "dX needs weight tiles that enter transposed, and so a square array; "
            f"{config.name} has {config.rows} rows and {config.columns} columns"
        )
    return [known[product]]


def bench_gemm(
    config: AcceleratorConfig,
    shape: tuple[int, int, int],
    *,
    engine: str,
    products: Sequence[ProductKind] = (ProductKind.Y,),
    repeat: int = 1,
    weight_bits: int = 8,
    seed: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """Run products on ``repeat`` different operands in one program each; compare every element.

    Operands and results are int8 (W: of ``weight_bits``) and lie in DRAM, W in array tiles. Results
    are scaled by a power of two and rounded half to even; Y has a bias too.

    Parameters
    ----------
    config : AcceleratorConfig
    shape : (M, K, N)
        X has M by K elements, W K by N.
    engine : {"rtl", "functional"}
    products : sequence of ProductKind
    repeat : int
    weight_bits : int
        Width of W's elements in memory and in the array; see :func:`check_weight_bits`. With less
        than 8 only Y is possible.
    seed : int
        Of the operands.
    **options
        Of the engine, see :func:`weft_sim.device.open_device`.

    Returns
    -------
    list of dict
        A :func:`measurement` for each product.

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
    results = []
    for kind in products:
        product = Product(config, kind, shape, weight_bits)
        result = _run(product, engine, repeat, np.random.default_rng(seed), options)
        macs = product.macs * repeat
        results.append(measurement(kind.value, config, macs, result, weight_bits))
    return results


def _run(
    product: Product, engine: str, repeat: int, rng: np.random.Generator, options: dict[str, Any]
) -> RunResult:
    config = product.config
    cases = [_Case.random(product, rng) for _ in range(repeat)]
    places, end = _places(product, repeat)
    if end > 1 << config.address_width:
        raise InputError(f"{end} bytes of operands are more than {config.name} can address")
    program = product_program(product, places, cases[0].shift)
    memory_bytes = -(-(end + len(program)) // PAGE) * PAGE
    device = open_device(engine, config, memory_bytes=memory_bytes, **options)
    try:
        for case, place in zip(cases, places, strict=True):
            device.write_memory(place.left, case.left_image())
            device.write_memory(place.top, case.top_image())
            device.write_memory(place.parameters, case.parameter_image())
        device.write_memory(end, program)
        result = device.run(end)
        for number, (case, place) in enumerate(zip(cases, places, strict=True)):
            image = device.read_memory(place.result, product.result_bytes)
            matrix = image.view(np.int8).reshape(product.stored_rows, -1)
            got = matrix[: product.rows, : product.width]
            wrong = int(np.count_nonzero(got != case.expected()))
            if wrong:
                raise RuntimeError(
                    f"{product.kind.value}, product {number}: {wrong} of {got.size} elements are "
                    "wrong"
                )
    finally:
        device.close()
    return result


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
    sizes = (product.left_bytes, product.top_bytes, parameters, product.result_bytes)
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
    """Operands of one product: the left one, W or (of dW) dY, and Y's bias."""

    product: Product
    left: NDArray[np.int8]
    top: NDArray[np.int8]
    bias: NDArray[np.int32]
    shift: int

    @classmethod
    def random(cls, product: Product, rng: np.random.Generator) -> "_Case":
        low, high = weight_range(product.weight_bits)
        deviation = 73 * 2.0 ** (product.weight_bits - 8)  # of uniform values of that width
        spread = 73 * deviation * np.sqrt(product.depth)
        rows, depth, width = product.shape
        left = (rows, width) if product.kind is ProductKind.DX else (rows, depth)
        top = (rows, width) if product.kind is ProductKind.DW else (depth, width)
        limit = 5001 if product.kind is ProductKind.Y else 1
        return cls(
            product,
            rng.integers(-128, 128, left).astype(np.int8),
            rng.integers(low, high + 1, top).astype(np.int8),
            rng.integers(1 - limit, limit, product.width).astype(np.int32),
            max(1, int(np.log2(spread / 50))),  # few results saturate, most bits matter
        )

    def expected(self) -> NDArray[np.int8]:
        """The result by floating point, which is exact here: all sums are below 2^53."""
        left, top = self.left.astype(np.float64), self.top.astype(np.float64)
        match self.product.kind:
            case ProductKind.Y:
                sums = left @ top + self.bias
            case ProductKind.DX:
                sums = left @ top.T
            case ProductKind.DW:
                sums = left.T @ top
        return np.clip(np.rint(sums / 2.0**self.shift), -128, 127).astype(np.int8)

    def left_image(self) -> bytes:
        return _padded(self.left, len(self.left), self.product.left_pitch).tobytes()

    def top_image(self) -> bytes:
        """dY as it is; W in array tiles, those of a column tile behind one another."""
        product, config = self.product, self.product.config
        if product.kind is ProductKind.DW:
            return _padded(self.top, len(self.top), product.result_pitch).tobytes()
        height = -(-self.top.shape[0] // product.left_row)
        width = -(-self.top.shape[1] // config.columns)
        padded = _padded(self.top, height * product.left_row, width * config.columns)
        packed = pack_weights(padded, product.weight_bits)
        tiles = packed.reshape(height, config.rows, width, config.columns)
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


def _padded(matrix: NDArray[np.int8], rows: int, columns: int) -> NDArray[np.int8]:
    result = np.zeros((rows, columns), np.int8)
    result[: matrix.shape[0], : matrix.shape[1]] = matrix
    return result
