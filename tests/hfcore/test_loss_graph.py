"""L'' by the formula of a loss that a caller's own function computed with torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hfcore as hf
from hfcore.autograd.data import call_closure
from hfcore.autograd.loss_graph import second_of_graph

CLASSES = torch.tensor([0, 2, -100, 1, 2])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Y, WEIGHT = drawn(5, 3, seed=1), drawn(3, seed=2).square() + 0.1
MORE = torch.arange(10) % 3

# Losses of outputs [5,3], or [2,5,3] where they are named so.
KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "classes": lambda s: F.cross_entropy(s, CLASSES),
    "classes, summed": lambda s: F.cross_entropy(s, CLASSES, reduction="sum"),
    "weights": lambda s: F.cross_entropy(s, CLASSES, weight=WEIGHT),
    "another class ignored": lambda s: F.cross_entropy(s, CLASSES % 3, WEIGHT, ignore_index=2),
    "split by hand": lambda s: F.nll_loss(s.log_softmax(-1), CLASSES),
    "sequences": lambda s: F.cross_entropy(s.view(-1, 3), MORE),
    "sequences, flattened": lambda s: F.cross_entropy(s.flatten(0, 1), MORE),
    "logits": lambda s: F.binary_cross_entropy_with_logits(s, Y.sigmoid()),
    "logits, weighted": lambda s: F.binary_cross_entropy_with_logits(
        s, Y.sigmoid(), weight=WEIGHT, pos_weight=3 * WEIGHT, reduction="sum"
    ),
    "squares": lambda s: F.mse_loss(s, Y),
    "squares, summed": lambda s: nn.MSELoss(reduction="sum")(s, Y),
    "squares of one row": lambda s: F.mse_loss(s, Y[:1].expand(5, 3)),
    "squares of a vector": lambda s: F.mse_loss(s.view(-1), Y.view(-1)),
    "a vector of one": lambda s: F.mse_loss(s, Y).view(1),
    "huber": lambda s: F.huber_loss(s, Y, delta=0.7),
    "smooth": lambda s: F.smooth_l1_loss(s, Y, beta=0.4, reduction="sum"),
}
UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "more than one term": lambda s: F.cross_entropy(s, CLASSES) + s.square().mean(),
    "scaled": lambda s: 2 * F.mse_loss(s, Y),
    "scaled inside": lambda s: F.mse_loss(2 * s, Y),
    "smoothed": lambda s: F.cross_entropy(s, CLASSES, label_smoothing=0.1),
    "classes along another axis": lambda s: F.cross_entropy(s.T, CLASSES[:3].clamp(0)),
    "a softmax along another axis": lambda s: F.nll_loss(s.log_softmax(0), CLASSES),
    "a part": lambda s: F.mse_loss(s[:2], Y[:2]),
    "broadcast": lambda s: F.mse_loss(s.unsqueeze(0), Y.expand(4, 5, 3)),
    "targets that move": lambda s: F.mse_loss(s, s * s),
    "targets alone move": lambda s: F.mse_loss(Y, s * s),
    "none": lambda s: F.cross_entropy(s, CLASSES, reduction="none").sum(),
    "absolute": lambda s: F.smooth_l1_loss(s, Y, beta=0.0),
    "images": lambda s: F.cross_entropy(s.view(5, 3, 1), CLASSES.view(5, 1)),
}


def outputs_of(name: str) -> Tensor:
    shape = (2, 5, 3) if name.startswith("sequences") else (5, 3)
    return drawn(*shape, seed=3).requires_grad_().tanh()


def dense(loss: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
    H = torch.autograd.functional.hessian(
        lambda flat: loss(flat.view(s.shape)).sum(), s.reshape(-1)
    )
    assert isinstance(H, Tensor)
    return H.detach()


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", KNOWN)
def test_the_formula_is_the_second_derivative(name: str) -> None:
    s = outputs_of(name)
    second = second_of_graph(KNOWN[name](s), s)
    assert second is not None
    H = torch.stack([second(e.view(s.shape)).reshape(-1) for e in torch.eye(s.numel()).double()])
    torch.testing.assert_close(H, dense(KNOWN[name], s), rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_only_looks_like_it_is_left_to_autograd(name: str) -> None:
    s = outputs_of(name)
    assert second_of_graph(UNKNOWN[name](s), s) is None


def test_a_hook_may_change_what_the_graph_says() -> None:
    s = outputs_of("squares")
    s.register_hook(lambda g: 2 * g)
    assert second_of_graph(F.mse_loss(s, Y), s) is None


@pytest.mark.parametrize("strategy", ["trace", "double_vjp", "jvp"])
@pytest.mark.parametrize("name", ["weights", "sequences", "squares of a vector", "broadcast"])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_products_of_closures_and_lambdas(strategy: str, name: str) -> None:
    """Against JᵀL''J of dense matrices."""
    loss = {**KNOWN, **UNKNOWN}[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = drawn(*outputs_of(name).shape[:-1], 4, seed=4)
    J = hf.Jacobian(model, x) @ torch.eye(sum(p.numel() for p in model.parameters())).double()
    G = J.mT @ dense(loss, model(x)) @ J

    def closure() -> tuple[Tensor, Tensor]:
        s = model(x)
        return loss(s), s

    value, s = call_closure(closure)
    assert (second_of_graph(value, s) is not None) == (name in KNOWN)
    by_closure = hf.GaussNewton(model, None, closure, strategy=strategy)
    by_lambda = hf.GaussNewton(model, lambda s, y: loss(s), x, x, strategy=strategy)
    for A in (by_closure, by_lambda):
        torch.testing.assert_close(A @ torch.eye(len(G)).double(), G, rtol=1e-11, atol=1e-14)
