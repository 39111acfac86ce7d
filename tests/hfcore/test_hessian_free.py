"""hf.HessianFree: one step in all its parts, its state, its failures, and that it learns."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.nets import FusedObjective, net_of
from hfcore.optimisers.backtracking import IterateChooser
from hfcore.optimisers.roles import prepare_roles
from hfcore.solvers.conjugate_gradient import NONFINITE, NONPOSITIVE, Solution


def problem(
    T: int = 6, B: int = 20, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[hf.RNN, list[hf.Batch]]:
    g = torch.Generator().manual_seed(seed)
    model = hf.RNN(2, 9, 1, dtype=dtype, generator=g)
    batches = []
    for _ in range(4):
        x = torch.randn(T, B, 2, generator=g, dtype=dtype)
        y = torch.tanh(x.sum(-1, keepdim=True).cumsum(0))
        batches.append(hf.Batch(x, y, None))
    return model, batches


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


OPTIONS = {"damping": 0.5, "structural": 0.03}


def test_loss_falls_and_statistics_are_whole() -> None:
    model, batches = problem()
    opt = hf.HessianFree(model, hf.losses.SquaredError(), **OPTIONS)
    first = opt.step(batches)
    losses = [first.loss]
    for _ in range(15):
        losses.append(opt.step(batches).loss)
    assert losses[-1] < 0.05 * losses[0]
    record = dataclasses.asdict(first)
    json.dumps(record)
    assert first.accepted
    assert first.alpha == 1.0
    assert first.gradients == 4
    # CG: one product an iteration; the warm start is zero and costs none.
    assert first.products == first.cg_iterations
    assert first.minibatches == first.products + 4
    assert 0 < first.cg_kept <= first.cg_iterations
    assert first.loss_after < first.line_search_loss
    assert first.step_norm > 0
    assert sum(v for k, v in first.seconds.items() if k != "total") <= first.seconds["total"]


def test_statistics_count_what_was_spent(monkeypatch) -> None:
    model, batches = problem()
    opt = hf.HessianFree(model, hf.losses.SquaredError(), **OPTIONS)
    counts = {"loss": 0, "gradient": 0}
    for name in counts:
        original = getattr(FusedObjective, name)

        def counted(self, data, theta, name=name, original=original):
            counts[name] += len(data)
            return original(self, data, theta)

        monkeypatch.setattr(FusedObjective, name, counted)
    stats = opt.step(batches)
    assert stats.gradients == counts["gradient"]
    # The curvature's own forward pass gives the base value of ρ.
    assert stats.objective_evaluations == counts["loss"] + 1


def test_roles_use_their_own_data(monkeypatch) -> None:
    model, batches = problem()
    seen: dict[str, set[int]] = {"loss": set(), "gradient": set(), "curvature": set()}
    for name in seen:
        original = getattr(FusedObjective, name)

        def spy(self, data, theta, name=name, original=original):
            seen[name].update(int(part.x.data_ptr()) for part in data)
            return original(self, data, theta)

        monkeypatch.setattr(FusedObjective, name, spy)
    pointers = [b.inputs.data_ptr() for b in batches]
    opt = hf.HessianFree(model, hf.losses.SquaredError(), **OPTIONS)
    opt.step(
        hf.Batches(
            gradient=batches[0],
            curvature=batches[1],
            backtracking=batches[2],
            line_search=batches[3],
        )
    )
    assert seen["gradient"] == {pointers[0]}
    assert seen["curvature"] == {pointers[1]}
    assert seen["loss"] == {pointers[1], pointers[2], pointers[3]}
    for values in seen.values():
        values.clear()
    opt.step(batches)
    assert seen["gradient"] == set(pointers)
    assert seen["curvature"] == {pointers[0]}
    assert seen["loss"] == {pointers[0], pointers[1], pointers[2]}


@pytest.mark.parametrize("convention", ["damped", "undamped"])
def test_rho_is_the_objectives_change_on_its_own_data(convention) -> None:
    """Five roles, five batches: f of ρ on the fifth, q on the curvature's (dense)."""
    model, batches = problem()
    extra = problem(seed=5)[1][0]
    before = flat(model)
    loss = hf.losses.SquaredError()
    opt = hf.HessianFree(
        model, loss, damping=0.5, cg_backtracking="last", rho=convention, line_search_max=1
    )
    data = hf.Batches(batches[0], batches[1], batches[2], batches[3], rho=extra)
    stats = opt.step(data)
    assert stats.alpha == 1.0
    p = flat(model) - before
    objective = hf.objective_for(model, loss)
    f = [objective.loss(objective.prepare(extra), theta) for theta in (before, before + p)]
    gradient = objective.gradient(objective.prepare(batches[0]), before)[1]
    Bp = objective.curvature(objective.prepare(batches[1]), before).product(p)
    q = float(gradient @ p + 0.5 * p @ Bp)
    if convention == "damped":
        q += 0.5 * 0.5 * float(p @ p)
    assert stats.rho == pytest.approx((f[1] - f[0]) / q, rel=1e-9)


def test_values_that_are_known_are_not_computed_again_for_rho(monkeypatch) -> None:
    """ρ on all data, as the paper of 2010 has it, costs nothing beside backtracking and search."""
    model, batches = problem()
    steps = {}
    for rho in ("curvature", "gradient"):
        net = copy.deepcopy(model)
        policy = hf.minibatches.FullGradient(
            batches[0].inputs, batches[0].targets, curvature_batches=3, rho=rho, batch_dim=1
        )
        opt = hf.HessianFree(net, hf.losses.SquaredError(), **OPTIONS)
        steps[rho] = opt.step(policy(0))
    on_part, on_all = steps["curvature"], steps["gradient"]
    assert on_all.cg_iterations == on_part.cg_iterations
    assert on_all.rho != on_part.rho
    assert on_all.alpha == on_part.alpha == 1.0
    # One evaluation less: that of the part at θ + p.
    assert on_all.objective_evaluations == on_part.objective_evaluations - 1
    q = (on_all.loss_after - on_all.line_search_loss) / on_all.rho
    assert q < 0
    # The same objective on lists of the same parts is the same data.
    net = copy.deepcopy(model)
    opt = hf.HessianFree(net, hf.losses.SquaredError(), **OPTIONS)
    stats = opt.step(hf.Batches(batches, batches[0], batches, batches, rho=list(batches)))
    assert stats.objective_evaluations == 1 + 4 * (1 + _tried(stats) + 1)


def _tried(stats: hf.StepStats) -> int:
    """Evaluations of "best" backtracking: every tenth iterate and the last."""
    return stats.cg_iterations // 10 + (stats.cg_iterations % 10 > 0)


def test_roles_given_as_lists_use_their_own_data() -> None:
    """Batches that a role's list makes on its way must not stand in for those of another role."""

    class Values:
        def prepare(self, batch):
            return [float(batch.inputs.flatten()[0])]

    def batch(value: float) -> tuple:
        return torch.full((1, 1, 1), value), torch.zeros(1, 1, 1)

    for kind in (tuple, lambda pair: hf.Batch(*pair)):
        batches = [kind(batch(float(i))) for i in range(7)]
        roles = prepare_roles(
            Values(), hf.Batches(batches[:2], batches[2:4], [batches[4]], batches[5:])
        )
        got = (roles.gradient, roles.curvature, roles.backtracking, roles.line_search)
        assert got == ([0, 1], [2, 3], [4], [5, 6])
        assert roles.rho == [2, 3]
        own = prepare_roles(Values(), hf.Batches(batches[:2], rho=[batches[6], batches[0]]))
        assert own.rho == [6, 0]
    with pytest.raises(TypeError, match="line_search: got a tuple of tensors"):
        prepare_roles(Values(), hf.Batches(hf.Batch(*batch(0.0)), line_search=batch(1.0)))


def test_backends_take_the_same_steps() -> None:
    paths = {}
    for backend in ("reference", "cpu"):
        model, batches = problem()
        with hf.use_backend(backend):
            opt = hf.HessianFree(model, hf.losses.SquaredError(), **OPTIONS)
            stats = [opt.step(batches) for _ in range(2)]
        paths[backend] = (flat(model), [s.cg_iterations for s in stats])
    assert paths["reference"][1] == paths["cpu"][1]
    # CG multiplies rounding differences by its condition number: 1e-16 · 1e8 and some room.
    torch.testing.assert_close(paths["reference"][0], paths["cpu"][0], rtol=1e-6, atol=1e-8)


def test_closure_path_takes_the_steps_of_the_fused_path() -> None:
    """The same objective through autograd and through the kernels."""
    paths = []
    for use_closure in (False, True):
        model, batches = problem()
        x, y, _ = batches[0]
        loss = hf.losses.SquaredError()
        opt = hf.HessianFree(model, loss, damping=0.5, l2=1e-3)

        def closure(model=model, x=x, y=y):
            s = model(x)
            return 0.5 * ((s - y) ** 2).sum() / x.shape[1], s

        stats = [opt.step(closure if use_closure else (x, y)) for _ in range(2)]
        paths.append((flat(model), [(s.cg_iterations, s.alpha) for s in stats], stats[-1].loss))
    assert paths[0][1] == paths[1][1]
    torch.testing.assert_close(paths[0][0], paths[1][0], rtol=1e-5, atol=1e-7)
    assert paths[0][2] == pytest.approx(paths[1][2], rel=1e-7)


def test_least_squares_is_solved_in_one_step() -> None:
    g = torch.Generator().manual_seed(1)
    model = nn.Linear(5, 2).double()
    x = torch.randn(40, 5, generator=g, dtype=torch.float64)
    y = torch.randn(40, 2, generator=g, dtype=torch.float64)

    def closure():
        s = model(x)
        return 0.5 * ((s - y) ** 2).sum() / 40, s

    opt = hf.HessianFree(model, damping=1e-12, cg_tolerance=0.0, cg_max_iter=100)
    stats = opt.step(closure)
    X = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(X, y).solution
    torch.testing.assert_close(model.weight.detach(), best[:5].T, rtol=1e-7, atol=1e-8)
    assert stats.rho == pytest.approx(1.0, abs=1e-6)
    assert stats.damping_next == pytest.approx(1e-12 * 2 / 3)


@pytest.mark.parametrize("structural", [0.0, 0.5])
def test_rho_conventions(structural) -> None:
    """Damped: φ of the damped model; undamped: without λ, recomputed by one more product."""
    rhos, products = {}, {}
    for convention in ("damped", "undamped"):
        model, batches = problem()
        opt = hf.HessianFree(
            model, hf.losses.SquaredError(), damping=2.0, structural=structural, rho=convention
        )
        theta = flat(model)
        stats = opt.step(batches[:1])
        rhos[convention], products[convention] = stats.rho, stats.products
        p = (flat(model) - theta) / stats.alpha
        moved = flat(model)
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        x, y, _ = batches[0]
        lam = 2.0 if convention == "damped" else 0.0
        mu = structural if convention == "damped" else 0.0
        G = hf.GaussNewton(model, hf.losses.SquaredError(), x, y, damping=lam, structural=mu)
        objective = FusedObjective(net_of(model, hf.losses.SquaredError()))
        data = objective.prepare(batches[0])
        f0, g = objective.gradient(data, theta)
        q = float(0.5 * p @ (G @ p) + g @ p)
        assert stats.rho == pytest.approx((objective.loss(data, moved) - f0) / q, rel=1e-6)
    assert products["undamped"] == products["damped"] + 1
    assert rhos["undamped"] != rhos["damped"]


def test_l2_pulls_towards_zero() -> None:
    model, batches = problem()
    opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=0.1, l2=10.0)
    before = flat(model).norm()
    for _ in range(5):
        opt.step(batches)
    assert flat(model).norm() < 0.5 * before


def test_warm_start_is_the_decayed_last_iterate() -> None:
    model, batches = problem()
    opt = hf.HessianFree(model, hf.losses.SquaredError(), cg_decay=0.5, **OPTIONS)
    opt.step(batches)
    last = opt.state[next(model.parameters())]["cg_last"]
    assert last.any()
    second = opt.step(batches)
    # A start that is not zero costs one product for its residual.
    assert second.products == second.cg_iterations + 1


def test_automatic_damping_is_a_tenth_of_the_length() -> None:
    model, batches = problem(T=7)
    opt = hf.HessianFree(model, hf.losses.SquaredError())
    assert opt.damping == "auto"
    assert opt.step(batches).damping == pytest.approx(0.7)


@pytest.mark.parametrize("walk", [False, True])
def test_state_dict_continues_bitwise(walk) -> None:
    options = {**OPTIONS, "cg_backtracking": "walk" if walk else "best"}
    model, batches = problem(dtype=torch.float32)
    opt = hf.HessianFree(model, hf.losses.SquaredError(), **options)
    for _ in range(3):
        opt.step(batches)
    twin, _ = problem(seed=5, dtype=torch.float32)
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    other = hf.HessianFree(twin, hf.losses.SquaredError())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(3):
        a, b = opt.step(batches), other.step(batches)
        assert (a.loss, a.rho, a.damping, a.cg_iterations) == (
            b.loss,
            b.rho,
            b.damping,
            b.cg_iterations,
        )
    assert torch.equal(flat(model), flat(twin))


def test_same_bits_for_any_number_of_threads() -> None:
    ends = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model, batches = problem(B=70, dtype=torch.float32)
            opt = hf.HessianFree(model, hf.losses.SquaredError(), **OPTIONS)
            for _ in range(3):
                opt.step(batches)
            ends.append(flat(model))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


# ---------------------------------------------------------------------------- when it goes wrong


def test_step_that_does_not_help_is_rejected_and_nothing_is_lost() -> None:
    """On the line search data the targets are the present outputs: nothing can be better."""
    model, batches = problem()
    x = batches[1].inputs
    with torch.no_grad():
        perfect = hf.Batch(x, model(x), None)
    opt = hf.HessianFree(model, hf.losses.SquaredError(), **OPTIONS)
    before = flat(model)
    stats = opt.step(hf.Batches(gradient=batches[0], line_search=perfect))
    assert not stats.accepted
    assert stats.alpha == 0.0
    assert stats.step_norm == 0.0
    assert torch.equal(flat(model), before)
    assert any("line search found no decrease" in m for m in stats.messages)
    assert "cg_last" not in opt.state[next(model.parameters())]
    lasting = hf.HessianFree(model, hf.losses.SquaredError(), cg_restart=False, **OPTIONS)
    stats = lasting.step(hf.Batches(gradient=batches[0], line_search=perfect))
    assert not stats.accepted
    assert lasting.state[next(model.parameters())]["cg_last"].any()


def test_a_zero_gradient_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=0.5)
    stats = opt.step((x, model(x).detach()))
    assert stats.messages == ("the gradient is zero: nothing to do",)
    assert (stats.accepted, stats.damping_next, stats.products) == (False, 0.5, 0)


def test_negative_curvature_stops_cg_and_says_so() -> None:
    torch.manual_seed(40)  # of other nets CG may reach its tolerance first
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(8, 3, dtype=torch.float64)

    def closure():
        s = model(x)
        return -(s**2).sum() + s.sum() ** 4, s  # indefinite in the outputs

    opt = hf.HessianFree(model, damping=1e-3)
    stats = opt.step(closure)
    assert stats.cg_stop == NONPOSITIVE
    assert any("no positive curvature" in m for m in stats.messages)


def test_objective_that_explodes_raises_damping_and_retries() -> None:
    """Every iterate at small λ leaves the domain; λ grows within the step until one does not."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)

    def closure():
        s = model(torch.ones(1, 1, dtype=torch.float64))
        return (s - 0.5 * torch.log(s)).sum(), s  # minimum at ½, NaN for s < 0

    # Gradient ¾, L'' = ⅛: the step −¾/(⅛ + λ) stays right of 0 from λ = ¼ on.
    opt = hf.HessianFree(model, damping=0.05)
    stats = opt.step(closure)
    assert stats.damping == pytest.approx(0.05 * 1.5**4)
    assert stats.accepted
    assert any("λ raised" in m for m in stats.messages)
    assert np.isfinite(stats.loss_after)


class _Broken(FusedObjective):
    """Curvature that is not finite below a certain λ, as after an overflow."""

    threshold = 1.0

    def curvature(self, data, theta):
        inner = super().curvature(data, theta)
        original = inner.product

        def product(v, *, damping=0.0, structural=0.0, out=None, stop=None):
            result = original(v, damping=damping, structural=structural, out=out, stop=stop)
            return result.fill_(float("nan")) if damping < self.threshold else result

        inner.product = product  # type: ignore[method-assign]
        return inner


@pytest.mark.parametrize("threshold", [1.0, 1e9])
def test_curvature_that_is_not_finite_raises_damping(threshold, monkeypatch) -> None:
    model, batches = problem()
    monkeypatch.setattr(_Broken, "threshold", threshold)
    broken = _Broken(net_of(model, hf.losses.SquaredError()))
    opt = hf.HessianFree(model, objective=broken, damping=0.5)
    before = flat(model)
    stats = opt.step(batches)
    assert any(NONFINITE in m for m in stats.messages)
    assert stats.damping > 0.5
    if threshold == 1.0:
        assert stats.accepted
        assert stats.damping == pytest.approx(0.5 * 1.5**2)
    else:
        assert not stats.accepted
        assert torch.equal(flat(model), before)
        assert any("rejected" in m for m in stats.messages)


def test_parameters_that_are_not_finite_are_an_error_and_stay() -> None:
    model, batches = problem()
    opt = hf.HessianFree(model, hf.losses.SquaredError(), **OPTIONS)
    with torch.no_grad():
        model.b_h[2] = float("inf")
    before = flat(model)
    with pytest.raises(ValueError, match="parameter b_h holds NaN or Inf"):
        opt.step(batches)
    assert torch.equal(flat(model), before)


def test_scalar_closure_raises_and_says_why() -> None:
    model = nn.Linear(2, 1)
    opt = hf.HessianFree(model)
    with pytest.raises(TypeError, match=r"\(loss, outputs\).*split at the model's outputs"):
        opt.step(lambda: model(torch.ones(1, 2)).sum())
    with pytest.raises(TypeError, match="need a pair of tensors"):
        opt.step(lambda: (1, 2, 3))
    with pytest.raises(ValueError, match="was not computed from the outputs"):
        opt.step(lambda: (model(torch.ones(1, 2)).sum(), model(torch.ones(1, 2))))


def test_bad_arguments_are_named() -> None:
    model, batches = problem()
    loss = hf.losses.SquaredError()
    for name in ("damping", "structural", "l2", "cg_decay"):
        with pytest.raises(ValueError, match=f"{name}: got -1"):
            hf.HessianFree(model, loss, **{name: -1.0})
    with pytest.raises(ValueError, match="cg_backtracking: got 'no'"):
        hf.HessianFree(model, loss, cg_backtracking="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cg_evaluate_every: got 0"):
        hf.HessianFree(model, loss, cg_evaluate_every=0)
    with pytest.raises(ValueError, match="cg_max_iter: got 0"):
        hf.HessianFree(model, loss, cg_max_iter=0)
    with pytest.raises(TypeError, match="loss: got str"):
        hf.HessianFree(model, "squared")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: got str"):
        hf.HessianFree("model", loss)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no trainable parameters"):
        hf.HessianFree(nn.ReLU())
    opt = hf.HessianFree(model, loss, **OPTIONS)
    with pytest.raises(TypeError, match="step: got int"):
        opt.step(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="step: got a tuple of 1"):
        opt.step((batches[0].inputs,))
    with pytest.raises(TypeError, match="batches need a module and a loss"):
        hf.HessianFree(nn.Linear(1, 1)).step((batches[0].inputs, batches[0].targets))
    with pytest.raises(ValueError, match="structural: a number needs"):
        hf.HessianFree(nn.Linear(1, 1), structural=0.1).step(lambda: None)  # type: ignore
    with pytest.raises(ValueError, match="gradient: got no batch"):
        opt.step(hf.Batches(gradient=[]))
    model.W_hh.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        hf.HessianFree(model, loss)


def test_closure_on_a_net_with_convolution_and_frozen_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 4)).double()
    model[0].bias.requires_grad_(False)
    frozen = model[0].bias.detach().clone()
    x, y = torch.randn(30, 1, 8).double(), torch.randint(4, (30,))
    opt = hf.HessianFree(model, damping=1.0)

    def closure():
        s = model(x)
        return nn.functional.cross_entropy(s, y), s

    losses = [opt.step(closure).loss for _ in range(12)]
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(model[0].bias, frozen)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_short_addition_is_solved(backend) -> None:
    """Long-range credit that a linear read-out cannot give: under 1 % wrong on fresh sequences."""
    task = hf.problems.Addition(length=12)
    model = hf.RNN(2, 30, 1)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    data = np.random.default_rng(0)
    fresh = task.batch(2000, np.random.default_rng(1))
    with hf.use_backend(backend):
        opt = hf.HessianFree(model, task.loss, **hf.presets.rnn2011)
        for _ in range(80):
            opt.step([task.batch(500, data) for _ in range(4)])
            with torch.no_grad():
                if task.wrong(model(fresh.inputs), fresh).float().mean() < 0.01:
                    return
    pytest.fail("addition at T = 12 was not solved in 80 steps")


@pytest.mark.parametrize(
    ("mode", "best"), list(itertools.product(["best", "walk"], [3, 7])), ids=str
)
def test_backtracking_picks_the_right_iterate(mode, best) -> None:
    """Objective values along CG are scripted; the iterate with the lowest must be kept."""
    values = {i: abs(i - best) + 1.0 for i in range(1, 11)}
    chooser = IterateChooser(lambda p: values[int(p[0])], points=range(1, 100), mode=mode)
    for i in values:
        assert not chooser.observe(i, torch.tensor([float(i)]), -float(i))
    kept = chooser.choose(Solution(torch.tensor([10.0]), "end", 10, [-float(i) for i in range(11)]))
    assert kept is not None
    assert kept.p is not None
    assert (kept.iteration, float(kept.p[0]), kept.model_change) == (best, best, -best)


def test_walk_stops_at_the_first_rise_and_best_does_not() -> None:
    values = {1: 0.5, 2: 3.0, 3: 1.0, 4: 2.0}
    chosen = {}
    for mode in ("walk", "best"):
        chooser = IterateChooser(lambda p: values[int(p[0])], points=range(1, 100), mode=mode)
        for i in values:
            chooser.observe(i, torch.tensor([float(i)]), 0.0)
        kept = chooser.choose(Solution(torch.tensor([4.0]), "end", 4, [0.0] * 5))
        chosen[mode] = kept and kept.iteration
    assert chosen == {"walk": 3, "best": 1}


def test_loss_increase_stop_waits_for_its_iteration() -> None:
    values = {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}
    chooser = IterateChooser(
        lambda p: values[int(p[0])], points=range(10, 300, 10), mode="best", increase_after=30
    )
    stops = [chooser.observe(i, torch.tensor([float(i)]), 0.0) for i in values]
    assert stops == [False, False, True, True]
