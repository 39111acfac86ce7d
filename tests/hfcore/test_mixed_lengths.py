"""Batches whose sequences have lengths of their own: what a net learns from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import hfcore as hf
from hfcore.problems.lengths import at_ends

NAMES = ["addition", "multiplication", "xor", "temporal-order-2bit", "temporal-order-3bit"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mixed(name: str, length: int = 20, **options: Any) -> Any:
    return hf.problems.create(name, length=length, mixed_lengths=True, **options)


def ends(batch: hf.Batch) -> list[int]:
    """The lengths L; fails unless each sequence counts at one step."""
    assert batch.mask is not None
    assert bool((batch.mask.sum(0) == 1).all())
    return [int(steps.nonzero()) + 1 for steps in batch.mask.T]


@pytest.mark.parametrize("name", NAMES)
def test_every_sequence_is_one_of_its_own_length(name: str) -> None:
    """Until its end it is a sequence of a batch of one length, behind it there is nothing."""
    problem = mixed(name)
    x, y, _ = batch = problem.batch(700, rng(1))
    assert x.shape == (22, 700, problem.input_size)
    target, marked = problem.name in NAMES[:3], [4, 5]
    for b, L in enumerate(ends(batch)):
        assert not bool(x[L:, b].any())
        assert not bool(y[L:, b].any())
        if target:
            i, j = x[:, b, 1].nonzero().ravel().tolist()
            assert i < 0.1 * L <= j < 0.5 * L
            one, two = x[i, b, 0], x[j, b, 0]
            right = {"addition": (one + two) / 2, "multiplication": one * two}
            assert y[L - 1, b, 0] == right.get(problem.name, (one - two).abs())
        else:
            assert bool((x[:L, b].sum(-1) == 1).all())
            assert x[L - 1, b, 6] == 1  # the trigger
            bits = x[:, b, marked].nonzero()
            assert all(
                low * L <= 100 * t < high * L
                for t, (low, high) in zip(bits[:, 0].tolist(), problem.ranges, strict=True)
            )
            assert int(y[L - 1, b]) == int("".join(map(str, bits[:, 1].tolist())), 2)


@pytest.mark.parametrize("name", ["xor", "temporal-order-2bit"])
def test_all_lengths_are_equally_likely_and_in_one_batch(name: str) -> None:
    counts = np.bincount(ends(mixed(name).batch(3000, rng(2))), minlength=23)
    assert counts[:20].sum() == 0
    # three lengths: 1000 ± 4.6 standard deviations of 25.8
    assert np.abs(counts[20:] - 1000).max() < 120


@pytest.mark.parametrize("name", NAMES)
def test_centring_takes_off_the_means_of_a_sequence_s_own_length(name: str) -> None:
    plain, centred = mixed(name), mixed(name, centre=True)
    x, z = (p.batch(60, rng(3), torch.float64).inputs for p in (plain, centred))
    for b, L in enumerate(ends(plain.batch(60, rng(3)))):
        torch.testing.assert_close(z[:L, b], x[:L, b] - plain.mean_input(L))


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_judged_at_the_ends(name: str) -> None:
    problem = mixed(name)
    batch = problem.batch(50, rng(4))
    _, y, mask = batch
    assert mask is not None
    if problem.output_size == 1:
        right, there = y.clone(), mask[..., None]
        if name == "xor":
            right = 8 * right - 4
        wrong = right + torch.where(right > 0, -1, 1) * 9.0
    else:
        right, there = torch.nn.functional.one_hot(y, problem.output_size).float(), mask[..., None]
        wrong = -right
    only_there, everywhere_else = torch.where(there, right, wrong), torch.where(there, wrong, right)
    for s, share in ((only_there, 0.0), (everywhere_else, 1.0)):
        assert float(problem.errors(s, batch).mean()) == share
        assert torch.equal(problem.wrong(s[None], batch)[0], problem.wrong(s, batch))
    good, bad = problem.deviation(only_there, batch), problem.deviation(everywhere_else, batch)
    assert bool((good < bad).all())


def test_the_loss_is_the_mean_over_the_sequences_of_each_length() -> None:
    """Steps behind the end of a sequence have no part in loss, gradient and curvature."""
    problem, counts = mixed("xor"), {}
    x, y, mask = batch = problem.batch(40, rng(5), torch.float64)
    model = hf.RNN(2, 4, 1, dtype=torch.float64)
    hf.init.gaussian_(model, torch.Generator().manual_seed(0))
    v = torch.linspace(-1, 1, sum(p.numel() for p in model.parameters()), dtype=torch.float64)

    def found(part: hf.Batch) -> torch.Tensor:
        A = hf.GaussNewton(model, problem.loss, part)
        return torch.cat([torch.tensor([A.loss], dtype=torch.float64), A @ v])

    lengths = torch.tensor(ends(batch))
    total = torch.zeros(len(v) + 1, dtype=torch.float64)
    for L in lengths.unique().tolist():
        those = lengths == L
        part = hf.Batch(x[:L, those], y[:L, those], mask[:L, those] if mask is not None else None)
        counts[L] = int(those.sum())
        total += counts[L] / 40 * found(part)
    assert len(counts) == 3
    torch.testing.assert_close(found(batch), total, rtol=1e-12, atol=1e-14)


def test_at_ends_takes_the_last_step_that_counts() -> None:
    x = torch.arange(12.0).view(3, 2, 2)
    mask = torch.tensor([[True, False], [True, False], [False, False]])
    assert at_ends(x, mask).tolist() == [[4.0, 5.0], [10.0, 11.0]]
    assert at_ends(x.expand(5, 3, 2, 2), mask.double()).shape == (5, 2, 2)
    assert torch.equal(at_ends(x, None), x[-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_says_so_only_where_it_is_asked_for(name: str) -> None:
    """Stored configurations from before there was a choice stay those of the default."""
    assert "mixed_lengths" not in hf.problems.create(name, length=9).config()
    problem = mixed(name, 9)
    again = hf.problems.create(**problem.config())
    assert "mixed_lengths=True" in repr(again)
    assert math.isclose(
        float(again.batch(3, rng()).inputs.sum()), float(problem.batch(3, rng()).inputs.sum())
    )
    with pytest.raises(TypeError, match="mixed_lengths: got 1, need a bool"):
        hf.problems.create(name, mixed_lengths=1)
