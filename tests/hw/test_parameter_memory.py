"""The parameter memory against the row layout of docs/machine.md, written out by hand."""

import dataclasses
import random
import struct

import pytest
from amaranth.sim import Simulator

from weft_hw.config import PRESETS
from weft_hw.gateware.interfaces import READ_LATENCY
from weft_hw.gateware.parameter_memory import ParameterMemory

TINY = PRESETS["tiny"]
CONFIGS = {
    "tiny": TINY,
    "wide bus": dataclasses.replace(TINY, bus_width=128),
    "one row": dataclasses.replace(TINY, parameter_rows=1),
    "edge8": PRESETS["edge8"],
    "groups": dataclasses.replace(PRESETS["edge8"], vector_lanes=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_read_back_as_written(name: str, seed: int) -> None:
    config = CONFIGS[name]
    rng = random.Random(f"{seed} {name}")
    columns, beat = config.columns, config.bus_bytes
    parameters = ParameterMemory(config)
    rows = {}

    async def write(ctx, address: int, data: bytes, inhibit: bool = False) -> None:
        ctx.set(parameters.inhibit, inhibit)
        ctx.set(parameters.write.valid, 1)
        ctx.set(parameters.write.address, address)
        ctx.set(parameters.write.data, int.from_bytes(data, "little"))
        ctx.set(parameters.write.strobe, (1 << beat) - 1)
        assert ctx.get(parameters.write.ready)
        await ctx.tick()
        ctx.set(parameters.write.valid, 0)

    async def process(ctx):
        for row in range(config.parameter_rows):
            bias = [rng.randint(-(1 << 31), (1 << 31) - 1) for _ in range(columns)]
            multiplier = [rng.getrandbits(31) for _ in range(columns)]
            exponent = [rng.randint(-128, 127) for _ in range(columns)]
            rows[row] = (bias, multiplier, exponent)
            packed = struct.pack(f"<{columns}i{columns}I{columns}b", *bias, *multiplier, *exponent)
            packed += rng.randbytes(config.parameter_row_pitch - len(packed))  # dropped
            for offset in rng.sample(range(0, len(packed), beat), len(packed) // beat):
                await write(
                    ctx, row * config.parameter_row_pitch + offset, packed[offset : offset + beat]
                )
        await write(ctx, 0, bytes(beat), inhibit=True)

        order = [
            (rng.randrange(config.parameter_rows), rng.randrange(config.vector_groups))
            for _ in range(20)
        ]
        for cycle in range(len(order) + READ_LATENCY):
            if cycle < len(order):
                ctx.set(parameters.read.address, order[cycle][0])
                ctx.set(parameters.read.group, order[cycle][1])
            if cycle >= READ_LATENCY:
                read = parameters.read.data
                row, group = order[cycle - READ_LATENCY]
                for lane in range(config.vector_lanes):
                    channel = group * config.vector_lanes + lane
                    for field, values in zip(
                        (read.bias, read.multiplier, read.exponent), rows[row]
                    ):
                        assert ctx.get(field[lane]) == values[channel]
            await ctx.tick()

    simulator = Simulator(parameters)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
