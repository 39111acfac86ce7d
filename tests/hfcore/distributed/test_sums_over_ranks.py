"""Losses, gradients, products and diagonals of several processes are those of one on all data."""

from __future__ import annotations

import pytest
import torch

from ranks import Failed, Server, cases
from ranks.cases import KINDS

# Sums of some tens of terms in float64, in another order.
TIGHT = 1e-12


def assert_close(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    for name, value in found.items():
        size = float(whole[name].abs().max())
        assert float((value - whole[name]).abs().max()) <= TIGHT * size, name


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_any_number_of_ranks_is_one_process_and_has_one_pattern_of_bits(
    ranks: Server, kind: str
) -> None:
    wide = cases.products(None, kind=kind, dtype=torch.float64)
    whole = {k: v for k, v in wide.items() if k not in ("estimate", "trace")}
    of_size = {}
    for size in (2, 3, 4) if kind in ("rnn", "mlp") else (3,):
        found = ranks.run(size, "products", kind=kind, dtype=torch.float64)
        assert not any(isinstance(one, Failed) for one in found), found
        for one in found[1:]:
            assert all(torch.equal(one[name], found[0][name]) for name in one)
        assert_close({name: found[0][name] for name in whole}, whole)
        of_size[size] = found[0]
    alone = cases.products(None, kind=kind, dtype=torch.float64, reduction="exact")
    for size, found in of_size.items():
        for name, value in found.items():
            assert torch.equal(value, alone[name]), (name, size)


def test_fast_sums(ranks: Server, kind: str) -> None:
    wide = cases.products(None, kind=kind, dtype=torch.float64)
    whole = {k: v for k, v in wide.items() if k not in ("estimate", "trace")}
    found = ranks.run(3, "products", kind=kind, dtype=torch.float64, reduction="fast")
    assert not any(isinstance(one, Failed) for one in found), found
    for one in found:
        assert all(torch.equal(one[name], found[0][name]) for name in one)
    assert_close({name: found[0][name] for name in whole}, whole)


@pytest.mark.parametrize("size", [2, 3])
def test_both_ways_of_a_plain_sum(ranks: Server, size: int) -> None:
    whole = torch.arange(1000.0) * (size * (size + 1) // 2)
    for one in ranks.run(size, "reduced"):
        assert not isinstance(one, Failed), one
        assert all(torch.equal(found, whole) for found in one)


@pytest.mark.parametrize(("size", "reduction"), [(2, "fast"), (3, "exact")])
def test_cases_of_ones_own(ranks: Server, kind: str, size: int, reduction: str) -> None:
    """Unequal shares, and ranks that have none of a batch."""
    wide = cases.products(None, kind=kind, dtype=torch.float64)
    found = ranks.run(size, "own_products", kind=kind, reduction=reduction)
    assert not any(isinstance(one, Failed) for one in found), found
    model, loss, batches, own = cases.problem(kind, torch.float64)
    from hfcore import GaussNewton

    A = GaussNewton(model, loss, batches, l2=0.25, **own)
    v = cases.normal(A.shape[0], seed=5)
    whole = {
        "ggn": A @ v,
        "ggn loss": wide["ggn loss"],
        "ggn diagonal": A.diagonal(),
    }
    for one in found:
        assert all(torch.equal(one[name], found[0][name]) for name in one)
        assert_close(one, whole)


def test_more_ranks_than_cases(ranks: Server) -> None:
    """Three cases on four ranks."""
    for reduction in ("exact", "fast"):
        found = ranks.run(
            4, "products", kind="mlp", dtype=torch.float64, cases=3, reduction=reduction
        )
        whole = cases.products(None, kind="mlp", dtype=torch.float64, cases=3)
        assert not any(isinstance(one, Failed) for one in found), found
        for name in ("ggn", "hessian", "fisher", "gradient", "squares"):
            size = float(whole[name].abs().max())
            assert float((found[3][name] - whole[name]).abs().max()) <= TIGHT * size
