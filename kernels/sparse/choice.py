"""Where the sparse form of a recurrent net is the faster one.

Times of the dense form over those of the sparse one, on the CPU (float32, B = 100, T = 30, one
output, AVX-512, CPU time of one thread on a busy machine: good to some ten per cent):

======  ====  ================  ====================  ========
H       K     the scans alone   Gauss-Newton product  gradient
======  ====  ================  ====================  ========
64      15    1.8               0.5                   0.5
100     15    2.4               0.6                   0.9
150     15    3.4               0.9                   1.2
300     15    1.9               1.1                   1.4
1000    15    11.6
200     30    1.9               0.9                   1.1
200     60    1.1               0.6                   0.8
400     60    1.7               1.1                   0.9
======  ====  ================  ====================  ========

The dense products and gradients are fused ops, the sparse ones several passes over all steps, so
the line lies where those break even and not where the scans do.
"""

from __future__ import annotations

CPU_UNITS, CPU_UNITS_PER_ENTRY = 160, 4
# The dense CUDA form keeps W_hh on chip up to some hundred units and runs the time loop in one
# kernel, the sparse one launches a kernel a step. Not measured: up to here the dense one is taken.
CUDA_UNITS = 1024


def ell_is_faster(H: int, K: int, device_type: str) -> bool:
    """Whether H units that hear K others each are run sparse inside the time loop.

    A rule by shape and device alone: the same net always takes the same form.
    """
    enough = H >= CPU_UNITS + CPU_UNITS_PER_ENTRY * K
    return enough and (device_type != "cuda" or H > CUDA_UNITS)
