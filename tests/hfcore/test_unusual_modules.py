"""Modules that are ordinary to torch and unusual in a point: how they lie in memory, what they
write to, what torch cannot differentiate. Either right against dense float64 matrices, or named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hfcore as hf
from hfcore.autograd import large_outputs
from hfcore.autograd.objective import ModuleObjective

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
V = torch.randn(200, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(before)


def rows(s: Tensor, model: nn.Module) -> Tensor:
    """ds/dθ ``[M,N]`` a row at a time by first derivatives alone."""
    parameters = [*model.parameters()]
    found = []
    for number in s.reshape(-1):
        gradients = torch.autograd.grad(number, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        found.append(torch.cat([(0 * p if g is None else g).reshape(-1) for p, g in pairs]))
    return torch.stack(found)


def gauss_newton(model: nn.Module, loss: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    """JᵀL''J, dense."""
    s = model(x)
    second = torch.autograd.functional.hessian(
        lambda flat: loss(flat.view(s.shape), y), s.detach().reshape(-1)
    )
    J = rows(s, model)
    return J.T @ second @ J


def compare(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, **options: object) -> None:
    """Products with vectors, columns and columns of a matrix, and the diagonal."""
    want = gauss_newton(model, loss, x, y)
    G = hf.GaussNewton(model, loss, x, y, **options)
    columns = V[: len(want)]
    torch.testing.assert_close(G @ columns, want @ columns)
    torch.testing.assert_close(G @ columns[:, 1], want @ columns[:, 1])
    torch.testing.assert_close(G @ columns[:, 1].clone(), want @ columns[:, 1])
    torch.testing.assert_close(G.diagonal(), want.diagonal())


# ------------------------------------------------------------------------ how they lie in memory


class Turning(nn.Module):
    """Complex weights that are stored as pairs, behind an odd number of others."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).tanh()
        turned = torch.complex(h[:, :3], h[:, 1:]) * torch.view_as_complex(self.weight)
        return torch.view_as_real(turned).sum(-1) + self.bias


@pytest.mark.parametrize("strategy", ["auto", "trace", "double_vjp", "jvp"])
def test_pairs_that_are_viewed_as_complex(strategy: str) -> None:
    compare(Turning(), nn.MSELoss(), X, Y, strategy=strategy)


def test_pairs_that_are_viewed_as_complex_elsewhere() -> None:
    model = Turning()
    J = rows(model(X), model)
    got = hf.Jacobian(model, X)
    torch.testing.assert_close(got @ V[: J.shape[1], 1], J @ V[: J.shape[1], 1])
    assert hf.HessianFree(model, nn.MSELoss()).step((X, Y)).accepted
    before = F.mse_loss(model(X), Y)
    hf.LeastSquares(model.parameters()).step(lambda: (model(X) - Y).reshape(-1))
    assert F.mse_loss(model(X), Y) < before


class WithAnEmptyPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.randn(0, 3))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh() + self.none.sum()


@pytest.mark.parametrize("strategy", ["auto", "trace", "double_vjp", "jvp"])
def test_a_parameter_without_numbers(strategy: str) -> None:
    model = WithAnEmptyPart()
    compare(model, nn.MSELoss(), X, Y, strategy=strategy)
    assert hf.HessianFree(model, nn.MSELoss(), strategy=strategy).step((X, Y)).accepted


@pytest.mark.parametrize("strategy", ["auto", "trace", "double_vjp", "jvp"])
def test_classes_of_pixels_in_channels_last(strategy: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    y = torch.randint(3, (4, 5, 5))
    compare(model, nn.CrossEntropyLoss(), x, y, strategy=strategy)


# ------------------------------------------------------------------------ what they write to


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.clamp_(-0.1, 0.1)
        return self.linear(x)


def test_a_forward_that_writes_to_its_weights_is_named() -> None:
    """The loss at θ is that at the clipped θ, whose gradient is not clipped."""
    model, loss = Clipped(), nn.MSELoss()
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def pair() -> tuple[Tensor, Tensor]:
        s = model(X)
        return F.mse_loss(s, Y), s

    for call in (
        lambda: hf.GaussNewton(model, loss, X, Y),
        lambda: hf.Jacobian(model, X),
        lambda: hf.HessianFree(model, loss).step((X, Y)),
        lambda: hf.HessianFree(model, curvature="hessian_fd").step(lambda: pair()[0]),
        lambda: hf.HessianFree(model.parameters()).step(pair),
        lambda: hf.LeastSquares(model.parameters()).step(lambda: model(X).reshape(-1)),
    ):
        with pytest.raises(ValueError, match=r"model: parameter .* is written to in every eval"):
            call()
        with torch.no_grad():  # closures of bare parameters write to the parameters themselves
            for p, part in zip(model.parameters(), flat.split([12, 3]), strict=True):
                p.copy_(part.view(p.shape))


class Embedded(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.linear = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.embedding(tokens).reshape(len(tokens), 4).tanh())


TOKENS = torch.tensor([[0], [1], [1], [2], [3], [1]])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_norm", 0.5, r"Embedding 'embedding' has max_norm=0.5, which rewrites θ"),
        ("scale_grad_by_freq", True, r"scale_grad_by_freq=True, whose gradients are not those"),
    ],
)
def test_embeddings_whose_gradients_are_not_those_of_the_loss(
    option: str, value: object, message: str
) -> None:
    """Torch's own gradient against differences of the loss; then the refusals."""
    model = Embedded(nn.Embedding(5, 4, **{option: value}))
    weight, loss, h = model.embedding.weight, nn.MSELoss(), 1e-6
    start, along = weight.detach().clone(), torch.randn(5, 4)

    def at(step: float) -> Tensor:
        with torch.no_grad():
            weight.copy_(start + step * along)
        return loss(model(TOKENS), Y)

    slope = float((at(h) - at(-h)).detach()) / (2 * h)
    (gradient,) = torch.autograd.grad(at(0.0), weight)
    assert abs(slope - float((gradient * along).sum())) > 0.05 * abs(slope)
    for call in (
        lambda: hf.GaussNewton(model, loss, TOKENS, Y),
        lambda: hf.HessianFree(model, loss).step((TOKENS, Y)),
        lambda: hf.HessianFree(model, curvature="hessian_fd").step(lambda: loss(model(TOKENS), Y)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ------------------------------------------------------------------------ what torch lacks


def test_an_op_without_a_second_derivative_is_named() -> None:
    model, loss = Embedded(nn.EmbeddingBag(5, 4)), nn.MSELoss()
    for call in (
        lambda: hf.GaussNewton(model, loss, TOKENS, Y),
        lambda: hf.Hessian(model, loss, TOKENS, Y),
        lambda: hf.GaussNewton(model, loss, TOKENS, Y, chunk_size=2),
        lambda: hf.Jacobian(model, TOKENS),
        lambda: hf.HessianFree(model, loss).step((TOKENS, Y)),
    ):
        with pytest.raises(ValueError, match=r"no derivative of _embedding_bag_.*hessian_fd"):
            call()
    with pytest.raises(ValueError, match=r"strategy: 'jvp' needs forward mode.*_embedding_bag"):
        hf.GaussNewton(model, loss, TOKENS, Y, strategy="jvp")
    opt = hf.HessianFree(model, curvature="hessian_fd")
    stats = opt.step(lambda: loss(model(TOKENS), Y))
    assert stats.loss_after < stats.loss


class Square(torch.autograd.Function):
    """x², whose backward pass cannot be differentiated and which has a forward mode."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, v):
        return 2 * ctx.saved_tensors[0] * v


class RefusingSquare(Square):
    """The same, whose backward pass refuses to be recorded."""

    @staticmethod
    def backward(ctx, g):
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative")
        return 2 * ctx.saved_tensors[0] * g


class Squaring(nn.Module):
    def __init__(self, square: type[Square]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.square = square

    def forward(self, x: Tensor) -> Tensor:
        return self.square.apply(self.linear(x))


@pytest.mark.parametrize("square", [Square, RefusingSquare])
def test_what_has_a_forward_mode_alone_is_served_by_it(square: type[Square]) -> None:
    model, loss = Squaring(square), nn.MSELoss()
    want = gauss_newton(model, loss, X, Y)
    for options in ({}, {"chunk_size": 2}, {"strategy": "measure"}):
        G = hf.GaussNewton(model, loss, X, Y, **options)
        torch.testing.assert_close(G @ V[:15], want @ V[:15])


class Laplacian(nn.Module):
    """Derivatives of a net at its inputs by torch.func, which makes zeros without numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        second = torch.func.hessian(lambda z: self.net(z)[0])
        return torch.vmap(second)(x).diagonal(dim1=1, dim2=2).sum(1, keepdim=True)


@pytest.mark.parametrize("strategy", ["auto", "trace", "double_vjp", "measure"])
def test_the_hessian_of_a_model_of_derivatives(strategy: str) -> None:
    """Recording it ended the process."""
    model, y = Laplacian(), Y[:, :1]
    parameters = [*model.parameters()]
    gradient = torch.autograd.grad(
        F.mse_loss(model(X), y), parameters, create_graph=True, materialize_grads=True
    )
    want = rows(torch.cat([g.reshape(-1) for g in gradient]), model)
    H = hf.Hessian(model, nn.MSELoss(), X, y, strategy=strategy)
    torch.testing.assert_close(H @ V[: len(want)], want @ V[: len(want)])


# ------------------------------------------------------------------------ cases


class Neighbours(nn.Module):
    """Cases are nodes, and the edges are the module's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.edges = torch.tensor([[0, 5, 2, 3], [5, 1, 4, 0]])

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h.index_add(0, self.edges[0], h[self.edges[1]].tanh())


def test_a_model_that_takes_all_cases_or_none() -> None:
    """Half of them is an IndexError of the model's."""
    model = Neighbours()
    want = gauss_newton(model, nn.MSELoss(), X, Y)
    G = hf.GaussNewton(model, nn.MSELoss(), X, Y)
    torch.testing.assert_close(G @ V[:15], want @ V[:15])
    for call in (
        lambda: G.diagonal(),
        lambda: hf.EmpiricalFisher(model, nn.MSELoss(), X, Y),
        lambda: hf.GaussNewton(model, nn.MSELoss(), X, Y, chunk_size=4),
    ):
        with pytest.raises(ValueError, match=r"model: took all cases together.*IndexError.*needs"):
            call()


def test_large_outputs_of_such_a_model_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_outputs, "LARGE", 1)
    model = Neighbours()
    want = gauss_newton(model, nn.MSELoss(), X, Y)
    G = hf.GaussNewton(model, nn.MSELoss(), X, Y)
    torch.testing.assert_close(G @ V[:15], want @ V[:15])


class CentredInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return (h - h.mean(0) if self.training else h).tanh()


def test_cases_are_looked_at_again_in_another_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was right to cut in eval mode is not in train mode, and the other way round."""
    model, loss = CentredInTraining().eval(), nn.MSELoss()
    built = ModuleObjective(model, loss, chunk_size=3)
    data, theta = built.prepare((X, Y)), built.parameters.read()
    assert built.loss(data, theta) == pytest.approx(float(loss(model(X), Y).detach()), rel=1e-12)
    model.train()
    with pytest.raises(ValueError, match=r"batch_dim: the outputs of half"):
        built.loss(data, theta)
    monkeypatch.setattr(large_outputs, "LARGE", 1)
    built = ModuleObjective(model, loss)
    want = gauss_newton(model, loss, X, Y)
    curvature = built.curvature(built.prepare((X, Y)), theta)
    assert len(curvature._strategies) == 1
    torch.testing.assert_close(curvature.product(V[:15, 0]), want @ V[:15, 0])
    model.eval()
    want = gauss_newton(model, loss, X, Y)
    curvature = built.curvature(built.prepare((X, Y)), theta)
    assert len(curvature._strategies) > 1
    torch.testing.assert_close(curvature.product(V[:15, 0]), want @ V[:15, 0])


class Scaled(nn.Module):
    """Two things that belong to all cases: a number and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor, table: Tensor) -> Tensor:
        return (self.linear(x) * scale).tanh() @ table


TABLE = torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("scale", [torch.tensor(2.0), torch.tensor([2.0]), 2.0])
@pytest.mark.parametrize("form", [tuple, list, dict])
def test_inputs_of_all_cases_are_not_cut(scale: object, form: type) -> None:
    """A forward of three arguments takes three inputs; the table is as long as half of the cases,
    so that a piece of the data is no longer than it."""
    model, loss = Scaled(), nn.MSELoss()
    scale = scale.double() if isinstance(scale, Tensor) else scale
    values = {"table": TABLE, "x": X, "scale": scale}  # of a mapping the cases need not come first
    inputs = values if form is dict else form([X, scale, TABLE])
    s = model(**values)
    J, second = rows(s, model), torch.eye(18) * 2 / 18
    want = J.T @ second @ J
    for options in ({}, {"chunk_size": 3}, {"chunk_size": 2}):
        G = hf.GaussNewton(model, loss, inputs, Y, **options)
        torch.testing.assert_close(G @ V[:15], want @ V[:15])
        torch.testing.assert_close(G.diagonal(), want.diagonal())
    each = torch.stack([rows(loss(s[b], Y[b])[None], model)[0] for b in range(6)])
    F_ = hf.EmpiricalFisher(model, loss, inputs, Y)
    torch.testing.assert_close(F_ @ V[:15], each.T @ each @ V[:15] / 6)
    torch.testing.assert_close(F_.diagonal(), each.square().mean(0))
    torch.testing.assert_close(hf.Jacobian(model, inputs) @ V[:15], J @ V[:15])
    assert hf.HessianFree(model, loss, chunk_size=2).step(hf.Batch(inputs, Y)).accepted


def test_targets_of_all_cases_are_not_cut() -> None:
    """A loss of one's own whose targets come with the scale of each output."""

    def weighed(s: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
        return ((s - y[0]).square() * y[1]).sum(-1).mean()

    model, weights = nn.Linear(4, 3), torch.tensor([1.0, 2.0, 5.0])
    J = rows(model(X), model)
    want = J.T @ (weights.repeat(6)[:, None] * J) * 2 / 6
    for options in ({}, {"chunk_size": 4}):
        G = hf.GaussNewton(model, weighed, X, (Y, weights), **options)
        torch.testing.assert_close(G @ V[:15], want @ V[:15])
        torch.testing.assert_close(G.diagonal(), want.diagonal())


class TakesOne(nn.Module):
    """A forward that takes a tuple as one argument goes on doing so."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, pair: tuple[Tensor, Tensor], more: None = None) -> Tensor:
        return self.linear(pair[0] * pair[1])


def test_a_tuple_that_is_one_argument_stays_one() -> None:
    model = TakesOne()
    J = rows(model((X, X)), model)
    torch.testing.assert_close(hf.Jacobian(model, (X, X)) @ V[:15], J @ V[:15])
    G = hf.GaussNewton(model, nn.MSELoss(), (X, X), Y)
    torch.testing.assert_close(G @ V[:15], J.T @ J @ V[:15] * 2 / 18)
