"""Where the sparse form of a recurrence is the faster one."""

from __future__ import annotations

# On the CPU a step costs the dense form H² multiply-adds a sequence, in register tiles, and the
# sparse one K·H, each with a read of the L2 cache, and some more for turning the state between rows
# and lanes. Measured with bench/test_sparse.py: see bench/README.md.
CPU_UNITS_PER_ENTRY = 8
CPU_UNITS = 100
# The dense CUDA form keeps W_hh on chip up to some hundred units and runs the time loop in one
# kernel, the sparse one launches a kernel a step. Not measured: up to here the dense one is taken.
CUDA_UNITS = 1024


def ell_is_faster(H: int, K: int, device_type: str) -> bool:
    """Whether H units that hear K others each are run sparse inside the time loop.

    A rule from measurements, by shape and device alone: the same net always takes the same form.
    """
    if device_type == "cuda":
        return H > CUDA_UNITS and H >= CPU_UNITS_PER_ENTRY * K
    return H >= CPU_UNITS and H >= CPU_UNITS_PER_ENTRY * K
