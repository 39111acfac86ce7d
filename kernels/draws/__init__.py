"""Random numbers that are counted out: the same on the CPU and on a GPU, without a state."""
