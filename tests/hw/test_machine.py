"""The whole machine in Amaranth's simulator: a program through all engines, faults, resets."""

import dataclasses
import itertools
import random
import struct

import numpy as np
import pytest

from hw.machine_bench import Bench, Dram, bench_of, program_bytes
from weft_hw.config import PRESETS
from weft_hw.instructions import (
    End,
    Load,
    Matrix,
    Memory,
    OperandSource,
    Rounding,
    ScaleSource,
    Store,
    Vector,
)
from weft_hw.registers import FaultCause, Status

TINY = dataclasses.replace(PRESETS["tiny"], semaphore_bits=2)  # so that four signals overflow
DISPATCH = 4

# DRAM of the product below.
INPUT, WEIGHTS, PARAMETERS, OUTPUT, PROGRAM = 0x0000, 0x0403, 0x0800, 0x0C01, 0x1000
PIXELS, CHANNELS_IN, CHANNELS_OUT = 6, 8, 8
ROWS = COLUMNS = 4
LOADED, COMPUTED, SCALED = 0, 1, 2  # semaphores


@pytest.fixture(scope="module")
def bench() -> Bench:
    return bench_of(TINY)


def requantized(value: int, multiplier: int, exponent: int) -> int:
    """Half up in one step, in unbounded integers."""
    shift = 31 - exponent
    return (value * multiplier + (1 << (shift - 1))) >> shift


def product_program() -> list:
    """``output = clamp(requantize(input @ weights + bias) + 3)``, 6 x 8 by 8 x 8."""
    tiles_in, tiles_out = CHANNELS_IN // ROWS, CHANNELS_OUT // COLUMNS
    row_bytes = TINY.parameter_row_bytes
    return [
        Load(
            dram_address=INPUT,
            run_bytes=PIXELS * CHANNELS_IN,
            memory=Memory.ACTIVATION,
            extent=1,
        ),
        Load(
            dram_address=WEIGHTS,
            run_bytes=CHANNELS_IN * CHANNELS_OUT,
            extent=1,
            memory=Memory.WEIGHT,
            address=64,
        ),
        Load(
            dram_address=PARAMETERS,
            counts=(1, 1, tiles_out),
            dram_strides=(0, 0, row_bytes),
            run_bytes=row_bytes,
            extent=1,
            memory=Memory.PARAMETER,
            strides=(0, 0, TINY.parameter_row_pitch),
            signal=1 << LOADED,
        ),
        Matrix(
            wait=1 << LOADED,
            signal=1 << COMPUTED,
            counts=(tiles_out, 1, 1, tiles_in, 1, 1, PIXELS),
            left_zero_point=-7,
            left_strides=(0, 0, 0, ROWS, 0, 0, CHANNELS_IN),
            top_address=64,
            top_strides=(COLUMNS, 0, 0, ROWS * CHANNELS_OUT, 0, 0, 0),
            tile_stride=CHANNELS_OUT,
            accumulator_strides=(PIXELS, 0, 0, 0, 0, 0, 1),
        ),
        Vector(
            wait=1 << COMPUTED,
            signal=1 << SCALED,
            counts=(tiles_out, 1, 1, PIXELS, 1, 1),
            a_source=OperandSource.ACCUMULATOR,
            a_strides=(PIXELS, 0, 0, 1, 0, 0),
            destination=Memory.ACTIVATION,
            address=1024,
            strides=(COLUMNS, 0, 0, CHANNELS_OUT),
            parameter_strides=(1, 0, 0, 0),
            use_bias=1,
            scale_source=ScaleSource.PARAMETER,
            rounding=Rounding.HALF_UP,
            zero_point=3,
            clamp_low=-100,
            clamp_high=110,
        ),
        Store(
            wait=1 << SCALED,
            dram_address=OUTPUT,
            run_bytes=PIXELS * CHANNELS_OUT,
            extent=1,
            memory=Memory.ACTIVATION,
            address=1024,
        ),
        End(),
    ]


def product_dram(rng: random.Random, program: list, **options) -> tuple[Dram, bytes]:
    """A memory that holds the program and random data, and the bytes that must come out."""
    content = bytearray(rng.randbytes(0x2000))
    inputs = [[rng.randint(-128, 127) for _ in range(CHANNELS_IN)] for _ in range(PIXELS)]
    weights = [[rng.randint(-128, 127) for _ in range(CHANNELS_OUT)] for _ in range(CHANNELS_IN)]
    bias = [rng.randint(-20000, 20000) for _ in range(CHANNELS_OUT)]
    multiplier = [rng.randint(1 << 30, (1 << 31) - 1) for _ in range(CHANNELS_OUT)]
    exponent = [rng.randint(-11, -8) for _ in range(CHANNELS_OUT)]

    def place(address: int, data: bytes) -> None:
        content[address : address + len(data)] = data

    place(INPUT, struct.pack(f"{PIXELS * CHANNELS_IN}b", *itertools.chain(*inputs)))
    place(WEIGHTS, struct.pack(f"{CHANNELS_IN * CHANNELS_OUT}b", *itertools.chain(*weights)))
    for tile in range(CHANNELS_OUT // COLUMNS):
        part = slice(tile * COLUMNS, (tile + 1) * COLUMNS)
        row = struct.pack("<4i4I4b", *bias[part], *multiplier[part], *exponent[part])
        place(PARAMETERS + tile * TINY.parameter_row_bytes, row)
    place(PROGRAM, program_bytes(program))

    expected = []
    for pixel, channel in itertools.product(range(PIXELS), range(CHANNELS_OUT)):
        total = bias[channel] + sum(
            (inputs[pixel][k] + 7) * weights[k][channel] for k in range(CHANNELS_IN)
        )
        scaled = requantized(total, multiplier[channel], exponent[channel]) + 3
        expected.append(min(max(scaled, -100), 110))
    return Dram(content, **options), struct.pack(f"{len(expected)}b", *expected)


async def check_done(bench: Bench, ctx, instructions: int, watchdog: int = 300) -> None:
    assert await bench.execute(ctx, PROGRAM, watchdog) == Status.DONE
    assert await bench.read(ctx, "FAULT_CAUSE") == 0
    engines = ("LOAD", "MATRIX", "VECTOR", "STORE")
    counts = {
        (engine, what): await bench.read(ctx, f"{engine}_{what}")
        for engine in engines
        for what in ("RETIRED", "BUSY", "WAIT", "STALL")
    }
    cycles = await bench.read(ctx, "CYCLES_LOW")
    assert sum(counts[engine, "RETIRED"] for engine in engines) == instructions
    for engine in engines:
        assert 0 < counts[engine, "BUSY"] < cycles
        assert counts[engine, "STALL"] <= counts[engine, "BUSY"]
        assert counts[engine, "WAIT"] + counts[engine, "BUSY"] < cycles
    waits = [counts[engine, "WAIT"] > 0 for engine in engines]
    assert waits == [False, True, True, True], "each engine but LOAD has something to wait for"


def test_end_alone_is_done(bench: Bench) -> None:
    dram = Dram(bytearray(End().encode()))

    async def host(bench, ctx):
        assert await bench.execute(ctx, 0) == Status.DONE
        cycles = await bench.read(ctx, "CYCLES_LOW")
        assert 10 < cycles < 60
        assert await bench.read(ctx, "FETCH_BEATS") == sum(beats for _, beats in dram.reads)
        assert await bench.read(ctx, "READ_BEATS") == 0

    bench.run(host, dram)


@pytest.mark.parametrize(("latency", "stall"), [(0, 0.0), (20, 0.0), (3, 0.4), (7, 0.7)])
def test_product_through_all_engines(bench: Bench, latency: int, stall: float, seed: int) -> None:
    rng = random.Random(f"{seed} {latency} {stall}")
    dram, expected = product_dram(rng, product_program(), latency=latency, stall=stall)
    before = bytes(dram.content)

    async def host(bench, ctx):
        await check_done(bench, ctx, 6)
        beats = await bench.read(ctx, "READ_BEATS") + await bench.read(ctx, "FETCH_BEATS")
        assert beats == sum(count for _, count in dram.reads)
        assert await bench.read(ctx, "WRITE_BEATS") == sum(count for _, count in dram.writes)

    bench.run(host, dram, seed)
    end = OUTPUT + len(expected)
    assert dram.content[OUTPUT:end] == expected
    assert dram.content[:OUTPUT] == before[:OUTPUT], "STORE wrote in front of its range"
    assert dram.content[end:] == before[end:], "STORE wrote behind its range"


def test_a_program_runs_again_without_reset(bench: Bench, seed: int) -> None:
    dram, expected = product_dram(random.Random(seed), product_program())

    async def host(bench, ctx):
        await check_done(bench, ctx, 6)
        first = await bench.read(ctx, "CYCLES_LOW")
        dram.content[OUTPUT : OUTPUT + len(expected)] = bytes(len(expected))
        await check_done(bench, ctx, 6)
        assert await bench.read(ctx, "CYCLES_LOW") == first, "equal programs take equal cycles"

    bench.run(host, dram)
    assert dram.content[OUTPUT : OUTPUT + len(expected)] == expected


def test_watchdog_lets_an_engine_work_that_says_nothing_for_long(bench: Bench, seed: int) -> None:
    program = product_program()
    program[3] = dataclasses.replace(program[3], counts=(2, 1, 1, 2, 1, 20, PIXELS))
    dram, _ = product_dram(random.Random(seed), program)

    async def host(bench, ctx):
        await check_done(bench, ctx, 6, watchdog=40)
        assert await bench.read(ctx, "MATRIX_BUSY") > 10 * 40

    bench.run(host, dram)


def test_start_is_ignored_while_busy(bench: Bench, seed: int) -> None:
    dram, expected = product_dram(random.Random(seed), product_program(), latency=9)

    async def host(bench, ctx):
        await bench.write(ctx, "PROGRAM_ADDRESS", PROGRAM)
        await bench.write(ctx, "CONTROL", 1)
        for _ in range(3):
            await ctx.tick().repeat(20)
            await bench.write(ctx, "CONTROL", 1)
            assert await bench.read(ctx, "STATUS") == Status.BUSY
        while await bench.read(ctx, "STATUS") & Status.BUSY:
            pass
        assert await bench.read(ctx, "INTERRUPT_STATUS") == 1
        assert not ctx.get(bench.machine.interrupt), "no interrupt is enabled"
        assert bench.starts == bench.retirements == [3, 1, 1, 1]
        await bench.write(ctx, "INTERRUPT_STATUS", 1)
        await check_done(bench, ctx, 6)
        assert bench.starts == bench.retirements == [6, 2, 2, 2]

    bench.run(host, dram)
    assert dram.content[OUTPUT : OUTPUT + len(expected)] == expected


def faulty_programs() -> dict:
    """Name to (program, DRAM options, cause, queue, index of the instruction, address)."""
    good = product_program()

    def changed(index: int, **fields):
        program = list(good)
        program[index] = dataclasses.replace(program[index], **fields)
        return program

    offset = sum(i.size for i in good[:2])
    return {
        "bad opcode": (
            [*good[:2], bytes([0x7F]) + bytes(15), *good[2:]],
            {},
            FaultCause.BAD_OPCODE,
            DISPATCH,
            2,
            PROGRAM + offset,
        ),
        "load from a bad address": (
            good,
            {"errors": range(WEIGHTS, WEIGHTS + 1)},
            FaultCause.READ_ERROR,
            0,
            1,
            WEIGHTS & ~3,
        ),
        "store to a bad address": (
            good,
            {"errors": range(OUTPUT, OUTPUT + 1)},
            FaultCause.WRITE_ERROR,
            3,
            5,
            OUTPUT & ~3,
        ),
        "fetch error": (
            good,
            {"errors": range(PROGRAM + 200, PROGRAM + 201)},
            FaultCause.FETCH_ERROR,
            DISPATCH,
            3,
            PROGRAM + 192,
        ),
        "local address": (
            changed(1, address=1024 - 4),
            {},
            FaultCause.LOCAL_ADDRESS,
            0,
            1,
            None,
        ),
        "unsupported field": (
            changed(4, lookup=5),
            {},
            FaultCause.UNSUPPORTED_FIELD,
            2,
            4,
            None,
        ),
        "zero count": (
            changed(3, counts=(1, 1, 1, 1, 1, 0, 1)),
            {},
            FaultCause.ZERO_COUNT,
            1,
            3,
            None,
        ),
        "wait that nobody signals": (
            changed(2, signal=0),
            {},
            FaultCause.WATCHDOG,
            1,
            3,
            0,
        ),
        "overflow": (
            [Store(signal=1, extent=0, origin=-1) for _ in range(4)] + [End()],
            {},
            FaultCause.SEMAPHORE_OVERFLOW,
            3,
            3,
            None,
        ),
    }


def encoded(program: list) -> list[bytes]:
    return [item if isinstance(item, bytes) else item.encode() for item in program]


@pytest.mark.parametrize("name", faulty_programs())
def test_fault_is_named_and_the_next_program_runs(bench: Bench, name: str, seed: int) -> None:
    program, options, cause, queue, index, address = faulty_programs()[name]
    pieces = encoded(program)
    dram, expected = product_dram(random.Random(seed), product_program(), latency=5)
    room = max(0, PROGRAM + sum(map(len, pieces)) - len(dram.content))
    dram.content += bytes(room)
    good = bytes(dram.content)
    dram.content[PROGRAM : PROGRAM + sum(map(len, pieces))] = b"".join(pieces)
    dram.errors = options.get("errors", range(0))

    async def host(bench, ctx):
        assert await bench.execute(ctx, PROGRAM) == Status.FAULT
        assert await bench.read(ctx, "FAULT_CAUSE") == cause
        assert await bench.read(ctx, "FAULT_STICKY") == 1 << cause
        assert await bench.read(ctx, "FAULT_QUEUE") == queue
        assert await bench.read(ctx, "FAULT_INSTRUCTION") == sum(map(len, pieces[:index]))
        if address is not None:
            assert await bench.read(ctx, "FAULT_ADDRESS") == address

        await bench.write(ctx, "CONTROL", 1)  # no start without a reset
        await ctx.tick().repeat(20)
        assert await bench.read(ctx, "STATUS") == Status.FAULT

        await bench.write(ctx, "CONTROL", 2)
        assert await bench.read(ctx, "STATUS") == 0
        assert await bench.read(ctx, "FAULT_CAUSE") == 0
        assert await bench.read(ctx, "FAULT_STICKY") == 0
        dram.content[:] = good
        dram.errors = range(0)
        await check_done(bench, ctx, 6)

    bench.run(host, dram, seed)
    assert dram.content[OUTPUT : OUTPUT + len(expected)] == expected


def test_misaligned_program_address(bench: Bench) -> None:
    async def host(bench, ctx):
        assert await bench.execute(ctx, 0x102) == Status.FAULT
        assert await bench.read(ctx, "FAULT_CAUSE") == FaultCause.ALIGNMENT
        assert await bench.read(ctx, "FAULT_QUEUE") == DISPATCH
        assert await bench.read(ctx, "FAULT_ADDRESS") == 0x102

    dram = Dram(bytearray(0x200))
    bench.run(host, dram)
    assert not dram.reads


def test_errors_beyond_the_end_do_not_count(bench: Bench) -> None:
    dram = Dram(bytearray(End().encode()), errors=range(16, 4096))

    async def host(bench, ctx):
        assert await bench.execute(ctx, 0) == Status.DONE

    bench.run(host, dram)
    assert any(address >= 16 for address, _ in dram.reads), "nothing was read ahead"


@pytest.mark.parametrize("when", ["at once", "in LOAD"])
def test_bus_that_does_not_answer(bench: Bench, when: str, seed: int) -> None:
    dram, expected = product_dram(random.Random(seed), product_program(), latency=1)

    async def host(bench, ctx):
        dram.silent = when == "at once"
        if when == "in LOAD":
            await bench.write(ctx, "PROGRAM_ADDRESS", PROGRAM)
            await bench.write(ctx, "WATCHDOG_LIMIT", 100)
            await bench.write(ctx, "CONTROL", 1)
            await ctx.tick().until(bench.machine.event_start[0])
            dram.silent = True
            await ctx.tick().repeat(400)
        else:
            assert await bench.execute(ctx, PROGRAM, watchdog=100) == Status.FAULT
        assert await bench.read(ctx, "STATUS") == Status.FAULT
        assert await bench.read(ctx, "FAULT_CAUSE") == FaultCause.BUS_HUNG
        assert await bench.read(ctx, "FAULT_QUEUE") == (DISPATCH if when == "at once" else 0)

    bench.run(host, dram)


def test_soft_reset_of_a_running_program_drains_the_bus(bench: Bench, seed: int) -> None:
    dram, expected = product_dram(random.Random(seed), product_program(), latency=30)

    async def host(bench, ctx):
        for cycles in (0, 5, 40, 77, 130):
            await bench.write(ctx, "PROGRAM_ADDRESS", PROGRAM)
            await bench.write(ctx, "CONTROL", 1)
            if cycles:
                await ctx.tick().repeat(cycles)
            await bench.write(ctx, "CONTROL", 2)
            while await bench.read(ctx, "STATUS") & Status.BUSY:
                pass
            assert await bench.read(ctx, "STATUS") == 0
            dram.content[OUTPUT : OUTPUT + len(expected)] = bytes(len(expected))
            await check_done(bench, ctx, 6)
            assert dram.content[OUTPUT : OUTPUT + len(expected)] == expected

    bench.run(host, dram)


def test_expected_values_are_not_trivial(seed: int) -> None:
    _, expected = product_dram(random.Random(seed), product_program())
    values = np.frombuffer(expected, np.int8)
    assert len(set(values.tolist())) > 10
