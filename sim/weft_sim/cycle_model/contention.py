"""Engines that stream through the on-chip memories at once, and what each then gets of a bank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from weft_hw.instruction_values import Memory
from weft_sim.cycle_model.clock import Clock
from weft_sim.cycle_model.work import Bank, Work

__all__ = ["Contention", "Stream"]


@dataclass(eq=False)
class Stream:
    """An instruction on its way through its engine.

    Parameters
    ----------
    work : Work
    done : callable
        Called when the last step has been made.
    updates : bool
        It is MATRIX's, and leaves out a row where another has waited long for accumulators.
    """

    work: Work
    done: Callable[[], None]
    updates: bool = False
    left: float = field(init=False)
    rate: float = field(init=False, default=1.0)
    since: float = field(init=False, default=0.0)
    ends: int = field(init=False, default=0)  # which of the planned ends is valid

    def __post_init__(self) -> None:
        self.left = self.work.steps


class Contention:
    """Shares every bank's ports among the streams that want them.

    Requesters of a scratchpad bank take turns, so those that want more than an equal share get an
    equal share. In the accumulator memory MATRIX comes first; the others get what is left, and
    ``leak`` of what it takes, as it leaves out a row for one that has waited long. A stream is
    as slow as its scarcest bank; rates change only when streams begin or end.

    Parameters
    ----------
    clock : Clock
    leak : float
        Accesses a cycle.
    """

    def __init__(self, clock: Clock, leak: float) -> None:
        self._clock = clock
        self._leak = leak
        self._streams: list[Stream] = []
        self._updates: dict[Bank, float] = {}

    def begin(self, stream: Stream) -> None:
        """Let a stream start now."""
        stream.since = self._clock.now
        self._streams.append(stream)
        self._share()

    def update(self, accesses: Mapping[Bank, float], sign: int) -> None:
        """From now on MATRIX updates accumulators so often (1), or does not any more (-1)."""
        if not accesses:
            return
        for bank, number in accesses.items():
            self._updates[bank] = self._updates.get(bank, 0.0) + sign * number
        if any(bank in stream.work.accesses for bank in accesses for stream in self._streams):
            self._share()

    def _share(self) -> None:
        """Work out all rates anew, and when each stream will end."""
        now = self._clock.now
        rates = dict.fromkeys(self._streams, 1.0)
        wanted: dict[Bank, list[Stream]] = {}
        for stream in self._streams:
            for bank in stream.work.accesses:
                wanted.setdefault(bank, []).append(stream)
        contended = {
            bank: streams
            for bank, streams in wanted.items()
            if len(streams) > 1
            or self._updates.get(bank, 0.0) > 0
            or streams[0].work.accesses[bank] > 1
        }
        for _ in range(3):  # what one cannot use here, as it is slowed elsewhere, others can
            for bank, streams in contended.items():
                self._share_bank(bank, streams, rates)
        starved = max((self._updates.get(bank, 0.0) for bank in contended), default=0.0)
        for stream in self._streams:
            if stream.updates:
                rates[stream] = min(rates[stream], 1.0 - self._leak * min(1.0, starved))
        for stream in self._streams:
            stream.left -= (now - stream.since) * stream.rate
            stream.since, stream.rate = now, rates[stream]
            stream.ends += 1
            end = now + max(0.0, stream.left) / stream.rate
            self._clock.at(end, self._finisher(stream, stream.ends))

    def _finisher(self, stream: Stream, number: int) -> Callable[[], None]:
        def finish() -> None:
            if stream.ends == number:
                self._streams.remove(stream)
                self._share()
                stream.done()

        return finish

    def _share_bank(self, bank: Bank, streams: list[Stream], rates: dict[Stream, float]) -> None:
        if bank[0] is Memory.WEIGHT:
            self._share_weights(bank, streams, rates)
            return
        updates = min(1.0, self._updates.get(bank, 0.0))
        room = 1.0 - updates * (1.0 - self._leak)
        waiting = sorted(streams, key=lambda stream: rates[stream] * stream.work.accesses[bank])
        for position, stream in enumerate(waiting):
            uses = stream.work.accesses[bank]
            share = room / (len(waiting) - position)
            rates[stream] = min(rates[stream], share / uses)
            room -= rates[stream] * uses

    def _share_weights(self, bank: Bank, streams: list[Stream], rates: dict[Stream, float]) -> None:
        """MATRIX reads whole tiles at once and ahead of its need; meanwhile VECTOR's taps take
        twice as long. MATRIX gets what they leave."""
        used = sum(rates[each] * each.work.accesses[bank] for each in streams if each.updates)
        room = 1.0
        for stream in streams:
            if not stream.updates:
                uses = stream.work.accesses[bank]
                rates[stream] = min(rates[stream], 1.0 / (1.0 + uses * min(used, 1.0)))
                room -= rates[stream] * uses
        for stream in streams:
            if stream.updates:
                rates[stream] = min(rates[stream], room / stream.work.accesses[bank])
