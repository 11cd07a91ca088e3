"""Integer training: a PyTorch module made a program that trains on the machine."""
