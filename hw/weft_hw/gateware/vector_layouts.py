"""What the parts of the vector engine tell each other about an instruction and about a vector."""

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data

from weft_hw.config import AcceleratorConfig
from weft_hw.instruction_values import LOOKUP_TABLES, SCALAR_REGISTER_BITS
from weft_hw.instructions import COUNT_BITS, LOOPS_VECTOR, STRIDE_BITS

__all__ = [
    "COORDINATE_BITS",
    "INDEX_BITS",
    "LOCAL_BITS",
    "RESULT_ENTRIES",
    "SLOTS",
    "STEP_ENTRIES",
    "WINDOW_ROWS",
    "WINDOW_TAPS",
    "control",
    "controls_layout",
    "early_control",
    "step_layout",
    "tag_layout",
    "token_layout",
    "window_layout",
]

SLOTS = 2
"""Instructions that may be in the pipeline at a time."""

STEP_ENTRIES = 8
"""Steps between the loop nest and their reads: those being checked, and some that wait."""

RESULT_ENTRIES = 32
"""Vectors between their last read and their write: the pipeline's depth and some stalls."""

LOCAL_BITS = STRIDE_BITS + COUNT_BITS + (LOOPS_VECTOR - 1).bit_length()
"""Enough for any sum of a base and six indices times strides: no address can wrap into range."""

COORDINATE_BITS = 8 + COUNT_BITS + LOOPS_VECTOR.bit_length()
"""Likewise for a coordinate."""

WINDOW_TAPS = 3
"""Elements of a row of a window that slides, see :mod:`weft_hw.gateware.vector_sliding`."""

WINDOW_ROWS = 8
"""Most rows of such a window: places in the window registers."""

INDEX_BITS = 32
"""Logical indices of elements are modulo 2 to this."""


def controls_layout(config: AcceleratorConfig) -> data.StructLayout:
    """What the pipeline needs of an instruction; kept in one of ``SLOTS`` until it retires."""
    return data.StructLayout(
        {
            "head_maximum": 1,
            "head_index": 1,  # of the maximum
            "head_dot": 1,
            "a_wide": 1,  # operand from accumulators
            "a_zero_point": signed(8),
            "b_used": 1,  # by the tail
            "b_wide": 1,
            "b_weight": 1,  # operand from weights
            "b_zero_point": signed(8),
            "use_bias": 1,
            "pre_shift": 5,
            "bypass": 1,  # no scaling
            "scale_parameter": 1,  # multiplier and exponent from the parameter row
            "multiplier": 31,
            "exponent": signed(8),
            "rounding": 2,
            "tensor": 12,
            "tail_add": 1,
            "tail_maximum": 1,
            "tail_product": 1,
            "tail_select": 1,
            "select_low": signed(10),
            "select_high": signed(10),
            "zero_point": signed(16),
            "clamp_low": signed(32),
            "clamp_high": signed(32),
            "lookup": 1,
            "table": (LOOKUP_TABLES - 1).bit_length(),
            "wide": 1,  # results to accumulators
            "capture_largest": 1,
            "capture_clamped": 1,
            "capture_register": SCALAR_REGISTER_BITS,
            "last_strobe": config.columns,  # lanes written in the last channel tile
        }
    )


def control(m: Module, controls: data.View, slot: Value, name: str, stage: str = "") -> Signal:
    """That field of the instruction in that slot, as a signal ``name`` and ``stage``."""
    first, second = (getattr(controls[i], name) for i in range(SLOTS))
    chosen = Signal(first.shape(), name=name + stage)
    m.d.comb += chosen.eq(Mux(slot, second, first))
    return chosen


def early_control(m: Module, controls: data.View, slot: Value, name: str, stage: str) -> Signal:
    """The same in a register: for the stage behind the one that holds that slot."""
    chosen = control(m, controls, slot, name, f"{stage}_chosen")
    kept = Signal(chosen.shape(), name=name + stage, reset_less=True)
    m.d.sync += kept.eq(chosen)
    return kept


def step_layout(config: AcceleratorConfig) -> data.StructLayout:
    """One trip of an instruction's loop nest: what to read, and where the result goes."""
    address = max(config.activation_address_bits, config.accumulator_address_bits)
    return data.StructLayout(
        {
            "a_address": address,
            "a_banks": config.activation_banks,  # that it is in, if they are the scratchpad's
            "a_narrow": 1,  # to be read from the activation scratchpad
            "a_wide": 1,  # to be read from the accumulator memory
            "b_address": max(address, config.weight_address_bits),
            "b_banks": config.activation_banks,
            "b_narrow": 1,
            "b_wide": 1,
            "b_weight": 1,  # to be read from the weight scratchpad
            "b_weight_banks": config.weight_banks,
            "parameter": max(1, (config.parameter_rows - 1).bit_length()),
            "index": INDEX_BITS,
            "exists": 1,
            "first": 1,
            "last": 1,
            "window": window_layout(),
            "tag": tag_layout(config),
            "bad": 1,  # an address lies outside its memory
        }
    )


def window_layout() -> data.StructLayout:
    """How an element of a dot product meets the window registers."""
    return data.StructLayout(
        {
            "slides": 1,  # it enters them; the products of a row come with its last tap
            "loads": 1,  # so does B
            "first_tap": 1,  # of its row of the window
            "last_tap": 1,
            "row": range(WINDOW_ROWS),  # of the window
        }
    )


def token_layout() -> data.StructLayout:
    """What travels with one window element whose operands have been requested."""
    return data.StructLayout(
        {
            "valid": 1,
            "slot": 1,
            "exists": 1,  # A was read; otherwise it does not count
            "first": 1,  # of its window
            "last": 1,  # of its window; the tail's B comes with it
            "last_tile": 1,  # of its instruction: not all lanes may count
            "index": INDEX_BITS,  # of the element in lane 0, for stochastic rounding
            "window": window_layout(),
            "a_held": 1,  # the operand had been accepted in an earlier cycle than the step
            "b_held": 1,
        }
    )


def tag_layout(config: AcceleratorConfig) -> data.StructLayout:
    """What waits for a vector's result."""
    return data.StructLayout(
        {
            "address": max(config.activation_address_bits, config.accumulator_address_bits),
            "last_tile": 1,
            "slot": 1,
            "final": 1,  # the instruction's last vector
        }
    )
