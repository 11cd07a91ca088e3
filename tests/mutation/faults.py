"""Single-line faults of the gateware that the tests must notice."""

from dataclasses import dataclass

__all__ = ["FAULTS", "GATEWARE", "Fault"]

GATEWARE = "hw/weft_hw/gateware"


@dataclass(frozen=True)
class Fault:
    """``old``, found exactly once in ``file``, becomes ``new``; ``tests`` are to notice it."""

    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "semaphores.py",
        "total > largest",
        "total >= largest",
        "overflow one signal too early",
        ("test_semaphores.py",),
    ),
    Fault(
        "semaphores.py",
        "if lower < queue",
        "if lower > queue",
        "the higher queue is served first",
        ("test_semaphores.py",),
    ),
    Fault(
        "loops.py",
        "nearly[i].eq(double[i]), first[i].eq(1)",
        "nearly[i].eq(double[i]), first[i].eq(0)",
        "an inner loop's second round has no first trip",
        ("test_loops.py",),
    ),
    Fault(
        "loops.py",
        "changes.eq(inner_last[1:])",
        "changes.eq(steps)",
        "an inner stream does not restart with its outer loop",
        ("test_loops.py",),
    ),
    Fault(
        "transfer.py",
        "(nest.coordinate >= 0) & (nest.coordinate < fields.extent)",
        "(nest.coordinate >= 0) & (nest.coordinate <= fields.extent)",
        "one run beyond the extent exists",
        ("test_load_engine.py",),
    ),
    Fault(
        "transfer.py",
        "nest.local + further",
        "nest.local + further + 1",
        "a run that ends with its memory is refused",
        ("test_load_engine.py",),
    ),
    Fault(
        "transfer.py",
        "end.eq(trip.dram[: self._block_bits] + trip.bytes - 1)",
        "end.eq(trip.dram[: self._block_bits] + trip.bytes)",
        "a burst too many at the end of a block",
        ("test_load_engine.py",),
    ),
    Fault(
        "load.py",
        "(outstanding != limit)",
        "(outstanding != limit - 1)",
        "one burst fewer in flight",
        ("test_load_engine.py",),
    ),
    Fault(
        "load.py",
        "fault.valid.eq(pending & writer.empty & ~retired)",
        "fault.valid.eq(pending)",
        "a fault overtakes the writes before it",
        ("test_load_engine.py",),
    ),
    Fault(
        "load.py",
        "axi.rready.eq(halt | ",
        "axi.rready.eq(",
        "a stopped LOAD does not drain its bursts",
        ("test_load_engine.py",),
    ),
    Fault(
        "store.py",
        "axi.wstrb.eq(Mux(halt, 0, offered))",
        "axi.wstrb.eq(offered)",
        "a stopped STORE still writes",
        ("test_store_engine.py",),
    ),
    Fault(
        "store.py",
        "axi.wlast.eq(ready.r_data[-1])",
        "axi.wlast.eq(1)",
        "every beat claims to be the last",
        ("test_store_engine.py",),
    ),
    Fault(
        "store.py",
        "axi.bready.eq(halt | waits)",
        "axi.bready.eq(waits)",
        "a stopped STORE does not take its responses",
        ("test_store_engine.py",),
    ),
    Fault(
        "packed_rows.py",
        "fits = Mux(sign, above.all(), ~above.any())",
        "fits = Mux(sign, ~above.any(), ~above.any())",
        "every negative accumulator saturates",
        ("test_store_engine.py",),
    ),
    Fault(
        "pieces.py",
        "Mux(beat_ends, rest.room_size, room_left)",
        "rest.room_size",
        "a beat's second piece starts at its first byte",
        ("test_store_engine.py",),
    ),
    Fault(
        "load.py",
        "exhausted.eq(source.run_ends | source.beat_ends)",
        "exhausted.eq(1)",
        "a beat with elements of two rows fills one of them",
        ("test_load_engine.py",),
    ),
    Fault(
        "fetch.py",
        "& (room >= length)",
        "& (room != 0)",
        "fetch requests more than its buffer holds",
        ("test_fetch.py",),
    ),
    Fault(
        "fetch.py",
        "length.eq(config.burst_beats - first_beat[:burst_bits])",
        "length.eq(config.burst_beats)",
        "bursts are not aligned and may cross 4 KiB",
        ("test_fetch.py",),
    ),
    Fault(
        "bus.py",
        "to_load.eq(Mux(held, held_choice, ~fetch.arvalid))",
        "to_load.eq(~fetch.arvalid)",
        "a request that the bus has seen is replaced",
        ("test_bus.py",),
    ),
    Fault(
        "instruction_queue.py",
        "complete.eq(position == final)",
        "complete.eq(position == words - 1)",
        "a short instruction waits for words of the next",
        ("test_dispatch.py",),
    ),
    Fault(
        "arbiter.py",
        "m.d.sync += later.eq(grant_i)",
        "m.d.sync += later.eq(grant_j)",
        "a refused requester may starve",
        ("test_scratchpad.py",),
    ),
    Fault(
        "scratchpad_reads.py",
        "part.eq(Mux(before, after, first))",
        "part.eq(first)",
        "what lies behind the end of a line comes from the line itself",
        ("test_scratchpad.py",),
    ),
    Fault(
        "vector_steps.py",
        "(address[:bits] > limit)",
        "(address[:bits] >= limit)",
        "the last vector of the memory is refused",
        ("test_vector_engine.py",),
    ),
    Fault(
        "vector_sliding.py",
        "fit(fields.y_steps) & fit(fields.x_steps)",
        "fit(fields.x_steps)",
        "windows slide whose coordinates do not move along",
        ("test_vector_sliding.py",),
    ),
    Fault(
        "tile_loader.py",
        "(~shadow_full | self.swap)",
        "(~shadow_full)",
        "a tile is held back although its predecessor leaves",
        ("test_matrix_engine.py",),
    ),
    Fault(
        "matrix_rows.py",
        "(first.left.as_unsigned() > last_left)",
        "(first.left.as_unsigned() >= last_left)",
        "the last row of the memory is refused",
        ("test_matrix_engine.py",),
    ),
    Fault(
        "matrix.py",
        "left.eq(Mux(counts[-1], differences, 0))",
        "left.eq(differences)",
        "padding is not zero",
        ("test_matrix_engine.py",),
    ),
)
