"""Closures of ordinary torch programs: derivatives inside, scalar losses, autocast, new models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import hfcore as hf
from hfcore.autograd.backward import BackwardObjective
from hfcore.autograd.objective import ModuleObjective
from oracles.custom_tanh import OnceOnly


def tanh_net(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n, m in pairwise(sizes):
            layers += [nn.Linear(n, m), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_hessian(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """∇² of a loss that calls the model, by torch.autograd.functional."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return loss()

    held = Held()

    def at(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        values = {
            f"model.{n}": part.view(p.shape)
            for (n, p), part in zip(named.items(), parts, strict=True)
        }
        return torch.func.functional_call(held, values, ())

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return torch.autograd.functional.hessian(at, theta)


# --------------------------------------------------------------- derivatives inside of a loss


def poisson() -> tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]:
    """u'' = −π² sin πx on [0,1] with u = 0 at both ends; u is 0.1 off its scale at the start."""
    model = tanh_net(1, 12, 1)
    x = torch.linspace(0, 1, 24, dtype=torch.float64).view(-1, 1).requires_grad_()
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def closure() -> tuple[Tensor, Tensor]:
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        residual = bend + torch.pi**2 * torch.sin(torch.pi * x)
        outputs = torch.cat([residual, 5 * model(ends)])
        return outputs.square().mean(), outputs

    return model, closure


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "hessian_fd"])
def test_a_loss_with_derivatives_of_the_inputs_inside(curvature) -> None:
    """A physics-informed net: from 46 to below 1e-3 in 25 steps."""
    model, closure = poisson()
    optimiser = hf.HessianFree(model, curvature=curvature, damping=0.1, cg_max_iter=120)
    first = optimiser.step(closure).loss
    assert first > 20
    for _ in range(24):
        stats = optimiser.step(closure)
    assert stats.loss_after < (1e-3 if curvature == "ggn" else 1e-1)
    x = torch.linspace(0, 1, 9, dtype=torch.float64).view(-1, 1)
    if curvature == "ggn":
        torch.testing.assert_close(model(x), torch.sin(torch.pi * x), rtol=0, atol=0.02)


class Energy(nn.Module):
    """A scalar energy of positions; the outputs are forces, its derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tanh_net(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return -force


@pytest.mark.parametrize("strategy", ["auto", "double_vjp", "trace"])
def test_a_model_that_differentiates_itself(strategy) -> None:
    """A force field on batches: loss, gradient and products against dense algebra."""
    model, x, y = Energy(), normal(5, 3), normal(5, 3, seed=2)
    operator = hf.GaussNewton(model, hf.losses.SquaredError(), x, y, strategy=strategy)
    named = dict(model.named_parameters())

    def outputs(*values: Tensor) -> Tensor:
        with torch.enable_grad():
            held = dict(zip(named, values, strict=True))
            return torch.func.functional_call(model, held, (x,)).reshape(-1)

    J = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in named.values()))
    flat = torch.cat([j.reshape(15, -1) for j in J], 1)
    got = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    torch.testing.assert_close(got, flat.T @ flat / 5, rtol=1e-10, atol=1e-12)
    optimiser = hf.HessianFree(model, hf.losses.SquaredError())
    losses = [optimiser.step((x, y)).loss_after for _ in range(5)]
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------ scalar losses


def regression(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = tanh_net(3, 5, 2, dtype=dtype)
    x, y = normal(7, 3, dtype=dtype), normal(7, 2, seed=2, dtype=dtype)
    return model, lambda: (model(x) - y).square().mean()


def test_a_scalar_closure_has_a_hessian() -> None:
    model, loss = regression()
    want = dense_hessian(model, loss)
    eye = torch.eye(len(want), dtype=torch.float64)
    for model_or_parameters in (model, list(model.parameters())):
        got = hf.Hessian(model_or_parameters, None, loss) @ eye
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    near = hf.Hessian(model, None, loss, method="finite_difference") @ eye
    torch.testing.assert_close(near, want, rtol=1e-6, atol=1e-8)


def test_a_scalar_closure_without_outputs_says_what_ggn_needs() -> None:
    model, loss = regression()
    optimiser = hf.HessianFree(model)
    before = [p.clone() for p in model.parameters()]
    for call in (lambda: optimiser.step(loss), lambda: hf.GaussNewton(model, None, loss)):
        with pytest.raises(TypeError, match=r"curvature='ggn' needs \(loss, outputs\)"):
            call()
    with pytest.raises(TypeError, match=r"'hessian', which .* or 'hessian_fd'"):
        optimiser.step(loss)
    with pytest.raises(TypeError, match="structural damping, an average over cases, needs"):
        hf.Hessian(model, None, loss, structural={"0": "tanh"})
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("backward", [False, True], ids=["loss", "backward"])
@pytest.mark.parametrize("curvature", ["hessian", "hessian_fd"])
def test_steps_with_a_scalar_closure(curvature, backward) -> None:
    model, loss = regression()
    optimiser = hf.HessianFree(model, curvature=curvature)

    def closure() -> Tensor:  # as torch.optim.LBFGS has it
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    if backward and curvature == "hessian":
        with pytest.raises(ValueError, match=r"closure: called backward\(\), which frees"):
            optimiser.step(closure)
        return
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    losses = [optimiser.step(closure if backward else loss).loss_after for _ in range(12)]
    assert losses[-1] < 0.3 * losses[0]
    assert losses[-1] == pytest.approx(float(loss()), rel=1e-12)
    assert all(bool((p.grad == 7.0).all()) for p in model.parameters())  # the user's own


def test_backward_gives_the_same_steps_as_autograd() -> None:
    paths = []
    for backward in (False, True):
        model, loss = regression()

        def closure(loss=loss, backward=backward) -> Tensor | float:
            value = loss()
            if backward:
                value.backward()
                return float(value)  # L-BFGS takes floats too
            return value

        optimiser = hf.HessianFree(model, curvature="hessian_fd", l2=0.1)
        paths.append([optimiser.step(closure).loss for _ in range(4)])
    assert paths[0] == pytest.approx(paths[1], rel=1e-12)


def test_the_gradient_of_backward_is_right_and_leaves_no_trace() -> None:
    model, loss = regression()
    built = BackwardObjective(model, l2=0.3)
    theta = built.parameters.read()
    places = [p.data_ptr() for p in model.parameters()]
    at = theta + 0.1
    value, gradient = built.gradient(loss, at)
    other = ModuleObjective(model, l2=0.3)
    want, direction = other.gradient(lambda: (loss(), model[0].weight), at)
    assert value == pytest.approx(want, rel=1e-13)
    torch.testing.assert_close(gradient, direction, rtol=1e-12, atol=1e-14)
    assert built.loss(loss, at) == pytest.approx(want, rel=1e-13)
    assert torch.equal(built.parameters.read(), theta)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="whose finite differences are 'hessian_fd'"):
        built.curvature(loss, theta)

    def fails() -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        built.loss(fails, at)
    assert torch.equal(built.parameters.read(), theta)


@pytest.mark.parametrize(
    ("closure", "error", "message"),
    [
        (lambda: None, TypeError, "closure: returned NoneType, need"),
        (lambda: torch.ones(2), (ValueError, TypeError), r"shape \[2\], need a scalar"),
        (lambda: torch.ones(()), ValueError, "loss: does not depend on the model's parameters"),
    ],
)
@pytest.mark.parametrize("curvature", ["hessian", "hessian_fd"])
def test_bad_closures_are_explained(closure, error, message, curvature) -> None:
    model, _ = regression()
    with pytest.raises(error, match=message):
        hf.HessianFree(model, curvature=curvature).step(closure)


def test_hessian_fd_serves_what_cannot_be_differentiated_twice() -> None:
    """A custom kernel, a sparse embedding and a compiled model: gradients are all it takes."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 3, sparse=True)
            self.out = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(OnceOnly.apply(self.words(x)))

    model = Net().double()
    x, y = torch.tensor([0, 1, 3, 4]), normal(4, 2)
    optimiser = hf.HessianFree(model, curvature="hessian_fd")
    unused = model.words.weight[2].clone()
    losses = [optimiser.step(lambda: (model(x) - y).square().mean()).loss_after for _ in range(25)]
    assert losses[-1] < 0.1 * losses[0]
    torch.testing.assert_close(model.words.weight[2], unused, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="Embedding 'words' has sparse=True"):
        hf.HessianFree(model, nn.MSELoss()).step((x, y))


def test_hessian_fd_runs_the_compiled_model() -> None:
    model, _ = regression()
    x, y = normal(7, 3), normal(7, 2, seed=2)
    runs = [0]

    def backend(graph, examples):  # counts calls of what was compiled
        def run(*args):
            runs[0] += 1
            return graph(*args)

        return run

    compiled = torch.compile(model, backend=backend)
    optimiser = hf.HessianFree(compiled, curvature="hessian_fd")
    first = optimiser.step(lambda: (compiled(x) - y).square().mean())
    assert runs[0] > first.cg_iterations
    assert first.loss_after < first.loss


# ------------------------------------------------------------------------- several processes


def test_replicas_of_several_processes_are_refused(monkeypatch, tmp_path) -> None:
    """One process is right; in two each would follow its own loss, without a process_group."""
    model, loss = regression()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        replica = nn.parallel.DistributedDataParallel(model)
        x, y = normal(7, 3), normal(7, 2, seed=2)
        optimiser = hf.HessianFree(replica, curvature="hessian_fd")
        stats = optimiser.step(lambda: (replica(x) - y).square().mean())
        assert stats.loss_after < stats.loss
        assert stats.loss_after == pytest.approx(float(loss()))
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
        with pytest.raises(ValueError, match="got None in one of 2 processes"):
            hf.HessianFree(replica, curvature="hessian_fd")
    finally:
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------------------ autocast


@contextmanager
def casting(*, cached: bool) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        yield


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "hessian_fd"])
def test_steps_inside_autocast_do_not_read_old_casts(curvature) -> None:
    """With the weight cache on every trial point had the loss of the first."""
    paths = []
    for cached in (False, True):
        model = tanh_net(3, 8, 2, dtype=torch.float32)
        x, y = normal(16, 3, dtype=torch.float32), normal(16, 2, seed=2, dtype=torch.float32)

        def closure(model=model, x=x, y=y) -> tuple[Tensor, Tensor]:
            s = model(x)
            return nn.functional.mse_loss(s, y), s

        optimiser = hf.HessianFree(model, curvature=curvature)
        with casting(cached=cached):
            model(x)  # fills the cache
            paths.append([optimiser.step(closure).loss_after for _ in range(4)])
            now = float(closure()[0])
        assert paths[-1][-1] == pytest.approx(now, rel=1e-6)
    assert paths[0] == paths[1]
    assert paths[1] == sorted(paths[1], reverse=True)
    assert paths[1][-1] < 0.9 * paths[1][0]


def test_a_loss_of_ours_inside_autocast() -> None:
    model = tanh_net(3, 8, 2, dtype=torch.float32)
    x, y = normal(16, 3, dtype=torch.float32), normal(16, 2, seed=2, dtype=torch.float32)
    optimiser = hf.HessianFree(model, hf.losses.SquaredError())
    with torch.autocast("cpu", torch.bfloat16):
        losses = [optimiser.step((x, y)).loss_after for _ in range(4)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("strategy", ["auto", "double_vjp", "trace", "jvp"])
def test_products_after_autocast_are_those_of_inside(strategy) -> None:
    model = tanh_net(3, 8, 2, dtype=torch.float32)
    x, y = normal(16, 3, dtype=torch.float32), normal(16, 2, seed=2, dtype=torch.float32)
    v = normal(50, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = hf.GaussNewton(model, nn.MSELoss(), x, y, strategy=strategy)
        first = inside @ v
    assert torch.equal(inside @ v, first)
    plain = hf.GaussNewton(model, nn.MSELoss(), x, y, strategy=strategy)
    outside = plain @ v
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain @ v, outside)
    error = float((first - outside).norm() / outside.norm())
    assert 1e-5 < error < 0.1  # bfloat16 has 8 bits


@pytest.mark.parametrize("make", [hf.NAG, hf.ClassicalMomentum, hf.SGD])
def test_momentum_inside_autocast_does_not_read_old_casts(make) -> None:
    paths = []
    for cached in (False, True):
        model = tanh_net(3, 8, 2, dtype=torch.float32)
        x, y = normal(16, 3, dtype=torch.float32), normal(16, 2, seed=2, dtype=torch.float32)
        optimiser = make(model, lr=0.1)

        def closure(model=model, x=x, y=y, optimiser=optimiser) -> Tensor:
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        with casting(cached=cached):
            path = []
            for _ in range(3):
                nn.functional.mse_loss(model(x), y)  # looked at before the step
                path.append(float(optimiser.step(closure)))
            paths.append(path)
    assert paths[0] == paths[1]


# ----------------------------------------------------------------------------- changed models


def test_parameters_that_change_after_the_optimiser_was_built() -> None:
    x, y = normal(7, 3), normal(7, 2, seed=2)

    def frozen(model: nn.Sequential) -> None:
        model[0].weight.requires_grad_(False)

    def unfrozen(model: nn.Sequential) -> None:
        model[0].bias.requires_grad_(True)

    def added(model: nn.Sequential) -> None:
        model.append(nn.Linear(2, 2).double())

    def replaced(model: nn.Sequential) -> None:
        model[2].weight = nn.Parameter(model[2].weight.detach() + 1)

    for change, message in (
        (frozen, "parameter 0.weight was frozen since"),
        (unfrozen, "parameter 0.bias was added or unfrozen since"),
        (added, "parameter 3.weight was added or unfrozen since"),
        (replaced, "parameter 2.weight is another one since"),
    ):
        model = tanh_net(3, 5, 2)
        model[0].bias.requires_grad_(False)
        optimiser = hf.HessianFree(model, nn.MSELoss())
        far = hf.Hessian(model, nn.MSELoss(), x, y, method="finite_difference")

        def closure(model=model) -> tuple[Tensor, Tensor]:
            s = model(x)
            return nn.functional.mse_loss(s, y), s

        optimiser.step((x, y))
        optimiser.step(closure)
        change(model)
        before = [p.clone() for p in model.parameters()]
        for call in (
            lambda o=optimiser: o.step((x, y)),
            lambda o=optimiser, c=closure: o.step(c),
            lambda A=far: A @ torch.ones(A.shape[0], dtype=torch.float64),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_parameters_as_torchs_optimisers_take_them() -> None:
    """One by one, with names, in groups: the same step; groups with options of their own: no."""
    paths = []
    for form in (
        lambda m: m,
        lambda m: m.parameters(),
        lambda m: m.named_parameters(),
        lambda m: [{"params": m[0].parameters()}, {"params": [*m[2].parameters()]}],
        lambda m: [{"params": m[0].weight}, {"params": [m[0].bias, *m[2].parameters()]}],
    ):
        model, loss = regression()
        optimiser = hf.HessianFree(form(model), curvature="hessian_fd")
        paths.append([optimiser.step(loss).loss_after for _ in range(3)])
    assert all(path == pytest.approx(paths[0], rel=1e-9) for path in paths)
    model, _ = regression()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.1}]
    with pytest.raises(ValueError, match="a group of parameters sets lr, need groups without"):
        hf.HessianFree(groups)
    with pytest.raises(TypeError, match="item 0 is str, need"):
        hf.HessianFree([{"params": ["a"]}])


def test_frozen_after_construction_in_fused_nets_is_refused() -> None:
    for model, lead in ((hf.MLP([3, 4, 2], ["tanh", "linear"]), (5,)), (hf.RNN(3, 4, 2), (4, 5))):
        optimiser = hf.HessianFree(model, hf.losses.SquaredError())
        x, y = (normal(*lead, n, dtype=torch.float32) for n in (3, 2))
        optimiser.step((x, y))
        name, p = next(iter(model.named_parameters()))
        p.requires_grad_(False)
        with pytest.raises(ValueError, match=f"parameter {name} was frozen since"):
            optimiser.step((x, y))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: prune.l1_unstructured(model[0], "weight", 0.5),
        lambda model: parametrizations.weight_norm(model[2]),
        lambda model: parametrizations.orthogonal(model[0]),
    ],
    ids=["prune", "weight_norm", "orthogonal"],
)
def test_parametrised_between_steps(change) -> None:
    """The names of parameters move; where they are the same ones, products are right."""
    model, x, y = tanh_net(3, 5, 2), normal(7, 3), normal(7, 2, seed=2)
    built = ModuleObjective(model, nn.MSELoss())
    data = built.prepare((x, y))
    optimiser = hf.HessianFree(model, nn.MSELoss())
    optimiser.step((x, y))
    own = list(model.parameters())
    change(model)
    if {id(p) for p in own} != {id(p) for p in model.parameters()}:  # e.g. g and v of a weight
        with pytest.raises(ValueError, match="since this was built"):
            optimiser.step((x, y))
        return
    theta = built.parameters.read()
    got = torch.stack(
        [built.curvature(data, theta).product(e) for e in torch.eye(len(theta)).double()]
    )

    def outputs(*values: Tensor) -> Tensor:
        names = {id(p): n for n, p in model.named_parameters()}
        held = {names[id(p)]: value for p, value in zip(own, values, strict=True)}
        return torch.func.functional_call(model, held, (x,)).reshape(-1)

    J = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in own))
    flat = torch.cat([j.reshape(14, -1) for j in J], 1)
    torch.testing.assert_close(got, 2 * flat.T @ flat / 14, rtol=1e-9, atol=1e-12)
    stats = optimiser.step((x, y))
    assert stats.loss_after <= stats.loss
    assert stats.loss_after == pytest.approx(float((model(x) - y).square().mean()))


@pytest.mark.parametrize("make", [lambda: tanh_net(3, 5, 2, dtype=torch.float32)])
def test_another_precision_between_steps(make) -> None:
    model = make()
    x, y = normal(7, 3), normal(7, 2, seed=2)
    optimiser = hf.HessianFree(model, hf.losses.SquaredError())
    optimiser.step((x.float(), y.float()))
    model.double()
    stats = optimiser.step((x, y))
    assert stats.loss_after < stats.loss
    assert stats.loss_after == pytest.approx(float(0.5 * (model(x) - y).square().sum() / 7))
    model[0].float()
    with pytest.raises(ValueError, match=r"parameter 2.weight is torch.float64"):
        optimiser.step((x, y))


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_in_train_mode_is_refused(norm) -> None:
    model, x, y = tanh_net(3, 5, 2), normal(7, 3), normal(7, 2, seed=2)
    norm(model[0])
    optimiser = hf.HessianFree(model, nn.MSELoss())
    with pytest.raises(ValueError, match="moves its estimate of the singular vectors"):
        optimiser.step((x, y))
    model.eval()
    stats = optimiser.step((x, y))
    assert stats.loss_after < stats.loss


class Moving(nn.Module):
    """Normalises by a statistic that every evaluation moves."""

    def __init__(self, *, moves: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2))
        self.moves = moves

    def forward(self, x: Tensor) -> Tensor:
        s = self.linear(x)
        if self.moves:
            with torch.no_grad():
                self.scale.mul_(0.9).add_(0.1 * s.abs().mean(0))
        else:  # a cache: the same values every time
            self.scale.fill_(3.0)
        return s / self.scale.clone()


def test_buffers_that_evaluations_move_are_refused() -> None:
    x, y = normal(7, 3), normal(7, 2, seed=2)
    with pytest.raises(ValueError, match="buffer 'scale' of Moving moves in every evaluation"):
        hf.HessianFree(Moving(moves=True).double(), nn.MSELoss()).step((x, y))
    stats = hf.HessianFree(Moving(moves=False).double(), nn.MSELoss()).step((x, y))
    assert stats.loss_after < stats.loss


# ------------------------------------------------------------------------------- batch or list


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tanh_net(3, 4, 2)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.net(pair[0] + pair[1])


def test_one_batch_of_tuples_is_not_two_batches() -> None:
    model = Pair()
    x1, x2, t1, t2 = normal(5, 3), normal(5, 3, seed=2), normal(5, 2, seed=3), normal(5, 2, seed=4)

    def loss(s: Tensor, t: tuple[Tensor, Tensor]) -> Tensor:
        return ((s - t[0]).square() + (s - t[1]).square()).mean()

    want = float(loss(model((x1, x2)), (t1, t2)).detach())
    built = ModuleObjective(model, loss)
    optimiser = hf.HessianFree(model, loss)
    for call in (built.prepare, optimiser.step):
        with pytest.raises(TypeError, match=r"a tuple of 2 tuples"):
            call(((x1, x2), (t1, t2)))
    data = built.prepare(hf.Batch((x1, x2), (t1, t2)))  # type: ignore[arg-type]
    assert built.loss(data, built.parameters.read()) == pytest.approx(want, rel=1e-13)
    stats = optimiser.step(hf.Batch((x1, x2), (t1, t2)))  # type: ignore[arg-type]
    assert stats.loss == pytest.approx(want, rel=1e-13)
    model = Pair()
    both = ModuleObjective(model, nn.MSELoss())
    one = float((model((x1, x2)) - t1).square().mean())
    for data in (((x1, x2), t1), [(x1, x2), t1], [((x1, x2), t1)]):
        assert len(both.prepare(data)) == 1
        assert both.loss(both.prepare(data), both.parameters.read()) == pytest.approx(one)
        fresh = hf.HessianFree(Pair(), nn.MSELoss())
        assert fresh.step(data).loss == pytest.approx(one)
    several = both.prepare([((x1, x2), t1), ((x1, x2), t2)])
    assert len(several) == 2
