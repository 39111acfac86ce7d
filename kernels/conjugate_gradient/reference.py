"""Plain torch forms of the CG updates on flat vectors ``[N]``.

Residual r = b − A x; dots are accumulated in float64.
"""

from __future__ import annotations

from torch import Tensor


def dot(a: Tensor, b: Tensor) -> float:
    """aᵀb of vectors ``[N]``."""
    return float((a.double() * b.double()).sum())


def cg_update(
    x: Tensor,
    r: Tensor,
    z: Tensor,
    p: Tensor,
    Ap: Tensor,
    b: Tensor,
    rz: float,
    preconditioner: Tensor | None,
) -> tuple[float, float, float]:
    """x += α p, r −= α A p, z = r / M, all ``[N]``, in place, with α = rᵀz / pᵀAp.

    Returns (pᵀAp, new rᵀz, φ(x)) with φ(x) = ½xᵀAx − bᵀx = −½ xᵀ(r + b).
    When pᵀAp is not a positive finite number nothing is changed and (pᵀAp, rz, nan) returned.
    """
    pAp = dot(p, Ap)
    if not 0.0 < pAp < float("inf"):
        return pAp, rz, float("nan")
    alpha = rz / pAp
    x.add_(p, alpha=alpha)
    r.sub_(Ap, alpha=alpha)
    z.copy_(r if preconditioner is None else r / preconditioner)
    return pAp, dot(r, z), -0.5 * (dot(x, r) + dot(x, b))


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    """p = z + β p, in place on vectors ``[N]``."""
    p.mul_(beta).add_(z)
