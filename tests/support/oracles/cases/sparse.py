"""Random sparse matrices, every sparse op on them, and dense matrices in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hfcore.bindings.sparse import (
    EllPattern,
    ell_gradient,
    ell_hidden,
    ell_matmul,
    ell_matmul_t,
    ell_pattern,
    ell_scan,
)
from oracles.rnn import ACTIVATIONS

# B, n, m, K: ones, primes, 16 lanes and tiles of 32 cases ± 1, blocks of 64 rows ± 1, several
# chunks of a row's entries, a panel beyond the cache.
SHAPES = (
    (1, 1, 1, 1),
    (2, 3, 1, 2),
    (13, 7, 5, 7),
    (16, 16, 32, 15),
    (17, 31, 63, 16),
    (31, 33, 64, 17),
    (33, 64, 65, 15),
    (65, 129, 130, 33),
    (9, 12_300, 3, 40),
    (40, 12_300, 3, 15),
)


SHAPE_IDS = [f"B{B}-n{n}-m{m}-K{K}" for B, n, m, K in SHAPES]


# Lengths of the group axis: values, and the arrays of cases.
GROUPS = {"alone": (1, 1), "tangents": (1, 3), "nets": (3, 3), "one case": (3, 1)}


Shape = tuple[int, int, int, int]


def draw_index(m: int, n: int, K: int, draw: torch.Generator, short: bool) -> Tensor:
    """Distinct columns of each row, increasing; with ``short`` some rows have fewer."""
    index = torch.rand(m, n, generator=draw).topk(K, dim=1).indices.sort(1).values
    if short:
        for row in range(0, m, 2):
            kept = int(torch.randint(1, K + 1, (1,), generator=draw))
            index[row, kept:] = index[row, kept - 1]
    return index


class Case:
    """A matrix m x n with up to K entries a row, and cases on both sides of it."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, group: str = "alone", short: bool = False
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device("cpu")
        self.B, self.n, self.m, self.K = B, n, m, K = shape
        nets, cases = GROUPS[group]
        self.G = max(nets, cases)
        self.draw = torch.Generator().manual_seed(sum(shape))
        self.pattern = ell_pattern(draw_index(m, n, K, self.draw, short), n)
        self.value = self.normal(nets, m, K)
        if self.pattern.present is not None:  # what stands behind a short row is never read
            self.value = self.value.masked_fill(~self.pattern.present, math.nan)
        self.x, self.g = self.normal(cases, B, n), self.normal(cases, B, m)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.draw, dtype=torch.float64).to(self.dtype)

    def poisoned(self, *size: int) -> Tensor:
        return torch.full(size, math.nan, dtype=self.dtype, device=self.device)


def all_results(case: Case) -> dict[str, Tensor]:
    B, n, m, K = case.shape
    p, G, cases = case.pattern, case.G, case.x.shape[0]
    return {
        "y": ell_matmul(case.x, case.value, p, out=case.poisoned(G, B, m)),
        "back": ell_matmul_t(case.g, case.value, p, out=case.poisoned(G, B, n)),
        "gradient": ell_gradient(case.g, case.x, p, out=case.poisoned(cases, m, K)),
    }


def dense_of(value: Tensor, pattern: EllPattern) -> Tensor:
    """W in float64, entry by entry."""
    W = torch.zeros(value.shape[0], pattern.m, pattern.n, dtype=torch.float64)
    for i, row in enumerate(pattern.index.tolist()):
        for k, j in enumerate(row):
            if k == 0 or j != row[k - 1]:
                W[:, i, j] = value[:, i, k].double()
    return W


def oracle(case: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """In float64: each result, and Σ|terms| of its sums for the bound."""
    W, x, g = dense_of(case.value, case.pattern), case.x.double(), case.g.double()
    index = case.pattern.index.long().expand(len(x), -1, -1)
    outer, terms = g.mT @ x, g.abs().mT @ x.abs()
    kept = case.pattern.present
    at = [t.gather(2, index) for t in (outer, terms)]
    if kept is not None:
        at = [t * kept for t in at]
    return {
        "y": (x @ W.mT, x.abs() @ W.abs().mT),
        "back": (g @ W, g.abs() @ W.abs()),
        "gradient": (at[0], at[1]),
    }


def check_all(case: Case, results: Callable[[Case], dict[str, Tensor]] = all_results) -> None:
    """A sum of N terms is off by at most N roundings of Σ|terms|, and by √N or so in practice."""
    N = max(case.B, case.m, case.K)
    eps = torch.finfo(case.dtype).eps
    want = oracle(case)
    for name, got in results(case).items():
        exact, terms = want[name]
        assert got.shape == exact.shape, name
        assert got.dtype == case.dtype, name
        excess = (got.cpu().double() - exact).abs() - (4 + 2 * math.sqrt(N)) * eps * terms
        worst = int(excess.argmax())
        assert not bool((excess > 0).any() | excess.isnan().any()), (
            f"{name}, element {worst}: got {got.flatten()[worst]}, want {exact.flatten()[worst]}"
        )


class TimeCase:
    """Arrays ``[G,T,B,H]`` and square weights whose states stay of order 1."""

    def __init__(
        self, T: int, B: int, H: int, K: int, dtype: torch.dtype, group: str = "alone"
    ) -> None:
        self.sizes, self.dtype = (T, B, H), dtype
        nets, cases = GROUPS[group]
        self.G = max(nets, cases)
        draw = torch.Generator().manual_seed(T + B + H)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)

        self.pattern = ell_pattern(draw_index(H, H, K, draw, True), H)
        self.value = normal(nets, H, K) / math.sqrt(K)
        if self.pattern.present is not None:
            self.value = self.value.masked_fill(~self.pattern.present, math.nan)
        self.u, self.a = normal(cases, T, B, H), normal(cases, T, B, H)
        self.d = torch.rand(cases, T, B, H, generator=draw, dtype=torch.float64).to(dtype)

    def out(self) -> Tensor:
        return torch.full((self.G, *self.sizes), math.nan, dtype=self.dtype, device=self.u.device)

    def results(self) -> dict[str, Tensor]:
        found = {
            e: ell_hidden(self.u, self.value, self.pattern, nonlinearity=e, out=self.out())
            for e in ACTIVATIONS
        }
        for transposed in (False, True):
            for reverse in (False, True):
                for a in (None, self.a):
                    found[f"{transposed} {reverse} {a is not None}"] = ell_scan(
                        self.u, self.d, self.value, self.pattern, a,
                        transposed=transposed, reverse=reverse, out=self.out(),
                    )  # fmt: skip
        return found

    def oracle(self) -> dict[str, Tensor]:
        """One step at a time with the dense matrix, in float64."""
        W = dense_of(self.value.cpu(), self.pattern.to(torch.device("cpu")))
        u, d, a = (t.cpu().double().expand(self.G, -1, -1, -1) for t in (self.u, self.d, self.a))
        T = u.shape[1]
        found = {}
        for name, function in ACTIVATIONS.items():
            h = [function(u[:, 0])]
            for t in range(1, T):
                h.append(function(u[:, t] + h[-1] @ W.mT))
            found[name] = torch.stack(h, 1)
        for transposed in (False, True):
            for reverse in (False, True):
                for more in (False, True):
                    y = torch.zeros_like(u)
                    carry = torch.zeros_like(u[:, 0])
                    for t in reversed(range(T)) if reverse else range(T):
                        carry = d[:, t] * (carry @ (W if transposed else W.mT) + u[:, t])
                        carry = carry + a[:, t] if more else carry
                        y[:, t] = carry
                    found[f"{transposed} {reverse} {more}"] = y
        return found

    def check(self) -> None:
        """Errors of T steps, each of K terms; the states' own size is the scale."""
        want, eps = self.oracle(), torch.finfo(self.dtype).eps
        for name, got in self.results().items():
            bound = 40 * self.sizes[0] * eps * float(want[name].abs().max())
            assert got.shape == want[name].shape, name
            assert got.dtype == self.dtype
            assert float((got.cpu().double() - want[name]).abs().max()) <= bound, name
