"""Curvature of hf.MLP in float64 against dense matrices built by torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hfcore as hf
from hfcore.nets import curvature as fused
from hfcore.nets import objective as chunked
from hfcore.nets.curvature import FusedCurvature
from hfcore.objective_factory import objective_for
from oracles.losses import LOSSES
from oracles.mlp import ACTIVATIONS, Problem, problem

KINDS = ("ggn", "hessian", "fisher")


def curvature(p: Problem, kind: Any = "ggn", **options: Any) -> FusedCurvature:
    objective = objective_for(p.model, p.loss, **options)
    return objective.curvature(objective.prepare(hf.Batch(p.x, p.y)), p.theta, kind)


def dense(c: FusedCurvature, N: int, damping: float = 0.0, structural: float = 0.0) -> Tensor:
    return c.products(torch.eye(N, dtype=torch.float64), damping, structural)


def close(got: Tensor, want: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.abs().max()))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("last", ["linear", "tanh"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_kind_equals_its_dense_matrix(loss, activation: str, last: str, backend: Any) -> None:
    p = problem(loss, [3, 5, 1, 3], [activation, "logistic", last], cases=7)
    N = p.theta.numel()
    for kind in KINDS:
        with hf.use_backend(backend):
            got = dense(curvature(p, kind, l2=0.2), N, damping=0.3)
        close(got, p.dense(kind) + 0.5 * torch.eye(N, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [[1, 1], [2, 17, 2], [5, 3, 2, 4], [16, 15, 3]], ids=str)
@pytest.mark.parametrize("cases", [1, 2, 17])
def test_shapes(sizes: list[int], cases: int) -> None:
    activations = ["tanh"] * (len(sizes) - 2) + ["linear"]
    p = problem(LOSSES[1], sizes, activations, cases=cases)
    for kind in KINDS:
        close(dense(curvature(p, kind), p.theta.numel()), p.dense(kind), rtol=1e-10)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_symmetry_and_sign(loss) -> None:
    p = problem(loss, [4, 6, 3], ["tanh", "linear"], cases=9)
    for kind in KINDS:
        A = dense(curvature(p, kind), p.theta.numel(), structural=0.4 if kind == "ggn" else 0.0)
        assert float((A - A.T).abs().max()) <= 1e-14 * float(A.abs().max())
        lowest = float(torch.linalg.eigvalsh(A)[0])
        if kind == "hessian":
            assert lowest < -1e-3  # or the test would say nothing about negative curvature
        else:
            assert lowest >= -1e-14


def test_hessian_product_is_the_slope_of_the_gradient() -> None:
    p = problem(LOSSES[2], [4, 7, 5, 3], ["logistic", "tanh", "linear"], cases=6)
    objective = objective_for(p.model, p.loss, l2=0.1)
    data = objective.prepare(hf.Batch(p.x, p.y))
    v = torch.randn(p.theta.numel(), generator=torch.Generator().manual_seed(1)).double()
    h = 1e-5
    ahead, behind = (objective.gradient(data, p.theta + s * h * v)[1] for s in (1, -1))
    got = objective.curvature(data, p.theta, "hessian").product(v)
    close(got, (ahead - behind) / (2 * h), rtol=1e-7)


# ------------------------------------------------------------------------------- structural


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_holds_every_hidden_layer(kind: Any) -> None:
    activations = ["tanh", "logistic", "relu", "linear"]
    p = problem(LOSSES[1], [3, 4, 5, 2, 3], activations, cases=7)
    want = p.dense(kind) + 0.6 * sum(
        p.structural(l, name) for l, name in enumerate(activations[:2])
    )
    z = p.states(p.theta, p.x)[0][2]
    J = torch.func.jacrev(lambda t: p.states(t, p.x)[0][2])(p.theta)
    want += 0.6 * torch.einsum("bin,bi,bim->nm", J, (z > 0).double(), J) / 7
    close(dense(curvature(p, kind, structural=0.03), p.theta.numel(), structural=0.6), want)


@pytest.mark.parametrize(
    "named",
    [
        {"layers.0": "identity"},
        {"layers.0": "tanh", "layers.1": ("logistic", 0.3)},
        {"layers.1": ("identity", 2.0), "layers.2": ("softmax", 0.7)},
        {"layers.3": "identity"},
        {"layers.2": "tanh", "layers.3": ("logistic", 0.5)},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_named_layers_are_held_by_their_distance(named: dict[str, Any], kind: Any) -> None:
    p = problem(LOSSES[0], [3, 4, 5, 3, 2], ["tanh", "logistic", "linear", "linear"], cases=6)
    want = p.dense(kind)
    for name, value in named.items():
        distance, mu = value if isinstance(value, tuple) else (value, 1.0)
        want = want + 0.8 * mu * p.structural(int(name[-1]), distance)
    close(dense(curvature(p, kind, structural=named), p.theta.numel(), structural=0.8), want)


@pytest.mark.parametrize(
    ("structural", "error", "message"),
    [
        ({"layer": "tanh"}, ValueError, r"got submodule 'layer', need one of layers.0..layers.1"),
        ({"layers.0": "relu"}, ValueError, r"structural\['layers.0'\]: got 'relu', need one of"),
        ({"layers.0": "logistic"}, ValueError, r"got 'logistic' for tanh units, need 'tanh'"),
        ({"layers.0": ("tanh", -1.0)}, ValueError, r"\['layers.0'\]: got -1.0, need a finite"),
        ({"layers.0": ("tanh", "x")}, TypeError, r"got 'x', need a number"),
        (float("nan"), ValueError, "structural: got nan"),
        ("tanh", TypeError, "structural: got 'tanh', need a number"),
    ],
    ids=str,
)
def test_bad_structural_options_are_named(structural: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        objective_for(hf.MLP([2, 3, 1], ["tanh", "linear"]), LOSSES[0], structural=structural)


# ------------------------------------------------------------------------ memory and groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structural", [0.0, 0.5])
def test_chunks_and_recomputation(kind: Any, structural: float, monkeypatch: Any) -> None:
    """Chunked equals whole up to rounding, and recomputed equals cached to the bit."""
    p = problem(LOSSES[2], [4, 6, 5, 3], ["logistic", "tanh", "linear"], cases=37)
    V = torch.randn(5, p.theta.numel(), generator=torch.Generator().manual_seed(3)).double()
    whole = curvature(p, kind, structural=structural)
    assert whole.memory == "cached"
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 8 * 14 * 8)
    monkeypatch.setattr(chunked, "CHUNK_CASES", 1)
    kept = curvature(p, kind, memory="cached")
    again = curvature(p, kind, memory="recompute")
    monkeypatch.setattr(fused, "CACHE_BYTES", 37 * 14 * 8 - 1)
    assert curvature(p, kind).memory == "recompute"
    assert kept.loss == pytest.approx(whole.loss, rel=1e-13)
    assert again.loss == kept.loss
    close(kept.products(V, 0.1, structural), whole.products(V, 0.1, structural), rtol=1e-13)
    assert torch.equal(kept.products(V, 0.1, structural), again.products(V, 0.1, structural))
    if kind == "ggn":
        close(kept.diagonal(), whole.diagonal(), rtol=1e-13)
        assert torch.equal(again.diagonal(), kept.diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_group_and_alone_are_the_same_bits(kind: Any, monkeypatch: Any) -> None:
    p = problem(LOSSES[1], [4, 6, 3], ["tanh", "linear"], cases=10)
    V = torch.randn(7, p.theta.numel(), generator=torch.Generator().manual_seed(3)).double()
    c = curvature(p, kind)
    together = c.products(V, 0.2, 0.3)
    for row, want in zip(V, together, strict=True):
        assert torch.equal(c.product(row, damping=0.2, structural=0.3), want)
    monkeypatch.setattr(FusedCurvature, "_rows_at_once", lambda self: 3)
    assert torch.equal(c.products(V, 0.2, 0.3), together)
    assert c.products(V[:0]).shape == (0, V.shape[1])


def test_out_is_written_and_nothing_else_moves() -> None:
    p = problem(LOSSES[1], [4, 6, 3], ["tanh", "linear"], cases=10)
    c = curvature(p)
    v = torch.randn(p.theta.numel(), generator=torch.Generator().manual_seed(3)).double()
    before, want = v.clone(), c.product(v, damping=0.1)
    out = torch.full_like(v, float("nan"))
    assert c.product(v, damping=0.1, out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out, want)
    assert torch.equal(v, before)
    with pytest.raises(ValueError, match="out: is v itself"):
        c.product(v, out=v)
    with pytest.raises(ValueError, match=r"v: got shape \[1, 4\], need \[m,51\]"):
        c.product(v[:4])
    with pytest.raises(ValueError, match="kind: got 'kfac', need one of 'ggn', 'hessian'"):
        curvature(p, "kfac")


def test_curvature_outlives_later_parameters() -> None:
    p = problem(LOSSES[1], [4, 6, 3], ["tanh", "linear"], cases=10)
    for memory in ("cached", "recompute"):
        theta = p.theta.clone()
        objective = objective_for(p.model, p.loss, memory=memory)  # type: ignore[arg-type]
        data = objective.prepare(hf.Batch(p.x, p.y))
        c = objective.curvature(data, theta)
        v = torch.ones_like(theta)
        want = c.product(v)
        theta.zero_()
        objective.gradient(data, theta)
        assert torch.equal(c.product(v), want)


def test_loss_is_that_of_the_objective() -> None:
    p = problem(LOSSES[2], [4, 6, 3], ["tanh", "linear"], cases=10)
    objective = objective_for(p.model, p.loss, l2=0.1)
    data = objective.prepare([hf.Batch(p.x[:4], p.y[:4]), hf.Batch(p.x[4:], p.y[4:])])
    want = objective.loss(data, p.theta)
    for kind in KINDS:
        assert objective.curvature(data, p.theta, kind).loss == pytest.approx(want, rel=1e-14)


def test_float32_product_within_rounding() -> None:
    wide = problem(LOSSES[1], [61, 67, 31, 61], ["logistic", "linear", "linear"], cases=129)
    v = torch.randn(wide.theta.numel(), generator=torch.Generator().manual_seed(3)).double()
    want = curvature(wide).product(v, damping=0.01)
    narrow = Problem(
        wide.model.float(), wide.loss, wide.theta.float(), wide.x.float(), wide.y.float()
    )
    got = curvature(narrow).product(v.float(), damping=0.01)
    assert float((got.double() - want).norm() / want.norm()) <= 1e-5


# --------------------------------------------------------------------------------- diagonal


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_exact_diagonal(loss) -> None:
    p = problem(loss, [3, 5, 4, 3], ["tanh", "relu", "linear"], cases=7)
    close(curvature(p).diagonal(), p.gauss_newton().diagonal())
    fisher = curvature(p, "fisher").diagonal(probes=4)
    close(fisher, p.dense("fisher").diagonal())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_probed_diagonal_is_unbiased(loss) -> None:
    """The mean of R estimates is within five of its own standard errors, entry by entry."""
    p = problem(loss, [3, 4, 3], ["tanh", "linear"], cases=5)
    c, g, R = curvature(p), torch.Generator().manual_seed(2), 400
    estimates = torch.stack([c.diagonal(4, g) for _ in range(R)])
    want = p.gauss_newton().diagonal()
    error = estimates.std(0) / R**0.5
    assert bool(((estimates.mean(0) - want).abs() <= 5 * error + 1e-12).all())
    # and many probes at once are many estimates
    close(c.diagonal(5000, g), want, rtol=0.2)


def test_probes_come_from_the_generator() -> None:
    p = problem(LOSSES[1], [3, 4, 3], ["tanh", "linear"], cases=5)
    one, two = (curvature(p).diagonal(3, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(one, curvature(p).diagonal(3, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="probes: got 0, need at least 1"):
        curvature(p).diagonal(0)
    with pytest.raises(ValueError, match="diagonal: the Hessian is not a Gram matrix"):
        curvature(p, "hessian").diagonal(1)
