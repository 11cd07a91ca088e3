"""Synthesis, place and route of the generated Verilog with open tools: area and clock."""

from weft.synthesis.flow import SynthesisReport, synthesize
from weft.synthesis.targets import TARGETS

__all__ = ["TARGETS", "SynthesisReport", "synthesize"]
