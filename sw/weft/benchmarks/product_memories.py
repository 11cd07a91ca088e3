"""Where operands, sums and results of products lie on chip: rings that are filled round and round.

Results lie in activation banks of their own, so that STORE and VECTOR never meet MATRIX and LOAD;
sums lie in the accumulators' banks by turns, so that MATRIX fills one while VECTOR reads another.
"""

from weft.benchmarks.blocks import Block, requantize_block, scale_of, store_block
from weft.compiler.context import Ring
from weft.compiler.stream import Stream
from weft_hw.config import AcceleratorConfig

__all__ = ["ProductMemories"]


class ProductMemories:
    """The stream of one schedule, and its rings.

    Parameters
    ----------
    config : AcceleratorConfig
    name : str
        Of the result.
    shift : int
        Of a gradient's scale.
    """

    def __init__(self, config: AcceleratorConfig, name: str, shift: int) -> None:
        self.config, self.name, self.shift = config, name, shift
        self.stream = Stream()
        self.result_base = config.activation_bytes * 3 // 4
        self.left = Ring(self.result_base)
        self.results = Ring(config.activation_bytes - self.result_base)
        self.top = Ring(config.weight_bytes)
        self._banks = [Ring(config.accumulator_rows) for _ in range(config.accumulator_banks)]
        self._bank = 0

    def sums(self, rows: int) -> int:
        """First of some accumulator rows, in the bank whose turn it is."""
        self._bank = (self._bank + 1) % self.config.accumulator_banks
        start = self._banks[self._bank].place(None, rows)
        return self._bank * self.config.accumulator_rows + start

    def finish(self, sums: int, target: Block, parameters: int | None = None) -> None:
        """Requantize a block of sums, of whole column tiles, and store it to DRAM."""
        size = target.rows * target.run
        address = self.result_base + self.results.place(None, size)
        result = Block(address, target.rows, target.run, target.run)
        scale = scale_of(parameters, self.shift)
        requantize_block(self.stream, self.config, sums, result, scale)
        store_block(self.stream, target, result, f"store {self.name}")
