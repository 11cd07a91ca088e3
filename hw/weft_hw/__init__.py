"""The machine's definition: configuration, instructions, registers, arithmetic (NumPy only)."""

from weft_hw.config import PRESETS, AcceleratorConfig, load_config
from weft_hw.errors import ConfigError, EncodingError, WeftError

__all__ = [
    "PRESETS",
    "AcceleratorConfig",
    "ConfigError",
    "EncodingError",
    "WeftError",
    "load_config",
]
