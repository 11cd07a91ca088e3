"""The scratchpad against a Python bytearray: data, latency, independence of banks, fairness."""

import gc
import random

import pytest
from amaranth.sim import Simulator

from weft_hw.gateware.interfaces import READ_LATENCY, WRITE_LATENCY
from weft_hw.gateware.scratchpad import Scratchpad

SHAPES = [  # size, banks, line, bytes of readers, of writers
    (64, 2, 4, (4, 4), (4, 4)),
    (128, 4, 4, (4, 4, 4), (4, 4)),
    (128, 1, 8, (8, 8), (8,)),
    (512, 8, 16, (16,) * 4, (16,) * 3),
    (32, 2, 2, (2,), (2,)),
    (512, 4, 16, (16, 4, 4, 4), (4, 4)),
    (128, 2, 8, (2, 8, 3, 1), (8, 5, 1)),
    (64, 1, 8, (1, 7), (2,)),
]


# With who chooses between a bank's lines: always the bank where a reader takes less than a line.
READS = [
    (shape, by_bank)
    for shape in SHAPES
    for by_bank in (False, True)
    if by_bank or min(shape[3]) == shape[2]
]


def bench(scratchpad: Scratchpad, process) -> None:
    simulator = Simulator(scratchpad)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()


def banks_of(address: int, positions, size: int, banks: int) -> set[int]:
    return {(address + i) % size // (size // banks) for i in positions}


@pytest.mark.parametrize("inhibit", [False, True])
@pytest.mark.parametrize(("shape", "by_bank"), READS, ids=str)
def test_random_traffic_equals_a_bytearray(shape, inhibit: bool, by_bank: bool, seed: int) -> None:
    size, banks, line, read_bytes, write_bytes = shape
    readers, writers = len(read_bytes), len(write_bytes)
    rng = random.Random(f"{seed} {shape} {inhibit} {by_bank}")
    scratchpad = Scratchpad(
        size,
        banks,
        line,
        readers,
        writers,
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        byte_order=rng.choice([None, rng.sample(range(line), line)]),
        choose_by_bank=by_bank,
    )
    # By byte: what a read sees; None while writes are under way, or if two writers met there.
    model: list[int | None] = [0] * size
    last_write = [(-WRITE_LATENCY, 0)] * size  # by byte: cycle, writer
    under_way: list[list[tuple[int, int | None]]] = [[] for _ in range(WRITE_LATENCY)]
    requests = {("read", i): None for i in range(readers)}
    requests |= {("write", i): None for i in range(writers)}
    waits = dict.fromkeys(requests, 0)
    # By reader: for each of the coming cycles the bytes expected, None for no data.
    expected = [[None] * READ_LATENCY for _ in range(readers)]
    busy = rng.choice([0.3, 0.9])

    async def process(ctx):
        seen = {"data": 0, "refused": 0, "mid-air write": 0}
        for cycle in range(500):
            ctx.set(scratchpad.inhibit, inhibit and cycle >= 100)
            for (kind, i), request in requests.items():
                port = scratchpad.reads[i] if kind == "read" else scratchpad.writes[i]
                if request is None and rng.random() < busy:
                    near_bank_end = rng.randrange(banks) * (size // banks) - rng.randrange(line)
                    address = rng.choice([rng.randrange(size), near_bank_end % size])
                    data = rng.randbytes(line)
                    width = write_bytes[i] if kind == "write" else line
                    strobe = rng.choice([(1 << width) - 1, rng.getrandbits(width), 1, 0])
                    requests[kind, i] = (address, data, strobe)
                    ctx.set(port.address, address)
                    if kind == "write":
                        ctx.set(port.data, int.from_bytes(data, "little"))
                        ctx.set(port.strobe, strobe)
                ctx.set(port.valid, requests[kind, i] is not None)

            taken = {"read": [], "write": []}
            for (kind, i), request in requests.items():
                port = scratchpad.reads[i] if kind == "read" else scratchpad.writes[i]
                if request is None:
                    continue
                address, data, strobe = request
                positions = range(read_bytes[i] if kind == "read" else line)
                if kind == "write":
                    positions = [k for k in range(line) if strobe >> k & 1]
                if ctx.get(port.ready):
                    waits[kind, i] = 0
                    taken[kind].append((i, address, data, positions))
                else:
                    waits[kind, i] += 1
                    seen["refused"] += 1
                    # A refused read meets another in one of its banks.
                    mine = banks_of(address, positions, size, banks)
                    assert kind == "write" or any(
                        other is not None
                        and j != i
                        and mine & banks_of(other[0], range(read_bytes[j]), size, banks)
                        for (other_kind, j), other in requests.items()
                        if other_kind == kind
                    )
                assert waits[kind, i] < (readers if kind == "read" else writers)

            # One read a bank and cycle.
            all_banks = [b for _, a, _, p in taken["read"] for b in banks_of(a, p, size, banks)]
            assert len(all_banks) == len(set(all_banks))

            for i, port in enumerate(scratchpad.reads):
                due = expected[i].pop(0)
                assert ctx.get(port.data_valid) == (due is not None)
                if due is not None:
                    seen["data"] += 1
                    got = ctx.get(port.data).to_bytes(line, "little")[: read_bytes[i]]
                    assert all(want is None or want == have for want, have in zip(due, got))
                expected[i].append(None)
            for place, value in under_way.pop(0):
                if last_write[place][0] == cycle - WRITE_LATENCY:  # nothing else since then
                    model[place] = value
            under_way.append([])
            for i, address, data, positions in taken["write"]:
                requests["write", i] = None
                if inhibit and cycle >= 100 - WRITE_LATENCY:  # it may not reach the memory in time
                    if cycle >= 100:
                        continue
                    data = [None] * line
                for k in positions:
                    place = (address + k) % size
                    when, who = last_write[place]
                    meets = who != i and cycle - when < WRITE_LATENCY
                    last_write[place] = (cycle, i)
                    model[place] = None
                    under_way[-1].append((place, None if meets else data[k]))
            for i, address, _, _ in taken["read"]:
                where = [(address + k) % size for k in range(read_bytes[i])]
                seen["mid-air write"] += any(model[w] is None for w in where)
                expected[i][-1] = [model[w] for w in where]
                requests["read", i] = None
            await ctx.tick()
        assert seen["data"] > 50
        if readers > 1:
            assert seen["refused"] > 20

    bench(scratchpad, process)


def test_different_banks_are_served_every_cycle() -> None:
    scratchpad = Scratchpad(256, 4, 4, 3, 2)

    async def process(ctx):
        for cycle in range(40):
            for bank, port in enumerate([*scratchpad.reads, *scratchpad.writes]):
                ctx.set(port.address, 64 * (bank % 4) + cycle % 61)
                ctx.set(port.valid, 1)
            for port in scratchpad.writes:
                ctx.set(port.strobe, 0b1111)
            assert all(ctx.get(port.ready) for port in scratchpad.reads)
            assert all(ctx.get(port.ready) for port in scratchpad.writes)
            await ctx.tick()

    bench(scratchpad, process)


def test_three_readers_of_one_bank_share_it_equally_beside_a_straddling_one() -> None:
    scratchpad = Scratchpad(128, 2, 4, 3, 1)
    addresses = [8, 62, 70]  # bank 0, both banks, bank 1

    async def process(ctx):
        served = [0, 0, 0]
        for port, address in zip(scratchpad.reads, addresses):
            ctx.set(port.address, address)
            ctx.set(port.valid, 1)
        for _ in range(60):
            for i, port in enumerate(scratchpad.reads):
                served[i] += ctx.get(port.ready)
            await ctx.tick()
        # Readers 0 and 2 go together, in turn with the one that needs both banks.
        assert sorted(served) == [29, 30, 30]

    bench(scratchpad, process)


def test_a_write_is_readable_after_its_latency() -> None:
    scratchpad = Scratchpad(64, 2, 4, 1, 1)
    read, write = scratchpad.reads[0], scratchpad.writes[0]

    async def process(ctx):
        ctx.set(write.address, 30)  # straddles the banks
        ctx.set(write.data, 0x44332211)
        ctx.set(write.strobe, 0b1111)
        ctx.set(write.valid, 1)
        assert ctx.get(write.ready)
        await ctx.tick()
        ctx.set(write.valid, 0)
        await ctx.tick().repeat(WRITE_LATENCY - 1)
        ctx.set(read.address, 30)
        ctx.set(read.valid, 1)
        await ctx.tick()
        ctx.set(read.valid, 0)
        await ctx.tick().repeat(READ_LATENCY - 1)
        assert ctx.get(read.data_valid)
        assert ctx.get(read.data) == 0x44332211
        await ctx.tick()
        assert not ctx.get(read.data_valid)

    bench(scratchpad, process)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((96, 2, 4, 1, 1), "`size_bytes` must be a power of two from 32, not 96"),
        ((16, 2, 4, 1, 1), "`size_bytes` must be a power of two from 32, not 16"),
        ((64, 3, 4, 1, 1), "`banks` must be a power of two, not 3"),
        ((64, 2, 1, 1, 1), "`line_bytes` must be at least 2, not 1"),
        ((64, 2, 4, 0, 1), "`readers` must be a positive integer, not 0"),
    ],
)
def test_wrong_parameters_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Scratchpad(*arguments)
    assert str(caught.value) == message
    del caught  # holds the unfinished component, whose end would warn in a later test
    gc.collect()


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("widths", [[4], [4, 5], [0, 4]], ids=str)
@pytest.mark.parametrize("name", ["read_bytes", "write_bytes"])
def test_wrong_widths_are_named(name: str, widths: list[int]) -> None:
    with pytest.raises(ValueError) as caught:
        Scratchpad(64, 2, 4, 2, 2, **{name: widths})
    assert str(caught.value) == f"`{name}` must be 2 numbers from 1 to 4, not {widths}"
    del caught  # as above
    gc.collect()
