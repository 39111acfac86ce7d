"""Operators made of operators: the identity, multiples, sums, chains, blocks of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hfcore.arguments import number
from hfcore.bindings.checks import check_positive
from hfcore.curvature.linear_operator import LinearOperator


def is_number(c: object) -> bool:
    """Whether ``c`` can scale an operator: a real number, or a tensor without axes."""
    if isinstance(c, Tensor):
        return c.ndim == 0 and not c.is_complex() and c.dtype != torch.bool and not c.is_meta
    return isinstance(c, Real) and not isinstance(c, bool)


class Identity(LinearOperator):
    """I ``[N,N]``, of the size, dtype and device of an operator, or of a vector ``like [N]``."""

    identity_part = 1.0

    def __init__(self, like: LinearOperator | Tensor) -> None:
        if isinstance(like, LinearOperator):
            like._check_square("like")
            self.parameter_slices = like.parameter_slices
            self._vector = like._like(0)
            self._size = like.shape[0]
        elif isinstance(like, Tensor) and like.ndim == 1:
            self._vector = like.new_empty(0)
            self._size = len(like)
        else:
            what = list(like.shape) if isinstance(like, Tensor) else type(like).__name__
            raise TypeError(f"like: got {what}, need an operator or a vector [N]")
        check_positive(N=self._size)

    @property
    def shape(self) -> tuple[int, int]:
        return (self._size, self._size)

    @property
    def dtype(self) -> torch.dtype:
        return self._vector.dtype

    @property
    def device(self) -> torch.device:
        return self._vector.device

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return v.clone() if out is None else out.copy_(v)

    def _products(self, V: Tensor) -> Tensor:
        return V.clone()

    def trace(self, probes: int | None = None, generator: torch.Generator | None = None) -> float:
        return float(self._size)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.ones(self._size, dtype=self.dtype, device=self.device)


class _Made(LinearOperator):
    """An operator whose vectors are those of another."""

    _base: LinearOperator

    @property
    def shape(self) -> tuple[int, int]:
        return self._base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._base.dtype

    @property
    def device(self) -> torch.device:
        return self._base.device


class Scaled(_Made):
    """c·A; ValueError for a number that is not finite."""

    def __init__(self, c: float, A: LinearOperator) -> None:
        self._c: float = number("c", c)
        if not math.isfinite(self._c):
            raise ValueError(f"c: got {self._c}, need a finite number")
        self._base = A
        if isinstance(A, Scaled):
            self._c, self._base = self._c * A._c, A._base
        self.symmetric = A.symmetric
        self.identity_part = self._c * A.identity_part
        self.parameter_slices = A.parameter_slices

    @property
    def mT(self) -> LinearOperator:
        return self if self.symmetric else Scaled(self._c, self._base.mT)

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return self._base._product(v, out).mul_(self._c)

    def _products(self, V: Tensor) -> Tensor:
        return self._base._products(V).mul_(self._c)

    def trace(self, probes: int | None = None, generator: torch.Generator | None = None) -> float:
        return self._c * self._base.trace(probes, generator)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return self._c * self._base.diagonal(probes, generator)

    def _is_transpose_of(self, other: LinearOperator) -> bool:
        if not isinstance(other, Scaled):
            return super()._is_transpose_of(other)
        return self._c == other._c and self._base._is_transpose_of(other._base)

    def __repr__(self) -> str:
        return f"{self._c:g} * {self._base!r}"


class Sum(_Made):
    """A + B. Raises ValueError or TypeError for operators that do not fit together."""

    def __init__(self, A: LinearOperator, B: LinearOperator) -> None:
        _check_alike(A, B)
        if A.shape != B.shape:
            raise ValueError(f"A + B: got shapes {list(A.shape)} and {list(B.shape)}, need one")
        self._base, self._other = A, B
        self.symmetric = A.symmetric and B.symmetric
        self.identity_part = A.identity_part + B.identity_part
        a, b = A.parameter_slices, B.parameter_slices
        self.parameter_slices = a if b is None or a == b else (b if a is None else None)

    @property
    def mT(self) -> LinearOperator:
        return self if self.symmetric else Sum(self._base.mT, self._other.mT)

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return self._base._product(v, out).add_(self._other._product(v, None))

    def _products(self, V: Tensor) -> Tensor:
        return self._base._products(V).add_(self._other._products(V))

    def trace(self, probes: int | None = None, generator: torch.Generator | None = None) -> float:
        return self._base.trace(probes, generator) + self._other.trace(probes, generator)

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return self._base.diagonal(probes, generator) + self._other.diagonal(probes, generator)

    def __repr__(self) -> str:
        return f"({self._base!r} + {self._other!r})"


class Chain(LinearOperator):
    """The matrix product of two or more operators; symmetric where it reads the same from behind
    with every factor transposed, as JᵀDJ does."""

    def __init__(self, factors: Sequence[LinearOperator]) -> None:
        self._factors = list(factors)
        for A, B in zip(self._factors, self._factors[1:], strict=False):
            _check_alike(A, B)
            if A.shape[1] != B.shape[0]:
                raise ValueError(
                    f"A @ B: got shapes {list(A.shape)} and {list(B.shape)}, need as many columns "
                    "as rows"
                )
        mirrored = zip(self._factors, reversed(self._factors), strict=True)
        self.symmetric = all(A._is_transpose_of(B) for A, B in mirrored)
        last = self._factors[-1].parameter_slices
        self.parameter_slices = last if self.symmetric else None

    @property
    def shape(self) -> tuple[int, int]:
        return (self._factors[0].shape[0], self._factors[-1].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self._factors[0].dtype

    @property
    def device(self) -> torch.device:
        return self._factors[0].device

    @property
    def factors(self) -> list[LinearOperator]:
        """In the order in which they are written."""
        return list(self._factors)

    @property
    def mT(self) -> LinearOperator:
        return self if self.symmetric else Chain([A.mT for A in reversed(self._factors)])

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        for A in reversed(self._factors[1:]):
            v = A._product(v, None)
        return self._factors[0]._product(v, out)

    def _products(self, V: Tensor) -> Tensor:
        for A in reversed(self._factors):
            V = A._products(V.contiguous())
        return V

    def __repr__(self) -> str:
        return "(" + " @ ".join(map(repr, self._factors)) + ")"


def chain(A: LinearOperator, B: LinearOperator) -> Chain:
    """A @ B, with chains among them opened."""
    left, right = ((X.factors if isinstance(X, Chain) else [X]) for X in (A, B))
    return Chain([*left, *right])


class Block(_Made):
    """Rows and columns ``index [n]`` of a square operator."""

    def __init__(self, A: LinearOperator, index: Tensor, slices: dict[str, slice]) -> None:
        self._base = A
        self._index = index
        self.symmetric = A.symmetric
        self.identity_part = A.identity_part
        self.parameter_slices = slices

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self._index), len(self._index))

    @property
    def mT(self) -> LinearOperator:
        slices = dict(self.parameter_slices or {})
        return self if self.symmetric else Block(self._base.mT, self._index, slices)

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        padded = v.new_zeros(self._base.shape[1])
        padded[self._index] = v
        return _take(self._base._product(padded, None), self._index, out)

    def _products(self, V: Tensor) -> Tensor:
        padded = V.new_zeros(len(V), self._base.shape[1])
        padded[:, self._index] = V
        return self._base._products(padded)[:, self._index]

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        if probes is None and type(self._base).diagonal is not LinearOperator.diagonal:
            return self._base.diagonal()[self._index]  # cheaper than products
        return super().diagonal(probes, generator)

    def __repr__(self) -> str:
        return f"{self._base!r}.block({list(self.parameter_slices or ())})"


def block(A: LinearOperator, patterns: Sequence[str]) -> Block:
    """See :meth:`hfcore.curvature.linear_operator.LinearOperator.block`."""
    A._check_square("block")
    slices = A.parameter_slices
    if slices is None:
        raise ValueError("block: the operator's vectors have no parameter names")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"names: got {type(pattern).__name__}, need patterns (str)")
        if not any(fnmatchcase(name, pattern) for name in slices):
            raise ValueError(f"names: {pattern!r} fits no parameter, need one of {list(slices)}")
    if not patterns:
        raise ValueError("names: got no pattern, need at least one")
    chosen: dict[str, slice] = {}
    parts: list[Tensor] = []
    end = 0
    for name, where in slices.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parts.append(torch.arange(where.start, where.stop, device=A.device))
            chosen[name] = slice(end, end + len(parts[-1]))
            end = chosen[name].stop
    return Block(A, torch.cat(parts), chosen)


def _take(values: Tensor, index: Tensor, out: Tensor | None) -> Tensor:
    return values[index] if out is None else torch.index_select(values, 0, index, out=out)


def _check_alike(A: Any, B: Any) -> None:
    for name, a, b in (("dtypes", A.dtype, B.dtype), ("devices", A.device, B.device)):
        if a != b:
            raise TypeError(f"operators: got {name} {a} and {b}, need one")
