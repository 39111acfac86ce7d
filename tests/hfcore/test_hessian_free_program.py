"""hf.HessianFree in a program: options by name, schedulers, copies, states, the bounds of λ."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import io
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.optimisers.damping import DampingBounds, LevenbergMarquardt
from hfcore.optimisers.hessian_free import OPTIONS

D = torch.float64
LOSS = hf.losses.SquaredError()


def problem(dtype: torch.dtype = D, seed: int = 0) -> tuple[hf.MLP, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = hf.MLP([3, 5, 2], ["tanh", "linear"], dtype=dtype, generator=g)
    x = torch.randn(17, 3, generator=g, dtype=dtype)
    return model, x, torch.rand(17, 2, generator=g, dtype=dtype)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# -------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("dampng", "damping"),
        ("cg_maxiter", "cg_max_iter"),
        ("pre_conditioner", "preconditioner"),
        ("trust_radus", "trust_radius"),
        ("stepsize", "step_size"),
    ],
)
def test_a_misspelt_option_is_named_with_what_was_meant(given, meant) -> None:
    model, _, _ = problem()
    with pytest.raises(TypeError, match=f"{given}: unknown option; did you mean '{meant}'"):
        hf.HessianFree(model, LOSS, **{given: 1.0})
    with pytest.raises(TypeError, match=f"{given}: unknown option"):
        hf.HessianFree(nn.Linear(1, 1), **{given: 1.0})


NUMBERS = [
    name
    for name, p in inspect.signature(hf.HessianFree).parameters.items()
    if name in OPTIONS and not isinstance(p.default, bool)
]
WORDS = ("curvature", "rho", "cg_backtracking", "preconditioner")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [True, math.nan, -1.0, "many", object(), 1j, torch.ones(3)],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_every_option_refuses_what_it_is_not_by_name(name, value) -> None:
    model, x, y = problem()
    with pytest.raises((TypeError, ValueError), match=name):
        hf.HessianFree(model, LOSS, **{name: value})
    opt = hf.HessianFree(model, LOSS)
    opt.param_groups[0][name] = value  # as a schedule would
    before = flat(model)
    with pytest.raises((TypeError, ValueError), match=name):
        opt.step((x, y))
    assert torch.equal(flat(model), before)


def test_numbers_of_every_kind_are_numbers() -> None:
    model, x, y = problem()
    losses = set()
    numbers = [(0.5, 2), (np.float32(0.5), np.int64(2)), (torch.tensor(0.5), np.uint8(2))]
    for half, two in numbers:
        net = copy.deepcopy(model)
        opt = hf.HessianFree(net, LOSS, damping=half, l2=half, cg_max_iter=two, structural=half)
        losses.add(opt.step((x, y)).loss_after)
    assert len(losses) == 1
    for name in ("damping", "l2"):
        for operator in (hf.GaussNewton, hf.Hessian, hf.EmpiricalFisher):
            for bad in (-1, math.nan, math.inf):
                with pytest.raises(ValueError, match=f"{name}: got"):
                    operator(model, LOSS, x, y, **{name: bad})
            with pytest.raises(TypeError, match=f"{name}: got True"):
                operator(model, LOSS, x, y, **{name: True})
    with pytest.raises(ValueError, match="cg_max_iter: got more than"):
        hf.HessianFree(model, LOSS, cg_max_iter=2**63)


@pytest.mark.parametrize("every", [1, 10, "geometric"])
@pytest.mark.parametrize("backtracking", ["best", "walk", "last"])
def test_a_huge_maximum_of_iterations_costs_nothing(every, backtracking) -> None:
    ends = []
    for most in (200, sys.maxsize):
        model, x, y = problem()
        opt = hf.HessianFree(
            model, LOSS, damping=0.1, cg_max_iter=most, cg_evaluate_every=every,
            cg_backtracking=backtracking,
        )  # fmt: skip
        assert opt.step((x, y)).cg_iterations < 200
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_every_option_of_the_signature_is_in_the_group_and_documented() -> None:
    model, _, _ = problem()
    parameters = set(inspect.signature(hf.HessianFree).parameters)
    group = set(hf.HessianFree(model, LOSS).param_groups[0])
    assert parameters >= OPTIONS
    assert group >= OPTIONS
    text = hf.HessianFree.__doc__ or ""
    assert not [name for name in parameters - {"options"} if name not in text]


# ----------------------------------------------------------------------------- steps and copies


def closure_of(model: nn.Module, x: Tensor, y: Tensor):
    def closure():
        s = model(x)
        return 0.5 * (s - y).square().sum() / len(x), s

    return closure


def test_closure_by_keyword_and_last_stats() -> None:
    ends = []
    for keyword in (False, True):
        model, x, y = problem()
        opt = hf.HessianFree(model, damping=0.1, strategy="double_vjp")
        assert opt.last_stats is None
        closure = closure_of(model, x, y)
        stats = opt.step(closure=closure) if keyword else opt.step(closure)
        assert opt.last_stats is stats
        ends.append(flat(model))
    assert torch.equal(*ends)
    for call, what in (
        (lambda: opt.step(), "nothing"),
        (lambda: opt.step((x, y), closure=closure), "data and"),
    ):
        with pytest.raises(TypeError, match=f"step: got {what}"):
            call()


def test_hooks_of_torch_see_every_step() -> None:
    model, x, y = problem()
    opt = hf.HessianFree(model, LOSS)
    seen = []
    opt.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    opt.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    opt.step((x, y))
    assert seen == ["before", "after"]


def through_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


def through_torch_save(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", ["mlp", "rnn", "module", "objective"])
def test_copies_go_on_with_their_own_model(way, steps, kind) -> None:
    model, x, y = problem(torch.float32)
    data = (x, y)
    options = {"damping": 0.3, "structural": 0.0 if kind == "objective" else 0.05}
    if kind == "rnn":
        model = hf.RNN(3, 5, 2, generator=torch.Generator().manual_seed(0))
        data = (x.view(1, 17, 3).expand(4, 17, 3), y.view(1, 17, 2).expand(4, 17, 2))
    if kind == "module":
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        options |= {"structural": {"0": ("tanh", 0.1)}, "strategy": "double_vjp"}
    if kind == "objective":
        opt = hf.HessianFree(model, objective=hf.objective_for(model, LOSS), **options)
    else:
        opt = hf.HessianFree(model, LOSS, **options)
    for _ in range(steps):
        opt.step(data)
    twin, other = way((model, opt))
    before = flat(model)
    stats = other.step(data)
    assert torch.equal(flat(model), before)
    want = opt.step(data)
    assert stats.loss_after == want.loss_after
    assert torch.equal(flat(model), flat(twin))
    assert other.steps == steps + 1
    other.load_state_dict(opt.state_dict())


# ------------------------------------------------------------------------------------------- lr


def test_torchs_schedulers_drive_the_step() -> None:
    model, x, y = problem()
    opt = hf.HessianFree(model, LOSS, damping=0.3, step_size=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: [1.0, 0.5, 0.0, 0.25][min(i, 3)])
    alphas = []
    for _ in range(4):
        before = flat(model)
        stats = opt.step((x, y))
        alphas.append(stats.alpha)
        assert stats.accepted
        assert torch.equal(flat(model), before) == (stats.alpha == 0.0)
        scheduler.step()
    assert alphas == [0.5, 0.25, 0.0, 0.125]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 3),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.25, 1.0, 3),
        lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 3),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=6, cycle_momentum=False),
    ],
)
def test_a_line_search_begins_at_lr(make) -> None:
    model, x, y = problem()
    opt = hf.HessianFree(model, LOSS, damping=0.3)
    scheduler = make(opt)
    for _ in range(4):
        lr = opt.param_groups[0]["lr"]
        stats = opt.step((x, y))
        assert stats.accepted
        assert stats.alpha == pytest.approx(lr)
        scheduler.step()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt)
    plateau.step(opt.step((x, y)).loss)


def test_lr_of_every_kind_of_number() -> None:
    for lr in (np.float32(0.5), torch.tensor(0.5), 0.5):
        model, x, y = problem()
        assert hf.HessianFree(model, LOSS, lr=lr, step_size=0.5).step((x, y)).alpha == 0.25


# ---------------------------------------------------------------------------- preconditioners


class Inverse:
    """The exact inverse of the solve's matrix, made anew before every solve."""

    def __init__(self) -> None:
        self.updates = []

    def update(self, curvature, damping, theta) -> None:
        self.updates.append(damping)
        eye = torch.eye(len(theta), dtype=theta.dtype)
        self.A = torch.stack([curvature.product(v, damping=damping) for v in eye])

    def apply(self, r, out):
        return out.copy_(torch.linalg.solve(self.A, r))

    def state_dict(self):
        return {"updates": list(self.updates)}

    def load_state_dict(self, state):
        self.updates = state["updates"]


def test_an_exact_inverse_needs_one_iteration() -> None:
    model, x, y = problem()
    before, M = flat(model), Inverse()
    A = hf.GaussNewton(model, LOSS, x, y, damping=0.3) @ torch.eye(len(before), dtype=D)
    opt = hf.HessianFree(
        model, LOSS, damping=0.3, preconditioner=M, cg_residual=1e-8, step_size=1.0
    )
    stats = opt.step((x, y))
    assert (stats.cg_iterations, M.updates) == (1, [0.3])
    objective = hf.objective_for(model, LOSS)
    g = objective.gradient(objective.prepare(hf.Batch(x, y)), before)[1]
    torch.testing.assert_close(flat(model) - before, -torch.linalg.solve(A, g))
    # Not in the state, which is plain; what it says of itself comes back.
    state = opt.state_dict()
    twin = copy.deepcopy(model)
    other = hf.HessianFree(twin, LOSS, preconditioner=Inverse(), cg_residual=1e-8)
    other.load_state_dict(copy.deepcopy(state))
    assert other.param_groups[0]["preconditioner"].updates == [0.3]
    assert other.step((x, y)).loss_after == opt.step((x, y)).loss_after
    with pytest.raises(ValueError, match="preconditioner: the state is of a run with an operator"):
        hf.HessianFree(twin, LOSS).load_state_dict(state)
    for bad in (Inverse, object(), 3):
        with pytest.raises(TypeError, match="preconditioner: got"):
            hf.HessianFree(model, LOSS, preconditioner=bad)


# ---------------------------------------------------------------------------------------- states


def test_the_state_of_another_net_or_optimiser_is_refused() -> None:
    model, x, y = problem()
    opt = hf.HessianFree(model, LOSS)
    opt.step((x, y))
    turned = nn.ParameterList([nn.Parameter(p.detach().t().clone()) for p in model.parameters()])
    fewer = nn.ParameterList(list(turned)[:2])
    single = problem(torch.float32)[0]
    adam = torch.optim.Adam(model.parameters())
    nag = hf.NAG(model, lr=0.1)
    for other, message in (
        (hf.HessianFree(turned), r"parameter 0 has shape \[5, 3\], need \[3, 5\]"),
        (hf.HessianFree(fewer), "has 4 parameters, need 2"),
        (hf.HessianFree(single, LOSS), "cg_last is a torch.float64 .* need a torch.float32"),
        (nag, "need 'velocity'"),
    ):
        before = other.state_dict()
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(opt.state_dict())
        assert other.state_dict() == before
    for theirs in (adam, nag):
        with pytest.raises(ValueError, match="need the state of a HessianFree"):
            opt.load_state_dict(theirs.state_dict())
    opt.load_state_dict(opt.state_dict())


# ------------------------------------------------------------------------------------ λ's bounds


def test_bounds_of_damping() -> None:
    bounds, rule = DampingBounds(scale=10.0, eps=1e-7), LevenbergMarquardt()
    assert rule.next(1.0, 0.9, bounds=bounds) == 1.0 * (2 / 3)
    assert rule.next(1.0, 0.5, bounds=bounds) == 1.0
    assert rule.next(1.0, 0.1, bounds=bounds) == 1.5
    assert rule.next(1.2e-6, 0.9, bounds=bounds) == pytest.approx(1e-6)  # eps·s
    assert rule.next(1e-9, 0.9, bounds=bounds) == 1e-9  # given below it: left
    assert rule.next(9e7, 0.0, bounds=bounds) == pytest.approx(1e8)  # s/eps
    assert rule.next(1e9, 0.0, bounds=bounds) == 1e9
    assert rule.next(0.0, 0.0, bounds=bounds) == pytest.approx(1e-2)
    assert rule.next(0.0, 0.9, bounds=bounds) == 0.0
    assert rule.next(1e-30, math.nan, bounds=bounds) == pytest.approx(1e-5)


def test_damping_of_zero_rises_after_a_failed_step() -> None:
    """Newton's step on √(1 + s²) from s = 2 lands at −8: f rises, with any small λ too."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)

    def closure():
        s = model(torch.ones(1, 1, dtype=D))
        return (1 + s.square()).sqrt().sum(), s

    opt = hf.HessianFree(
        model, damping=0.0, cg_backtracking="last", step_size=1e-9, strategy="double_vjp"
    )
    first = opt.step(closure)
    assert first.rho == -math.inf
    # s = pᵀAp/pᵀp is the second derivative, 5^(−3/2).
    assert first.damping_next == pytest.approx(1e-3 * 5**-1.5, rel=1e-6)
    rhos = [opt.step(closure).rho for _ in range(25)]
    assert rhos[-1] > 0.25


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("kind", ["regression", "linear", "constant"])
def test_a_run_that_stays_at_its_minimum_says_so_and_goes_on(kind, dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=g, dtype=dtype)
    model = hf.MLP([4, 3], ["linear"], dtype=dtype, generator=g)
    y = torch.rand(30, 3, generator=g, dtype=dtype)
    loss: hf.losses.Loss = LOSS
    if kind == "regression":
        loss, y = hf.losses.SoftmaxCrossEntropy(), torch.randint(3, (30,), generator=g)
    if kind == "constant":
        y = torch.full((30, 3), 0.25, dtype=dtype)
    opt = hf.HessianFree(model, loss, damping=1.0, l2=1e-2)
    stats = [opt.step((x, y)) for _ in range(150)]
    assert all(math.isfinite(s.damping) and s.damping_next < 1e20 for s in stats)
    scale = opt.state[next(iter(model.parameters()))]["curvature_scale"]
    assert opt.damping >= 0.99 * torch.finfo(dtype).eps * scale
    end = [s for s in stats if s.converged]
    assert end
    assert any("converged" in m or "gradient is zero" in m for m in end[0].messages)
    assert min(s.loss for s in stats) == pytest.approx(stats[-1].loss, rel=1e-5)
    assert all(s.damping_next == s.damping for s in end)  # it would pass every bound in the end
    assert dataclasses.asdict(end[0])["converged"] is True


def test_lambda_does_not_fall_for_ever() -> None:
    """A quadratic function, other targets every step: ρ is 1 and λ falls to its bound."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=g)
    model = hf.MLP([4, 1], ["linear"], generator=g)
    opt = hf.HessianFree(model, LOSS, damping=1.0)
    stats = [opt.step((x, torch.randn(30, 1, generator=g))) for _ in range(100)]
    scale = opt.state[next(iter(model.parameters()))]["curvature_scale"]
    assert opt.damping >= 0.1 * torch.finfo(torch.float32).eps * scale
    assert any("lower bound" in m for s in stats for m in s.messages)


# -------------------------------------------------------------------------------------- circles


def test_problems_do_not_import_presets() -> None:
    for file in (Path(hf.__file__).parent / "problems").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in getattr(node, "names", [])] if hasattr(node, "names") else []
            assert "presets" not in f"{getattr(node, 'module', '')} {names}", file


# --------------------------------------------------------------------- what is no model or closure


@pytest.mark.parametrize("value", [3, 2.5, "net", torch.tensor(1.0), {"a": 1}, np.float32(1)])
def test_what_is_no_model_is_named(value) -> None:
    _, x, y = problem()
    for call, name in (
        (lambda: hf.HessianFree(value), "model"),
        (lambda: hf.GaussNewton(value, LOSS, x, y), "model"),
        (lambda: hf.check_curvature(value, LOSS, x, y), "model"),
        (lambda: hf.SGD(value, 0.1), "params"),
        (lambda: hf.NAG(value, 0.1), "params"),
        (lambda: hf.AdaptiveNAG(value), "params"),
        (lambda: hf.NonlinearCG(value), "params"),
        (lambda: hf.SGD(problem()[0], 0.1).step(value), "step"),
        (lambda: hf.NAG(problem()[0], 0.1).step(value), "step"),
        (lambda: hf.AdaptiveNAG(problem()[0]).step(value), "closure"),
        (lambda: hf.NonlinearCG(problem()[0]).step(value), "closure"),
        (lambda: hf.AdaptiveNAG(problem()[0]).step(lambda: 1.0, value), "loss"),
    ):
        with pytest.raises(TypeError, match=f"{name}: got"):
            call()
    for bad in ("fast", [0.1], object()):
        with pytest.raises(TypeError, match="lr: got"):
            hf.AdaptiveNAG(problem()[0], lr=bad)
