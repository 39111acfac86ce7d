"""Who computes it: dispatch by device, dtype and availability; shape checks; allocation; launch."""
