"""Linear solves and eigenpairs: what they take beside the products that they are made of.

Every operator is wrapped in one that adds up the seconds of its products. The rivals multiply as
often: SciPy's solvers on the same operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import hfcore as hf
from bench.cases import Case
from bench.interleave import Contestant, Effort, compare

ITERATIONS = 30
SLOW_ROUNDS = 3


class TimedProducts(hf.LinearOperator):
    """An operator that adds up the seconds of its products, and counts them."""

    def __init__(self, A: hf.LinearOperator) -> None:
        self._operator = A
        self.identity_part = A.identity_part
        self.restart()

    def restart(self) -> None:
        self.seconds, self.count = 0.0, 0

    @property
    def shape(self) -> tuple[int, int]:
        return self._operator.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._operator.dtype

    @property
    def device(self) -> torch.device:
        return self._operator.device

    def _product(self, v: Tensor, out: Tensor | None) -> Tensor:
        return self._timed(1, lambda: self._operator._product(v, out))

    def _products(self, V: Tensor) -> Tensor:
        return self._timed(len(V), lambda: self._operator._products(V))

    def _timed(self, count: int, product: Callable[[], Tensor]) -> Tensor:
        start = perf_counter()
        result = product()
        self.seconds += perf_counter() - start
        self.count += count
        return result


class Task:
    """A call on timed products; keeps the seconds of all, and of its products, of its best turn."""

    def __init__(self, A: hf.LinearOperator, call: Callable[[hf.LinearOperator], Any]) -> None:
        self._operator, self._call = TimedProducts(A), call
        self.turns: list[tuple[float, float, int]] = []
        self.result: Any = None

    def __call__(self) -> None:
        self._operator.restart()
        start = perf_counter()
        self.result = self._call(self._operator)
        total = perf_counter() - start
        self.turns.append((total, self._operator.seconds, self._operator.count))

    def summary(self) -> dict[str, Any]:
        total, in_products, count = min(self.turns)
        return {
            "products": count,
            "product_share": in_products / total,
            "of_products": total / in_products,
        }


def run(
    benchmark: BenchmarkFixture,
    effort: Effort,
    tasks: dict[str, Task],
    group: str,
    case: str,
) -> None:
    first, *rest = (Contestant(name, task) for name, task in tasks.items())
    effort = replace(effort, rounds=min(effort.rounds, SLOW_ROUNDS))
    seconds = compare(benchmark, effort, first, rest, group=group, case=case)
    if seconds:
        for row, task in zip(benchmark.extra_info["rows"], tasks.values(), strict=True):
            row.update(task.summary())


def scipy_cg(A: hf.LinearOperator, b: Tensor) -> Any:
    from scipy.sparse.linalg import cg

    return cg(A.to_scipy(), b.numpy(), rtol=1e-30, maxiter=ITERATIONS)[0]


def scipy_minres(A: hf.LinearOperator, b: Tensor) -> Any:
    from scipy.sparse.linalg import minres

    return minres(A.to_scipy(), b.numpy(), rtol=1e-30, maxiter=ITERATIONS)[0]


def scipy_eigsh(A: hf.LinearOperator, k: int) -> Any:
    from scipy.sparse.linalg import eigsh

    return eigsh(A.to_scipy(), k=k, which="LA", tol=1e-5)[0]


@pytest.mark.parametrize("right_hand_sides", [1, 4])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_solve(
    benchmark: BenchmarkFixture, effort: Effort, method: str, right_hand_sides: int
) -> None:
    """Thirty iterations on the addition net's damped Gauss-Newton matrix, nothing converging."""
    case = Case(B=1000, T=100, H=100, n=2, k=1, last=True)
    w = case.make()
    A = hf.GaussNewton(w.model, hf.losses.SquaredError(), w.x, w.y, mask=w.mask, damping=1e-6)
    b = torch.randn(A.shape[0], right_hand_sides, generator=torch.Generator().manual_seed(1))
    b = b[:, 0] if right_hand_sides == 1 else b
    options: dict[str, Any] = {"max_iter": ITERATIONS, "method": method}
    tasks = {"hfcore": Task(A, lambda A: A.solve(b, 1e-12, **options)[0])}
    if right_hand_sides == 1:
        theirs = scipy_cg if method == "cg" else scipy_minres
        tasks["SciPy, the same products"] = Task(A, lambda A: theirs(A, b))
    run(benchmark, effort, tasks, "Linear solve", f"{case.name}-{method}-m{right_hand_sides}")
    assert bool(torch.isfinite(tasks["hfcore"].result).all())


class Transformer(nn.Module):
    """Scores ``[B,T,32]`` of the next of 32 symbols, for ``[B,T]``; some 28,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.scores = nn.Linear(32, 32)

    def forward(self, symbols: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.encoder(self.embed(symbols)))
        return scores


@pytest.mark.parametrize("operator", [hf.GaussNewton, hf.Hessian])
def test_eigenpairs(
    benchmark: BenchmarkFixture, effort: Effort, operator: Callable[..., hf.LinearOperator]
) -> None:
    """The ten largest eigenvalues of a transformer's curvature with their vectors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer()
        x, y = torch.randint(32, (2, 32, 16))
    A = operator(model, hf.losses.SoftmaxCrossEntropy(), x, y, strategy="double_vjp")
    tasks = {
        "hfcore": Task(A, lambda A: A.eigsh(10).values),
        "SciPy, the same products": Task(A, lambda A: scipy_eigsh(A, 10)),
    }
    case = f"transformer-N{A.shape[0]}-{operator.__name__}"  # type: ignore[attr-defined]
    run(benchmark, effort, tasks, "Ten eigenpairs", case)
    ours = tasks["hfcore"].result
    theirs = torch.from_numpy(tasks["SciPy, the same products"].result.copy()).sort(descending=True)
    torch.testing.assert_close(ours, theirs.values.to(ours.dtype), rtol=1e-4, atol=1e-5)
