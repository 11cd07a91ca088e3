"""The block cipher Speck32/64 as published, and the random bits of stochastic rounding from it.

Beaulieu et al., "The SIMON and SPECK Families of Lightweight Block Ciphers", 2013. It shares
nothing with :func:`weft_hw.arithmetic.random_bits`.
"""

__all__ = ["encrypt", "random_word"]


def _right(word: int, places: int) -> int:
    return int(f"{word:016b}"[-places:] + f"{word:016b}"[:-places], 2)


def encrypt(
    x: int, y: int, key: tuple[int, int, int, int], rounds: range = range(22)
) -> tuple[int, int]:
    """Some rounds; ``key`` is (l2, l1, l0, k0), as the paper prints its test vectors."""
    *later, word = key
    pending = later[::-1]

    def step(left: int, right: int, round_key: int) -> tuple[int, int]:
        left = ((_right(left, 7) + right) % 65536) ^ round_key
        return left, _right(right, 14) ^ left

    for number in range(rounds.stop):
        if number >= rounds.start:
            x, y = step(x, y, word)
        new, word = step(pending.pop(0), word, number)
        pending.append(new)
    return x, y


def random_word(seed: int, step: int, tensor: int, index: int) -> int:
    """16 bits for an element."""
    block = index % 2**32 ^ tensor * 2**20
    key = (seed // 65536, step // 65536, seed % 65536, step % 65536)
    return encrypt(block // 65536, block % 65536, key, rounds=range(5, 12))[0]
