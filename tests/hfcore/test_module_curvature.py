"""Curvature of any torch module against dense matrices that share no code with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.autograd.objective import ModuleObjective
from hfcore.autograd.strategies import STRATEGIES
from hfcore.autograd.trace import NotTraceable
from oracles.custom_tanh import SavesOutput
from oracles.losses import per_output
from oracles.modules import (
    KINDS,
    LOSSES,
    MODELS,
    Task,
    convolutional,
    dense,
    dense_matrix,
    relative_error,
    task,
)


def vectors(N: int, m: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, N, generator=generator, dtype=torch.float64)


def objective(problem: Task, **options: object) -> tuple[ModuleObjective, list]:
    built = ModuleObjective(problem.model, problem.loss, batch_dim=problem.dim, **options)
    return built, built.prepare((problem.x, problem.y))


def not_served(model: str, loss: str, kind: str, strategy: str) -> str | None:
    """What torch 2.13 cannot do, and how the error says so."""
    if kind == "hessian" and strategy == "linearize":
        return "cannot be trusted with a gradient"
    if model == "lstm" and strategy == "linearize":
        return "the replayed product is off by"
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_every_strategy_multiplies_by_the_dense_matrix(model, loss, kind) -> None:
    problem = task(model, loss)
    theta, want = problem.theta, dense_matrix(model, loss, kind)
    V = vectors(len(theta), 2)
    product = V @ want + 0.37 * V
    for strategy in STRATEGIES:
        if strategy == "linearize" and kind != "hessian" and (loss, kind) != ("squared", "ggn"):
            continue  # seconds of tracing, and the same way into J
        if (why := not_served(model, loss, kind, strategy)) is not None:
            built, data = objective(problem, strategy=strategy)
            with pytest.raises((ValueError, RuntimeError), match=why):
                built.curvature(data, theta, kind).product(V[0])
            continue
        built, data = objective(problem, strategy=strategy, l2=0.07)
        curvature = built.curvature(data, theta, kind)
        assert curvature.strategy == strategy
        rows = curvature.products(V, 0.3)
        assert relative_error(rows, product) <= 1e-11, strategy
        got = curvature.product(V[1], damping=0.3)
        assert relative_error(got, product[1]) <= 1e-11, strategy
    mean = float(problem.mean_loss(problem.outputs(theta)).detach())
    assert curvature.loss == pytest.approx(mean + 0.035 * float(theta @ theta), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_diagonals_equal_those_of_the_dense_matrices(model, loss) -> None:
    problem = task(model, loss)
    built, data = objective(problem)
    fisher = dense_matrix(model, loss, "fisher").diagonal()
    assert relative_error(built.squared_gradients(data, problem.theta), fisher) <= 1e-12
    exact = built.diagonal(data, problem.theta)
    assert relative_error(exact, dense_matrix(model, loss, "ggn").diagonal()) <= 1e-12


@pytest.mark.parametrize("loss", ["squared", "softmax", "callable"])
def test_diagonal_estimate_is_unbiased(loss) -> None:
    """The mean over many probes comes near; twice as near needs four times as many."""
    problem = task("dense", loss)
    built, data = objective(problem)
    want = dense_matrix("dense", loss, "ggn").diagonal()
    generator = torch.Generator().manual_seed(0)
    rounds = [built.diagonal(data, problem.theta, 1, generator) for _ in range(80)]
    few = torch.stack(rounds)
    standard_error = few.std(0) / len(few) ** 0.5
    assert bool(((few.mean(0) - want).abs() <= 4.5 * standard_error + 1e-14).all())
    together = built.diagonal(data, problem.theta, 80, torch.Generator().manual_seed(0))
    assert relative_error(together, few.mean(0)) <= 1e-12


@pytest.mark.parametrize("model", ["dense", "loop"])
@pytest.mark.parametrize("loss", ["squared", "softmax", "logistic"])
def test_masked_outputs_do_not_count(model, loss) -> None:
    """The same as the loss with the masked outputs left out; their targets may be NaN."""
    problem = task(model, loss)
    mask = torch.rand(problem.outputs(problem.theta).shape[:-1]) < 0.5
    mask[0] = True
    mask[-1] = False
    y = problem.y.clone()
    if y.is_floating_point():
        y[~mask] = float("nan")

    def closure() -> tuple[Tensor, Tensor]:
        s = problem.model(problem.x)
        value = per_output(LOSSES[loss].kind, s[mask], problem.y[mask]).sum()
        return value / s.shape[problem.dim], s

    built = ModuleObjective(problem.model, problem.loss, batch_dim=problem.dim)
    for kept in (mask, mask.double()):
        data = built.prepare((problem.x, y, kept))
        v = vectors(len(problem.theta), 1)[0]
        for kind in ("ggn", "hessian"):
            got = built.curvature(data, problem.theta, kind)
            want = built.curvature(closure, problem.theta, kind)
            assert relative_error(got.product(v), want.product(v)) <= 1e-12
            assert got.loss == pytest.approx(want.loss, rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["convolutional", "loop"])
def test_chunks_and_batches_add_up(model, kind) -> None:
    """One batch, unequal batches, and chunks that are freed give one objective."""
    problem = task(model, "softmax")
    theta, v = problem.theta, vectors(len(problem.theta), 1)[0]
    whole, data = objective(problem, l2=0.1)
    cut = (problem.x.split([1, 2], problem.dim), problem.y.split([1, 2], problem.dim))
    batches = list(zip(*cut, strict=True))
    for chunk_size, parts in ((None, batches), (1, [(problem.x, problem.y)]), (2, batches)):
        other = ModuleObjective(
            problem.model, problem.loss, batch_dim=problem.dim, l2=0.1, chunk_size=chunk_size
        )
        split = other.prepare(parts)
        want, got = whole.curvature(data, theta, kind), other.curvature(split, theta, kind)
        assert relative_error(got.product(v), want.product(v)) <= 1e-12
        assert got.loss == pytest.approx(want.loss, rel=1e-13)
        assert other.loss(split, theta) == pytest.approx(whole.loss(data, theta), rel=1e-13)
        gradient = whole.gradient(data, theta)[1]
        assert relative_error(other.gradient(split, theta)[1], gradient) <= 1e-12
        squares = whole.squared_gradients(data, theta)
        assert relative_error(other.squared_gradients(split, theta), squares) <= 1e-12
        if chunk_size == 1:
            assert got.strategy in ("double_vjp", "jvp")


def test_chunks_hold_one_graph_at_a_time() -> None:
    """With chunk_size the activations alive at once are those of a chunk."""
    alive, most = [0], [0]

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            alive[0] += x.shape[0]
            most[0] = max(most[0], alive[0])
            ctx.token = _Token(alive, x.shape[0])
            return x * 1

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:
            return g * 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return Counted.apply(self.linear(x))

    x = torch.randn(8, 3, dtype=torch.float64)
    v = vectors(8, 1)[0]
    for chunk_size, limit in ((None, 8), (2, 2)):
        built = ModuleObjective(
            Net(), hf.losses.SquaredError(), strategy="double_vjp", chunk_size=chunk_size
        )
        data = built.prepare((x, x[:, :2]))
        most[0] = 0
        curvature = built.curvature(data, built.parameters.read())
        curvature.product(v)
        assert most[0] == limit
        del curvature
        assert alive[0] == 0  # at once: nothing waits for the garbage collector


class _Token:
    def __init__(self, alive: list[int], count: int) -> None:
        self.alive, self.count = alive, count

    def __del__(self) -> None:
        self.alive[0] -= self.count


STRUCTURAL = {
    "dense": ("0", "tanh"),
    "convolutional": ("4", "tanh"),
    "lstm": ("lstm", "identity"),
    "transformer": ("layer.linear1", "logistic"),
    "loop": ("inp", "softmax"),
}


def held_outputs(problem: Task, name: str, theta: Tensor) -> Tensor:
    seen: list[Tensor] = []
    module = problem.model.get_submodule(name)
    hook = module.register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    problem.outputs(theta)
    hook.remove()
    return torch.cat([z.reshape(-1, z.shape[-1]) for z in seen])


def second_derivative(distance: str, z: Tensor) -> Tensor:
    """D'' of rows z [R,k] as a dense matrix ``[R·k,R·k]``."""
    if distance == "softmax":
        p = torch.softmax(z, -1)
        return torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p))
    e = {"identity": lambda t: t, "tanh": torch.tanh, "logistic": torch.sigmoid}[distance]
    d = torch.func.vmap(torch.func.grad(e))(z.reshape(-1))
    return torch.diag(d)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("model", STRUCTURAL)
def test_structural_damping_of_a_submodule(model, strategy) -> None:
    """λμ J_zᵀ D'' J_z averaged over cases, beside every kind of curvature."""
    problem = task(model, "squared")
    name, distance = STRUCTURAL[model]
    theta = problem.theta
    z = held_outputs(problem, name, theta)
    J = torch.autograd.functional.jacobian(lambda p: held_outputs(problem, name, p), theta)
    J = J.reshape(-1, len(theta))
    cases = problem.x.shape[problem.dim]
    G_S = J.T @ second_derivative(distance, z.detach()) @ J / cases
    v = vectors(len(theta), 1)[0]
    for kind in KINDS:
        if not_served(model, "squared", kind, strategy):
            continue
        if strategy == "linearize" and (model, kind) != ("dense", "ggn"):
            continue
        built, data = objective(problem, structural={name: (distance, 0.3)}, strategy=strategy)
        curvature = built.curvature(data, theta, kind)
        base = dense_matrix(model, "squared", kind) @ v
        want = base + 2.0 * v + 0.5 * 0.3 * (G_S @ v)
        got = curvature.product(v, damping=2.0, structural=0.5)
        assert relative_error(got, want) <= 1e-11
        assert relative_error(curvature.product(v), base) <= 1e-11
        rows = curvature.products(torch.stack([v, 2 * v]), 2.0, 0.5)
        assert relative_error(rows[1], 2 * want) <= 1e-11


def test_structural_holds_every_call_and_several_submodules() -> None:
    problem = task("loop", "squared")
    v = vectors(len(problem.theta), 1)[0]

    def term(names: dict) -> Tensor:
        built, data = objective(problem, structural=names)
        curvature = built.curvature(data, problem.theta)
        return curvature.product(v, structural=1.0) - curvature.product(v)

    both = term({"rec": "tanh", "inp": ("identity", 2.0)})
    torch.testing.assert_close(both, term({"rec": "tanh"}) + 2 * term({"inp": "identity"}))
    z = held_outputs(problem, "rec", problem.theta)
    assert len(z) == (5 - 1) * 3  # called at every step but the first


def test_structural_works_in_a_closure() -> None:
    problem = task("dense", "squared")
    v = vectors(len(problem.theta), 1)[0]
    built, data = objective(problem, structural={"0": "tanh"})

    def closure() -> tuple[Tensor, Tensor]:
        s = problem.model(problem.x)
        return problem.mean_loss(s), s

    for strategy in STRATEGIES:
        other = ModuleObjective(problem.model, structural={"0": "tanh"}, strategy=strategy)
        got = other.curvature(closure, problem.theta).product(v, structural=0.4)
        want = built.curvature(data, problem.theta).product(v, structural=0.4)
        assert relative_error(got, want) <= 1e-12


def test_bad_structural_is_named() -> None:
    model = dense()
    for structural, message in (
        ({"nope": "tanh"}, "no submodule 'nope'; it has '0', '1', '2'"),
        ({"0": "relu"}, r"structural\['0'\]: got 'relu', need one of 'identity'"),
        ({"0": ("tanh", -1.0)}, r"structural\['0'\]: got μ = -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            ModuleObjective(model, LOSSES["squared"], structural=structural)
    with pytest.raises(TypeError, match="structural: got float"):
        ModuleObjective(model, LOSSES["squared"], structural=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bare parameters have no submodules"):
        ModuleObjective(list(model.parameters()), structural={"0": "tanh"})
    x, y = torch.randn(2, 4), torch.randn(2, 3)
    overwritten = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    built = ModuleObjective(overwritten, LOSSES["squared"], structural={"0": "identity"})
    with pytest.raises(ValueError, match="overwritten by an in-place op"):
        built.curvature(built.prepare((x, y)), built.parameters.read())
    unused = dense()
    unused.extra = nn.Linear(2, 2)
    unused.forward = lambda x: unused[2](unused[1](unused[0](x)))  # type: ignore[method-assign]
    built = ModuleObjective(unused, LOSSES["squared"], structural={"extra": "tanh"})
    with pytest.raises(ValueError, match="'extra' was not called"):
        built.curvature(built.prepare((x, y)), built.parameters.read())
    plain = ModuleObjective(model, LOSSES["squared"])
    curvature = plain.curvature(plain.prepare((x, y)), plain.parameters.read())
    with pytest.raises(ValueError, match="structural: needs the objective's"):
        curvature.product(plain.parameters.read(), structural=0.1)


# ------------------------------------------------------------------------------- parameters


def test_parameters_that_do_not_affect_the_loss_have_zero_rows() -> None:
    problem = task("dense", "softmax")
    model = nn.Sequential(problem.model, nn.Identity()).double()
    model.unused = nn.Parameter(torch.ones(7, dtype=torch.float64))
    model.forward = lambda x: problem.model(x)  # type: ignore[method-assign]
    for kind in KINDS:
        for strategy in STRATEGIES:
            if kind == "hessian" and strategy == "linearize":
                continue
            built = ModuleObjective(model, problem.loss, strategy=strategy)
            data = built.prepare((problem.x, problem.y))
            theta = built.parameters.read()
            at = built.parameters.names.index("unused")
            where = torch.cat(
                [torch.full((p.numel(),), i == at) for i, p in enumerate(model.parameters())]
            )
            V = vectors(len(theta), 2)
            rows = built.curvature(data, theta, kind).products(V)
            assert bool((rows[:, where] == 0).all())
            want = V[:, ~where] @ dense_matrix("dense", "softmax", kind)
            assert relative_error(rows[:, ~where], want) <= 1e-11
    assert bool((built.squared_gradients(data, theta)[where] == 0).all())
    assert bool((built.gradient(data, theta)[1][where] == 0).all())


def test_frozen_and_tied_parameters() -> None:
    """Frozen ones are no rows; tied ones appear once, with both paths."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model = model.double()
    model[2].weight = model[0].weight
    model[4].bias.requires_grad_(False)
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    built = ModuleObjective(model, hf.losses.SquaredError())
    theta = built.parameters.read()
    assert len(theta) == 9 + 3 + 3 + 6

    def outputs(p: Tensor) -> Tensor:
        W, b0, b2, W4 = p[:9].view(3, 3), p[9:12], p[12:15], p[15:].view(2, 3)
        return torch.tanh(torch.tanh(x @ W.T + b0) @ W.T + b2) @ W4.T + model[4].bias

    J = torch.autograd.functional.jacobian(outputs, theta).reshape(8, -1)
    v = vectors(len(theta), 1)[0]
    for strategy in ("trace", "linearize"):
        built.strategy = strategy
        got = built.curvature(built.prepare((x, y)), theta).product(v)
        assert relative_error(got, J.T @ (J @ v) / 4) <= 1e-12


def test_curvature_stays_where_it_was_taken() -> None:
    """At any θ, whatever the model holds then or later."""
    problem = task("lstm", "softmax")
    built, data = objective(problem, strategy="double_vjp")
    theta = problem.theta
    elsewhere = built.curvature(data, theta + 0.1)
    here = built.curvature(data, theta)
    v = vectors(len(theta), 1)[0]
    before = here.product(v)
    with built.parameters.holding(theta + 0.1):
        assert torch.equal(here.product(v), before)
        same = built.curvature(data, theta + 0.1).product(v)
    assert torch.equal(same, elsewhere.product(v))
    assert relative_error(same, before) > 1e-3


def test_bare_parameters_need_a_closure_at_their_own_values() -> None:
    problem = task("dense", "squared")
    parameters = list(problem.model.parameters())
    built = ModuleObjective(iter(parameters))

    def closure() -> tuple[Tensor, Tensor]:
        s = problem.model(problem.x)
        return problem.mean_loss(s), s

    v = vectors(len(problem.theta), 1)[0]
    for kind in ("ggn", "hessian"):
        got = built.curvature(closure, problem.theta, kind).product(v)
        assert relative_error(got, dense_matrix("dense", "squared", kind) @ v) <= 1e-12
    with pytest.raises(ValueError, match="theta: bare parameters"):
        built.curvature(closure, problem.theta + 1)
    with pytest.raises(TypeError, match="batches need a module"):
        ModuleObjective(parameters, problem.loss).prepare((problem.x, problem.y))
    with pytest.raises(TypeError, match="batches need a loss"):
        ModuleObjective(problem.model).prepare((problem.x, problem.y))


def test_a_closure_has_no_cases_and_cannot_be_cut() -> None:
    problem = task("dense", "squared")
    built = ModuleObjective(problem.model)
    for call in (
        lambda: built.curvature(lambda: None, problem.theta, "fisher"),
        lambda: built.squared_gradients(lambda: None, problem.theta),
        lambda: built.diagonal(lambda: None, problem.theta),
    ):
        with pytest.raises(ValueError, match="a closure has no cases"):
            call()
    with pytest.raises(ValueError, match="chunk_size: a closure cannot be cut"):
        ModuleObjective(problem.model, chunk_size=2).loss(lambda: None, problem.theta)


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), r"Dropout '1' draws a new mask"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), r"BatchNorm1d '1' normalises by"),
        (nn.Sequential(nn.Linear(4, 4), nn.RReLU()), r"RReLU '1' draws"),
    ],
    ids=["dropout", "batchnorm", "rrelu"],
)
def test_train_mode_that_makes_evaluations_differ_is_refused(model, message) -> None:
    model = model.double()
    x = torch.randn(6, 4, dtype=torch.float64)
    built = ModuleObjective(model, hf.losses.SquaredError())
    data, theta = built.prepare((x, x)), built.parameters.read()
    opt = hf.HessianFree(model)
    for call in (
        lambda: built.loss(data, theta),
        lambda: built.gradient(data, theta),
        lambda: built.squared_gradients(data, theta),
        lambda: built.curvature(data, theta),
        lambda: opt.step(lambda: ((s := model(x)).square().mean(), s)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    statistics = [b.clone() for b in model.buffers()]
    model.eval()
    first, second = (built.curvature(data, theta).product(theta) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))


def test_lstm_and_attention_dropout_is_refused_and_batch_statistics_are() -> None:
    for part, message in (
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), "LSTM draws a new mask"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), "MultiheadAttention draws"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "BatchNorm1d normalises"),
    ):
        built = ModuleObjective(part)
        with pytest.raises(ValueError, match=message):
            built.gradient(lambda: None, built.parameters.read())


def test_integer_and_complex_parameters_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"parameter phase is torch\.complex64, need real"):
        ModuleObjective(model)
    counts = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    assert ModuleObjective([*nn.Linear(2, 2).parameters(), counts]).parameters.numel == 6


def gradient_of(model: nn.Module, loss: object, batch: object) -> Tensor:
    built = ModuleObjective(model, loss)
    return built.gradient(built.prepare(batch), built.parameters.read())[1]


def test_losses_that_do_not_fit_are_explained() -> None:
    model = dense().double()
    x, y = torch.randn(4, 4).double(), torch.randn(4, 3).double()
    classes, none = torch.randint(3, (4,)), torch.ones(4, 3)
    softmaxed = nn.Sequential(model, nn.Softmax(-1))
    for module, loss, batch, message in (
        (model, nn.MSELoss(reduction="sum"), (x, y), "reduction='sum', need 'mean'"),
        (model, lambda s, t: (s - t) ** 2, (x, y), "need a scalar tensor, the mean over cases"),
        (model, lambda s, t: 1.0, (x, y), "loss: returned 1.0"),
        (model, LOSSES["softmax"], (x, y), r"targets: got shape \[4, 3\], need classes"),
        (softmaxed, LOSSES["softmax"], (x, classes), "as if a softmax had been applied"),
        (model, nn.MSELoss(), (x, y, none.bool()), r"mask: got shape \[4, 3\], need \[4\]"),
        (model, lambda s, t: s.sum(), (x, y, none[:, 0].bool()), "mask: needs a loss of hf.losses"),
        (
            nn.Sequential(nn.Linear(4, 4).double(), nn.Unflatten(1, (2, 2))),
            nn.CrossEntropyLoss(),
            (x, classes[:, None].expand(4, 2) % 2, none[:, 0].bool()),
            r"mask: got shape \[4\], need \[4, 2\]",
        ),
        (model, LOSSES["logistic"], (x, y * 9), r"targets: an unmasked target is"),
        (nn.LSTM(4, 3).double(), LOSSES["squared"], (x, y), "the model returned tuple"),
        (nn.Flatten(0), LOSSES["squared"], (x, y), "has no trainable parameters"),
        (model, LOSSES["squared"], (x[:3], y), "targets: got 4 cases along axis 0, need 3"),
        (model, LOSSES["squared"], (x, y * torch.inf), "an unmasked target is"),
        (model, LOSSES["squared"], (x * torch.nan, y), "inputs: holds NaN or Inf"),
        (model, LOSSES["squared"], (x[:0], y[:0]), "need at least one case"),
        (model, LOSSES["squared"], (x, y, torch.zeros(4).bool()), "masks every output"),
        (model, LOSSES["squared"], [], "got no batch"),
        (model, LOSSES["squared"], [3], "batch: got int"),
        (model, "squared", (x, y), "loss: got str"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            gradient_of(module, loss, batch)
    built = ModuleObjective(model, LOSSES["squared"])
    data, theta = built.prepare((x, y)), built.parameters.read()
    with pytest.raises(ValueError, match="kind: got 'fishy'"):
        built.curvature(data, theta, "fishy")
    with pytest.raises(ValueError, match="strategy: got 'fast'"):
        ModuleObjective(model, strategy="fast")
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        ModuleObjective(model, chunk_size=0)
    built = ModuleObjective(model, LOSSES["squared"], chunk_size=2, strategy="trace")
    with pytest.raises(ValueError, match="'trace' keeps what chunk_size is there to free"):
        built.curvature(data, theta)


def test_outputs_that_no_parameter_moves_are_explained() -> None:
    model = nn.Linear(2, 2)
    other = nn.Linear(2, 2)
    x = torch.ones(3, 2)
    built = ModuleObjective(model)
    with pytest.raises(ValueError, match="outputs do not depend on the model's parameters"):
        built.curvature(lambda: ((s := other(x)).square().mean(), s), built.parameters.read())


def test_a_loss_without_convexity_has_no_root() -> None:
    problem = task("dense", "squared")
    built = ModuleObjective(problem.model, lambda s, y: -(s - y).square().mean())
    with pytest.raises(ValueError, match="negative eigenvalue"):
        built.diagonal(built.prepare((problem.x, problem.y)), problem.theta)


# ----------------------------------------------------------------------- choice and compile


def test_measure_times_once_and_reports(caplog) -> None:
    problem = task("loop", "softmax")
    built, data = objective(problem, strategy="measure")
    with caplog.at_level("INFO", logger="hfcore"):
        first = built.curvature(data, problem.theta)
        second = built.curvature(data, problem.theta)
    (choice,) = built.choices.values()
    assert {"trace", "double_vjp", "jvp"} <= {*choice.seconds}
    assert first.strategy == second.strategy == choice.name
    cost = {n: setup + 50 * product for n, (setup, product) in choice.seconds.items()}
    assert choice.name == min(cost, key=cost.__getitem__)
    assert [r.message for r in caplog.records if "curvature products by" in r.message] != []
    v = vectors(len(problem.theta), 1)[0]
    want = dense_matrix("loop", "softmax", "ggn") @ v
    assert relative_error(first.product(v), want) <= 1e-12


class _NumpyTanh(SavesOutput):
    """Leaves torch in its backward pass, as a wrapped simulator would."""

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return _Scaled.apply(g, 1 - y * y)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(d)
        return torch.from_numpy(g.detach().numpy() * d.detach().numpy())

    @staticmethod
    def backward(ctx, gg: Tensor) -> tuple[Tensor, None]:
        (d,) = ctx.saved_tensors
        return _Scaled.apply(gg, d), None


class _Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(_NumpyTanh.apply(self.linear(x)))


def test_what_cannot_be_traced_or_vmapped_is_served_otherwise(caplog) -> None:
    """A tangent that passes through NumPy is lost to a recording, which is noticed."""
    problem = task("dense", "squared")
    model = _Wrapped().double()
    model.load_state_dict(
        dict(zip(model.state_dict(), problem.model.state_dict().values(), strict=True))
    )
    built = ModuleObjective(model, problem.loss)
    data = built.prepare((problem.x, problem.y))
    with caplog.at_level("INFO", logger="hfcore"):
        curvature = built.curvature(data, problem.theta)
        V = vectors(len(problem.theta), 2)
        rows = curvature.products(V)
        squares = built.squared_gradients(data, problem.theta)
    assert curvature.strategy == "double_vjp"
    assert {"trace", "jvp"} <= {*built.choices["ggn"].declined}
    assert relative_error(rows, V @ dense_matrix("dense", "squared", "ggn")) <= 1e-12
    fisher = dense_matrix("dense", "squared", "fisher").diagonal()
    assert relative_error(squares, fisher) <= 1e-12
    said = [r.message for r in caplog.records if "one case after the other" in r.message]
    assert len(said) == 1


def test_a_loss_that_cannot_be_vmapped_is_taken_case_by_case() -> None:
    """Python that looks at values: the Fisher, the roots of L'' and the squares all the same."""

    def loss(s: Tensor, y: Tensor) -> Tensor:
        weight = 2.0 if float(y.detach().mean()) > 0.5 else 1.0
        return weight * (s - y).square().mean()

    problem = task("dense", "MSELoss")
    theta, v = problem.theta, vectors(len(problem.theta), 1)[0]
    built = ModuleObjective(problem.model, loss)
    s = problem.outputs(theta).detach()
    data = built.prepare((problem.x, problem.y))
    losses = lambda p: torch.stack([loss(s, y) for s, y in zip(problem.outputs(p), problem.y)])  # noqa: B905, E731
    J = torch.autograd.functional.jacobian(losses, theta)
    got = built.curvature(data, theta, "fisher").product(v)
    assert relative_error(got, J.T @ (J @ v) / len(J)) <= 1e-12
    squares = built.squared_gradients(data, theta)
    assert relative_error(squares, J.square().mean(0)) <= 1e-12
    J = torch.autograd.functional.jacobian(problem.outputs, theta)
    weights = torch.tensor([2.0 if float(y.mean()) > 0.5 else 1.0 for y in problem.y]).double()
    diagonal = (J.square().sum(1) * weights[:, None] * 2 / s.shape[1]).mean(0)
    assert relative_error(built.diagonal(data, theta), diagonal) <= 1e-12


def test_compiled_modules_work_and_run_eagerly() -> None:
    """torch.compile'd models, submodules and closures: the eager module is differentiated."""
    problem = task("dense", "softmax")
    compiled = torch.compile(problem.model, backend="aot_eager")
    nested = nn.Sequential(compiled, nn.Identity())
    v = vectors(len(problem.theta), 1)[0]

    def closure() -> tuple[Tensor, Tensor]:
        s = compiled(problem.x)
        return problem.mean_loss(s), s

    compiled(problem.x)  # so that there is a compiled graph to be tempted by
    want = dense_matrix("dense", "softmax", "ggn") @ v
    for model, data in (
        (compiled, (problem.x, problem.y)),
        (nested, (problem.x, problem.y)),
        (compiled, closure),
    ):
        for strategy in STRATEGIES:
            if strategy == "linearize" and (model is nested or data is closure):
                continue  # torch.fx refuses a compiled submodule, and says so
            built = ModuleObjective(model, problem.loss, strategy=strategy)
            curvature = built.curvature(built.prepare(data), problem.theta)
            assert relative_error(curvature.product(v), want) <= 1e-12


def test_inputs_may_be_a_tuple() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return torch.tanh(self.a(pair[0]) + self.b(pair[1]))

    model = Sum().double()
    first, second = torch.randn(5, 2).double(), torch.randn(5, 4).double()
    y = torch.randn(5, 3).double()
    built = ModuleObjective(model, hf.losses.SquaredError())
    joined = nn.Sequential(nn.Linear(6, 3), nn.Tanh()).double()
    with torch.no_grad():
        joined[0].weight.copy_(torch.cat([model.a.weight, model.b.weight], 1))
        joined[0].bias.copy_(model.a.bias + model.b.bias)
    other = ModuleObjective(joined, hf.losses.SquaredError())
    data = built.prepare([hf.Batch((first, second), y)])  # type: ignore[arg-type]
    whole = other.prepare((torch.cat([first, second], 1), y))
    assert built.loss(data, built.parameters.read()) == pytest.approx(
        other.loss(whole, other.parameters.read()), rel=1e-14
    )
    squares = built.squared_gradients(data, built.parameters.read())
    reference = other.squared_gradients(whole, other.parameters.read())
    torch.testing.assert_close(squares[6:9], reference[-3:])
    built.chunk_size = 2
    chunked = built.squared_gradients(data, built.parameters.read())
    torch.testing.assert_close(chunked, squares)


def test_convolutional_model_in_train_mode_with_batchnorm_evaluated() -> None:
    """model.train() with the BatchNorm alone in eval mode is accepted."""
    model = convolutional().double().train()
    model[1].eval()
    built = ModuleObjective(model, hf.losses.SquaredError())
    x, y = torch.randn(2, 1, 6, 6).double(), torch.randn(2, 3).double()
    theta = built.parameters.read()
    v = vectors(len(theta), 1)[0]
    got = built.curvature(built.prepare((x, y)), theta).product(v)
    assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize("strategy", ["auto", "double_vjp", "trace", "jvp", "linearize"])
def test_a_closure_may_use_parameters_directly(strategy) -> None:
    """Half of this net is reached through the model, half through parameters held aside."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(9, 3, generator=g, dtype=torch.float64)
    y = torch.randn(9, 2, generator=g, dtype=torch.float64)
    W, b = list(net.parameters())[2:]

    def through_model():
        s = net(x)
        return (s - y).square().sum() / 9, s

    def directly():
        s = torch.tanh(net[0](x)) @ W.T + b
        return (s - y).square().sum() / 9, s

    theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    v = torch.randn(theta.shape, generator=g, dtype=torch.float64)
    want = ModuleObjective(net).curvature(through_model, theta).product(v)
    objective = ModuleObjective(net, strategy=strategy)
    if strategy in ("jvp", "linearize"):
        with pytest.raises(NotTraceable, match="bare parameters"):
            objective.curvature(directly, theta)
        return
    got = objective.curvature(directly, theta)
    torch.testing.assert_close(got.product(v), want, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="own values only"):
        ModuleObjective(net, strategy=strategy).curvature(directly, theta + 1)
