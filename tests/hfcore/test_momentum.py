"""hf.SGD, hf.ClassicalMomentum and hf.NAG against independent recursions and torch's own."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.bindings.momentum import momentum_update

F64 = torch.float64
KINDS = ("SGD", "ClassicalMomentum", "NAG")


def make(kind: str, params: Any, lr: float = 0.05, **options: float) -> Any:
    if kind != "SGD":
        options = {"momentum": 0.9, **options}
    return getattr(hf, kind)(params, lr, **options)


def net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """A small net with parameters of odd sizes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)
    ).to(dtype)


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(11, 3, generator=draw, dtype=F64)
    return x.to(dtype), x.prod(1, keepdim=True).to(dtype)


def closure_of(model: nn.Module, opt: torch.optim.Optimizer) -> Callable[[], Tensor]:
    x, y = data(next(model.parameters()).dtype)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = 0.5 * (model(x) - y).square().mean()
        loss.backward()
        return loss

    return closure


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Plain:
    """Eqs. 1-4 in float64 on lists of tensors, written from the paper alone."""

    def __init__(self, kind: str, model: nn.Module, l2: float) -> None:
        self.kind, self.l2 = kind, l2
        self.model = copy.deepcopy(model)
        self.theta = [p.detach().clone() for p in self.model.parameters()]
        self.v = [torch.zeros_like(p) for p in self.theta]

    def gradient(self, at: list[Tensor]) -> list[Tensor]:
        for p, value in zip(self.model.parameters(), at, strict=True):
            p.data = value.clone()
        x, y = data(F64)
        loss = 0.5 * (self.model(x) - y).square().mean()
        penalty = sum(p.square().sum() for p in self.model.parameters())
        return list(torch.autograd.grad(loss + 0.5 * self.l2 * penalty, self.model.parameters()))

    def step(self, lr: float, mu: float) -> None:
        mu = 0.0 if self.kind == "SGD" else mu
        ahead = mu if self.kind == "NAG" else 0.0
        g = self.gradient([t + ahead * v for t, v in zip(self.theta, self.v, strict=True)])
        self.v = [mu * v - lr * d for v, d in zip(self.v, g, strict=True)]
        self.theta = [t + v for t, v in zip(self.theta, self.v, strict=True)]


@pytest.mark.parametrize("l2", [0.0, 0.1], ids=["plain", "l2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_against_the_equations(backend: Any, kind: str, l2: float) -> None:
    """Twelve updates whose ε and μ change, in float64, to rounding."""
    model = net(F64)
    plain = Plain(kind, model, l2)
    opt = make(kind, model.parameters(), weight_decay=l2)
    with hf.use_backend(backend):
        for t in range(12):
            group = opt.param_groups[0]
            group["lr"] = 0.1 / (1 + t)
            if kind != "SGD":
                group["momentum"] = 1 - 3 / (t + 5)
            opt.step(closure_of(model, opt))
            plain.step(0.1 / (1 + t), 1 - 3 / (t + 5))
    want = torch.cat([t.reshape(-1) for t in plain.theta])
    torch.testing.assert_close(parameters(model), want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_classical_momentum_is_torchs(momentum: float) -> None:
    ours, theirs = net(F64), net(F64)
    a = hf.ClassicalMomentum(ours.parameters(), 0.1, momentum, weight_decay=0.01)
    b = torch.optim.SGD(theirs.parameters(), 0.1, momentum, weight_decay=0.01)
    for _ in range(20):
        a.step(closure_of(ours, a))
        b.step(closure_of(theirs, b))
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=1e-12, atol=1e-13)


def test_nesterov_is_torchs_seen_from_the_lookahead_point() -> None:
    """torch's parameters are φ_t = θ_t + μ v_t and its buffer b_t = −v_t/ε.

    b_{t+1} = μ b_t + ∇f(φ_t) is eq. 3 divided by −ε, and φ_{t+1} = φ_t − ε(∇f(φ_t) + μ b_{t+1})
    = θ_t + μ v_t − ε∇f + μ v_{t+1} = θ_{t+1} + μ v_{t+1}.
    """
    lr, mu, l2 = 0.1, 0.9, 0.01
    ours, theirs = net(F64), net(F64)
    a = hf.NAG(ours.parameters(), lr, mu, weight_decay=l2)
    b = torch.optim.SGD(theirs.parameters(), lr, mu, weight_decay=l2, nesterov=True)
    for _ in range(20):
        a.step(closure_of(ours, a))
        b.step(closure_of(theirs, b))
        with a.lookahead():
            torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=1e-12, atol=1e-13)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            buffer = b.state[q]["momentum_buffer"]
            torch.testing.assert_close(a.state[p]["velocity"], -lr * buffer, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("l2", [0.0, 0.1], ids=["plain", "l2"])
@pytest.mark.parametrize("kind", ["ClassicalMomentum", "NAG"])
def test_the_op_on_flat_memory_gives_the_same_bits(kind: str, l2: float) -> None:
    """The update that leaves θ + μ_{t+1}v behind it, and the optimiser that asks for it later."""
    start = torch.randn(1, 1009, generator=torch.Generator().manual_seed(2))
    theta, velocity, ahead = start.clone(), torch.zeros_like(start), start.clone()
    p = nn.Parameter(start[0].clone())
    opt = make(kind, [p], weight_decay=l2)
    schedule = hf.schedules.Increasing(0.8)

    def closure() -> Tensor:
        p.grad = p.detach().sin()
        return torch.zeros(())

    for t in range(0, 1200, 100):
        opt.param_groups[0]["momentum"] = schedule(t)
        opt.step(closure)
        momentum_update(
            theta,
            velocity,
            ahead.sin(),
            learning_rate=0.05,
            momentum=schedule(t),
            lookahead=schedule(t + 100) if kind == "NAG" else 0.0,
            l2=l2 or None,
            ahead=ahead,
        )
    assert torch.equal(p, theta[0])
    assert torch.equal(opt.state[p]["velocity"], velocity[0])


# ---------------------------------------------------------------------------- theory


def quadratic(N: int = 12, condition: float = 100.0) -> tuple[Tensor, Tensor, Tensor]:
    """(H, b, λ) of ½θᵀHθ − bᵀθ, with eigenvalues λ from 1/condition to 1."""
    draw = torch.Generator().manual_seed(3)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=draw, dtype=F64))
    eigenvalues = torch.logspace(0, -torch.tensor(condition).log10().item(), N, dtype=F64)
    return Q @ torch.diag(eigenvalues) @ Q.T, torch.randn(N, generator=draw, dtype=F64), eigenvalues


def path(
    opt_of: Callable[[list[Tensor]], Any], H: Tensor, b: Tensor, start: Tensor, steps: int
) -> Tensor:
    """θ after every step on the quadratic, ``[steps,N]``; its gradient given in closed form."""
    theta = nn.Parameter(start.clone())
    opt = opt_of([theta])
    trace = []

    def closure() -> Tensor:
        at = theta.detach()
        theta.grad = H @ at - b
        return 0.5 * at @ H @ at - b @ at

    for _ in range(steps):
        opt.step(closure)
        trace.append(theta.detach().clone())
    return torch.stack(trace)


@pytest.mark.parametrize("mu", [0.5, 0.9, 0.995])
def test_theorem_2_1(mu: float) -> None:
    """Along each eigendirection NAG is classical momentum with μ(1 − ελ_i), to rounding."""
    H, b, _ = quadratic()
    eigenvalues, Q = torch.linalg.eigh(H)
    start, lr, steps = torch.ones(12, dtype=F64), 0.9, 60
    nag = path(lambda p: hf.NAG(p, lr, mu), H, b, start, steps) @ Q
    for i, eigenvalue in enumerate(eigenvalues):
        along = eigenvalue.reshape(1, 1)
        rate = float(mu * (1 - lr * eigenvalue))
        cm = path(
            lambda p, rate=rate: hf.ClassicalMomentum(p, lr, rate),
            along,
            (Q.T @ b)[i : i + 1],
            (Q.T @ start)[i : i + 1],
            steps,
        )
        scale = float(nag.abs().max())
        torch.testing.assert_close(nag[:, i : i + 1], cm, rtol=0, atol=60 * 16 * 2e-16 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_proposition_6_1(kind: str) -> None:
    """p(x) = q(Ux) from U⁻¹x₀ gives the iterates U⁻¹ of q's, for an orthogonal U."""
    H, b, _ = quadratic()
    U, _ = torch.linalg.qr(
        torch.randn(12, 12, generator=torch.Generator().manual_seed(5), dtype=F64)
    )
    start = torch.ones(12, dtype=F64)
    there = path(lambda p: make(kind, p, 0.9), H, b, start, 60)
    here = path(lambda p: make(kind, p, 0.9), U.T @ H @ U, U.T @ b, U.T @ start, 60)
    atol = 60 * 16 * 2e-16 * float(there.abs().max())
    torch.testing.assert_close(here @ U.T, there, rtol=0, atol=atol)


# ---------------------------------------------------------------------------- the lookahead context


def test_lookahead_holds_the_point_and_gives_theta_back() -> None:
    model = net()
    opt = hf.NAG(model.parameters(), 0.05, 0.9)
    opt.step(closure_of(model, opt))
    theta = parameters(model)
    velocity = torch.cat([opt.state[p]["velocity"].reshape(-1) for p in model.parameters()])
    with opt.lookahead():
        torch.testing.assert_close(parameters(model), theta + 0.9 * velocity)
        assert not torch.equal(parameters(model), theta)
    assert torch.equal(parameters(model), theta)


def test_lookahead_and_closure_are_the_same_to_the_bit() -> None:
    by_closure, by_context = net(), net()
    a = hf.NAG(by_closure.parameters(), 0.05, 0.95, weight_decay=0.01)
    b = hf.NAG(by_context.parameters(), 0.05, 0.95, weight_decay=0.01)
    for _ in range(5):
        first = a.step(closure_of(by_closure, a))
        with b.lookahead():
            second = closure_of(by_context, b)()
        assert b.step() is None
        assert torch.equal(first, second)
    assert torch.equal(parameters(by_closure), parameters(by_context))


def test_a_schedule_may_step_between_the_lookahead_and_the_update() -> None:
    by_closure, by_context = net(), net()
    a = hf.NAG(by_closure.parameters(), 0.05, 0.9, weight_decay=0.01)
    b = hf.NAG(by_context.parameters(), 0.05, 0.9, weight_decay=0.01)
    for mu in (0.5, 0.99, 0.3):
        a.step(closure_of(by_closure, a))
        a.param_groups[0]["momentum"] = mu
        with b.lookahead():
            closure_of(by_context, b)()
        b.param_groups[0]["momentum"] = mu
        b.step()
    assert torch.equal(parameters(by_closure), parameters(by_context))


def test_conversion_between_the_lookahead_and_the_update() -> None:
    """Gradient, velocity and point follow the parameters to their new dtype."""
    model, want = net(), net()
    a = hf.NAG(model.parameters(), 0.05, 0.9, weight_decay=0.1)
    b = hf.NAG(want.parameters(), 0.05, 0.9, weight_decay=0.1)
    for _ in range(3):
        with a.lookahead():
            closure_of(model, a)()
        model.to(F64)
        a.step()
        model.to(torch.float32)
        b.step(closure_of(want, b))
    torch.testing.assert_close(parameters(model), parameters(want), rtol=1e-5, atol=1e-6)


def test_a_parameter_frozen_at_the_lookahead_decays_at_theta() -> None:
    """Its gradient, whoever made it, is one of θ."""
    p, q = nn.Parameter(torch.full((2,), 4.0)), nn.Parameter(torch.full((3,), 4.0))
    opt = hf.NAG([p, q], 0.5, 0.5, weight_decay=0.5)
    for t in range(2):
        q.requires_grad_(t == 0)
        q.grad = torch.ones(3) if t == 0 else None
        with opt.lookahead():
            p.grad = torch.ones(2)
        q.grad = torch.ones(3)
        opt.step()
    # v₁ = −½(1 + ½·4) = −3/2, θ₁ = 5/2; p: a = 5/2 − 3/4, q: a = 5/2 in v₂ = ½v₁ − ½(1 + a/2).
    assert torch.equal(p, torch.full((2,), 2.5 - 0.75 - 0.5 * (1 + 0.875)))
    assert torch.equal(q, torch.full((3,), 2.5 - 0.75 - 0.5 * (1 + 1.25)))


def test_exception_inside_lookahead_restores_theta() -> None:
    model = net()
    opt = hf.NAG(model.parameters(), 0.05)
    opt.step(closure_of(model, opt))
    theta = parameters(model)

    def fail_inside() -> None:
        with opt.lookahead():
            closure_of(model, opt)()
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert torch.equal(parameters(model), theta)
    with pytest.raises(hf.LookaheadError, match="step: the gradient of NAG is taken at"):
        opt.step()

    def broken() -> Tensor:
        raise KeyError("closure")

    with pytest.raises(KeyError, match="closure"):
        opt.step(broken)
    assert torch.equal(parameters(model), theta)
    opt.step(closure_of(model, opt))


def test_misuse_of_lookahead_is_refused() -> None:
    model = net()
    opt = hf.NAG(model.parameters(), 0.05)
    with pytest.raises(hf.LookaheadError, match="step: the gradient of NAG is taken at"):
        opt.step()
    with opt.lookahead():
        closure_of(model, opt)()
        with (
            pytest.raises(hf.LookaheadError, match="lookahead: is entered within itself"),
            opt.lookahead(),
        ):
            pass
        with pytest.raises(hf.LookaheadError, match="called inside lookahead"):
            opt.step()
        with pytest.raises(hf.LookaheadError, match="called inside lookahead"):
            opt.step(closure_of(model, opt))
    opt.step()
    with pytest.raises(hf.LookaheadError, match="since the last step"):
        opt.step()
    with opt.lookahead():
        closure_of(model, opt)()
    opt.load_state_dict(opt.state_dict())
    with pytest.raises(hf.LookaheadError, match="since the last step"):
        opt.step()


def test_backward_after_the_context_is_refused_by_autograd() -> None:
    """Its graph would read θ where it computed with θ + μv."""
    model = net()
    opt = hf.NAG(model.parameters(), 0.05)
    opt.step(closure_of(model, opt))
    x, y = data()
    with opt.lookahead():
        loss = (model(x) - y).square().mean()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = (model(x) - y).square().mean()
    with (
        opt.lookahead(),
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_backward_through_an_old_graph_after_a_step_is_refused(kind: str) -> None:
    model = net()
    opt = make(kind, model.parameters())
    x, y = data()
    loss = (model(x) - y).square().mean()
    opt.step(closure_of(model, opt))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---------------------------------------------------------------------------- flat memory


def is_flat(tensors: list[Tensor]) -> bool:
    at = tensors[0].data_ptr()
    for t in tensors:
        if t.data_ptr() != at:
            return False
        at += t.numel() * t.element_size()
    return True


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """N of every update from here on."""
    from hfcore.optimisers import momentum_base as momentum

    sizes: list[int] = []
    original = momentum.momentum_update

    def count(theta: Tensor, *args: Any, **kwargs: Any) -> None:
        sizes.append(theta.shape[1])
        original(theta, *args, **kwargs)

    monkeypatch.setattr(momentum, "momentum_update", count)
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_updates_everything(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = counted(monkeypatch)
    model = net()
    opt = make(kind, model.parameters(), weight_decay=0.1)
    for _ in range(3):
        opt.step(closure_of(model, opt))
    assert sizes == [parameters(model).numel()] * 3
    assert is_flat([p.data for p in model.parameters()])
    assert is_flat([opt.state[p]["velocity"] for p in model.parameters()])


def disturb_load(model: nn.Module, opt: Any) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def disturb_load_assign(model: nn.Module, opt: Any) -> None:
    """New parameters' storage; their identity must stay, as the optimiser holds them."""
    for p in model.parameters():
        p.data = p.data.clone()


def disturb_optimiser(model: nn.Module, opt: Any) -> None:
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def disturb_pickled(model: nn.Module, opt: Any) -> None:
    memory = io.BytesIO()
    torch.save(opt.state_dict(), memory)
    memory.seek(0)
    opt.load_state_dict(torch.load(memory))


def disturb_to(model: nn.Module, opt: Any) -> None:
    model.to(F64).to(torch.float32)


def disturb_layout(model: nn.Module, opt: Any) -> None:
    """Not contiguous any more: these are updated one by one."""
    for p in model.parameters():
        if p.ndim == 2:
            p.data = p.data.t().contiguous().t()


def disturb_one(model: nn.Module, opt: Any) -> None:
    p = list(model.parameters())[2]
    p.data = p.data.clone()


def disturb_velocity(model: nn.Module, opt: Any) -> None:
    for p in model.parameters():
        opt.state[p]["velocity"] = opt.state[p]["velocity"].clone()


def disturb_entries(model: nn.Module, opt: Any) -> None:
    """Other velocities in other entries of the same state."""
    for p in model.parameters():
        opt.state[p] = {"velocity": opt.state[p]["velocity"].clone()}


def disturb_state(model: nn.Module, opt: Any) -> None:
    """All entries gone, and back in another order."""
    entries = list(opt.state.items())[::-1]
    opt.state.clear()
    opt.state.update(entries)


DISTURBANCES = [
    disturb_load, disturb_load_assign, disturb_optimiser, disturb_pickled, disturb_to,
    disturb_layout, disturb_one, disturb_velocity, disturb_entries, disturb_state,
]  # fmt: skip


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda f: f.__name__.removeprefix("disturb_"))
@pytest.mark.parametrize("kind", KINDS)
def test_bits_survive_what_breaks_the_flat_memory(kind: str, disturb: Any) -> None:
    calm, disturbed = net(), net()
    a = make(kind, calm.parameters(), weight_decay=0.1)
    b = make(kind, disturbed.parameters(), weight_decay=0.1)
    for t in range(6):
        if t in (2, 3):
            disturb(disturbed, b)
        a.step(closure_of(calm, a))
        b.step(closure_of(disturbed, b))
    # A transposed weight has its product computed in another order.
    if disturb is disturb_layout:
        torch.testing.assert_close(parameters(calm), parameters(disturbed), rtol=1e-4, atol=1e-6)
    else:
        assert torch.equal(parameters(calm), parameters(disturbed))


def test_a_parameter_cut_in_place_is_refused_and_left_cut() -> None:
    """Rows dropped where they lie: the velocity does not fit them, and they do not come back."""
    model = nn.Linear(4, 6)
    opt = make("NAG", model.parameters())

    def closure() -> Tensor:
        opt.zero_grad()
        loss = model(torch.ones(2, 4)).square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    model.weight.data, model.bias.data = model.weight.data[:3], model.bias.data[:3]
    with pytest.raises(ValueError, match="velocity: got shape"):
        opt.step(closure)
    assert model.weight.shape == (3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_gradients_one_by_one_and_together(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters that must be updated alone end where those of one flat call end."""
    sizes = counted(monkeypatch)
    flat = [nn.Parameter(torch.randn(n, 3)) for n in (1, 5, 17, 100)]
    alone = [nn.Parameter(p.detach().clone().t().contiguous().t()) for p in flat]
    a, b = (make(kind, p, weight_decay=0.1) for p in (flat, alone))
    for _ in range(4):
        gradients = [torch.randn_like(p) for p in flat]
        for opt, ps in ((a, flat), (b, alone)):

            def closure(ps: Any = ps, gradients: Any = gradients) -> Tensor:
                for p, g in zip(ps, gradients, strict=True):
                    p.grad = g.clone()
                return torch.zeros(())

            opt.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(flat, alone, strict=True))
    assert sizes[:5] == [369, 3, 15, 51, 300]  # 1 × 3 is contiguous either way


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str) -> None:
    """Another model and optimiser go on with the same bits."""
    model = net()
    opt = make(kind, model.parameters())
    for _ in range(3):
        opt.step(closure_of(model, opt))
    other = net(seed=7)
    other.load_state_dict(model.state_dict())
    again = make(kind, other.parameters(), lr=0.7)
    again.load_state_dict(opt.state_dict())
    assert again.param_groups[0]["lr"] == 0.05
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(opt.state[p]["velocity"], again.state[q]["velocity"])
        assert opt.state[p]["velocity"].shape == p.shape
    for _ in range(3):
        opt.step(closure_of(model, opt))
        again.step(closure_of(other, again))
    assert torch.equal(parameters(model), parameters(other))


@pytest.mark.parametrize("kind", KINDS)
def test_deepcopy_goes_its_own_way(kind: str) -> None:
    model = net()
    opt = make(kind, model.parameters())
    for _ in range(2):
        opt.step(closure_of(model, opt))
    twin, twin_opt = copy.deepcopy((model, opt))
    before = parameters(model)
    twin_opt.step(closure_of(twin, twin_opt))
    assert torch.equal(parameters(model), before)
    opt.step(closure_of(model, opt))
    assert torch.equal(parameters(model), parameters(twin))
    twin_opt.step(closure_of(twin, twin_opt))
    assert not torch.equal(parameters(model), parameters(twin))


@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_options_of_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = counted(monkeypatch)
    model, want = net(F64), net(F64)
    first, *rest = list(model.children())
    opt = make(kind, [{"params": first.parameters(), "lr": 0.2}], weight_decay=0.1)
    opt.step(closure_of(model, opt))
    assert torch.equal(parameters(rest[1]), parameters(want[2]))
    opt.add_param_group({"params": [p for m in rest for p in m.parameters()], "lr": 0.01})
    opt.step(closure_of(model, opt))
    assert len(sizes) == 3
    assert sizes[0] == 28
    # Each by itself: the other part at rest at the right moment gives the same.
    assert not torch.equal(parameters(rest[1]), parameters(want[2]))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_without_a_gradient_are_left_alone(kind: str) -> None:
    model, partial = net(), net()
    a = make(kind, model.parameters(), weight_decay=0.1)
    b = make(kind, partial.parameters(), weight_decay=0.1)
    for t in range(4):

        def closure(t: int = t) -> Tensor:
            loss = closure_of(partial, b)()
            if t == 2:
                partial[2].weight.grad = None
            return loss

        a.step(closure_of(model, a))
        before = partial[2].weight.detach().clone(), b.state[partial[2].weight].get("velocity")
        if before[1] is not None:
            before = before[0], before[1].clone()
        b.step(closure)
        if t == 1:
            assert torch.equal(parameters(model), parameters(partial))
        if t == 2:
            assert torch.equal(partial[2].weight, before[0])
            assert torch.equal(b.state[partial[2].weight]["velocity"], before[1])
            assert torch.equal(model[0].weight, partial[0].weight)
    partial[0].weight.requires_grad_(False)
    frozen = partial[0].weight.clone()
    b.step(closure_of(partial, b))
    assert torch.equal(partial[0].weight, frozen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_float_dtype(kind: str, dtype: torch.dtype) -> None:
    model, want = net(dtype), net(F64)
    want.load_state_dict(model.state_dict())
    opt, other = make(kind, model.parameters()), make(kind, want.parameters())
    first = None
    for _ in range(10):
        loss = opt.step(closure_of(model, opt))
        other.step(closure_of(want, other))
        first = float(loss.detach()) if first is None else first
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(parameters(model).double(), parameters(want), rtol=0, atol=40 * eps)
    assert float(loss.detach()) < first


def test_mixed_dtypes_and_tied_memory() -> None:
    """Two dtypes are two pieces; parameters that share memory stay tied."""
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, dtype=F64))
    tied = nn.Parameter(torch.ones(5))
    twin = nn.Parameter(tied.data)
    opt = hf.ClassicalMomentum([a, b, tied, twin], 0.5, 0.9)
    for p in (a, b, tied, twin):
        p.grad = torch.ones_like(p)
    opt.step()
    assert torch.equal(a, torch.full((3,), 0.5))
    assert torch.equal(b, torch.full((4,), 0.5, dtype=F64))
    assert tied.data_ptr() == twin.data_ptr()
    assert torch.equal(tied, torch.zeros(5))  # moved by both, as torch's optimisers do


def test_memory_of_several_processes_stays_theirs() -> None:
    shared, own = net(), net()
    shared.share_memory()
    places = [p.data_ptr() for p in shared.parameters()]
    a, b = hf.NAG(shared.parameters(), 0.05), hf.NAG(own.parameters(), 0.05)
    for _ in range(3):
        a.step(closure_of(shared, a))
        b.step(closure_of(own, b))
    assert [p.data_ptr() for p in shared.parameters()] == places
    assert all(p.is_shared() for p in shared.parameters())
    assert torch.equal(parameters(shared), parameters(own))


def test_a_module_an_rnn_and_an_empty_parameter() -> None:
    rnn = hf.RNN(2, 5, 1, generator=torch.Generator().manual_seed(0))
    opt = hf.NAG(rnn, lr=0.05, momentum=0.9)
    x = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1))

    def closure() -> Tensor:
        opt.zero_grad()
        loss = rnn(x)[-1].square().mean()
        loss.backward()
        return loss

    losses = [float(opt.step(closure).detach()) for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]
    empty, full = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(2))
    opt = hf.NAG([empty, full], 0.5)

    def both() -> Tensor:
        empty.grad, full.grad = torch.zeros(0, 3), torch.ones(2)
        return torch.zeros(())

    opt.step(both)
    assert torch.equal(full, torch.full((2,), 0.5))


def test_training_loop_takes_it(tmp_path: Any) -> None:
    """hf.train with a checkpoint in the middle ends where an unbroken run ends."""
    ends = []
    for stops in ((6,), (3, 6)):
        for count in stops:
            model = hf.RNN(2, 4, 1, generator=torch.Generator().manual_seed(0))
            result = hf.train(
                model,
                hf.problems.Addition(10),
                hf.NAG(model.parameters(), 0.01, 0.9),
                minibatches=0.02 * count,
                batch_size=20,
                test_size=20,
                run_dir=tmp_path / str(len(stops)),
                resume=len(stops) == 2 and count == 6,
                progress=False,
            )
            assert result.iterations == count
        ends.append(parameters(model))
    assert torch.equal(*ends)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", KINDS)
def test_bad_options_are_named(kind: str) -> None:
    p = nn.Parameter(torch.ones(2))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"lr: got {bad}, need a finite number of at least 0"):
            make(kind, [p], bad)
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"weight_decay: got {bad}, need"):
            make(kind, [p], weight_decay=bad)
    for bad in (None, "0.1", True, torch.ones(2), 1j):
        with pytest.raises(TypeError, match="lr: got "):
            make(kind, [p], bad)
    opt = make(kind, [p])
    with pytest.raises(ValueError, match="lr: got -1"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1})
    assert len(opt.param_groups) == 1
    opt.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr: got nan"):
        opt.step(lambda: torch.zeros(()))
    if kind == "SGD":
        return
    for bad in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"momentum: got {bad}, need 0 ≤ momentum < 1"):
            make(kind, [p], momentum=bad)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_parameters_and_gradients_are_named(kind: str) -> None:
    with pytest.raises(TypeError, match=r"params\[1\]: got torch\.complex64"):
        make(
            kind, [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.complex64))]
        )
    embedding = nn.Embedding(5, 2, sparse=True)
    opt = make(kind, embedding.parameters())
    before = embedding.weight.detach().clone()

    def closure() -> Tensor:
        loss = embedding(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"params\[0\]: has a gradient of layout torch\.sparse_coo"):
        opt.step(closure)
    assert torch.equal(embedding.weight, before)
    with pytest.raises(ValueError, match="empty parameter list"):
        make(kind, [])
    theirs = torch.optim.SGD(embedding.parameters(), 0.1, 0.9)
    embedding.weight.grad = torch.ones_like(embedding.weight)
    theirs.step()
    with pytest.raises(ValueError, match=r"state_dict: parameter 0 has \['momentum_buffer'\]"):
        opt.load_state_dict(theirs.state_dict())
