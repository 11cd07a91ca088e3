"""Random bits of stochastic rounding: the contract's function of place, one vector a cycle."""

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from weft_hw.arithmetic import RANDOM_ROUNDS

__all__ = ["RandomBits"]

WORD = 16


class RandomBits(wiring.Component):
    """``weft_hw.arithmetic.random_bits(seed, step, tensor, index + lane)`` in every lane.

    One register for the block and one for each round; x lies in it without its round's key, which
    the next adder's own gates bring in. A vector enters with ``i_valid`` and its bits
    are there ``latency`` cycles later, for one cycle; a stage without a vector does not switch. The
    round keys follow ``seed`` and ``step``, which are to be held, a cycle later for each number.

    Parameters
    ----------
    lanes : int

    Members
    -------
    seed, step : In(32)
    i_valid, index, tensor : In(1), In(32), In(12)
        The element in lane 0.
    bits : Out(16), an array of lanes
    """

    def __init__(self, lanes: int) -> None:
        if not isinstance(lanes, int) or lanes < 1:
            raise ValueError(f"`lanes` must be a positive integer, not {lanes!r}")
        self._lanes = lanes
        super().__init__(
            {
                "seed": In(32),
                "step": In(32),
                "i_valid": In(1),
                "index": In(32),
                "tensor": In(12),
                "bits": Out(WORD).array(lanes),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a vector's entry to its bits."""
        return 1 + len(RANDOM_ROUNDS)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        keys = self._keys(m)
        valid = [self.i_valid]
        for k in range(len(keys)):
            valid.append(Signal(name=f"valid_{k}"))
            m.d.sync += valid[k + 1].eq(valid[k])
        for lane, output in enumerate(self.bits):
            block = Signal(2 * WORD, name=f"block_{lane}", reset_less=True)
            with m.If(valid[0]):
                m.d.sync += block.eq((self.index + lane)[:32] ^ (self.tensor << 20))
            y, x = block[:WORD], block[WORD:]
            x_key: Value = Const(0, WORD)
            for k, key in enumerate(keys):
                total = Signal(WORD, name=f"total_{lane}_{k}")
                next_x = Signal(WORD, name=f"x_{lane}_{k}", reset_less=True)
                next_y = Signal(WORD, name=f"y_{lane}_{k}", reset_less=True)
                m.d.comb += total.eq(_rotated_right(x ^ x_key, 7) + y)
                with m.If(valid[k + 1]):
                    m.d.sync += [next_x.eq(total), next_y.eq(_rotated_right(y, 14) ^ total ^ key)]
                x, y, x_key = next_x, next_y, key
            m.d.comb += output.eq(x ^ x_key)
        return m

    def _keys(self, m: Module) -> list[Value]:
        """Round keys, each made from the one before in a cycle."""
        keys: list[Value] = [self.step[:WORD]]
        others: list[Value] = [self.seed[:WORD], self.step[WORD:], self.seed[WORD:]]
        for k in range(RANDOM_ROUNDS.stop - 1):
            other = Signal(WORD, name=f"other_{k}")
            other_held = Signal(WORD, name=f"other_held_{k}", reset_less=True)
            key = Signal(WORD, name=f"key_{k}", reset_less=True)
            m.d.comb += other.eq((keys[k] + _rotated_right(others[k], 7))[:WORD] ^ k)
            m.d.sync += [other_held.eq(other), key.eq(_rotated_right(keys[k], 14) ^ other)]
            others.append(other_held)
            keys.append(key)
        return keys[RANDOM_ROUNDS.start :]


def _rotated_right(word: Value, places: int) -> Value:
    return Cat(word[places:], word[:places])
