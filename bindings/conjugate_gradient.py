"""CG vector updates: shape checks, choice of implementation. Formulas: the family's reference."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # not in its __all__

from hfcore.bindings.checks import check_positive, check_tensor
from hfcore.bindings.dispatch import choose, native
from hfcore.bindings.threads import kernel_threads
from hfcore.bindings.triton_backend import serving
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

    ``rz`` is rᵀz of the step before, ``preconditioner`` a positive diagonal M with z = r / M.
    ``z`` may be ``r`` itself when there is none; otherwise x, r and z have memory of their own,
    and the compiled form raises ValueError where they do not. With pᵀAp not positive and finite
    nothing changes and φ is nan.
    """
    given = {} if preconditioner is None else {"preconditioner": preconditioner}
    _check_vectors(x=x, r=r, z=z, p=p, Ap=Ap, b=b, **given)
    backend = choose("conjugate_gradient.cg_update", x)
    if backend == "reference":
        return reference.cg_update(x, r, z, p, Ap, b, rz, preconditioner)
    if backend == "cuda":
        with serving("conjugate_gradient.cg_update", x.device):
            scalars: tuple[float, float, float] = _triton().cg_update(
                x, r, z, p, Ap, b, rz, preconditioner
            )
            return scalars
    # Capsules: importing a tensor through its __dlpack__ method costs nanobind 2 µs a vector.
    pAp, new_rz, phi = native().cg_update(
        to_dlpack(x),
        to_dlpack(r),
        to_dlpack(z),
        to_dlpack(p),
        to_dlpack(Ap),
        to_dlpack(b),
        rz,
        None if preconditioner is None else to_dlpack(preconditioner),
        kernel_threads(),
    )
    return pAp, new_rz, phi


def cg_direction(p: Tensor, z: Tensor, beta: float) -> None:
    """p = z + β p, in place on flat vectors ``[N]`` that share no memory."""
    _check_vectors(p=p, z=z)
    backend = choose("conjugate_gradient.cg_direction", p)
    if backend == "reference":
        reference.cg_direction(p, z, beta)
        return
    if backend == "cuda":
        with serving("conjugate_gradient.cg_direction", p.device):
            _triton().cg_direction(p, z, beta)
        return
    native().cg_direction(to_dlpack(p), to_dlpack(z), beta, kernel_threads())


def dot(a: Tensor, b: Tensor) -> float:
    """aᵀb of flat vectors ``[N]`` in float64, the same bits whatever the number of threads.

    On a GPU this, like :func:`cg_update`, waits for the device.
    """
    _check_vectors(a=a, b=b)
    backend = choose("conjugate_gradient.dot", a)
    if backend == "reference":
        return reference.dot(a, b)
    if backend == "cuda":
        with serving("conjugate_gradient.dot", a.device):
            return float(_triton().dot(a, b))
    return float(native().dot(to_dlpack(a), to_dlpack(b), kernel_threads()))


def _triton() -> ModuleType:
    from hfcore.kernels.conjugate_gradient import gpu_triton  # needs Triton, as CUDA data does

    return gpu_triton


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
