"""Small modules of many kinds in float64, and dense oracles that share no code with hfcore."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import hfcore as hf
from oracles import losses

KINDS = ("ggn", "hessian", "fisher")


class Lstm(nn.Module):
    """A class or a vector at every step, cases first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


class Encoder(nn.Module):
    """A transformer encoder layer and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).mean(1))


class Loop(nn.Module):
    """An RNN as torch users write one, time first; its input is indexed step by step."""

    def __init__(self, steps: int | None = None) -> None:
        super().__init__()
        self.inp, self.rec, self.out = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.start = nn.Parameter(torch.zeros(4))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        u = self.inp(x)
        h = torch.tanh(u[0] + self.start)
        states = [h]
        for t in range(1, self.steps or len(x)):
            h = torch.tanh(u[t] + self.rec(h))
            states.append(h)
        return self.out(torch.stack(states))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


# name: (constructor, shape of the inputs, axis of the cases, shape of the outputs)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, tuple[int, ...]]] = {
    "dense": (dense, (5, 4), 0, (5, 3)),
    "convolutional": (convolutional, (3, 1, 6, 6), 0, (3, 3)),
    "lstm": (Lstm, (3, 4, 2), 0, (3, 4, 3)),
    "transformer": (Encoder, (3, 4, 4), 0, (3, 3)),
    "loop": (Loop, (5, 3, 2), 1, (5, 3, 3)),
}


def cross_entropy(s: Tensor, y: Tensor) -> Tensor:
    """A mean loss of one's own, over outputs of any leading shape."""
    return nn.functional.cross_entropy(s.flatten(0, -2), y.flatten())


LOSSES: dict[str, object] = {
    "squared": hf.losses.SquaredError(),
    "logistic": hf.losses.LogisticCrossEntropy(),
    "softmax": hf.losses.SoftmaxCrossEntropy(),
    "callable": cross_entropy,
    "MSELoss": nn.MSELoss(),
}


@dataclass(frozen=True)
class Task:
    """A module with data; ``mean_loss(s)`` and ``case_losses(s)`` are written out once more."""

    model: nn.Module
    loss: object
    x: Tensor
    y: Tensor
    dim: int

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def outputs(self, theta: Tensor) -> Tensor:
        named = dict(self.model.named_parameters())
        parts = theta.split([p.numel() for p in named.values()])
        values = {n: v.view(p.shape) for (n, p), v in zip(named.items(), parts, strict=True)}
        return functional_call(self.model, values, (self.x,))

    def case_losses(self, s: Tensor) -> Tensor:
        s, y = s.movedim(self.dim, 0), self.y.movedim(self.dim, 0)
        if self.loss is LOSSES["callable"]:
            per = nn.functional.cross_entropy(s.movedim(-1, 1), y, reduction="none")
            return per.flatten(1).mean(1) if per.ndim > 1 else per
        if self.loss is LOSSES["MSELoss"]:
            return (s - y).square().flatten(1).mean(1)
        return losses.per_case(self.loss.kind, s, y)

    def mean_loss(self, s: Tensor) -> Tensor:
        return self.case_losses(s).mean()


@cache
def task(model: str, loss: str) -> Task:
    make, x_shape, dim, s_shape = MODELS[model]
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = make().double().eval()
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64)
    if loss in ("softmax", "callable"):
        y = torch.randint(3, s_shape[:-1], generator=generator)
    else:
        y = torch.rand(s_shape, generator=generator, dtype=torch.float64)
    return Task(module, LOSSES[loss], x, y, dim)


def plain_kernels() -> ExitStack:
    """Kernels of torch that have second derivatives."""
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    before = torch.backends.mkldnn.set_flags(False, None, None, None)
    stack.callback(torch.backends.mkldnn.set_flags, before[0], None, None, None)
    return stack


@cache
def dense_matrix(model: str, loss: str, kind: str) -> Tensor:
    """The curvature ``[N,N]`` by Jacobians and Hessians of torch.autograd.functional."""
    problem = task(model, loss)
    theta, N = problem.theta, problem.theta.numel()
    with plain_kernels():
        if kind == "hessian":
            return hessian(lambda p: problem.mean_loss(problem.outputs(p)), theta)
        if kind == "fisher":
            J = jacobian(lambda p: problem.case_losses(problem.outputs(p)), theta)
            return J.T @ J / len(J)
        s = problem.outputs(theta).detach()
        J = jacobian(problem.outputs, theta).reshape(-1, N)
        L = hessian(problem.mean_loss, s).reshape(len(J), len(J))
        return J.T @ L @ J


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())
