"""Proofs of the instruction queues."""

from functools import partial

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data

from formal.harness import add, always, constant, free, given
from formal.prover import BOUNDED, Proof
from weft_hw.config import PRESETS
from weft_hw.gateware.instruction_queue import InstructionQueue
from weft_hw.gateware.row_queue import DEPTH, RowQueue
from weft_hw.instructions import INSTRUCTIONS, WORD_BYTES, Queue

__all__ = ["PROOFS"]

TINY = PRESETS["tiny"]
NUMBERS = 3  # bits of the number of a word or an instruction within a proof


def order(m: Module, queue: Queue) -> None:
    """Any chosen word comes out in its instruction's turn, in its place, unchanged; and its

    instruction's signals when that many instructions have retired.
    """
    dut = InstructionQueue(TINY, queue)
    add(m, dut)
    words, head = dut.words, dut.instruction
    # Opcode, wait and signal are free and so tag each word; the unit only copies the other bits.
    free(m, words.valid, words.payload.data[:40], words.payload.number[:3])
    free(m, dut.grant, head.ready, dut.retire)
    given(m, ~dut.grant | dut.request)
    given(m, ~dut.retire | dut.in_flight)

    # What goes in: whole instructions of this queue, one word after the other.
    kinds = [kind for kind in INSTRUCTIONS.values() if kind.queue is queue]
    opcode = words.payload.data[:8]
    place, left = Signal(4), Signal(4)  # within the instruction; words still to come
    size = Signal(4)
    known = 0
    for kind in kinds:
        known = known | (opcode == kind.opcode)
        with m.If(opcode == kind.opcode):
            m.d.comb += size.eq(kind.size // WORD_BYTES - 1)
    given(m, ~words.valid | (left != 0) | known)
    enters = words.valid & words.ready
    remaining = Mux(left == 0, size, left - 1)
    came = Signal(NUMBERS)  # whole instructions
    with m.If(enters):
        m.d.sync += [left.eq(remaining), place.eq(Mux(remaining == 0, 0, place + 1))]
        m.d.sync += came.eq(came + (remaining == 0))

    # The chosen word.
    which, where = constant(m, NUMBERS, "which"), constant(m, 4, "where")
    seen = Signal()
    data, number, short = Signal(8 * WORD_BYTES), Signal(28), Signal(4)
    with m.If(enters & (came == which) & (place == 0)):
        m.d.sync += [number.eq(words.payload.number), short.eq(size)]
    with m.If(enters & (came == which) & (place == where)):
        m.d.sync += [seen.eq(1), data.eq(words.payload.data)]

    started, retired = Signal(NUMBERS), Signal(NUMBERS)
    starts = head.valid & head.ready
    m.d.sync += [started.eq(started + starts), retired.eq(retired + dut.retire)]
    always(m, ~head.valid | (started < came))
    fields = head.payload.fields.as_value()
    longest = len(fields) // (8 * WORD_BYTES)
    now = head.valid & (started == which)
    for i in range(longest):
        part = fields[8 * WORD_BYTES * i : 8 * WORD_BYTES * (i + 1)]
        here = now & (where == i)
        always(m, ~here | Mux(i <= short, seen & (part == data), part == 0))
    always(m, ~now | (head.payload.offset == Cat(Signal(4), number)))

    # Its signals are sent once, when it retires.
    signals, gone = Signal(16), Signal()
    with m.If(starts & (started == which)):
        m.d.sync += [gone.eq(1), signals.eq(head.payload.fields.signal)]
    mine = dut.retire & (retired == which)
    always(m, ~mine | (gone & (dut.signal == Mux(dut.stop, 0, signals))))
    always(m, dut.retire | (dut.signal == 0))
    always(m, dut.in_flight == (started != retired))
    always(m, ~dut.empty | ((started == came) & (retired == came)))
    free(m, dut.stop)


def rows(m: Module) -> None:
    """Requests leave a row queue in order, unchanged, as many as came; each promise finds room."""
    dut = RowQueue(data.StructLayout({"tag": 4}))
    add(m, dut)
    free(m, dut.promise, dut.withdraw, dut.i_valid, dut.i, dut.taken)
    due = Signal(4)  # promised, and not yet come
    given(m, ~dut.promise | dut.room)
    given(m, ~dut.taken | dut.o_valid)
    given(m, ~(dut.i_valid & dut.withdraw) & (~(dut.i_valid | dut.withdraw) | (due != 0)))
    m.d.sync += due.eq(due + dut.promise - dut.i_valid - dut.withdraw)

    which = constant(m, NUMBERS + 1, "which")
    came, left = Signal(NUMBERS + 1), Signal(NUMBERS + 1)
    tag = Signal(4)
    m.d.sync += [came.eq(came + dut.i_valid), left.eq(left + dut.taken)]
    with m.If(dut.i_valid & (came == which)):
        m.d.sync += tag.eq(dut.i.tag)
    always(m, ~dut.o_valid | (left != came))
    always(m, ~(dut.o_valid & (left == which)) | (dut.o.tag == tag))
    always(m, dut.pending == (left != came))
    always(m, due + (came - left)[: NUMBERS + 1] <= DEPTH)


PROOFS = [
    Proof(
        "queue: rows",
        "every promised request finds room and comes out in order, unchanged",
        rows,
        BOUNDED,
        11,
    ),
    *(
        Proof(
            f"queue: {queue.name}",
            "every word comes out in its instruction's turn and place, unchanged; none is dropped, "
            "added or reordered; signals are those of the instruction that retires",
            partial(order, queue=queue),
            BOUNDED,
            depth,
        )
        for queue, depth in ((Queue.STORE, 8), (Queue.VECTOR, 8))
    ),
]
