"""One quick proof, and the proof that proofs can fail: a broken unit, a false claim."""

import dataclasses

import pytest
from amaranth.hdl import Module, Signal

from formal.__main__ import PROOFS as EVERY_PROOF
from formal.harness import always
from formal.loops import PROOFS, visits
from formal.prover import BOUNDED, Proof, prove, to_rtlil
from weft_hw.gateware.loops import LoopNest

pytestmark = pytest.mark.formal

TRIPS = PROOFS[0]


@pytest.mark.parametrize("proof", EVERY_PROOF, ids=lambda proof: proof.name)
def test_every_proof_finds_what_it_looks_at(proof: Proof) -> None:
    """`make formal` takes minutes: here only the signals of the units are looked up."""
    assert any(claim in to_rtlil(proof) for claim in ("$assert", "$check"))


def test_trips_of_the_loop_nest_are_proved() -> None:
    result = prove(TRIPS)
    assert result.verdict == "proved", result.log


def test_a_broken_loop_nest_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    elaborate = LoopNest.elaborate

    def broken(self: LoopNest, platform: object) -> Module:
        m = elaborate(self, platform)
        with m.If(self.advance):  # claims to be on the first trip ever after
            m.d.sync += self.first.eq(-1)
        return m

    monkeypatch.setattr(LoopNest, "elaborate", broken)
    result = prove(dataclasses.replace(TRIPS, mode=BOUNDED, depth=5))
    assert result.verdict == "refuted", result.log


def test_assumptions_leave_behaviour_to_check() -> None:
    """A false claim about time is refuted: the clock runs, nothing contradicts itself."""

    def build(m: Module) -> None:
        visits(m)
        cycles = Signal(4)
        m.d.sync += cycles.eq(cycles + 1)
        always(m, cycles != 3)

    result = prove(Proof("false", "", build, BOUNDED, 5))
    assert result.verdict == "refuted", result.log
