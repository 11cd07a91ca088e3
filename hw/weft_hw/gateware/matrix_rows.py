"""The row nest of the MATRIX engine: which left rows to read, and where their sums go."""

from types import SimpleNamespace

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import instruction_layout
from weft_hw.gateware.loops import LoopNest
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
    """All seven loops, one left row a step; the nest's current row is checked here.

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
        which the caller drives; ``active``, ``offset``: an instruction is in the nest, and which;
        ``bad``, ``bad_address``, ``swap``: of the nest's row, which never enters the register.
    """
    streams = {
        "left": LEFT_ADDRESS_BITS,
        "accumulator": ACCUMULATOR_BITS,
        "y": COORDINATE_BITS,
        "x": COORDINATE_BITS,
    }
    m.submodules.nest = nest = LoopNest(loops=LOOPS_MATRIX, streams=streams)
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
        nest.advance.eq(step & ~nest.finished),
        nest.left_base.eq(front.fields.left_address),
        nest.accumulator_base.eq(front.fields.accumulator_address),
        nest.y_base.eq(front.fields.y_origin),
        nest.x_base.eq(front.fields.x_origin),
    ]
    for i in range(LOOPS_MATRIX):
        rows = held.accumulator_strides[i]
        outer = i < TILE_LOOPS_MATRIX
        m.d.comb += [
            nest.counts[i].eq(Mux(nest.load, front.fields.counts[i], held.counts[i])),
            nest.left_strides[i].eq(held.left_strides[i]),
            nest.accumulator_strides[i].eq(rows if outer else Mux(stationary, 0, rows)),
            nest.y_strides[i].eq(held.y_steps[i]),
            nest.x_strides[i].eq(held.x_steps[i]),
        ]

    inside = Signal(name="inside")
    reads = Signal(name="reads")
    counts = Signal(name="counts")
    opens = Signal(name="opens_tile")
    closes = Signal(name="closes_tile")
    writes = Signal(name="writes")
    swap = Signal(name="nest_swap")
    m.d.comb += [
        # Compared as unsigned numbers, negative ones are too large as well.
        inside.eq((nest.y.as_unsigned() < held.y_extent) & (nest.x.as_unsigned() < held.x_extent)),
        reads.eq((held.bounds != Bounds.LEFT) | inside),
        counts.eq(reads & ((held.bounds != Bounds.TOP) | inside)),
        opens.eq(nest.first[ROW_LOOPS].all()),
        closes.eq(stationary & nest.last[ROW_LOOPS].all()),
        writes.eq(
            Mux(stationary, closes, (held.bounds != Bounds.ACCUMULATOR) | inside),
        ),
        swap.eq(Mux(stationary, (held.bounds != Bounds.TOP) | inside, opens)),
    ]

    modes = len(config.weight_modes)
    last_left: Value = Const(config.activation_bytes - config.rows)
    for split in range(1, modes):
        end_of_mode = config.activation_bytes - (config.rows << split)
        last_left = Mux(held.weight_bits == split, end_of_mode, last_left)
    side_bits = (config.rows - 1).bit_length()
    reach = (held.tile_stride << side_bits) - held.tile_stride
    end = Signal(signed(len(reach) + 1), name="tile_end")  # the last accumulator row of a tile
    left_bad = Signal(name="left_bad")
    first_bad = Signal(name="accumulator_bad")
    end_bad = Signal(name="tile_end_bad")
    total = config.accumulator_total_rows
    m.d.comb += [
        end.eq(nest.accumulator + Mux(stationary, reach, 0)),
        left_bad.eq(reads & (nest.left.as_unsigned() > last_left)),
        first_bad.eq(writes & (nest.accumulator.as_unsigned() >= total)),
        end_bad.eq(writes & (end.as_unsigned() >= total)),
    ]
    bad = left_bad | first_bad | end_bad

    valid = Signal(name="row_valid")
    issued = Signal(name="row_issued")
    current = Signal(row_layout(config), name="row", reset_less=True)
    adds = held.accumulate == Accumulate.ALWAYS_ADD
    m.d.comb += step.eq(active & nest.ready & ~bad & (~valid | issued))
    with m.If(step):
        m.d.sync += [
            valid.eq(1),
            current.address.eq(nest.left),
            current.zero_point.eq(held.left_zero_point),
            current.reads.eq(reads),
            current.counts.eq(counts),
            current.swap.eq(swap),
            current.streams.eq(stationary),
            current.closes.eq(closes),
            current.accumulator.eq(end),
            current.row_stride.eq(held.tile_stride),
            current.add.eq(adds | (~stationary & ~nest.first[REDUCTION_LOOPS].all())),
            current.drop.eq(~writes),
            current.last.eq(nest.finished),
        ]
        if modes > 1:
            m.d.sync += current.split.eq(held.weight_bits)
    with m.Elif(issued):
        m.d.sync += valid.eq(0)
    return SimpleNamespace(
        active=active,
        bad=active & nest.ready & bad,
        bad_address=Mux(left_bad, nest.left, Mux(first_bad, nest.accumulator, end)),
        swap=swap,
        offset=offset,
        valid=valid,
        issued=issued,
        current=current,
    )
