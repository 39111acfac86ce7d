"""The random signs of every estimator."""

from __future__ import annotations

import pytest
import torch

from hfcore.probes import random_signs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1, 5)])
def test_signs_are_those_of_the_generators_bits(shape, dtype) -> None:
    like = torch.empty(0, dtype=dtype)
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    before = torch.get_rng_state()
    signs = random_signs(shape, like, draws[0])
    assert torch.equal(torch.get_rng_state(), before)
    want = 2 * torch.randint(2, shape, generator=draws[1]) - 1
    assert signs.dtype == dtype
    assert torch.equal(signs, want.to(dtype))
    torch.manual_seed(3)
    assert torch.equal(random_signs(shape, like, None), want.to(dtype))


def test_both_signs_come_up_alike() -> None:
    """The mean of n signs has standard deviation n^(−½)."""
    n = 10_000
    signs = random_signs((n,), torch.empty(0), torch.Generator().manual_seed(0))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / n**0.5
