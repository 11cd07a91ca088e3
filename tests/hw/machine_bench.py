"""A whole machine in Amaranth's simulator, with a host on its registers and a memory on its bus."""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterable

from amaranth.sim import Simulator

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.machine import Machine
from weft_hw.instructions import Instruction
from weft_hw.registers import register

__all__ = ["Bench", "Dram", "bench_of", "program_bytes"]


def program_bytes(instructions: Iterable[Instruction]) -> bytes:
    """The encoded stream."""
    return b"".join(instruction.encode() for instruction in instructions)


@dataclasses.dataclass
class Dram:
    """What the memory does; a test sets it up and looks at what has happened.

    An access whose burst touches an address in ``errors`` is answered with SLVERR. ``silent``: no
    answers are given at all.
    """

    content: bytearray
    latency: int = 3
    stall: float = 0.0
    errors: range = range(0)
    silent: bool = False
    reads: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    writes: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class Bench:
    """Builds the machine once; :meth:`run` resets it and runs a host process against a memory."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.machine = Machine(config)
        self._host: Callable | None = None
        self._dram = Dram(bytearray())
        self._rng = random.Random(0)
        self._used = False
        self.starts, self.retirements = [0] * 4, [0] * 4  # event pulses, by queue
        self.simulator = Simulator(self.machine)
        self.simulator.add_clock(1e-6)
        self.simulator.add_testbench(self._run_host)
        self.simulator.add_testbench(self._serve_reads, background=True)
        self.simulator.add_testbench(self._serve_writes, background=True)
        self.simulator.add_testbench(self._count_events, background=True)

    def run(self, host: Callable, dram: Dram, seed: object = 0) -> None:
        """Run ``await host(self, ctx)`` to its end."""
        self._host, self._dram, self._rng = host, dram, random.Random(f"{seed}")
        self.starts, self.retirements = [0] * 4, [0] * 4
        if self._used:
            self.simulator.reset()
        self._used = True
        self.simulator.run()

    async def _run_host(self, ctx) -> None:
        await self._host(self, ctx)

    # The host ------------------------------------------------------------------------------------

    async def write(self, ctx, name: str, value: int) -> None:
        """Write a register."""
        bus = self.machine.s_axil
        ctx.set(bus.awaddr, register(name).offset)
        ctx.set(bus.wdata, value)
        ctx.set(bus.wstrb, 15)
        ctx.set(bus.bready, 1)
        ctx.set(bus.awvalid, 1)
        ctx.set(bus.wvalid, 1)
        await ctx.tick().until(bus.awready & bus.wready)
        ctx.set(bus.awvalid, 0)
        ctx.set(bus.wvalid, 0)
        (response,) = await ctx.tick().sample(bus.bresp).until(bus.bvalid)
        assert response == 0
        ctx.set(bus.bready, 0)

    async def read(self, ctx, name: str) -> int:
        """Read a register."""
        bus = self.machine.s_axil
        ctx.set(bus.araddr, register(name).offset)
        ctx.set(bus.arvalid, 1)
        ctx.set(bus.rready, 1)
        await ctx.tick().until(bus.arready)
        ctx.set(bus.arvalid, 0)
        value, response = await ctx.tick().sample(bus.rdata, bus.rresp).until(bus.rvalid)
        assert response == 0
        ctx.set(bus.rready, 0)
        return value

    async def execute(self, ctx, address: int, watchdog: int = 300, limit: int = 20000) -> int:
        """Start the program at an address, wait for the interrupt; the value of STATUS."""
        await self.write(ctx, "PROGRAM_ADDRESS", address)
        await self.write(ctx, "WATCHDOG_LIMIT", watchdog)
        await self.write(ctx, "INTERRUPT_ENABLE", 3)
        await self.write(ctx, "CONTROL", 1)
        for _ in range(limit):
            if ctx.get(self.machine.interrupt):
                break
            await ctx.tick()
        else:
            raise AssertionError(f"no interrupt within {limit} cycles")
        status = await self.read(ctx, "STATUS")
        await self.write(ctx, "INTERRUPT_STATUS", await self.read(ctx, "INTERRUPT_STATUS"))
        assert not ctx.get(self.machine.interrupt)
        return status

    async def _count_events(self, ctx) -> None:
        machine = self.machine
        events = ctx.tick().sample(machine.event_start, machine.event_retire)
        async for _, _, started, retired in events:
            for queue in range(4):
                self.starts[queue] += started >> queue & 1
                self.retirements[queue] += retired >> queue & 1

    # The memory ----------------------------------------------------------------------------------

    def _go(self) -> bool:
        return not self._dram.silent and self._rng.random() >= self._dram.stall

    def _check_burst(self, address: int, beats: int) -> None:
        size = self.config.bus_bytes
        assert address % size == 0
        assert beats <= self.config.burst_beats
        assert address // 4096 == (address + beats * size - 1) // 4096, "burst across 4 KiB"

    def _bursts_error(self, address: int, beats: int) -> bool:
        touched = range(address, address + beats * self.config.bus_bytes)
        return any(byte in self._dram.errors for byte in touched)

    async def _serve_reads(self, ctx) -> None:
        axi, size = self.machine.m_axi, self.config.bus_bytes
        beats: list[tuple[int, int, bool, bool]] = []  # due, address, last, error
        held = None
        cycle = 0
        while True:
            ready = self._go()
            ctx.set(axi.arready, ready)
            if held is None and beats and beats[0][0] <= cycle and self._go():
                held = beats.pop(0)
            ctx.set(axi.rvalid, held is not None)
            if held is not None:
                _, address, last, error = held
                word = bytes(self._dram.content[address : address + size]).ljust(size, b"\xa5")
                ctx.set(axi.rdata, int.from_bytes(word, "little"))
                ctx.set(axi.rlast, last)
                ctx.set(axi.rresp, 2 if error else 0)
            _, _, valid, address, length, taken = await ctx.tick().sample(
                axi.arvalid, axi.araddr, axi.arlen, axi.rready & axi.rvalid
            )
            cycle += 1
            if valid and ready:
                self._check_burst(address, length + 1)
                self._dram.reads.append((address, length + 1))
                error = self._bursts_error(address, length + 1)
                beats += [
                    (cycle + self._dram.latency, address + i * size, i == length, error)
                    for i in range(length + 1)
                ]
            if taken:
                held = None

    async def _serve_writes(self, ctx) -> None:
        axi, size = self.machine.m_axi, self.config.bus_bytes
        bursts: list[tuple[int, int]] = []
        data: list[tuple[int, int, int]] = []
        responses: list[int] = []
        offered = None
        while True:
            address_ready, data_ready = self._go(), self._go()
            ctx.set(axi.awready, address_ready)
            ctx.set(axi.wready, data_ready)
            if offered is None and responses and self._go():
                offered = responses.pop(0)
            ctx.set(axi.bvalid, offered is not None)
            ctx.set(axi.bresp, offered or 0)
            (
                _,
                _,
                awvalid,
                address,
                length,
                wvalid,
                value,
                strobe,
                last,
                bready,
            ) = await ctx.tick().sample(
                axi.awvalid,
                axi.awaddr,
                axi.awlen,
                axi.wvalid,
                axi.wdata,
                axi.wstrb,
                axi.wlast,
                axi.bready,
            )
            if awvalid and address_ready:
                self._check_burst(address, length + 1)
                self._dram.writes.append((address, length + 1))
                bursts.append((address, length + 1))
            if wvalid and data_ready:
                data.append((value, strobe, last))
            if offered is not None and bready:
                offered = None
            while bursts and len(data) >= bursts[0][1]:
                start, count = bursts.pop(0)
                error = self._bursts_error(start, count)
                for number in range(count):
                    value, strobe, last = data.pop(0)
                    assert last == (number == count - 1)
                    for byte in range(size):
                        if strobe >> byte & 1 and not error:
                            where = start + number * size + byte
                            self._dram.content[where] = value >> (8 * byte) & 0xFF
                responses.append(2 if error else 0)


@functools.cache
def bench_of(config: AcceleratorConfig) -> Bench:
    """One bench a configuration: building it takes seconds."""
    return Bench(config)
