"""The flag by which a CG solve ends the kernels that are already launched."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def raised(stop, HAS_STOP: tl.constexpr):
    """Whether the flag is raised; an absent one never is."""
    if HAS_STOP:
        return tl.load(stop) != 0
    else:
        return False
