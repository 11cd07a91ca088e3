"""Cuts a run of bytes into pieces that one beat and one chunk of an on-chip memory hold."""

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.instructions import STRIDE_BITS

__all__ = ["PieceCutter"]


class PieceCutter(wiring.Component):
    """Each piece ends with its beat, with its chunk, or with the run, whichever comes first.

    The next piece is prepared as if the run did not end with this one, so that its own end need not
    be known: if it does, the next run's first piece takes its place.

    Flow control: one piece a cycle, across runs. ``piece`` comes from registers and has one more
    behind it, so that no cut depends on its readiness in the same cycle; likewise two runs wait.

    Timing: a run's first piece is valid three cycles after its acceptance.

    Parameters
    ----------
    local_bits : int
        Of a byte address on chip.
    size_bits : int
        Of the bytes of a beat and of a chunk.
    fields : data.StructLayout
        What is the same for all pieces of a run; it is handed on.
    banks : int
        Bits that are worked out from a piece's address before it leaves; 0 for no such members.

    Members
    -------
    run : In(stream of (bytes, aligned, local, room, chunk, room_size, chunk_size, fields))
        ``bytes``: of the run, at least 1. ``local``: address of its first byte, or, if ``aligned``,
        of the place that its first beat's first byte would have. ``room`` and
        ``chunk``: bytes from there to the end of its beat and of its chunk; ``room_size`` and
        ``chunk_size``: likewise of all further beats and chunks.
    piece : Out(stream of (local, width, left, room, run_ends, beat_ends, fields))
        ``width`` bytes, or, if ``run_ends``, ``left`` of them. ``local``: as above, of this piece.
        ``room``: bytes to the end of its beat. ``beat_ends``: at its end, if the run does not.
    coming, coming_banks : Out(local_bits), In(banks)
        The address of a piece that is being prepared, and what is worked out from it: ``banks`` of
        the piece.
    """

    def __init__(
        self, *, local_bits: int, size_bits: int, fields: data.StructLayout, banks: int = 0
    ) -> None:
        size = unsigned(size_bits)
        run = {
            "bytes": unsigned(STRIDE_BITS),
            "aligned": unsigned(1),
            "local": unsigned(local_bits),
            "room": size,
            "chunk": size,
            "room_size": size,
            "chunk_size": size,
            "fields": fields,
        }
        piece = {
            "local": unsigned(local_bits),
            "width": size,
            "left": size,
            "room": size,
            "run_ends": unsigned(1),
            "beat_ends": unsigned(1),
            "fields": fields,
        }
        self._banks = banks
        if banks:
            piece["banks"] = unsigned(banks)
        self._run = data.StructLayout(run)
        self._piece = data.StructLayout(piece)
        members: dict[str, object] = {
            "run": In(stream.Signature(self._run)),
            "piece": Out(stream.Signature(self._piece)),
        }
        if banks:
            members |= {"coming": Out(local_bits), "coming_banks": In(banks)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        following, follows, takes = self._elaborate_runs(m)
        rest = Signal(self._run, reset_less=True)  # of the run, from the next piece on
        valid = Signal()
        # Of the next piece; that its beat or its chunk ends is known when it becomes the next.
        beat_ends = Signal(reset_less=True)
        chunk_ends = Signal(reset_less=True)
        width = Signal.like(rest.room)
        run_ends = Signal()
        cut = Signal()  # a piece goes to the output, or to the place behind it
        spare = Signal(self._piece, reset_less=True)
        spare_valid = Signal()
        m.d.comb += [
            width.eq(Mux(beat_ends, rest.room, rest.chunk)),
            run_ends.eq(rest.bytes <= width),
            cut.eq(valid & ~spare_valid),
            takes.eq(~valid | (cut & run_ends)),
        ]
        # How the piece after it ends, for each way in which this one does.
        room_left = Signal.like(rest.room)
        chunk_left = Signal.like(rest.chunk)
        m.d.comb += [
            room_left.eq(rest.room - rest.chunk),
            chunk_left.eq(rest.chunk - rest.room),
        ]
        with m.If(takes):
            m.d.sync += [
                valid.eq(follows),
                rest.eq(following),
                beat_ends.eq(following.room <= following.chunk),
                chunk_ends.eq(following.chunk <= following.room),
            ]
        with m.Elif(cut):
            m.d.sync += [
                rest.bytes.eq(rest.bytes - width),
                rest.local.eq(rest.local + Mux(rest.aligned, rest.room_size, width)),
                rest.room.eq(Mux(beat_ends, rest.room_size, room_left)),
                rest.chunk.eq(Mux(chunk_ends, rest.chunk_size, chunk_left)),
            ]
            with m.If(beat_ends & chunk_ends):
                m.d.sync += beat_ends.eq(rest.room_size <= rest.chunk_size)
                m.d.sync += chunk_ends.eq(rest.chunk_size <= rest.room_size)
            with m.Elif(beat_ends):
                m.d.sync += beat_ends.eq(rest.room_size <= chunk_left)
                m.d.sync += chunk_ends.eq(chunk_left <= rest.room_size)
            with m.Else():
                m.d.sync += beat_ends.eq(room_left <= rest.chunk_size)
                m.d.sync += chunk_ends.eq(rest.chunk_size <= room_left)
        new = Signal(self._piece)
        m.d.comb += [
            new.local.eq(rest.local),
            new.width.eq(width),
            new.left.eq(rest.bytes),
            new.room.eq(rest.room),
            new.run_ends.eq(run_ends),
            new.beat_ends.eq(beat_ends),
            new.fields.eq(rest.fields),
        ]
        if self._banks:
            m.d.comb += [self.coming.eq(rest.local), new.banks.eq(self.coming_banks)]
        with m.If(~self.piece.valid | self.piece.ready):
            m.d.sync += [self.piece.valid.eq(cut | spare_valid), spare_valid.eq(0)]
            m.d.sync += self.piece.payload.eq(Mux(spare_valid, spare, new))
        with m.If(~spare_valid):
            m.d.sync += spare.eq(new)
            m.d.sync += spare_valid.eq(cut & self.piece.valid & ~self.piece.ready)
        return m

    def _elaborate_runs(self, m: Module) -> tuple[Signal, Signal, Signal]:
        """The run that comes next, in a register; whether there is one; what removes it.

        There is one more place behind it, so that a run's end does not reach its sender.
        """
        following = Signal(self._run, name="following", reset_less=True)
        behind = Signal(self._run, name="behind", reset_less=True)
        valid = Signal(name="following_valid")
        behind_valid = Signal()
        takes = Signal()
        m.d.comb += self.run.ready.eq(~behind_valid)
        with m.If(~valid | takes):
            m.d.sync += [valid.eq(self.run.valid | behind_valid), behind_valid.eq(0)]
            m.d.sync += following.eq(Mux(behind_valid, behind, self.run.payload))
        with m.If(~behind_valid):
            m.d.sync += behind.eq(self.run.payload)
            m.d.sync += behind_valid.eq(self.run.valid & valid & ~takes)
        return following, valid, takes
