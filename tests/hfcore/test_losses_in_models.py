"""Losses in nets and modules against dense float64 curvature of torch's formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.losses import LinkedSquaredError, Loss
from hfcore.nets.grouped import grouped_gradient
from hfcore.objective_factory import objective_for
from oracles.loss_cases import CASES, EPS, MASKS, MODULES, Case, K, StudentT, draw, mask_of, total

T, B, N_IN, HIDDEN = 3, 5, 2, 3
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Setting:
    """A model, its data, and f(θ) and the parts of its curvature, dense, by autograd."""

    def __init__(self, model: nn.Module, lead: tuple[int, ...], case: Case, mask: str) -> None:
        self.model, self.case = model, case
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(*lead, N_IN, generator=generator, dtype=torch.float64)
        self.y = draw(case.targets, lead)[1]
        self.mask = mask_of(mask, lead)
        self.cases = lead[-1]
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.theta = torch.cat([p.detach().flatten() for p in model.parameters()])
        counted = case.loss.counted(self.y, self.mask, K, self.cases)
        self.scale = case.loss.scale([counted])

    @property
    def batch(self) -> hf.Batch:
        return hf.Batch(self.x, self.y, self.mask)

    def outputs(self, theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}
        out: Tensor = functional_call(plain(self.model), named, (self.x,))
        return out

    def f(self, theta: Tensor) -> Tensor:
        return self.scale * total(self.case, self.outputs(theta), self.y, self.mask)

    def gauss_newton(self, of_outputs: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """JᵀL''J from dense J and L''."""
        J = torch.autograd.functional.jacobian(self.outputs, self.theta).flatten(0, -2)
        s = self.outputs(self.theta).detach()
        sums = of_outputs or (lambda s: total(self.case, s, self.y, self.mask))
        H = torch.autograd.functional.hessian(sums, s).reshape(len(J), len(J))
        return self.scale * J.T @ H @ J

    def hessian(self) -> Tensor:
        return torch.autograd.functional.hessian(self.f, self.theta)

    def case_gradients(self) -> Tensor:
        """Gradients of the cases' losses whose mean f is, ``[B,N]``."""
        axis = self.x.ndim - 2
        rows = []
        for i in range(self.cases):
            y = self.y.select(axis, i).unsqueeze(axis)
            m = None if self.mask is None else self.mask.select(axis, i).unsqueeze(axis)

            def one(theta: Tensor, i: int = i, y: Tensor = y, m: Tensor | None = m) -> Tensor:
                s = self.outputs(theta).select(axis, i).unsqueeze(axis)
                return self.cases * self.scale * total(self.case, s, y, m)

            rows.append(torch.autograd.functional.jacobian(one, self.theta))
        return torch.stack(rows)


def plain(model: nn.Module) -> nn.Module:
    """A net in torch ops that differentiate any number of times."""
    if isinstance(model, hf.RNN):
        return Unrolled(model)
    return copy.deepcopy(model)


class Unrolled(nn.Module):
    """hf.RNN with tanh units, step by step."""

    def __init__(self, model: hf.RNN) -> None:
        super().__init__()
        for name, p in model.named_parameters():
            self.register_parameter(name, nn.Parameter(p.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        h, s = None, []
        for x_t in x:
            t = x_t @ self.W_hx.T + self.b_h
            t = t + (self.b_init if h is None else h @ self.W_hh.T)
            h = t.tanh()
            s.append(h @ self.W_yh.T + self.b_y)
        return torch.stack(s)


def rnn() -> tuple[nn.Module, tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return hf.RNN(N_IN, HIDDEN, K, generator=generator, dtype=torch.float64), (T, B)


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    model = hf.MLP((N_IN, HIDDEN, K), ("tanh", "linear"), generator=generator)
    return model.double(), (B,)


def module() -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(N_IN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, K))
    return layers.double(), (B,)


MODELS = {"rnn": rnn, "mlp": mlp, "module": module}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def close(got: Tensor, want: Tensor, rounds: float = 2e4) -> None:
    """Products of a few thousand roundings, relative to the largest entry."""
    size = 1e-3 + float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=rounds * EPS * size)


def dense(curvature: object, n: int) -> Tensor:
    eye = torch.eye(n, dtype=torch.float64)
    return torch.stack([curvature.product(e) for e in eye])  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------- every loss


@pytest.mark.parametrize("mask", MASKS)
@every_model
@every_case
def test_curvature_is_that_of_the_formula(
    case: Case, make: Callable[[], tuple[nn.Module, tuple[int, ...]]], mask: str
) -> None:
    model, lead = make()
    p = Setting(model, lead, case, mask)
    objective = objective_for(model, case.loss)
    data = objective.prepare([p.batch])
    value, gradient = objective.gradient(data, p.theta)
    assert value == pytest.approx(float(p.f(p.theta)), rel=1e-12)
    assert objective.loss(data, p.theta) == pytest.approx(value, rel=1e-12)
    close(gradient, torch.autograd.functional.jacobian(p.f, p.theta))
    n = len(p.theta)
    G = p.gauss_newton()
    ggn = objective.curvature(data, p.theta)
    close(dense(ggn, n), G)
    close(ggn.products(torch.eye(n, dtype=torch.float64)), G)
    close(ggn.diagonal(), G.diagonal(), rounds=2e5)
    close(dense(objective.curvature(data, p.theta, "hessian"), n), p.hessian())
    rows = p.case_gradients()
    F = rows.T @ rows / p.cases
    fisher = objective.curvature(data, p.theta, "fisher")
    close(dense(fisher, n), F)
    close(objective.squared_gradients(data, p.theta), F.diagonal())


@pytest.mark.parametrize("memory", ["cached", "recompute"])
@pytest.mark.parametrize("name", ["softmax-all", "logistic-both", "huber", "own"])
def test_weighted_losses_over_several_batches_and_memories(name: str, memory: str) -> None:
    model, lead = rnn()
    case = CASES[name]
    p = Setting(model, lead, case, "weights")
    objective = objective_for(model, case.loss, memory=memory)
    assert p.mask is not None
    parts = [hf.Batch(p.x[:, b], p.y[:, b], p.mask[:, b]) for b in (slice(0, 3), slice(3, 5))]
    if not all(bool(m.any()) for _, _, m in parts if m is not None):
        pytest.fail("the draw masks a whole batch")
    ggn = objective.curvature(objective.prepare(parts), p.theta)
    close(dense(ggn, len(p.theta)), p.gauss_newton())


@every_case
def test_grouped_gradients_are_those_of_each_net(case: Case) -> None:
    for make in (rnn, mlp):
        model, lead = make()
        p = Setting(model, lead, case, "none")
        passes = grouped_gradient(model, case.loss)
        assert passes is not None
        theta = torch.stack([p.theta, 0.5 * p.theta])
        out = torch.full_like(theta, torch.nan)
        losses = passes.gradient(theta, passes.prepare(p.batch), out)
        for g in range(2):
            assert float(losses[g]) == pytest.approx(float(p.f(theta[g])), rel=1e-12)
            close(out[g], torch.autograd.functional.jacobian(p.f, theta[g]))


# ---------------------------------------------------------------------------- means and chunks


@pytest.mark.parametrize(("torchs", "kind"), MODULES.values(), ids=MODULES)
@every_model
def test_the_mean_is_torchs(
    torchs: nn.Module, kind: str, make: Callable[[], tuple[nn.Module, tuple[int, ...]]]
) -> None:
    """Value and gradient of the whole are the torch module's; so are they in chunks."""
    model, lead = make()
    loss = hf.losses.from_torch(torchs)
    p = Setting(model, lead, Case(loss, lambda s, y: s.sum(-1), kind), "none")

    def f(theta: Tensor) -> Tensor:
        s = p.outputs(theta)
        flat = p.y.flatten() if loss.takes_classes else p.y.flatten(0, -2)
        value: Tensor = torchs(s.flatten(0, -2), flat)
        return value

    want = torch.autograd.functional.jacobian(f, p.theta)
    objectives = [objective_for(model, loss)]
    if make is module:
        objectives += [ModuleObjective(model, loss, chunk_size=size) for size in (1, 2)]
    for objective in objectives:
        data = objective.prepare([p.batch])
        value, gradient = objective.gradient(data, p.theta)
        assert value == pytest.approx(float(f(p.theta)), rel=1e-12)
        close(gradient, want)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("mean", ["cases", "weights", "elements", "sum"])
@pytest.mark.parametrize("strategy", ["auto", "double_vjp"])
def test_chunks_change_nothing(size: int, mean: str, strategy: str) -> None:
    """Ignored classes alone in a chunk, weights of every size: whatever counts, counts once."""
    loss = hf.losses.SoftmaxCrossEntropy(
        weight=[0.5, 2.0, 0.1, 1.5],
        ignore_index=2,
        mean=mean,  # type: ignore[arg-type]
    )
    model, lead = module()
    oracle = CASES["softmax-ignore"].oracle
    weight = torch.tensor([0.5, 2.0, 0.1, 1.5], dtype=torch.float64)
    case = Case(loss, lambda s, y: oracle(s, y) * weight[y], "classes")
    p = Setting(model, lead, case, "none")
    p.y[:3] = torch.tensor([2, 2, 0])
    p.scale = loss.scale([loss.counted(p.y, None, K, B)])
    objective = ModuleObjective(model, loss, chunk_size=size, strategy=strategy)
    data = objective.prepare([p.batch])
    n = len(p.theta)
    value, gradient = objective.gradient(data, p.theta)
    assert value == pytest.approx(float(p.f(p.theta)), rel=1e-12)
    close(gradient, torch.autograd.functional.jacobian(p.f, p.theta))
    ggn = objective.curvature(data, p.theta)
    assert ggn.loss == pytest.approx(value, rel=1e-12)
    close(dense(ggn, n), p.gauss_newton())
    close(ggn.diagonal(), p.gauss_newton().diagonal())
    rows = p.case_gradients()
    close(dense(objective.curvature(data, p.theta, "fisher"), n), rows.T @ rows / B)
    close(objective.squared_gradients(data, p.theta), (rows.T @ rows).diagonal() / B)


def test_a_batch_in_which_nothing_counts_is_refused() -> None:
    loss = hf.losses.SoftmaxCrossEntropy(ignore_index=1, mean="weights")
    y = torch.ones(B, dtype=torch.int64)
    for make in (mlp, module):
        model, _ = make()
        objective = objective_for(model, loss)
        data = objective.prepare([hf.Batch(torch.zeros(B, N_IN, dtype=torch.float64), y)])
        theta = torch.cat([p.detach().flatten() for p in model.parameters()])
        with pytest.raises(ValueError, match="no output counts"):
            objective.loss(data, theta)


# ---------------------------------------------------------------------------- not convex


@every_model
def test_stand_ins_are_chosen_or_refused(
    make: Callable[[], tuple[nn.Module, tuple[int, ...]]],
) -> None:
    model, lead = make()
    for loss, oracle in (
        (LinkedSquaredError("tanh"), lambda s, y: 0.5 * (s.tanh() - y).square().sum(-1)),
        (StudentT(), lambda s, y: (s - y).square().sum(-1).log1p()),
    ):
        p = Setting(model, lead, Case(loss, oracle, "real"), "none")
        objective = objective_for(model, loss)
        data = objective.prepare([p.batch])
        with pytest.raises(ValueError, match="is not convex in the outputs"):
            objective.curvature(data, p.theta).product(p.theta)
        n = len(p.theta)
        close(dense(objective.curvature(data, p.theta, "hessian"), n), p.hessian())
        copied = type(loss)("tanh", stand_in="absolute") if isinstance(
            loss, LinkedSquaredError
        ) else StudentT(stand_in="absolute")  # fmt: skip
        objective = objective_for(model, copied)
        G = dense(objective.curvature(objective.prepare([p.batch]), p.theta), n)
        close(G, G.T)
        assert float(torch.linalg.eigvalsh(G).min()) > -1e-12
        close(dense(objective.curvature(data, p.theta, "hessian"), n), p.hessian())


def test_gauss_newton_through_the_link() -> None:
    """The stand-in is the squared error of a net that ends in the link."""
    loss: Loss = LinkedSquaredError("logistic", stand_in="gauss_newton")
    model, lead = mlp()
    p = Setting(
        model, lead, Case(loss, lambda s, y: 0.5 * (s - y).square().sum(-1), "shares"), "none"
    )
    J = torch.autograd.functional.jacobian(lambda t: p.outputs(t).sigmoid(), p.theta).flatten(0, 1)
    objective = objective_for(model, loss)
    G = dense(objective.curvature(objective.prepare([p.batch]), p.theta), len(p.theta))
    close(G, J.T @ J / B)


def test_hessian_free_trains_on_every_loss() -> None:
    for name, case in CASES.items():
        model, lead = mlp()
        p = Setting(model, lead, case, "weights")
        opt = hf.HessianFree(model, case.loss, damping=1.0, cg_max_iter=20)
        first = opt.step(p.batch).loss
        for _ in range(4):
            last = opt.step(p.batch).loss
        assert last < first, name


# ---------------------------------------------------------------------------- torch's own losses


class Reordered(nn.Module):
    """Outputs ``[B,k,d]`` of a linear layer, classes along axis 1."""

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(N_IN, k * d).double()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.layer(x).tanh()
        return s.view(len(x), self.k, -1)


LAYOUTS = ("[B,k]", "[B,k,d]", "[B]")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("torchs", "kind"), MODULES.values(), ids=MODULES)
def test_torchs_own_losses_keep_their_mean_in_chunks(
    torchs: nn.Module, kind: str, layout: str
) -> None:
    if getattr(torchs, "reduction", "") == "sum":
        with pytest.raises(ValueError, match="reduction='sum', need 'mean'"):
            ModuleObjective(nn.Linear(1, 1), torchs)
        return
    classes = kind == "classes"
    if layout == "[B]" and (classes or getattr(torchs, "weight", None) is not None):
        pytest.skip("needs k outputs")
    d = 3 if layout == "[B,k,d]" else 1
    model: nn.Module = Reordered(K, d)
    if layout != "[B,k,d]":
        model = nn.Sequential(model, nn.Flatten(1)) if layout == "[B,k]" else Flat(Reordered(1, 1))
    x = torch.randn(B, N_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        shape = model(x).shape
    if classes:
        y = draw(kind, (B, d) if layout == "[B,k,d]" else (B,))[1]
        y[0] = getattr(torchs, "ignore_index", 0) if torchs.ignore_index >= 0 else -100  # type: ignore[operator]
        if torchs.weight is not None:
            torchs = nn.CrossEntropyLoss(
                torchs.weight + 0.1,  # type: ignore[operator]
                ignore_index=torchs.ignore_index,  # type: ignore[arg-type]
                label_smoothing=torchs.label_smoothing,  # type: ignore[arg-type]
            )
    elif layout == "[B,k,d]":
        y = draw(kind, (B, K), k=d)[1]
    else:
        y = draw(kind, (B,), k=shape[-1] if len(shape) > 1 else 1)[1].view(shape)
    if layout == "[B,k,d]" and getattr(torchs, "pos_weight", None) is not None:
        torchs = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 0.5, 1.0]).double())
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    shapes = {n: p.shape for n, p in model.named_parameters()}

    def outputs(theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        out: Tensor = functional_call(model, named, (x,))
        return out

    def f(theta: Tensor) -> Tensor:
        value: Tensor = torchs(outputs(theta), y)
        return value

    J = torch.autograd.functional.jacobian(outputs, theta).reshape(-1, len(theta))
    s = outputs(theta).detach()
    L = torch.autograd.functional.hessian(lambda s: torchs(s, y), s).reshape(len(J), len(J))
    G, n = J.T @ L @ J, len(theta)
    summed = copy.copy(torchs)
    summed.reduction = "sum"  # type: ignore[assignment]
    weight = float(summed(s, y) / torchs(s, y))  # what the mean is over
    rows = torch.autograd.functional.jacobian(
        lambda t: torch.stack([summed(outputs(t)[i : i + 1], y[i : i + 1]) for i in range(B)]),
        theta,
    )
    F = rows.T @ rows * B / weight**2
    for size in (None, 1, 2):
        objective = ModuleObjective(model, torchs, chunk_size=size, strategy="double_vjp")
        data = objective.prepare([hf.Batch(x, y)])
        value, gradient = objective.gradient(data, theta)
        assert value == pytest.approx(float(f(theta)), rel=1e-12)
        close(gradient, torch.autograd.functional.jacobian(f, theta))
        ggn = objective.curvature(data, theta)
        close(dense(ggn, n), G)
        close(ggn.diagonal(), G.diagonal(), rounds=2e5)
        exact = objective.curvature(data, theta, "hessian")
        close(dense(exact, n), torch.autograd.functional.hessian(f, theta))
        close(dense(objective.curvature(data, theta, "fisher"), n), F)
        close(objective.squared_gradients(data, theta), F.diagonal())


class Flat(nn.Module):
    """Outputs ``[B]``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.inner(x)
        return s.flatten()


def test_classes_as_probabilities_go_through_autograd() -> None:
    model, _ = module()
    x = torch.randn(B, N_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    y = torch.softmax(draw("real", (B,))[1], -1)
    torchs = nn.CrossEntropyLoss()
    objective = ModuleObjective(model, torchs, chunk_size=2)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    value, _ = objective.gradient(objective.prepare([hf.Batch(x, y)]), theta)
    assert value == pytest.approx(torchs(model(x), y).item(), rel=1e-12)


class ClaimsToBeSeparable(hf.losses.Loss):
    """½(Σ s − Σ y)², whose L'' is all ones."""

    separable = True
    convex = True

    def per_output(self, s: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (s - targets).sum(-1).square()


@pytest.mark.parametrize("make", [lambda: hf.MLP([3, 2], ["linear"]), lambda: nn.Linear(3, 2)])
def test_a_loss_that_is_not_separable_as_it_says_is_refused(make) -> None:
    """Its diagonal would be taken for L'', silently twice as large here; without the word it is
    right."""
    model = make().double()
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    with pytest.raises(ValueError, match="says separable=True and is no sum over the outputs"):
        hf.GaussNewton(model, ClaimsToBeSeparable(), x, y)

    class Honest(ClaimsToBeSeparable):
        separable = False

    G = hf.GaussNewton(model, Honest(), x, y)
    N = G.shape[0]
    J = torch.stack([slope_of_sum(model, x, b) for b in range(5)])
    torch.testing.assert_close(G @ torch.eye(N).double(), J.T @ J / 5)


def slope_of_sum(model: nn.Module, x: Tensor, b: int) -> Tensor:
    """The derivative of the sum of a case's outputs ``[N]``."""
    gradients = torch.autograd.grad(model(x[b : b + 1]).sum(), [*model.parameters()])
    return torch.cat([g.reshape(-1) for g in gradients])


@pytest.mark.parametrize("loss", [hf.losses.SoftmaxCrossEntropy(), nn.CrossEntropyLoss()])
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 1)])
def test_a_softmax_of_one_output_of_a_module_is_refused(make, loss) -> None:
    model, x, y = make(), torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    for call in (
        lambda: hf.GaussNewton(model, loss, x, y),
        lambda: hf.Hessian(model, loss, x, y),
        lambda: hf.HessianFree(model, loss).step((x, y)),
    ):
        with pytest.raises(ValueError, match=r"outputs: got 1 for a softmax.*need at least 2"):
            call()


def test_a_softmax_of_one_output_of_a_net_has_no_curvature() -> None:
    model, x = hf.MLP([3, 1], ["linear"]), torch.randn(4, 3)
    y = torch.zeros(4, dtype=torch.int64)
    G = hf.GaussNewton(model, hf.losses.SoftmaxCrossEntropy(), x, y)
    assert torch.equal(G @ torch.eye(4), torch.zeros(4, 4))
