"""Synthesis, place and route of the generated Verilog with open tools: area and clock."""

from weft.synthesis.flow import TARGETS, SynthesisReport, synthesize

__all__ = ["TARGETS", "SynthesisReport", "synthesize"]
