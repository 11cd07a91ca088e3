"""Proofs of the AXI rules of fetch, LOAD, STORE and the read arbiter."""

import contextlib
from collections.abc import Iterator

from amaranth.hdl import Cat, Module, Mux, Signal, Value

from formal.addresses import entry_contract
from formal.harness import Inside, add, always, free, given, past, stable
from formal.prover import BOUNDED, Proof
from weft_hw.config import PRESETS, AcceleratorConfig
from weft_hw.gateware import load, store
from weft_hw.gateware.bus import ReadArbiter
from weft_hw.gateware.fetch import Fetch
from weft_hw.gateware.load import LoadEngine
from weft_hw.gateware.store import StoreEngine
from weft_hw.gateware.transfer import TransferGenerator
from weft_hw.instructions import Load, Store

__all__ = ["PROOFS"]

TINY = PRESETS["tiny"]
PAGE = 4096


class _AnyEntries(TransferGenerator):
    """Any entries that keep the contract that the proofs of addresses establish."""

    def __init__(self, config: AcceleratorConfig, kind: type[Load] | type[Store]) -> None:
        super().__init__(config, kind)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        free(m, self.instruction.ready, self.entry.valid, self.entry.payload)
        given(m, ~self.entry.valid | entry_contract(self.entry.payload, self._kind))
        stable(m, "entry", self.entry.valid, self.entry.ready, self.entry.payload, given=True)
        return m


@contextlib.contextmanager
def _any_entries(module: object) -> Iterator[None]:
    original = module.TransferGenerator
    module.TransferGenerator = _AnyEntries
    try:
        yield
    finally:
        module.TransferGenerator = original


def _address_rules(m: Module, name: str, valid: Value, ready: Value, addr: Value, length: Value):
    """Held until taken; whole beats within one page and one block of burst_beats."""
    stable(m, name, valid, ready, Cat(addr, length), given=False)
    size = (length + 1) * TINY.bus_bytes
    fits = (addr[:12] + size <= PAGE) & (addr % TINY.bus_bytes == 0) & (length < TINY.burst_beats)
    always(m, ~valid | fits)


def fetch(m: Module) -> None:
    """Fetch's requests and the beats that it has room for."""
    dut = Fetch(TINY)
    inside = add(m, dut)
    axi = dut.axi
    free(m, dut.start, dut.address, dut.ended, dut.stop, dut.words.ready)
    free(m, axi.arready, axi.rvalid, axi.rdata, axi.rresp, axi.rlast)
    given(m, ~dut.start | (~dut.bus_busy & ~inside["active"]))  # as dispatch starts it
    given(m, dut.address % TINY.bus_bytes == 0)
    _address_rules(m, "ar", axi.arvalid, axi.arready, axi.araddr, axi.arlen)

    owed = Signal(8)  # beats of bursts that the bus has taken, still to come
    came = axi.rvalid & axi.rready
    given(m, ~axi.rvalid | (owed != 0))
    taken = axi.arvalid & axi.arready
    m.d.sync += owed.eq(owed + Mux(taken, axi.arlen + 1, 0) - came)
    promised = Signal(8)
    m.d.comb += promised.eq(owed + Mux(axi.arvalid, axi.arlen + 1, 0))
    always(m, promised <= dut.buffer_beats)
    always(m, inside["outstanding"] == promised)
    always(m, dut.bus_busy == (promised != 0))
    always(m, axi.rready == 1)
    # No request begins in the cycle after a stop.
    stopped = past(m, dut.stop | dut.ended, "stopped")
    began = axi.arvalid & ~past(m, axi.arvalid & ~axi.arready, "waited")
    always(m, ~(stopped & began))


def arbiter(m: Module) -> None:
    """Requests of both sides; the order of data."""
    dut = ReadArbiter(TINY)
    add(m, dut)
    axi = dut.axi
    for name in ("fetch", "load"):
        port = getattr(dut, name)
        free(m, port.arvalid, port.araddr, port.arlen, port.rready)
        stable(m, name, port.arvalid, port.arready, Cat(port.araddr, port.arlen), given=True)
    free(m, axi.arready, axi.rvalid, axi.rdata, axi.rresp, axi.rlast)
    stable(m, "ar", axi.arvalid, axi.arready, Cat(axi.araddr, axi.arlen), given=False)
    always(m, ~(dut.fetch.arready & dut.fetch.arvalid & dut.load.arready & dut.load.arvalid))
    # The bursts in flight, oldest first, as a list of their requesters.
    limit = TINY.max_outstanding
    count = Signal(range(limit + 2))
    whose = Signal(limit + 1)
    taken, ended = axi.arvalid & axi.arready, axi.rvalid & axi.rready & axi.rlast
    always(m, count <= limit)
    given(m, ~axi.rvalid | (count != 0))
    is_load = dut.load.arvalid & dut.load.arready
    always(m, taken == (is_load | (dut.fetch.arvalid & dut.fetch.arready)))
    after = Signal.like(count)
    m.d.comb += after.eq(count - ended)
    m.d.sync += count.eq(after + taken)
    for i in range(limit + 1):
        kept = Mux(ended, (whose >> 1)[i] if i < limit else 0, whose[i])
        m.d.sync += whose[i].eq(Mux(taken & (after == i), is_load, kept))
    for port, mine in ((dut.fetch, ~whose[0]), (dut.load, whose[0])):
        always(m, port.rvalid == (axi.rvalid & mine))
    always(m, ~(axi.rvalid & axi.rready) | Mux(whose[0], dut.load.rready, dut.fetch.rready))


def _load(m: Module) -> tuple[LoadEngine, Inside]:
    with _any_entries(load):
        dut = LoadEngine(TINY)
        inside = add(m, dut)
    free(m, dut.engine.instruction.valid, dut.engine.instruction.payload, dut.engine.stop)
    for port in (dut.activation, dut.weight, dut.parameter, dut.accumulator):
        free(m, port.ready)
    axi = dut.axi
    free(m, axi.arready, axi.rvalid, axi.rdata, axi.rresp, axi.rlast)
    stopped = past(m, dut.engine.stop, "stopped")
    given(m, ~stopped | dut.engine.stop)
    return dut, inside


def load_bus(m: Module) -> None:
    """LOAD's requests, its limit, and what it does after a stop."""
    dut, inside = _load(m)
    axi = dut.axi
    _address_rules(m, "ar", axi.arvalid, axi.arready, axi.araddr, axi.arlen)
    owed = Signal(4)  # bursts that the bus has taken, still to end
    ended = axi.rvalid & axi.rready & axi.rlast
    given(m, ~axi.rvalid | (owed != 0))
    m.d.sync += owed.eq(owed + (axi.arvalid & axi.arready) - ended)
    always(m, owed + axi.arvalid <= TINY.max_outstanding)
    always(m, inside["outstanding"] == owed + axi.arvalid)
    always(m, dut.engine.bus_busy == (owed + axi.arvalid != 0))
    began = axi.arvalid & ~past(m, axi.arvalid & ~axi.arready, "waited")
    halted = past(m, inside["halt"], "halted")
    always(m, ~(halted & began))
    always(m, ~inside["halt"] | axi.rready)
    always(m, ~dut.engine.stop | ~dut.engine.retire)


def store_bus(m: Module) -> None:
    """STORE's requests, its limit, and what it does after a stop."""
    dut, inside = _store(m)
    axi = dut.axi
    _address_rules(m, "aw", axi.awvalid, axi.awready, axi.awaddr, axi.awlen)
    wide = Cat(axi.wdata, axi.wstrb, axi.wlast)
    stable(m, "w", axi.wvalid, axi.wready, wide, given=False)
    owed = Signal(4)  # bursts that the bus has taken, still to be answered
    answered = axi.bvalid & axi.bready
    given(m, ~axi.bvalid | (owed != 0))
    m.d.sync += owed.eq(owed + (axi.awvalid & axi.awready) - answered)
    always(m, owed + axi.awvalid <= TINY.max_outstanding)
    always(m, inside["outstanding"] == owed + axi.awvalid)
    always(m, dut.engine.bus_busy == (owed + axi.awvalid != 0))
    halted = past(m, inside["halt"], "halted")
    began = axi.awvalid & ~past(m, axi.awvalid & ~axi.awready, "waited_aw")
    always(m, ~(halted & began))
    offered = axi.wvalid & ~past(m, axi.wvalid & ~axi.wready, "waited_w")
    always(m, ~(halted & offered) | (axi.wstrb == 0))
    always(m, ~inside["halt"] | axi.bready)
    always(m, ~dut.engine.stop | ~dut.engine.retire)


def _store(m: Module) -> tuple[StoreEngine, Inside]:
    with _any_entries(store):
        dut = StoreEngine(TINY)
        inside = add(m, dut)
    free(m, dut.engine.instruction.valid, dut.engine.instruction.payload, dut.engine.stop)
    stopped = past(m, dut.engine.stop, "stopped")
    given(m, ~stopped | dut.engine.stop)
    axi = dut.axi
    free(m, axi.awready, axi.wready, axi.bvalid, axi.bresp)
    for read in (dut.activation, dut.accumulator):
        free(m, read.ready, read.data)
    return dut, inside


def store_beats(m: Module) -> None:
    """Each burst gets its beats and no more, also after a stop; it counts as open until then."""
    dut, _ = _store(m)
    axi = dut.axi
    # Lengths of the bursts offered, oldest first, of which the last beat has not passed.
    limit = TINY.max_outstanding
    lengths = [Signal(8, name=f"length_{i}") for i in range(limit + 1)]
    count = Signal(4)
    began = axi.awvalid & ~past(m, axi.awvalid & ~axi.awready, "waited_aw")
    moved = axi.wvalid & axi.wready
    beat = Signal(8)
    always(m, ~axi.wvalid | (count + began != 0))
    length = Mux(count == 0, axi.awlen, lengths[0])
    always(m, ~axi.wvalid | (axi.wlast == (beat == length)))
    finished = moved & axi.wlast
    m.d.sync += beat.eq(Mux(finished, 0, beat + moved))
    after = Signal(4)
    m.d.comb += after.eq(count - finished)
    m.d.sync += count.eq(count + began - finished)
    shifted = [Mux(finished, lengths[i + 1], lengths[i]) for i in range(limit)] + [lengths[limit]]
    for i, register in enumerate(lengths):
        m.d.sync += register.eq(Mux(began & (after == i), axi.awlen, shifted[i]))
    # The bus answers a burst once its last beat has passed and its address is taken.
    unanswered, addressed = Signal(4), Signal(4)
    answered = axi.bvalid & axi.bready
    m.d.sync += unanswered.eq(unanswered + finished - answered)
    m.d.sync += addressed.eq(addressed + (axi.awvalid & axi.awready) - answered)
    given(m, ~axi.bvalid | ((unanswered != 0) & (addressed != 0)))
    always(m, dut.engine.bus_busy | ((count == 0) & (unanswered == 0) & ~axi.wvalid))


PROOFS = [
    Proof(
        "AXI: fetch",
        "AR held until taken, within 4 KiB; beats in flight never exceed the buffer; "
        "no request after END or a stop",
        fetch,
        BOUNDED,
        12,
    ),
    Proof(
        "AXI: arbiter",
        "AR held until taken; at most max_outstanding bursts; data go to whom asked, in order",
        arbiter,
        BOUNDED,
        10,
    ),
    Proof(
        "AXI: LOAD",
        "AR held, within 4 KiB, at most max_outstanding bursts; after a stop nothing is "
        "requested or retired and every beat is taken",
        load_bus,
        BOUNDED,
        10,
    ),
    Proof(
        "AXI: STORE",
        "AW and W held, within 4 KiB, at most max_outstanding bursts; after a stop no new "
        "burst, strobes off, responses taken",
        store_bus,
        BOUNDED,
        10,
    ),
    Proof(
        "AXI: STORE beats",
        "each burst gets exactly its beats, the last one marked, never before its address; "
        "also after a stop; bus_busy stays high until the last one is answered",
        store_beats,
        BOUNDED,
        10,
    ),
]
