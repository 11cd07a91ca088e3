"""A training step as a program of the machine."""

from weft.train.machine.engine import MachineEngine, StepProgram, compile_step

__all__ = ["MachineEngine", "StepProgram", "compile_step"]
