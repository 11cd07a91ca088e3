"""Run the proofs and print the table; ends with 1 unless each one is proved."""

import argparse

from formal import addresses, axi, loops, queues, semaphores
from formal.prover import Proof, prove

__all__ = ["PROOFS", "main"]

PROOFS: list[Proof] = [
    *semaphores.PROOFS,
    *queues.PROOFS,
    *loops.PROOFS,
    *addresses.PROOFS,
    *axi.PROOFS,
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m formal", description=__doc__)
    parser.add_argument("words", nargs="*", help="only proofs whose name has one")
    parser.add_argument("--timeout", type=int, default=120, help="seconds for each proof")
    arguments = parser.parse_args()
    chosen = [
        proof
        for proof in PROOFS
        if not arguments.words or any(word in proof.name for word in arguments.words)
    ]
    missed = 0
    print("| proof | what it proves | mode | depth | result | s |\n|---|---|---|---|---|---|")
    for proof in chosen:
        result = prove(proof, timeout=arguments.timeout)
        missed += result.verdict != "proved"
        print(
            f"| {proof.name} | {proof.proves} | {proof.mode} | {proof.depth} "
            f"| {result.verdict} | {result.seconds:.0f} |",
            flush=True,
        )
        if result.verdict not in ("proved", "unknown"):
            print("\n".join(result.log.splitlines()[-15:]))
    print(f"{len(chosen) - missed} of {len(chosen)} proved")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main())
