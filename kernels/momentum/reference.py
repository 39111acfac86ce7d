"""Plain torch forms of the momentum update of Sutskever et al. 2013, eqs. 1-4, on ``[G,N]``.

Rounding: here every product and every sum is rounded by itself. The compiled forms contract a·b + c
to one fused multiply-add where the machine has it, so they may differ by these roundings and no
others. The coefficients are float64 and are rounded to the type of the arithmetic once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def momentum_update(
    theta: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    learning_rate: Tensor,
    momentum: Tensor,
    lookahead: Tensor,
    l2: Tensor | None,
    ahead: Tensor | None,
    active: Tensor | None,
) -> None:
    """v = μ v − ε (g + l2 a);  θ = θ + v;  with ``ahead`` also ahead = θ + lookahead·v, in place.

    a is ``ahead`` as it came, θ as it came without. Coefficients ``[G]`` float64. Half precision is
    computed in float32 and rounded once, when it is stored.
    """
    wide = torch.promote_types(theta.dtype, torch.float32)
    at = theta if ahead is None else ahead
    for g in range(theta.shape[0]):
        if active is not None and not bool(active[g]):
            continue
        d = gradient[min(g, gradient.shape[0] - 1)].to(wide)
        if l2 is not None:
            d = d + l2[g].to(wide) * at[g].to(wide)
        # No alpha= of add: it fuses or not as torch was built.
        v = momentum[g].to(wide) * velocity[g].to(wide) - learning_rate[g].to(wide) * d
        new = theta[g].to(wide) + v
        velocity[g].copy_(v)
        theta[g].copy_(new)
        if ahead is not None:
            ahead[g].copy_(new + lookahead[g].to(wide) * v)


def lookahead_point(
    theta: Tensor, velocity: Tensor, momentum: Tensor, out: Tensor, active: Tensor | None
) -> None:
    """out = θ + μ v ``[G,N]``: the bits of ``ahead`` from an update whose ``lookahead`` is μ."""
    wide = torch.promote_types(theta.dtype, torch.float32)
    for g in range(theta.shape[0]):
        if active is None or bool(active[g]):
            out[g].copy_(theta[g].to(wide) + momentum[g].to(wide) * velocity[g].to(wide))
