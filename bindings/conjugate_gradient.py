"""CG vector updates: checks, choice of implementation (``forms/conjugate_gradient``)."""

from __future__ import annotations

from torch import Tensor

from hfcore.bindings.checks import check_positive, check_tensor
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.conjugate_gradient import form


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

    ``rz`` is rᵀz of the step before, ``preconditioner`` a positive diagonal M with z = r / M.
    ``z`` may be ``r`` itself when there is none; otherwise x, r and z have memory of their own,
    and the compiled form raises ValueError where they do not. With pᵀAp not positive and finite
    nothing changes and φ is nan.
    """
    given = {} if preconditioner is None else {"preconditioner": preconditioner}
    _check_vectors(x=x, r=r, z=z, p=p, Ap=Ap, b=b, **given)
    serving = form(choose("conjugate_gradient.cg_update", x))
    return serving.cg_update(x, r, z, p, Ap, b, rz, preconditioner)


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    """p = z + β p, in place on flat vectors ``[N]`` that share no memory."""
    _check_vectors(p=p, z=z)
    form(choose("conjugate_gradient.cg_direction", p)).cg_direction(p, z, beta)


def dot(a: Tensor, b: Tensor) -> float:
    """aᵀb of flat vectors ``[N]`` in float64, the same bits whatever the number of threads.

    On a GPU this, like :func:`cg_update`, waits for the device.
    """
    _check_vectors(a=a, b=b)
    return form(choose("conjugate_gradient.dot", a)).dot(a, b)


def _check_vectors(**vectors: Tensor) -> None:
    """Check that all are ``[N]`` of one dtype and device, contiguous, outside of autograd."""
    like: Tensor | None = None
    for name, v in vectors.items():
        if like is None:
            like = check_tensor(name, v, ["N"])
            check_positive(N=v.shape[0])
        elif not _alike(v, like):
            # Only now: composing an error message takes longer than all comparisons.
            check_tensor(name, v, like.shape, like=like)
        if not v.is_contiguous():
            raise ValueError(f"{name}: is not contiguous, need a contiguous vector")
        if v.requires_grad:
            raise ValueError(f"{name}: requires grad, need a plain vector to work on in place")


def _alike(v: object, like: Tensor) -> bool:
    return (
        isinstance(v, Tensor)
        and v.shape == like.shape
        and v.dtype == like.dtype
        and v.device == like.device
    )
