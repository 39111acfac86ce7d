"""Where the sparse form of a recurrent net is the faster one.

Times of a Gauss-Newton product in the dense form over those in the sparse one, on the CPU (float32,
B = 100, T = 30, one output; Intel Xeon, AVX-512, alone on the machine, least of nine rounds):

======  ====  ==========  ===========
H       K     one thread  two threads
======  ====  ==========  ===========
100     5     0.8         0.6
150     5     1.1         0.8
180     5     1.3         0.9
200     5     1.4         1.6
100     15    0.7         0.7
200     15    1.0         1.4
250     15    1.0         1.8
400     15    1.7         1.6
300     60    1.0         0.8
400     60    1.5         1.0
500     60    1.8         1.3
======  ====  ==========  ===========

The dense products and gradients are fused ops, the sparse ones several passes over all steps, so
the line lies where those break even and not where the scans do.
"""

from __future__ import annotations

CPU_UNITS, CPU_UNITS_PER_ENTRY = 180, 4
# The dense CUDA form keeps W_hh on chip up to some hundred units and runs the time loop in one
# kernel, the sparse one launches a kernel a step. Not measured: up to here the dense one is taken.
CUDA_UNITS = 1024


def ell_is_faster(H: int, K: int, device_type: str) -> bool:
    """Whether H units that hear K others each are run sparse inside the time loop.

    A rule by shape and device alone: the same net always takes the same form.
    """
    enough = H >= CPU_UNITS + CPU_UNITS_PER_ENTRY * K
    return enough and (device_type != "cuda" or H > CUDA_UNITS)
