"""The range of values against torch's own, through NumPy and without."""

from __future__ import annotations

import math

import pytest
import torch

from hfcore.nets.values import all_finite, range_of

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 3), (40_001,)])
def test_least_and_largest(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert range_of(values) == (float(values.min()), float(values.max()))
    assert range_of(values.requires_grad_()) == range_of(values.detach())
    assert all_finite(values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_that_is_not_finite_shows(bad: float, dtype: torch.dtype) -> None:
    for at in (0, 17, 40):
        values = torch.zeros(41, dtype=dtype)
        values[at] = bad
        assert not all_finite(values)
        if math.isnan(bad):
            assert all(map(math.isnan, range_of(values)))


def test_views_that_are_lazily_negated() -> None:
    values = torch.complex(torch.zeros(3), torch.tensor([1.0, 2.0, -5.0])).conj().imag
    assert values.is_neg()
    assert range_of(values) == (-2.0, 5.0)
