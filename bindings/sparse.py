"""Sparse ops: checks, allocation, choice of implementation (``forms/sparse``).

Weights of a fixed fan-in: an m x n matrix W with at most K entries a row is an
:class:`EllPattern` (where they are, :func:`ell_pattern`) and ``value [G,m,K]``. Every other array
carries a leading group axis too; length 1 (or a stride of 0) shares it among the group, and the
pattern is always shared. Formulas: ``kernels/sparse/reference.py``.

``out`` may share no memory with an argument (ValueError).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hfcore.bindings.checks import (
    check_choice,
    check_group,
    check_out,
    check_positive,
    check_tensor,
    dense,
    overlap,
)
from hfcore.bindings.dispatch import choose
from hfcore.bindings.forms.sparse import form
from hfcore.kernels.recurrence import NONLINEARITIES
from hfcore.kernels.sparse import EllPattern, Rows, reference
from hfcore.kernels.sparse.choice import ell_is_faster

__all__ = [
    "EllPattern",
    "Rows",
    "current_pattern",
    "ell_dense",
    "ell_gather",
    "ell_gradient",
    "ell_hidden",
    "ell_is_faster",
    "ell_matmul",
    "ell_matmul_t",
    "ell_pattern",
    "ell_scan",
]


def ell_pattern(index: Tensor, n: int) -> EllPattern:
    """The pattern of an m x n matrix from ``index [m,K]``, int32 or int64: columns of each row.

    The columns of a row increase; a row with fewer than K entries repeats its last column. Made
    once and given to every op: the orders in which the kernels walk through it are kept in it.

    Raises TypeError or ValueError naming what is wrong: another dtype, an empty index, a column
    outside 0..n-1, a row that does not increase, more than 2³¹−1 places.
    """
    check_tensor("index", index, ["m", "K"])
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index: got {index.dtype}, need torch.int32 or torch.int64")
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n: got {n!r}, need an int")
    m, K = index.shape
    check_positive(m=m, K=K, n=n)
    if max(m * K, n) > torch.iinfo(torch.int32).max:
        raise ValueError(f"index: got {m} x {K} places of {n} columns, need fewer than 2**31")
    outside = (index < 0) | (index >= n)
    if bool(outside.any()):
        row, k = outside.nonzero()[0].tolist()
        raise ValueError(
            f"index: row {row} has column {int(index[row, k])}, need columns in 0..{n - 1}"
        )
    rises, repeats = index[:, 1:] > index[:, :-1], index[:, 1:] == index[:, :-1]
    # Once a row repeats its last column it goes on doing so.
    wrong = ~(rises | repeats)
    wrong[:, 1:] |= repeats[:, :-1] & rises[:, 1:]
    if bool(wrong.any()):
        row = int(wrong.any(dim=1).nonzero()[0])
        given = ",".join(map(str, index[row, :16].tolist())) + (",..." if K > 16 else "")
        raise ValueError(
            f"index: row {row} is [{given}], need columns that increase, the last one repeated "
            "where the row has fewer entries"
        )
    return EllPattern(dense(index).int(), n)


def current_pattern(
    known: tuple[object, EllPattern] | None, index: Tensor, n: int
) -> tuple[object, EllPattern]:
    """State and pattern of a buffer ``index [m,K]``: the ``known`` ones where nothing changed.

    The pattern is of a copy: one that others keep does not change with the buffer.
    """
    state = (index.data_ptr(), index.device, None if index.is_inference() else index._version)
    if known is not None and known[0] == state:
        return known
    return state, ell_pattern(index.clone(), n)


def ell_dense(value: Tensor, pattern: EllPattern) -> Tensor:
    """W as a dense ``[G,m,n]``, differentiable."""
    _check_value(value, pattern, value)
    return reference.ell_dense(value, pattern)


def ell_gather(W: Tensor, pattern: EllPattern) -> Tensor:
    """The entries ``[G,m,K]`` of a dense ``W [G,m,n]``, differentiable; 0 where there is none."""
    _check_pattern(pattern, W)
    check_tensor("W", W, ["G", pattern.m, pattern.n])
    return reference.ell_gather(W, pattern)


def ell_matmul(
    x: Tensor, value: Tensor, pattern: EllPattern, *, out: Tensor | None = None
) -> Tensor:
    """y = x Wᵀ ``[G,B,m]`` from ``x [G,B,n]``, ``value [G,m,K]``."""
    _check_cases("x", x, pattern, "n")
    G = _check_value(value, pattern, x, x=x)
    out = _check_out(out, (G, x.shape[1], pattern.m), x, x=x, value=value)
    return form(choose("sparse.ell_matmul", x)).ell_matmul(x, value, pattern, out)


def ell_matmul_t(
    g: Tensor, value: Tensor, pattern: EllPattern, *, out: Tensor | None = None
) -> Tensor:
    """g W ``[G,B,n]`` from ``g [G,B,m]``, ``value [G,m,K]``.

    It runs along the transposed pattern, so that no two tasks add to one sum.
    """
    _check_cases("g", g, pattern, "m")
    G = _check_value(value, pattern, g, g=g)
    out = _check_out(out, (G, g.shape[1], pattern.n), g, g=g, value=value)
    return form(choose("sparse.ell_matmul_t", g)).ell_matmul_t(g, value, pattern, out)


def ell_gradient(g: Tensor, x: Tensor, pattern: EllPattern, *, out: Tensor | None = None) -> Tensor:
    """(gᵀx) at the entries of the pattern alone, ``[G,m,K]``: Σ_b g[b,i] x[b,index[i,k]].

    ``g [G,B,m]``, ``x [G,B,n]``; 0 where a row has no further entry.
    """
    _check_cases("g", g, pattern, "m")
    check_tensor("x", x, ["G", g.shape[1], pattern.n], like=g)
    G = check_group(g=g, x=x)
    out = _check_out(out, (G, pattern.m, pattern.K), g, g=g, x=x)
    return form(choose("sparse.ell_gradient", g)).ell_gradient(g, x, pattern, out)


def ell_scan(
    u: Tensor,
    d: Tensor,
    value: Tensor,
    pattern: EllPattern,
    a: Tensor | None = None,
    *,
    transposed: bool = False,
    reverse: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """y_t = d_t ⊙ (y_{t-1} Wᵀ + u_t) + a_t for ``u, d, a, y [G,T,B,H]``, ``value [G,H,K]``.

    ``transposed``: W in Wᵀ's place (:func:`ell_matmul_t`), as backpropagation through time wants
    it; ``reverse``: y_{t+1} in the place of y_{t-1}.
    """
    _check_steps(u, pattern)
    check_tensor("d", d, ["G", *u.shape[1:]], like=u)
    if a is not None:
        check_tensor("a", a, ["G", *u.shape[1:]], like=u)
    G = _check_value(value, pattern, u, u=u, d=d, a=a)
    out = _check_out(out, (G, *u.shape[1:]), u, u=u, d=d, value=value, a=a)
    serving = form(choose("sparse.ell_scan", u))
    return serving.ell_scan(u, d, value, pattern, a, transposed, reverse, out)


def ell_hidden(
    u: Tensor,
    value: Tensor,
    pattern: EllPattern,
    *,
    nonlinearity: str = "tanh",
    out: Tensor | None = None,
) -> Tensor:
    """h_t = e(u_t + h_{t-1} Wᵀ), h_{-1} = 0, for ``u, h [G,T,B,H]``, ``value [G,H,K]``."""
    _check_steps(u, pattern)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    G = _check_value(value, pattern, u, u=u)
    out = _check_out(out, (G, *u.shape[1:]), u, u=u, value=value)
    serving = form(choose("sparse.ell_hidden", u))
    return serving.ell_hidden(u, value, pattern, nonlinearity, out)


# ---------------------------------------------------------------------------- checks


def _check_floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name}: got {value.dtype}, need a floating-point dtype")


def _check_pattern(pattern: EllPattern, like: Tensor) -> None:
    if not isinstance(pattern, EllPattern):
        raise TypeError(f"pattern: got {type(pattern).__name__}, need what ell_pattern gives")
    if isinstance(like, Tensor) and pattern.device != like.device:
        raise ValueError(
            f"pattern: is on {pattern.device}, need {like.device} like the other arguments"
        )


def _check_cases(name: str, x: Tensor, pattern: EllPattern, side: Literal["m", "n"]) -> None:
    """Check an array ``[G,B,m]`` or ``[G,B,n]`` by itself."""
    _check_pattern(pattern, x)
    check_tensor(name, x, ["G", "B", getattr(pattern, side)])
    _check_floating(name, x)
    check_positive(G=x.shape[0], B=x.shape[1])


def _check_steps(u: Tensor, pattern: EllPattern) -> None:
    """Check ``u [G,T,B,H]`` by itself, and that the matrix is square."""
    _check_pattern(pattern, u)
    if pattern.m != pattern.n:
        raise ValueError(
            f"pattern: got a matrix of {pattern.m} x {pattern.n}, need a square one to go "
            "through time"
        )
    check_tensor("u", u, ["G", "T", "B", pattern.n])
    _check_floating("u", u)
    check_positive(G=u.shape[0], T=u.shape[1], B=u.shape[2])


def _check_value(value: Tensor, pattern: EllPattern, like: Tensor, **arrays: Tensor | None) -> int:
    """Check ``value [G,m,K]``; gives the group size of it and the others."""
    _check_pattern(pattern, like)
    check_tensor("value", value, ["G", pattern.m, pattern.K], like=like)
    _check_floating("value", value)
    return check_group(value=value, **arrays)


def _check_out(
    out: Tensor | None, shape: tuple[int, ...], like: Tensor, **inputs: Tensor | None
) -> Tensor:
    """A new output, or the caller's if it is fit to be written and shares no memory."""
    given = out is not None
    out = check_out(out, shape, like)
    if given:
        for name, value in inputs.items():
            if value is not None and overlap(out, value):
                raise ValueError(f"out: shares memory with {name}, need its own")
    return out
