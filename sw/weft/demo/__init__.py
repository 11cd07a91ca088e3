"""The demonstration: handwritten digits, trained, quantized, compiled and run on the RTL."""
