"""What hfcore adds to loss, gradient and product of a module that costs next to nothing.

    python -m bench.small_modules

prints microseconds a call, the least of many rounds, and the ratio to the same computation written
by hand: θ put into the parameters, the module and its loss called, one ``autograd.grad``. Products
of a loss of torch's and of a closure stand beside those of hf.losses.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import hfcore as hf

CASES = 10
ROUNDS, CALLS = 40, 100


class Product:
    """G v = Jᵀ(Jv)/B of the squared error, by two vector-Jacobian products."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.parameters = list(model.parameters())
        self.s = model(x)
        self.u = torch.zeros_like(self.s, requires_grad=True)
        self.Ju = torch.autograd.grad(self.s, self.parameters, self.u, create_graph=True)

    def __call__(self, v: Tensor) -> Tensor:
        parts = v.split([p.numel() for p in self.parameters])
        V = [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]
        (Jv,) = torch.autograd.grad(self.Ju, self.u, V, retain_graph=True)
        grads = torch.autograd.grad(self.s, self.parameters, Jv / CASES, retain_graph=True)
        return torch.cat([g.reshape(-1) for g in grads])


def best_of(*functions: Callable[[], object]) -> list[float]:
    """The least seconds a call of each, in turns."""
    least = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for i, function in enumerate(functions):
            start = perf_counter()
            for _ in range(CALLS):
                function()
            least[i] = min(least[i], (perf_counter() - start) / CALLS)
    return least


def load() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, torch.randn(CASES, 3), torch.randn(CASES, 2)


def main() -> None:
    torch.set_num_threads(1)
    model, x, y = load()
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    objective = hf.objective_for(model, hf.losses.SquaredError())
    data = objective.prepare(hf.Batch(x, y))
    theta = nn.utils.parameters_to_vector(parameters).detach()
    v = torch.randn_like(theta)

    def hold() -> None:
        for p, part in zip(parameters, theta.split(sizes), strict=True):
            p.data = part.view(p.shape)

    def mean_loss() -> Tensor:
        hold()
        return 0.5 * (model(x) - y).square().sum(-1).mean()

    def gradient() -> tuple[float, Tensor]:
        loss = mean_loss()
        grads = torch.autograd.grad(loss, parameters)
        return float(loss.detach()), torch.cat([g.reshape(-1) for g in grads])

    product = Product(model, x)
    operator = hf.GaussNewton(model, hf.losses.SquaredError(), x, y, strategy="double_vjp")
    torch.testing.assert_close(operator @ v, product(v), rtol=1e-4, atol=1e-6)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "loss": (lambda: objective.loss(data, theta), lambda: float(mean_loss().detach())),
        "gradient": (lambda: objective.gradient(data, theta), gradient),
    }
    pairs["product"] = (lambda: operator @ v, lambda: product(v))
    for name, (ours, bare) in pairs.items():
        a, b = best_of(ours, bare)
        print(f"{name:10s} {1e6 * a:7.1f} us, by hand {1e6 * b:7.1f} us, ratio {a / b:.2f}")
    recognised()


def recognised() -> None:
    """Products of torch's own cross-entropy, and of a closure, against the loss of hf.losses."""
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    x, y = torch.randn(256, 64), torch.randint(10, (256,))
    options: dict[str, Any] = {"strategy": "double_vjp"}

    def closure() -> tuple[Tensor, Tensor]:
        s = model(x)
        return nn.functional.cross_entropy(s, y), s

    ours = hf.GaussNewton(model, hf.losses.SoftmaxCrossEntropy(), x, y, **options)
    others = {
        "nn.CrossEntropyLoss": hf.GaussNewton(model, nn.CrossEntropyLoss(), x, y, **options),
        "a closure": hf.GaussNewton(model, None, closure, **options),
    }
    v = torch.randn(ours.shape[0])
    for name, A in others.items():
        a, b = best_of(lambda A=A: A @ v, lambda: ours @ v)  # type: ignore[misc]
        print(f"product of {name}: {a / b:.3f} of that of hf.losses.SoftmaxCrossEntropy")


if __name__ == "__main__":
    main()
