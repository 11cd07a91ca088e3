"""A run as a trace for Perfetto (https://ui.perfetto.dev) or Chrome's about:tracing.

The format is Chrome's JSON trace event format. One cycle is one microsecond.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from weft.observation.bus import BusActivity
from weft.observation.places import Places
from weft.observation.timeline import Slice, Timeline
from weft.program import Program
from weft_hw.instructions import SEMAPHORE_BITS, Queue
from weft_sim.device import RunResult

__all__ = ["perfetto_trace"]

Event = dict[str, Any]

_LAYERS, _ENGINES, _QUEUES, _SEMAPHORES, _BUS = range(1, 6)
_PROCESSES = {
    _LAYERS: "layers",
    _ENGINES: "engines",
    _QUEUES: "queues",
    _SEMAPHORES: "semaphores",
    _BUS: "bus",
}


def perfetto_trace(program: Program, result: RunResult) -> str:
    """The trace of one run, as JSON text.

    Its processes: *layers* (the layer that each cycle counts for); *engines* (a slice an
    instruction, and arrows from the signal of a semaphore to the wait that takes it); *queues*
    (instructions fetched and not yet started, if the bus was recorded, and what each queue's next
    instruction waits for); *semaphores* (their values); *bus* (beats by purpose and bursts
    outstanding, if recorded).

    Parameters
    ----------
    program : Program
    result : RunResult
        Of the rtl engine; with ``record_bus`` for all of it.

    Raises
    ------
    InputError
        If the engine has no time.
    """
    timeline = Timeline(program, result)
    bus = None if result.bus is None else BusActivity(program, result.bus)
    flows = _semaphore_flows(timeline)
    fetched = {} if bus is None else _fetched(timeline, bus)
    events = [
        *_layers(timeline),
        *_engines(timeline),
        *_arrows(flows),
        *_waits(timeline, flows, fetched),
        *_semaphores(timeline),
    ]
    if bus is not None:
        events += [*_queue_levels(timeline, fetched), *_bus(bus)]
    used = {event["pid"] for event in events}
    names = [
        _metadata(pid, 0, "process_name", name=name)
        for pid, name in _PROCESSES.items()
        if pid in used
    ]
    order = [_metadata(pid, 0, "process_sort_index", sort_index=pid) for pid in sorted(used)]
    document = {
        "traceEvents": names + order + events,
        "displayTimeUnit": "ns",
        "otherData": {
            "program": program.name,
            "configuration": program.config.name,
            "cycles": timeline.cycles,
            "time": "1 cycle = 1 us, from the write of the start register",
        },
    }
    return json.dumps(document, separators=(",", ":")) + "\n"


def _metadata(pid: int, tid: int, kind: str, **arguments: Any) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": arguments}


def _slice(
    pid: int, tid: int, name: str, start: int, end: int, category: str, **arguments: Any
) -> Event:
    event = {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": category}
    return event | {"ts": start, "dur": end - start, "args": arguments}


def _counter(pid: int, name: str, cycle: int, value: int) -> Event:
    return {"ph": "C", "pid": pid, "tid": 0, "name": name, "ts": cycle, "args": {"value": value}}


def _layers(timeline: Timeline) -> Iterator[Event]:
    yield _metadata(_LAYERS, 1, "thread_name", name="layer that the cycle counts for")
    for layer, start, end in timeline.stretches:
        about = timeline.program.layers[layer]
        yield _slice(_LAYERS, 1, about.name, start, end, "layer", op=about.op, source=about.source)


def _engines(timeline: Timeline) -> Iterator[Event]:
    program = timeline.program
    places = Places(program)
    for queue in Queue:
        yield _metadata(_ENGINES, queue + 1, "thread_name", name=queue.name)
    for each in timeline.slices:
        layer = program.layers[each.layer]
        yield _slice(
            _ENGINES,
            each.queue + 1,
            f"{layer.name}: {each.purpose}",
            each.begin,
            each.retire,
            each.queue.name.lower(),
            layer=layer.name,
            op=layer.op,
            source=layer.source,
            tile=each.tile,
            taken=each.start,
            places=places.describe(each.instruction, each.layer),
            offset=f"{each.offset:#x}",
            instruction=str(each.instruction),
        )


def _mask(value: int) -> list[int]:
    return [index for index in range(SEMAPHORE_BITS) if value >> index & 1]


def _semaphore_flows(timeline: Timeline) -> list[tuple[int, Slice, Slice]]:
    """(semaphore, signaller, taker): the nth signal of a semaphore is taken by its nth wait."""
    signals: dict[int, list[Slice]] = {}
    waits: dict[int, list[Slice]] = {}
    for each in timeline.slices:
        for index in _mask(each.instruction.signal):
            signals.setdefault(index, []).append(each)
        for index in _mask(each.instruction.wait):
            waits.setdefault(index, []).append(each)
    return [
        (index, signaller, taker)
        for index, takers in waits.items()
        for signaller, taker in zip(signals.get(index, []), takers, strict=False)
    ]


def _arrows(flows: Iterable[tuple[int, Slice, Slice]]) -> Iterator[Event]:
    for number, (index, signaller, taker) in enumerate(flows):
        common = {"pid": _ENGINES, "name": f"semaphore {index}", "cat": "semaphore", "id": number}
        # An arrow binds to the slice that holds its end: the signaller's last cycle.
        yield common | {"ph": "s", "tid": signaller.queue + 1, "ts": signaller.retire - 1}
        yield common | {"ph": "f", "bp": "e", "tid": taker.queue + 1, "ts": taker.begin}


def _fetched(timeline: Timeline, bus: BusActivity) -> dict[int, int]:
    """For each instruction, by its offset, the cycle in which its last byte has arrived."""
    beats = [
        np.searchsorted(bus.fetched_to, each.offset + each.instruction.size)
        for each in timeline.slices
    ]
    cycles = bus.fetch_beats[beats].tolist()
    return {each.offset: cycle for each, cycle in zip(timeline.slices, cycles, strict=True)}


def _waits(
    timeline: Timeline, flows: Iterable[tuple[int, Slice, Slice]], fetched: dict[int, int]
) -> Iterator[Event]:
    """While the semaphores of a queue's next instruction are not there.

    The next instruction is the one after the last that started, once it has been fetched.
    """
    arrivals: dict[int, list[tuple[int, int, Slice]]] = {}
    for index, signaller, taker in flows:
        arrivals.setdefault(taker.offset, []).append((signaller.retire, index, signaller))
    for queue in Queue:
        yield _metadata(_QUEUES, queue + 1, "thread_name", name=f"{queue.name}: next one waits")
        before = 0
        for each in timeline.of_queue(queue):
            awaited = arrivals.get(each.offset, [])
            last = max(awaited, default=None, key=lambda entry: entry[0])
            since = max(before, fetched.get(each.offset, 0))
            if last is not None and last[0] > since:
                cycle, index, signaller = last
                layer = timeline.program.layers[signaller.layer]
                yield _slice(
                    _QUEUES,
                    queue + 1,
                    f"semaphore {index}",
                    since,
                    cycle,
                    "wait",
                    waiting=timeline.program.layers[each.layer].name + ": " + each.purpose,
                    signalled_by=f"{signaller.queue.name} {layer.name}: {signaller.purpose}",
                    instruction=str(each.instruction),
                )
            before = each.start


def _semaphores(timeline: Timeline) -> Iterator[Event]:
    changes: dict[int, list[tuple[int, int]]] = {}
    for each in timeline.slices:
        for index in _mask(each.instruction.signal):
            changes.setdefault(index, []).append((each.retire, 1))
        for index in _mask(each.instruction.wait):
            changes.setdefault(index, []).append((each.start, -1))
    for index in sorted(changes):
        yield _counter(_SEMAPHORES, f"semaphore {index}", 0, 0)
        yield from _levels(_SEMAPHORES, f"semaphore {index}", changes[index])


def _levels(pid: int, name: str, changes: list[tuple[int, int]]) -> Iterator[Event]:
    """A counter from its changes (cycle, difference): one event a cycle that changes it."""
    total: dict[int, int] = {}
    for cycle, difference in changes:
        total[cycle] = total.get(cycle, 0) + difference
    value = 0
    for cycle in sorted(total):
        value += total[cycle]
        if total[cycle]:
            yield _counter(pid, name, cycle, value)


def _queue_levels(timeline: Timeline, fetched: dict[int, int]) -> Iterator[Event]:
    """Instructions whose last byte has arrived and that the engine has not taken yet."""
    for queue in Queue:
        changes = []
        for each in timeline.of_queue(queue):
            changes += [(fetched[each.offset], 1), (each.start, -1)]
        name = f"{queue.name}: fetched, not started"
        yield _counter(_QUEUES, name, 0, 0)
        yield from _levels(_QUEUES, name, changes)


def _bus(bus: BusActivity) -> Iterator[Event]:
    tracks = {
        "read data of LOAD": bus.load_beats,
        "read data of instruction fetch": bus.fetch_beats,
        "write data of STORE": bus.write_beats,
    }
    for tid, (name, beats) in enumerate(tracks.items(), 1):
        yield _metadata(_BUS, tid, "thread_name", name=name)
        for each in bus.stretches(beats):
            count = each.end - each.start
            yield _slice(_BUS, tid, f"{count} beats", each.start, each.end, "bus", beats=count)
    for direction, changes in bus.outstanding.items():
        name = f"{direction} bursts outstanding"
        yield _counter(_BUS, name, 0, 0)
        latest = dict(changes)  # of several in a cycle the last
        for cycle, value in latest.items():
            yield _counter(_BUS, name, cycle, value)
