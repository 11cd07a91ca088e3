"""Dispatch: routes the program's instructions to four queues and lets semaphores start them."""

from types import SimpleNamespace

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.fetch import word_layout
from weft_hw.gateware.instruction_queue import InstructionQueue, engine_kind
from weft_hw.gateware.interfaces import EnginePort, FaultReport
from weft_hw.gateware.semaphores import Semaphores
from weft_hw.instructions import DRAM_BITS, INSTRUCTIONS, WORD_BYTES, End, Queue
from weft_hw.registers import FaultCause

__all__ = ["Dispatch"]

WORD_SHIFT = (WORD_BYTES - 1).bit_length()

REST_CYCLES = 3
"""Cycles from the last retirement to ``done`` in which a fault may still be on its way."""


class State(enum.Enum, shape=3):
    """What the next word is."""

    IDLE = 0
    FIRST = 1  # the first word of an instruction
    REST = 2  # another word of it
    ENDING = 3  # nothing: END has come
    HALTED = 4  # nothing: a fault of dispatch itself


class Dispatch(wiring.Component):
    """Reads words from ``start`` to END, one a cycle, into the queues that their opcodes name.

    A word that its queue has no room for holds back all that follow. An instruction is presented to
    its engine once its semaphores allow it, see :class:`InstructionQueue`. After END, ``done`` is
    high for one cycle once every queue and engine is empty and fetch is quiet.

    Faults of dispatch: ALIGNMENT (program address), FETCH_ERROR (a bus error in a word that was
    needed, or a program address beyond the bus), BAD_OPCODE; with the word's address in DRAM.

    The waits and signals of END are not looked at.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        Begin; semaphores become zero.
    program_address : In(40)
        Held while the program runs.
    words : In(stream of word_layout)
    fetch_start, fetch_ended, fetch_busy : Out(1), Out(1), In(1)
        Fetch shall begin; END has been seen; fetch has bursts outstanding.
    load, matrix, vector, store : Out(EnginePort)
    stop : In(1)
        From the first fault on; the engines learn it a cycle later.
    done : Out(1)
    started, retired, waiting, in_flight : Out(4)
        One bit a queue: the engine takes an instruction; retires one; the head is held back by a
        semaphore; instructions are in the engine.
    head_offset, oldest_offset : Out(32), arrays by queue
        Byte offsets of the head and of the oldest instruction that has not retired.
    fault : Out(FaultReport)
    overflow, overflow_queue : Out(FaultReport), Out(2)
        SEMAPHORE_OVERFLOW: a fault of the queue whose instruction signalled.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        queues = len(Queue)
        super().__init__(
            {
                "start": In(1),
                "program_address": In(DRAM_BITS),
                "words": In(stream.Signature(word_layout())),
                "fetch_start": Out(1),
                "fetch_ended": Out(1),
                "fetch_busy": In(1),
                **{queue.name.lower(): Out(EnginePort(engine_kind(queue))) for queue in Queue},
                "stop": In(1),
                "done": Out(1),
                "started": Out(queues),
                "retired": Out(queues),
                "waiting": Out(queues),
                "in_flight": Out(queues),
                "head_offset": Out(32).array(queues),
                "oldest_offset": Out(32).array(queues),
                "fault": Out(FaultReport()),
                "overflow": Out(FaultReport()),
                "overflow_queue": Out(range(queues)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.semaphores = semaphores = Semaphores(self._config)
        queues = [InstructionQueue(self._config, queue) for queue in Queue]
        for queue, component in zip(Queue, queues):
            m.submodules[queue.name.lower()] = component
            self._connect_queue(m, queue, component, semaphores)
        for name in ("started", "waiting", "in_flight"):
            m.d.comb += getattr(self, name).eq(Cat(getattr(queue, name) for queue in queues))
        m.d.comb += semaphores.clear.eq(self.start)

        quiet = Signal()
        m.d.comb += quiet.eq(
            Cat(queue.empty for queue in queues).all()
            & ~Cat(getattr(self, queue.name.lower()).busy for queue in Queue).any()
            & ~self.fetch_busy
        )
        self._report_overflow(m, semaphores)
        self._route(m, queues, quiet)
        return m

    def _connect_queue(
        self, m: Module, queue: Queue, component: InstructionQueue, semaphores: Semaphores
    ) -> None:
        engine = getattr(self, queue.name.lower())
        m.d.comb += [
            engine.instruction.payload.eq(component.instruction.payload),
            engine.instruction.valid.eq(component.instruction.valid),
            component.instruction.ready.eq(engine.instruction.ready),
            component.retire.eq(engine.retire),
            component.stop.eq(self.stop),
            semaphores.request[queue].eq(component.request),
            semaphores.mask[queue].eq(component.mask),
            component.grant.eq(semaphores.grant[queue]),
            self.retired[queue].eq(engine.retire & ~self.stop),
            self.head_offset[queue].eq(component.head_offset),
            self.oldest_offset[queue].eq(component.oldest_offset),
        ]
        m.d.sync += [semaphores.signal[queue].eq(component.signal), engine.stop.eq(self.stop)]

    def _report_overflow(self, m: Module, semaphores: Semaphores) -> None:
        m.d.comb += [
            self.overflow.valid.eq(semaphores.overflow),
            self.overflow.cause.eq(FaultCause.SEMAPHORE_OVERFLOW),
            self.overflow_queue.eq(semaphores.overflow_queue),
        ]
        # Signals reach the semaphores in the cycle after the retirement; those report in the next.
        signalling = [Signal(32, name=f"signalling_{queue.name.lower()}") for queue in Queue]
        retired = [Signal(32, name=f"retired_{queue.name.lower()}") for queue in Queue]
        m.d.sync += [later.eq(offset) for later, offset in zip(retired, signalling)]
        for queue, offset in zip(Queue, signalling):
            with m.If(getattr(self, queue.name.lower()).retire):
                m.d.sync += offset.eq(self.oldest_offset[queue])
        m.d.comb += self.overflow.instruction.eq(Array(retired)[semaphores.overflow_queue])

    def _hold(self, m: Module, reading: Signal) -> SimpleNamespace:
        """The word to look at, in a register, its opcode compared with all that there are.

        One more is taken behind it, so that the queues' room is not asked for in the same cycle.
        """
        payload = Signal(word_layout(), name="word", reset_less=True)
        spare = Signal(word_layout(), name="spare_word", reset_less=True)
        valid, ready = Signal(name="word_valid"), Signal(name="word_ready")
        spare_valid = Signal(name="spare_word_valid")
        sound = Signal(name="word_sound")  # valid, and no bus error
        first_of = Signal(len(Queue), name="word_first_of")  # by queue: it may begin an instruction
        every = INSTRUCTIONS.values()
        kinds = {kind: Signal(name=f"word_is_{kind.__name__.lower()}") for kind in every}
        m.d.comb += self.words.ready.eq(reading & ~spare_valid)
        with m.If(~reading):
            m.d.sync += [valid.eq(0), sound.eq(0), spare_valid.eq(0)]
        with m.Elif(~valid | ready):
            following = data.View(word_layout(), Mux(spare_valid, spare, self.words.payload))
            arrives = spare_valid | self.words.valid
            m.d.sync += [valid.eq(arrives), spare_valid.eq(0)]
            m.d.sync += sound.eq(arrives & ~following.error)
            with m.If(arrives):
                m.d.sync += payload.eq(following)
                for kind, matches in kinds.items():
                    m.d.sync += matches.eq(following.data[:8] == kind.opcode)
                for queue in Queue:
                    own = (kind.opcode for kind in kinds if kind.queue is queue)
                    matching = [following.data[:8] == opcode for opcode in own]
                    m.d.sync += first_of[queue].eq(Cat(matching).any())
        with m.Elif(self.words.valid & self.words.ready):
            m.d.sync += [spare.eq(self.words.payload), spare_valid.eq(1)]
        return SimpleNamespace(
            payload=payload, valid=valid, ready=ready, kinds=kinds, sound=sound, first_of=first_of
        )

    def _route(self, m: Module, queues: list[InstructionQueue], quiet: Signal) -> None:
        config = self._config
        state = Signal(State)
        number = Signal(32 - WORD_SHIFT, reset_less=True)  # of the word that comes next
        first_number = Signal.like(number)  # of the first word of the current instruction
        remaining = Signal(range(max(kind.size for kind in INSTRUCTIONS.values()) // WORD_BYTES))
        target = Signal(len(queues))
        latched_target = Signal(len(queues))  # one-hot
        usable = Signal()  # the word may be looked at
        known = Signal()
        reading = Signal()
        m.d.comb += reading.eq((state == State.FIRST) | (state == State.REST))
        words = self._hold(m, reading)
        # By then a fault that the last retirement caused has stopped the machine.
        rest = Signal(REST_CYCLES)
        rested = Signal()
        m.d.sync += rest.eq(Cat(quiet, rest))
        m.d.comb += rested.eq(rest.all())  # of this cycle it is known late; nothing comes any more
        m.d.comb += usable.eq(words.sound & ~self.stop)

        for queue in Queue:
            component = queues[queue]
            m.d.comb += [
                component.words.valid.eq(usable & target[queue]),
                component.words.payload.data.eq(words.payload.data),
                component.words.payload.number.eq(number),
            ]
            with m.If(usable & target[queue]):
                m.d.comb += words.ready.eq(component.words.ready)
        taken = Signal()
        m.d.comb += taken.eq(words.valid & words.ready)
        with m.If(taken):
            m.d.sync += [number.eq(number + 1), remaining.eq(remaining - 1)]

        def raise_fault(cause: FaultCause) -> None:
            m.d.comb += [self.fault.valid.eq(1), self.fault.cause.eq(cause)]
            m.d.sync += state.eq(State.HALTED)

        m.d.comb += [
            self.fault.instruction.eq(number << WORD_SHIFT),
            self.fault.address.eq(self.program_address + (number << WORD_SHIFT)),
            self.fetch_ended.eq((state == State.ENDING) | (state == State.HALTED)),
        ]
        low_bits = config.bus_bytes.bit_length() - 1
        with m.Switch(state):
            with m.Case(State.IDLE):
                with m.If(self.start):
                    m.d.sync += number.eq(0)
                    m.d.comb += [
                        self.fault.instruction.eq(0),
                        self.fault.address.eq(self.program_address),
                    ]
                    with m.If(self.program_address[:low_bits].any()):
                        raise_fault(FaultCause.ALIGNMENT)
                    with m.Elif(self.program_address[config.address_width :].any()):
                        raise_fault(FaultCause.FETCH_ERROR)
                    with m.Else():
                        m.d.comb += self.fetch_start.eq(1)
                        m.d.sync += state.eq(State.FIRST)
            with m.Case(State.FIRST):
                for kind in INSTRUCTIONS.values():
                    with m.If(words.kinds[kind]):
                        m.d.comb += known.eq(1)
                        if kind.queue is None:
                            continue
                        with m.If(taken):
                            m.d.sync += remaining.eq(kind.size // WORD_BYTES - 1)
                            if kind.size > WORD_BYTES:
                                m.d.sync += state.eq(State.REST)
                m.d.comb += target.eq(words.first_of)
                m.d.sync += latched_target.eq(words.first_of)
                with m.If(taken):
                    m.d.sync += first_number.eq(number)
                with m.If(usable & words.kinds[End]):
                    m.d.comb += words.ready.eq(1)
                    m.d.sync += state.eq(State.ENDING)
                with m.If(usable & ~known):
                    raise_fault(FaultCause.BAD_OPCODE)
            with m.Case(State.REST):
                m.d.comb += [
                    target.eq(latched_target),
                    self.fault.instruction.eq(first_number << WORD_SHIFT),
                ]
                with m.If(taken & (remaining == 1)):
                    m.d.sync += state.eq(State.FIRST)
            with m.Case(State.ENDING):
                with m.If(rested & ~self.stop):
                    m.d.comb += self.done.eq(1)
                    m.d.sync += state.eq(State.IDLE)
        with m.If(reading & words.valid & words.payload.error & ~self.stop):
            raise_fault(FaultCause.FETCH_ERROR)
