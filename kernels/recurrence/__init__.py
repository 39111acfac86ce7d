"""The plain recurrent net: forward pass, linear scans through time, Gauss-Newton product.

``reference.py`` is the oracle, ``cpu.cpp`` the fused form; both are called through
``hfcore.bindings.recurrence`` only.
"""

from hfcore.kernels.recurrence.layout import (
    NONLINEARITIES,
    Curvature,
    ForwardPass,
    RnnShape,
    RnnWeights,
    split_flat,
)

__all__ = ["NONLINEARITIES", "Curvature", "ForwardPass", "RnnShape", "RnnWeights", "split_flat"]
