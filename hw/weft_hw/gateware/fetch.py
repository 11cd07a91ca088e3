"""Instruction fetch: reads the program ahead of dispatch and hands it on in words."""

from amaranth.hdl import Cat, Module, ResetInserter, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.block_memory import BlockFifo
from weft_hw.gateware.interfaces import AxiReadPort
from weft_hw.instructions import WORD_BYTES

__all__ = ["Fetch", "word_layout"]

WORD_BITS = 8 * WORD_BYTES


def word_layout() -> data.StructLayout:
    """A word of the program; ``error``: the bus answered one of its beats with an error."""
    return data.StructLayout({"data": unsigned(WORD_BITS), "error": unsigned(1)})


class Fetch(wiring.Component):
    """Reads beats from ``address`` upwards into a bounded buffer, until ``ended`` or ``stop``.

    Bursts end at multiples of ``burst_beats`` beats, so that all but the first are of full length
    and none crosses 4 KiB. One is issued whenever the buffer has room for it beside those in
    flight; the buffer holds two. So little more than ``buffer_beats`` beats beyond END are read.
    They are dropped, and so are their errors: one counts once the word that it hit is taken.

    Flow control: R is always ready. ``words`` delivers at most one word a cycle; on a bus wider
    than a word this is what bounds the beats a cycle, on others one beat a cycle passes.

    Timing: the first request is valid in the cycle after ``start``; a beat is in ``words`` three
    cycles after its transfer.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        Begin at ``address``; allowed only while ``bus_busy`` is low.
    address : In(address_width)
        Aligned to beats.
    ended, stop : In(1)
        From now on nothing more is read; what the buffer holds is dropped.
    words : Out(stream of word_layout)
    axi : Out(AxiReadPort)
    bus_busy : Out(1)
        A request is valid or beats are outstanding.
    beat : Out(1)
        A beat arrives.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "address": In(config.address_width),
                "ended": In(1),
                "stop": In(1),
                "words": Out(stream.Signature(word_layout())),
                "axi": Out(AxiReadPort(config)),
                "bus_busy": Out(1),
                "beat": Out(1),
            }
        )

    @property
    def buffer_beats(self) -> int:
        """Beats that the buffer holds: two bursts, and a whole number of words."""
        return max(2 * self._config.burst_beats, 2 * WORD_BYTES // self._config.bus_bytes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        beat_bits, burst_bits = exact_log2(config.bus_bytes), exact_log2(config.burst_beats)
        active = Signal()
        with m.If(self.start):
            m.d.sync += active.eq(1)
        with m.If(self.ended | self.stop):
            m.d.sync += active.eq(0)

        # Requests, against the room that is neither filled nor promised.
        next_beat = Signal(config.address_width - beat_bits, reset_less=True)
        room = Signal(range(self.buffer_beats + 1), init=self.buffer_beats)
        length = Signal(range(config.burst_beats + 1), reset_less=True)  # of the next burst
        outstanding = Signal(range(self.buffer_beats + 1))  # beats
        requested = Signal()  # a new request becomes valid
        taken = Signal()  # a beat leaves the buffer
        m.d.comb += [
            requested.eq(
                active
                & ~self.ended
                & ~self.stop
                & (~self.axi.arvalid | self.axi.arready)
                & (room >= length)
            ),
            self.beat.eq(self.axi.rvalid & self.axi.rready),
            self.bus_busy.eq(self.axi.arvalid | outstanding.any()),
        ]
        with m.If(self.axi.arready):
            m.d.sync += self.axi.arvalid.eq(0)
        with m.If(requested):
            m.d.sync += [
                self.axi.arvalid.eq(1),
                self.axi.araddr.eq(next_beat << beat_bits),
                self.axi.arlen.eq(length - 1),
                next_beat.eq(next_beat + length),
                length.eq(config.burst_beats),
            ]
        added = Signal.like(length)
        with m.If(requested):
            m.d.comb += added.eq(length)
        m.d.sync += [
            room.eq(room - added + taken),
            outstanding.eq(outstanding + added - self.beat),
        ]
        with m.If(self.start):
            first_beat = self.address[beat_bits:]
            m.d.sync += [
                next_beat.eq(first_beat),
                length.eq(config.burst_beats - first_beat[:burst_bits]),
                room.eq(self.buffer_beats),
            ]

        # The buffer.
        m.submodules.buffer = buffer = ResetInserter(self.start)(
            BlockFifo(width=config.bus_width + 1, depth=self.buffer_beats)
        )
        m.d.comb += [
            self.axi.rready.eq(1),
            buffer.w_data.eq(Cat(self.axi.rdata, self.axi.rresp[1])),
            buffer.w_en.eq(self.beat & active),
            taken.eq(buffer.r_rdy & buffer.r_en),
        ]
        if config.bus_width < WORD_BITS:
            self._gather(m, buffer, active)
        else:
            self._slice(m, buffer, active)
        return m

    def _gather(self, m: Module, buffer: BlockFifo, active: Signal) -> None:
        """Beats narrower than a word: shift them in from the top."""
        config = self._config
        beats = WORD_BITS // config.bus_width
        gathered = Signal(WORD_BITS, reset_less=True)
        error = Signal(reset_less=True)
        held = Signal(range(beats + 1))  # beats in the register
        full = Signal()
        m.d.comb += [
            full.eq(held == beats),
            self.words.valid.eq(full),
            self.words.payload.data.eq(gathered),
            self.words.payload.error.eq(error),
            buffer.r_en.eq(~full | self.words.ready),
        ]
        with m.If(full & self.words.ready):
            m.d.sync += held.eq(0)
        with m.If(buffer.r_en & buffer.r_rdy):
            first = Signal()
            m.d.comb += first.eq(full | (held == 0))
            m.d.sync += [
                gathered.eq(Cat(gathered[config.bus_width :], buffer.r_data[:-1])),
                error.eq(buffer.r_data[-1] | (error & ~first)),
                held.eq(held + 1),
            ]
            with m.If(full):
                m.d.sync += held.eq(1)
        with m.If(~active):
            m.d.sync += held.eq(0)

    def _slice(self, m: Module, buffer: BlockFifo, active: Signal) -> None:
        """Beats as wide as a word, or several words: lowest first."""
        words = self._config.bus_width // WORD_BITS
        m.d.comb += [
            self.words.valid.eq(buffer.r_rdy & active),
            self.words.payload.error.eq(buffer.r_data[-1]),
        ]
        if words == 1:
            m.d.comb += [
                self.words.payload.data.eq(buffer.r_data[:-1]),
                buffer.r_en.eq(self.words.valid & self.words.ready),
            ]
            return
        index = Signal(range(words))
        m.d.comb += [
            self.words.payload.data.eq(buffer.r_data[:-1].word_select(index, WORD_BITS)),
            buffer.r_en.eq(self.words.valid & self.words.ready & (index == words - 1)),
        ]
        with m.If(self.words.valid & self.words.ready):
            m.d.sync += index.eq(index + 1)
        with m.If(~active):
            m.d.sync += index.eq(0)
