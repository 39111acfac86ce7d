"""CG vector updates: shape checks, choice of implementation. Formulas: the family's reference."""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.checks import check_tensor
from hfcore.kernels.conjugate_gradient import reference


def cg_update(
    x: Tensor,
    r: Tensor,
    z: Tensor,
    p: Tensor,
    Ap: Tensor,
    b: Tensor,
    rz: float,
    preconditioner: Tensor | None = None,
) -> tuple[float, float, float]:
    """One CG step in place on flat vectors ``[N]``; gives (pᵀAp, new rᵀz, φ(x)).

    ``z`` may be ``r`` itself when there is no preconditioner. With pᵀAp not positive and finite
    nothing changes and φ is nan.
    """
    check_tensor("x", x, ["N"])
    for name, value in (("r", r), ("z", z), ("p", p), ("Ap", Ap), ("b", b)):
        check_tensor(name, value, x.shape, like=x)
    if preconditioner is not None:
        check_tensor("preconditioner", preconditioner, x.shape, like=x)
    return reference.cg_update(x, r, z, p, Ap, b, rz, preconditioner)


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    """p = z + β p, in place on flat vectors ``[N]``."""
    check_tensor("p", p, ["N"])
    check_tensor("z", z, p.shape, like=p)
    reference.cg_direction(p, z, beta)
