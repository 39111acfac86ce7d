"""hf.NonlinearCG against linear CG, SciPy's and the Wolfe conditions; as a mode of hf.train."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

import hfcore as hf
from command_line import invoke
from hfcore.optimisers.wolfe_search import Trial, WolfeSearch, cubic_minimum
from hfcore.training.run_folder import RunFolder
from hfcore.training.steps import Iteration, combined

F64 = torch.float64


class Function(nn.Module):
    """f of one vector θ ``[N]``."""

    def __init__(self, f: Callable[[Tensor], Tensor], start: Tensor) -> None:
        super().__init__()
        self.f, self.theta = f, nn.Parameter(start.clone())
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += 1
        return self.f(self.theta)

    @property
    def value(self) -> float:
        with torch.no_grad():
            return float(self.f(self.theta))


def closure_of(model: nn.Module, opt: torch.optim.Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        loss: Tensor = model()
        loss.backward()
        return loss

    return closure


def quadratic(N: int = 12) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """½θᵀHθ − bᵀθ with H, b."""
    draw = torch.Generator().manual_seed(2)
    A = torch.randn(N, N, generator=draw, dtype=F64)
    H, b = A @ A.T / N + 0.1 * torch.eye(N, dtype=F64), torch.randn(N, generator=draw, dtype=F64)
    return lambda x: 0.5 * x @ H @ x - b @ x, H, b


def rosenbrock(x: Tensor) -> Tensor:
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def regression(x: Tensor) -> Tensor:
    """Logistic regression with weight decay."""
    draw = torch.Generator().manual_seed(1)
    A = torch.randn(60, len(x), generator=draw, dtype=F64)
    y = (torch.rand(60, generator=draw, dtype=F64) < 0.5).double()
    s = A @ x
    return (torch.nn.functional.softplus(s) - y * s).mean() + 0.01 * x @ x


# ---- directions


def test_on_a_quadratic_it_is_conjugate_gradients() -> None:
    """With searches that find the minimum of the line, iterate by iterate."""
    f, H, b = quadratic()
    model = Function(f, torch.zeros(12, dtype=F64))
    opt = hf.NonlinearCG(
        model, line_searches=1, restart=False, curvature=1e-7, sufficient_decrease=1e-8
    )
    x, r = torch.zeros(12, dtype=F64), b.clone()
    p = r.clone()
    for _ in range(9):
        alpha = r @ r / (p @ H @ p)
        x = x + alpha * p
        new = r - alpha * H @ p
        p = new + (new @ new) / (r @ r) * p
        r = new
        opt.step(closure_of(model, opt))
        torch.testing.assert_close(model.theta.detach(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "f", [None, rosenbrock, regression], ids=lambda f: "quadratic" if f is None else f.__name__
)
@pytest.mark.parametrize("N", [2, 9])
def test_against_scipy(f: Callable[[Tensor], Tensor] | None, N: int) -> None:
    """The same minimum, at no more than twice the evaluations."""
    f = quadratic(N)[0] if f is None else f
    start = torch.linspace(-1.2, 1.0, N, dtype=F64)

    def with_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(x).requires_grad_()
        value = f(at)
        return value.item(), torch.autograd.grad(value, at)[0].numpy()

    theirs = scipy.optimize.minimize(
        with_gradient, start.numpy(), jac=True, method="CG", options={"gtol": 1e-7, "maxiter": 2000}
    )
    model = Function(f, start)
    opt = hf.NonlinearCG(model, line_searches=1, restart=False)
    for _ in range(2000):
        opt.step(closure_of(model, opt))
        assert opt.last_stats is not None
        if float(model.theta.grad.abs().max()) < 1e-7 or opt.last_stats.converged:
            break
    assert model.value == pytest.approx(theirs.fun, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(
        model.theta.detach(), torch.from_numpy(theirs.x), rtol=1e-5, atol=1e-5
    )
    # A step of one search evaluates f where the last one ended once more.
    assert model.calls <= 2 * theirs.nfev + opt.state[model.theta]["steps"] + 10


def test_steps_that_go_on_are_one_step_of_many_searches() -> None:
    one, many = (Function(rosenbrock, torch.full((5,), -0.7, dtype=F64)) for _ in range(2))
    a = hf.NonlinearCG(one, line_searches=1, restart=False)
    b = hf.NonlinearCG(many, line_searches=8)
    for _ in range(8):
        a.step(closure_of(one, a))
    b.step(closure_of(many, b))
    torch.testing.assert_close(one.theta, many.theta, rtol=1e-8, atol=1e-10)


def test_a_restarted_step_begins_with_the_gradient() -> None:
    """Whatever was before: as a new optimiser from the same place."""
    model = Function(rosenbrock, torch.full((5,), -0.7, dtype=F64))
    opt = hf.NonlinearCG(model)
    opt.step(closure_of(model, opt))
    other = copy.deepcopy(model)
    new = hf.NonlinearCG(other)
    opt.step(closure_of(model, opt))
    new.step(closure_of(other, new))
    assert torch.equal(model.theta, other.theta)


def test_every_step_reports_what_it_did() -> None:
    model = Function(rosenbrock, torch.full((5,), -0.7, dtype=F64))
    opt = hf.NonlinearCG(model)
    before = model.value
    assert opt.last_stats is None
    assert opt.step(closure_of(model, opt)) == before
    stats = opt.last_stats
    assert stats is not None
    assert (stats.loss, stats.loss_after) == (before, pytest.approx(model.value, rel=1e-12))
    assert stats.line_searches == 3
    assert stats.line_searches_failed == 0
    assert stats.evaluations == model.calls
    assert stats.accepted
    assert not stats.converged
    assert stats.messages == ()
    assert 0 < stats.seconds["gradient"] < stats.seconds["total"]


# ---- the line search


def lines() -> dict[str, tuple[Callable[[float], float], Callable[[float], float]]]:
    """Functions of α that fall at 0, and their slopes."""
    return {
        "parabola": (lambda a: (a - 3) ** 2, lambda a: 2 * (a - 3)),
        "narrow": (lambda a: 50 * (a - 1e-3) ** 2, lambda a: 100 * (a - 1e-3)),
        "far": (lambda a: -a / (a * a + 2), lambda a: (a * a - 2) / (a * a + 2) ** 2),
        "wall": (
            lambda a: -a - 0.1 * math.log1p(-a) if a < 1 else math.inf,
            lambda a: -1 + 0.1 / (1 - a) if a < 1 else math.nan,
        ),
        "waves": (
            lambda a: math.cos(7 * a) + 0.2 * (a - 4) ** 2 - 0.4 * a,
            lambda a: -7 * math.sin(7 * a) + 0.4 * (a - 4) - 0.4,
        ),
        "flat": (lambda a: math.exp(-a) + 1e-3 * a, lambda a: -math.exp(-a) + 1e-3),
    }


@pytest.mark.parametrize("name", sorted(lines()))
@pytest.mark.parametrize("first", [1e-4, 0.1, 1.0, 40.0, 1e5])
@pytest.mark.parametrize("curvature", [0.1, 0.6])
def test_the_wolfe_conditions_hold(name: str, first: float, curvature: float) -> None:
    f, slope = lines()[name]
    search = WolfeSearch(curvature=curvature, max_evaluations=40)
    start = Trial(0.0, f(0.0), slope(0.0))
    kept: list[Trial] = []
    found = search.search(lambda a: Trial(a, f(a), slope(a)), start, first, kept.append)
    assert found is kept[-1]
    assert found.value <= start.value + 0.05 * found.alpha * start.slope
    assert abs(found.slope) <= curvature * abs(start.slope)
    assert [t.value for t in kept] == sorted((t.value for t in kept), reverse=True)


def test_the_best_trial_is_taken_when_evaluations_end() -> None:
    f, slope = lines()["parabola"]
    search = WolfeSearch(max_evaluations=2, curvature=0.06)
    start = Trial(0.0, f(0.0), slope(0.0))
    found = search.search(lambda a: Trial(a, f(a), slope(a)), start, 1e-3, lambda t: None)
    assert found.alpha == pytest.approx(3e-3)  # one extrapolation, to its limit


def test_the_minimum_of_a_cubic() -> None:
    """x³ − 3x has it at 1; a cubic that only falls has none."""

    def at(x: float) -> Trial:
        return Trial(x, x**3 - 3 * x, 3 * x * x - 3)

    for a, b in ((0.0, 3.0), (3.0, 0.0), (-0.5, 0.7)):
        assert cubic_minimum(at(a), at(b)) == pytest.approx(1.0, abs=1e-12)
    falls = [Trial(x, -(x**3) - x, -3 * x * x - 1) for x in (-1.0, 1.0)]
    assert cubic_minimum(*falls) is None


# ---- no decrease


@pytest.mark.parametrize("restart", [True, False])
def test_no_decrease_is_a_step_of_zero(restart: bool) -> None:
    """With a gradient that points the wrong way; the parameters keep their bits."""
    model = Function(lambda x: x @ x, torch.ones(3, dtype=F64))
    opt = hf.NonlinearCG(model, restart=restart)

    def wrong() -> Tensor:
        loss = closure_of(model, opt)()
        model.theta.grad = -model.theta.grad  # type: ignore[operator]
        return loss

    assert opt.step(wrong) == 3.0
    stats = opt.last_stats
    assert stats is not None
    assert torch.equal(model.theta, torch.ones(3, dtype=F64))
    assert not stats.accepted
    assert stats.converged
    assert (stats.line_searches, stats.line_searches_failed, stats.alpha) == (1, 1, 0.0)
    assert stats.loss_after == stats.loss
    assert "the step is zero" in stats.messages[0]


def test_at_a_minimum_it_stays() -> None:
    model = Function(lambda x: x @ x, torch.zeros(3, dtype=F64))
    opt = hf.NonlinearCG(model)
    opt.step(closure_of(model, opt))
    assert opt.last_stats is not None
    assert opt.last_stats.converged
    assert opt.last_stats.line_searches == 0


def test_a_failed_search_is_followed_by_one_along_the_gradient() -> None:
    f, *_ = quadratic()
    model = Function(f, torch.zeros(12, dtype=F64))
    opt = hf.NonlinearCG(model, line_searches=2, restart=False, max_evaluations=1)
    opt.step(closure_of(model, opt))
    state = opt.state[model.theta]
    state["alpha"] = 1e9  # the one evaluation of the next search is far too far
    before = model.value
    opt.step(closure_of(model, opt))
    assert opt.last_stats is not None
    assert opt.last_stats.line_searches_failed == 1
    assert opt.last_stats.line_searches == 2
    assert model.value < before


# ---- as an optimiser


def test_weight_decay_by_group() -> None:
    """As the penalty in the function itself; of the other group there is none."""
    start = torch.linspace(-1, 1, 6, dtype=F64)
    found = []
    for inside in (True, False):
        a, b = nn.Parameter(start[:4].clone()), nn.Parameter(start[4:].clone())
        decay = 0.0 if inside else 0.3
        opt = hf.NonlinearCG([{"params": [b]}, {"params": [a], "weight_decay": decay}])

        def closure(a: nn.Parameter = a, b: nn.Parameter = b, inside: bool = inside) -> Tensor:
            a.grad = b.grad = None
            loss = rosenbrock(torch.cat([a, b]))
            if inside:
                loss = loss + 0.15 * a @ a
            loss.backward()
            return loss

        losses = [opt.step(closure) for _ in range(4)]
        found.append((torch.cat([a, b]).detach(), losses))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-8, atol=1e-10)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-9)


@pytest.mark.parametrize("restart", [True, False])
def test_resumes_to_the_bit(restart: bool) -> None:
    model = Function(rosenbrock, torch.full((5,), -0.7, dtype=F64))
    opt = hf.NonlinearCG(model, restart=restart)
    for _ in range(3):
        opt.step(closure_of(model, opt))
    other = copy.deepcopy(model)
    again = hf.NonlinearCG(other, restart=restart)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    twin, twin_opt = copy.deepcopy((model, opt))
    for m, o in ((model, opt), (other, again), (twin, twin_opt)):
        for _ in range(3):
            o.step(closure_of(m, o))
    assert torch.equal(model.theta, other.theta)
    assert torch.equal(model.theta, twin.theta)
    assert opt.state_dict()["state"][0]["steps"] == 6


def test_the_net_is_itself_again_after_an_error() -> None:
    model = Function(rosenbrock, torch.full((5,), -0.7))
    opt = hf.NonlinearCG(model)
    place, before, calls = model.theta.data_ptr(), model.theta.detach().clone(), 0

    def fails() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyError("closure")
        return closure_of(model, opt)()

    with pytest.raises(KeyError):
        opt.step(fails)
    assert model.theta.data_ptr() == place
    assert torch.equal(model.theta, before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"line_searches": 0}, ValueError, "line_searches: got 0"),
        ({"line_searches": 1.5}, TypeError, "line_searches: got float"),
        ({"restart": 1}, TypeError, "restart: got int"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay: got -1.0"),
        ({"curvature": 1.0}, ValueError, "sufficient_decrease, curvature: got 0.05 and 1.0"),
        ({"sufficient_decrease": 0.2}, ValueError, "sufficient_decrease, curvature: got 0.2"),
        ({"sufficient_decrease": "x"}, TypeError, "sufficient_decrease: got 'x'"),
        ({"max_evaluations": 0}, ValueError, "max_evaluations: got 0"),
        ({"margin": 0.5}, ValueError, "margin: got 0.5"),
        ({"extrapolation": 1.0}, ValueError, "extrapolation: got 1.0"),
        ({"slope_ratio": float("nan")}, ValueError, "slope_ratio: got nan"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hf.NonlinearCG(Function(rosenbrock, torch.zeros(2)), **options)


def test_refusals() -> None:
    model = Function(rosenbrock, torch.zeros(2))
    opt = hf.NonlinearCG(model)
    for wrong in (None, 3, "closure"):
        with pytest.raises(TypeError, match="closure: got"):
            opt.step(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="closure: takes other arguments"):
        opt.step(lambda x: x)  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"closure: left none as gradient of params\[0\]"):
        opt.step(lambda: torch.zeros(()))

    def infinite() -> Tensor:
        closure_of(model, opt)()
        return torch.tensor(math.nan)

    with pytest.raises(ValueError, match="closure: loss nan"):
        opt.step(infinite)
    for value in (3, "net", torch.ones(2), {"a": 1}):
        with pytest.raises(TypeError, match="params: got"):
            hf.NonlinearCG(value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"need torch\.float32 on cpu"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=F64))]})
    with pytest.raises(ValueError, match="line_searches: got 2 in one group and 3 in another"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "line_searches": 2})
    assert len(opt.param_groups) == 1
    with pytest.raises(ValueError, match="state_dict: has no line_searches"):
        opt.load_state_dict(hf.SGD(model, 0.1).state_dict())
    state = hf.NonlinearCG(model, restart=False).state_dict()
    state["state"] = {0: {"direction": torch.ones(3)}}
    with pytest.raises(ValueError, match=r"its direction has shape \[3\], need \[2\]"):
        opt.load_state_dict(state)


# ---- hf.train


@pytest.fixture
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn in other tests, and take longer than these runs."""
    monkeypatch.setattr(RunFolder, "draw", lambda self, *, solved_below: ())


def trained(folder: Path | None, iterations: int, resume: bool = False, **options: Any) -> Any:
    draw = torch.Generator().manual_seed(0)
    model = hf.Autoencoder([9, 5, 2], dtype=F64, generator=draw)
    x = torch.rand(40, 9, generator=draw, dtype=F64)
    result = hf.train(
        model,
        (x, x),
        hf.NonlinearCG(model, **options),
        batches=hf.minibatches.Epochs(size=13),
        loss=hf.losses.LogisticCrossEntropy(),
        stop=hf.training.Limits(iterations=iterations),
        run_dir=folder,
        resume=resume,
        checkpoint_every=1,
        progress=False,
    )
    return model, x, result


@pytest.mark.usefixtures("_no_plots")
def test_trains_by_hf_train_and_resumes_to_the_bit(tmp_path: Path) -> None:
    whole, x, _ = trained(tmp_path / "whole", 5)
    trained(tmp_path / "run", 2)
    resumed, _, result = trained(tmp_path / "run", 5, resume=True)
    assert result.reason == "iterations"
    assert all(
        torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
    lines = hf.training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["line_searches"] for line in lines] == [9] * 5  # 3 batches a pass, 3 on each
    assert lines[-1]["loss"] < lines[0]["loss"]
    # Work is counted by gradients: 13 cases each.
    counted = [line["gradients"] * 1000 / 13 for line in lines]
    assert all(count == pytest.approx(round(count)) and count >= 9 for count in counted)

    # The same by hand, through autograd.
    model, x, _ = trained(None, 5)
    by_hand = hf.Autoencoder([9, 5, 2], dtype=F64, generator=torch.Generator().manual_seed(0))
    opt = hf.NonlinearCG(by_hand)
    policy = hf.minibatches.Epochs(x, x, size=13)
    for i in range(5):
        for row in policy(i):
            assert isinstance(row.gradient, hf.Batch)
            batch = row.gradient

            def closure(batch: hf.Batch = batch) -> Tensor:
                opt.zero_grad()
                s = by_hand(batch.inputs)
                bce = nn.functional.binary_cross_entropy_with_logits
                loss = bce(s, batch.targets, reduction="sum") / len(s)
                loss.backward()
                return loss

            opt.step(closure)
    torch.testing.assert_close(model(x), by_hand(x), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("_no_plots")
def test_a_run_is_rebuilt_with_its_optimiser(tmp_path: Path) -> None:
    trained(tmp_path / "run", 2, max_evaluations=7)
    loaded = hf.load_run(tmp_path / "run")
    assert isinstance(loaded.optimizer, hf.NonlinearCG)
    assert loaded.optimizer.param_groups[0]["max_evaluations"] == 7


def test_a_pass_has_converged_if_every_step_of_it_has() -> None:
    def step(converged: bool) -> Iteration:
        stats = {"loss": 1.0, "seconds": {}, "converged": converged, "line_searches": 3}
        return Iteration(stats, 1, 0)

    assert combined([step(True), step(False), step(True)]).stats["converged"] is False
    assert combined([step(True), step(True)]).stats["converged"] is True
    assert combined([step(True), step(True)]).stats["line_searches"] == 6


@pytest.mark.usefixtures("_no_plots")
def test_by_the_command(tmp_path: Path) -> None:
    options = ["train", "addition", "--length", "5", "--hidden", "7", "--optimizer", "ncg"]
    refused = invoke(*options, "--lr", "0.1")
    assert refused.exit_code == 2
    assert "--optimizer ncg" in refused.output
    folder = tmp_path / "run"
    result = invoke(*options, "--iterations", "2", "--threads", "1", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    lines = hf.training.read_metrics(folder / "metrics.jsonl")
    assert [line["line_searches"] for line in lines] == [3, 3]
