"""Curvature of hf.RNN beyond the Gauss-Newton product, in float64 against torch.func."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.bindings import recurrence
from hfcore.nets import curvature as fused
from hfcore.nets import recurrent as passes
from hfcore.objective_factory import objective_for
from oracles import rnn
from oracles.losses import LOSSES
from oracles.rnn import ACTIVATIONS

KINDS = ("ggn", "hessian", "fisher")


class Problem(rnn.Problem):
    def curvature(self, kind: Any = "ggn", **options: Any) -> Any:
        objective = objective_for(self.model, self.loss, **options)
        return objective.curvature(objective.prepare(self.batch), self.theta, kind)


def close(got: Tensor, want: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.abs().max()))


def eye(p: Problem) -> Tensor:
    return torch.eye(p.theta.numel(), dtype=torch.float64)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
@pytest.mark.parametrize("mask", ["all", "last", "ragged"])
def test_every_kind_equals_its_dense_matrix(loss, nonlinearity: str, mask: str) -> None:
    p = Problem(loss, nonlinearity, mask=mask, H=3)
    held = 0.7 * eye(p) + 0.4 * p.structural()
    for kind in KINDS:
        want = p.dense(kind) + held
        for memory, backend in itertools.product(("cached", "recompute"), ("reference", "cpu")):
            with hf.use_backend(backend):
                got = p.curvature(kind, l2=0.2, memory=memory).products(eye(p), 0.5, 0.4)
            close(got, want)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (1, 3, 2, 3, 2), (2, 1, 1, 2, 1), (7, 5, 3, 5, 3)], ids=str
)
def test_shapes(shape: tuple[int, ...]) -> None:
    p = Problem(LOSSES[1], **dict(zip("TBnHk", shape, strict=True)))
    for kind in KINDS:
        close(p.curvature(kind).products(eye(p)), p.dense(kind), rtol=1e-10)
    close(p.curvature().diagonal(), p.dense("ggn").diagonal(), rtol=1e-10)


def test_hessian_is_symmetric_and_indefinite() -> None:
    p = Problem(LOSSES[0])
    A = p.curvature("hessian").products(eye(p), 0.0, 0.3)
    assert float((A - A.T).abs().max()) <= 1e-14 * float(A.abs().max())
    assert float(torch.linalg.eigvalsh(A)[0]) < -1e-3
    F_ = p.curvature("fisher").products(eye(p))
    assert float((F_ - F_.T).abs().max()) <= 1e-14 * float(F_.abs().max())
    assert float(torch.linalg.eigvalsh(F_)[0]) >= -1e-14


def test_hessian_product_is_the_slope_of_the_gradient() -> None:
    p = Problem(LOSSES[2], T=9, B=5, H=7, k=3, mask="ragged")
    objective = objective_for(p.model, p.loss, l2=0.1, normalize="outputs")
    data = objective.prepare(p.batch)
    v = torch.randn(p.theta.numel(), generator=torch.Generator().manual_seed(1)).double()
    h = 1e-5
    ahead, behind = (objective.gradient(data, p.theta + s * h * v)[1] for s in (1, -1))
    close(
        objective.curvature(data, p.theta, "hessian").product(v), (ahead - behind) / (2 * h), 1e-7
    )


@pytest.mark.parametrize("mask", ["all", "last", "ragged"])
@pytest.mark.parametrize("normalize", ["sequences", "outputs"])
def test_squares_are_taken_after_the_sum_over_time(mask: str, normalize: Any) -> None:
    for loss in LOSSES:
        p = Problem(loss, mask=mask, T=6, B=5)
        objective = objective_for(p.model, loss, l2=3.0, normalize=normalize)
        data = objective.prepare(p.batch)
        g = p.case_gradients()
        if normalize == "outputs":  # f = Σ losses / outputs is the mean of rescaled cases
            g *= p.x.shape[1] / int(p.mask.sum())
        close(objective.squared_gradients(data, p.theta), (g**2).mean(0))
        close(p.curvature("fisher", normalize=normalize).diagonal(), (g**2).mean(0))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("mask", ["all", "last", "ragged"])
def test_diagonal(loss, mask: str) -> None:
    """Exact with unit probes; the mean of estimates is within five of its standard errors."""
    p = Problem(loss, T=3, B=3, H=3, mask=mask)
    c, want = p.curvature(), p.dense("ggn").diagonal()
    close(c.diagonal(), want)
    g = torch.Generator().manual_seed(0)
    estimates = torch.stack([c.diagonal(8, g) for _ in range(150)])
    error = estimates.std(0) / 150**0.5
    assert bool(((estimates.mean(0) - want).abs() <= 5 * error + 1e-12).all())


def test_bad_probes_and_kinds_are_named() -> None:
    p = Problem(LOSSES[0])
    with pytest.raises(ValueError, match="probes: got 0, need at least 1"):
        p.curvature().diagonal(0)
    with pytest.raises(ValueError, match="diagonal: the Hessian is not a Gram matrix"):
        p.curvature("hessian").diagonal()
    with pytest.raises(ValueError, match="kind: got 'kfac', need one of 'ggn', 'hessian'"):
        p.curvature("kfac")
    with pytest.raises(ValueError, match="memory: got 'none', need one of 'auto', 'cached'"):
        objective_for(p.model, p.loss, memory="none")  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------- memory


def test_chunks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(LOSSES[1], T=5, B=11, mask="ragged")
    objective = objective_for(p.model, p.loss)
    data = objective.prepare(p.batch)

    def everything() -> list[Tensor]:
        V = torch.randn(3, p.theta.numel(), generator=torch.Generator().manual_seed(1)).double()
        ggn = objective.curvature(data, p.theta)
        probed = ggn.diagonal(3, torch.Generator().manual_seed(2))
        products = [objective.curvature(data, p.theta, k).products(V, 0.1, 0.2) for k in KINDS]  # type: ignore[arg-type]
        return [objective.squared_gradients(data, p.theta), ggn.diagonal(), probed, *products]

    want = everything()
    monkeypatch.setattr(fused, "GROUP_BYTES", 1)
    monkeypatch.setattr(passes, "CASE_BYTES", 4 * 16 * 8)
    for a, b in zip(everything(), want, strict=True):
        if a is not want[2]:
            close(a, b, rtol=1e-12)
    monkeypatch.setattr(passes, "SEQUENCES_AT_ONCE", 4)
    chunked = everything()
    del chunked[2], want[2]  # the probes of other chunks are other draws
    for a, b in zip(chunked, want, strict=True):
        close(a, b, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (40, 65), (101, 17)], ids=str)
@pytest.mark.parametrize("structural", [0.0, 0.3])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_recomputed_products_equal_cached_ones(
    shape: tuple[int, int], structural: float, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    T, B = shape
    monkeypatch.setattr(recurrence, "RECOMPUTED_BYTES", 5 * T * 11 * 8)  # five sequences at once
    for nonlinearity, mask in (("tanh", "last"), ("relu", "ragged")):
        p = Problem(LOSSES[2], nonlinearity, T=T, B=B, n=3, H=11, k=2, mask=mask)
        V = torch.randn(2, p.theta.numel(), generator=torch.Generator().manual_seed(1)).double()
        with hf.use_backend(backend):
            cached, again = (
                p.curvature(memory=memory).products(V, 0.1, structural)
                for memory in ("cached", "recompute")
            )
        close(again, cached, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1025, 19), (2311, 3)], ids=str)
def test_compiled_windows_give_the_same_bits(shape: tuple[int, int]) -> None:
    """64 float64 states of 16 sequences fill 8 MiB in 1024 steps: two windows and three."""
    T, B = shape
    p = Problem(LOSSES[0], T=T, B=B, n=2, H=64, k=1, mask="ragged")
    V = torch.randn(2, p.theta.numel(), generator=torch.Generator().manual_seed(1)).double()
    with hf.use_backend("cpu"):
        cached, again = p.curvature(), p.curvature(memory="recompute")
        for structural in (0.0, 0.3):
            assert torch.equal(
                again.products(V, 0.1, structural), cached.products(V, 0.1, structural)
            )
