"""The row nest of the MATRIX engine: which left rows to read, and where their sums go."""

from types import SimpleNamespace

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.gateware.loops import LoopNest
from weft_hw.gateware.row_queue import RowQueue
from weft_hw.gateware.scratchpad import activation_banks_read
from weft_hw.instructions import (
    LOOPS_MATRIX,
    ROW_BITS,
    STRIDE_BITS,
    TILE_LOOPS_MATRIX,
    Accumulate,
    Bounds,
    Dataflow,
    Matrix,
)

__all__ = ["row_nest"]

REDUCTION_LOOPS = slice(1, TILE_LOOPS_MATRIX)
ROW_LOOPS = slice(TILE_LOOPS_MATRIX, LOOPS_MATRIX)

# One step beyond a valid address never wraps; a coordinate never does at all.
LEFT_ADDRESS_BITS = STRIDE_BITS + 1
ACCUMULATOR_BITS = ROW_BITS + 2
COORDINATE_BITS = 24


def row_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A left row to be requested.

    ``reads``: it takes an access; ``counts``: it is not replaced by zeros; ``swap``: it begins a
    tile, or meets a top row of its own; ``streams``: output-stationary; ``closes``: the last row of
    an output tile. ``accumulator`` is the row of its sums or, output-stationary, of the tile's last
    row, from which the tile's rows go back by ``row_stride``. ``drop``: its sums are dropped. An
    array row takes 2 ** ``split`` of its bytes (with several weight modes only).
    """
    modes = len(config.weight_modes)
    return data.StructLayout(
        {
            "address": config.activation_address_bits,
            "banks": config.activation_banks,
            "zero_point": signed(8),
            **({"split": range(modes)} if modes > 1 else {}),
            "reads": 1,
            "counts": 1,
            "swap": 1,
            "streams": 1,
            "closes": 1,
            "accumulator": config.accumulator_address_bits,
            "row_stride": config.accumulator_address_bits,
            "add": 1,
            "drop": 1,
            "last": 1,
        }
    )


def row_nest(m: Module, config: AcceleratorConfig, front: SimpleNamespace) -> SimpleNamespace:
    """All seven loops, one left row a step; rows are checked and wait in a queue.

    Parameters
    ----------
    m : Module
        Where the logic goes.
    config : AcceleratorConfig
    front : SimpleNamespace
        The instruction that comes next: ``fields``, ``offset``, ``nest_start`` (it is taken in this
        cycle), ``nest_free`` (driven here: it may be taken).

    Returns
    -------
    SimpleNamespace
        ``valid``, ``current``: the request register (:func:`row_layout`), emptied by ``issued``,
        which the caller drives; ``pending``: rows wait in it or behind it; ``active``: an
        instruction is in the nest, or its rows are being checked. ``bad``: all rows before one that
        is wrong, which itself never enters the register, have been requested; ``bad_address``,
        ``swap`` and ``offset`` of its instruction belong to it.
    """
    streams = {
        "left": LEFT_ADDRESS_BITS,
        "accumulator": ACCUMULATOR_BITS,
        "y": COORDINATE_BITS,
        "x": COORDINATE_BITS,
    }
    m.submodules.nest = nest = LoopNest(
        loops=LOOPS_MATRIX,
        streams=streams,
        handover=True,
        prepared=True,  # an instruction is checked in the cycle before
    )
    held = Signal(instruction_layout(Matrix), name="held", reset_less=True)
    offset = Signal.like(front.offset, name="nest_offset")
    active = Signal(name="nest_active")
    step = Signal(name="nest_step")
    with m.If(front.nest_start):
        m.d.sync += [active.eq(1), held.eq(front.fields), offset.eq(front.offset)]
    with m.Elif(step & nest.finished):
        m.d.sync += active.eq(0)
    stationary = Signal(name="output_stationary")
    m.d.comb += [
        stationary.eq(held.dataflow == Dataflow.OUTPUT_STATIONARY),
        front.nest_free.eq(~active | (step & nest.finished)),
        nest.load.eq(front.nest_start),
        nest.advance.eq(step),
        nest.left_base.eq(front.fields.left_address),
        nest.accumulator_base.eq(front.fields.accumulator_address),
        nest.y_base.eq(front.fields.y_origin),
        nest.x_base.eq(front.fields.x_origin),
    ]
    for i in range(LOOPS_MATRIX):
        rows = held.accumulator_strides[i]
        outer = i < TILE_LOOPS_MATRIX
        m.d.comb += [
            nest.first_counts[i].eq(front.fields.counts[i]),
            nest.counts[i].eq(held.counts[i]),
            nest.left_strides[i].eq(held.left_strides[i]),
            nest.accumulator_strides[i].eq(rows if outer else Mux(stationary, 0, rows)),
            nest.y_strides[i].eq(held.y_steps[i]),
            nest.x_strides[i].eq(held.x_steps[i]),
        ]

    queue = RowQueue(row_layout(config))
    m.submodules.row_queue = queue
    checked = _checked(m, config, held, offset, nest, step)
    stuck = Signal(name="row_stuck")  # at a row that is wrong, for ever
    bad_address = Signal(signed(LEFT_ADDRESS_BITS), name="bad_address", reset_less=True)
    bad_swap = Signal(name="bad_swap", reset_less=True)
    bad_offset = Signal.like(offset, name="bad_offset", reset_less=True)
    m.d.comb += [
        step.eq(active & nest.ready & queue.room & ~stuck),
        queue.promise.eq(step),
        queue.i_valid.eq(checked.valid & ~checked.bad & ~stuck),
        queue.i.eq(checked.row),
    ]
    with m.If(checked.valid & checked.bad & ~stuck):
        m.d.sync += [
            stuck.eq(1),
            bad_address.eq(checked.bad_address),
            bad_swap.eq(checked.row.swap),
            bad_offset.eq(checked.offset),
        ]
    return SimpleNamespace(
        active=active | checked.busy | stuck,
        bad=stuck & ~queue.pending,
        bad_address=bad_address,
        swap=bad_swap,
        offset=bad_offset,
        valid=queue.o_valid,
        pending=queue.pending,
        issued=queue.taken,
        current=queue.o,
    )


def _checked(
    m: Module,
    config: AcceleratorConfig,
    held: data.View,
    offset: Signal,
    nest: LoopNest,
    step: Signal,
) -> SimpleNamespace:
    """Two cycles behind a step: its row, and whether it is wrong.

    One cycle compares coordinates and works out the last accumulator row of a tile, the other one
    compares addresses.
    """
    stationary = held.dataflow == Dataflow.OUTPUT_STATIONARY
    inside = Signal(name="inside")
    reads = Signal(name="reads")
    writes = Signal(name="writes")
    closes = Signal(name="closes_tile")
    opens = Signal(name="opens_tile")
    side_bits = (config.rows - 1).bit_length()
    distance = (held.tile_stride << side_bits) - held.tile_stride
    reach = Signal(signed(len(distance)), name="tile_reach", reset_less=True)
    end = Signal(signed(len(reach) + 1), name="tile_end", reset_less=True)
    # The nest is not ready before the second cycle behind a start.
    m.d.sync += reach.eq(Mux(stationary, distance, 0))
    m.d.comb += [
        # Compared as unsigned numbers, negative ones are too large as well.
        inside.eq((nest.y.as_unsigned() < held.y_extent) & (nest.x.as_unsigned() < held.x_extent)),
        reads.eq((held.bounds != Bounds.LEFT) | inside),
        opens.eq(nest.first[ROW_LOOPS].all()),
        closes.eq(stationary & nest.last[ROW_LOOPS].all()),
        writes.eq(
            Mux(stationary, closes, (held.bounds != Bounds.ACCUMULATOR) | inside),
        ),
    ]
    first = SimpleNamespace(
        valid=Signal(name="stepped"),
        offset=Signal.like(offset, name="stepped_offset", reset_less=True),
        row=Signal(row_layout(config), name="stepped_row", reset_less=True),
        left=Signal.like(nest.left, name="stepped_left", reset_less=True),
        accumulator=Signal.like(nest.accumulator, name="stepped_accumulator", reset_less=True),
    )
    writes_row = Signal(name="stepped_writes", reset_less=True)
    m.d.sync += first.valid.eq(step)
    with m.If(step):
        row = first.row
        adds = held.accumulate == Accumulate.ALWAYS_ADD
        m.d.sync += [
            first.offset.eq(offset),
            first.left.eq(nest.left),
            first.accumulator.eq(nest.accumulator),
            end.eq(nest.accumulator + reach),
            writes_row.eq(writes),
            row.address.eq(nest.left),
            row.zero_point.eq(held.left_zero_point),
            row.reads.eq(reads),
            row.counts.eq(reads & ((held.bounds != Bounds.TOP) | inside)),
            row.swap.eq(Mux(stationary, (held.bounds != Bounds.TOP) | inside, opens)),
            row.streams.eq(stationary),
            row.closes.eq(closes),
            row.row_stride.eq(held.tile_stride),
            row.add.eq(adds | (~stationary & ~nest.first[REDUCTION_LOOPS].all())),
            row.drop.eq(~writes),
            row.last.eq(nest.finished),
        ]
        if "split" in row.shape().members:
            m.d.sync += row.split.eq(held.weight_bits)

    last_left: Value = Const(config.activation_bytes - config.rows)
    for split in range(1, len(config.weight_modes)):
        end_of_mode = config.activation_bytes - (config.rows << split)
        last_left = Mux(first.row.split == split, end_of_mode, last_left)
    total = config.accumulator_total_rows
    valid = Signal(name="checked")
    second = Signal(row_layout(config), name="checked_row", reset_less=True)
    checked_offset = Signal.like(offset, name="checked_offset", reset_less=True)
    left = Signal.like(nest.left, name="checked_left", reset_less=True)
    accumulator = Signal.like(nest.accumulator, name="checked_accumulator", reset_less=True)
    checked_end = Signal.like(end, name="checked_end", reset_less=True)
    left_bad = Signal(name="left_bad", reset_less=True)
    first_bad = Signal(name="accumulator_bad", reset_less=True)
    end_bad = Signal(name="tile_end_bad", reset_less=True)
    m.d.sync += valid.eq(first.valid)
    with m.If(first.valid):
        m.d.sync += [
            second.eq(first.row),
            second.banks.eq(
                activation_banks_read(
                    m, "left_place", config, first.row.address, config.left_port_bytes
                )
            ),
            second.accumulator.eq(end),
            checked_offset.eq(first.offset),
            left.eq(first.left),
            accumulator.eq(first.accumulator),
            checked_end.eq(end),
            left_bad.eq(first.row.reads & (first.left.as_unsigned() > last_left)),
            first_bad.eq(writes_row & (first.accumulator.as_unsigned() >= total)),
            end_bad.eq(writes_row & (end.as_unsigned() >= total)),
        ]
    return SimpleNamespace(
        valid=valid,
        busy=first.valid | valid,
        row=second,
        offset=checked_offset,
        bad=left_bad | first_bad | end_bad,
        bad_address=Mux(left_bad, left, Mux(first_bad, accumulator, checked_end)),
    )
