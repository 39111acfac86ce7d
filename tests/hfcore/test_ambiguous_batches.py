"""What may be one batch of several inputs and targets, or several batches, is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.objective_factory import objective_for
from hfcore.training import Limits

D = torch.float64


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


# All of one shape: nothing but the nesting says what is what.
X1, X2, T1, T2 = (noise(5, 3, seed=seed) for seed in range(4))


class Two(nn.Module):
    """Takes one tensor or two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3, dtype=D)

    def forward(self, given: Any) -> Tensor:
        return self.linear(given if isinstance(given, Tensor) else given[0] * given[1])


def loss(s: Tensor, targets: Any) -> Tensor:
    t = targets if isinstance(targets, Tensor) else targets[0] + targets[1]
    return (s - t).square().mean()


NESTED: dict[str, Any] = {
    "lists": [[X1, X2], [T1, T2]],
    "tuples": ((X1, X2), (T1, T2)),
    "tuple of lists": ([X1, X2], [T1, T2]),
    "list and tuple": [[X1, X2], (T1, T2)],
    "tuple and list": [(X1, X2), [T1, T2]],
}
MESSAGE = "is one batch or several; need hf.Batch"


@pytest.mark.parametrize("given", NESTED.values(), ids=NESTED)
def test_what_may_be_either_is_refused(given) -> None:
    model = Two()
    before = [p.clone() for p in model.parameters()]
    opt = hf.HessianFree(model, loss)
    for call in (
        lambda: opt.step(given),
        lambda: opt.step(hf.Batches(given)),
        lambda: opt.step(hf.Batches(hf.Batch(X1, T1), curvature=given)),
        lambda: hf.GaussNewton(model, loss, given),
        lambda: objective_for(model, loss).prepare(given),
        lambda: objective_for(
            hf.MLP([3, 3], ["linear"], dtype=D), hf.losses.SquaredError()
        ).prepare(given),
    ):
        with pytest.raises(TypeError, match=MESSAGE):
            call()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_two_lists_are_no_sequences() -> None:
    """``[[x1, x2], [y1, y2]]`` is two sequences (x, y), or the inputs and the targets of two."""
    model = hf.RNN(3, 2, 3, dtype=D)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"loss": hf.losses.SquaredError(), "progress": False}
    with pytest.raises(TypeError, match=f"data: a list of 2 lists {MESSAGE}"):
        hf.train(model, [[X1, X2], [T1, T2]], opt, stop=Limits(iterations=1), **options)
    hf.train(model, [(X1, T1), (X2, T2)], opt, stop=Limits(iterations=1), **options)


def test_what_says_which_it_is_has_its_value() -> None:
    model = Two()

    def value(given: Any, target: Any) -> float:
        return float(loss(model(given), target).detach())

    one = value((X1, X2), (T1, T2))
    several = 0.5 * (value(X1, X2) + value(T1, T2))
    assert abs(one - several) > 0.1
    single = hf.Batch((X1, X2), (T1, T2))  # type: ignore[arg-type]
    pairs = [(X1, X2), (T1, T2)]
    for given, want in (
        (single, one),
        ([single], one),
        (pairs, several),
        ([hf.Batch(X1, X2), hf.Batch(T1, T2)], several),
        ([[X1, X2]], value(X1, X2)),
        ([[X1, X2], [T1, T2], [X1, X2]], (2 * value(X1, X2) + value(T1, T2)) / 3),
    ):
        assert hf.GaussNewton(model, loss, given).loss == pytest.approx(want, rel=1e-12)
    opt = hf.HessianFree(Two(), loss)
    assert opt.step(single).loss == pytest.approx(one, rel=1e-12)
    assert hf.HessianFree(Two(), loss).step(pairs).loss == pytest.approx(several, rel=1e-12)
