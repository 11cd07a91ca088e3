"""A training step as a program of the machine."""
