"""hf.check_curvature and its command: right models pass, every kind of mistake is seen."""

from __future__ import annotations

import math
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import command_line
import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.nets.curvature import FusedCurvature
from hfcore.verify_checks import _asymmetry
from hfcore.verify_report import Check, CurvatureReport
from oracles.custom_tanh import OnceOnly, SavesInput
from oracles.modules import LOSSES, MODELS, task


def wrong(report: CurvatureReport) -> set[str]:
    """The first words of the checks that failed."""
    return {check.name.split(":")[0].split(",")[0] for check in report.checks if not check.right}


@pytest.mark.parametrize("loss", ["softmax", "MSELoss"])
@pytest.mark.parametrize("model", MODELS)
def test_modules_are_right(model, loss) -> None:
    problem = task(model, loss)
    report = hf.check_curvature(
        problem.model, problem.loss, problem.x, problem.y, batch_dim=problem.dim, l2=0.1,
        strategy="double_vjp", coordinates=1, directions=2,
    )  # fmt: skip
    assert report.right, str(report)


def mlp() -> tuple[hf.MLP, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = hf.MLP((3, 5, 2), ("tanh", "linear"), generator=generator)
    x = torch.randn(6, 3, generator=generator)
    return model, x, torch.rand(6, 2, generator=generator)


def test_float32_models_are_checked_in_float64_and_left_alone() -> None:
    model, x, y = mlp()
    before = [p.clone() for p in model.parameters()]
    report = hf.check_curvature(model, LOSSES["logistic"], x, y)
    assert report.right, str(report)
    assert max(check.error for check in report.checks) < 1e-7
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.dtype == torch.float32
        assert torch.equal(p, old)


def test_masked_rnn_and_structural_option() -> None:
    generator = torch.Generator().manual_seed(0)
    model = hf.RNN(2, 4, 3, generator=generator)
    x, y = torch.randn(5, 3, 2), torch.randint(3, (5, 3))
    mask = torch.rand(5, 3) < 0.6
    mask[-1] = True
    report = hf.check_curvature(model, LOSSES["softmax"], x, y, mask=mask, structural=0.1)
    assert report.right, str(report)


def test_a_wrong_product_is_seen(monkeypatch) -> None:
    product = FusedCurvature.product
    model, x, y = mlp()

    def scaled(self, v, **keywords):
        return 1.001 * product(self, v, **keywords)

    def skewed(self, v, **keywords):
        return product(self, v, **keywords) + 0.1 * v.roll(1)

    def negated(self, v, **keywords):
        return -product(self, v, **keywords)

    for mistake, seen in (
        (scaled, {"G e_j", "H v"}),
        (skewed, {"G e_j", "H v", "G symmetric"}),
        (negated, {"G e_j", "H v", "G positive"}),
    ):
        monkeypatch.setattr(FusedCurvature, "product", mistake)
        found = wrong(hf.check_curvature(model, LOSSES["squared"], x, y))
        assert found - {"H v"} == seen - {"H v"}, found


class _WrongTanh(SavesInput):
    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 - 0.9 * torch.tanh(x) ** 2)


class _Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return _WrongTanh.apply(self.linear(x))


class _Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 + 0.1 * torch.rand(()))


def test_a_wrong_derivative_is_seen() -> None:
    _, x, y = mlp()
    found = wrong(hf.check_curvature(_Wrong(), LOSSES["squared"], x, y, strategy="double_vjp"))
    assert {"gradient", "J v", "G e_j"} <= found


def test_randomness_in_a_forward_of_ones_own_is_seen() -> None:
    _, x, y = mlp()
    found = wrong(hf.check_curvature(_Random(), LOSSES["squared"], x, y, strategy="double_vjp"))
    assert "loss" in found


def test_a_loss_that_is_not_convex_in_the_outputs_is_seen() -> None:
    _, x, y = mlp()
    model = nn.Linear(3, 2)
    found = wrong(hf.check_curvature(model, lambda s, t: -(s - t).square().mean(), x, y))
    assert found == {"G positive"}


class _Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(OnceOnly.apply(self.first(x)))


@pytest.mark.parametrize("options", [{}, {"strategy": "double_vjp"}, {"l2": 0.1, "chunk_size": 4}])
def test_products_that_training_refuses_are_reported_as_wrong(options) -> None:
    _, x, y = mlp()
    torch.manual_seed(0)
    report = hf.check_curvature(_Once(), nn.MSELoss(), x, y, **options)
    found = wrong(report)
    assert {"G in training", "G symmetric", "G e_j", "J v", "H in training", "H v"} <= found
    assert not {"gradient", "loss", "L'' at the outputs"} & found
    errors = {check.name.split(":")[0]: check.error for check in report.checks}
    assert 0.01 < errors["G in training"] < 10  # far from the limit, of rounding
    assert "⟨w, J v⟩ = ⟨Jᵀw, v⟩" in str(report)


def test_products_that_are_not_finite_are_reported_as_wrong() -> None:
    """torch.logcumsumexp by the double vjp; the strategy that training chooses is right."""
    _, x, y = mlp()
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.logcumsumexp(self.linear(x), 1)

    report = hf.check_curvature(Net(), nn.MSELoss(), x, y, strategy="double_vjp")
    assert "G in training" in wrong(report)
    assert any(math.isnan(check.error) for check in report.checks)


def test_an_objective_of_ones_own_that_refuses_its_curvature_is_reported() -> None:
    _, x, y = mlp()
    torch.manual_seed(0)
    model = _Once().double()
    inside = ModuleObjective(model, nn.MSELoss())
    report = hf.check_curvature(model, objective=inside, inputs=x.double(), targets=y.double())
    assert wrong(report) == {"G in training", "H in training"}


def test_nan_is_wrong() -> None:
    assert not Check("x", float("nan"), 1.0).right
    bad, good = torch.tensor([math.nan, 1.0]), torch.ones(2)
    assert math.isnan(_asymmetry([good, good, good], [bad, good, 2 * good]))
    assert "WRONG" in str(CurvatureReport([Check("x", float("nan"), 1.0)]))


# ------------------------------------------------------------------------------ the command


invoke = partial(command_line.invoke, "check-curvature")


@pytest.mark.parametrize("model", ["rnn", "mlp"])
@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_own_models_pass(model, loss) -> None:
    result = invoke(model, "--loss", loss)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) == 9
    assert all(line.endswith(" right") for line in lines[1:])
    for name in ("gradient", "not zero", "J v", "G e_j", "H v", "symmetric", "positive"):
        assert name in result.output


USERS = """
import torch
from torch import nn

class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1
    @staticmethod
    def backward(ctx, g):
        return g * 0.5

class Net(nn.Module):
    def __init__(self, wrong):
        super().__init__()
        self.linear, self.wrong = nn.Linear(2, 3), wrong
    def forward(self, x):
        s = self.linear(x)
        return Half.apply(s) if self.wrong else s.tanh()

def right():
    return Net(False), nn.CrossEntropyLoss(), torch.randn(4, 2), torch.randint(3, (4,))

def wrong():
    return Net(True), nn.CrossEntropyLoss(), torch.randn(4, 2), torch.randint(3, (4,))

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)

class OnceNet(Net):
    def forward(self, x):
        return Once.apply(self.linear(x))

def once():
    return OnceNet(False), nn.CrossEntropyLoss(), torch.randn(4, 2), torch.randint(3, (4,))

def short():
    return Net(False), nn.CrossEntropyLoss()

def unfit():
    return Net(False), nn.MSELoss(reduction="sum"), torch.randn(4, 2), torch.randn(4, 3)
"""


def test_a_model_of_ones_own(tmp_path, monkeypatch) -> None:
    (tmp_path / "users_curvature.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert invoke("users_curvature:right").exit_code == 0
    assert invoke("users_curvature:right").exit_code == 0
    once = invoke("users_curvature:once")
    assert once.exit_code == 1
    assert "G in training" in once.output
    result = invoke("users_curvature:wrong")
    assert result.exit_code == 1
    assert "WRONG" in result.output
    for name, message in (
        ("users_curvature:short", "need (model, loss, inputs, targets)"),
        ("users_curvature:nothing", "has no attribute 'nothing'"),
        ("users_missing:right", "No module named 'users_missing'"),
        ("users_curvature:unfit", "reduction='sum', need 'mean'"),
        ("users_curvature", "need rnn, mlp or package.module:function"),
    ):
        result = invoke(name)
        assert result.exit_code != 0
        assert message in result.output
    monkeypatch.delitem(sys.modules, "users_curvature")
