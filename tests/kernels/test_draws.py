"""Counted random numbers: the words of Philox, in every form, and orders made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hfcore as hf
from hfcore.bindings.draws import philox, shuffled, uniform

CPU = torch.device("cpu")
# What the authors' library gives for philox4x64 of ten rounds, counter and key zero (kat_vectors).
KNOWN = (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)


def test_the_words_are_those_of_the_authors(backend: str) -> None:
    assert philox(0, 0, 4, CPU).tolist() == [word >> 1 for word in KNOWN]


@pytest.mark.parametrize("count", [1, 3, 4, 1025])
@pytest.mark.parametrize("key", [(0, 0), (1, 2), (2**31 - 1, 2**32 - 1), (2**63 - 1, 2**63 - 1)])
def test_forms_have_the_same_words(key: tuple[int, int], count: int) -> None:
    found = []
    for backend in ("reference", "cpu"):
        with hf.use_backend(backend):
            found.append(philox(*key, count, CPU))
    assert torch.equal(*found)
    assert found[0].dtype == torch.int64
    assert int(found[0].min()) >= 0
    assert torch.equal(found[0], philox(*key, 2000, CPU)[:count])


def test_an_order_has_everything_once_and_each_place_is_as_likely() -> None:
    orders = torch.stack([shuffled(3, number, 7, CPU) for number in range(2000)])
    assert torch.equal(orders.sort(dim=1).values, torch.arange(7).expand(2000, 7))
    counts = np.array([[int((orders[:, i] == j).sum()) for j in range(7)] for i in range(7)])
    chi_squared = float(((counts - 2000 / 7) ** 2 / (2000 / 7)).sum())
    assert chi_squared < 36 + 6 * (2 * 36) ** 0.5  # (7 − 1)² degrees of freedom


def test_another_seed_or_number_is_another_order() -> None:
    orders = {tuple(shuffled(s, n, 50, CPU).tolist()) for s in range(3) for n in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 3), r"seed: got -1, need 0 to 9223372036854775807"),
        ((0, 2**63, 3), r"number: got 9223372036854775808, need 0 to"),
        ((0, 0, 0), "count: got 0, need at least 1"),
    ],
)
def test_bad_sizes_are_named(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        philox(*arguments, CPU)
    with pytest.raises(TypeError, match="seed: got float, need an int"):
        philox(1.0, 0, 3, CPU)  # type: ignore[arg-type]


SHAPES = [(1,), (2,), (7,), (8,), (9,), (3, 1025)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_uniform_numbers_are_the_same_in_all_forms(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    found = []
    for backend in ("reference", "cpu"):
        with hf.use_backend(backend):  # type: ignore[arg-type]
            found.append(uniform(2**63 - 1, 5, torch.full(shape, torch.nan, dtype=dtype)))
    assert torch.equal(*found)
    longer = uniform(2**63 - 1, 5, torch.empty(5000, dtype=dtype))
    assert torch.equal(found[0].view(-1), longer[: found[0].numel()])


def test_uniform_numbers_are_made_of_the_upper_bits(backend: str) -> None:
    first, second = uniform(0, 0, torch.empty(2)).tolist()
    assert first == (KNOWN[0] >> 40) / 2**24
    assert second == (KNOWN[0] >> 16) % 2**24 / 2**24
    wide = uniform(0, 0, torch.empty(4, dtype=torch.float64)).tolist()
    assert wide == [(word >> 11) / 2**53 for word in KNOWN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_as_likely_everywhere(dtype: torch.dtype) -> None:
    drawn = uniform(1, 2, torch.empty(200_000, dtype=dtype))
    assert 0 <= float(drawn.min()) < 1e-4
    assert 1 - 1e-4 < float(drawn.max()) < 1
    counts = torch.histc(drawn, 64, 0, 1).double()
    chi_squared = float(((counts - 3125) ** 2 / 3125).sum())
    assert abs(chi_squared - 63) < 6 * (2 * 63) ** 0.5
    # neighbours, and numbers of the same word
    for lag in (1, 2, 8):
        x, y = drawn[:-lag].double(), drawn[lag:].double()
        assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 6 / 200_000**0.5


def test_threads_do_not_change_uniform_numbers(cpu: None) -> None:
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(uniform(3, 4, torch.empty(70_001)))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, torch.empty(3)), "seed: got -1"),
        ((0, True, torch.empty(3)), "number: got bool, need an int"),
        ((0, 0, torch.empty(0)), "elements: got 0"),
        ((0, 0, torch.empty(3, dtype=torch.float16)), "out: got torch.float16, need torch.float32"),
        ((0, 0, torch.empty(3, 4).T), "out: is not contiguous"),
        ((0, 0, 1.0), "out: got float, need a torch.Tensor"),
    ],
)
def test_bad_buffers_are_named(arguments: tuple[int, int, torch.Tensor], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        uniform(*arguments)
