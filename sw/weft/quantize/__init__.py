"""Quantization of PyTorch models for the accelerator; imports PyTorch and torchao at once."""

from weft.quantize import pt2e  # noqa: F401  (first: it names the extra that may be missing)
from weft.quantize.flow import quantize
from weft.quantize.quantizer import WeftQuantizer

__all__ = ["WeftQuantizer", "quantize"]
