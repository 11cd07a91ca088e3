"""Proofs of the counting semaphores."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal

from formal.harness import add, always, free, past
from formal.prover import INDUCTION, Proof
from weft_hw.config import PRESETS
from weft_hw.gateware.semaphores import Semaphores

__all__ = ["PROOFS"]

TINY = PRESETS["tiny"]


def conservation(m: Module, *, unit: type[Semaphores] = Semaphores) -> None:
    """For each semaphore: signals come - grants given - signals lost = count; and all of:

    a grant takes only what is there, no two grants take one count, a request that can be served,
    that no lower queue contests and whose semaphores were not granted in the cycle before is
    served, overflow is high exactly when a signal is lost.
    """
    dut = unit(TINY)
    inside = add(m, dut)
    queues, largest = range(4), (1 << TINY.semaphore_bits) - 1
    free(m, dut.clear)
    for q in queues:
        free(m, dut.request[q], dut.mask[q], dut.signal[q])
        always(m, ~dut.grant[q] | dut.request[q])

    held = []
    resting = []  # granted in the cycle before: not in this one
    losses = []
    for number in range(TINY.semaphores):
        # The balance of what came, went and was lost, wider than any count.
        value = Signal(TINY.semaphore_bits + 3, name=f"held_{number}")
        arriving = Signal(3, name=f"arriving_{number}")
        leaving = Signal(3, name=f"leaving_{number}")
        surplus = Signal(TINY.semaphore_bits + 3, name=f"surplus_{number}")
        loss = Signal(name=f"loss_{number}")
        m.d.comb += [
            arriving.eq(sum(dut.signal[q][number] for q in queues)),
            leaving.eq(sum(dut.grant[q] & dut.mask[q][number] for q in queues)),
            surplus.eq(value + arriving),
            loss.eq(surplus > largest),
        ]
        m.d.sync += value.eq(Mux(loss, largest, surplus) - leaving)
        with m.If(dut.clear):
            m.d.sync += value.eq(0)
        just = Signal(name=f"just_granted_{number}")
        m.d.sync += just.eq((leaving != 0) & ~dut.clear)
        always(m, inside["taken"][number] == just)
        always(m, inside[f"count_{number}"] == value + just)
        always(m, inside["positive"][number] == (value + just != 0))
        resting.append(just)
        always(m, leaving <= Mux(value != 0, 1, 0))
        held.append(value)
        losses.append(loss)
    # An overflow is reported in the next cycle.
    lost = [past(m, loss, f"lost_{i}") for i, loss in enumerate(losses)]
    signalled = [past(m, dut.signal[q], f"signalled_{q}") for q in queues]
    always(m, inside["overflowed"] == Cat(lost))
    for q in queues:
        always(m, inside[f"signalled_{q}"] == signalled[q])
    always(m, dut.overflow == reduce(or_, lost))

    for q in queues:
        missing = reduce(
            or_, (dut.mask[q][i] & ((held[i] == 0) | resting[i]) for i in range(len(held)))
        )
        contested = reduce(
            or_, (dut.request[k] & (dut.mask[k] & dut.mask[q]).any() for k in range(q)), 0
        )
        always(m, dut.grant[q] == (dut.request[q] & ~missing & ~contested))
        lossy = reduce(or_, (signalled[q][i] & lost[i] for i in range(len(lost))))
        lower = reduce(
            or_,
            (signalled[k][i] & lost[i] for i in range(len(lost)) for k in range(q)),
            0,
        )
        always(m, ~(lossy & ~lower) | (dut.overflow_queue == q))


PROOFS = [
    Proof(
        "semaphores",
        "signals - grants - lost = count for all 16; a grant takes what is there; "
        "overflow is flagged exactly when a signal is lost, with the lowest queue at fault",
        conservation,
        INDUCTION,
        1,
    )
]
