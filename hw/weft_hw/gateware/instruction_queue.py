"""One engine's instruction queue: words in, whole instructions out, signals on retirement."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.block_memory import BlockFifo
from weft_hw.gateware.choice import numbered
from weft_hw.gateware.interfaces import EnginePort
from weft_hw.instructions import INSTRUCTIONS, SEMAPHORE_BITS, WORD_BYTES, Instruction, Queue

__all__ = ["IN_FLIGHT", "InstructionQueue", "engine_kind", "queue_word_layout"]

IN_FLIGHT = 8
"""Instructions that an engine may have accepted and not yet retired."""

OFFSET_BITS = 32 - (WORD_BYTES - 1).bit_length()  # of a word, so that bytes fill 32 bits


def queue_word_layout() -> data.StructLayout:
    """A word of the program and its number, counted from the program's first word."""
    return data.StructLayout({"data": unsigned(8 * WORD_BYTES), "number": unsigned(OFFSET_BITS)})


def engine_kind(queue: Queue) -> type[Instruction]:
    """The largest instruction of a queue: its layout is that of the engine's port."""
    return max((k for k in INSTRUCTIONS.values() if k.queue is queue), key=lambda kind: kind.size)


class InstructionQueue(wiring.Component):
    """Collects words into instructions, holds each until its semaphores allow it to start, and
    remembers the signals of those in the engine until they retire::

        words -> FIFO (queue_depth instructions) -> head -> engine
                                                     |        | retire
                                          waits <----+        v
                                          FIFO of (signals, offset) -> signals

    The head takes one word a cycle while the engine works on earlier instructions. An instruction
    shorter than the queue's largest is extended with zeros.

    Timing: a word written to an empty queue reaches the head two cycles later. The complete head
    asks for its semaphores at once and is presented to the engine in the cycle after the grant. The
    first word of the next instruction reaches the head two cycles after the engine took this one.

    Parameters
    ----------
    config : AcceleratorConfig
    queue : Queue

    Members
    -------
    words : In(stream of queue_word_layout)
        Whole instructions of this queue.
    instruction : Out(the engine's instruction stream)
    request, mask, grant : Out(1), Out(16), In(1)
        See :class:`weft_hw.gateware.semaphores.Semaphores`.
    retire : In(1)
        The oldest instruction in the engine retires.
    signal : Out(16)
        Its signals, in the cycle of ``retire``.
    stop : In(1)
        Nothing more is requested or signalled.
    started : Out(1)
        The engine takes the head.
    waiting : Out(1)
        A semaphore holds the head back.
    empty : Out(1)
        No word, head or unretired instruction.
    in_flight : Out(1)
        An instruction is in the engine.
    head_offset, oldest_offset : Out(32)
        Byte offset of the head, and of the oldest instruction that has not retired (if there is
        none, of the last one that came).
    """

    def __init__(self, config: AcceleratorConfig, queue: Queue) -> None:
        self._config = config
        self._kinds = [kind for kind in INSTRUCTIONS.values() if kind.queue is queue]
        self._largest = engine_kind(queue)
        port = EnginePort(self._largest)
        super().__init__(
            {
                "words": In(stream.Signature(queue_word_layout())),
                "instruction": port.members["instruction"],
                "request": Out(1),
                "mask": Out(SEMAPHORE_BITS),
                "grant": In(1),
                "retire": In(1),
                "signal": Out(SEMAPHORE_BITS),
                "stop": In(1),
                "started": Out(1),
                "waiting": Out(1),
                "empty": Out(1),
                "in_flight": Out(1),
                "head_offset": Out(32),
                "oldest_offset": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        words = self._largest.size // WORD_BYTES
        layout = queue_word_layout()
        # Beside each word, as if it were an instruction's first one, of which kind that is: the
        # memory gives its words late in a cycle.
        kind_shape = range(max(2, len(self._kinds)))  # no signal may have a width of zero
        stored_layout = data.StructLayout({"word": layout, "kind": kind_shape})
        m.submodules.stored = stored = BlockFifo(
            width=stored_layout.size, depth=self._config.queue_depth * words
        )
        arriving = Signal(stored_layout)
        m.d.comb += arriving.word.eq(self.words.payload)
        for number, kind in enumerate(self._kinds):
            with m.If(self.words.payload.data[:8] == kind.opcode):
                m.d.comb += arriving.kind.eq(number)
        m.d.comb += [
            stored.w_data.eq(arriving),
            stored.w_en.eq(self.words.valid),
            self.words.ready.eq(stored.w_rdy),
        ]

        # The head: one word a cycle, until the instruction is complete.
        arrived = data.View(stored_layout, stored.r_data)
        word = arrived.word
        parts = [Signal(8 * WORD_BYTES, name=f"word_{i}", reset_less=True) for i in range(words)]
        number = Signal(OFFSET_BITS, reset_less=True)
        position = Signal(range(words))
        begun_kind = Signal(kind_shape, reset_less=True)
        final = Signal(range(words))  # position of the instruction's last word
        complete = Signal()
        pop = Signal()
        m.d.comb += final.eq(
            numbered(
                Mux(position == 0, arrived.kind, begun_kind),
                [Const(kind.size // WORD_BYTES - 1) for kind in self._kinds],
            )
        )
        m.d.comb += [
            pop.eq(stored.r_rdy & ~complete),
            stored.r_en.eq(pop),
        ]
        with m.If(self.started):
            m.d.sync += complete.eq(0)
        with m.If(pop):
            m.d.sync += [
                complete.eq(position == final),
                position.eq(position + 1),
            ]
            with m.If(position == final):
                m.d.sync += position.eq(0)
            with m.If(position == 0):
                m.d.sync += [number.eq(word.number), begun_kind.eq(arrived.kind)]
            for index, part in enumerate(parts):
                with m.If(position == index):
                    m.d.sync += part.eq(word.data)
        # What an instruction does not have is zero: cleared before its first word comes, as of
        # which kind it is the memory tells late.
        with m.If((position == 0) & ~complete):
            m.d.sync += [part.eq(0) for part in parts[1:]]

        # Waits, then the engine.
        m.submodules.unretired = unretired = fifo.SyncFIFO(
            width=SEMAPHORE_BITS + OFFSET_BITS, depth=IN_FLIGHT
        )
        granted = Signal()
        fields = Cat(parts)
        m.d.comb += [
            self.mask.eq(fields[8 : 8 + SEMAPHORE_BITS]),
            self.request.eq(complete & ~granted & unretired.w_rdy & ~self.stop),
            self.waiting.eq(self.request & ~self.grant),
            self.instruction.valid.eq(granted),
            self.instruction.payload.fields.eq(fields),
            self.instruction.payload.offset.eq(self.head_offset),
            self.head_offset.eq(number << (WORD_BYTES - 1).bit_length()),
            self.started.eq(self.instruction.valid & self.instruction.ready),
        ]
        m.d.sync += granted.eq((self.request & self.grant) | (granted & ~self.started))

        # In the engine.
        m.d.comb += [
            unretired.w_en.eq(self.started),
            unretired.w_data.eq(Cat(fields[8 + SEMAPHORE_BITS : 8 + 2 * SEMAPHORE_BITS], number)),
            unretired.r_en.eq(self.retire),
            self.in_flight.eq(unretired.r_rdy),
            self.oldest_offset.eq(self.head_offset),
            self.empty.eq((stored.level == 0) & (position == 0) & ~complete & ~unretired.r_rdy),
        ]
        with m.If(unretired.r_rdy):
            m.d.comb += self.oldest_offset.eq(
                unretired.r_data[SEMAPHORE_BITS:] << (WORD_BYTES - 1).bit_length()
            )
        with m.If(self.retire & unretired.r_rdy & ~self.stop):
            m.d.comb += self.signal.eq(unretired.r_data[:SEMAPHORE_BITS])
        return m
