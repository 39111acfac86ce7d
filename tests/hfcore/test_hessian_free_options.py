"""The toolbox of hf.HessianFree on feed-forward nets: every option against dense algebra."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.objective_factory import objective_for
from hfcore.optimisers.options import ConjugateGradient
from hfcore.seeding import generator_of
from hfcore.solvers.preconditioners import DiagonalPreconditioner
from hfcore.training.state_tree import flatten, unflatten
from oracles.exact_steps import EXACT

DAMPING, L2 = 0.3, 0.01


def problem(cases: int = 17, seed: int = 0) -> tuple[hf.MLP, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = hf.MLP([3, 5, 2], ["tanh", "linear"], dtype=torch.float64, generator=g)
    x = torch.randn(cases, 3, generator=g, dtype=torch.float64)
    return model, x, torch.rand(cases, 2, generator=g, dtype=torch.float64)


LOSS = hf.losses.LogisticCrossEntropy()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def dense(model: hf.MLP, x: Tensor, y: Tensor, kind: str = "ggn") -> tuple[Tensor, Tensor, Tensor]:
    """(curvature with L2, ∇f, diag of the curvature without L2), all from single products."""
    objective = objective_for(model, LOSS, l2=L2)
    data, theta = objective.prepare(hf.Batch(x, y)), flat(model)
    curvature = objective.curvature(data, theta, kind)
    eye = torch.eye(len(theta), dtype=theta.dtype)
    B = torch.stack([curvature.product(v) for v in eye])
    return B, objective.gradient(data, theta)[1], B.diagonal() - L2


def step_of(model: hf.MLP, x: Tensor, y: Tensor, **options) -> tuple[Tensor, hf.StepStats]:
    model = copy.deepcopy(model)
    before = flat(model)
    opt = hf.HessianFree(model, LOSS, **{"damping": DAMPING, "l2": L2, **EXACT, **options})
    stats = opt.step((x, y))
    return flat(model) - before, stats


@pytest.mark.parametrize("preconditioner", [None, "fisher", "ggn_diagonal", "jacobi"])
@pytest.mark.parametrize("exponent", [None, 0.5])
def test_every_preconditioner_leads_to_the_dense_solution(preconditioner, exponent) -> None:
    model, x, y = problem()
    B, gradient, _ = dense(model, x, y)
    move, stats = step_of(
        model, x, y, preconditioner=preconditioner, preconditioner_exponent=exponent
    )
    A = B + DAMPING * torch.eye(len(B), dtype=B.dtype)
    torch.testing.assert_close(move, -torch.linalg.solve(A, gradient), rtol=1e-8, atol=1e-10)
    assert stats.alpha == 1.0


def test_a_good_preconditioner_saves_iterations() -> None:
    """Inputs on very different scales, which a diagonal can undo."""
    g = torch.Generator().manual_seed(0)
    model = hf.MLP([30, 2], ["linear"], dtype=torch.float64, generator=g)
    x = torch.randn(200, 30, generator=g, dtype=torch.float64) * torch.logspace(-2, 2, 30).double()
    model.layers[0].weight.data.mul_(1e-2)
    y = torch.rand(200, 2, generator=g, dtype=torch.float64)
    counts = {
        name: step_of(model, x, y, preconditioner=name, cg_residual=1e-6)[1].cg_iterations
        for name in (None, "jacobi")
    }
    assert counts["jacobi"] < 0.5 * counts[None]


@pytest.mark.parametrize("kind", ["hessian", "hessian_fd", "fisher"])
def test_every_curvature_leads_to_its_dense_solution(kind) -> None:
    model, x, y = problem()
    dense_kind = "hessian" if kind == "hessian_fd" else kind
    B, gradient, _ = dense(model, x, y, dense_kind)
    A = B + 2.0 * torch.eye(len(B), dtype=B.dtype)
    assert float(torch.linalg.eigvalsh(A).min()) > 0
    rough = kind == "hessian_fd"  # differences of a float64 gradient keep about half the digits
    move, _ = step_of(
        model, x, y, curvature=kind, damping=2.0, cg_residual=1e-7 if rough else 1e-12
    )
    want = -torch.linalg.solve(A, gradient)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if rough else {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(move, want, **tolerance)


def test_negative_curvature_ends_cg_and_is_reported() -> None:
    model, x, y = problem()
    for p in model.parameters():
        p.data.mul_(4.0)  # far from a minimum the Hessian is indefinite
    B = dense(model, x, y, "hessian")[0]
    assert float(torch.linalg.eigvalsh(B).min()) < -1e-3
    opt = hf.HessianFree(model, LOSS, curvature="hessian", damping=0.0, cg_tolerance=0.0, l2=L2)
    before = flat(model)
    stats = opt.step((x, y))
    assert "pᵀAp ≤ 0" in stats.cg_stop
    assert any("pᵀAp ≤ 0" in message for message in stats.messages)
    # The best iterate before it is kept, and is no worse than where the step began.
    assert stats.cg_kept > 0
    assert stats.loss_after < stats.loss
    assert not torch.equal(before, flat(model))


class Point(nn.Module):
    """θ alone, a few numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Halves:
    """M = 2I as an operator that counts its updates."""

    updates = 0

    def update(self) -> None:
        self.updates += 1

    def apply(self, r: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.mul(r, 0.5, out=out)


@pytest.mark.parametrize("curvature", ["hessian", "hessian_fd"])
@pytest.mark.parametrize("preconditioner", [None, Halves()], ids=["plain", "operator"])
@pytest.mark.parametrize("damping", [0.0, 1e-6, 0.3])
def test_lambda_is_raised_past_negative_curvature_within_the_step(
    damping, preconditioner, curvature
) -> None:
    """Σ ¼(θ² − 1)² near its maximum at 0, where λ by factors of 3/2 would take 35 steps."""
    model = Point(0.1, -0.2, 0.05)

    def closure():
        return (0.25 * (model.theta.square() - 1).square()).sum()

    at = model.theta.detach()
    g = at**3 - at
    along = float((g * (3 * at**2 - 1) * g).sum() / (g @ g))
    assert along < -0.8
    opt = hf.HessianFree(model, curvature=curvature, damping=damping, preconditioner=preconditioner)
    stats = opt.step(closure)
    assert stats.accepted
    assert stats.loss_after < stats.loss
    assert stats.damping == pytest.approx(2 * abs(along), rel=1e-4)
    assert any("λ raised to" in m and "curvature -0." in m for m in stats.messages)
    losses = [opt.step(closure).loss for _ in range(12)]
    assert losses[-1] < 1e-6


def test_a_start_of_negative_curvature_is_left_and_lambda_stays() -> None:
    """½(a² − b²) + b⁴ from (1, 0): the gradient has curvature 1, CG's start does not."""
    model = Point(1.0, 0.0)

    def closure():
        a, b = model.theta
        return 0.5 * (a * a - b * b) + b**4

    opt = hf.HessianFree(model, curvature="hessian", damping=0.1, cg_decay=1.0)
    opt.state[model.theta]["cg_last"] = torch.tensor([-1 / 1.1, 0.5], dtype=torch.float64)
    stats = opt.step(closure)
    assert stats.damping == 0.1
    assert "CG starts afresh at zero" in stats.messages
    want = torch.tensor([1 - 1 / 1.1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model.theta.detach(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("curvature", ["hessian", "hessian_fd"])
def test_few_steps_are_rejected_where_lambda_begins_below_the_least_curvature(curvature) -> None:
    """λ₀ = 10⁻⁶: a warm start climbs, CG meets negative curvature after some iterations, nothing is
    found along the step. λ by factors of 3/2 rejects several of these steps."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
        model = nn.Sequential(*layers).double()
        x, y = torch.randn(30, 3).double(), torch.randn(30, 2).double()
    opt = hf.HessianFree(model, curvature=curvature, damping=1e-6)
    steps = [opt.step(lambda: (model(x) - y).square().mean()) for _ in range(25)]
    rejected = [(i, stats) for i, stats in enumerate(steps) if not stats.accepted]
    assert len(rejected) == 1
    ((i, stats),) = rejected
    assert stats.cg_iterations >= 1
    assert "pᵀAp ≤ 0" in stats.cg_stop
    (said,) = (m for m in stats.messages if "where CG ended" in m)
    along = float(said.split()[1])
    assert along <= -stats.damping
    assert stats.damping_next == pytest.approx(2 * abs(along), rel=1e-2)
    assert steps[i + 1].accepted


def test_scale_damping_is_raised_past_negative_curvature_in_its_own_measure() -> None:
    """dᵀBd/dᵀDd with D of scale-sensitive damping, for d = −∇f."""
    model, x, y = problem()
    for p in model.parameters():
        p.data.mul_(4.0)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.data.normal_(generator=generator).mul_(2.0)
        B, gradient, _ = dense(model, x, y, "hessian")
        if float(gradient @ B @ gradient) < 0:
            break
    objective, kappa = objective_for(model, LOSS, l2=L2), 0.02
    curvature = objective.curvature(objective.prepare(hf.Batch(x, y)), flat(model))
    generator = generator_of(5, 0)
    D = (curvature.diagonal(3, generator) + kappa) ** 0.75
    along = float(gradient @ B @ gradient / (gradient @ (D * gradient)))
    assert along < 0
    opt = hf.HessianFree(
        model, LOSS, curvature="hessian_fd", damping=1e-4 * abs(along), l2=L2, scale_damping=kappa,
        diagonal_probes=3, seed=5,
    )  # fmt: skip
    stats = opt.step((x, y))
    assert stats.damping == pytest.approx(2 * abs(along), rel=1e-4)
    assert stats.cg_iterations > 0


def test_scale_sensitive_damping_solves_with_its_own_matrix() -> None:
    model, x, y = problem()
    B, gradient, _ = dense(model, x, y)
    kappa = 0.02
    move, _ = step_of(model, x, y, scale_damping=kappa, diagonal_probes=3, seed=5)
    objective = objective_for(model, LOSS, l2=L2)
    theta = flat(model)
    curvature = objective.curvature(objective.prepare(hf.Batch(x, y)), theta)
    generator = generator_of(5, 0)
    D = (curvature.diagonal(3, generator) + kappa) ** 0.75
    want = -torch.linalg.solve(B + DAMPING * torch.diag(D), gradient)
    torch.testing.assert_close(move, want, rtol=1e-8, atol=1e-10)


def test_structural_damping_weighs_the_hidden_layers() -> None:
    model, x, y = problem()
    with_it, _ = step_of(model, x, y, structural=3.0)
    without, _ = step_of(model, x, y)
    B, gradient, _ = dense(model, x, y)
    J = torch.func.jacrev(lambda W, b: x @ W.T + b, argnums=(0, 1))(
        model.layers[0].weight.detach(), model.layers[0].bias.detach()
    )
    z = x @ model.layers[0].weight.detach().T + model.layers[0].bias.detach()
    J = torch.cat([J[0].reshape(z.numel(), -1), J[1].reshape(z.numel(), -1)], dim=1)
    J = nn.functional.pad(J, (0, len(B) - J.shape[1]))
    d = (1 - torch.tanh(z) ** 2).reshape(-1, 1)
    G_S = J.T @ (d * J) / len(x)
    A = B + DAMPING * (torch.eye(len(B), dtype=B.dtype) + 3.0 * G_S)
    torch.testing.assert_close(with_it, -torch.linalg.solve(A, gradient), rtol=1e-8, atol=1e-10)
    assert not torch.allclose(with_it, without)


def test_trust_radius_bounds_the_step_and_follows_rho() -> None:
    model, x, y = problem()
    opt = hf.HessianFree(
        model, LOSS, damping=0.0, l2=L2, trust_radius=0.05, cg_backtracking="last", cg_tolerance=0.0
    )
    radii = []
    for _ in range(6):
        radius = opt.param_groups[0]["trust_radius"]
        radii.append(radius)
        stats = opt.step((x, y))
        assert stats.step_norm <= radius * (1 + 1e-9)
    # The quadratic is good near the start: steps on the boundary double the radius.
    assert radii[:3] == [0.05, 0.1, 0.2]


@pytest.mark.parametrize("preconditioner", ["fisher", "object"])
def test_trust_radius_is_in_the_norm_of_the_preconditioner(preconditioner) -> None:
    """The first step minimises the quadratic in that ball, and only a boundary doubles it."""
    model, x, y = problem()
    B, gradient, _ = dense(model, x, y)
    M = torch.logspace(-2, 1, len(gradient), dtype=gradient.dtype)
    if preconditioner == "fisher":
        objective = objective_for(model, LOSS, l2=L2)
        squares = objective.squared_gradients(objective.prepare(hf.Batch(x, y)), flat(model))
        M = (squares + DAMPING + L2) ** 0.75
    given = preconditioner if preconditioner == "fisher" else DiagonalPreconditioner(M)
    A = B + DAMPING * torch.eye(len(B), dtype=B.dtype)
    whole = torch.linalg.solve(A, gradient)
    reach = float((M * whole.square()).sum().sqrt())
    for share in (0.05, 1.005):  # the second lies beyond the minimum, though by less than 1 %
        net = copy.deepcopy(model)
        opt = hf.HessianFree(
            net,
            LOSS,
            **{**EXACT, "cg_backtracking": "last", "cg_residual": 1e-12},
            damping=DAMPING,
            l2=L2,
            preconditioner=given,
            trust_radius=share * reach,
        )
        stats = opt.step((x, y))
        move = flat(net) - flat(model)
        length = float((M * move.square()).sum().sqrt())
        assert stats.rho > 0.75
        assert stats.alpha == 1.0
        radius = opt.param_groups[0]["trust_radius"]
        if share < 1:
            assert length == pytest.approx(share * reach, rel=1e-9)
            assert radius == 2 * share * reach
        else:
            torch.testing.assert_close(move, -whole, rtol=1e-7, atol=1e-9)
            assert radius == share * reach


def test_a_preconditioners_pass_counts_as_a_minibatch() -> None:
    model, x, y = problem()
    counts = {
        name: (stats.gradients, stats.products - stats.cg_iterations)
        for name in (None, "fisher", "ggn_diagonal", "jacobi")
        for _, stats in [step_of(model, x, y, preconditioner=name, diagonal_probes=3)]
    }
    assert counts == {None: (1, 0), "fisher": (2, 0), "ggn_diagonal": (1, 3), "jacobi": (1, 1)}
    _, scaled = step_of(model, x, y, scale_damping=0.1, diagonal_probes=2)
    assert scaled.products - scaled.cg_iterations == 2
    halves = [(x[:8], y[:8]), (x[8:], y[8:])]
    net = copy.deepcopy(model)
    stats = hf.HessianFree(net, LOSS, damping=DAMPING, preconditioner="fisher").step(halves)
    assert stats.gradients == 4


def test_relative_residual_is_the_rule_of_standard_hf() -> None:
    """‖r‖ < min(½, ‖g‖^½)·‖g‖, of section 4.4 of Martens (2010), at the first iterate that has
    it."""
    model, x, y = problem()
    B, gradient, _ = dense(model, x, y)
    A = B + DAMPING * torch.eye(len(B), dtype=B.dtype)
    size = float(gradient.norm())
    for scale in (1.0, 1e-3):  # ‖g‖^½ above and below ½
        goal = min(0.5, math.sqrt(scale * size)) * scale * size
        rule = ConjugateGradient.of({**defaults(), "cg_residual": "relative"})
        assert rule.stop(scale * size).residual == pytest.approx(goal, rel=1e-12)
    # Where the gradient is small the rule asks for several iterations.
    opt = hf.HessianFree(model, LOSS, damping=DAMPING, l2=L2, damping_up=1.0, damping_down=1.0)
    for _ in range(6):
        opt.step((x, y))
    B, gradient, _ = dense(model, x, y)
    A = B + 1e-6 * torch.eye(len(B), dtype=B.dtype)
    size = float(gradient.norm())
    goal = min(0.5, math.sqrt(size)) * size
    options = {
        "damping": 1e-6,
        "cg_residual": "relative",
        "cg_backtracking": "last",
        "cg_tolerance": 0.0,
    }
    move, stats = step_of(model, x, y, **options)
    assert stats.cg_stop == "residual below tolerance"
    assert stats.cg_iterations > 1
    assert float((gradient + A @ move).norm()) < goal
    earlier, _ = step_of(model, x, y, **options, cg_max_iter=stats.cg_iterations - 1)
    assert float((gradient + A @ earlier).norm()) >= goal
    with pytest.raises(ValueError, match="cg_residual: got 'absolute', need a number or 'relat"):
        hf.HessianFree(model, LOSS, cg_residual="absolute")


def defaults() -> dict[str, object]:
    """The options as an optimiser without any has them."""
    model, _, _ = problem()
    return hf.HessianFree(model, LOSS).param_groups[0]


def test_a_trust_radius_moves_in_place_of_damping() -> None:
    model, x, y = problem()
    opt = hf.HessianFree(model, LOSS, damping=0.1, l2=L2, trust_radius=0.05)
    rhos = [opt.step((x, y)).rho for _ in range(3)]
    assert min(rhos) > 0.75  # λ's own rule would lower it
    assert opt.damping == 0.1


@pytest.mark.parametrize("start", [1e-4, 1e4])
def test_first_damping_is_searched_by_rho(start) -> None:
    model, x, y = problem(cases=40)
    for p in model.parameters():
        p.data.mul_(3.0)
    opt = hf.HessianFree(
        model, LOSS, damping=start, damping_window=(0.75, 0.95), damping_rule="martens2010"
    )
    first = opt.step((x, y))
    assert first.damping != start
    assert 0.75 <= first.rho <= 0.95 or any("first λ" in m for m in first.messages)
    second = opt.step((x, y))
    assert second.damping == pytest.approx(first.damping_next)


def test_fixed_step_moves_by_it_whatever_the_loss_does() -> None:
    model, x, y = problem()
    whole, _ = step_of(model, x, y)
    for size in (0.25, 3.0):
        move, stats = step_of(model, x, y, step_size=size)
        torch.testing.assert_close(move, size * whole, rtol=1e-10, atol=1e-12)
        assert stats.alpha == size


@pytest.mark.parametrize(
    "more",
    [
        {"damping_rule": "martens2010", "preconditioner": "fisher", "cg_restart": False},
        {"damping_rule": "chapelle2011", "trust_radius": 0.5},
        {"damping_window": (0.75, 0.95), "scale_damping": 0.1, "diagonal_probes": 2},
        {"structural": {"layers.0": ("tanh", 0.5)}, "curvature": "hessian", "preconditioner": None},
        {"step_size": 0.5, "structural": 0.1, "preconditioner": "jacobi", "memory": "recompute"},
    ],
)
def test_state_comes_back_bitwise(more) -> None:
    model, x, y = problem()
    options = {
        "damping": 1.0,
        "preconditioner": "ggn_diagonal",
        "cg_evaluate_every": "geometric",
        "cg_backtracking": "walk",
        **more,
    }
    opt = hf.HessianFree(model, LOSS, **options)
    for _ in range(3):
        opt.step((x, y))
    state = copy.deepcopy((model.state_dict(), opt.state_dict()))
    ahead = [dataclasses.asdict(opt.step((x, y))) for _ in range(3)]
    tensors: dict[str, Tensor] = {}  # by way of a run folder's checkpoint
    state = unflatten(json.loads(json.dumps(flatten(state, "s", tensors))), tensors)
    other = problem(seed=1)[0]
    resumed = hf.HessianFree(other, LOSS, **options)
    other.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    again = [dataclasses.asdict(resumed.step((x, y))) for _ in range(3)]
    for a, b in zip(ahead, again, strict=True):
        a.pop("seconds"), b.pop("seconds")
        assert a == b
    assert torch.equal(flat(model), flat(other))


def test_a_state_from_before_an_option_takes_its_default() -> None:
    model, x, y = problem()
    opt = hf.HessianFree(model, LOSS, damping=1.0)
    opt.step((x, y))
    state = copy.deepcopy(opt.state_dict())
    for name in ("cg_restart", "scale_damping", "seed"):
        del state["param_groups"][0][name]
    opt.load_state_dict(state)
    assert opt.param_groups[0]["cg_restart"] is True
    opt.step((x, y))


def test_options_that_change_between_steps_are_checked() -> None:
    model, x, y = problem()
    for options, name, value in (
        ({}, "damping", float("nan")),
        ({}, "cg_evaluate_every", "geo"),
        ({}, "structural", {"layers.0": "tanh"}),
        ({"structural": {"layers.0": "tanh"}}, "structural", 0.1),
        ({"memory": "cached"}, "memory", "recompute"),
        ({}, "normalize", "outputs"),
    ):
        opt = hf.HessianFree(model, LOSS, **{"damping": 1.0, **options})
        opt.param_groups[0][name] = value
        with pytest.raises(ValueError, match=f"{name}: got"):
            opt.step((x, y))


def test_a_second_parameter_group_is_refused() -> None:
    opt = hf.HessianFree(problem()[0], LOSS)
    with pytest.raises(TypeError, match="add_param_group: got a second group"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_weight_decay_may_change_between_steps() -> None:
    model, x, y = problem()
    opt = hf.HessianFree(model, LOSS, damping=1.0, l2=0.0)
    opt.param_groups[0]["l2"] = 0.5
    theta = flat(model)
    plain = hf.HessianFree(copy.deepcopy(model), LOSS, damping=1.0).step((x, y)).loss
    assert opt.step((x, y)).loss == pytest.approx(plain + 0.25 * float(theta @ theta), rel=1e-12)


def test_parameters_alone_step_by_closure() -> None:
    model, x, y = problem()
    paths = []
    for given in (model, list(copy.deepcopy(model).parameters())):
        net = model if given is model else None
        opt = hf.HessianFree(given, damping=1.0)
        parameters = list(given.parameters()) if net is not None else given
        before = torch.cat([p.detach().reshape(-1).clone() for p in parameters])

        def closure(p=parameters):
            s = torch.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]
            return nn.functional.mse_loss(s, y), s

        opt.step(closure)
        paths.append(torch.cat([p.detach().reshape(-1) for p in parameters]) - before)
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-9, atol=1e-11)
    with pytest.raises(TypeError, match="need a module to go with a loss"):
        hf.HessianFree(model.parameters(), LOSS)


@pytest.mark.parametrize("strategy", ["auto", "measure"])
def test_the_strategy_that_was_chosen_comes_back_with_the_state(strategy) -> None:
    _, x, y = problem()
    paths = []
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    opt = hf.HessianFree(net, LOSS, strategy=strategy)
    opt.step((x, y))
    assert opt.param_groups[0]["strategy"] != "measure"  # what is measured is written down
    state = copy.deepcopy((net.state_dict(), opt.state_dict()))
    for _ in range(2):
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        opt = hf.HessianFree(net, LOSS)
        net.load_state_dict(state[0])
        opt.load_state_dict(state[1])
        opt.step((x, y))
        assert opt.param_groups[0]["strategy"] == state[1]["param_groups"][0]["strategy"]
        paths.append(flat(net))
    assert torch.equal(*paths)


def test_chunks_are_for_modules() -> None:
    with pytest.raises(ValueError, match="chunk_size: is for modules"):
        hf.HessianFree(problem()[0], LOSS, chunk_size=5)


def test_martens2010_learns_an_autoencoder() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(200, 12, generator=g)
    x = (x[:, :3] @ torch.rand(3, 12, generator=g) / 1.5).clamp(0, 1)
    model = hf.Autoencoder([12, 8, 3], generator=g)
    preset = {**hf.presets.martens2010_curves, "damping": 1.0}
    opt = hf.HessianFree(model, LOSS, **preset)
    policy = hf.minibatches.FullGradient(x, x, curvature_batches=4)
    losses = [opt.step(policy(i)).loss for i in range(25)]
    floor = float(nn.functional.binary_cross_entropy(x, x, reduction="sum") / len(x))
    assert losses[-1] - floor < 0.25 * (losses[0] - floor)
    assert all(math.isfinite(value) for value in losses)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"curvature": "newton"}, "curvature: got 'newton'"),
        ({"preconditioner": "ilu"}, "preconditioner: got 'ilu'"),
        ({"damping_rule": "own"}, "damping_rule: got 'own'"),
        ({"damping_window": (0.9, 0.1)}, "damping_window: got"),
        ({"scale_damping": -1.0}, "scale_damping: got -1"),
        ({"trust_radius": 0.0}, r"trust_radius: got 0\.0"),
        ({"cg_evaluate_every": 0}, "cg_evaluate_every: got 0"),
        ({"diagonal_probes": 0}, "diagonal_probes: got 0"),
        ({"step_size": -1.0}, r"step_size: got -1\.0"),
        ({"cg_residual": -1.0}, r"cg_residual: got -1\.0"),
        ({"rho": "both"}, "rho: got 'both'"),
        ({"cg_evaluate_every": "often"}, "cg_evaluate_every: got 'often'"),
        ({"seed": 2**40}, "seed: got"),
        ({"seed": -1}, "seed: got -1"),
        ({"cg_lookback": 0}, "cg_lookback: got 0"),
        ({"cg_loss_increase_after": 9, "cg_backtracking": "last"}, "cg_loss_increase_after: needs"),
        ({"damping_window": (0.7, 0.9), "trust_radius": 1.0}, "damping_window: got one with"),
    ],
)
def test_bad_options_are_named(options, text) -> None:
    model, _, _ = problem()
    with pytest.raises(ValueError, match=text):
        hf.HessianFree(model, LOSS, **options)
