"""The parameters of a module as one vector: where each of them lies in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hfcore.flat import FlatParameters

SHAPES = {
    "several": [(3, 2), (3,), (), (1, 1, 4)],
    "one": [(5,)],
    "an empty one": [(2, 0), (3,), (0,)],
    "one that does not lie in order": [(2, 3), (4, 5)],
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_are_views_in_the_shapes_of_the_parameters(case: str, dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES[case]]
    if case == "one that does not lie in order":
        parameters[1] = nn.Parameter(torch.zeros(5, 4, dtype=dtype).t())
    flat = FlatParameters(parameters)
    theta = torch.arange(flat.numel, dtype=dtype)
    parts = flat.split(theta)
    assert [part.shape for part in parts] == [p.shape for p in parameters]
    assert torch.equal(torch.cat([part.reshape(-1) for part in parts]), theta)
    for part in parts:
        part.fill_(-1)
    assert bool((theta == -1).all())


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_vector_of_another_length_has_no_parts(case: str, more: int) -> None:
    flat = FlatParameters([nn.Parameter(torch.zeros(shape)) for shape in SHAPES[case]])
    with pytest.raises(RuntimeError):
        flat.split(torch.zeros(flat.numel + more))
