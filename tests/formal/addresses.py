"""Proofs of the address checks of LOAD, STORE, MATRIX and VECTOR, and of the burst splitting."""

from functools import reduce
from operator import or_

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data

from formal.harness import Inside, add, always, free, given, stable
from formal.prover import INDUCTION, Proof
from weft_hw.config import PRESETS
from weft_hw.gateware.tile_loader import TileLoader
from weft_hw.gateware.transfer import EntryKind, TransferGenerator
from weft_hw.gateware.vector_layouts import step_layout
from weft_hw.gateware.vector_steps import VectorSteps, _compared_layout
from weft_hw.instruction_values import LOOKUP_ENTRIES, LOOKUP_TABLES
from weft_hw.instructions import Element, Load, Memory, ScaleSource, Store

__all__ = ["PROOFS", "entry_contract"]

TINY = PRESETS["tiny"]
PAGE = 4096


def _inside_memory(entry: data.View) -> Value:
    memory, local, count = entry.memory, entry.local, entry.bytes
    sizes = {
        Memory.ACTIVATION: TINY.activation_bytes,
        Memory.WEIGHT: TINY.weight_bytes,
        Memory.PARAMETER: TINY.parameter_bytes,
        Memory.LOOKUP: LOOKUP_TABLES * LOOKUP_ENTRIES,
    }
    fits = 0
    for which, bytes_there in sizes.items():
        fits = fits | ((memory == which) & (local + count <= bytes_there))
    for element in Element:  # accumulators, packed
        size = (TINY.accumulator_total_rows * TINY.columns) << element
        packed = (memory == Memory.ACCUMULATOR) & (entry.element == element)
        fits = fits | (packed & (local + count <= size))
    return fits


def _stored(memory: Value) -> Value:
    return (memory == Memory.ACTIVATION) | (memory == Memory.ACCUMULATOR)


def entry_contract(entry: data.View, kind: type[Load] | type[Store]) -> Value:
    """What the engines rely on in an entry: a burst lies in both memories and in one page.

    Its beats are as many as its bytes need; a run that LOAD fills lies in its memory.
    """
    bus = TINY.bus_bytes
    is_burst = entry.kind == EntryKind.BURST
    beats = entry.beats + 1
    covered = entry.offset + entry.bytes
    burst = (
        (entry.bytes != 0)
        & (entry.beats < TINY.burst_beats)
        & (covered <= beats * bus)
        & (covered > entry.beats * bus)
        & (entry.address % bus == 0)
        & ((entry.address % PAGE) + beats * bus <= PAGE)
        & (entry.address + beats * bus <= 1 << TINY.address_width)
        & _inside_memory(entry)
    )
    sound = ~is_burst | burst
    if kind is Load:
        absent = (entry.bytes != 0) & _inside_memory(entry)
        sound &= (entry.kind != EntryKind.ABSENT) | absent
    else:
        sound &= ~is_burst | _stored(entry.memory)
    return sound & (entry.kind <= EntryKind.FAULT)


def _transfers(m: Module, kind: type[Load] | type[Store]) -> None:
    dut = TransferGenerator(TINY, kind)
    inside = add(m, dut)
    free(m, dut.instruction.valid, dut.instruction.payload, dut.entry.ready)
    entry = dut.entry.payload
    always(m, ~dut.entry.valid | entry_contract(entry, kind))
    stable(m, "entry", dut.entry.valid, dut.entry.ready, entry, given=False)
    # Nothing follows a fault.
    taken = dut.entry.valid & dut.entry.ready
    ended = Signal()
    with m.If(taken & (entry.kind == EntryKind.FAULT)):
        m.d.sync += ended.eq(1)
    always(m, ~ended | ~dut.entry.valid)

    # Invariants: the same of what is left of the run, before it is split.
    run = inside["run"]
    if not isinstance(run, data.View):
        run = data.View(dut.entry.payload.shape(), run)
    valid, dead = inside["run_valid"], inside["dead"]
    _trips(m, dut, inside, kind)
    block = TINY.burst_beats * TINY.bus_bytes
    last = inside["last_byte"] == run.address % block + run.bytes - 1
    always(m, ~(valid & (run.kind == EntryKind.BURST)) | last)
    fits = inside["last_byte"] < block
    always(m, ~valid | (inside["final"] == ((run.kind != EntryKind.BURST) | fits)))
    left = (run.bytes != 0) & _inside_memory(run)
    in_dram = run.address + run.bytes <= 1 << TINY.address_width
    is_burst = run.kind == EntryKind.BURST
    always(m, ~(valid & is_burst) | (left & in_dram))
    if kind is Load:
        always(m, ~(valid & (run.kind == EntryKind.ABSENT)) | left)
    else:
        always(m, ~(valid & is_burst) | _stored(run.memory))
    always(m, run.kind <= EntryKind.FAULT)
    always(m, ~(valid & (run.kind == EntryKind.FAULT)) | dead)
    always(m, ~ended | (dead & ~valid))


def _shifted(value: Value, memory: Value, element: Value, *, left: bool) -> Value:
    """An address to packed bytes, or packed bytes to an address, if it is of accumulators."""
    for width in Element:
        bits = (TINY.columns - 1).bit_length() + width
        here = (memory == Memory.ACCUMULATOR) & (element == width)
        value = Mux(here, value << bits if left else value >> bits, value)
    return value


def _trips(m: Module, dut: TransferGenerator, inside: Inside, kind: type[Load | Store]) -> None:
    """Invariants of the fields once checked, and of the trips before their check."""

    def sound(run_bytes: Value, memory: Value, element: Value) -> Value:
        rows = memory == Memory.ACCUMULATOR
        known = rows | (element == Element.INT8)
        known &= (element <= Element.INT32) & (run_bytes != 0)
        loaded = reduce(or_, (memory == which for which in Memory))
        return known & (loaded if kind is Load else _stored(memory))

    held = data.View(dut.instruction.payload.shape(), Value.cast(inside["held"])).fields
    ready = inside["active"] & inside.unit("nest")["ready"]
    fine = sound(held.run_bytes, held.memory, held.element)
    always(m, ~ready | (inside["static_cause"] != 0) | fine)
    reach = held.run_bytes - 1
    always(m, ~ready | ~fine | (inside["reach"] == reach))
    # A shift is exact only if it drops no bits: as a lower bound of the same row.
    always(
        m,
        ~ready
        | ~fine
        | (inside["further"] == _shifted(reach, held.memory, held.element, left=False)),
    )
    for name in ("trip", "spare_trip"):
        trip = inside[name]
        if not isinstance(trip, data.View):
            trip = data.View(dut._trip, trip)
        passed = inside[f"{name}_valid"] & (trip.cause == 0)
        reach = trip.bytes - 1
        further = _shifted(reach, trip.memory, trip.element, left=False)
        always(m, ~passed | sound(trip.bytes, trip.memory, trip.element))
        always(m, ~passed | (trip.last_local == trip.local + further))
        always(m, ~passed | (trip.last_dram == trip.dram + reach))
        packed = _shifted(trip.local, trip.memory, trip.element, left=True)
        always(m, ~passed | (trip.packed == packed[: len(trip.packed)]))


def load_entries(m: Module) -> None:
    _transfers(m, Load)


def store_entries(m: Module) -> None:
    _transfers(m, Store)


def weight_rows(m: Module) -> None:
    """MATRIX's weight rows: all requests that enter the queue lie inside the weight memory."""
    dut = TileLoader(TINY)
    inside = add(m, dut)
    free(m, dut.start, dut.instruction, dut.halt)
    free(m, dut.top.ready, dut.top.data_valid, dut.top.data, dut.swap, dut.swap_issued)
    given(m, ~dut.start | dut.free)
    innermost = len(dut.instruction.counts)  # the loop over a tile's rows
    full = inside.unit("nest")[f"top_at_{innermost}"]  # in full, before it is cut to the port
    last = TINY.weight_bytes - TINY.columns
    asked = Signal.like(full, name="asked")
    with m.If(inside["step"]):
        m.d.sync += asked.eq(full)
    checked, address = inside["checked"], inside["address"]
    within = (asked >= 0) & (asked <= last)
    always(m, ~checked | ((address == asked) & (inside["outside"] == ~within)))
    always(m, ~inside["row_enters"] | (checked & within))
    outside = (dut.bad_address < 0) | (dut.bad_address > last)
    always(m, ~inside["row_stuck"] | outside)
    always(m, ~dut.bad | outside)


def vector_steps(m: Module) -> None:
    """VECTOR: a step that is not bad uses only addresses inside their memories."""
    dut = VectorSteps(TINY)
    inside = add(m, dut)
    nest = inside.unit("nest")
    fields = Signal(dut.fields.shape())
    free(m, dut.start, dut.slot, dut.stop, dut.leaves, dut.a_taken, dut.b_taken)
    running = inside["running"]
    # The fields are held while the instruction is inside.
    fresh = Signal(dut.fields.shape())
    free(m, fresh)
    m.d.sync += fields.eq(dut.fields)
    m.d.comb += dut.fields.as_value().eq(Mux(running, fields.as_value(), fresh.as_value()))
    given(m, ~dut.start | ~running | dut.finished)
    given(m, ~dut.leaves | dut.valid)

    # A trip that is taken is compared in the next cycle and checked in the one after.
    take, compared = inside["take"], inside["compared_valid"]
    whole, lanes = TINY.columns, dut.fields.last_lanes
    partial = (lanes != 0) & (lanes < whole)
    used = dut.fields.use_bias | (dut.fields.scale_source == ScaleSource.PARAMETER)
    facts: dict[str, Value] = {name: nest[name] for name in ("a", "b", "result", "parameter")}
    facts["lanes"] = Mux(nest["last"][0] & partial, lanes, whole)
    facts["wide_result"] = dut.fields.destination == Memory.ACCUMULATOR
    facts["uses_parameter"] = used
    trip = {}
    for name, fact in facts.items():
        shape = Value.cast(fact).shape()
        first, second = Signal(shape, name=f"{name}_taken"), Signal(shape, name=f"{name}_compared")
        with m.If(take):
            m.d.sync += first.eq(fact)
        with m.If(compared):
            m.d.sync += second.eq(first)
        trip[name] = second
    limit = TINY.activation_bytes - Mux(partial, lanes, whole)
    always(m, ~running | (inside["last_limit"] == limit))
    # With one tap there are no window registers: these bits stay as they begin.
    always(m, data.View(_compared_layout(), inside["compared"]).window.as_value() == 0)

    step = data.View(step_layout(TINY), inside["arriving"])
    good = inside["checked_valid"] & ~step.bad
    line, size, rows = TINY.columns, TINY.activation_bytes, TINY.accumulator_total_rows
    for name in ("a", "b"):
        at, port = trip[name], step[f"{name}_address"]
        narrow, wide = step[f"{name}_narrow"], step[f"{name}_wide"]
        always(m, ~(good & narrow) | ((at >= 0) & (at + line <= size) & (port == at)))
        always(m, ~(good & wide) | ((at >= 0) & (at < rows) & (port == at)))
        always(m, ~(narrow & wide & inside["checked_valid"]))
    weights = (trip["b"] >= 0) & (trip["b"] + line <= TINY.weight_bytes)
    always(m, ~(good & step.b_weight) | (weights & (step.b_address == trip["b"])))
    at = trip["result"]
    fits = (at >= 0) & Mux(trip["wide_result"], at < rows, at + trip["lanes"] <= size)
    always(m, ~(good & step.last) | (fits & (step.tag.address == at)))
    at = trip["parameter"].as_unsigned()
    wants = good & step.last & trip["uses_parameter"]
    always(m, ~wants | ((at < TINY.parameter_rows) & (step.parameter == at)))


PROOFS = [
    Proof(
        "addresses: LOAD",
        "for any instruction each burst lies in its memory, in address_width bits and in one "
        "4 KiB page, with as many beats as its bytes need; entries are held; none follows a fault",
        load_entries,
        INDUCTION,
        1,
    ),
    Proof("addresses: STORE", "the same for STORE", store_entries, INDUCTION, 1),
    Proof(
        "addresses: MATRIX weights",
        "every weight row to be requested lies inside the weight memory; `bad` only if it does not",
        weight_rows,
        INDUCTION,
        1,
    ),
    Proof(
        "addresses: VECTOR",
        "a step that enters VECTOR's queue and is not marked bad has its A, B, result and "
        "parameter row inside their memories",
        vector_steps,
        INDUCTION,
        4,
    ),
]
