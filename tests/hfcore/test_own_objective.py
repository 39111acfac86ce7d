"""An objective of one's own: hf.HessianFree, the operators and the check take it, and say what it
does wrong."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from oracles.exact_steps import EXACT

D = torch.float64
N, CASES = 7, 11


def regression() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(CASES, N, generator=g, dtype=D), torch.rand(CASES, generator=g, dtype=D)


class Quantity(nn.Module):
    """Parameters alone: a model only holds them."""

    def __init__(self, dtype: torch.dtype = D) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(3, generator=g, dtype=dtype))
        self.b = nn.Parameter(torch.randn(2, 2, generator=g, dtype=dtype))


class Matrix:
    """What a curvature needs: products of v alone."""

    def __init__(self, G: Tensor) -> None:
        self.G = G

    def product(self, v: Tensor) -> Tensor:
        return self.G @ v


class Logistic:
    """Mean logistic loss of a linear model, with nothing that has a default."""

    def loss(self, data, theta):
        x, y, _ = data
        return nn.functional.binary_cross_entropy_with_logits(x @ theta, y)

    def gradient(self, data, theta):
        x, y, _ = data
        p = torch.sigmoid(x @ theta)
        return Logistic.loss(self, data, theta), x.T @ (p - y) / len(y)

    def curvature(self, data, theta):
        x, y, _ = data
        p = torch.sigmoid(x @ theta)
        return Matrix(x.T @ ((p * (1 - p))[:, None] * x) / len(y))


class Whole(hf.Objective):
    """The same with L2, structural damping by a matrix of its own, diagonals and every kind."""

    supports_structural = True

    def __init__(self, l2: float) -> None:
        self.l2 = l2

    def damping_start(self, data):
        return 0.125

    def minibatches(self, data):
        return 3

    def loss(self, data, theta):
        return float(Logistic().loss(data, theta)) + 0.5 * self.l2 * float(theta @ theta)

    def gradient(self, data, theta):
        return self.loss(data, theta), Logistic().gradient(data, theta)[1] + self.l2 * theta

    def curvature(self, data, theta, kind="ggn"):
        if kind == "fisher":
            raise ValueError("kind: no Fisher matrix here")
        return WholeMatrix(Logistic().curvature(data, theta).G, self.l2)

    def squared_gradients(self, data, theta):
        x, y, _ = data
        return ((torch.sigmoid(x @ theta) - y)[:, None] * x).square().mean(0)


class WholeMatrix:
    def __init__(self, G, l2):
        self.G, self.l2 = G, l2

    def product(self, v, *, damping=0.0, structural=0.0, out=None, stop=None):
        assert stop is None
        S = torch.diag(torch.arange(1.0, N + 1, dtype=v.dtype))
        result = self.G @ v + (self.l2 + damping) * v + structural * (S @ v)
        return result if out is None else out.copy_(result)

    def diagonal(self, probes=None, generator=None):
        return self.G.diagonal().clone()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def dense(theta: Tensor) -> tuple[Tensor, Tensor]:
    """(Hessian, gradient) by torch.func."""
    x, y = regression()
    f = lambda t: nn.functional.binary_cross_entropy_with_logits(x @ t, y)  # noqa: E731
    return torch.func.hessian(f)(theta), torch.func.grad(f)(theta)


# ------------------------------------------------------------------------------- it is a door


def test_the_least_objective_takes_a_dense_newton_step() -> None:
    model = Quantity()
    theta = flat(model)
    H, g = dense(theta)
    stats = hf.HessianFree(model, objective=Logistic(), **EXACT).step(regression())
    assert stats.damping == 1.0  # λ₀ of an objective that names none
    want = -torch.linalg.solve(H + torch.eye(N, dtype=D), g)
    torch.testing.assert_close(flat(model) - theta, want, rtol=1e-9, atol=1e-11)
    assert stats.products == stats.cg_iterations


def test_the_least_objective_is_minimised() -> None:
    model, data = Quantity(), regression()
    opt = hf.HessianFree(model, objective=Logistic(), damping=1e-6, cg_tolerance=0.0)
    for _ in range(20):
        opt.step(data)
    assert float(dense(flat(model))[1].norm()) <= 1e-6


def test_autograd_may_be_used_inside() -> None:
    """Rosenbrock's function by torch.func, from (−1.2, 1) as everywhere."""

    class Rosenbrock(hf.Objective):
        def loss(self, data, theta):
            return (1 - theta[0]) ** 2 + data * (theta[1] - theta[0] ** 2) ** 2

        def gradient(self, data, theta):
            return self.loss(data, theta), torch.func.grad(lambda t: self.loss(data, t))(theta)

        def curvature(self, data, theta):
            return Matrix(torch.func.hessian(lambda t: self.loss(data, t))(theta))

    point = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=D))
    opt = hf.HessianFree([point], objective=Rosenbrock(), damping=1e-3)
    for _ in range(60):
        stats = opt.step(100.0)
        if stats.converged:
            break
    torch.testing.assert_close(point.detach(), torch.ones(2, dtype=D), rtol=1e-6, atol=1e-6)
    H = hf.GaussNewton(objective=Rosenbrock(), inputs=100.0, theta=torch.ones(2, dtype=D))
    want = torch.tensor([[802.0, -400.0], [-400.0, 200.0]], dtype=D)
    torch.testing.assert_close(H @ torch.eye(2, dtype=D), want)


def test_the_whole_interface_is_used() -> None:
    for options, structural in (({}, 0.0), ({"structural": 0.7}, 0.7)):
        model = Quantity()
        theta = flat(model)
        H, g = dense(theta)
        objective = Whole(0.05)
        opt = hf.HessianFree(model, objective=objective, **EXACT, **options)
        assert opt.param_groups[0]["l2"] == 0.05
        stats = opt.step(regression())
        assert (stats.damping, stats.gradients) == (0.125, 3)
        assert stats.products == 3 * stats.cg_iterations
        S = torch.diag(torch.arange(1.0, N + 1, dtype=D))
        A = H + 0.175 * torch.eye(N, dtype=D) + 0.125 * structural * S
        want = -torch.linalg.solve(A, g + 0.05 * theta)
        torch.testing.assert_close(flat(model) - theta, want, rtol=1e-9, atol=1e-11)
        opt.param_groups[0]["l2"] = 0.1  # options go on reaching it
        opt.step(regression())
        assert objective.l2 == 0.1


@pytest.mark.parametrize("name", ["fisher", "ggn_diagonal", "jacobi"])
def test_diagonal_preconditioners_need_what_they_are_made_of(name) -> None:
    moves = []
    for preconditioner in (None, name):
        model = Quantity()
        before = flat(model)
        opt = hf.HessianFree(model, objective=Whole(0.1), **EXACT, preconditioner=preconditioner)
        opt.step(regression())
        moves.append(flat(model) - before)
    torch.testing.assert_close(moves[0], moves[1], rtol=1e-9, atol=1e-11)
    opt = hf.HessianFree(Quantity(), objective=Logistic(), preconditioner=name)
    missing = "squared_gradients" if name == "fisher" else "diagonal: Matrix has none"
    with pytest.raises(ValueError, match=missing):
        opt.step(regression())


def test_data_is_what_prepare_takes() -> None:
    seen = []

    class Reads(Logistic):
        def prepare(self, data):
            seen.append(data)
            x, y = regression()
            return x, y, None

    x, y = regression()
    batches = [hf.Batch(x[:4], y[:4]), hf.Batch(x[4:], y[4:])]
    for given, want in (
        ({"file": "cases"}, [{"file": "cases"}]),
        (17, [17]),
        (hf.Batch(x, y), [hf.Batch(x, y)]),
        ((x, y), [hf.Batch(x, y)]),
        (hf.Batches(batches, batches[0]), [batches[0], batches, batches[1]]),
    ):
        seen.clear()
        hf.HessianFree(Quantity(), objective=Reads()).step(given)
        assert len(seen) == len(want)
        for one, other in zip(seen, want, strict=True):
            assert type(one) is type(other)
            if isinstance(other, list):
                assert all(a is b for a, b in zip(one, other, strict=True))
            elif isinstance(other, hf.Batch):
                assert one.inputs is other.inputs
                assert one.targets is other.targets
            else:
                assert one == other
        hf.GaussNewton(objective=Reads(), inputs=given, theta=torch.zeros(N, dtype=D))


def test_finite_differences_and_state() -> None:
    model, data = Quantity(), regression()
    opt = hf.HessianFree(model, objective=Logistic(), curvature="hessian_fd", damping=0.1)
    opt.step(data)
    twin = Quantity()
    twin.load_state_dict(model.state_dict())
    other = hf.HessianFree(twin, objective=Logistic(), curvature="hessian_fd")
    other.load_state_dict(opt.state_dict())
    assert opt.step(data).loss_after == other.step(data).loss_after
    assert torch.equal(flat(model), flat(twin))
    with pytest.raises(ValueError, match="the curvature of Logistic takes no kind"):
        hf.HessianFree(model, objective=Logistic(), curvature="fisher").step(data)
    with pytest.raises(ValueError, match="kind: no Fisher matrix here"):
        hf.HessianFree(model, objective=Whole(0.0), curvature="fisher").step(data)


def test_the_objective_of_a_net_may_be_given() -> None:
    """The steps, to the bit, that HessianFree takes with the objective it makes itself."""
    ends = []
    for own in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x, y = torch.randn(9, 3, dtype=D), torch.rand(9, 2, dtype=D)
        loss = hf.losses.SquaredError()
        options = {"strategy": "double_vjp", "l2": 0.01}
        if own:
            opt = hf.HessianFree(model, objective=ModuleObjective(model, loss, **options))
        else:
            opt = hf.HessianFree(model, loss, **options)
        assert opt.param_groups[0]["strategy"] == "double_vjp"
        for _ in range(3):
            opt.step([hf.Batch(x[:5], y[:5]), hf.Batch(x[5:], y[5:])])
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_operators_are_the_dense_matrix() -> None:
    x, y = regression()
    theta = flat(Quantity())
    H, _ = dense(theta)
    eye = torch.eye(N, dtype=D)
    for A in (
        hf.GaussNewton(objective=Logistic(), inputs=x, targets=y, theta=theta, damping=0.3),
        hf.GaussNewton(Quantity(), objective=Logistic(), inputs=(x, y, None), damping=0.3),
        hf.Hessian(objective=Whole(0.1), inputs=x, targets=y, theta=theta, damping=0.2),
        hf.Hessian(
            objective=Logistic(), inputs=x, targets=y, theta=theta, damping=0.3,
            method="finite_difference",
        ),
    ):  # fmt: skip
        rough = getattr(A, "method", "") == "finite_difference"
        close = {"rtol": 1e-6, "atol": 1e-8} if rough else {"rtol": 1e-11, "atol": 1e-13}
        want = H + 0.3 * eye
        torch.testing.assert_close(A @ eye, want, **close)
        torch.testing.assert_close(A @ eye[0], want[0], **close)
        torch.testing.assert_close(A.diagonal(), want.diagonal(), **close)
        assert A.trace() == pytest.approx(float(want.trace()), rel=close["rtol"])
        assert A.loss == pytest.approx(float(Logistic().loss((x, y, None), theta)), abs=0.5)
    at_zero = hf.GaussNewton(
        Quantity(), objective=Logistic(), inputs=x, targets=y, theta=torch.zeros(N, dtype=D)
    )
    torch.testing.assert_close(at_zero @ eye, x.T @ x / 4 / CASES, rtol=1e-12, atol=1e-14)


def test_a_models_operator_may_stand_at_other_parameters() -> None:
    loss = hf.losses.SquaredError()
    g = torch.Generator().manual_seed(0)
    model = hf.MLP([3, 4, 2], ["tanh", "linear"], dtype=D, generator=g)
    x, y = torch.randn(5, 3, dtype=D), torch.rand(5, 2, dtype=D)
    theta = 0.5 * flat(model)
    there = hf.GaussNewton(model, loss, x, y, theta=theta)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    here = hf.GaussNewton(model, loss, x, y)
    v = torch.sin(torch.arange(len(theta), dtype=D))
    torch.testing.assert_close(there @ v, here @ v, rtol=1e-13, atol=1e-15)


def test_curvature_check() -> None:
    x, y = regression()
    for objective in (Logistic(), Whole(0.1)):
        report = hf.check_curvature(
            objective=objective, inputs=x.float(), targets=y.float(), model=Quantity(torch.float32)
        )
        assert report.right, str(report)
        names = " ".join(check.name for check in report.checks)
        assert ("H v" in names) == isinstance(objective, Whole)
        assert "G symmetric" in names

    class Skew(Logistic):
        def curvature(self, data, theta):
            right = super().curvature(data, theta)
            right.G[0, 1] += 1.0
            return right

        def gradient(self, data, theta):
            loss, g = super().gradient(data, theta)
            return loss, 1.01 * g

    report = hf.check_curvature(objective=Skew(), inputs=x, targets=y, theta=flat(Quantity()))
    wrong = {check.name.split(":")[0] for check in report.checks if not check.right}
    assert {"gradient", "G symmetric"} <= wrong


# ------------------------------------------------------------------------------- what is refused


def broken(method: str, result: object) -> object:
    """Logistic with one method that gives ``result``, or what that function gives."""

    def give(self, data, theta):
        return result(data, theta) if callable(result) else result

    return type("Broken", (Logistic,), {method: give})()


def write_to(data, theta):
    theta.add_(1.0)
    return 0.0


BAD = [
    ("loss", "low", "objective.loss: gave str as loss, need a number"),
    ("loss", torch.zeros(3), r"objective.loss: gave a torch.float32 of shape [3] as loss"),
    ("loss", write_to, "objective.loss: wrote to theta"),
    ("gradient", 3.0, "objective.gradient: gave float, need (loss, gradient)"),
    ("gradient", (0.0, [1.0]), "objective.gradient: gave list, need a torch.Tensor"),
    ("gradient", (0.0, torch.zeros(3, dtype=D)), "objective.gradient: gave shape [3], need [7]"),
    ("gradient", (0.0, torch.zeros(N, 1, dtype=D)), "objective.gradient: gave shape [7, 1]"),
    ("gradient", (0.0, torch.zeros(N)), "gave torch.float32, need torch.float64"),
    ("gradient", (0.0, torch.zeros(N, dtype=D, device="meta")), "gave a tensor on meta, need cpu"),
    ("gradient", (None, torch.zeros(N, dtype=D)), "objective.gradient: gave NoneType as loss"),
    ("gradient", (float("nan"), torch.zeros(N, dtype=D)), "objective.gradient: gave loss nan"),
    ("gradient", (0.0, torch.full((N,), float("inf"), dtype=D)), "gradient norm inf"),
    ("curvature", torch.eye(N), "objective.curvature: gave Tensor, which has no method product"),
    ("curvature", lambda d, t: Matrix(torch.eye(N)[:3].double()), "product: gave shape [3]"),
    ("damping_start", float("nan"), "objective.damping_start: gave nan"),
]


@pytest.mark.parametrize(
    ("method", "result", "message"), BAD, ids=lambda x: str(x).split(" at 0x")[0]
)
def test_what_an_objective_does_wrong_is_named(method, result, message) -> None:
    objective = broken(method, result)
    if method == "damping_start":
        objective = type("Broken", (Logistic,), {method: lambda self, data: result})()
    model = Quantity()
    before = flat(model)
    opt = hf.HessianFree(model, objective=objective)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        opt.step(regression())
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("method", ["loss", "gradient", "curvature"])
def test_a_missing_method_is_named(method) -> None:
    parts = {name: getattr(Logistic, name) for name in ("loss", "gradient", "curvature")}
    del parts[method]
    x, y = regression()
    for call in (
        lambda o: hf.HessianFree(Quantity(), objective=o),
        lambda o: hf.GaussNewton(Quantity(), objective=o, inputs=x, targets=y),
        lambda o: hf.check_curvature(Quantity(), objective=o, inputs=x, targets=y),
    ):
        with pytest.raises(TypeError, match=f"objective: Part has no method {method}"):
            call(type("Part", (), parts)())
    with pytest.raises(TypeError, match=f"abstract method '?{method}"):
        type("Part", (hf.Objective,), parts)()


def test_what_is_the_objectives_business_is_refused() -> None:
    x, y = regression()
    model, objective, theta = Quantity(), Logistic(), torch.zeros(N, dtype=D)
    for options, message in (
        ({"loss": hf.losses.SquaredError()}, "loss: got .* beside an objective"),
        ({"normalize": "outputs"}, "normalize: got 'outputs' beside an objective"),
        ({"structural": {"0": "tanh"}}, "structural: got .* beside an objective"),
        ({"chunk_size": 3}, "chunk_size: got 3 beside an objective"),
        ({"memory": "recompute"}, "memory: got 'recompute' beside an objective"),
        ({"objective": Logistic}, "objective: got the class Logistic, need an instance"),
    ):
        with pytest.raises(TypeError, match=message):
            hf.HessianFree(model, **{"objective": objective, **options})
    with pytest.raises(ValueError, match=r"l2: got 0\.1, but the objective Logistic has no l2"):
        hf.HessianFree(model, objective=objective, l2=0.1).step((x, y))
    with pytest.raises(ValueError, match="structural"):
        hf.HessianFree(model, objective=objective, structural=0.1).step((x, y))
    for call, message in (
        (lambda: hf.GaussNewton(objective=objective, inputs=x, targets=y), "theta: got None"),
        (lambda: hf.GaussNewton(inputs=x, targets=y), "model: got None"),
        (lambda: hf.GaussNewton(model, hf.losses.SquaredError()), "inputs: got None"),
        (
            lambda: hf.GaussNewton(objective=objective, inputs=x, targets=y, theta=theta.long()),
            "theta: got torch.int64",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    for call, message in (
        (
            lambda: hf.GaussNewton(
                objective=objective, inputs=x, targets=y, theta=theta, structural=1.0
            ),
            "structural: got 1.0, but the objective takes none",
        ),
        (
            lambda: hf.GaussNewton(objective=objective, inputs=x, targets=y, theta=theta / 0),
            "theta: holds NaN or Inf",
        ),
        (
            lambda: hf.GaussNewton(
                objective=broken("loss", float("nan")), inputs=x, targets=y, theta=theta
            ),
            "objective.loss: gave nan",
        ),
        (
            lambda: (
                hf.GaussNewton(model, objective=objective, inputs=x, targets=y, theta=theta[1:])
                @ theta
            ),
            "theta: got shape",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_product_that_is_not_finite_raises_damping_in_a_step() -> None:
    class Overflows(Logistic):
        def curvature(self, data, theta):
            inner = super().curvature(data, theta)

            class Product:
                def product(self, v, damping=0.0):
                    return inner.product(v) + (damping * v if damping > 1.2 else torch.nan)

            return Product()

    model = Quantity()
    stats = hf.HessianFree(model, objective=Overflows(), damping=1.0).step(regression())
    assert stats.damping == 1.5
    assert stats.accepted
