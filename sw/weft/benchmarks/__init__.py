"""Benchmarks: commands that print a figure with its unit."""
