"""The addition problem: shapes, the distribution it promises, its criterion, its errors."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
import torch

from hfcore.batches import Batch
from hfcore.draws import compile_kernel
from hfcore.problems import Addition, Problem, create
from hfcore.problems.addition import Target

DTYPES = [torch.float32, torch.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def marked_steps(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The two marked steps of every sequence, earlier first; fails unless there are two."""
    marker = batch.inputs[..., 1]
    assert bool((marker.sum(0) == 2).all())
    assert set(marker.unique().tolist()) == {0.0, 1.0}
    steps = marker.T.nonzero()[:, 1].view(-1, 2)
    return steps[:, 0], steps[:, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [3, 4, 9, 10, 11, 19, 50, 51], ids=lambda T: f"T{T}")
@pytest.mark.parametrize("target", ["mean", "sum"])
def test_batch_is_what_its_definition_says(length: int, dtype: torch.dtype, target: Target) -> None:
    problem, generator = Addition(length, target=target), rng(length)
    for _ in range(8):
        x, y, mask = batch = problem.batch(257, generator, dtype)
        assert mask is not None
        L = len(x)
        assert length <= L <= int(1.1 * length + 1e-9)
        assert x.shape == (L, 257, 2)
        assert y.shape == (L, 257, 1)
        assert x.dtype == y.dtype == dtype
        assert mask.dtype == torch.bool
        assert mask.shape == (L, 257)
        assert bool(mask[-1].all())
        assert not bool(mask[:-1].any())
        assert bool(((x[..., 0] >= 0) & (x[..., 0] <= 1)).all())
        i, j = marked_steps(batch)
        assert bool((i < 0.1 * L).all())
        assert bool(((j >= 0.1 * L) & (j < 0.5 * L)).all())
        column = torch.arange(257)
        total = x[i, column, 0] + x[j, column, 0]
        assert torch.equal(y[-1, :, 0], total / 2 if target == "mean" else total)


def test_every_length_is_equally_likely() -> None:
    problem, generator = Addition(20), rng(1)
    counts = np.bincount([len(problem.batch(1, generator).inputs) for _ in range(3000)])
    assert counts[:20].sum() == 0
    assert len(counts) == 23
    # three equally likely lengths: 1000 ± 4.6 standard deviations of 25.8
    assert np.abs(counts[20:] - 1000).max() < 120


@pytest.mark.parametrize("L", [10, 11], ids=lambda L: f"L{L}")
def test_every_marker_position_is_equally_likely(L: int) -> None:
    problem, generator = Addition(10), rng(2)
    batch = problem.batch(40_000, generator)
    while len(batch.inputs) != L:
        batch = problem.batch(40_000, generator)
    for steps, allowed in zip(
        marked_steps(batch),
        [range(1 if L == 10 else 2), range(1 if L == 10 else 2, (L + 1) // 2)],
        strict=True,
    ):
        counts = torch.bincount(steps, minlength=L).numpy()
        expected = np.zeros(L)
        expected[list(allowed)] = 40_000 / len(allowed)
        assert np.abs(counts - expected).max() <= 5 * np.sqrt(40_000 / 4)


def test_values_are_uniform() -> None:
    values = Addition(30).batch(2000, rng(3), torch.float64).inputs[..., 0].numpy().ravel()
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert np.abs(counts / len(values) - 0.05).max() < 5 * np.sqrt(0.05 / len(values))


def test_one_seed_gives_one_stream_in_both_dtypes() -> None:
    first, second = rng(4), rng(4)
    for _ in range(3):
        single = Addition(12).batch(33, first, torch.float32)
        double = Addition(12).batch(33, second, torch.float64)
        assert torch.equal(single.inputs, double.inputs.float())
        torch.testing.assert_close(single.targets, double.targets.float(), rtol=1e-6, atol=0)


def test_the_generator_state_carries_the_stream() -> None:
    problem, generator = Addition(12), rng(5)
    problem.batch(7, generator)
    state = generator.bit_generator.state
    expected = [problem.batch(7, generator).inputs for _ in range(3)]
    restored = rng(99)
    restored.bit_generator.state = state
    for want in expected:
        assert torch.equal(problem.batch(7, restored).inputs, want)


@pytest.mark.parametrize("target", ["mean", "sum"])
def test_mean_predictor_loss_is_what_sampling_gives(target: Target) -> None:
    problem = Addition(10, target=target)
    y = problem.batch(200_000, rng(6), torch.float64).targets[-1]
    assert 0.5 * float(y.var()) == pytest.approx(problem.mean_predictor_loss, rel=0.02)


def test_wrong_counts_what_is_off_by_more_than_the_tolerance() -> None:
    problem = Addition(10, tolerance=0.25)
    batch = problem.batch(4, rng(7), torch.float64)
    batch.targets[-1] = 0.5
    s = torch.full_like(batch.targets, 9.0)  # earlier outputs must not matter
    s[-1, :, 0] = torch.tensor([0.75, 0.2499, 0.5, float("nan")], dtype=torch.float64)
    assert problem.wrong(s, batch).tolist() == [False, True, False, True]


def test_wrong_refuses_outputs_of_another_shape() -> None:
    batch = Addition(10).batch(4, rng(7))
    with pytest.raises(ValueError, match=r"s: got shape \[1, 4, 1\]"):
        Addition(10).wrong(batch.targets[-1:], batch)


def test_config_rebuilds_the_problem() -> None:
    problem = Addition(37, target="sum", tolerance=0.1)
    again = create(**problem.config())
    assert isinstance(again, Problem)
    assert again.config() == problem.config()
    assert torch.equal(again.batch(5, rng(8)).targets, problem.batch(5, rng(8)).targets)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"length": 2}, ValueError, "length: got 2, need at least 3"),
        ({"length": 0}, ValueError, "length: got 0"),
        ({"length": 50.0}, TypeError, "length: got 50.0, need an int"),
        ({"length": True}, TypeError, "length: got True"),
        ({"length": 50, "target": "product"}, ValueError, "target: got 'product'"),
        ({"length": 50, "tolerance": 0.0}, ValueError, "tolerance: got 0.0"),
        ({"length": 50, "tolerance": float("nan")}, ValueError, "tolerance: got nan"),
        ({"lenght": 50}, ValueError, "got option 'lenght', need length, target, tolerance"),
    ],
)
def test_bad_options_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        create("addition", **options)


def test_an_unknown_problem_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="problem: got 'adding', need one of addition"):
        create("adding")


@pytest.mark.parametrize(
    ("size", "generator", "dtype", "error", "message"),
    [
        (0, rng(), torch.float32, ValueError, "size: got 0, need at least 1"),
        (2.0, rng(), torch.float32, TypeError, "size: got 2.0, need an int"),
        (2, torch.Generator(), torch.float32, TypeError, "generator: got Generator, need a numpy"),
        (2, rng(), torch.float16, TypeError, "dtype: got torch.float16, need torch.float32"),
    ],
)
def test_bad_draws_are_named(
    size: int, generator: object, dtype: torch.dtype, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Addition(10).batch(size, generator, dtype)  # type: ignore[arg-type]


def test_a_kernel_that_no_cache_can_be_written_for_still_compiles() -> None:
    """Numba refuses ``cache=True`` where no cache folder is writable; the kernel goes uncached."""
    space: dict[str, Any] = {}
    # Code without a source file meets the same refusal as an unwritable folder.
    exec(compile("def fill(a):\n    a[0] = 3.0", "<no file>", "exec"), space)
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(space["fill"])
    array = np.zeros(1)
    compile_kernel(space["fill"])(array)
    assert array[0] == 3.0
