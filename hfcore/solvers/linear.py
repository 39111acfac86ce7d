"""``A x = b`` for one or many right-hand sides by conjugate gradients or MINRES.

All right-hand sides that are not done share one pass over the data per iteration. What is promised
is the true residual b − A x: it is computed where a recurrence says that it is small, and a solve
goes on from there where rounding has parted the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hfcore import arguments
from hfcore.arguments import called, naming_options
from hfcore.bindings import conjugate_gradient as ops
from hfcore.bindings.checks import check_tensor
from hfcore.solvers import preconditioners
from hfcore.solvers.columns import CgColumn, Column
from hfcore.solvers.conjugate_gradient import (
    MAX_ITERATIONS,
    NONFINITE,
    NONPOSITIVE,
    PROGRESS,
    RESIDUAL,
    Solution,
    StopRule,
)
from hfcore.solvers.device_conjugate_gradient import device_conjugate_gradient, serves
from hfcore.solvers.minres import LEAST_SQUARES, MinresColumn
from hfcore.solvers.preconditioners import DiagonalPreconditioner, Preconditioner

Method = Literal["auto", "cg", "minres"]
METHODS = ("auto", "cg", "minres")
Rows = Callable[[Tensor], Tensor]  # rows [a,N] ↦ rows [a,N]

ROUNDING = "rounding: the true residual falls no further"

# Default of max_iter: this many times N, and no more than that.
ITERATIONS_PER_ROW, MOST_ITERATIONS = 10, 10_000
# The recurrence aims a little below the tolerance, so that the true residual meets it too.
AIM = 0.9
# A round that leaves more than this of the residual has met the limit of the arithmetic.
LEAVES = 0.5


class SolveInfo(NamedTuple):
    """How a solve ended; one entry for each of the m right-hand sides (m = 1 for ``b [N]``).

    ``converged``: whether every ‖b − A x‖ ≤ rtol ‖b‖; ``residual_norms [m]`` float64: these norms,
    from a product with the x given back; ``iterations`` done; ``stop``: why there; ``products``:
    vectors that A was multiplied by, in all.
    """

    converged: bool
    iterations: tuple[int, ...]
    residual_norms: Tensor
    stop: tuple[str, ...]
    products: int


@naming_options
def cg(
    product: Any,
    b: Tensor,
    *,
    rtol: float = 1e-5,
    preconditioner: Preconditioner | Tensor | None = None,
    x0: Tensor | None = None,
    max_iter: int | None = None,
) -> tuple[Tensor, SolveInfo]:
    """x with ‖b − A x‖ ≤ rtol ‖b‖ by conjugate gradients, for a positive definite A.

    Hestenes & Stiefel (1952). A right-hand side along whose search direction pᵀAp ≤ 0 ends there.

    Parameters
    ----------
    product : an operator, or a function that gives A v for what ``b`` is: ``[N]``, or columns
        ``[N,a]`` of those right-hand sides that are not done
    b : ``[N]`` or ``[N,m]``, float32 or float64, finite
    preconditioner : a positive diagonal ``[N]``, or an object whose ``apply(r, out)`` writes M⁻¹ r
        for ``r [N]``, M symmetric and positive definite
    x0 : where to start, shaped like b; zero if left out
    max_iter : most iterations of a right-hand side; 10 N, but at most 10,000, if left out

    Returns ``x``, shaped like b, and :class:`SolveInfo`, which says where it did not converge.
    Raises ValueError or TypeError naming an argument that is not as above.
    """
    return _solve(product, b, "cg", rtol, preconditioner, x0, max_iter)


@naming_options
def minres(
    product: Any,
    b: Tensor,
    *,
    rtol: float = 1e-5,
    preconditioner: Preconditioner | Tensor | None = None,
    x0: Tensor | None = None,
    max_iter: int | None = None,
) -> tuple[Tensor, SolveInfo]:
    """x of least ‖b − A x‖ by MINRES, for a symmetric A that may be indefinite or singular.

    Paige & Saunders (1975). Where b is not in the range of A the solve ends with the least residual
    and says so. Arguments and results are those of :func:`cg`, ``b [N]`` or ``[N,m]``; M is
    positive definite here too.
    """
    return _solve(product, b, "minres", rtol, preconditioner, x0, max_iter)


def solve(
    A: Any,
    b: Tensor,
    *,
    rtol: float,
    preconditioner: object,
    x0: Tensor | None,
    max_iter: int | None,
    method: Method,
) -> tuple[Tensor, SolveInfo]:
    """x of A x = b for ``b [N]`` or ``[N,m]``, with :class:`SolveInfo`.

    See :meth:`hfcore.curvature.linear_operator.LinearOperator.solve`. Raises ValueError or
    TypeError naming an argument.
    """
    arguments.choice("method", method, METHODS)
    if isinstance(preconditioner, str):
        arguments.choice("preconditioner", preconditioner, ("jacobi", "nystrom"))
        _check_b(b, A)
        make = preconditioners.jacobi
        M: object = (
            make(A) if preconditioner == "jacobi" else preconditioners.NystromPreconditioner(A)
        )
    else:
        M = preconditioner
    return _solve(A, b, method, rtol, M, x0, max_iter)


@dataclass
class _Solve:
    """A right-hand side over all its rounds."""

    target: float
    residual: float
    method: str
    iterations: int = 0
    stop: str | None = None


def _solve(
    product: Any,
    b: Tensor,
    method: Method,
    rtol: float,
    preconditioner: object,
    x0: Tensor | None,
    max_iter: int | None,
) -> tuple[Tensor, SolveInfo]:
    if _is_operator(product) and not product.symmetric:
        raise ValueError(f"product: {product!r} is not known to be symmetric, need A = Aᵀ")
    _check_b(b, product)
    rtol = arguments.number("rtol", rtol)
    if not 0 < rtol < 1:
        raise ValueError(f"rtol: got {rtol}, need a number between 0 and 1")
    N = b.shape[0]
    if max_iter is None:
        max_iter = min(ITERATIONS_PER_ROW * N, MOST_ITERATIONS)
    max_iter = arguments.count("max_iter", max_iter)
    B = _rows(b)
    M = preconditioners.checked(preconditioner, B.new_empty(N))
    X = torch.zeros_like(B)
    if x0 is not None:
        check_tensor("x0", x0, b.shape, like=b)
        _check_finite("x0", x0)
        X.copy_(_rows(x0))
    rounds = _Rounds(_Products(product, b.ndim), B, X, M, rtol, max_iter, method)
    while rounds.open():
        rounds.run()
    x = rounds.X[0] if b.ndim == 1 else rounds.X.mT
    return x, rounds.info()


class _Products:
    """Products of rows with a caller's operator or function; counts them and checks the results."""

    def __init__(self, product: Any, ndim: int) -> None:
        self._operator = _is_operator(product)
        if not self._operator and not callable(product):
            raise TypeError(
                f"product: got {type(product).__name__}, need an operator or a function v ↦ A v"
            )
        self._product, self._ndim = product, ndim
        self.count = 0

    def __call__(self, V: Tensor) -> Tensor:
        """A v for the rows of ``V [a,N]``, contiguous."""
        self.count += len(V)
        if self._operator:
            if len(V) == 1:
                return self._checked(self._product.matvec(V[0]), V[0]).unsqueeze(0)
            return self._checked(self._product.products(V), V)
        if self._ndim == 1:
            return self._checked(called("product", self._product, V[0]), V[0]).unsqueeze(0)
        columns = V.mT
        return self._checked(called("product", self._product, columns), columns).mT.contiguous()

    def _checked(self, result: object, like: Tensor) -> Tensor:
        return check_tensor("product's result", result, like.shape, like=like).detach().contiguous()


class _Rounds:
    """Right-hand sides ``B [m,N]``, their solutions, and rounds of corrections until all are done.

    A round solves A d = r for the present true residuals and adds the corrections d.
    """

    def __init__(
        self,
        products: _Products,
        B: Tensor,
        X: Tensor,
        M: Preconditioner | None,
        rtol: float,
        max_iter: int,
        method: Method,
    ) -> None:
        self.X, self._B, self._M, self._products = X, B, M, products
        self._max_iter = max_iter
        self._auto = method == "auto"
        first = "minres" if method == "minres" else "cg"
        norms = [_norm(row) for row in B]
        zero = [i for i, norm in enumerate(norms) if norm == 0.0]
        X[zero] = 0.0
        started = [i for i in range(len(B)) if bool(X[i].any())]
        self._R = B.clone()
        if started:
            self._R[started] -= products(X[started])
        self._solves = [_Solve(rtol * norms[i], _norm(self._R[i]), first) for i in range(len(B))]
        for s in self._solves:
            if not math.isfinite(s.residual):
                s.stop = NONFINITE
            elif s.residual <= s.target:
                s.stop = RESIDUAL

    def open(self) -> list[int]:
        """The right-hand sides that are not done."""
        return [i for i, s in enumerate(self._solves) if s.stop is None]

    def run(self) -> None:
        """One round of those that are open."""
        open_ = self.open()
        ends = self._corrections(open_)
        corrected = self.X[open_] + torch.stack([end.x for end in ends])
        residuals = self._B[open_] - self._products(corrected)
        for j, (i, end) in enumerate(zip(open_, ends, strict=True)):
            s, reason = self._solves[i], end.stop
            s.iterations += end.iterations
            before, after = s.residual, _norm(residuals[j])
            # A round that was not meant to end is no use where it ends further away.
            if math.isfinite(after) and (after < before or reason == MAX_ITERATIONS):
                self.X[i], self._R[i], s.residual = corrected[j], residuals[j], after
            self._judge(s, reason, before, after)

    def _judge(self, s: _Solve, reason: str, before: float, after: float) -> None:
        """Whether the round was the last, and why."""
        if after <= s.target:
            s.stop = RESIDUAL
        elif reason == NONPOSITIVE and self._auto:
            s.method = "minres"
        elif reason not in (RESIDUAL, LEAST_SQUARES):
            s.stop = reason
        elif not after < LEAVES * before:
            s.stop = ROUNDING if reason == RESIDUAL else reason
        if s.stop is None and s.iterations >= self._max_iter:
            s.stop = MAX_ITERATIONS

    def _corrections(self, open_: list[int]) -> list[Solution]:
        """How A d = r ends for each of them, in one pass over the data per iteration."""
        if len(open_) == 1 and self._solves[open_[0]].method == "cg" and serves(self._B[0]):
            return [self._on_device(*self._task(open_[0]))]
        columns = [self._column(i) for i in open_]
        reasons = drive(self._products, columns)
        ends = zip(columns, reasons, strict=True)
        return [Solution(column.x, reason, column.iterations) for column, reason in ends]

    def _task(self, i: int) -> tuple[Tensor, float, int]:
        """The residual, the norm that it is to have, and the iterations that are left for it."""
        s, r = self._solves[i], self._R[i].clone()
        # No arithmetic takes more than its digits off a residual in one round.
        target = max(AIM * s.target, torch.finfo(r.dtype).eps * s.residual)
        return r, target, self._max_iter - s.iterations

    def _column(self, i: int) -> Column:
        kind = MinresColumn if self._solves[i].method == "minres" else CgColumn
        return kind(*self._task(i), self._M)

    def _on_device(self, r: Tensor, target: float, limit: int) -> Solution:
        """One right-hand side by CG that does not wait for the host in every iteration."""

        def product(v: Tensor, out: Tensor, stop: Tensor) -> Tensor:
            return out.copy_(self._products(v.unsqueeze(0))[0])

        rule = StopRule(max_iterations=limit, tolerance=0.0, residual=target)
        M = self._M.vector if isinstance(self._M, DiagonalPreconditioner) else self._M
        solution, _ = device_conjugate_gradient(
            product, r, torch.zeros_like(r), rule=rule, preconditioner=M
        )
        if solution.stop == PROGRESS:  # φ rises: nothing is left but rounding
            solution.stop = RESIDUAL
        return solution

    def info(self) -> SolveInfo:
        return SolveInfo(
            all(s.stop == RESIDUAL for s in self._solves),
            tuple(s.iterations for s in self._solves),
            torch.tensor([s.residual for s in self._solves], dtype=torch.float64, device="cpu"),
            tuple(s.stop or "" for s in self._solves),
            self._products.count,
        )


def drive(products: Rows, columns: Sequence[Column]) -> list[str]:
    """Take every column to its end, all that are not there in one call of ``products`` at a time;
    gives the reasons."""
    reasons = [""] * len(columns)
    while waiting := [j for j, reason in enumerate(reasons) if not reason]:
        images = products(torch.stack([columns[j].direction for j in waiting]))
        for image, j in zip(images, waiting, strict=True):
            reasons[j] = columns[j].advance(image) or ""
    return reasons


def _norm(v: Tensor) -> float:
    return math.sqrt(ops.dot(v, v))


def _rows(b: Tensor) -> Tensor:
    """``[m,N]``, contiguous, memory of its own."""
    rows = b.detach().unsqueeze(0) if b.ndim == 1 else b.detach().mT
    return rows.clone(memory_format=torch.contiguous_format)


def _is_operator(product: Any) -> bool:
    """Whether it is a linear operator, or else a function."""
    return all(hasattr(product, name) for name in ("products", "matvec", "symmetric", "shape"))


def _check_b(b: Tensor, A: Any) -> None:
    """``[N]`` or ``[N,m]`` that an operator takes, or any for a function."""
    if not isinstance(b, Tensor):
        raise TypeError(f"b: got {type(b).__name__}, need a torch.Tensor")
    operator = _is_operator(A)
    N = A.shape[1] if operator else "N"
    check_tensor("b", b, [N] if b.ndim == 1 else [N, "m"])
    if b.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"b: got {b.dtype}, need torch.float32 or torch.float64")
    if operator:
        check_tensor("b", b, b.shape, like=torch.empty(0, dtype=A.dtype, device=A.device))
    if b.shape[0] < 1:
        raise ValueError(f"b: got shape {list(b.shape)}, need at least one row")
    _check_finite("b", b)


def _check_finite(name: str, v: Tensor) -> None:
    if v.is_meta:
        raise ValueError(f"{name}: is on meta, which holds no values")
    if not bool(torch.isfinite(v).all()):
        raise ValueError(f"{name}: holds NaN or Inf, need finite values")
