"""The bench that runs programs: cocotbext-axi's memory and register master around the machine.

:mod:`weft_sim.cocotb_bench.runner` writes the jobs into a folder and starts the simulator, in whose
process this module runs; each job leaves its results in the same folder.
"""

import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, RisingEdge, Timer
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiSlave

from weft_hw.registers import MACHINE_ID, Control, Interrupt, Status, register
from weft_sim.rtl.counters import COUNTERS

__all__ = ["run_programs"]

PERIOD_NS = 10


class Dram:
    """What the machine's memory bus reaches; raising makes cocotbext-axi answer SLVERR."""

    def __init__(self, size: int, error_ranges: list[tuple[int, int]]) -> None:
        self.bytes = np.zeros(size, dtype=np.uint8)
        self._error_ranges = error_ranges

    def _check(self, address: int, length: int) -> None:
        end = address + length
        hit = any(address < stop and start < end for start, stop in self._error_ranges)
        if hit or end > self.bytes.size:
            raise IndexError(f"{length} bytes at {address:#x}")

    async def read(self, address: int, length: int) -> bytes:
        self._check(address, length)
        return self.bytes[address : address + length].tobytes()

    async def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.bytes[address : address + len(data)] = np.frombuffer(data, dtype=np.uint8)


class Bench:
    """The machine with a clock and its two buses."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        Clock(dut.clk, PERIOD_NS, unit="ns", impl="gpi").start()
        dut.rst.value = 1
        self.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil_"), dut.clk, dut.rst)
        self.memory = AxiSlave(AxiBus.from_prefix(dut, "m_axi_"), dut.clk, dut.rst)

    @property
    def channels(self) -> list[Any]:
        """Every channel of both buses on which the bench decides when to go on."""
        memory, registers = self.memory, self.registers
        return [
            memory.write_if.aw_channel,
            memory.write_if.w_channel,
            memory.write_if.b_channel,
            memory.read_if.ar_channel,
            memory.read_if.r_channel,
            registers.write_if.aw_channel,
            registers.write_if.w_channel,
            registers.write_if.b_channel,
            registers.read_if.ar_channel,
            registers.read_if.r_channel,
        ]

    async def reset(self, dram: Dram) -> None:
        """Reset machine and buses, with this memory behind the machine from then on."""
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 4)
        self.memory.write_if.target = dram
        self.memory.read_if.target = dram
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)

    def pause(self, seed: int, probability: float) -> None:
        """Let every channel pause at random, each from its own sequence; seed 0 never."""
        for index, channel in enumerate(self.channels):
            channel.clear_pause_generator()
            channel.pause = False
            if seed:
                channel.set_pause_generator(_pauses(f"{seed} {index}", probability))

    async def read(self, name: str) -> int:
        """A register's value."""
        answer = await self.registers.read(register(name).offset, 4)
        assert answer.resp == 0, f"the read of {name} was answered with {answer.resp!r}"
        return int.from_bytes(bytes(answer.data), "little")

    async def read_wide(self, low: str, high: str) -> int:
        """A register of two halves."""
        return await self.read(low) | await self.read(high) << 32

    async def write(self, name: str, value: int) -> None:
        """Write a register."""
        answer = await self.registers.write(register(name).offset, value.to_bytes(4, "little"))
        assert answer.resp == 0, f"the write of {name} was answered with {answer.resp!r}"


def _pauses(seed: str, probability: float) -> Iterator[bool]:
    source = random.Random(seed)
    while True:
        yield source.random() < probability


async def _run_job(
    bench: Bench, dram: Dram, job: Mapping[str, Any], config_hash: int
) -> dict[str, Any]:
    await bench.reset(dram)
    bench.pause(job["seed"], job["pause_probability"])
    assert await bench.read("MACHINE_ID") == MACHINE_ID
    assert await bench.read_wide("CONFIG_HASH_LOW", "CONFIG_HASH_HIGH") == config_hash
    assert not await bench.read("STATUS") & Status.BUSY
    await bench.write("INTERRUPT_ENABLE", int(Interrupt.DONE | Interrupt.FAULT))
    await bench.write("WATCHDOG_LIMIT", job["watchdog"])
    await bench.write("PROGRAM_ADDRESS", job["program_address"] & 0xFFFF_FFFF)
    await bench.write("PROGRAM_ADDRESS_HIGH", job["program_address"] >> 32)
    assert not bench.dut.interrupt.value, "the interrupt is high before the start"
    began = time.perf_counter()
    interrupt = RisingEdge(bench.dut.interrupt)
    bench.registers.init_write(register("CONTROL").offset, int(Control.START).to_bytes(4, "little"))
    limit = Timer(job["cycle_limit"] * PERIOD_NS, unit="ns")
    raised = await First(interrupt, limit)
    wall_seconds = time.perf_counter() - began
    assert raised is not limit, f"no interrupt within {job['cycle_limit']:,} cycles"
    status = await bench.read("STATUS")
    fault = None
    if status & Status.FAULT:
        fault = {
            "cause": await bench.read("FAULT_CAUSE"),
            "queue": await bench.read("FAULT_QUEUE"),
            "instruction": await bench.read("FAULT_INSTRUCTION"),
            "address": await bench.read_wide("FAULT_ADDRESS", "FAULT_ADDRESS_HIGH"),
            "sticky": await bench.read("FAULT_STICKY"),
        }
    else:
        assert status == Status.DONE, f"the interrupt came with STATUS {status:#x}"
    everything = int(Interrupt.DONE | Interrupt.FAULT)
    await bench.write("INTERRUPT_STATUS", everything)
    await ClockCycles(bench.dut.clk, 2)
    assert not bench.dut.interrupt.value, "the interrupt stays high after it was cleared"
    return {
        "cycles": await bench.read_wide("CYCLES_LOW", "CYCLES_HIGH"),
        "wall_seconds": wall_seconds,
        "counters": {name: await bench.read(name) for name in COUNTERS},
        "fault": fault,
    }


@cocotb.test()
async def run_programs(dut: Any) -> None:
    """Run every job of the folder, one after the other."""
    directory = Path(os.environ["WEFT_COCOTB_JOBS"])
    content = json.loads((directory / "jobs.json").read_text())
    bench = Bench(dut)
    for index, job in enumerate(content["jobs"]):
        ranges = [(start, end) for start, end in job["error_ranges"]]
        dram = Dram(job["memory_bytes"], ranges)
        with np.load(directory / f"image{index}.npz") as image:
            for address in image.files:
                values = image[address]
                dram.bytes[int(address) : int(address) + values.size] = values
        result = await _run_job(bench, dram, job, content["config_hash"])
        memory = {
            str(position): dram.bytes[address : address + size]
            for position, (address, size) in enumerate(job["read_ranges"])
        }
        # NumPy's type stubs take any keyword for `allow_pickle`.
        np.savez(directory / f"memory{index}.npz", **memory)  # type: ignore[arg-type]
        (directory / f"result{index}.json").write_text(json.dumps(result))
