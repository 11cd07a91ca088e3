"""Programs on the generated Verilog under cocotb, between bus models that weft did not write."""

from weft_sim.cocotb_bench.runner import CocotbJob, CocotbResult, run_cocotb, run_jobs

__all__ = ["CocotbJob", "CocotbResult", "run_cocotb", "run_jobs"]
