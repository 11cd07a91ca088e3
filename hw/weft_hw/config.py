"""Design parameters of the accelerator: one frozen, self-validating record and its presets."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_hw.errors import ConfigError

__all__ = ["PRESETS", "AcceleratorConfig", "load_config"]

KIB = 1024

ELEMENTS = ("multiplier", "slices")


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _log2(value: int) -> int:
    return value.bit_length() - 1


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Every parameter that a machine is generated from; all other sizes are derived properties.

    Parameters
    ----------
    name : str
        A label for people; it is not part of the content hash.
    rows, columns : int
        Array size: rows take activations, columns give sums. Powers of two.
    weight_modes : tuple of int
        Weight widths in bits that the array supports, widest first, a prefix of (8, 4, 2).
    element : str
        How an array element is built: "multiplier" (one for whole weights, and logic beside it for
        what narrower ones add), or "slices" (four products by two bits, no multiplier block). It
        changes no result.
    bus_width : int
        AXI4 data width in bits.
    address_width : int
        AXI4 address width in bits.
    activation_bytes, activation_banks : int
        Activation scratchpad: total size and number of independently accessible banks.
    weight_bytes, weight_banks : int
        Weight scratchpad, likewise.
    accumulator_rows, accumulator_banks : int
        Accumulator memory: rows of ``columns`` int32 a bank, and number of banks (two or more).
    parameter_rows : int
        Rows of per-channel bias, multiplier and exponent, ``columns`` channels each.
    vector_lanes : int
        Lanes that scale, combine and clamp in the vector engine: ``columns``, or a power of two
        below, which then take a vector in as many cycles as it has groups of them. Windows are
        reduced in ``columns`` lanes anyway. It changes no result.
    depthwise_taps : int
        Products a lane and cycle in depthwise convolution.
    max_outstanding : int
        Read bursts (and, separately, write bursts) in flight.
    burst_beats : int
        Longest AXI4 burst that the machine issues, in beats.
    queue_depth : int
        Instructions that each engine's queue holds.
    semaphores, semaphore_bits : int
        Number of counting semaphores and width of each counter.

    Raises
    ------
    ConfigError
        If a value is not allowed; the message names the field, the value and what is allowed.
    """

    name: str
    rows: int
    columns: int
    weight_modes: tuple[int, ...] = (8,)
    element: str = "multiplier"
    bus_width: int
    address_width: int = 32
    activation_bytes: int
    activation_banks: int
    weight_bytes: int
    weight_banks: int
    accumulator_rows: int
    accumulator_banks: int = 2
    parameter_rows: int = 64
    vector_lanes: int
    depthwise_taps: int = 3
    max_outstanding: int = 32
    burst_beats: int = 16
    queue_depth: int = 4
    semaphores: int = 16
    semaphore_bits: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_modes", tuple(self.weight_modes))
        self._check_types()
        self._check_sizes()
        self._check_memories()

    def _fail(self, field: str, allowed: str) -> None:
        raise ConfigError(f"`{field}` must be {allowed}, not {getattr(self, field)!r}")

    def _check_types(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            self._fail("name", "a non-empty string")
        for field in dataclasses.fields(self):
            if field.name in ("name", "weight_modes", "element"):
                continue
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                self._fail(field.name, "a positive integer")
        if self.weight_modes not in ((8,), (8, 4), (8, 4, 2)):
            self._fail("weight_modes", "(8,), (8, 4) or (8, 4, 2)")
        if self.element not in ELEMENTS:
            self._fail("element", " or ".join(f'"{element}"' for element in ELEMENTS))

    def _check_sizes(self) -> None:
        for field, low, high in (
            ("rows", 2, 64),
            ("columns", 2, 64),
            ("bus_width", 32, 512),
            ("activation_banks", 1, 16),
            ("weight_banks", 1, 16),
            ("accumulator_banks", 2, 8),
            ("max_outstanding", 1, 64),
            ("burst_beats", 1, 256),
            ("parameter_rows", 1, 256),
            ("queue_depth", 1, 16),
        ):
            value = getattr(self, field)
            if not _is_power_of_two(value) or not low <= value <= high:
                self._fail(field, f"a power of two from {low} to {high}")
        if self.burst_beats * self.bus_bytes > 4096:
            self._fail("burst_beats", f"at most {4096 // self.bus_bytes} (a burst spans <= 4 KiB)")
        if not 16 <= self.address_width <= 40:
            self._fail("address_width", "from 16 to 40")
        if not _is_power_of_two(self.vector_lanes) or self.vector_lanes > self.columns:
            self._fail("vector_lanes", f"a power of two, at most `columns` ({self.columns})")
        if self.depthwise_taps not in (1, 3):
            self._fail("depthwise_taps", "1 or 3")
        if not 8 <= self.semaphores <= 16:
            self._fail("semaphores", "from 8 to 16 (the width of the instructions' masks)")
        if not 2 <= self.semaphore_bits <= 16:
            self._fail("semaphore_bits", "from 2 to 16")

    def _check_memories(self) -> None:
        for kind, limit in (("activation", 1 << 19), ("weight", 1 << 19)):
            size, banks = getattr(self, f"{kind}_bytes"), getattr(self, f"{kind}_banks")
            width = self.left_port_bytes if kind == "activation" else self.line_bytes
            smallest = 4 * width * banks
            if not _is_power_of_two(size) or not smallest <= size <= limit:
                self._fail(f"{kind}_bytes", f"a power of two from {smallest} to {limit}")
        if not _is_power_of_two(self.accumulator_rows) or not (
            4 <= self.accumulator_rows <= 8192 // self.accumulator_banks
        ):
            limit = 8192 // self.accumulator_banks
            self._fail("accumulator_rows", f"a power of two from 4 to {limit}")

    # Derived sizes ------------------------------------------------------------------------------

    @property
    def bus_bytes(self) -> int:
        """Bytes a beat."""
        return self.bus_width // 8

    @property
    def line_bytes(self) -> int:
        """Width of a scratchpad access in bytes: the widest of array row, vector and bus beat."""
        return max(self.rows, self.columns, self.bus_bytes)

    @property
    def vector_groups(self) -> int:
        """Groups of ``vector_lanes`` columns in which the vector engine scales a vector."""
        return self.columns // self.vector_lanes

    @property
    def group_bits(self) -> int:
        """Of the number of such a group; one where there is a single group."""
        return max(1, (self.vector_groups - 1).bit_length())

    @property
    def operands_per_element(self) -> int:
        """Left operands that an array element takes a cycle in the narrowest weight mode."""
        return 8 // self.weight_modes[-1]

    @property
    def left_port_bytes(self) -> int:
        """Width in bytes of MATRIX's port of the activation scratchpad; others are a line wide."""
        return max(self.line_bytes, self.rows * self.operands_per_element)

    @property
    def activation_byte_order(self) -> tuple[int, ...] | None:
        """Bytes of a line of the activation scratchpad in the order in which its memories have
        them; None for that of their addresses.

        Most accesses take ``line_bytes`` of a wider line: the bytes at the same place of each such
        part lie side by side.
        """
        parts = self.left_port_bytes // self.line_bytes
        if parts == 1:
            return None
        return tuple(
            part * self.line_bytes + place
            for place in range(self.line_bytes)
            for part in range(parts)
        )

    @property
    def tile_bytes(self) -> int:
        """Bytes of one stationary weight tile (every weight mode fills eight bits an element)."""
        return self.rows * self.columns

    @property
    def activation_bank_bytes(self) -> int:
        """Bytes a bank of the activation scratchpad."""
        return self.activation_bytes // self.activation_banks

    @property
    def weight_bank_bytes(self) -> int:
        """Bytes a bank of the weight scratchpad."""
        return self.weight_bytes // self.weight_banks

    @property
    def accumulator_total_rows(self) -> int:
        """Rows over all accumulator banks."""
        return self.accumulator_rows * self.accumulator_banks

    @property
    def parameter_row_bytes(self) -> int:
        """Bytes of one parameter row in DRAM: 9 a channel, rounded up to whole beats."""
        return -(-9 * self.columns // self.bus_bytes) * self.bus_bytes

    @property
    def parameter_row_pitch(self) -> int:
        """Distance of parameter rows in the on-chip address space (a power of two)."""
        return 1 << (self.parameter_row_bytes - 1).bit_length()

    @property
    def parameter_bytes(self) -> int:
        """Size of the parameter memory's address space in bytes."""
        return self.parameter_rows * self.parameter_row_pitch

    @property
    def activation_address_bits(self) -> int:
        """Bits of a byte address in the activation scratchpad."""
        return _log2(self.activation_bytes)

    @property
    def weight_address_bits(self) -> int:
        """Bits of a byte address in the weight scratchpad."""
        return _log2(self.weight_bytes)

    @property
    def accumulator_address_bits(self) -> int:
        """Bits of a row address in the accumulator memory."""
        return _log2(self.accumulator_total_rows)

    # Serialization ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        values["weight_modes"] = list(self.weight_modes)
        return values

    def to_json(self) -> str:
        """JSON text with one field a line."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AcceleratorConfig":
        """Build from plain values.

        Raises
        ------
        ConfigError
            If a field is unknown (the nearest name is suggested), missing or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(fields)}"
                raise ConfigError(f"`{key}` is not a field of the configuration{hint}")
        missing = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in values
        ]
        if missing:
            raise ConfigError(f"the configuration lacks {', '.join(f'`{m}`' for m in missing)}")
        arguments = dict(values)
        modes = arguments.get("weight_modes", (8,))
        if not isinstance(modes, list | tuple):
            raise ConfigError(f"`weight_modes` must be a list such as [8, 4, 2], not {modes!r}")
        arguments["weight_modes"] = tuple(modes)
        return cls(**arguments)

    @classmethod
    def from_json(cls, text: str) -> "AcceleratorConfig":
        """Build from JSON text; see :meth:`from_dict`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the configuration is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError("the configuration must be a JSON object of fields")
        return cls.from_dict(values)

    @property
    def content_hash(self) -> int:
        """64-bit hash of every parameter but the name; the hardware shows it in a register."""
        values = self.to_dict()
        del values["name"]
        text = json.dumps(values, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


_BASE16 = AcceleratorConfig(
    name="base16",
    rows=16,
    columns=16,
    bus_width=128,
    activation_bytes=128 * KIB,
    activation_banks=8,
    weight_bytes=64 * KIB,
    weight_banks=4,
    accumulator_rows=512,
    vector_lanes=16,
)

PRESETS: dict[str, AcceleratorConfig] = {
    "base16": _BASE16,
    "flex16": dataclasses.replace(_BASE16, name="flex16", weight_modes=(8, 4, 2)),
    "edge8": AcceleratorConfig(
        name="edge8",
        rows=8,
        columns=8,
        element="slices",
        bus_width=64,
        activation_bytes=64 * KIB,
        activation_banks=4,
        weight_bytes=32 * KIB,
        weight_banks=2,
        accumulator_rows=512,
        vector_lanes=4,
        max_outstanding=16,
    ),
    "tiny": AcceleratorConfig(
        name="tiny",
        rows=4,
        columns=4,
        bus_width=32,
        activation_bytes=2 * KIB,
        activation_banks=2,
        weight_bytes=1 * KIB,
        weight_banks=2,
        accumulator_rows=32,
        parameter_rows=4,
        vector_lanes=4,
        depthwise_taps=1,
        max_outstanding=2,
        burst_beats=4,
        queue_depth=2,
    ),
}


def load_config(name_or_path: str | Path) -> AcceleratorConfig:
    """The preset of that name, or the configuration in that JSON file.

    Raises
    ------
    ConfigError
        If there is neither such a preset nor such a file, or the file's content is not valid.
    """
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        try:
            return AcceleratorConfig.from_json(path.read_text())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    near = difflib.get_close_matches(str(name_or_path), PRESETS, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ConfigError(
        f"`{name_or_path}` is neither a preset ({', '.join(PRESETS)}) nor a JSON file{hint}"
    )
