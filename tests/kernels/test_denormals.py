"""Numbers too small to be normal: products take them for zero, on every thread, and only inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hfcore.bindings import momentum, recurrence
from hfcore.bindings.dense import dense_backward
from hfcore.bindings.recurrence import RnnShape, split_flat
from hfcore.bindings.sparse import ell_gradient, ell_matmul, ell_pattern, ell_scan

TINY = 1e-40  # denormal in float32


@pytest.fixture(autouse=True)
def caller_keeps_denormals() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


def vanishing_gradient() -> Tensor:
    """BPTT over 60 steps that each make the gradient ten times smaller: 1e-20 to 1e-80."""
    shape = RnnShape(2, 40, 1)
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(1, shape.numel)
    w = split_flat(theta, shape)
    w.W_hh.copy_(0.1 * torch.eye(40))
    w.W_yh.fill_(1.0)
    x = torch.randn(1, 60, 70, 2, generator=generator)
    h = torch.zeros(1, 60, 70, 40)
    gs = torch.full((1, 1, 70, 1), 1e-20)
    return recurrence.rnn_backward(x, h, w, gs, steps=torch.tensor([59]))


def small_scan() -> Tensor:
    u = torch.full((1, 5, 70, 40), TINY)
    return recurrence.linear_scan(u, torch.ones_like(u), torch.eye(40)[None])


def small_delta() -> Tensor:
    y = torch.full((1, 300, 40), 0.5)
    return dense_backward(
        torch.full((1, 300, 40), TINY), torch.eye(40)[None], y, activation="linear"
    )


def still_velocity() -> Tensor:
    theta, velocity = torch.zeros(1, 100_000), torch.full((1, 100_000), TINY)
    momentum.momentum_update(
        theta,
        velocity,
        torch.zeros(1, 100_000),
        learning_rate=0.1,
        momentum=0.9,
        lookahead=0.0,
        l2=None,
        ahead=None,
        active=None,
    )
    return velocity


def small_sparse_product() -> Tensor:
    ring = ell_pattern(torch.arange(3000).roll(1)[:, None], 3000)
    return ell_matmul(torch.full((1, 70, 3000), TINY), torch.ones(1, 3000, 1), ring)


def small_sparse_gradient() -> Tensor:
    ring = ell_pattern(torch.arange(3000).roll(1)[:, None], 3000)
    x = torch.full((1, 70, 3000), 1e-20)
    return ell_gradient(x, x, ring)


def small_sparse_scan() -> Tensor:
    u = torch.full((1, 9, 70, 300), TINY)
    ring = ell_pattern(torch.arange(300).roll(1)[:, None], 300)
    return ell_scan(u, torch.ones_like(u), torch.ones(1, 300, 1), ring)


PRODUCTS: list[Callable[[], Tensor]] = [
    vanishing_gradient,
    small_scan,
    small_delta,
    small_sparse_product,
    small_sparse_gradient,
    small_sparse_scan,
    still_velocity,
]


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda f: f.__name__)
def test_same_bits_on_any_number_of_threads_and_in_any_mode_of_the_caller(
    product: Callable[[], Tensor],
) -> None:
    torch.set_num_threads(1)
    one = product()
    assert not ((one != 0) & (one.abs() < torch.finfo(torch.float32).tiny)).any()
    torch.set_num_threads(2)
    assert torch.equal(product(), one)
    if torch.set_flush_denormal(True):
        assert torch.equal(product(), one)


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda f: f.__name__)
def test_the_callers_mode_is_as_before(product: Callable[[], Tensor]) -> None:
    product()
    assert float(torch.full((1,), TINY) * 0.5) > 0
    if torch.set_flush_denormal(True):
        product()
        assert float(torch.full((1,), TINY) * 0.5) == 0


def test_gradients_that_stay_normal_are_not_touched() -> None:
    g = vanishing_gradient()
    assert bool(g.isfinite().all())
    assert float(g.abs().max()) > 1e-20
