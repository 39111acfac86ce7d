"""Solvers on flat vectors, one per file; public is that of Hessian-free steps."""

from hfcore.solvers import conjugate_gradient

__all__ = ["conjugate_gradient"]
