"""One Boltzmann machine against sums over all its states, and CD-1 against its expectation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hfcore.kernels.draws import reference
from hfcore.pretraining import RBM, ContrastiveDivergence

F64 = torch.float64


def machine(n: int, m: int, visible: str, hidden: str, *, size: float = 0.7) -> RBM:
    """With random biases, too."""
    draw = torch.Generator().manual_seed(n + 10 * m)
    rbm = RBM(n, m, visible_units=visible, hidden_units=hidden, dtype=F64)  # type: ignore[arg-type]
    rbm.theta.copy_(size * torch.randn(rbm.theta.shape, generator=draw, dtype=F64))
    return rbm


def energy(rbm: RBM, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h) for ``v [...,n]``, ``h [...,m]``, written out."""

    def own(x: Tensor, b: Tensor, units: str) -> Tensor:
        return -(x * b).sum(-1) if units == "bernoulli" else ((x - b) ** 2).sum(-1) / 2

    mixed = torch.einsum("...j,ji,...i->...", h, rbm.W, v)
    return own(v, rbm.b_v, rbm.visible_units) + own(h, rbm.b_h, rbm.hidden_units) - mixed


def states(units: int, kind: str) -> tuple[Tensor, Tensor]:
    """All states ``[S,units]`` and the log of their weights ``[S]``; a grid where they are real."""
    if kind == "bernoulli":
        points, step = torch.tensor([0.0, 1.0], dtype=F64), 1.0
    else:  # the trapezoidal rule converges geometrically on functions like these
        points = torch.linspace(-16, 16, 321, dtype=F64)
        step = float(points[1] - points[0])
    grid = torch.tensor(list(itertools.product(points.tolist(), repeat=units)), dtype=F64)
    return grid, torch.full((len(grid),), units * math.log(step), dtype=F64)


KINDS = [
    (3, 4, "bernoulli", "bernoulli"),
    (5, 2, "bernoulli", "bernoulli"),
    (1, 1, "bernoulli", "bernoulli"),
    (2, 3, "gaussian", "bernoulli"),
    (3, 2, "bernoulli", "gaussian"),
]


@pytest.mark.parametrize(("n", "m", "visible", "hidden"), KINDS)
def test_free_energy_partition_and_means(n: int, m: int, visible: str, hidden: str) -> None:
    rbm = machine(n, m, visible, hidden)
    (vs, log_dv), (hs, log_dh) = states(n, visible), states(m, hidden)
    joint = -energy(rbm, vs[:, None], hs[None]) + log_dv[:, None] + log_dh[None]
    some = slice(0, None, max(1, len(vs) // 50))
    summed = (-energy(rbm, vs[some, None], hs[None]) + log_dh[None]).logsumexp(1)
    torch.testing.assert_close(rbm.free_energy(vs[some]), -summed, rtol=1e-10, atol=1e-10)
    assert rbm.log_partition() == pytest.approx(float(joint.flatten().logsumexp(0)), rel=1e-10)
    given_v = (-energy(rbm, vs[some, None], hs[None]) + log_dh[None]).softmax(1)
    torch.testing.assert_close(rbm.hidden_mean(vs[some]), given_v @ hs, rtol=1e-9, atol=1e-9)
    some_h = hs[:: max(1, len(hs) // 50)]
    given_h = (-energy(rbm, vs[None], some_h[:, None]) + log_dv[None]).softmax(1)
    torch.testing.assert_close(rbm.visible_mean(some_h), given_h @ vs, rtol=1e-9, atol=1e-9)


def test_both_layers_gaussian_have_a_free_energy_and_no_partition() -> None:
    rbm = machine(2, 1, "gaussian", "gaussian")
    vs = torch.randn(7, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    hs, log_dh = states(1, "gaussian")
    summed = (-energy(rbm, vs[:, None], hs[None]) + log_dh[None]).logsumexp(1)
    torch.testing.assert_close(rbm.free_energy(vs), -summed, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="1 gaussian hidden, 2 gaussian visible units, need"):
        rbm.log_partition()


def test_a_partition_is_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rbm = machine(6, 5, "bernoulli", "bernoulli")
    whole = rbm.log_partition()
    monkeypatch.setattr("hfcore.pretraining.rbm.STATES_AT_ONCE", 7)
    monkeypatch.setattr("hfcore.pretraining.rbm.ROWS", 3)
    assert rbm.log_partition() == pytest.approx(whole, rel=1e-12)


# ---- CD-1


def sampled(units: int, kind: str, mean: Tensor) -> tuple[Tensor, Tensor]:
    """States ``[S,m]`` of hidden units with this mean ``[m]``, and their probabilities ``[S]``."""
    if kind == "bernoulli":
        hs, _ = states(units, kind)
        return hs, (hs * mean + (1 - hs) * (1 - mean)).prod(1)
    x, w = np.polynomial.hermite_e.hermegauss(40)  # exact far beyond what a logistic needs
    axis = [list(zip(x, w / w.sum(), strict=True))] * units
    nodes = list(itertools.product(*axis))
    points = torch.tensor([[p for p, _ in node] for node in nodes], dtype=F64)
    weights = torch.tensor([math.prod(q for _, q in node) for node in nodes], dtype=F64)
    return mean + points, weights


def mean_of(kind: str) -> Callable[[Tensor], Tensor]:
    return torch.sigmoid if kind == "bernoulli" else lambda z: z


def expectation(rbm: RBM, v: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Mean and variance of the CD-1 gradient of one case ``v [n]`` over the sampled states."""
    hidden, visible = mean_of(rbm.hidden_units), mean_of(rbm.visible_units)
    p0 = hidden(rbm.W @ v + rbm.b_h)
    hs, q = sampled(len(p0), rbm.hidden_units, p0)
    v1 = visible(hs @ rbm.W + rbm.b_v)
    p1 = hidden(v1 @ rbm.W.T + rbm.b_h)
    found = (
        torch.einsum("sj,si->sji", p1, v1) - torch.outer(p0, v),
        p1 - p0,
        v1 - v,
    )
    means = tuple(torch.einsum("s,s...->...", q, x) for x in found)
    squares = tuple(torch.einsum("s,s...->...", q, x * x) for x in found)
    return means, tuple(s - m * m for s, m in zip(squares, means, strict=True))


@pytest.mark.parametrize(
    ("n", "m", "visible", "hidden"), [KINDS[0], KINDS[3], KINDS[4], (2, 1, "gaussian", "gaussian")]
)
def test_the_expected_gradient(n: int, m: int, visible: str, hidden: str) -> None:
    """Over 30,000 draws for each of two cases, within six standard errors everywhere."""
    rbm, draws = machine(n, m, visible, hidden), 30_000
    cases = torch.rand(2, n, dtype=F64, generator=torch.Generator().manual_seed(3))
    training = ContrastiveDivergence(rbm, 2 * draws)
    training.load(cases.repeat(draws, 1))
    error = training.gradient(torch.Generator().manual_seed(1))
    both = [expectation(rbm, v) for v in cases]
    for k, got in enumerate(training.last_gradient):
        want = (both[0][0][k] + both[1][0][k]) / 2
        deviation = ((both[0][1][k] + both[1][1][k]) / (4 * draws)).clamp(min=0).sqrt()
        assert bool(((got - want).abs() <= 6 * deviation + 1e-12).all())
        assert bool((deviation > 0).all()), "the draws decide something"
    assert float(error) > 0


def plain_epoch(
    rbm: RBM, images: Tensor, B: int, lr: float, mu: float, cost: float, seed: int, velocity: Tensor
) -> float:
    """CD-1 as in its definition, with the same draws."""
    draw, total = torch.Generator().manual_seed(seed), 0.0
    hidden, visible = mean_of(rbm.hidden_units), mean_of(rbm.visible_units)
    order = torch.randperm(len(images), generator=draw)
    whole = len(images) // B
    n, m = rbm.shape
    stream = int(torch.randint(2**62, (), generator=draw))
    for number, chosen in enumerate(order[: whole * B].split(B)):
        v0 = images[chosen]
        p0 = hidden(v0 @ rbm.W.T + rbm.b_h)
        noise = torch.empty_like(p0)
        if rbm.hidden_units == "bernoulli":
            h0 = (reference.uniform(stream, number, noise) < p0).double()
        else:
            h0 = p0 + noise.normal_(generator=draw)
        v1 = visible(h0 @ rbm.W + rbm.b_v)
        p1 = hidden(v1 @ rbm.W.T + rbm.b_h)
        W = (p0.T @ v0 - p1.T @ v1) / B - cost * rbm.W
        steps = [W.flatten(), (p0 - p1).mean(0), (v0 - v1).mean(0)]
        velocity.mul_(mu).add_(torch.cat(steps), alpha=lr)
        rbm.theta.add_(velocity)
        total += float((v0 - v1).square().sum())
    assert len(velocity) == n * m + n + m
    return total / (whole * B)


@pytest.mark.parametrize(("n", "m", "visible", "hidden"), KINDS)
def test_epochs_against_the_definition(n: int, m: int, visible: str, hidden: str) -> None:
    """Two epochs: momentum, a weight cost that the biases are spared, a rest that is left out."""
    images = torch.rand(17, n, dtype=F64, generator=torch.Generator().manual_seed(5))
    ours, plain = machine(n, m, visible, hidden), machine(n, m, visible, hidden)
    training, velocity = ContrastiveDivergence(ours, 5), torch.zeros(plain.theta.numel(), dtype=F64)
    for seed, mu in ((0, 0.5), (1, 0.9)):
        error = training.epoch(
            images,
            learning_rate=0.1,
            momentum=mu,
            weight_cost=0.3,
            generator=torch.Generator().manual_seed(seed),
        )
        want = plain_epoch(plain, images, 5, 0.1, mu, 0.3, seed, velocity)
        assert error == pytest.approx(want, rel=1e-12)
        torch.testing.assert_close(ours.theta, plain.theta, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(training.velocity[0], velocity, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained(dtype: torch.dtype) -> None:
    """A unit that is always on has the mean 1, which no number that is drawn may reach."""
    rbm = RBM(3, 400, dtype=dtype)
    rbm.b_h.fill_(30.0)
    training = ContrastiveDivergence(rbm, 50)
    draw = torch.Generator().manual_seed(0)
    for number in range(20):
        training._draw(draw, 5, number)
        assert float(training._noise.max()) < 1
    images = torch.rand(100, 3, dtype=dtype, generator=draw)
    rates = {"learning_rate": 0.01, "momentum": 0.5, "weight_cost": 0.0}
    assert math.isfinite(training.epoch(images, **rates, generator=draw))
    assert bool(rbm.theta.isfinite().all())


def test_training_raises_the_likelihood() -> None:
    """Of two patterns and what is near them, by the exact partition function."""
    draw = torch.Generator().manual_seed(2)
    patterns = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=F64)
    images = patterns.repeat(60, 1)
    flipped = torch.rand(images.shape, generator=draw, dtype=F64) < 0.05
    images = torch.where(flipped, 1 - images, images)
    rbm = RBM(6, 4, dtype=F64, generator=draw)
    training = ContrastiveDivergence(rbm, 20)

    def likelihood() -> float:
        return float(-rbm.free_energy(images).mean()) - rbm.log_partition()

    assert likelihood() == pytest.approx(-6 * math.log(2), abs=0.3)  # of nothing known
    for _ in range(120):
        training.epoch(
            images, learning_rate=0.1, momentum=0.5, weight_cost=2e-4, generator=draw
        )  # fmt: skip
    # Independent pixels with the right means would still be at −6 log 2.
    assert likelihood() > -2.5


def test_linear_units_come_to_the_reconstruction_that_is_known() -> None:
    """Of real data by linear units: CD-1's own fixed point, in the space of the largest variances.

    With W = Σ s_i w_i u_iᵀ over principal axes u_i of variance λ_i the gradient is zero where
    λ_i = s_i² (λ_i s_i² + 1): the reconstruction is made of means, the hidden units of variance 1.
    """
    draw = torch.Generator().manual_seed(0)
    variances = torch.tensor([4.0, 2.0, 0.5, 0.3, 0.2], dtype=F64)
    axes = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=F64))[0]
    exact = torch.linalg.qr(torch.randn(2000, 5, generator=draw, dtype=F64))[0] * 2000**0.5
    images = exact * variances.sqrt() @ axes.T + 0.5
    rbm = RBM(
        5, 2, visible_units="gaussian", hidden_units="gaussian", dtype=F64, generator=draw
    )  # fmt: skip
    training = ContrastiveDivergence(rbm, 500)
    for rate, epochs in ((0.02, 60), (0.002, 30)):
        for _ in range(epochs):
            training.epoch(
                images, learning_rate=rate, momentum=0.5, weight_cost=0.0, generator=draw
            )  # fmt: skip
    kept = variances[:2]
    shares = ((1 + 4 * kept.square()).sqrt() - 1) / (2 * kept)  # s_i²
    known = (axes[:, :2] * shares) @ axes[:, :2].T
    reconstruction = rbm.visible_mean(rbm.hidden_mean(images))
    off = reconstruction - 0.5 - (images - 0.5) @ known
    # The likelihood's own optimum, shares 1 − 1/λ_i, would be 0.2 off, PCA's, shares 1, 0.15.
    assert float(off.square().sum(1).mean()) < 0.002


def test_first_weights() -> None:
    a = RBM(300, 200, generator=torch.Generator().manual_seed(4), scale=0.1)
    b = RBM(300, 200, generator=torch.Generator().manual_seed(4), scale=0.1, dtype=F64)
    assert float(a.W.std()) == pytest.approx(0.1, rel=0.02)
    assert not a.b_h.any()
    assert not a.b_v.any()
    assert torch.equal(a.W, b.W.float())
    assert repr(a) == "RBM(300, 200, bernoulli, bernoulli)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"visible": 0}, ValueError, "visible: got 0, need at least 1"),
        ({"hidden": 2.5}, TypeError, "hidden: got float"),
        ({"visible_units": "linear"}, ValueError, "visible_units: got 'linear'"),
        ({"hidden_units": None}, ValueError, "hidden_units: got None"),
        ({"scale": -1.0}, ValueError, "scale: got -1.0"),
        ({"dtype": torch.int64}, TypeError, "dtype: got"),
        ({"generator": 3}, TypeError, "generator: got int"),
    ],
)
def test_refusals(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RBM(**{"visible": 3, "hidden": 2, **arguments})  # type: ignore[arg-type]


def test_wrong_cases() -> None:
    rbm = RBM(3, 2)
    with pytest.raises(ValueError, match=r"v: got shape \[4, 2\], need \[B,3\]"):
        rbm.hidden_mean(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"h: got shape \[4, 3\], need \[B,2\]"):
        rbm.visible_mean(torch.zeros(4, 3))
    with pytest.raises(TypeError, match=r"v: got torch\.float64, need torch\.float32"):
        rbm.free_energy(torch.zeros(4, 3, dtype=F64))
    with pytest.raises(ValueError, match="B: got 0, need at least 1"):
        rbm.free_energy(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="30 bernoulli hidden, 40 bernoulli visible"):
        RBM(40, 30).log_partition()
