"""Simulators of the accelerator behind one interface, :class:`weft_sim.device.Device`."""
